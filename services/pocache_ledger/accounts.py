"""Double entry: operations that move money between accounts, and the hash-chained journal of them all.

Owns the accounts' names, the posting of an operation, and the audit of the journal. An operation has an id
derived from what it is about, so it happens once whatever message asks for it, and its lines sum to zero.
Refused: the same id with other lines, money that an account does not have, more money than a column can
hold.

Not covered: an intruder who writes the database can rewrite the whole journal; only the checkpoints that the
ledger published (``pocache_ledger.statements``) show that, up to the last of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from pocache.protocol.errors import ConflictError, FundsError, LedgerError, LimitError
from pocache.protocol.ids import Digest
from pocache.protocol.limits import MICRO_MAX
from pocache_ledger.books import STAKE_PREFIX, Account, Books, Entry
from pocache_ledger.tables import ACCOUNTS, OPERATIONS, POSTINGS, WORLD

TREASURY: Final = "treasury"
RESERVE: Final = "reserve"
"""What the levy on every job fills, and audits that nobody asked for are paid from (`fixed-fee-committee`)."""
UNBONDING_PREFIX: Final = "unbonding:"
POOL_PREFIX: Final = "pool:"
JOURNAL_START: Final = Digest(hashlib.sha256(b"pocache/journal/v1").digest())
"""What stands before the first entry."""

_OPERATION_DOMAIN: Final = b"pocache/operation/v1"
_ENTRY_DOMAIN: Final = b"pocache/journal-entry/v1"
_AMOUNT_BYTES: Final = 9
_IDS_KEPT: Final = 4_096
_ROWS_AT_ONCE: Final = 1_000


def stake_account(participant: str) -> str:
    """Return the account of a participant's free stake; its available money lies under its own id."""
    return STAKE_PREFIX + participant


def unbonding_account(participant: str) -> str:
    """Return the account of a participant's stake that was asked for and is not paid out yet."""
    return UNBONDING_PREFIX + participant


def pool_account(job_id: bytes) -> str:
    """Return the account of a job's pool."""
    return POOL_PREFIX + job_id.hex()


class Posting(NamedTuple):
    """One line: what an account gains, or loses when negative."""

    account: str
    amount_micro: int


class Operation(NamedTuple):
    """One effect on money: what kind, about what, because of which envelope, and its lines."""

    kind: str
    subject: bytes
    """What makes it this one and no other of its kind: a reference, a job with its attempt and stage."""
    cause: bytes
    postings: tuple[Posting, ...]

    @property
    def operation_id(self) -> Digest:
        """SHA-256 of kind and subject: there is one operation of each."""
        return compute_operation_id(self.kind, self.subject)


@lru_cache(maxsize=_IDS_KEPT)
def compute_operation_id(kind: str, subject: bytes) -> Digest:
    """Return SHA-256 of kind and subject."""
    return Digest(hashlib.sha256(_lp(_OPERATION_DOMAIN, kind.encode(), subject)).digest())


def post(books: Books, operation: Operation, *, now_ms: int) -> int:
    """Apply an operation, write it to the journal, and return its entry's number.

    An operation that was applied before with the same lines is a no-op. Raises ConflictError for other lines,
    FundsError when an account has too little, LimitError when the network's money outgrows a column.
    """
    lines = tuple([line for line in operation.postings if line.amount_micro])
    assert sum([line.amount_micro for line in lines]) == 0, "an operation's lines must sum to zero"
    operation_id = operation.operation_id
    known = books.numbers.get(operation_id)
    if known is not None:
        if tuple(Posting(line.account, line.amount_micro) for line in books.get_lines(known)) != lines:
            raise ConflictError(f"{operation.kind} was done before with other amounts (entry {known})")
        return known
    _move(books, lines)
    number, previous = _get_head(books)
    number += 1
    kind, subject, cause, _ = operation
    entry_hash = compute_entry_hash(previous, number, Operation(kind, subject, cause, lines), now_ms)
    books.add_entry(Entry(number, operation_id, kind, subject, cause, now_ms, entry_hash), lines)
    return number


def is_posted(books: Books, operation: Operation) -> bool:
    """Whether there was an operation of this kind and subject, whatever its lines."""
    return books.numbers.get(operation.operation_id) is not None


def get_balance(books: Books, account: str) -> int | None:
    """Return an account's balance, None when it never had money."""
    found = books.accounts.get(account)
    return None if found is None else found.balance_micro


def close(books: Books, account: str) -> None:
    """Close an account for ever; the database refuses while it holds anything, and any money after that."""
    books.accounts.put(account, Account(get_balance(books, account) or 0, is_closed=True))


