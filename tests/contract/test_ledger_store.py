"""What the ledger may expect of its database, the same of SQLite and of PostgreSQL.

A PostgreSQL server is started for it (``kit.postgres``); where there is none these tests are skipped, loudly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from kit.jobs import Job
from kit.ledger import FUNDS, LedgerHarness, Money, make_ledger
from kit.network import Network, make_key, make_network
from kit.postgres import PostgresServer, run_postgres
from pocache.protocol.errors import ConfigError, LedgerError
from pocache.protocol.limits import MICRO_MAX
from pocache.service.dispatch import Delivery
from pocache.storage.store import OUTBOX, Store
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.model import WireModel
from pocache_ledger.migrations import prepare, upgrade
from pocache_ledger.tables import ACCOUNTS, JOURNAL_CHECKPOINTS, OPERATIONS, POSTINGS, UNBONDINGS

USER, WORKER = make_key("user"), make_key("worker")
V1, V2 = make_key("verifier-1"), make_key("verifier-2")
BEYOND_DOUBLES = 2**53 + 1
"""The first whole number that a double cannot hold."""


@pytest.fixture(scope="module")
def network() -> Network:
    """A network whose disputes, and so its unbonding, are short."""
    return make_network(
        rules={"unbonding_ticks": 27, "stage_max": 2, "lease_fee_micro": 700},
        audit={"window_rounds": 1, "bind_delay_ms": 0},
        deadlines={"queue_ticks": 3, "lease_ticks": 1, "seal_ticks": 1, "opening_ticks": 1},
    )


@pytest.fixture
def ledger(network: Network, database_url: str) -> Iterator[LedgerHarness]:
    """A ledger without money."""
    harness = make_ledger(network, database_url)
    yield harness
    harness.close()


def fund(ledger: LedgerHarness) -> None:
    """Give everybody the same amounts."""
    ledger.fund(USER, available=FUNDS)
    for key in (WORKER, V1, V2):
        ledger.fund(key, available=FUNDS, stake=FUNDS)


def play(ledger: LedgerHarness) -> list[Delivery]:
    """A bit of everything: two jobs, a dispute, refusals, withdrawals, rounds. Returns what was delivered."""
    deliveries: list[Delivery] = []
    apply = ledger.apply

    def remember(delivery: Delivery) -> Any:
        deliveries.append(delivery)
        return apply(delivery)

    ledger.apply = remember  # type: ignore[method-assign]
    fund(ledger)
    quiet, disputed = Job(ledger.network, "quiet"), Job(ledger.network, "disputed")
    lapsed = Job(ledger.network, "lapsed")
    ledger.commit(quiet)
    ledger.must(t.WINDOW_CLOSED, quiet.window_closed())
    ledger.commit(disputed, V1, V2)
    ledger.must(t.OUTCOME_DECIDED, disputed.outcome("confirm_prior", (V1, V2), prior=V1))
    ledger.admit(lapsed)
    assert ledger.hold(lapsed.generator_stake()).action == "ack"
    ledger.must(t.ATTEMPT_CHARGED, lapsed.charged())
    assert ledger.withdraw(V1, "stake", 1_000).action == "ack"
    assert ledger.withdraw(V2, "stake", 10 * FUNDS).action == "term"
    assert ledger.withdraw(USER, "available", 5, is_worker=False).action == "ack"
    ledger.pass_rounds(27)
    ledger.must(t.JOB_ABANDONED, lapsed.abandoned())
    del ledger.apply
    return deliveries


def test_the_same_messages_make_the_same_rows_everywhere(ledger: LedgerHarness, network: Network) -> None:
    """Every row of every table, the journal's hashes too, is what an SQLite in memory has."""
    reference = make_ledger(network)
    play(reference)
    play(ledger)
    assert ledger.dump() == reference.dump()
    assert [(one.subject, one.data) for one in ledger.drain()] == [
        (one.subject, one.data) for one in reference.drain()
    ]
    assert ledger.totals() == reference.totals()
    reference.close()


