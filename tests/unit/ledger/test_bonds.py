"""What an ejection costs: a share of the whole stake, from wherever it lies, once, and never more than there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kit.jobs import Job
from kit.ledger import FUNDS, LedgerHarness, Money, make_ledger
from kit.network import Network, make_key, make_network
from pocache.service.unit import Handler
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role
from pocache_ledger.service import LedgerService

WORKER = make_key("worker")
UNBONDING_TICKS = 40
SECTIONS: dict[str, Any] = {
    "rules": {"stage_max": 3, "unbonding_ticks": UNBONDING_TICKS},
    "audit": {"window_rounds": 1, "bind_delay_ms": 0},
    "deadlines": {"queue_ticks": 3, "lease_ticks": 1, "seal_ticks": 1, "opening_ticks": 1},
}


def make_ejection(network: Network, **changes: object) -> m.EjectionV1:
    fields = {
        "participant": WORKER.participant_id,
        "model_id": network.model.model_id,
        "test": "grades",
        "job_id": b"\x01" * 32,
        "outcome": b"\x02" * 32,
        "job_count": 4,
        "grade_sum_q16": 1_326_156,
        "token_sum_q16": 0,
    }
    return m.EjectionV1.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def network() -> Network:
    """Half of a stake is what an ejection costs."""
    return make_network(**SECTIONS, ejection={"bond_share": "1/2"})


@pytest.fixture
def ledger(network: Network) -> Iterator[LedgerHarness]:
    """A user, a worker and verifiers with money."""
    harness = make_ledger(network)
    harness.fund(make_key("user"), available=FUNDS)
    for key in (WORKER, make_key("verifier-1")):
        harness.fund(key, available=FUNDS, stake=FUNDS)
    harness.drain()
    yield harness
    harness.totals()
    harness.close()


def eject(ledger: LedgerHarness, **changes: object) -> list[m.BondTakenV1]:
    """Say that the worker is ejected, and return what the ledger says of its bond."""
    ledger.must(t.WORKER_EJECTED, make_ejection(ledger.network, **changes))
    return ledger.outbox_of(t.BOND_TAKEN)


def describe(bond: m.BondTakenV1) -> tuple[int, int, int, int]:
    return bond.stake_micro, bond.bond_micro, bond.taken_micro, bond.open_micro


def test_it_is_taken_from_the_free_stake_to_the_treasury(ledger: LedgerHarness) -> None:
    (bond,) = eject(ledger)
    assert describe(bond) == (FUNDS, FUNDS // 2, FUNDS // 2, 0)
    assert ledger.money(WORKER) == Money(FUNDS, FUNDS - FUNDS // 2, 0)
    assert ledger.totals().treasury_micro == FUNDS // 2
    ledger.pass_rounds(3)
    assert ledger.outbox_of(t.BOND_TAKEN) == []


def test_the_new_stake_is_told_to_everybody_and_the_statement_has_a_line(ledger: LedgerHarness) -> None:
    ledger.must(t.WORKER_EJECTED, make_ejection(ledger.network))
    emissions = ledger.drain()
    (posted,) = [one.body for one in emissions if isinstance(one.body, m.StakePostedV1)]
    (bond,) = [one.body for one in emissions if isinstance(one.body, m.BondTakenV1)]
    assert (posted.stake_micro, posted.entry) == (FUNDS - FUNDS // 2, bond.entry)
    query = m.StatementQueryV1(participant=WORKER.participant_id)
    reply = ledger.ask(t.STATEMENT_QUERY, query, m.StatementReplyV1, WORKER)
    assert isinstance(reply, m.StatementReplyV1)
    last = reply.lines[-1]
    assert (last.operation, last.amount_micro, last.cause) == ("bond", -(FUNDS // 2), bond.ejection)


def test_once_however_often_it_is_said(ledger: LedgerHarness) -> None:
    """Delivered again, and said again in other words."""
    assert len(eject(ledger)) == 1
    assert ledger.last is not None
    assert ledger.apply(ledger.last).action == "ack"
    assert eject(ledger, job_count=5) == []
    assert ledger.totals().treasury_micro == FUNDS // 2


def test_two_models_are_two_bonds(ledger: LedgerHarness) -> None:
    """The second is of what the first has left."""
    eject(ledger)
    (bond,) = eject(ledger, model_id=b"\x09" * 32)
    left = FUNDS - FUNDS // 2
    assert describe(bond) == (left, left // 2, left // 2, 0)


def test_what_unbonds_is_reached(ledger: LedgerHarness) -> None:
    """Asking for one's stake does not save it, nor does the tick at which it would have left."""
    assert ledger.withdraw(WORKER, "stake", FUNDS - 10).action == "ack"
    ledger.pass_rounds(UNBONDING_TICKS - 1)
    ledger.drain()
    (bond,) = eject(ledger)
    assert describe(bond) == (FUNDS, FUNDS // 2, FUNDS // 2, 0)
    assert ledger.money(WORKER) == Money(FUNDS, 0, 0, FUNDS - FUNDS // 2)
    ledger.pass_rounds()
    (paid,) = ledger.outbox_of(t.WITHDRAWAL_PAID)
    assert (paid.amount_micro, paid.slashed_micro) == (FUNDS - FUNDS // 2, FUNDS // 2 - 10)


def lock_all(ledger: LedgerHarness) -> tuple[Job, int]:
    """Have the worker's whole stake locked in a job: what is not was withdrawn and paid long ago."""
    job = Job(ledger.network)
    locked = job.generator_stake().amount_micro
    assert ledger.withdraw(WORKER, "stake", FUNDS - locked).action == "ack"
    ledger.pass_rounds(UNBONDING_TICKS + 1)
    ledger.commit(job)
    ledger.drain()
    return job, locked


def test_what_is_locked_is_taken_when_it_comes_free(ledger: LedgerHarness) -> None:
    """The surplus of the recorded commitment is free already; the rest after the job, with the next round."""
    job, locked = lock_all(ledger)
    free = ledger.money(WORKER).stake
    assert 0 < free < locked // 2
    (bond,) = eject(ledger)
    assert describe(bond) == (locked, locked // 2, free, locked // 2 - free)
    ledger.pass_rounds()
    assert ledger.outbox_of(t.BOND_TAKEN) == [], "it is locked still"
    ledger.must(t.WINDOW_CLOSED, job.window_closed())
    ledger.pass_rounds()
    (rest,) = ledger.outbox_of(t.BOND_TAKEN)
    assert describe(rest) == (locked, locked // 2, locked // 2 - free, 0)
    assert rest.entry > bond.entry
    assert ledger.money(WORKER).stake == locked - locked // 2
    assert ledger.totals().treasury_micro == locked // 2


def test_what_the_jobs_have_taken_is_let_go(ledger: LedgerHarness) -> None:
    """A conviction takes the locked stake: of the bond nothing is left to take, and a later deposit is not touched."""
    job, locked = lock_all(ledger)
    (bond,) = eject(ledger)
    taken = bond.taken_micro
    ledger.must(t.OUTCOME_DECIDED, job.outcome("equivocation"))
    before = ledger.totals().treasury_micro
    ledger.drain()
    ledger.pass_rounds()
    (last,) = ledger.outbox_of(t.BOND_TAKEN)
    assert (last.taken_micro, last.open_micro, last.entry) == (0, 0, 0)
    ledger.fund(WORKER, stake=FUNDS, reference="later")
    ledger.pass_rounds(2)
    assert ledger.money(WORKER).stake == FUNDS
    assert ledger.totals().treasury_micro == before
    assert taken < locked // 2


def test_a_restart_goes_on_with_what_is_open(network: Network, tmp_path: Path) -> None:
    ledger = make_ledger(network, f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.fund(make_key("user"), available=FUNDS)
    ledger.fund(WORKER, available=FUNDS, stake=FUNDS)
    job, locked = lock_all(ledger)
    (bond,) = eject(ledger)
    ledger.must(t.WINDOW_CLOSED, job.window_closed())
    ledger.close()
    ledger.open()
    ledger.pass_rounds()
    (rest,) = ledger.outbox_of(t.BOND_TAKEN)
    assert bond.taken_micro + rest.taken_micro == locked // 2
    ledger.totals()
    ledger.close()


def test_a_worker_without_stake_owes_nothing(ledger: LedgerHarness) -> None:
    (bond,) = eject(ledger, participant=make_key("user").participant_id)
    assert describe(bond) == (0, 0, 0, 0)
    assert ledger.money(make_key("user")).available == FUNDS


def test_a_network_that_ejects_nobody_takes_no_bond() -> None:
    """What its genesis does not have, no message brings; the ledger goes on."""
    harness = make_ledger(make_network(**SECTIONS))
    harness.fund(WORKER, stake=FUNDS)
    harness.drain()
    assert harness.deliver(t.WORKER_EJECTED, make_ejection(harness.network)).action == "term"
    assert "ejects nobody" in harness.refusal().reason
    assert harness.money(WORKER).stake == FUNDS
    harness.close()


class _Older(LedgerService):
    """A ledger of before there were ejections."""

    def handlers(self) -> Mapping[t.Topic[Any], Handler]:
        return {topic: one for topic, one in super().handlers().items() if topic is not t.WORKER_EJECTED}


def test_an_older_ledger_does_not_halt(network: Network) -> None:
    """It refuses what it does not know, and takes what comes next."""
    service = _Older(genesis=network.genesis, models=network.models)
    harness = LedgerHarness(service, network, prepare=make_ledger(network).prepare)
    assert harness.deliver(t.WORKER_EJECTED, make_ejection(network)).action == "term"
    harness.fund(WORKER, stake=FUNDS)
    assert harness.money(WORKER).stake == FUNDS
    harness.close()


def test_only_the_pool_ejects(ledger: LedgerHarness) -> None:
    key = ledger.network.keys[Role.ROUTER]
    assert ledger.deliver(t.WORKER_EJECTED, make_ejection(ledger.network), key).action == "term"
    assert ledger.money(WORKER).stake == FUNDS
