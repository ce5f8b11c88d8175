"""What ends the command, what only one service has, and how a stranger's text is shown."""

import re

USERINFO = re.compile(r"(?<=://)[^/?#\s'\"]*@")

UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Characters that move the cursor, break a line, or show a text other than it is."""

COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#\[|#vso\[)")
"""Beginnings of what a CI service takes for an order when it stands in a log."""


class FleetError(Exception):
    """What was asked for is mistaken: one line, and the command ends with exit code 2."""


class ServiceError(Exception):
    """A service that cannot be dealt with: one line, and the others go on."""

    def __init__(self, message: str) -> None:
        super().__init__(without_users(message))


def without_users(text: str) -> str:
    """Take the user and the password out of every address in a text."""
    return USERINFO.sub("", text)


def printable(text: str) -> str:
    """Escape what a terminal, a log or a reader would take for something else than text."""
    return COMMAND.sub(escape_last, UNSAFE.sub(escape_last, text))


def escape_last(found: re.Match[str]) -> str:
    return found[0][:-1] + escaped(found[0][-1])


def escaped(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def one_line(error: BaseException | str) -> str:
    """The last line that says something, of a message that may have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def unexpected(error: BaseException) -> ServiceError:
    """What a service made fail that nobody thought of."""
    return ServiceError(f"unexpected: {type(error).__name__}: {one_line(error)}")