@dataclass(frozen=True, slots=True)
class Totals:
    """The ledger added up; money is conserved when ``deposited_micro == held_micro``."""

    deposited_micro: int
    held_micro: int
    open_pools_micro: int
    closed_pools_micro: int
    open_pool_count: int
    treasury_micro: int
    reserve_micro: int
    journal_entries: int


def do_nothing() -> None:
    """Stand for a check, where nobody wants to stop what is read."""


def compute_totals(connection: sa.Connection, check: Callable[[], None] = do_nothing) -> Totals:
    """Return the sums over all accounts. Micro-units; summed here, where integers have no width.

    ``check`` is called for each account, and may raise to stop.
    """
    deposited = held = open_pools = closed_pools = treasury = reserve = open_count = 0
    with closing(_read_accounts(connection)) as accounts:
        for name, balance, is_closed in accounts:
            check()
            if name == WORLD:
                deposited = -balance
                continue
            held += balance
            if name == TREASURY:
                treasury = balance
            if name == RESERVE:
                reserve = balance
            if name.startswith(POOL_PREFIX):
                open_count += not is_closed
                open_pools += 0 if is_closed else balance
                closed_pools += balance if is_closed else 0
    return Totals(
        deposited_micro=deposited,
        held_micro=held,
        open_pools_micro=open_pools,
        closed_pools_micro=closed_pools,
        open_pool_count=open_count,
        treasury_micro=treasury,
        reserve_micro=reserve,
        journal_entries=get_entry_count(connection),
    )


class AccountSums(NamedTuple):
    """What the database says its accounts add up to, micro-units: quick, for watching; :func:`compute_totals` is exact."""

    deposited_micro: int
    held_micro: int
    open_pool_count: int


