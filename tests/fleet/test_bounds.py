"""Who may be asked, what a service's tests get, and what is left of them."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Run

from support import commit, git
from trackbed import git as isolated

ANSWERS = ".copier-answers.yml"


def row(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert "Traceback" not in done.stderr, done.stderr
    [found] = json.loads(done.stdout)["services"]
    return found


def stand_in(**addresses: Path) -> dict[str, str]:
    """Variables by which addresses of hosts that are not there lead to directories."""
    variables = {"GIT_CONFIG_COUNT": str(len(addresses))}
    for number, (host, directory) in enumerate(addresses.items()):
        variables[f"GIT_CONFIG_KEY_{number}"] = f"url.{directory}/.insteadOf"
        variables[f"GIT_CONFIG_VALUE_{number}"] = f"https://{host}.example/"
    return variables


def record(service: Path, address: str) -> None:
    lines = (service / ANSWERS).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("_src_path")]
    text = "\n".join([*kept, f"_src_path: {json.dumps(address)}"]) + "\n"
    (service / ANSWERS).write_text(text, encoding="utf-8")
    commit(service, "Address")


def other_template(small: Path, directory: Path, file: str, text: str) -> Path:
    """Another template, in whose next release one file is different."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    git(directory.parent, "clone", "--quiet", str(small), str(directory))
    (directory / file).parent.mkdir(parents=True, exist_ok=True)
    (directory / file).unlink(missing_ok=True)
    (directory / file).write_text(text, encoding="utf-8")
    commit(directory, "Another", tag="0.3.0")
    return directory


