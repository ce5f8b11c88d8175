"""`trackbed status`, `diff`, `notes` and `update` in one service, of a template of few files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from copier import run_copy

from support import ROOT, commit, git, recorded, tool

LINES = "".join(f"LINE_{number} = {number}\n" for number in range(9))

FIRST = {
    "copier.yml": """\
_subdirectory: template
_skip_if_exists: [app/main.py]
_envops:
  undefined: jinja2.StrictUndefined
backup:
  type: str
  default: railway
builder:
  type: str
  default: dockerfile
refuse:
  type: str
  when: false
  default: "{{ {}['builder: Must be dockerfile or railpack'] if builder == 'heroku' else '' }}"
""",
    "ownership.toml": '[[template]]\npaths = ["app/chassis/", "tests/chassis/"]\n',
    "docs/upgrading.md": "# Upgrading\n\n## 0.2.0\n\nTwo.\n\n## 0.1.0\n\nOne.\n",
    "template/{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml -}}\n",
    "template/.gitignore": ".env\n",
    "template/README.md.jinja": "# Service\n\nBackup: {{ backup }}\n\n## End\n",
    "template/pyproject.toml": """\
[project]
name = "app"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = [
    "fastapi>=0.165", # routes
    "sqlalchemy>=2.1", # tables
    "uvicorn>=0.54", # the server
    "uvicorn-worker>=0.4", # under gunicorn
    # your own
]

[dependency-groups]
dev = [
    "httpx2>=2.16",
    "mypy>=2.3",
]
""",
    "template/app/chassis/__init__.py": '"""The chassis."""\n',
    "template/app/chassis/worker.py": f"WORKER = 1\n{LINES}",
    "template/app/chassis/litestream.py": "COPIES = 1\nEVERY = 2\n",
    "template/app/main.py": "app = None\n",
    "template/tests/chassis/databases.py": "MEMORY = True\n",
    "template/tests/chassis/test_worker.py": "from .databases import MEMORY\n",
    "template/{% if builder == 'dockerfile' %}Dockerfile{% endif %}": "FROM python\nCMD app\n",
}

SECOND = {
    "template/app/chassis/worker.py": f"WORKER = 2\n{LINES}",
    "template/app/chassis/litestream/__init__.py": "COPIES = 1\nEVERY = 3\n",
    "template/tests/chassis/test_more.py": "from .databases import MEMORY\n",
    "template/pyproject.toml": FIRST["template/pyproject.toml"]
    .replace(
        '    "uvicorn>=0.54", # the server\n    "uvicorn-worker>=0.4", # under gunicorn\n',
        '    "uvloop>=0.22",\n    "uvicorn>=0.54", # the server\n',
    )
    .replace('    "httpx2>=2.16",\n    "mypy>=2.3",\n', '    "mypy>=2.3",\n    "httpx2>=2.16",\n'),
}

Run = Callable[..., subprocess.CompletedProcess[str]]


def write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def template(isolation: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.2.0 moves a module of the chassis, adds a test, and sorts dependencies otherwise."""
    repository = tmp_path_factory.mktemp("single") / "template"
    write(repository, FIRST)
    commit(repository, "First release", tag="0.1.0")
    (repository / "template/app/chassis/litestream.py").unlink()
    write(repository, SECOND)
    commit(repository, "Second release", tag="0.2.0")
    return repository


@pytest.fixture(scope="module")
def rendered(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rendered") / "service"
    run_copy(str(template), directory, vcs_ref="0.1.0", defaults=True, quiet=True)
    return directory


@pytest.fixture
def service(rendered: Path, tmp_path: Path) -> Path:
    """A service of 0.1.0, committed."""
    directory = tmp_path / "work" / "service"
    shutil.copytree(rendered, directory)
    commit(directory, "As rendered")
    return directory


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "trackbed.cli", *map(str, arguments)]


