"""A snapshot sees one moment while the writer goes on: of SQLite and PostgreSQL, and of a database in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing

import pytest
import sqlalchemy as sa

from kit.jobs import Job
from kit.ledger import FUNDS, LedgerHarness, make_ledger
from kit.network import make_key, make_network
from pocache.protocol.errors import BackpressureError, ConfigError
from pocache.storage.store import META, Store, get_meta, set_meta
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_ledger.tables import ACCOUNTS, JOURNAL_CHECKPOINTS, OPERATIONS

USER, WORKER = make_key("user"), make_key("worker")
LOOK_S = 0.3
"""How long something is given to happen that must not."""
GATE_S = 60.0
"""How long a gate waits for who opens it: it never comes to that, unless what is tested is broken."""


@pytest.fixture(params=["sqlite", "postgres", "memory"])
def any_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, of each kind that a store can have."""
    if request.param == "memory":
        return "sqlite://"
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_server").create_database()
        return url
    return f"sqlite:///{request.getfixturevalue('tmp_path') / 'state.sqlite'}"


@pytest.fixture
def store(any_url: str) -> Iterator[Store]:
    """An open database with one setting."""
    with closing(Store(any_url)) as opened:
        write(opened, "first")
        yield opened


def write(store: Store, value: str) -> None:
    """Commit another value."""
    with store.begin() as connection:
        set_meta(connection, "what", value)


def test_it_sees_one_state_while_the_writer_goes_on(store: Store) -> None:
    """The one that was committed when it was opened; the next one sees what came since."""
    with ThreadPoolExecutor(1) as beside, store.snapshot() as snapshot:
        # Nothing was read before the writer went on: the moment is that of the opening.
        beside.submit(write, store, "second").result(GATE_S)
        assert get_meta(snapshot, "what") == "first"
        beside.submit(write, store, "third").result(GATE_S)
        assert get_meta(snapshot, "what") == "first"
        with store.begin() as connection:
            assert get_meta(connection, "what") == "third"
    with store.snapshot() as snapshot:
        assert get_meta(snapshot, "what") == "third"


def test_it_does_not_see_what_is_not_committed(store: Store) -> None:
    """Of a database in memory it waits for the transaction to end, and sees one side of it or the other."""
    begun, beside = threading.Event(), ThreadPoolExecutor(1)

    def read() -> str | None:
        begun.wait(GATE_S)
        with store.snapshot() as snapshot:
            return get_meta(snapshot, "what")

    with beside:
        reading = beside.submit(read)
        with pytest.raises(RuntimeError), store.begin() as connection:
            set_meta(connection, "what", "never")
            begun.set()
            wait((reading,), timeout=LOOK_S)
            raise RuntimeError
        assert reading.result(GATE_S) == "first"


def test_it_cannot_write(store: Store) -> None:
    """The database refuses, whatever is tried."""
    with pytest.raises(sa.exc.DBAPIError, match="(?i)read.?only"), store.snapshot() as snapshot:
        snapshot.execute(sa.update(META).values(value="changed"))
    with store.begin() as connection:
        assert get_meta(connection, "what") == "first"


def test_there_is_one_at_a_time(store: Store) -> None:
    """A second is refused, also after one that failed."""
    for _ in range(2):
        with pytest.raises(BackpressureError, match="one at a time"), store.snapshot():
            with store.snapshot():
                pytest.fail("two at a time")
    with store.snapshot():
        """It was given back."""


def test_the_writers_lock_stays_the_writers(database_url: str) -> None:
    """While a snapshot is read and after it: another writer is refused until the first is gone."""
    with closing(Store(database_url)) as store:
        with store.snapshot():
            with pytest.raises(ConfigError, match="another process writes"):
                Store(database_url, writer_wait_s=0.05)
        with pytest.raises(ConfigError, match="another process writes"):
            Store(database_url, writer_wait_s=0.05)
        write(store, "still")
    Store(database_url, writer_wait_s=0.05).close()


# --- the ledger's totals ---------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(any_url: str) -> Iterator[LedgerHarness]:
    """A ledger with a committed job."""
    harness = make_ledger(make_network(), any_url)
    harness.fund(USER, available=FUNDS)
    harness.fund(WORKER, available=FUNDS, stake=FUNDS)
    yield harness
    harness.close()


def make_question(ledger: LedgerHarness) -> tuple[str, bytes]:
    """The operator's question for the totals."""
    return t.TOTALS_QUERY.subject(), ledger.network.seal(
        ledger.network.keys[t.Role.OPERATOR], m.TotalsQueryV1()
    )


def test_a_settlement_commits_while_the_totals_are_read(ledger: LedgerHarness) -> None:
    """The report tells the moment it began at, whole; the next one tells the settlement."""
    job = Job(ledger.network, "quiet")
    ledger.commit(job)
    before = ledger.totals()
    reached, opened, calls = threading.Event(), threading.Event(), 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # behind the first accounts
            reached.set()
            assert opened.wait(GATE_S)

    with ThreadPoolExecutor(1) as beside:
        answer = beside.submit(ledger.dispatcher.report, *make_question(ledger), check)
        try:
            assert reached.wait(GATE_S)
            ledger.must(t.WINDOW_CLOSED, job.window_closed())
            assert [body for topic, body in ledger.outbox() if topic is t.PAYOUT_SETTLED]
            assert not answer.done()
        finally:
            opened.set()
        reply = ledger.network.open(answer.result(GATE_S), m.TotalsReplyV1)
    assert reply == before
    after = ledger.totals()
    assert (before.open_pool_count, after.open_pool_count) == (1, 0)
    assert after.journal_entries == before.journal_entries + 1


def test_a_report_that_is_given_up_accuses_nobody(ledger: LedgerHarness) -> None:
    """Wherever it is stopped it is refused, and never answered with a journal that is broken."""
    for index in range(65):
        ledger.fund(USER, available=1, reference=str(index))
    ledger.pass_rounds(1)  # a checkpoint is among what is read
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    ledger.dispatcher.report(*make_question(ledger), count)
    with ledger.store.begin() as connection:
        accounts, entries, checkpoints = (
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in (ACCOUNTS, OPERATIONS, JOURNAL_CHECKPOINTS)
        )
    assert checkpoints == 1
    assert calls == 1 + accounts + checkpoints + entries + accounts, "at its begin, and at each that is read"
    for stop_at in (1, 2, 5, 6, 7, 40, calls):
        left = stop_at

        def check() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise BackpressureError("the service stops")

        refusal = ledger.network.open(ledger.dispatcher.report(*make_question(ledger), check), m.RefusalV1)
        assert refusal.code == BackpressureError.code, stop_at
    ledger.totals()
