"""Double entry: what an operation may do, and that the journal shows every change made behind its back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from pocache.protocol.errors import ConflictError, FundsError, LedgerError, LimitError
from pocache.protocol.limits import MICRO_MAX
from pocache.storage.store import Store
from pocache_ledger.accounts import (
    Operation,
    Posting,
    add_lines,
    close,
    compute_entry_hash,
    compute_totals,
    get_balance,
    post,
    verify_journal,
)
from pocache_ledger.books import Books
from pocache_ledger.tables import ACCOUNTS, METADATA, OPERATIONS, POSTINGS, WORLD


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    """A ledger's empty database, in one transaction."""
    store = Store("sqlite://", METADATA)
    with store.begin() as opened:
        yield opened
    store.close()


@pytest.fixture
def books(connection: sa.Connection) -> Books:
    """Its books."""
    return Books(connection)


def move(source: str, target: str, amount_micro: int, subject: str) -> Operation:
    """Return a transfer."""
    postings = (Posting(source, -amount_micro), Posting(target, amount_micro))
    return Operation("transfer", subject.encode(), b"\x07" * 32, postings)


def fill(books: Books) -> None:
    """Post three operations."""
    post(books, move(WORLD, "alice", 100, "one"), now_ms=1)
    post(books, move("alice", "bob", 30, "two"), now_ms=2)
    post(books, move("bob", "alice", 10, "three"), now_ms=3)
    books.flush()


def test_balances_follow_the_lines(connection: sa.Connection, books: Books) -> None:
    """Three transfers, and nothing is lost."""
    fill(books)
    assert (get_balance(books, "alice"), get_balance(books, "bob")) == (80, 20)
    totals = compute_totals(connection)
    assert (totals.deposited_micro, totals.held_micro, totals.journal_entries) == (100, 100, 3)
    assert verify_journal(connection) == 3


def test_the_same_operation_again_changes_nothing(connection: sa.Connection, books: Books) -> None:
    """One id, one effect; the first entry is named."""
    fill(books)
    assert post(books, move("alice", "bob", 30, "two"), now_ms=9) == 2
    assert get_balance(books, "bob") == 20
    assert verify_journal(connection) == 3


def test_the_same_id_with_other_lines_is_a_conflict(books: Books) -> None:
    """Another amount, or another account."""
    fill(books)
    for other in (move("alice", "bob", 31, "two"), move("alice", "carol", 30, "two")):
        with pytest.raises(ConflictError):
            post(books, other, now_ms=9)
    assert get_balance(books, "bob") == 20


def test_lines_that_do_not_sum_to_zero_are_our_own_bug(books: Books) -> None:
    """Money cannot be made."""
    with pytest.raises(AssertionError):
        post(books, Operation("gift", b"", b"", (Posting("alice", 1),)), now_ms=1)


@pytest.mark.parametrize("is_credit_first", [True, False])
def test_too_little_money_moves_nothing(
    connection: sa.Connection, books: Books, is_credit_first: bool
) -> None:
    """The refusal comes before the first balance changes, in whatever order the lines are."""
    fill(books)
    lines = (Posting("carol", 81), Posting("alice", -81))
    operation = Operation("transfer", b"four", b"", lines if is_credit_first else lines[::-1])
    with pytest.raises(FundsError, match="alice has 80"):
        post(books, operation, now_ms=4)
    assert get_balance(books, "carol") is None
    assert verify_journal(connection) == 3


def test_an_unknown_account_is_called_so(books: Books) -> None:
    """Nothing was ever deposited."""
    with pytest.raises(FundsError, match="unknown account nobody"):
        post(books, move("nobody", "alice", 1, "one"), now_ms=1)


def test_no_account_outgrows_its_column(connection: sa.Connection, books: Books) -> None:
    """The network's money is bounded by what one account can hold."""
    post(books, move(WORLD, "alice", MICRO_MAX, "one"), now_ms=1)
    with pytest.raises(LimitError):
        post(books, move(WORLD, "bob", 1, "two"), now_ms=2)
    books.flush()
    assert verify_journal(connection) == 1


