# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Settings of the database's file and of the volume that keeps it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from app.chassis.settings import PROJECT_ROOT, CoreSettings, InProduction, is_production

DATABASE_URL_FORM: Final = re.compile(
    r"sqlite(\+pysqlite|\+aiosqlite)?:///([^?#\x00-\x1f\x7f-\x9f\ud800-\udfff]+)"
)


class SQLiteSettings(CoreSettings):
    """Settings of the database, which is a file on a volume."""

    railway_volume_mount_path: str = Field(default="", description="Railway's path of the volume")
    volume_path: str = Field(
        default="", description="Where the volume is mounted, outside Railway; the image sets it"
    )
    database_url: str = Field(
        default="sqlite:///data/app.db",
        description="The SQLite file; by default app.db on the volume where there is one",
    )
    sqlite_synchronous: Literal["FULL", "NORMAL"] = Field(
        default="FULL",
        description="FULL survives a power cut with every commit, NORMAL may lose the last ones",
    )
    min_free_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=0,
        description="Free bytes on the volume below which /health is 503",
    )
    low_free_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=0,
        description="Free bytes on the volume below which /health says degraded",
    )
    lock_timeout: Annotated[float, InProduction(120)] = Field(
        default=3,
        ge=0,
        description="Seconds to wait at start for the service that uses the database; by default "
        "120 with a volume",
    )

    @model_validator(mode="before")
    @classmethod
    def derive_path(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Put the database on the volume, if there is one and no variable says otherwise."""
        values = dict(given)
        on_railway = bool(values.get("railway_environment_id"))
        if volume := values.get("railway_volume_mount_path" if on_railway else "volume_path"):
            values.setdefault("database_url", f"sqlite:///{volume}/app.db")
            # An earlier deploy may be about to end, as on no person's machine
            values.setdefault("lock_timeout", 120)
        return values

    @field_validator("sqlite_synchronous", mode="before")
    @classmethod
    def in_capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("volume_path")
    @classmethod
    def volume_is_absolute(cls, value: str) -> str:
        if value and not os.path.isabs(value):
            raise ValueError("must be an absolute path, such as /data")
        return value

    @field_validator("database_url")
    @classmethod
    def database_is_kept(cls, value: str, info: ValidationInfo) -> str:
        match = DATABASE_URL_FORM.fullmatch(value)
        if match is None or match[2] == ":memory:":
            raise ValueError(
                "must name a SQLite file without options, such as sqlite:////data/app.db"
            )
        if not is_production(info):
            return value
        on_railway = bool(info.data.get("railway_environment_id"))
        volume = info.data.get("railway_volume_mount_path" if on_railway else "volume_path")
        if on_railway and not volume:
            raise ValueError(
                "no volume is attached, so every deploy would lose the data; attach one: "
                "`railway volume add --mount-path /data`"
            )
        advice = f"set it to sqlite:///{volume or '/data'}/app.db"
        path = os.path.normpath(match[2])
        if not os.path.isabs(path):
            raise ValueError(
                "must name an absolute path on the volume in production; "
                f"{advice}, or set VOLUME_PATH"
            )
        if volume and path == os.path.normpath(volume):
            raise ValueError(f"names the volume and no file on it; {advice}")
        if volume and not Path(path).is_relative_to(os.path.normpath(volume)):
            raise ValueError(f"is not on the volume, so every deploy would lose the data; {advice}")
        return value

    @property
    def volume(self) -> Path | None:
        """Return the directory of the mounted volume, or None if there is none (a laptop)."""
        path = self.railway_volume_mount_path if self.on_railway else self.volume_path
        return Path(path) if path else None

    @property
    def database_path(self) -> Path:
        """Return the database file. A relative path counts from the project's root."""
        _, _, path = self.database_url.partition(":///")
        return Path(os.path.normpath(PROJECT_ROOT / path))

    @property
    def wanted_free_bytes(self) -> int:
        """Return the free bytes on the volume below which /health is no longer ok."""
        return max(self.min_free_bytes, self.low_free_bytes)

    def warnings(self) -> list[str]:
        found = super().warnings()
        if self.on_railway and self.volume is None:
            found.append("DATABASE_URL: no volume is attached; the next deploy loses the data")
        return found
