# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""A line of database revisions: the service's own, or one of a feature's."""

from pathlib import Path
from typing import NamedTuple


class Schema(NamedTuple):
    """Revisions in a directory, and the table in which the database notes the last one.

    `tables` are those that a feature owns; the service's own line has none listed, and owns
    the rest.
    """

    name: str
    versions: Path
    version_table: str
    tables: tuple[str, ...] = ()