@pytest.fixture
def environment(isolation: None, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture
def trackbed(environment: dict[str, str], tmp_path: Path) -> Run:
    def run(
        *arguments: str | Path, cwd: Path, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*arguments),
            cwd=cwd,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        assert "Traceback" not in done.stderr
        assert list((tmp_path / "tmp").iterdir()) == []
        return done

    return run


def edit(service: Path, name: str, text: str) -> None:
    with (service / name).open("a", encoding="utf-8") as file:
        file.write(text)
    commit(service, f"Edit {name}")


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stdout
    assert done.stderr.startswith("trackbed: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


# Status, diff, notes ---------------------------------------------------------
def test_status_diff_and_notes(service: Path, trackbed: Run, template: Path) -> None:
    done = trackbed("status", "--json", cwd=service)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "source": str(template),
        "version": "0.1.0",
        "newest": "0.2.0",
        "update_available": True,
        "drift": [],
    }
    assert trackbed("diff", cwd=service).returncode == 0
    assert trackbed("notes", cwd=service).stdout == "## 0.2.0\n\nTwo.\n"

    edit(service, "app/chassis/worker.py", "MINE = 1")
    edit(service, "app/main.py", "mine = 1\n")
    (service / "tests/chassis/databases.py").unlink()
    for place in (("-C", service, "status"), ("status", service), ("status", "-C", service)):
        told = trackbed(*place, cwd=service.parent).stdout
        assert told.splitlines()[1:] == [
            "version   0.1.0, 0.2.0 is out",
            "drift     2 of the template's files are not as it renders them",
            "          changed app/chassis/worker.py",
            "          missing tests/chassis/databases.py",
        ]
    done = trackbed("diff", cwd=service)
    assert done.returncode == 1
    assert "--- template/app/chassis/worker.py\n+++ project/app/chassis/worker.py\n" in done.stdout
    assert "+MINE = 1\n\\ No newline at end of file\n" in done.stdout
    assert "main.py" not in done.stdout


@pytest.mark.long
def test_a_checkout_with_windows_line_endings_is_no_drift(
    service: Path, trackbed: Run, tmp_path: Path
) -> None:
    settings = "[core]\n    autocrlf = true\n[user]\n    name = Ann\n    email = ann@example.com\n"
    (tmp_path / "crlf").write_text(settings)
    variables = {"GIT_CONFIG_GLOBAL": str(tmp_path / "crlf")}
    there = tmp_path / "checkout"
    subprocess.run(
        ["git", "clone", "-q", service, there], env={**os.environ, **variables}, check=True
    )
    assert b"\r\n" in (there / "app/chassis/worker.py").read_bytes()

    assert "drift     0 of" in trackbed("status", cwd=there, **variables).stdout
    assert trackbed("diff", cwd=there, **variables).stdout == ""
    done = trackbed("update", "--no-lock", cwd=there, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (there / "app/chassis/worker.py").read_bytes().startswith(b"WORKER = 2\r\n")
    listed = subprocess.run(
        ["git", "diff", "--stat"],
        cwd=there,
        env={**os.environ, **variables},
        capture_output=True,
        encoding="utf-8",
    )
    assert "app/chassis/worker.py" in listed.stdout
    assert "README.md" not in listed.stdout


@pytest.mark.long
def test_a_template_that_is_gone_is_one_line(service: Path, trackbed: Run) -> None:
    answers = service / ".copier-answers.yml"
    for source in ("/gone", "https://127.0.0.1:1/gone.git", "ssh://git@127.0.0.1:1/gone.git"):
        text = answers.read_text(encoding="utf-8")
        answers.write_text(text.replace(recorded(service)["_src_path"], source), encoding="utf-8")
        commit(service, "Gone")
        for task in ("status", "diff", "notes", "update"):
            done = trackbed(task, cwd=service)
            refused(done, source.removeprefix("ssh://git@").partition("/gone")[0])
            assert "and the repository exists" not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("_src_path", ".", "the template is ., which led to it only from where the service was"),
        ("_src_path", "template", "the template is template, which led to it only from where"),
        ("_src_path", "/gone", "the template is gone: /gone; write its address into _src_path of"),
        ("_commit", "0.1.0-1-gabcdef0", "such as 0.1.0, into _commit of .copier-answers.yml, and"),
        ("_commit", "abcdef0", "such as 0.2.0, into _commit of .copier-answers.yml, and commit"),
    ],
)
def test_what_was_recorded_by_mistake_says_what_to_do(
    service: Path, trackbed: Run, name: str, value: str, message: str
) -> None:
    answers = service / ".copier-answers.yml"
    text = answers.read_text(encoding="utf-8")
    answers.write_text(text.replace(recorded(service)[name], value, 1), encoding="utf-8")
    commit(service, "A mistake")
    for task in ("status", "update"):
        refused(trackbed(task, cwd=service), message)