def test_an_address_that_looks_like_another_ones_changes_no_other_row(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    evil, good = make_service("evil"), make_service("good")
    record(evil, "https://evil.example/x@github.example/acme/tpl")
    record(good, "https://github.example/acme/tpl")
    worker = "template/app/chassis/worker.py"
    other_template(small, tmp_path / "e" / "x@github.example/acme/tpl", worker, "EVIL = 1\n")
    other_template(small, tmp_path / "g" / "acme" / "tpl", worker, "GOOD = 1\n")
    hosts = stand_in(evil=tmp_path / "e", github=tmp_path / "g")

    done = run_fleet("update", "--no-test", "--json", evil, good, **hosts)

    assert [item["outcome"] for item in json.loads(done.stdout)["services"]] == ["updated"] * 2
    assert git(evil, "show", "template-0.3.0:app/chassis/worker.py") == "EVIL = 1\n"
    assert git(good, "show", "template-0.3.0:app/chassis/worker.py") == "GOOD = 1\n"


def test_a_template_of_a_stranger_sees_no_other_file(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.yml"
    secret.write_text("hunter2:\n  type: nothing\n", encoding="utf-8")
    service = make_service("service")
    record(service, "https://other.example/tpl")
    template = other_template(small, tmp_path / "o" / "tpl", "extra", "x\n")
    (template / "copier.yml").unlink()
    (template / "copier.yml").symlink_to(secret)
    commit(template, "A link", tag="0.4.0")
    found = row(run_fleet("forecast", "--json", service, **stand_in(other=tmp_path / "o")))
    assert found["problem"] == "a symbolic link leads out of the repository: copier.yml"

    names = "_subdirectory: template\nx:\n  type: str\n  default: >-\n    {% if '"
    names += f"{tmp_path}/secret*' | fileglob %}}{{{{ hunter2 + 1 }}}}{{% endif %}}\n"
    (template / "copier.yml").unlink()
    (template / "copier.yml").write_text(names, encoding="utf-8")
    commit(template, "Names", tag="0.5.0")
    found = row(run_fleet("forecast", "--json", service, **stand_in(other=tmp_path / "o")))
    assert found["problem"] is None, found


@pytest.mark.long
def test_trust_is_for_the_owners_template_alone(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    service = make_service("service")
    record(service, "https://other.example/tpl")
    text = f"_subdirectory: template\n_tasks:\n  - touch {seen}\n"
    other_template(small, tmp_path / "o" / "tpl", "copier.yml", text)
    hosts = stand_in(other=tmp_path / "o")

    refused = run_fleet("forecast", "--trust", service, **hosts)
    assert (refused.returncode, refused.stderr) == (
        2,
        "trackbed: --trust is for the template of --template, and of no other\n",
    )
    run_fleet("forecast", "--trust", "--json", service, cwd=small, **hosts)
    drift = run_fleet("drift", "--trust", "--json", service, cwd=small, **hosts)
    assert drift.returncode in (0, 1)
    assert not seen.exists()


@pytest.mark.parametrize("secret", ["credential.helper", "core.askPass", "http.extraHeader"])
def test_a_strangers_host_is_told_no_secret(
    secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, seen = tmp_path / "helper", tmp_path / "seen"
    program.write_text(f"#!/bin/sh\ntouch {seen}\necho password=hunter2\necho username=x\n")
    program.chmod(0o755)
    values = {
        "credential.helper": f"!{program}",
        "core.askPass": str(program),
        "http.extraHeader": "Authorization: hunter2",
    }
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", secret)
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", values[secret])
    monkeypatch.setenv("GIT_CONFIG_KEY_1", "credential.https://mine.example.helper")
    monkeypatch.setenv("GIT_CONFIG_VALUE_1", f"!{program}")

    def ask(host: str, env: dict[str, str]) -> str:
        seen.unlink(missing_ok=True)
        if secret == "http.extraHeader":
            asked = ["git", "config", "--get-urlmatch", secret, f"https://{host}/x"]
        else:
            asked = ["git", "credential", "fill"]
        done = subprocess.run(
            asked,
            input=f"protocol=https\nhost={host}\n\n",
            env={**os.environ, **env},
            capture_output=True,
            encoding="utf-8",
        )
        return done.stdout

    assert "hunter2" in ask("evil.example", {})
    assert "hunter2" not in ask("evil.example", isolated.for_a_stranger())
    assert not seen.exists()
    if secret != "http.extraHeader":
        assert "hunter2" in ask("mine.example", isolated.for_a_stranger())


HOSTILE_TEST = """\
#!/bin/sh
env > {out}/env
pwd > {out}/pwd
cat >> .git/config <<END
[core]
	fsmonitor = {out}/canary
	hooksPath = {out}/hooks
[filter "x"]
	clean = {out}/canary
END
mkdir -p {out}/hooks
cp {out}/canary {out}/hooks/post-commit
echo '* filter=x' > .gitattributes
echo new > uv.lock
echo EVIL > app/main.py
own='-c core.fsmonitor=false -c core.hooksPath=/dev/null -c filter.x.clean=cat'
git $own commit --quiet -am evil
(setsid sh -c 'echo $$ > {out}/pid; exec sleep 600' > /dev/null 2>&1 &)
while ! [ -s {out}/pid ]; do sleep 0.1; done
"""


def test_tests_get_no_secret_and_leave_nothing(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "canary").write_text(f"#!/bin/sh\ntouch {out}/seen\n", encoding="utf-8")
    (out / "test").write_text(HOSTILE_TEST.format(out=out), encoding="utf-8")
    for name in ("canary", "test"):
        (out / name).chmod(0o755)
    service = make_service("service", {"uv.lock": "old\n"})

    names = ("GITHUB_TOKEN", "UV_INDEX_X_PASSWORD", "SSH_AUTH_SOCK", "PGPASSWORD", "X")
    secrets = dict.fromkeys(names, "hunter2")
    proxies = {"HTTPS_PROXY": "http://me:hunter2@proxy", "HTTP_PROXY": "http://proxy.example"}
    done = run_fleet(
        "update", "--test", f"{out}/test", "--json", service, cwd=small, **secrets, **proxies
    )

    found = row(done)
    assert found["outcome"] == "updated", found
    environment = (out / "env").read_text(encoding="utf-8")
    assert "hunter2" not in environment
    assert "PATH=" in environment
    assert "HTTP_PROXY=http://proxy.example" in environment
    assert not (out / "seen").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((out / "pid").read_text()), 0)
    assert not Path((out / "pwd").read_text().strip()).exists()
    assert git(service, "show", "template-0.2.0:uv.lock") == "new\n"
    assert "EVIL" not in git(service, "show", "template-0.2.0:app/main.py")
    assert ".gitattributes" not in git(service, "ls-tree", "--name-only", "template-0.2.0")


@pytest.mark.long
def test_a_lock_that_the_tests_replace_is_not_followed(
    make_service: Callable[..., Path], small: Path, run_fleet: Run, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n", encoding="utf-8")
    service = make_service("service", {"uv.lock": "old\n"})
    found = row(
        run_fleet("update", "--test", f"ln -sf {secret} uv.lock", "--json", service, cwd=small)
    )
    assert (found["outcome"], found["branch"]) == ("failed", None)
    assert found["problem"] == "uv.lock is a symbolic link: not followed"


def test_a_branch_of_that_name_with_something_else_is_refused(
    make_service: Callable[..., Path], small: Path, run_fleet: Run
) -> None:
    service = make_service("service")
    git(service, "branch", "template-0.2.0")
    found = row(run_fleet("update", "--no-test", "--json", service, cwd=small))
    assert (found["outcome"], found["problem"]) == (
        "refused",
        "it has a branch template-0.2.0 already, which is no update to 0.2.0",
    )
