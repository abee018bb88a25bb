"""What a refused message changed is gone, in memory as in the database, and those around it in its batch are whole."""

from __future__ import annotations

from typing import Any

import pytest

from kit.jobs import Job
from kit.ledger import LedgerHarness
from kit.network import make_key
from pocache.protocol.errors import ConflictError
from pocache.service.dispatch import Delivery
from pocache.service.unit import Unit
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_ledger import withdrawals
from pocache_ledger.accounts import Operation, Posting, close, get_balance, post
from pocache_ledger.books import Books, Hold
from pocache_ledger.books import Job as JobRow
from pocache_ledger.tables import WORLD

WORKER = make_key("worker")


def deposit(name: str, amount: int, subject: bytes) -> Operation:
    """Return money from outside."""
    return Operation("deposit", subject, bytes(32), (Posting(WORLD, -amount), Posting(name, amount)))


def test_a_mark_takes_everything_back(ledger: LedgerHarness) -> None:
    """Accounts, jobs, holds, the journal with its lines and its numbers; what was before stays, and is written once."""
    with ledger.store.begin() as connection:
        books = Books(connection)
        post(books, deposit("alice", 5, b"first"), now_ms=1)
        mark = books.mark()
        number = post(books, deposit("alice", 7, b"second"), now_ms=2)
        books.jobs.put(b"job", JobRow(b"job", "alice", b"model", 1, 1, 1, "open"))
        books.holds.put(b"job", (Hold("escrow", 1, 0, "alice", 3),))
        close(books, "empty")
        books.rewind(mark)
        assert get_balance(books, "alice") == 5
        assert (books.jobs.get(b"job"), books.holds.get(b"job"), books.accounts.get("empty")) == (None,) * 3
        assert post(books, deposit("alice", 11, b"second"), now_ms=3) == number
        assert [line.amount_micro for line in books.get_lines(number)] == [-11, 11]
        books.flush()
        books.flush()
    before = ledger.dump()
    assert (before["jobs"], before["holds"]) == ([], [])
    assert ledger.verify_journal() == number
    assert [row[1] for row in before["accounts"] if row[0] == "alice"] == [16]


def test_what_fails_after_it_was_posted_leaves_nothing_in_its_batch(
    ledger: LedgerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three jobs end in one batch; the payout of the second cannot be said."""
    jobs = [Job(ledger.network, name) for name in ("first", "second", "third")]
    for job in jobs:
        ledger.commit(job)
    money = ledger.money(WORKER)
    ledger.drain()
    emit = Unit.emit

    def refuse(unit: Unit, topic: Any, body: Any, **tokens: Any) -> Any:
        if topic is t.PAYOUT_SETTLED and body.job_id == jobs[1].job_id:
            raise ConflictError("as the test has it")
        return emit(unit, topic, body, **tokens)

    monkeypatch.setattr(Unit, "emit", refuse)
    actions = apply_together(ledger, [(t.WINDOW_CLOSED, job.window_closed()) for job in jobs])
    assert actions == ["ack", "term", "ack"]
    emissions = ledger.drain()
    paid = [one.body.job_id for one in emissions if isinstance(one.body, m.PayoutSettledV1)]
    assert paid == [jobs[0].job_id, jobs[2].job_id]
    monkeypatch.undo()
    after = ledger.money(WORKER)
    assert (after.available - money.available) % 2 == 0
    assert after.locked == jobs[1].products.generator_stake
    assert ledger.totals().open_pool_count == 1
    ledger.must(t.WINDOW_CLOSED, jobs[1].window_closed())
    assert ledger.money(WORKER).locked == 0
    assert ledger.totals().open_pool_count == 0
    assert ledger.money(WORKER).available == (after.available - money.available) // 2 * 3 + money.available


def test_a_message_that_works_on_the_database_is_undone_there_and_in_memory(
    ledger: LedgerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A withdrawal that fails after it was posted: what comes after it in the batch finds the money."""
    money = ledger.money(WORKER)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConflictError("as the test has it")

    monkeypatch.setattr(withdrawals, "announce_stakes", refuse)
    body = m.WithdrawalRequestV1(bucket="stake", amount_micro=60, nonce=bytes(16))
    more = m.DepositV1(
        participant=WORKER.participant_id, bucket="stake", amount_micro=1, reference="one more"
    )
    withdrawal = ledger.next_delivery(t.WORKER_WITHDRAWAL_REQUESTED, body, WORKER)
    deposits = [
        ledger.next_delivery(t.DEPOSITED, more.model_copy(update={"reference": reference}))
        for reference in ("before", "after")
    ]
    decisions = ledger.dispatcher.apply([deposits[0], withdrawal, deposits[1]])
    assert [decision.action for decision in decisions] == ["ack", "term", "ack"]
    assert ledger.money(WORKER).stake == money.stake + 2
    assert ledger.money(WORKER).total == money.total + 2
    ledger.totals()


def apply_together(ledger: LedgerHarness, bodies: list[tuple[t.Topic[Any], Any]]) -> list[str]:
    """Apply these in one batch and return what became of each."""
    batch: list[Delivery] = [ledger.next_delivery(topic, body) for topic, body in bodies]
    return [decision.action for decision in ledger.dispatcher.apply(batch)]