def test_a_template_without_a_release_says_so(
    service: Path, trackbed: Run, template: Path, tmp_path: Path
) -> None:
    untagged = tmp_path / "untagged"
    git(tmp_path, "clone", "-q", "--no-tags", str(template), str(untagged))
    answers = service / ".copier-answers.yml"
    text = answers.read_text(encoding="utf-8").replace(str(template), str(untagged))
    answers.write_text(text, encoding="utf-8")
    commit(service, "Another clone")
    refused(trackbed("status", cwd=service), "the template has no release: no tag such as 1.2.3 in")


# Answers files, and where the service is --------------------------------------
@pytest.mark.long
def test_another_templates_answers_beside_ours(service: Path, trackbed: Run) -> None:
    other = "_commit: 1.0.0\n_src_path: /elsewhere\nname: x\n"
    git(service, "mv", ".copier-answers.yml", ".copier-answers.trackbed.yml")
    (service / ".copier-answers.yml").write_text(other)
    commit(service, "Two templates")

    refused(trackbed("status", cwd=service), "choose with -a: .copier-answers.trackbed.yml, .cop")
    done = trackbed("status", "-a", ".copier-answers.trackbed.yml", cwd=service)
    assert "0.1.0, 0.2.0 is out" in done.stdout
    done = trackbed("update", "--no-lock", "-a", ".copier-answers.trackbed.yml", cwd=service)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (service / ".copier-answers.yml").read_text() == other
    assert "_commit: 0.2.0" in (service / ".copier-answers.trackbed.yml").read_text()


@pytest.mark.long
def test_of_two_files_the_one_with_our_questions_is_ours(service: Path, trackbed: Run) -> None:
    more = "project_name: Billing\nvolume_path: /data\n"
    edit(service, ".copier-answers.yml", more)
    write(service, {".copier-answers.other.yml": "name: x\n", ".copier-answers.odd.yml": "{"})
    commit(service, "Another template's")

    assert "0.1.0, 0.2.0 is out" in trackbed("status", cwd=service).stdout


@pytest.mark.long
def test_a_service_in_a_monorepo(rendered: Path, trackbed: Run, tmp_path: Path) -> None:
    top = tmp_path / "mono"
    service = top / "services" / "billing"
    shutil.copytree(rendered, service)
    write(top, {"other/file.txt": "x\n"})
    commit(top, "All")
    (top / "other/file.txt").write_text("work in progress\n")

    done = trackbed("update", "--no-lock", cwd=service)

    assert done.returncode == 0, done.stdout + done.stderr
    assert recorded(service)["_commit"] == "0.2.0"
    assert (service / "app/chassis/litestream/__init__.py").is_file()
    assert (top / "other/file.txt").read_text() == "work in progress\n"
    assert {path.name for path in top.iterdir()} == {".git", "other", "services"}


@pytest.mark.long
def test_what_is_no_service_is_one_line(service: Path, trackbed: Run, tmp_path: Path) -> None:
    for task in ("status", "diff", "notes", "update"):
        refused(trackbed(task, cwd=tmp_path), "is not in a git repository")
        refused(trackbed("-C", "nowhere", task, cwd=tmp_path), "nowhere: No such file")
        refused(trackbed(task, cwd=service / "app"), "has no .copier-answers.yml")
    git(service, "rm", "-q", ".copier-answers.yml")
    write(service, {".copier-answers.yml": "backup: none\n"})
    commit(service, "No version")
    refused(trackbed("update", cwd=service), "has no _src_path")


