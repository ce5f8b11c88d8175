# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Errors of the server, sorted by what a service can do about them.

The codes are those of https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

import re
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import ExceptionContext, exc

from app.chassis.sessions import DatabaseBusyError, DatabaseUnavailableError, SessionEndedError

CONFLICTS: Final = frozenset({"40001", "40P01"})
"""Codes of a transaction that lost against another one, and can be run again."""

LOCK_NOT_AVAILABLE: Final = "55P03"

READ_ONLY: Final = "25006"

NOT_SUPPORTED: Final = "0A000"
"""Code for a feature that is missing, such as serializable transactions on a standby."""

UNAVAILABLE: Final = ("08", "25P03", "28", "3D000", "53", "57P", "58", "XX001", "XX002")
"""Beginnings of codes about the server, its storage or the way to it, not about the statement."""

MISFITS: Final = frozenset(
    {"22001", "22003", "22007", "22008", "22021", "22026", "22P02", "22P03", "22P05"}
)
"""Codes of a value that its column cannot keep."""

COLUMNS: Final = re.compile(r"\((.*?)\)=\(")
"""Columns in the detail of a unique violation, which a server writes in any language."""

ENDED: Final = {"the cursor is closed"}
"""Errors of the driver when a result is read after its end."""

Driver = psycopg.Error
"""Base of the driver's errors."""


class ConflictError(DatabaseBusyError):
    """Error of a transaction that lost against another one, and can be run again."""


def code(error: BaseException | None) -> str:
    """Return the server's code for an error of the driver, or nothing if it has none."""
    return (getattr(error, "sqlstate", None) or "") if isinstance(error, Driver) else ""


def is_lost(error: BaseException | None) -> bool:
    """Return whether the connection is gone, or could not be made."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    return code(error)[:2] in {"", "08"} or code(error).startswith("57P")


def explain(context: ExceptionContext, *, writes: bool) -> BaseException | None:
    """Return the error to raise in place of SQLAlchemy's, or None to keep that one."""
    original = context.original_exception
    if not isinstance(original, Driver):
        return None
    if str(original) in ENDED:
        return SessionEndedError()
    found = code(original)
    if found in CONFLICTS:
        return ConflictError()
    if found == LOCK_NOT_AVAILABLE:
        return DatabaseBusyError()
    if writes and (found == READ_ONLY or is_standby(context)):
        return DatabaseUnavailableError(None, None, original)
    if found.startswith(UNAVAILABLE) or is_lost(original):
        return DatabaseUnavailableError(None, None, original)
    return None


def is_standby(context: ExceptionContext) -> bool:
    """Return whether a transaction could not begin, because a standby allows none that write."""
    if code(context.original_exception) != NOT_SUPPORTED or context.connection is None:
        return False
    driver: Any = context.connection.connection.dbapi_connection
    return bool(driver.pgconn.transaction_status == TransactionStatus.IDLE)


def find_conflict(error: exc.IntegrityError) -> tuple[str, list[str]] | None:
    """Return what a request conflicts with, and the columns if the server names them.

    NOT NULL and CHECK depend on nothing that is stored, so the service should have refused a
    request that breaks them. That is the service's error, and the result is None.
    """
    original = error.orig
    if not isinstance(original, Driver):
        return None
    if code(original) in {"23503", "23001"}:  # Since 18 RESTRICT has a code of its own
        return "It refers to something that does not exist, or something refers to it", []
    if code(original) not in {"23505", "23P01"}:
        return None
    match = COLUMNS.search(original.diag.message_detail or "")
    names = [name.strip().strip('"') for name in match[1].split(",")] if match else []
    columns = names if all(re.fullmatch(r"\w+", name) for name in names) else []
    same = f"the same {', '.join(columns)}" if columns else "the same values"
    return f"There is one with {same} already", columns


def find_misfit(error: exc.StatementError) -> str | None:
    """Return why no column can keep a value, in words for the client, or None."""
    original = error.orig
    # The driver itself refuses the character NUL, without a code
    if isinstance(original, psycopg.DataError) and (code(original) or "22021") in MISFITS:
        return (
            "A value is too long or too large for the database, or has a character that it refuses"
        )
    return None
