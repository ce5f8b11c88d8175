"""Triggers, views, indexes and virtual tables beside a table that a migration rebuilds."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.config import CommandLine

from app.chassis import migrate
from app.chassis import revisions as lines
from app.chassis.errors import StartupError
from app.chassis.sqlite.driver import open_database
from app.chassis.sqlite.schema import current_revisions
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
ORDERED = """
CREATE TABLE members (
    id INTEGER PRIMARY KEY,
    email TEXT NOT NULL,
    "desc" TEXT,
    page_id INTEGER REFERENCES pages (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX one_email ON members (email COLLATE nocase);
CREATE INDEX newest ON members (id DESC);
CREATE INDEX described ON members ("desc") WHERE email <> 'a desc';
"""

REBUILD_MEMBERS = """with op.batch_alter_table("members") as batch:
        batch.alter_column("email", existing_type=sa.Text(), nullable=True)
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
    make_database(settings)
    with closing(open_database(settings.database_path)) as connection:
        connection.executescript(BESIDE)
    return settings.database_path


def revisions(database: Path) -> frozenset[str]:
    with closing(open_database(database)) as connection:
        return current_revisions(connection)


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


def test_a_view_of_a_table_that_is_rebuilt_is_named(
    beside: Path, add_revision: Callable[[str], str]
) -> None:
    with closing(open_database(beside)) as connection:
        connection.execute('CREATE VIEW "all of-them" AS SELECT text FROM pages')
    add_revision(REVISION.replace("{statements}", DROPPED + REBUILD))
    with pytest.raises(StartupError, match="the view all of-them reads from a table") as caught:
        migrate.upgrade(beside)
    assert "\n" not in str(caught.value)
    assert "added" not in revisions(beside)


def test_a_name_in_quotes_is_meant(beside: Path, add_revision: Callable[[str], str]) -> None:
    with closing(open_database(beside)) as connection:
        connection.execute('CREATE VIEW "all of-them" AS SELECT text FROM pages')
    dropped = """op.execute('DROP VIEW IF EXISTS "all of-them"')\n    """
    add_revision(REVISION.replace("{statements}", dropped + DROPPED + REBUILD))
    migrate.upgrade(beside)
    assert "added" in revisions(beside)


@pytest.mark.parametrize("meant", [False, True])
def test_what_an_index_compares_by_is_not_lost(
    beside: Path, add_revision: Callable[[str], str], caplog: pytest.LogCaptureFixture, meant: bool
) -> None:
    with closing(open_database(beside)) as connection:
        connection.executescript(ORDERED)
    statements = [REBUILD_MEMBERS]
    if meant:
        statements = ['op.drop_index("one_email")', 'op.drop_index("newest")', REBUILD_MEMBERS]
    add_revision(REVISION.replace("{statements}", "\n    ".join(statements)))
    if meant:
        migrate.upgrade(beside)
        assert "has taken ON DELETE CASCADE from table members" in caplog.text
        return
    with pytest.raises(StartupError) as caught:
        migrate.upgrade(beside)
    assert "DESC from the index newest, COLLATE NOCASE from the index one_email" in str(
        caught.value
    )
    assert "described" not in str(caught.value)
    assert "added" not in revisions(beside)


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
    monkeypatch.chdir(lines.VERSIONS.parents[1])
    before = set(lines.VERSIONS.glob("*.py"))

    CommandLine().main(["revision", "--autogenerate", "-m", "next"])

    (made,) = set(lines.VERSIONS.glob("*.py")) - before
    source = made.read_text(encoding="utf-8")
    # a revision has to do with this one
    assert 'op.drop_table("pages_of_old")' in source.replace("'", '"')
    assert source.count("op.drop_table") == 1
    for left in ("made_elsewhere", "pages_fts, ", "pages_fts_data"):
        assert left in caplog.text