def test_the_database_itself_refuses_a_negative_balance(connection: sa.Connection, books: Books) -> None:
    """The constraint holds without our code, and lets the outside world be negative."""
    fill(books)
    with pytest.raises(sa.exc.IntegrityError, match="never_negative"):
        connection.execute(sa.update(ACCOUNTS).where(ACCOUNTS.c.name == "bob").values(balance_micro=-1))


def test_a_closed_account_is_empty_and_stays_so(books: Books) -> None:
    """It closes at zero only, and takes nothing afterwards."""
    fill(books)
    close(books, "bob")
    with pytest.raises(sa.exc.IntegrityError, match="closed_empty"):
        books.flush()
    books.forget()
    post(books, move("bob", "alice", 20, "four"), now_ms=4)
    close(books, "bob")
    books.flush()
    post(books, move("alice", "bob", 1, "five"), now_ms=5)
    with pytest.raises(sa.exc.IntegrityError, match="closed_empty"):
        books.flush()


def test_an_operation_id_exists_once(connection: sa.Connection, books: Books) -> None:
    """The database refuses a second entry of an operation."""
    fill(books)
    first = connection.execute(sa.select(OPERATIONS).where(OPERATIONS.c.number == 1)).one()
    with pytest.raises(sa.exc.IntegrityError, match="operation_id"):
        connection.execute(sa.insert(OPERATIONS).values(**{**first._asdict(), "number": 4}))


def _set(column: sa.Column[object], value: object) -> Callable[[sa.Connection], None]:
    table = column.table
    assert isinstance(table, sa.Table)

    def tamper(connection: sa.Connection) -> None:
        connection.execute(sa.update(table).where(table.c.number == 2).values({column.name: value}))

    return tamper


def _redirect(connection: sa.Connection) -> None:
    """Give entry 2's money to carol, balances adjusted as a careful thief would."""
    connection.execute(sa.insert(ACCOUNTS).values(name="carol", balance_micro=30))
    connection.execute(sa.update(ACCOUNTS).where(ACCOUNTS.c.name == "bob").values(balance_micro=0))
    target = (POSTINGS.c.number == 2, POSTINGS.c.account == "bob")
    connection.execute(sa.update(POSTINGS).where(*target).values(account="carol"))


def _enlarge(connection: sa.Connection) -> None:
    """Make entry 2 larger on both sides."""
    connection.execute(
        sa.update(POSTINGS).where(POSTINGS.c.number == 2).values(amount_micro=POSTINGS.c.amount_micro * 2)
    )


def _unbalance(connection: sa.Connection) -> None:
    target = (POSTINGS.c.number == 2, POSTINGS.c.account == "bob")
    connection.execute(sa.update(POSTINGS).where(*target).values(amount_micro=31))


def _remove(connection: sa.Connection) -> None:
    connection.execute(sa.delete(POSTINGS).where(POSTINGS.c.number == 2))
    connection.execute(sa.delete(OPERATIONS).where(OPERATIONS.c.number == 2))


def _rehash(connection: sa.Connection) -> None:
    """Give entry 2 the hash of entry 1."""
    first = sa.select(OPERATIONS.c.entry_hash).where(OPERATIONS.c.number == 1).scalar_subquery()
    connection.execute(sa.update(OPERATIONS).where(OPERATIONS.c.number == 2).values(entry_hash=first))


@pytest.mark.parametrize(
    "tamper",
    [
        _set(OPERATIONS.c.kind, "gift"),
        _set(OPERATIONS.c.subject, b"other"),
        _set(OPERATIONS.c.cause, b"\x08" * 32),
        _set(OPERATIONS.c.at_ms, 1),
        _set(OPERATIONS.c.operation_id, b"\x09" * 32),
        _redirect,
        _enlarge,
        _unbalance,
        _remove,
        _rehash,
    ],
    ids=["kind", "subject", "cause", "time", "id", "account", "amount", "sum", "removed", "hash"],
)
def test_the_journal_names_the_entry_that_was_changed(
    connection: sa.Connection, books: Books, tamper: Callable[[sa.Connection], None]
) -> None:
    """Each field of an entry and of its lines is covered; the first broken entry is the one that is named."""
    fill(books)
    tamper(connection)
    with pytest.raises(LedgerError, match="entry 2"):
        verify_journal(connection)


