"""Variables with which a service starts in production, whatever was answered."""

from app.chassis import answers
from app.chassis.testing import required_variables
from app.settings import Settings

RAILWAY = {
    "RAILWAY_ENVIRONMENT_ID": "e1",
    "RAILWAY_PUBLIC_DOMAIN": "api.up.railway.app",
    "RAILWAY_PRIVATE_DOMAIN": "api.railway.internal",
    "RAILWAY_GIT_COMMIT_SHA": "c0ffee",
    "RAILWAY_VOLUME_MOUNT_PATH": "/data",
}

DATABASE_URL = {
    "sqlite": "sqlite:////data/app.db",
    "postgresql": "postgresql://app:secret@db.internal:5432/app",
}[answers.DATABASE]

EVERY_REQUIRED = {
    "SECRET_KEY": "3f786850e387550fdab836ed7e6dc881de23001b",
    "ANTHROPIC_API_KEY": "sk-ant-1",
    "GOOGLE_CLIENT_ID": "google",
    "GOOGLE_CLIENT_SECRET": "secret",
    "LITESTREAM_BUCKET": "copies",
    "LITESTREAM_ACCESS_KEY_ID": "key",
    "LITESTREAM_SECRET_ACCESS_KEY": "secret",
    "MICROSOFT_CLIENT_ID": "microsoft",
    "MICROSOFT_CLIENT_SECRET": "secret",
}

REQUIRED = {
    **required_variables(Settings),
    **({} if answers.DATABASE == "sqlite" else {"DATABASE_URL": DATABASE_URL}),
    **{
        name: EVERY_REQUIRED[name]
        for name in EVERY_REQUIRED
        if name.lower() in Settings.model_fields
    },
}
