"""The private parts of Copier that the command and the tests use, all of them.

Copier promises nothing of these names, so look here first after a new version of it.
"""

from copier import _template as template
from copier._main import Worker
from copier._template import filter_config, load_template_config
from copier._user_data import Question

__all__ = [
    "PREFIX",
    "Question",
    "Worker",
    "filter_config",
    "load_template_config",
    "template",
]

PREFIX = "copier._main.trackbed"
"""Name of a directory that Copier's own renders for an update would have.

In them copier.yml and hooks/validators.jinja take the recorded answers for granted.
"""
