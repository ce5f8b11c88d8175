"""git without the settings of whoever runs the command: they change what an update does.

Ignored files, hooks, templates of repositories, line endings, forms of diffs and whitespace rules
are set for a person's own work. In an update they have lost edits without a word. What reaches and
opens other repositories is kept: addresses, credentials, certificates, ssh.
"""

import os
import re
import subprocess

KEPT = re.compile(r"(url|credential|http|protocol|safe|ssh|user)\..+|core\.(sshcommand|gitproxy)")
"""Settings that say how a repository is reached, and by whom a commit is made."""

KEPT_VARIABLES = re.compile(
    r"GIT_(SSH.*|ASKPASS|SSL_.*|HTTP_.*|PROXY_.*|EXEC_PATH|TRACE.*"
    r"|(AUTHOR|COMMITTER)_(NAME|EMAIL)|TERMINAL_PROMPT)"
)

ALWAYS = {
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,  # unset, it is a file in the home directory
}

PLACES = re.compile(
    r"GIT_(DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|NAMESPACE"
    r"|COMMON_DIR|PREFIX|CONFIG|QUARANTINE_PATH|(LITERAL|GLOB|NOGLOB|ICASE)_PATHSPECS"
    r"|EXTERNAL_DIFF|DIFF_OPTS)"
)
"""Variables of a caller, such as a hook, that would make git work somewhere else."""


def environment() -> dict[str, str]:
    """Return the variables for a person's own git in a repository of theirs."""
    return {
        **{name: value for name, value in os.environ.items() if not PLACES.fullmatch(name)},
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
    }


PERSONAL = environment()
"""Variables as they were when the command began."""


def shed() -> None:
    """Leave the personal settings, in this process and all that it starts."""
    kept = [*settings(), *ALWAYS.items()]
    for name in list(os.environ):
        if name.startswith("GIT_") and not KEPT_VARIABLES.fullmatch(name):
            del os.environ[name]
    os.environ |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": str(len(kept)),
    }
    for number, (key, value) in enumerate(kept):
        if key == "core.sshcommand":
            os.environ.setdefault("GIT_SSH_COMMAND", value)
        os.environ[f"GIT_CONFIG_KEY_{number}"] = key
        os.environ[f"GIT_CONFIG_VALUE_{number}"] = value


def settings() -> list[tuple[str, str]]:
    """Return the settings to keep, those of no repository."""
    try:
        done = subprocess.run(
            ["git", "config", "--list", "-z", "--includes"],
            cwd=os.path.abspath(os.sep),
            env={**PERSONAL, "GIT_CEILING_DIRECTORIES": os.path.abspath(os.sep)},
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    entries = [entry.partition("\n") for entry in done.stdout.split("\0") if entry]
    return [(key, value if equals else "true") for key, equals, value in entries if KEPT.match(key)]
