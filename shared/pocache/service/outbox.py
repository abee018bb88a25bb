"""The outbox as its process uses it: rows in the database, and the same rows at hand in memory.

What a transaction says is written with its effects, and handed to the publisher when that transaction is durable, so
that nothing is read back. A row is deleted by the first transaction after the bus has stored its message: until then, and
across a crash, it waits. Memory holds no more than ``QUEUE_MAX`` messages; what is beyond is read again, in order.

State thread: :meth:`begin`, :meth:`catch_up`, and what units ask. Event loop: :meth:`take` and :meth:`confirm`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import sqlalchemy as sa

from pocache.storage.prepared import Prepared
from pocache.storage.store import OUTBOX, Store, get_meta, set_meta

QUEUE_MAX: Final = 4_096
"""Messages that wait in memory; the rest waits in the database alone."""
_LIFE_BITS: Final = 40
"""Each life of a process numbers its rows anew, beyond all numbers of the lives before it."""
LIFE: Final = "outbox_life"
"""How often the state was opened, in its meta table."""

_COLUMNS: Final = ("number", "subject", "data", "message_id")
_PUT: Final = Prepared(
    sa.insert(OUTBOX).values({OUTBOX.c[name]: sa.bindparam(name) for name in _COLUMNS}), *_COLUMNS
)
_DELETE: Final = Prepared(
    sa.delete(OUTBOX).where(
        OUTBOX.c.number >= sa.bindparam("first"), OUTBOX.c.number <= sa.bindparam("last")
    ),
    *("first", "last"),
)
_READ: Final = Prepared(
    sa.select(*(OUTBOX.c[name] for name in _COLUMNS))
    .where(OUTBOX.c.number > sa.bindparam("after"))
    .order_by(OUTBOX.c.number)
    .limit(sa.bindparam("count", type_=sa.Integer))
)


class OutboxRow(NamedTuple):
    """A message that was decided: it is published until the bus says that it is stored."""

    number: int
    subject: str
    data: bytes
    message_id: str


@dataclass(slots=True)
class OutboxTransaction:
    """One transaction on the state, and the rows that it adds."""

    connection: sa.Connection
    rows: list[OutboxRow] = field(default_factory=list)

    def put(self, rows: Sequence[OutboxRow]) -> None:
        """Write rows that are to be published once this transaction is durable."""
        _PUT.run_rows(self.connection, rows)
        self.rows.extend(rows)


class Outbox:
    """What one process has decided to say and the bus has not stored yet."""

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.begin() as connection:
            life = int(get_meta(connection, LIFE) or "0") + 1
            set_meta(connection, LIFE, str(life))
            self._waiting = set(connection.execute(sa.select(OUTBOX.c.number)).scalars())
        self._numbers = itertools.count((life << _LIFE_BITS) + 1)
        self._queue: deque[OutboxRow] = deque()
        self._confirmed: list[int] = []
        self._read_to = 0
        self.is_behind = bool(self._waiting)
        """Whether rows wait in the database that are not at hand: :meth:`catch_up` brings them."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, number: int) -> bool:
        """Whether the row of this number waits to be stored by the bus."""
        return number in self._waiting

    @property
    def has_confirmed(self) -> bool:
        """Whether rows lie in the database that the bus has stored."""
        return bool(self._confirmed)

    def allocate(self) -> int:
        """Return a number that no row of this database ever had, beyond all those before it."""
        return next(self._numbers)

    @contextmanager
    def begin(self) -> Iterator[OutboxTransaction]:
        """One durable transaction, which also forgets what the bus has stored; what it puts is at hand after it."""
        confirmed_count = len(self._confirmed)
        with self._store.begin() as connection:
            transaction = OutboxTransaction(connection)
            if confirmed_count:
                _DELETE.run_rows(connection, list(_join(self._confirmed[:confirmed_count])))
            yield transaction
        del self._confirmed[:confirmed_count]
        self._add(transaction.rows)

    def take(self, count_max: int) -> list[OutboxRow]:
        """Return the next rows to publish, in order, and hand them out no more."""
        return [self._queue.popleft() for _ in range(min(count_max, len(self._queue)))]

    def confirm(self, numbers: Iterable[int]) -> None:
        """Note that the bus has stored the messages of these rows."""
        stored = list(numbers)
        self._waiting.difference_update(stored)
        self._confirmed.extend(stored)

    def catch_up(self, from_number: int | None = None) -> None:
        """Read what waits in the database and is not at hand, from ``from_number`` on where it is to be tried again."""
        if from_number is not None:
            self._queue.clear()
            self._read_to = from_number - 1
        with self._store.begin() as connection:
            rows = _READ.all(connection, after=self._read_to, count=QUEUE_MAX)
        self._queue.extend(OutboxRow(*row) for row in rows if row.number in self._waiting)
        if rows:
            self._read_to = rows[-1].number
        self.is_behind = len(rows) == QUEUE_MAX

    def _add(self, rows: Sequence[OutboxRow]) -> None:
        if not rows:
            return
        self._waiting.update(row.number for row in rows)
        if self.is_behind or len(self._queue) + len(rows) > QUEUE_MAX:
            self.is_behind = True
        else:
            self._queue.extend(rows)
            self._read_to = rows[-1].number


def _join(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of consecutive numbers."""
    ordered = sorted(numbers)
    first = last = ordered[0]
    for number in ordered[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last