def sum_accounts(connection: sa.Connection) -> AccountSums:
    """Return the sums without reading the accounts one by one. Sums beyond 64 bits are the database's error."""
    is_world = ACCOUNTS.c.name == WORLD
    is_open_pool = sa.and_(ACCOUNTS.c.name.startswith(POOL_PREFIX), ACCOUNTS.c.is_closed.is_(False))
    row = connection.execute(
        sa.select(
            sa.func.coalesce(sa.func.sum(sa.case((is_world, -ACCOUNTS.c.balance_micro), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(sa.case((is_world, 0), else_=ACCOUNTS.c.balance_micro)), 0),
            sa.func.coalesce(sa.func.sum(sa.case((is_open_pool, 1), else_=0)), 0),
        )
    ).one()
    return AccountSums(*(int(value) for value in row))


def verify_journal(
    connection: sa.Connection,
    checkpoints: Mapping[int, bytes] | None = None,
    check: Callable[[], None] = do_nothing,
) -> int:
    """Read the whole journal and return its length; LedgerError names the first broken entry.

    ``checkpoints`` are heads by number of entries, as they were published. ``check`` is called for each entry and
    account, and may raise to stop. Memory is that of the accounts which hold money at one time, and of the checkpoints.

    1. Entries are numbered from 1 without a gap. 2. Each one's id is that of its kind and subject. 3. Its
    lines sum to zero. 4. Its hash covers the entry before it and all of its own fields. 5. Every account's
    balance is the sum of its lines, so an entry cut off the end shows too. 6. It goes through every checkpoint.
    """
    heads = dict(checkpoints or {})
    previous = JOURNAL_START
    balances: dict[str, int] = {}
    number = 0
    with closing(_read_entries(connection)) as entries:  # on PostgreSQL it holds a cursor of the server's
        for entry, lines in entries:
            check()
            number += 1
            if entry.number != number:
                raise LedgerError(f"journal entry {number} is missing")
            operation = Operation(entry.kind, entry.subject, entry.cause, lines)
            if entry.operation_id != operation.operation_id:
                raise LedgerError(f"journal entry {number} has the id of another operation")
            if sum(line.amount_micro for line in lines) != 0:
                raise LedgerError(f"journal entry {number} does not sum to zero")
            previous = compute_entry_hash(previous, number, operation, entry.at_ms)
            if entry.entry_hash != previous:
                raise LedgerError(f"journal entry {number} is broken: its hash is not that of its content")
            if heads.pop(number, previous) != previous:
                raise LedgerError(
                    f"journal entry {number} is not the one of the checkpoint: it, or one before, was rewritten"
                )
            add_lines(balances, lines)
    with closing(_read_accounts(connection)) as accounts:
        for name, balance, _ in accounts:
            check()
            expected = balances.pop(name, 0)
            if expected != balance:
                raise LedgerError(
                    f"account {name} has {balance}, its lines up to entry {number} make {expected}"
                )
    for name, expected in balances.items():
        raise LedgerError(f"account {name} is missing, its lines up to entry {number} make {expected}")
    if heads:
        raise LedgerError(f"the journal ends at entry {number}, a checkpoint was made at entry {min(heads)}")
    return number


def add_lines(balances: dict[str, int], lines: Iterable[Posting]) -> None:
    """Add an entry's lines to the balances of before it, and keep none that is zero.

    A settlement empties its job's pool, and there are as many pools as there ever were jobs.
    """
    for account, amount in lines:
        balance = balances.pop(account, 0) + amount
        if balance:
            balances[account] = balance


def get_entry_count(connection: sa.Connection) -> int:
    """Return how many entries the journal has."""
    return _get_head(Books(connection))[0]


def compute_entry_hash(previous: bytes, number: int, operation: Operation, at_ms: int) -> Digest:
    """Return what the journal is chained by.

    SHA256(lp(domain, previous) ‖ u64 number ‖ u64 time in ms ‖ lp(kind, subject, cause) ‖ u32 count ‖ lines),
    each line lp(account) ‖ i72 amount; all integers big-endian.
    """
    lines = [
        len(name := line.account.encode()).to_bytes(4, "big")
        + name
        + line.amount_micro.to_bytes(_AMOUNT_BYTES, "big", signed=True)
        for line in operation.postings
    ]
    head = _lp(_ENTRY_DOMAIN, previous) + number.to_bytes(8, "big") + at_ms.to_bytes(8, "big")
    body = _lp(operation.kind.encode(), operation.subject, operation.cause)
    count = len(lines).to_bytes(4, "big")
    return Digest(hashlib.sha256(b"".join((head, body, count, *lines))).digest())


def compute_subject(job_id: bytes, *parts: int | str) -> bytes:
    """Return what an operation on a job is about, as canonical bytes."""
    return _lp(job_id, *[str(part).encode() for part in parts])


def compute_participant_subject(participant: str, nonce: bytes) -> bytes:
    """Return what an operation is about that a participant asked for under a nonce of its own."""
    return _lp(participant.encode(), nonce)


def compute_bond_subject(participant: str, model_id: bytes, part: int) -> bytes:
    """Return what the taking of this number is about, of what a worker's ejection from a model costs."""
    return _lp(participant.encode(), model_id, str(part).encode())


def _move(books: Books, lines: Iterable[Posting]) -> None:
    """Change the balances; all of them are checked before the first is changed."""
    changes: dict[str, int] = {}
    for account, amount in lines:
        changes[account] = changes.get(account, 0) + amount
    accounts = books.accounts
    accounts.look_up(changes)
    after: list[tuple[str, Account]] = []
    for account, change in changes.items():
        known = accounts.get(account)
        balance = change if known is None else known.balance_micro + change
        if balance < 0 and account != WORLD:
            raise FundsError(_describe_shortage(account, known, -change))
        if not -MICRO_MAX <= balance <= MICRO_MAX:
            raise LimitError(f"account {account} would hold {balance}, more than {MICRO_MAX} micro-units")
        after.append((account, Account(balance, known is not None and known.is_closed)))
    for account, now in after:
        accounts.put(account, now)


def _describe_shortage(account: str, known: Account | None, needed: int) -> str:
    if known is None:
        return f"unknown account {account}: nothing was ever deposited"
    return f"account {account} has {known.balance_micro} micro-units, {needed} are needed"


def _get_head(books: Books) -> tuple[int, bytes]:
    last = books.get_last()
    return (0, JOURNAL_START) if last is None else (last.number, last.entry_hash)


def _read_accounts(connection: sa.Connection) -> Generator[Any, None, None]:
    """Yield every account by name, a few of them in memory at a time."""
    statement = sa.select(ACCOUNTS).order_by(ACCOUNTS.c.name).execution_options(yield_per=_ROWS_AT_ONCE)
    with connection.execute(statement) as rows:
        yield from rows


def _read_entries(connection: sa.Connection) -> Generator[tuple[Any, tuple[Posting, ...]], None, None]:
    """Yield every entry with its lines, in order, in one pass over both tables."""
    statement = (
        sa.select(OPERATIONS, POSTINGS.c.account, POSTINGS.c.amount_micro)
        .outerjoin_from(OPERATIONS, POSTINGS)
        .order_by(OPERATIONS.c.number, POSTINGS.c.line)
        .execution_options(yield_per=_ROWS_AT_ONCE)
    )
    with connection.execute(statement) as rows:
        for _, group in groupby(rows, key=lambda row: row.number):
            entry = list(group)
            yield (
                entry[0],
                tuple(Posting(row.account, row.amount_micro) for row in entry if row.account is not None),
            )


def _lp(*parts: bytes) -> bytes:
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])