# Update ----------------------------------------------------------------------
@pytest.mark.long
def test_an_update_is_what_copier_would_do(
    service: Path, trackbed: Run, run_copier: Run, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    git(tmp_path, "clone", "-q", str(service), str(plain))
    done = run_copier("update", "--defaults", cwd=plain)
    assert done.returncode == 0, done.stderr

    done = trackbed("update", "--json", cwd=service)

    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert (found["version"], found["target"]) == ("0.1.0", "0.2.0")
    assert "app/chassis/litestream.py" in found["changed"]
    for directory in (service, plain):
        git(directory, "add", "--all")
    assert git(service, "write-tree") == git(plain, "write-tree")
    commit(service, "Update")
    done = trackbed("update", cwd=service)
    assert (done.returncode, done.stdout) == (0, "0.2.0 is what 0.2.0 renders: nothing to do.\n")
    assert git(service, "status", "--porcelain") == ""


@pytest.mark.long
def test_an_edit_in_a_file_that_a_release_moves_is_told(service: Path, trackbed: Run) -> None:
    edit(service, "app/chassis/litestream.py", "PRECIOUS = 3\n")

    done = trackbed("update", "--no-lock", cwd=service)

    assert done.returncode == 1
    assert "lost         app/chassis/litestream.py: PRECIOUS 3\n" in done.stdout
    assert not (service / "app/chassis/litestream.py").exists()


@pytest.mark.long
def test_an_edit_in_a_file_that_an_answer_turns_off_is_told(service: Path, trackbed: Run) -> None:
    edit(service, "Dockerfile", "RUN apt-get install ffmpeg\n")

    options = ("--to", ":current:", "-d", "builder=railpack", "--no-lock")
    done = trackbed("update", *options, cwd=service)

    assert done.returncode == 1
    assert "lost         Dockerfile: RUN apt get install ffmpeg\n" in done.stdout
    assert recorded(service)["builder"] == "railpack"
    assert recorded(service)["_commit"] == "0.1.0"


def test_conflicts_are_named_and_marked(service: Path, trackbed: Run) -> None:
    (service / "app/chassis/worker.py").write_text(f"WORKER = 7\n{LINES}")
    commit(service, "Against advice")

    done = trackbed("update", "--no-lock", cwd=service)

    assert done.returncode == 1
    assert "conflict     app/chassis/worker.py\n" in done.stdout
    assert (
        "<<<<<<< before updating\nWORKER = 7\n" in (service / "app/chassis/worker.py").read_text()
    )
    assert git(service, "diff", "--name-only", "--diff-filter=U") == "app/chassis/worker.py\n"
    stages = git(service, "ls-files", "--unmerged").splitlines()
    assert [line.split()[2] for line in stages] == ["1", "2", "3"]
    assert git(service, "show", ":3:app/chassis/worker.py") == f"WORKER = 2\n{LINES}"
    # a second one is refused as long as they are there
    refused(trackbed("update", cwd=service), "commit or stash your changes first: .copier-answers")


HOOK = '#!/bin/sh\nfind . -name "*.py" -exec sh -c \'echo "# hooked" >> "$1"\' _ {} \\;\nexit 1\n'


@pytest.mark.long
@pytest.mark.parametrize("kind", ["settings", "variables"])
def test_personal_settings_of_git_change_nothing(
    service: Path, trackbed: Run, tmp_path: Path, kind: str
) -> None:
    edit(service, "app/chassis/worker.py", "MINE  = 1   \n")
    edit(service, "README.md", "\nOurs   \n")
    expected = tmp_path / "expected"
    git(tmp_path, "clone", "-q", str(service), str(expected))
    assert trackbed("update", "--no-lock", cwd=expected).returncode == 0

    home = tmp_path / "personal"
    write(
        home,
        {
            "ignored": "app/\nREADME.md\ntests/\n*.toml\n",
            "attributes": "*.py diff=odd merge=union\n*.md binary\n",
            "hooks/pre-commit": HOOK,
            "templates/hooks/pre-commit": HOOK,
            "templates/info/exclude": "app/\n",
            "templates/info/attributes": "* -diff -text\n",
            ".config/git/ignore": "app/\ntests/\n",
            ".config/git/attributes": "* eol=crlf\n",
        },
    )
    for hook in ("hooks/pre-commit", "templates/hooks/pre-commit"):
        (home / hook).chmod(0o755)
    settings = {
        "core.excludesFile": f"{home}/ignored",
        "core.attributesFile": f"{home}/attributes",
        "core.hooksPath": f"{home}/hooks",
        "core.safecrlf": "true",
        "status.showUntrackedFiles": "no",
        "init.templateDir": f"{home}/templates",
        "init.defaultObjectFormat": "sha256",
        "diff.noprefix": "true",
        "diff.external": "false",
        "diff.odd.textconv": "false",
        "diff.context": "0",
        "merge.conflictStyle": "diff3",
        "apply.whitespace": "fix",
        "apply.ignoreWhitespace": "change",
        "commit.gpgSign": "true",
        "gpg.program": "false",
        "color.ui": "always",
        "protocol.file.allow": "user",
    }
    if kind == "settings":
        variables = {"GIT_CONFIG_GLOBAL": f"{home}/gitconfig", "HOME": str(home)}
        for name, value in settings.items():
            git(home, "config", "--file", "gitconfig", name, value)
    else:
        variables = {
            "GIT_CONFIG_COUNT": str(len(settings)),
            "GIT_TEMPLATE_DIR": f"{home}/templates",
        }
        variables |= {"GIT_EXTERNAL_DIFF": "false", "GIT_DIFF_OPTS": "-u0"}
        variables |= {"GIT_DEFAULT_HASH": "sha256", "GIT_DIR": "/nowhere"}
        for number, (name, value) in enumerate(settings.items()):
            variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}

    done = trackbed("update", "--no-lock", cwd=service, **variables)

    assert done.returncode == 0, done.stdout + done.stderr
    for directory in (service, expected):
        git(directory, "add", "--all")
    assert git(service, "write-tree") == git(expected, "write-tree")
    assert "MINE  = 1   \n" in (service / "app/chassis/worker.py").read_text()


