"""The ledger's tables as one transaction works on them: read for many messages at once, written together at its end.

Owns how accounts, jobs, holds and the journal are read and written. What a message changes lies in memory until
:meth:`Books.flush`, and is taken back to a mark when the message is refused; the database's own rules judge it when it is
written, and with it nothing of the transaction stands where they are broken. The ledger is the only writer of its
database, so what was read holds until the transaction ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from pocache.storage.mirror import Mirror
from pocache.storage.prepared import Prepared, PreparedIn
from pocache_ledger.tables import ACCOUNTS, HOLDS, JOBS, JOURNAL_CHECKPOINTS, OPERATIONS, POSTINGS

ESCROW: Final = "escrow"
GENERATOR_STAKE: Final = "generator_stake"
VERIFIER_STAKE: Final = "verifier_stake"
STAKES: Final = (GENERATOR_STAKE, VERIFIER_STAKE)
STAKE_PREFIX: Final = "stake:"

CHECKPOINT_ENTRIES: Final = 64
"""After every so many entries the journal's head is signed and published."""

Row = tuple[Any, ...]


class Account(NamedTuple):
    """Money under a name."""

    balance_micro: int
    is_closed: bool = False


class Job(NamedTuple):
    """A row of ``jobs``, its columns in their order."""

    job_id: bytes
    user: str
    model_id: bytes
    prompt_count: int
    generation_max_micro: int
    verification_max_micro: int
    phase: str
    attempt: int = 0
    generator: str | None = None
    leaf_count: int | None = None
    generation_micro: int | None = None
    verification_micro: int | None = None
    settled_as: str | None = None


class Hold(NamedTuple):
    """Somebody's money in a job's pool."""

    purpose: str
    attempt: int
    stage: int
    party: str
    amount_micro: int
    is_held: bool = True

    @property
    def home(self) -> str:
        """The account that it came from and returns to."""
        return STAKE_PREFIX + self.party if self.purpose in STAKES else self.party

    @property
    def key(self) -> tuple[str, int, int]:
        """What there is one of in a job: purpose, attempt and stage."""
        return self[:3]


class Entry(NamedTuple):
    """A row of ``operations``, its columns in their order."""

    number: int
    operation_id: bytes
    kind: str
    subject: bytes
    cause: bytes
    at_ms: int
    entry_hash: bytes


class Line(NamedTuple):
    """A row of ``postings``, its columns in their order."""

    number: int
    line: int
    account: str
    amount_micro: int


Mark = tuple[int, int, int, int, int, int, Entry | None]

_JOB_NAMES: Final = Job._fields
_HOLD_NAMES: Final = tuple(column.name for column in HOLDS.columns)
assert tuple(column.name for column in JOBS.columns) == _JOB_NAMES
assert ("job_id", *Hold._fields) == _HOLD_NAMES
assert tuple(column.name for column in OPERATIONS.columns) == Entry._fields
assert tuple(column.name for column in POSTINGS.columns) == Line._fields


def _insert(table: sa.Table) -> Prepared:
    names = [column.name for column in table.columns]
    return Prepared(sa.insert(table).values({name: sa.bindparam(name) for name in names}), *names)


def _update(table: sa.Table, *names: str) -> Prepared:
    """Return an UPDATE by primary key: first the values of ``names``, then those of the key."""
    key = [column.name for column in table.primary_key.columns]
    condition = [table.c[name] == sa.bindparam(f"of_{name}") for name in key]
    statement = sa.update(table).where(*condition).values({name: sa.bindparam(name) for name in names})
    return Prepared(statement, *names, *(f"of_{name}" for name in key))


