# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Settings of the bucket that keeps the copy, and of how late the copy may be."""

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from app.chassis import answers
from app.chassis.settings import as_origin, is_production
from app.chassis.sqlite.settings import SQLiteSettings

# Other characters in litestream.yml could be taken for YAML's syntax
PLAIN_FORM: Final = re.compile(r"[A-Za-z0-9._/-]*")

MAX_SOCKET_PATH: Final = 100
"""Maximum bytes of the socket's path. Linux takes 107, macOS 103 (unix(7), unix(4))."""


class LitestreamSettings(SQLiteSettings):
    """Settings of the S3-compatible bucket that keeps the copy, by default one of Railway's."""

    litestream_bucket: str = Field(
        default="", description="Bucket of the continuous copy; required in production"
    )
    litestream_endpoint: str = Field(
        default="https://storage.railway.app", description="The bucket's S3 endpoint"
    )
    litestream_region: str = Field(default="auto", description="The bucket's region")
    litestream_access_key_id: str = Field(
        default="", description="The bucket's access key; required in production"
    )
    litestream_secret_access_key: SecretStr = Field(
        default=SecretStr(""), description="The bucket's secret key; required in production"
    )
    litestream_path: str = Field(
        default="",
        description="Folder in the bucket; by default the service's and the environment's names",
    )
    litestream_force_path_style: bool = Field(
        default=False, description="true for buckets addressed by path (MinIO, SeaweedFS)"
    )
    litestream_max_age: float = Field(
        default=60,
        gt=0,
        description="Seconds until changes that are not in the bucket make /health degraded",
    )
    # The time is less than the health check's 300 s, and 1.3 GB took 16 s. Without a limit,
    # Litestream would wait for an unreachable bucket without end.
    litestream_restore_timeout: float = Field(
        default=240,
        gt=0,
        description="Seconds that the start may take to fetch the database from the bucket",
    )

    @field_validator("litestream_bucket", "litestream_region", "litestream_path")
    @classmethod
    def fits_the_file(cls, value: str) -> str:
        if not PLAIN_FORM.fullmatch(value):
            raise ValueError("may have letters, digits, '.', '_', '-' and '/' only")
        return value

    @field_validator("litestream_endpoint")
    @classmethod
    def endpoint_is_an_origin(cls, value: str) -> str:
        value = value.rstrip("/")
        if not as_origin(value):
            raise ValueError("must be scheme and host, such as https://storage.railway.app")
        return value

    @field_validator(
        "litestream_bucket", "litestream_access_key_id", "litestream_secret_access_key"
    )
    @classmethod
    def all_or_none(cls, value: str | SecretStr, info: ValidationInfo) -> str | SecretStr:
        given = value.get_secret_value() if isinstance(value, SecretStr) else value
        if not given and is_production(info):
            raise ValueError(
                "is required in production, because backups were asked for; set it to the "
                "bucket's (RUNBOOK.md, Back up)"
            )
        if not given and info.data.get("litestream_bucket"):
            raise ValueError("is required with LITESTREAM_BUCKET; set it to the bucket's")
        return value

    @property
    def replicated(self) -> bool:
        """Return whether a bucket is configured. In development there may be none."""
        return bool(self.litestream_bucket)

    @property
    def replica_path(self) -> str:
        """Return the folder in the bucket. Each environment has its own."""
        place = self.railway_environment_name or self.environment
        default = f"{answers.SERVICE_SLUG}/{re.sub('[^A-Za-z0-9._-]+', '-', place)}"
        return self.litestream_path or default

    @property
    def control_socket(self) -> Path:
        """Return the path of Litestream's socket, beside the database unless that is too long."""
        database = self.database_path
        beside = database.with_name(f".{database.name}-litestream.sock")
        if len(os.fsencode(beside)) <= MAX_SOCKET_PATH:
            return beside
        digest = hashlib.sha256(os.fsencode(database)).hexdigest()[:16]
        return Path(tempfile.gettempdir(), f"litestream-{digest}.sock")
