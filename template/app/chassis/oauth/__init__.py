# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Sign-in with a provider's account, by OpenID Connect and a session cookie.

A route that takes a `session.CurrentUser` is for people who have signed in. A route that takes a
`session.OptionalUser` is for everyone.
"""