_GET_ACCOUNTS: Final = PreparedIn(
    lambda keys: sa.select(ACCOUNTS.c.name, ACCOUNTS.c.balance_micro, ACCOUNTS.c.is_closed).where(
        ACCOUNTS.c.name.in_(keys)
    )
)
_GET_JOBS: Final = PreparedIn(lambda keys: sa.select(JOBS).where(JOBS.c.job_id.in_(keys)))
_GET_HOLDS: Final = PreparedIn(lambda keys: sa.select(HOLDS).where(HOLDS.c.job_id.in_(keys)))
_GET_NUMBERS: Final = PreparedIn(
    lambda keys: sa.select(OPERATIONS.c.operation_id, OPERATIONS.c.number).where(
        OPERATIONS.c.operation_id.in_(keys)
    )
)
_GET_LOCKED: Final = PreparedIn(
    lambda keys: (
        sa.select(HOLDS.c.party, HOLDS.c.purpose, sa.func.sum(HOLDS.c.amount_micro))
        .where(HOLDS.c.party.in_(keys), HOLDS.c.is_held)
        .group_by(HOLDS.c.party, HOLDS.c.purpose)
    )
)
_GET_LAST: Final = Prepared(sa.select(OPERATIONS).order_by(OPERATIONS.c.number.desc()).limit(1))
_GET_LINES: Final = Prepared(
    sa.select(POSTINGS).where(POSTINGS.c.number == sa.bindparam("of_number")).order_by(POSTINGS.c.line),
    "of_number",
)
_ADD_ACCOUNT: Final = _insert(ACCOUNTS)
_SET_ACCOUNT: Final = _update(ACCOUNTS, "balance_micro", "is_closed")
_ADD_JOB: Final = _insert(JOBS)
_SET_JOB: Final = _update(
    JOBS,
    "phase",
    "attempt",
    "generator",
    "leaf_count",
    "generation_micro",
    "verification_micro",
    "settled_as",
)
_JOB_CHANGING: Final = _JOB_NAMES.index("phase")
_ADD_HOLD: Final = _insert(HOLDS)
_SET_HOLD: Final = _update(HOLDS, "amount_micro", "is_held")
_ADD_ENTRY: Final = _insert(OPERATIONS)
_ADD_LINE: Final = _insert(POSTINGS)
_ADD_CHECKPOINT: Final = Prepared(
    sa.insert(JOURNAL_CHECKPOINTS).values(entries=sa.bindparam("entries"), head=sa.bindparam("head")),
    "entries",
    "head",
)


