"""Errors of the command and of one service, and the escaping of a stranger's text."""

import re

USERINFO = re.compile(r"(?<=://)[^/?#\s'\"]*@")

UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Characters that move the cursor, break a line, or change how a text looks."""

COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#\[|#vso\[)")
"""Beginnings of a line or text that a CI service takes for a command in a log."""


class FleetError(Exception):
    """Error in what was asked for. It prints one line and ends the command with exit code 2."""


class ServiceError(Exception):
    """Error of one service, told in one line. The other services go on."""

    def __init__(self, message: str) -> None:
        super().__init__(without_users(message))


def without_users(text: str) -> str:
    """Take the user and the password out of every address in a text."""
    return USERINFO.sub("", text)


def printable(text: str) -> str:
    """Escape the parts that a terminal, a log or a reader would not take for text."""
    return COMMAND.sub(escape_last, UNSAFE.sub(escape_last, text))


def escape_last(found: re.Match[str]) -> str:
    return found[0][:-1] + escaped(found[0][-1])


def escaped(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def one_line(error: BaseException | str) -> str:
    """Return the last line of a message that is not empty, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def unexpected(error: BaseException) -> ServiceError:
    """Return an unexpected error as an error of the service that caused it."""
    return ServiceError(f"unexpected: {type(error).__name__}: {one_line(error)}")
