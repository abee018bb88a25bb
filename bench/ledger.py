"""The ledger's settlements in batches of 100, against bare loops of the same SQL.

Three loops, through the database's own driver, on a copy of the same database at the same point, with the same parameters,
commits and durability, 100 settlements to a transaction:

- *settlement by settlement*: for each settlement, one after the other, the statements by which the ledger settles a job that
  comes alone: what it reads and what it writes. What belongs to a transaction and not to a settlement (the tick, the stakes
  announced at its end) is left out of it.
- *gathered*: the statements that the ledger executed for the batch, in which it reads and writes the rows of many settlements
  together.
- *gathered, and the signatures*: the same, and the bare Ed25519 of PyNaCl, one check and one signature for each settlement.

Command: ``make bench ARGS=ledger``. Recorded figures: bench/RESULTS.md. PostgreSQL is started for it where there is one.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from nacl.signing import SigningKey as BareKey

from bench.measure import REPETITIONS, Row, compare

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.jobs import Job
from kit.ledger import LedgerHarness, make_ledger
from kit.network import Network, make_key, make_network
from kit.postgres import NoPostgresError, PostgresServer, run_postgres
from pocache.service.dispatch import Delivery
from pocache.service.outbox import OutboxRow
from pocache.storage import prepared
from pocache.wire import topics as t

BATCH = 100
BATCHES = 1 + REPETITIONS
WORKERS = 8
SEQUENCE = 10**6
_BARE_KEY = BareKey(bytes(32))
_BARE_SIGNED = _BARE_KEY.sign(bytes(400))

Copy = Callable[[str], str]
"""Returns the URL of a copy of a database that nobody has open."""
Statement = tuple[str, Any, bool]


def run() -> list[Row]:
    """Return three rows per database, one for each bare loop."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows += _measure("SQLite, WAL, FULL", f"sqlite:///{folder / 'ledger.sqlite'}", _copy_sqlite)
        try:
            server = stack.enter_context(run_postgres())
        except NoPostgresError as error:
            sys.stderr.write(f"{error}\n")
        else:
            copy = _make_postgres_copy(server)
            rows += _measure("PostgreSQL, synchronous_commit on", server.create_database(), copy)
    return rows


def _measure(name: str, url: str, copy: Copy) -> list[Row]:
    network = make_network()
    batches = _prepare(network, url)
    alone = _record(network, copy(url), batches, is_alone=True)
    gathered = _record(network, copy(url), batches)
    loops = (
        (f"settlement by settlement, {_count(alone):.1f} statements each", alone, False),
        (f"gathered, {_count(gathered):.1f} statements each", gathered, False),
        ("gathered, and the signatures", gathered, True),
    )
    return [
        _compare(network, url, copy, batches, statements, name, baseline, is_signing)
        for baseline, statements, is_signing in loops
    ]


def _count(statements: list[list[Statement]]) -> float:
    """Return how many times a settlement's driver is called."""
    return sum(map(len, statements)) / BATCHES / BATCH


def _compare(
    network: Network,
    url: str,
    copy: Copy,
    batches: list[list[Delivery]],
    statements: list[list[Statement]],
    name: str,
    baseline: str,
    is_signing: bool,
) -> Row:
    """Settle on one copy, replay on another."""
    with _open(network, copy(url)) as ledger, _connect(copy(url)) as bare:
        ours, theirs = iter(batches), iter(statements)

        def replay() -> None:
            for _ in range(BATCH if is_signing else 0):
                _BARE_KEY.verify_key.verify(_BARE_SIGNED)
                _BARE_KEY.sign(_BARE_SIGNED.message)
            _replay(bare, next(theirs))

        row = compare(f"{BATCH} settlements, {name}", lambda: _apply(ledger, next(ours)), baseline, replay)
        assert ledger.totals().open_pool_count == 0, "everything is settled"
    return replace(
        row,
        note=f"{name}: {BATCH * 1_000 / row.median_ms:,.0f} settlements/s; {baseline}: "
        f"{BATCH * 1_000 / row.baseline_ms:,.0f}; {row.baseline_ms / row.median_ms:.2f} times its speed",
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


def _record(
    network: Network, url: str, batches: list[list[Delivery]], *, is_alone: bool = False
) -> list[list[Statement]]:
    """Return what the ledger executes for each batch: SQL, parameters, and whether there are many.

    With ``is_alone`` it is given one message after the other, and what a transaction needs but once is left out.
    """
    recorded: list[list[Statement]] = []

    def remember(sql: str, parameters: Any, is_many: bool) -> None:
        if sql == "BEGIN IMMEDIATE":
            return  # the replay begins its transactions itself
        if not is_alone:
            recorded[-1].append((sql, parameters, is_many))
        elif sql.startswith("INSERT INTO outbox"):
            subject: Any = "subject" if isinstance(parameters[0], dict) else OutboxRow._fields.index("subject")
            payouts = [row for row in parameters if row[subject].startswith("payouts.")]
            assert len(payouts) == 1, parameters
            recorded[-1].append((sql, payouts, is_many))
        elif "sum(holds.amount_micro)" not in sql:
            recorded[-1].append((sql, parameters, is_many))

    with _open(network, url) as ledger:
        prepared.TRACE = remember
        try:
            for batch in batches:
                recorded.append([])
                for part in [[delivery] for delivery in batch] if is_alone else [batch]:
                    _apply(ledger, part)
        finally:
            prepared.TRACE = None
    return recorded


def _replay(connection: Any, statements: list[Statement]) -> None:
    """Execute them one after the other and commit, as a loop without anything around it does."""
    cursor = connection.cursor()
    if connection.__class__.__module__.startswith("sqlite3"):
        cursor.execute("BEGIN IMMEDIATE")
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