class Books:
    """Accounts by name, jobs and their holds by id, and the journal, within one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.accounts: Mirror[str, Account] = Mirror(self._load_accounts)
        self.jobs: Mirror[bytes, Job] = Mirror(self._load_jobs)
        self.holds: Mirror[bytes, tuple[Hold, ...]] = Mirror(self._load_holds)
        """All of a job's, in no order; None where there never was one."""
        self.numbers: Mirror[bytes, int] = Mirror(self._load_numbers)
        """Journal entries by operation id."""
        self._last: Entry | None = None
        self._entries: list[Entry] = []
        self._lines: list[Line] = []
        self._locked: dict[str, dict[str, int]] = {}
        self._asked: dict[str, None] = {}

    def get_last(self) -> Entry | None:
        """Return the journal's last entry."""
        if self._last is None:
            found = _GET_LAST.rows(self.connection)
            self._last = Entry(*found[0]) if found else None
        return self._last

    def add_entry(self, entry: Entry, lines: Iterable[tuple[str, int]]) -> None:
        """Append to the journal: an entry, and its lines as account and amount."""
        number = entry.number
        self._last = entry
        self._entries.append(entry)
        self._lines += [Line(number, index, *line) for index, line in enumerate(lines)]
        self.numbers.put(entry.operation_id, number)

    def get_lines(self, number: int) -> list[Line]:
        """Return the lines of an entry."""
        if self._entries and number >= self._entries[0].number:
            return [line for line in self._lines if line.number == number]
        return [Line(*row) for row in _GET_LINES.rows(self.connection, number)]

    def ask_locked(self, participants: Iterable[str]) -> None:
        """Say whose locked money will be asked for after the next flush: they are read together then."""
        self._asked.update(dict.fromkeys(participants))

    def get_locked(self, participant: str) -> dict[str, int]:
        """Return what of a participant's money is held over all jobs, by purpose; as of the last flush."""
        if participant not in self._locked:
            wanted = [*dict.fromkeys((participant, *self._asked))]
            self._asked.clear()
            self._locked.update({name: {} for name in wanted})
            for party, purpose, amount in _GET_LOCKED.rows(self.connection, wanted):
                self._locked[party][purpose] = int(amount)
        return self._locked[participant]

    def mark(self) -> Mark:
        """Return how much was changed so far, for :meth:`rewind`."""
        return (
            self.accounts.mark(),
            self.jobs.mark(),
            self.holds.mark(),
            self.numbers.mark(),
            len(self._entries),
            len(self._lines),
            self._last,
        )

    def rewind(self, mark: Mark) -> None:
        """Take back what was changed since ``mark``."""
        self.accounts.rewind(mark[0])
        self.jobs.rewind(mark[1])
        self.holds.rewind(mark[2])
        self.numbers.rewind(mark[3])
        del self._entries[mark[4] :], self._lines[mark[5] :]
        self._last = mark[6]

    def flush(self) -> None:
        """Write what was changed; what was read is kept. IntegrityError where the database's own rules are broken."""
        connection = self.connection
        accounts, jobs = self.accounts.take_changes(), self.jobs.take_changes()
        _ADD_ACCOUNT.run_rows(
            connection, [(name, *now) for name, old, now in accounts if old is None and now]
        )
        _SET_ACCOUNT.run_rows(connection, [(*now, name) for name, old, now in accounts if old and now])
        _ADD_ENTRY.run_rows(connection, self._entries)
        _ADD_LINE.run_rows(connection, self._lines)
        _ADD_CHECKPOINT.run_rows(
            connection,
            [(one.number, one.entry_hash) for one in self._entries if one.number % CHECKPOINT_ENTRIES == 0],
        )
        _ADD_JOB.run_rows(connection, [now for _, old, now in jobs if old is None and now])
        _SET_JOB.run_rows(
            connection, [(*now[_JOB_CHANGING:], job_id) for job_id, old, now in jobs if old and now]
        )
        self._flush_holds()
        self.numbers.take_changes()
        self._entries.clear()
        self._lines.clear()
        self._locked.clear()

    def forget(self) -> None:
        """Know nothing any more: the database went back to where it was."""
        self.accounts.forget()
        self.jobs.forget()
        self.holds.forget()
        self.numbers.forget()
        self._last = None
        self._entries.clear()
        self._lines.clear()
        self._locked.clear()

    def _flush_holds(self) -> None:
        added: list[Row] = []
        changed: list[Row] = []
        for job_id, before, after in self.holds.take_changes():
            known = {hold.key: hold for hold in before or ()}
            for hold in after or ():
                old = known.get(hold.key)
                if old is None:
                    added.append((job_id, *hold))
                elif old != hold:
                    changed.append((hold.amount_micro, hold.is_held, job_id, *hold.key))
        _ADD_HOLD.run_rows(self.connection, added)
        _SET_HOLD.run_rows(self.connection, changed)

    def _load_accounts(self, names: Sequence[str]) -> list[tuple[str, Account]]:
        rows = _GET_ACCOUNTS.rows(self.connection, names)
        return [(name, Account(balance, bool(is_closed))) for name, balance, is_closed in rows]

    def _load_jobs(self, ids: Sequence[bytes]) -> list[tuple[bytes, Job]]:
        return [(row[0], Job(*row)) for row in _GET_JOBS.rows(self.connection, ids)]

    def _load_holds(self, ids: Sequence[bytes]) -> Iterable[tuple[bytes, tuple[Hold, ...]]]:
        found: dict[bytes, tuple[Hold, ...]] = {}
        for job_id, purpose, attempt, stage, party, amount, is_held in _GET_HOLDS.rows(self.connection, ids):
            hold = Hold(purpose, attempt, stage, party, amount, bool(is_held))
            found[job_id] = (*found.get(job_id, ()), hold)
        return found.items()

    def _load_numbers(self, ids: Sequence[bytes]) -> list[Row]:
        return _GET_NUMBERS.rows(self.connection, ids)
