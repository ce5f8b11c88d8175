# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Conversations, which are threads of messages with answers that stream.

The tables and routes belong to the template. For another model, write a class with the methods
of `turns.Provider`, and give it to `app.state.replies.provider` in app/main.py.
"""
