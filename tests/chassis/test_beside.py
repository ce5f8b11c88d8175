"""Triggers, views, indexes and virtual tables beside a table that a migration rebuilds."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import CommandLine

from app.chassis import migrate
from app.chassis.errors import StartupError
from app.chassis.sqlite import open_database
from app.settings import Settings

from .databases import make_database

# Alembic's way to say that it will lose such an index
pytestmark = pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")

BESIDE = """
CREATE TABLE pages (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL);
CREATE INDEX by_case ON pages (lower(text));
CREATE INDEX plainly ON pages (text);
CREATE VIRTUAL TABLE pages_fts USING fts5(text, content='pages', content_rowid='id');
CREATE TRIGGER pages_ai AFTER INSERT ON pages BEGIN
    INSERT INTO pages_fts (rowid, text) VALUES (new.id, new.text);
END;
CREATE TABLE made_elsewhere (id INTEGER PRIMARY KEY);
"""

REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "added"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    {statements}
"""

REBUILD = """with op.batch_alter_table("pages") as batch:
        batch.alter_column("text", existing_type=sa.Text(), nullable=True)
"""
AGAIN = """
    op.execute("CREATE INDEX by_case ON pages (lower(text))")
    op.execute(
        "CREATE TRIGGER pages_ai AFTER INSERT ON pages BEGIN "
        "INSERT INTO pages_fts (rowid, text) VALUES (new.id, new.text); END"
    )
"""
DROPPED = (
    'op.execute("DROP TRIGGER pages_ai")\n    op.execute("drop index if exists by_case")\n    '
)

REFUSED = {
    "rebuilt": (REBUILD, "the index by_case, the trigger pages_ai"),
    "one dropped on purpose": (
        'op.execute("DROP INDEX by_case")\n    ' + REBUILD,
        "lose the trigger pages_ai, which",
    ),
}
PASSES = {
    "created again": REBUILD + AGAIN,
    "dropped on purpose": DROPPED + REBUILD,
    "dropped with their table": ('op.execute("DROP TABLE pages_fts")\n    op.drop_table("pages")'),
    "renamed": 'op.rename_table("pages", "leaves")',
    "a column more": 'op.add_column("pages", sa.Column("more", sa.Text))',
}


@pytest.fixture
def beside(settings: Settings) -> Path:
    make_database(settings.database_path)
    with closing(open_database(settings.database_path)) as connection:
        connection.executescript(BESIDE)
    return settings.database_path


def revisions(database: Path) -> frozenset[str]:
    with closing(open_database(database)) as connection:
        return migrate.current_revisions(connection)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_is_named(
    beside: Path, add_revision: Callable[[str], str], name: str
) -> None:
    statements, lost = REFUSED[name]
    add_revision(REVISION.replace("{statements}", statements))
    with pytest.raises(StartupError, match="create it again in the same revision") as caught:
        migrate.upgrade(beside)
    assert lost in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "added" not in revisions(beside)


@pytest.mark.parametrize("name", PASSES)
def test_what_is_meant_passes(
    beside: Path, add_revision: Callable[[str], str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    add_revision(REVISION.replace("{statements}", PASSES[name]))
    migrate.upgrade(beside)
    assert "added" in revisions(beside)
    told = "has taken AUTOINCREMENT from table pages" in caplog.text
    assert told == (REBUILD in PASSES[name])


def test_autogenerate_leaves_them_alone(
    beside: Path,
    settings: Settings,
    add_revision: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_revision(
        REVISION.replace("{statements}", 'op.execute("DROP TABLE IF EXISTS pages_of_old")')
    )
    with closing(open_database(beside)) as connection:
        connection.execute("CREATE TABLE pages_of_old (id INTEGER PRIMARY KEY)")
        connection.execute("UPDATE alembic_version SET version_num = 'added'")
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.chdir(migrate.VERSIONS.parents[1])
    before = set(migrate.VERSIONS.glob("*.py"))

    CommandLine().main(["revision", "--autogenerate", "-m", "next"])

    (made,) = set(migrate.VERSIONS.glob("*.py")) - before
    source = made.read_text(encoding="utf-8")
    # a revision has to do with this one
    assert 'op.drop_table("pages_of_old")' in source.replace("'", '"')
    assert source.count("op.drop_table") == 1
    for left in ("made_elsewhere", "pages_fts, ", "pages_fts_data"):
        assert left in caplog.text