def test_changes_that_are_not_committed_are_refused(service: Path, trackbed: Run) -> None:
    (service / "README.md").write_text("# Mine\n")
    refused(trackbed("update", cwd=service), "commit or stash your changes first: README.md")
    git(service, "checkout", "-q", "README.md")
    # the same, out of sight
    (service / "app/chassis/worker.py").write_text("WORKER = 7\n")
    git(service, "update-index", "--assume-unchanged", "app/chassis/worker.py")
    refused(trackbed("update", "--no-lock", cwd=service), "git does not compare app/chassis/worker")
    assert (service / "app/chassis/worker.py").read_text() == "WORKER = 7\n"
    assert recorded(service)["_commit"] == "0.1.0"


@pytest.mark.long
def test_a_file_that_git_does_not_follow_is_not_written_over(service: Path, trackbed: Run) -> None:
    write(service, {"notes.txt": "mine\n", "tests/chassis/test_more.py": "mine = 1\n"})

    refused(trackbed("update", "--no-lock", cwd=service), "in the way, and not in git: tests/chas")
    assert recorded(service)["_commit"] == "0.1.0"
    (service / "tests/chassis/test_more.py").rename(service / "mine.py")
    assert trackbed("update", "--no-lock", cwd=service).returncode == 0
    assert (service / "notes.txt").read_text() == "mine\n"


@pytest.mark.long
def test_a_deleted_directory_stays_deleted(service: Path, trackbed: Run) -> None:
    git(service, "rm", "-qr", "tests/chassis")
    commit(service, "No tests of theirs")

    done = trackbed("update", "--no-lock", cwd=service)

    assert done.returncode == 0, done.stdout + done.stderr
    assert not (service / "tests").exists()
    assert "left out     tests/chassis/test_more.py" in done.stdout


@pytest.mark.long
def test_a_deleted_file_of_the_templates_is_told(service: Path, trackbed: Run) -> None:
    git(service, "rm", "-q", "tests/chassis/databases.py")
    commit(service, "Without")

    done = trackbed("update", "--no-lock", cwd=service)

    assert "still gone   tests/chassis/databases.py: deleted here\n" in done.stdout


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        ("app/chassis/worker.py", "app/chassis/worker.py/own.py", "no directory may be where"),
        ("tests/chassis", "tests/chassis", "no file may be where the template has a directory"),
    ],
)
def test_a_file_and_a_directory_of_one_name_are_one_line(
    service: Path, trackbed: Run, path: str, new: str, said: str
) -> None:
    git(service, "rm", "-qr", path)
    write(service, {new: "OWN = 1\n"})
    commit(service, "Another kind")

    done = trackbed("update", "--no-lock", cwd=service)

    refused(done, said)
    assert done.stderr.endswith(f": {path}\n")
    assert git(service, "status", "--porcelain") == ""


