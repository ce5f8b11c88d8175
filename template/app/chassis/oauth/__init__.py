# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""People sign in with an account that they have elsewhere: OpenID Connect, and a session cookie.

A route that takes a `session.CurrentUser` is for people who have signed in, one that takes a
`session.OptionalUser` for everyone.
"""