def test_a_removed_entry_is_called_missing(connection: sa.Connection, books: Books) -> None:
    """Not merely broken: an operator looks for another thing then."""
    fill(books)
    _remove(connection)
    with pytest.raises(LedgerError, match="entry 2 is missing"):
        verify_journal(connection)


def _forge(connection: sa.Connection, number: int, lines: tuple[Posting, ...]) -> None:
    """Replace an entry's amounts and give it the hash that belongs to them, as who knows the format would."""
    rows = {row.number: row for row in connection.execute(sa.select(OPERATIONS))}
    entry = rows[number]
    for index, line in enumerate(lines):
        target = (POSTINGS.c.number == number, POSTINGS.c.line == index)
        connection.execute(sa.update(POSTINGS).where(*target).values(amount_micro=line.amount_micro))
    forged = Operation(entry.kind, entry.subject, entry.cause, lines)
    entry_hash = compute_entry_hash(rows[number - 1].entry_hash, number, forged, entry.at_ms)
    connection.execute(
        sa.update(OPERATIONS).where(OPERATIONS.c.number == number).values(entry_hash=entry_hash)
    )


def test_a_forged_entry_breaks_the_next_one(connection: sa.Connection, books: Books) -> None:
    """The chain: an entry's hash covers the one before it."""
    fill(books)
    _forge(connection, 2, (Posting("alice", -31), Posting("bob", 31)))
    with pytest.raises(LedgerError, match="entry 3 is broken"):
        verify_journal(connection)


def test_a_forged_last_entry_must_still_sum_to_zero(connection: sa.Connection, books: Books) -> None:
    """Its hash is right and so is the balance; the money is not."""
    fill(books)
    _forge(connection, 3, (Posting("bob", -10), Posting("alice", 11)))
    connection.execute(sa.update(ACCOUNTS).where(ACCOUNTS.c.name == "alice").values(balance_micro=81))
    with pytest.raises(LedgerError, match="entry 3 does not sum to zero"):
        verify_journal(connection)


def test_an_entry_cut_off_the_end_shows_in_the_balances(connection: sa.Connection, books: Books) -> None:
    """The chain of the rest is whole; the account is named."""
    fill(books)
    connection.execute(sa.delete(POSTINGS).where(POSTINGS.c.number == 3))
    connection.execute(sa.delete(OPERATIONS).where(OPERATIONS.c.number == 3))
    with pytest.raises(LedgerError, match="account alice has 80, its lines up to entry 2 make 70"):
        verify_journal(connection)


def test_a_changed_balance_shows(connection: sa.Connection, books: Books) -> None:
    """Money without an entry."""
    fill(books)
    connection.execute(sa.update(ACCOUNTS).where(ACCOUNTS.c.name == "bob").values(balance_micro=21))
    with pytest.raises(LedgerError, match="account bob"):
        verify_journal(connection)


def test_an_account_that_is_gone_is_found(connection: sa.Connection, books: Books) -> None:
    """Its lines are still there, and say what it had; one that was empty had nothing to take."""
    fill(books)
    connection.execute(sa.text("PRAGMA defer_foreign_keys=ON"))
    connection.execute(sa.delete(ACCOUNTS).where(ACCOUNTS.c.name == "bob"))
    with pytest.raises(LedgerError, match="account bob is missing, .* make 20"):
        verify_journal(connection)
    connection.execute(sa.insert(ACCOUNTS).values(name="bob", balance_micro=20, is_closed=False))
    assert verify_journal(connection) == 3


def test_what_is_zero_is_not_kept() -> None:
    """Of a million pools that were emptied nothing is left in memory; one that comes back is counted from zero."""
    balances = {"alice": 100}
    for index in range(10):
        pool = f"pool:{index}"
        add_lines(balances, (Posting("alice", -5), Posting(pool, 5)))
        assert balances == {"alice": 95, pool: 5}
        add_lines(balances, (Posting(pool, -5), Posting("alice", 5)))
        assert balances == {"alice": 100}
    add_lines(balances, (Posting("alice", -100),))
    assert balances == {}
    add_lines(balances, (Posting("alice", -1), Posting("alice", 3)))
    assert balances == {"alice": 2}