@pytest.mark.long
def test_a_moved_directory_is_refused_and_a_moved_file_told(service: Path, trackbed: Run) -> None:
    git(service, "mv", "README.md", "ABOUT.md")
    commit(service, "Rename a file")
    done = trackbed("update", "--no-lock", "-d", "backup=none", cwd=service)
    assert "moved        README.md is now ABOUT.md" in done.stdout
    git(service, "reset", "-q", "--hard")
    git(service, "clean", "-fdq")

    git(service, "mv", "app", "billing")
    commit(service, "Rename the package")
    refused(trackbed("update", "--no-lock", cwd=service), "app/chassis/ has moved, app/chassis/")
    assert git(service, "status", "--porcelain") == ""


@pytest.mark.long
@pytest.mark.parametrize(
    "path", ["app/chassis/worker.py", "README.md", "app/chassis", ".copier-answers.yml"]
)
def test_nothing_is_written_through_a_link(
    service: Path, trackbed: Run, tmp_path: Path, path: str
) -> None:
    outside = tmp_path / "outside"
    shutil.move(service / path, outside)
    (service / path).symlink_to(outside)
    commit(service, "A link")
    before = [path.read_bytes() for path in sorted(tmp_path.glob("outside/**/*")) if path.is_file()]

    done = trackbed("update", "--no-lock", "-d", "backup=none", cwd=service)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    after = [path.read_bytes() for path in sorted(tmp_path.glob("outside/**/*")) if path.is_file()]
    assert before == after
    assert git(service, "status", "--porcelain") == ""


# Dependencies and the lock ---------------------------------------------------
def add(service: Path, *arguments: str) -> None:
    subprocess.run([tool("uv"), "add", "--frozen", "--quiet", *arguments], cwd=service, check=True)


@pytest.mark.long
def test_dependencies_of_ones_own_never_conflict(service: Path, trackbed: Run) -> None:
    """Wherever their names are in the alphabet: the lists of older releases are sorted by it."""
    own = ["aiosqlite>=0.20", "stripe>=15", "sqlmodel>=0.0.30", "uvicorn-extra>=1", "zstd>=1"]
    add(service, *own)
    add(service, "--dev", "freezegun>=1.5", "ipdb>=0.13")
    commit(service, "Dependencies")

    done = trackbed("update", "--no-lock", cwd=service)

    assert done.returncode == 0, done.stdout + done.stderr
    text = (service / "pyproject.toml").read_text()
    fresh = SECOND["template/pyproject.toml"]
    for line in fresh.splitlines():
        assert f"{line}\n" in text
    for name in (*own, "freezegun>=1.5", "ipdb>=0.13"):
        assert text.count(f'    "{name}",\n') == 1
    assert text.index("# your own") < text.index("stripe") < text.index("[dependency-groups]")


@pytest.mark.long
def test_a_dependency_that_the_template_has_as_well_is_a_conflict(
    service: Path, trackbed: Run
) -> None:
    add(service, "uvloop>=0.21", "stripe>=15")
    commit(service, "Theirs, before it was theirs")

    done = trackbed("update", "--no-lock", cwd=service)

    assert done.returncode == 1
    assert "conflict     pyproject.toml\n" in done.stdout


def locking(programs: Path, script: str) -> dict[str, str]:
    programs.mkdir()
    (programs / "uv").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "uv").chmod(0o755)
    return {"UV": str(programs / "uv")}


@pytest.mark.long
def test_the_lock_is_renewed(service: Path, trackbed: Run, tmp_path: Path) -> None:
    edit(service, "uv.lock", "old\n")
    variables = locking(tmp_path / "bin", 'test "$1" = lock && echo new > uv.lock')
    start = git(service, "rev-parse", "HEAD")

    done = trackbed("update", "--no-lock", cwd=service, **variables)
    assert (done.returncode, (service / "uv.lock").read_text()) == (0, "old\n")
    git(service, "reset", "-q", "--hard", start.strip())
    git(service, "clean", "-fdq")
    done = trackbed("update", cwd=service, **variables)
    assert (done.returncode, (service / "uv.lock").read_text()) == (0, "new\n")


