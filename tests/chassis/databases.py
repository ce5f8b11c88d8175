"""A database with every table, in the way of the project's engine."""

from collections.abc import Callable
from importlib import import_module

import pytest

from app.chassis import answers
from app.settings import Settings

make_database: Callable[[Settings], None] = import_module(
    f"{__package__}.{answers.DATABASE}.databases"
).make_database

ABOUT_A_FILE = pytest.mark.skipif(answers.DATABASE != "sqlite", reason="is about SQLite's file")
