"""Variables with which a service starts in production, whichever features it was made with."""

RAILWAY = {
    "RAILWAY_ENVIRONMENT_ID": "e1",
    "RAILWAY_PUBLIC_DOMAIN": "api.up.railway.app",
    "RAILWAY_PRIVATE_DOMAIN": "api.railway.internal",
    "RAILWAY_GIT_COMMIT_SHA": "c0ffee",
    "RAILWAY_VOLUME_MOUNT_PATH": "/data",
}
REQUIRED = {
    "SECRET_KEY": "3f786850e387550fdab836ed7e6dc881de23001b",
    "GOOGLE_CLIENT_ID": "google",
    "GOOGLE_CLIENT_SECRET": "secret",
    "LITESTREAM_BUCKET": "copies",
    "LITESTREAM_ACCESS_KEY_ID": "key",
    "LITESTREAM_SECRET_ACCESS_KEY": "secret",
    "MICROSOFT_CLIENT_ID": "microsoft",
    "MICROSOFT_CLIENT_SECRET": "secret",
}
