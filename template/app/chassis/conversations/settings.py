# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Maximum numbers of answers and threads."""

from pydantic import Field

from app.chassis.settings import CoreSettings


class ConversationSettings(CoreSettings):
    """Maximum numbers. The service can tell people apart only if they sign in."""

    # Each worker process has this limit for itself
    max_answers: int = Field(
        default=1000, ge=1, description="Answers that each worker writes at once; one more is 503"
    )
    max_answers_per_person: int = Field(
        default=10, ge=1, description="Those of somebody who has signed in; one more is 429"
    )
    max_threads_per_person: int = Field(
        default=1000, ge=1, description="Threads of somebody who has signed in; one more is 409"
    )
