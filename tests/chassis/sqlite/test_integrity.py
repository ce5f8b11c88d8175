"""Rows that break a rule stop nothing but the migration that has made them."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from app.chassis import assembly, migrate
from app.chassis.errors import StartupError
from app.chassis.sqlite import check as probes
from app.chassis.sqlite import integrity
from app.chassis.sqlite.backup import backup, restore
from app.chassis.sqlite.driver import open_database
from app.chassis.sqlite.schema import current_revisions
from app.settings import Settings

from .databases import make_database

BROKEN = """
CREATE TABLE parents (id INTEGER PRIMARY KEY, code TEXT);
CREATE TABLE children (
    id INTEGER PRIMARY KEY,
    parent_id INTEGER CONSTRAINT fk REFERENCES parents (id),
    size INTEGER CHECK (size < 3)
);
CREATE TABLE others (parent_id INTEGER REFERENCES parents (id));
CREATE TABLE keyed (name TEXT PRIMARY KEY, parent_id REFERENCES parents (id)) WITHOUT ROWID;
CREATE TABLE lost (id INTEGER PRIMARY KEY, gone_id INTEGER REFERENCES gone (id));
CREATE TABLE unfit (code TEXT REFERENCES parents (code));
INSERT INTO parents (id) VALUES (1), (2);
INSERT INTO children (parent_id) VALUES (1), (7), (8), (9), (10), (NULL);
INSERT INTO keyed VALUES ('a', 7);
INSERT INTO lost (gone_id) VALUES (1);
PRAGMA ignore_check_constraints=ON;
INSERT INTO children (size) VALUES (5);
"""

LINES = {
    "CHECK constraint failed in children (1 row)",
    "table children has 4 rows whose parent_id is in no row of parents (rowid 2, 3, 4, ...)",
    "table keyed has 1 row whose parent_id is in no row of parents",
    "table lost has 1 row whose gone_id is in no row of gone (rowid 1)",
    'foreign key mismatch - "unfit" referencing "parents"',
}


@pytest.fixture
def broken(settings: Settings) -> Path:
    make_database(settings)
    with closing(open_database(settings.database_path)) as connection:
        connection.executescript(BROKEN)
    return settings.database_path


def test_they_are_named_and_everything_goes_on(
    settings: Settings, broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_database(broken)) as connection:
        damage, lines = integrity.find_faults(connection)
    assert damage is None
    assert set(lines) == LINES
    found = {finding.id: finding for finding in probes.check(settings, assembly.metadata())}
    assert found["database.integrity"].status == "ok"
    assert found["database.rows"].status == "warning"
    assert all(line in found["database.rows"].verdict for line in LINES)

    copy = backup(broken, tmp_path / "copy.db")
    restore(copy, broken, migrate.upgrade)
    for line in LINES:
        assert line in caplog.text


PASSES = {
    "elsewhere": 'op.create_table("new", sa.Column("id", sa.Integer, primary_key=True))',
    "a rebuilt table": """
with op.batch_alter_table("others", recreate="always") as batch:
        batch.add_column(sa.Column("note", sa.Text))""",
    "a renamed table": 'op.rename_table("children", "offspring")',
    "a renamed parent": 'op.rename_table("parents", "elders")',
    "a renamed column": 'op.alter_column("keyed", "parent_id", new_column_name="elder_id")',
    "correct them": 'op.execute("DELETE FROM children WHERE parent_id > 2")',
}
REFUSED = {
    "deleted parents": 'op.execute("DELETE FROM parents WHERE id = 1")',
    "one corrected, one broken": """
op.execute("UPDATE children SET parent_id = 1 WHERE parent_id = 7")
    op.execute("INSERT INTO others VALUES (7)")""",
    "a renamed table and a broken row": """
op.rename_table("children", "offspring")
    op.execute("INSERT INTO offspring (parent_id) VALUES (7)")""",
    "a dropped parent": 'op.execute("DROP TABLE parents")',
}

REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "added"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    {statement}
"""


@pytest.mark.parametrize("name", PASSES)
def test_a_migration_passes_with_what_was_there(
    broken: Path, add_revision: Callable[[str], str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    add_revision(REVISION.replace("{statement}", PASSES[name].lstrip()))
    migrate.upgrade(broken)
    with closing(open_database(broken)) as connection:
        assert "added" in current_revisions(connection)
    assert "left as it is: table children has 4 rows" in caplog.text


@pytest.mark.parametrize("name", REFUSED)
def test_a_migration_is_refused_for_what_it_broke(
    broken: Path, add_revision: Callable[[str], str], name: str
) -> None:
    before = broken.read_bytes()
    add_revision(REVISION.replace("{statement}", REFUSED[name].lstrip()))
    with pytest.raises(StartupError, match=r"rolled back: table .* is in no row of parents"):
        migrate.upgrade(broken)
    assert broken.read_bytes() == before


def test_damage_behind_many_such_rows_is_found(broken: Path, tmp_path: Path) -> None:
    with closing(open_database(broken)) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.executemany("INSERT INTO children (size) VALUES (?)", [(9,) for _ in range(500)])
        connection.execute("CREATE TABLE zebras (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("CREATE INDEX stripes ON zebras (name)")
        connection.execute("INSERT INTO zebras (name) VALUES ('a')")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET rootpage = "
            "(SELECT rootpage FROM sqlite_master WHERE name = 'lost') WHERE name = 'stripes'"
        )
    with pytest.raises(StartupError, match=r"damaged|malformed"):
        backup(broken, tmp_path / "copy.db")
