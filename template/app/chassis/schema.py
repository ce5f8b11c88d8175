# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Line of database revisions, either the service's own or that of a feature."""

from pathlib import Path
from typing import NamedTuple


class Schema(NamedTuple):
    """Revisions in a directory, and the table in which the database notes the last one.

    `tables` are the tables that a feature owns. The service's own line lists none, and owns the
    rest.
    """

    name: str
    versions: Path
    version_table: str
    tables: tuple[str, ...] = ()
