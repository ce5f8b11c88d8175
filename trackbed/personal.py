"""git without the settings of whoever runs the command: they change what an update does.

Ignored files, hooks, templates of repositories, line endings, forms of diffs and whitespace rules
are set for a person's own work. In an update they have lost edits without a word. What reaches and
opens other repositories is kept: addresses, credentials, certificates, ssh.
"""

import os
import re

PLACES = re.compile(
    r"GIT_(DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|NAMESPACE"
    r"|COMMON_DIR|PREFIX|CONFIG|QUARANTINE_PATH|(LITERAL|GLOB|NOGLOB|ICASE)_PATHSPECS"
    r"|EXTERNAL_DIFF|DIFF_OPTS|TEMPLATE_DIR)"
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
