# Belongs to the template: extend it in app/main.py, app/settings.py or app/api/, not here.
"""Ids up to which nothing is missing, though several writers commit in any order.

An INSERT locks its table before it takes an id, and has that lock until its transaction ends. So
when an id is visible, each transaction that has taken a smaller one and has not ended still has
that lock a moment later. Once all of these have ended, no row up to that id is still to come.
"""

import threading
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import InstrumentedAttribute, Session

QUESTION: Final = """
    SELECT (SELECT max({column}) FROM {table}), ARRAY(
        SELECT virtualtransaction FROM pg_locks
        WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
        AND relation = CAST(:relation AS regclass)
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
"""
"""Query for the newest id, and for the transactions that insert into its table or change it.

The id is that of the statement's start. The locks are read later, while it runs.
"""


@dataclass
class Progress:
    """Progress in one table."""

    settled: int = 0
    candidate: int = 0
    writers: Set[str] = frozenset()
    """Transactions that have to end until nothing is missing up to the candidate."""
    turn: int = 0
    """Number of the candidate, about which only a later answer says anything."""

    def advance(self, newest: int, writers: Set[str], turn: int) -> int:
        """Return the id up to which nothing is missing.

        Args:
            newest: The newest id that is committed.
            writers: Transactions that had the table's lock after that.
            turn: The candidate's number when the database was asked.
        """
        if not writers:
            self.settled = newest
        elif turn == self.turn and not self.writers & writers:
            self.settled = max(self.settled, self.candidate)
        if writers and self.candidate <= self.settled:
            self.candidate, self.writers, self.turn = newest, writers, self.turn + 1
        # Somebody may have removed the newest rows, or all
        return min(self.settled, newest)


class Settled:
    """Progress in every table that a stream has asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[tuple[str, str], Progress] = {}

    def ask(self, session: Session, column: InstrumentedAttribute[int]) -> int:
        """Return the newest id up to which a session that opens from now on sees every row."""
        mapped: Any = column.expression
        quote = session.get_bind().dialect.identifier_preparer
        table, name = quote.format_table(mapped.table), quote.format_column(mapped)
        with self._lock:
            progress = self._tables.setdefault((table, name), Progress())
            turn = progress.turn
        question = text(QUESTION.format(table=table, column=name))
        newest, writers = session.execute(question, {"relation": table}).one()
        with self._lock:
            return progress.advance(newest or 0, frozenset(writers), turn)
