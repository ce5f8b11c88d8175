# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Conversations: threads of messages, and answers that stream while they are written.

Tables and routes belong to the template. Another model is a class with the methods of
`turns.Provider`, given to `app.state.replies.provider` in app/main.py.
"""