@pytest.mark.long
def test_a_lock_that_cannot_be_renewed_is_told(
    service: Path, trackbed: Run, tmp_path: Path
) -> None:
    edit(service, "uv.lock", "old\n")
    variables = locking(tmp_path / "bin", "echo half > uv.lock; echo no network >&2; exit 1")

    done = trackbed("update", cwd=service, **variables)

    assert done.returncode == 1
    assert "uv.lock      uv lock failed: no network\n" in done.stdout
    assert (service / "uv.lock").read_text() == "old\n"
    assert recorded(service)["_commit"] == "0.2.0"


# Mistakes and interruptions ----------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "0.9.0"], "the template has no tag, branch or commit 0.9.0"),
        (["--to", "HEAD"], "HEAD is no release"),
        (["-d", "backup"], "-d backup: write it as NAME=VALUE"),
        (["-a", "../x.yml"], "../x.yml: the answers file is a name in"),
        (["-a", "none.yml"], "no none.yml"),
    ],
)
def test_a_mistake_is_one_line(
    service: Path, trackbed: Run, options: list[str], message: str
) -> None:
    refused(trackbed("update", *options, cwd=service), message)
    assert git(service, "status", "--porcelain") == ""


@pytest.mark.long
def test_a_downgrade_is_refused(service: Path, trackbed: Run) -> None:
    assert trackbed("update", "--no-lock", cwd=service).returncode == 0
    commit(service, "Update")

    refused(trackbed("update", "--to", "0.1.0", cwd=service), "downgrading")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_update_leaves_the_service_as_it_was(
    service: Path,
    environment: dict[str, str],
    fingerprint: Callable[[Path], dict[str, str]],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    edit(service, "uv.lock", "old\n")
    variables = locking(tmp_path / "bin", f"touch {tmp_path}/locking; exec sleep 60")
    before = fingerprint(service)
    process = subprocess.Popen(
        command("update"),
        cwd=service,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "locking").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)

    assert process.returncode == {signal.SIGINT: 130}.get(number, 128 + number)
    assert (out, err) == (b"", b"")
    assert fingerprint(service) == before
    assert list((tmp_path / "tmp").iterdir()) == []


def filtering(service: Path, script: str) -> None:
    """A filter of the person's own, which git runs for each file that it checks out."""
    write(service, {".gitattributes": "app/chassis/worker.py filter=slow\n"})
    commit(service, "A filter")
    for key, value in (("smudge", script), ("clean", "cat"), ("required", "true")):
        git(service, "config", f"filter.slow.{key}", value)


@pytest.mark.long
def test_a_file_that_cannot_be_written_undoes_the_others(
    service: Path, trackbed: Run, fingerprint: Callable[[Path], dict[str, str]]
) -> None:
    filtering(service, "exit 1")
    before = fingerprint(service)

    refused(trackbed("update", "--no-lock", cwd=service), "nothing is updated: ")

    assert fingerprint(service) == before


@pytest.mark.long
@pytest.mark.parametrize(
    ("send", "number", "code"),
    [(os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGTERM, 143)],
    ids=["to git too, as a terminal does", "to the command alone"],
)
def test_an_interruption_while_files_are_written_undoes_them(
    service: Path,
    environment: dict[str, str],
    fingerprint: Callable[[Path], dict[str, str]],
    tmp_path: Path,
    send: Callable[[int, int], None],
    number: signal.Signals,
    code: int,
) -> None:
    filtering(service, f"touch {tmp_path}/writing; sleep 3; cat")
    before = fingerprint(service)
    process = subprocess.Popen(
        command("update", "--no-lock"),
        cwd=service,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "writing").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    send(process.pid, number)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err) == (code, b"", b"")
    assert fingerprint(service) == before
    assert not (service / ".git" / "index.lock").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.long
def test_an_answer_that_is_refused_leaves_nothing(service: Path, trackbed: Run) -> None:
    """The template's own message, without the way in which it ended Copier."""
    done = trackbed("update", "--no-lock", "-d", "builder=heroku", cwd=service)
    refused(done, "builder: Must be dockerfile or railpack")
    assert git(service, "status", "--porcelain") == ""
