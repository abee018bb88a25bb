"""The ledger's settlements in batches of 100, against a bare loop of the same SQL.

The bare loop replays, through the database's own driver, every statement that the ledger executed with the parameters
that it had, on a copy of the same database at the same point, with the same commits and durability. What is left is the
ledger's own: envelopes opened and signed, the rules, and SQLAlchemy.

Command: ``make bench ARGS=ledger``. Recorded figures: bench/RESULTS.md. PostgreSQL is started for it where there is one.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy import event

from bench.measure import REPETITIONS, Row, compare

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.jobs import Job
from kit.ledger import LedgerHarness, make_ledger
from kit.network import Network, make_key, make_network
from kit.postgres import NoPostgresError, PostgresServer, run_postgres
from pocache.service.dispatch import Delivery
from pocache.storage import prepared
from pocache.wire import topics as t

BATCH = 100
BATCHES = 1 + REPETITIONS
WORKERS = 8
SEQUENCE = 10**6

Copy = Callable[[str], str]
"""Returns the URL of a copy of a database that nobody has open."""
Statement = tuple[str, Any, bool]


def run() -> list[Row]:
    """Return a row per database."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows.append(_measure("SQLite, WAL, FULL", f"sqlite:///{folder / 'ledger.sqlite'}", _copy_sqlite))
        try:
            server = stack.enter_context(run_postgres())
        except NoPostgresError as error:
            sys.stderr.write(f"{error}\n")
        else:
            copy = _make_postgres_copy(server)
            rows.append(_measure("PostgreSQL, synchronous_commit on", server.create_database(), copy))
    return rows


def _measure(name: str, url: str, copy: Copy) -> Row:
    network = make_network()
    batches = _prepare(network, url)
    statements = _record(network, copy(url), batches)
    with _open(network, copy(url)) as ledger, _connect(copy(url)) as bare:
        ours, theirs = iter(batches), iter(statements)
        row = compare(
            f"{BATCH} settlements, {name}",
            lambda: _apply(ledger, next(ours)),
            f"the same {sum(map(len, statements)) // BATCHES} statements by the bare driver",
            lambda: _replay(bare, next(theirs)),
        )
        totals = ledger.totals()
        assert totals.open_pool_count == 0, "everything is settled"
        return Row(
            row.name,
            row.baseline,
            row.median_ms,
            row.spread_ms,
            row.baseline_ms,
            note=f"{name}: {BATCH * 1_000 / row.median_ms:,.0f} settlements/s, bare "
            f"{BATCH * 1_000 / row.baseline_ms:,.0f}: {row.baseline_ms / row.median_ms:.2f} times its speed",
        )


def _prepare(network: Network, url: str) -> list[list[Delivery]]:
    """Take so many jobs up to their commitment, and return the messages that settle them."""
    batches: list[list[Delivery]] = []
    with _open(network, url) as ledger:
        ledger.fund(make_key("user"), available=10**12)
        for index in range(WORKERS):
            ledger.fund(make_key(f"worker-{index}"), stake=10**12)
        for batch in range(BATCHES):
            deliveries = []
            preparing: list[Delivery] = []
            for index in range(BATCH):
                job = Job(network, f"job {batch} {index}", generator_name=f"worker-{index % WORKERS}")
                bodies = (
                    (t.JOB_ADMITTED, job.admitted()),
                    (t.ROUTER_HOLD_REQUESTED, job.escrow()),
                    (t.ROUTER_HOLD_REQUESTED, job.generator_stake()),
                    (t.COMMITMENT_RECORDED, job.committed()),
                    (t.WINDOW_CLOSED, job.window_closed()),
                )
                sealed = [
                    Delivery(
                        topic.subject(job=job.job_id),
                        network.seal(network.keys[topic.signer], body),
                        "RECORD",
                        SEQUENCE + BATCH * batch + index,
                        ledger.clock_ms,
                    )
                    for topic, body in bodies
                ]
                preparing += sealed[:-1]
                deliveries.append(sealed[-1])
            _apply(ledger, preparing)
            batches.append(deliveries)
    return batches


def _apply(ledger: LedgerHarness, batch: list[Delivery]) -> None:
    decisions = ledger.dispatcher.apply(batch)
    assert all(decision.action == "ack" for decision in decisions)


def _record(network: Network, url: str, batches: list[list[Delivery]]) -> list[list[Statement]]:
    """Return what the ledger executes for each batch: SQL, parameters, and whether there are many."""
    recorded: list[list[Statement]] = []

    def remember(_c: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, is_many: bool) -> None:
        recorded[-1].append((sql, parameters, is_many))

    with _open(network, url) as ledger:
        event.listen(sa.Engine, "before_cursor_execute", remember)
        prepared.TRACE = lambda sql, parameters, is_many: recorded[-1].append((sql, parameters, is_many))
        try:
            for batch in batches:
                recorded.append([])
                _apply(ledger, batch)
        finally:
            prepared.TRACE = None
            event.remove(sa.Engine, "before_cursor_execute", remember)
    return recorded


def _replay(connection: Any, statements: list[Statement]) -> None:
    """Execute them one after the other and commit, as a loop without anything around it does."""
    cursor = connection.cursor()
    for sql, parameters, is_many in statements:
        if is_many:
            cursor.executemany(sql, parameters)
        else:
            cursor.execute(sql, parameters)
            if cursor.description is not None:
                cursor.fetchall()
    connection.commit()


@contextlib.contextmanager
def _open(network: Network, url: str) -> Iterator[LedgerHarness]:
    ledger = make_ledger(network, url)
    try:
        yield ledger
    finally:
        ledger.close()


@contextlib.contextmanager
def _connect(url: str) -> Iterator[Any]:
    """Return the driver's own connection, set up as the ledger's is."""
    from pocache.storage.store import Store

    store = Store(url)
    try:
        with store.begin() as connection:
            bare = connection.connection.dbapi_connection
        yield bare
    finally:
        store.close()


def _copy_sqlite(url: str) -> str:
    source = Path(url.removeprefix("sqlite:///"))
    target = source.with_name(f"copy-{len(list(source.parent.iterdir()))}.sqlite")
    shutil.copy(source, target)
    return f"sqlite:///{target}"


def _make_postgres_copy(server: PostgresServer) -> Copy:
    def copy(url: str) -> str:
        source = sa.make_url(url).database
        target = sa.make_url(server.create_database())
        with server.connect() as connection:
            connection.execute(f"DROP DATABASE {target.database}")
            connection.execute(f"CREATE DATABASE {target.database} TEMPLATE {source}")
        return target.render_as_string(hide_password=False)

    return copy