@pytest.mark.parametrize("size", [2, 7, 100])
def test_a_batch_leaves_what_its_messages_leave_one_by_one(
    ledger: LedgerHarness, network: Network, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was refused between them, whatever was read ahead of it, whatever came twice: the same rows."""
    reference = make_ledger(network)
    deliveries = play(reference)
    deliveries += deliveries[::3]
    for start in range(0, len(deliveries), size):
        batch = deliveries[start : start + size]
        # The clock is read once for the batch, then once for each message.
        times = iter([batch[0].stored_ms, *(delivery.stored_ms for delivery in batch)])
        monkeypatch.setattr(ledger.dispatcher, "_clock_ms", lambda times=times: next(times))
        ledger.dispatcher.apply(batch)
    assert ledger.dump() == reference.dump()
    assert ledger.verify_journal() == reference.verify_journal()
    reference.close()


def test_a_batch_that_breaks_a_rule_of_the_database_stops_at_the_message_that_does(
    ledger: LedgerHarness, network: Network
) -> None:
    """What came before it is kept; nothing of itself is, and nothing after it is done."""
    ledger.fund(USER, available=FUNDS)
    workers = ("worker", "verifier-1", "verifier-2")
    for worker in workers:
        ledger.fund(make_key(worker), stake=FUNDS)
    jobs = [Job(network, worker, generator_name=worker) for worker in workers]
    for job in jobs:
        ledger.commit(job)
    with ledger.store.begin() as connection:  # our own code knows of no closed account of a participant's
        row = {"name": V1.participant_id, "balance_micro": 0, "is_closed": True}
        connection.execute(sa.insert(ACCOUNTS).values(**row))
    ledger.drain()
    key = network.keys[t.WINDOW_CLOSED.signer]
    batch = [
        Delivery(
            t.WINDOW_CLOSED.subject(job=job.job_id),
            network.seal(key, job.window_closed()),
            "RECORD",
            10_000 + index,
            ledger.clock_ms,
        )
        for index, job in enumerate(jobs)
    ]
    assert [decision.action for decision in ledger.dispatcher.apply(batch)] == ["ack", "halt", "halt"]
    assert [one.job_id for one in ledger.outbox_of(t.PAYOUT_SETTLED)] == [jobs[0].job_id]
    assert [ledger.money(make_key(worker)).available > 0 for worker in workers] == [True, False, False]
    ledger.totals()


def test_everything_again_changes_nothing(ledger: LedgerHarness) -> None:
    """Every message redelivered, and again at another position of its stream, before and after a restart."""
    deliveries = play(ledger)
    before = ledger.dump()
    for delivery in deliveries:
        ledger.apply(delivery)
    ledger.close()
    ledger.open()
    for delivery in deliveries:
        ledger.apply(replace(delivery, sequence=10**12))
    assert ledger.dump() == before
    ledger.totals()


def test_what_was_committed_is_there_after_a_restart(ledger: LedgerHarness) -> None:
    """The balances, the journal, the outbox and the ticks."""
    play(ledger)
    with ledger.store.begin() as connection:
        waiting = connection.execute(sa.select(OUTBOX).order_by(OUTBOX.c.number)).all()
    before, tick, entries = ledger.dump(), ledger.tick, ledger.verify_journal()
    ledger.close()
    ledger.open()
    assert (ledger.dump(), ledger.tick, ledger.verify_journal()) == (before, tick, entries)
    with ledger.store.begin() as connection:
        assert connection.execute(sa.select(OUTBOX).order_by(OUTBOX.c.number)).all() == waiting


def test_a_block_that_raises_leaves_nothing(ledger: LedgerHarness) -> None:
    """All of a batch, or none of it."""
    fund(ledger)
    before = ledger.dump()
    with pytest.raises(ZeroDivisionError), ledger.store.begin() as connection:
        connection.execute(sa.update(ACCOUNTS).values(is_closed=False, balance_micro=7))
        raise ZeroDivisionError
    assert ledger.dump() == before


def test_a_refused_message_in_a_batch_leaves_the_others(ledger: LedgerHarness, network: Network) -> None:
    """Each has a savepoint of its own in one transaction."""
    fund(ledger)
    job = Job(network)
    bodies: list[tuple[t.Topic[Any], WireModel]] = [
        (t.JOB_ADMITTED, job.admitted()),
        (t.ROUTER_HOLD_REQUESTED, job.escrow()),
        (t.JOB_ADMITTED, job.admitted().model_copy(update={"generation_max_micro": 1})),
        (t.ROUTER_HOLD_REQUESTED, job.generator_stake()),
    ]
    router = network.keys[t.Role.ROUTER]
    deliveries = [
        Delivery(
            topic.subject(job=job.job_id), network.seal(router, body), "RECORD", 100 + index, ledger.clock_ms
        )
        for index, (topic, body) in enumerate(bodies)
    ]
    decisions = ledger.dispatcher.apply(deliveries)
    assert [decision.action for decision in decisions] == ["ack", "ack", "term", "ack"]
    assert ledger.money(WORKER).locked == job.products_max.generator_stake
    assert ledger.money(USER).locked == job.products_max.deposit


@pytest.mark.parametrize("amount", [BEYOND_DOUBLES, MICRO_MAX], ids=["beyond-doubles", "largest"])
def test_amounts_beyond_doubles_survive(ledger: LedgerHarness, amount: int) -> None:
    """Column, journal, signed answer, statement and restart: to the last micro-unit."""
    ledger.fund(USER, available=amount)
    ledger.close()
    ledger.open()
    assert ledger.money(USER) == Money(amount, 0, 0)
    assert ledger.totals().deposited_micro == amount
    question = m.StatementQueryV1(participant=USER.participant_id)
    reply = ledger.ask(t.STATEMENT_QUERY, question, m.StatementReplyV1, USER)
    assert isinstance(reply, m.StatementReplyV1)
    assert [line.amount_micro for line in reply.lines] == [amount]
    assert ledger.withdraw(USER, "available", amount - 1, is_worker=False).action == "ack"
    paid = ledger.outbox_of(t.WITHDRAWAL_PAID)
    assert [one.amount_micro for one in paid] == [amount - 1]
    assert ledger.money(USER) == Money(1, 0, 0)


def test_no_account_outgrows_its_column(ledger: LedgerHarness) -> None:
    """The deposit that would is refused, and the ledger goes on."""
    ledger.fund(USER, available=MICRO_MAX)
    body = m.DepositV1(
        participant=V1.participant_id, bucket="stake", amount_micro=1, reference="one too many"
    )
    assert ledger.deliver(t.DEPOSITED, body).action == "term"
    assert ledger.refusal().code == "E104"
    assert ledger.totals().deposited_micro == MICRO_MAX


def _negative(connection: sa.Connection) -> None:
    connection.execute(
        sa.update(ACCOUNTS).where(ACCOUNTS.c.name == USER.participant_id).values(balance_micro=-1)
    )


def _close_full(connection: sa.Connection) -> None:
    connection.execute(
        sa.update(ACCOUNTS).where(ACCOUNTS.c.name == USER.participant_id).values(is_closed=True)
    )


def _repeat_operation(connection: sa.Connection) -> None:
    first = connection.execute(sa.select(OPERATIONS).where(OPERATIONS.c.number == 1)).one()
    connection.execute(sa.insert(OPERATIONS).values(**{**first._asdict(), "number": 99}))


def _post_nothing(connection: sa.Connection) -> None:
    connection.execute(
        sa.insert(POSTINGS).values(number=1, line=9, account=USER.participant_id, amount_micro=0)
    )


def _post_to_nobody(connection: sa.Connection) -> None:
    connection.execute(sa.insert(POSTINGS).values(number=1, line=9, account="nobody", amount_micro=1))


def _grow_unbonding(connection: sa.Connection) -> None:
    connection.execute(sa.update(UNBONDINGS).values(amount_micro=UNBONDINGS.c.requested_micro + 1))


def _keep_paid(connection: sa.Connection) -> None:
    connection.execute(sa.update(UNBONDINGS).values(is_paid=True))


@pytest.mark.parametrize(
    ("break_it", "rule"),
    [
        (_negative, "accounts_never_negative"),
        (_close_full, "accounts_closed_empty"),
        (_repeat_operation, "operation_id"),
        (_post_nothing, "postings_not_zero"),
        (_post_to_nobody, "(?i)foreign key"),
        (_grow_unbonding, "unbondings_only_shrink"),
        (_keep_paid, "unbondings_paid_empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_database_itself_refuses(
    ledger: LedgerHarness, break_it: Callable[[sa.Connection], None], rule: str
) -> None:
    """Without any of our code in between."""
    fund(ledger)
    assert ledger.withdraw(WORKER, "stake", 10).action == "ack"
    with pytest.raises(sa.exc.IntegrityError, match=rule), ledger.store.begin() as connection:
        break_it(connection)


def test_one_changed_byte_of_the_journal_is_found(ledger: LedgerHarness) -> None:
    """And where."""
    play(ledger)
    with ledger.store.begin() as connection:
        subject = connection.execute(
            sa.select(OPERATIONS.c.subject).where(OPERATIONS.c.number == 5)
        ).scalar_one()
        changed = bytes([subject[0] ^ 1, *subject[1:]])
        connection.execute(sa.update(OPERATIONS).where(OPERATIONS.c.number == 5).values(subject=changed))
    with pytest.raises(LedgerError, match="entry 5"):
        ledger.verify_journal()


def test_checkpoints_are_kept_as_they_were_signed(ledger: LedgerHarness) -> None:
    """Bytes come back as bytes from both databases, or no signature would hold."""
    for index in range(70):
        ledger.fund(USER, available=1, reference=str(index))
    ledger.pass_rounds(1)
    (checkpoint,) = ledger.outbox_of(t.JOURNAL_CHECKPOINT)
    assert checkpoint.entries == 64
    ledger.totals()
    with ledger.store.begin() as connection:
        envelope = connection.execute(sa.select(JOURNAL_CHECKPOINTS.c.envelope)).scalar_one()
        connection.execute(sa.update(JOURNAL_CHECKPOINTS).values(envelope=envelope[:-1] + b"\x00"))
    reply = ledger.ask(t.TOTALS_QUERY, m.TotalsQueryV1(), m.TotalsReplyV1)
    assert isinstance(reply, m.TotalsReplyV1)
    assert not reply.journal_intact


def test_a_second_writer_is_refused_until_the_first_is_gone(ledger: LedgerHarness) -> None:
    """Two ledgers on one database would each hold back what the other does not know."""
    with pytest.raises(ConfigError, match="another process writes"):
        Store(ledger.url, prepare=prepare, writer_wait_s=0.05)
    fund(ledger)  # the first goes on
    ledger.close()
    Store(ledger.url, prepare=prepare, writer_wait_s=0.05).close()
    ledger.open()


def test_a_database_of_another_kind_is_refused() -> None:
    """The message says which there are."""
    for url in ("mysql://host/name", "postgresql+psycopg2://host/name", "nonsense"):
        with pytest.raises(ConfigError):
            Store(url)


def test_a_server_that_is_not_there_is_called_so(tmp_path: Any) -> None:
    """A configuration to mend, not a crash."""
    for url in (
        "postgresql+psycopg://nobody@127.0.0.1:1/ledger",
        f"sqlite:///{tmp_path}/missing/ledger.sqlite",
    ):
        with pytest.raises(ConfigError, match="cannot open the database"):
            Store(url)


def test_a_lost_connection_takes_the_writers_lock_with_it(
    postgres_server: PostgresServer, network: Network
) -> None:
    """Who was cut off does not write again beside the one that took over."""
    url = postgres_server.create_database()
    with closing(Store(url, prepare=upgrade, writer_wait_s=0.05)) as cut_off:
        with postgres_server.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
                [sa.make_url(url).database],
            )
        with pytest.raises(sa.exc.OperationalError), cut_off.begin() as connection:
            connection.execute(sa.select(ACCOUNTS))
        with (
            closing(Store(url, prepare=prepare)),
            pytest.raises(ConfigError, match="another process writes"),
            cut_off.begin(),
        ):
            pass


def test_a_server_that_does_not_sync_is_refused(postgres_server: PostgresServer) -> None:
    """What it acknowledges would be lost in a power cut."""
    with run_postgres({"fsync": "off"}) as server, pytest.raises(ConfigError, match="fsync off"):
        Store(server.create_database())
