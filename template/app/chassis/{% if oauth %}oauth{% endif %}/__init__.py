"""People sign in with an account that they have elsewhere: OpenID Connect, and a session cookie.

A route that takes a `session.CurrentUser` is for people who have signed in, one that takes a
`session.OptionalUser` for everyone.
"""
