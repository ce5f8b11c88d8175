"""The engine of the database, which the chassis knows by its face alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.chassis import answers, assembly
from app.chassis.errors import StartupError
from app.settings import Settings

from .databases import ABOUT_A_FILE
from .test_imports import MODULES, imported

ENGINE = assembly.engine.__name__

FACE = {
    "BACKUP_ADVICE",
    "COMMANDS",
    "NAME",
    "check_writers",
    "checks",
    "database_gone",
    "figures",
    "find_conflict",
    "find_misfit",
    "in_words",
    "migrating",
    "new_database",
    "open",
    "prepare",
    "probes",
    "server_options",
}


def within(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def test_only_its_own_package_the_assembly_and_the_copies_import_it() -> None:
    may = (ENGINE, f"app.chassis.{answers.BACKUP}", "app.chassis.assembly")
    for name, path in MODULES.items():
        found = {module for module in imported(path) if within(module, ENGINE)}
        assert not found or within(name, *may), name


def test_the_chassis_asks_the_face_for_nothing_else() -> None:
    texts = [
        path.read_text(encoding="utf-8")
        for name, path in MODULES.items()
        if "app.chassis.assembly" in imported(path) and not within(name, ENGINE)
    ]
    asked = {name for text in texts for name in re.findall(r"\bengine\.(\w+)", text)}

    assert asked == FACE - {"NAME"}
    assert set(dir(assembly.engine)) >= FACE


def test_a_start_loads_no_library_that_only_the_server_needs() -> None:
    code = """if True:
        import sys
        from app.chassis import assembly, cli, migrate, serve
        print({"alembic", "fastapi", "sqlalchemy"} & sys.modules.keys())
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("arguments", [[], ["start"], ["template", "status"], ["migrate"]])
def test_arguments_are_read_without_the_engine(arguments: list[str]) -> None:
    code = """if True:
        import sys
        from app.chassis import cli
        cli.make_parser(sys.argv[1:]).parse_args()
        print("app.chassis.assembly" in sys.modules)
        """
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@ABOUT_A_FILE
def test_the_storage_is_held_until_the_lock_is_closed(tmp_path: Path, settings: Settings) -> None:
    left = tmp_path / ".restore-killed"
    left.mkdir()
    engine = assembly.engine

    engine.prepare(settings)  # Alembic works beside a service that runs
    assert left.exists()
    with engine.prepare(settings, 0):
        assert not left.exists()
        other = "import sys; from app.chassis import cli; sys.exit(cli.main(['migrate']))"
        variables = {"PATH": "", "DATABASE_URL": settings.database_url}
        done = subprocess.run(
            [sys.executable, "-c", other], env=variables, capture_output=True, text=True
        )
        assert "is in use by another service" in done.stderr
    engine.prepare(settings, 0).close()

    with engine.prepare(settings, 0), pytest.raises(StartupError, match="in use by another"):
        engine.prepare(settings, 0)
