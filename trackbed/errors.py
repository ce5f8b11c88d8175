"""What ends the command, and what only one service has."""


class FleetError(Exception):
    """What was asked for is mistaken: one line, and the command ends with exit code 2."""


class ServiceError(Exception):
    """A service that cannot be dealt with: one line, and the others go on."""


def one_line(error: BaseException | str) -> str:
    """The last line that says something, of a message that may have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
