"""Settlement: surplus, payouts by every row of the rules, refunds and fees; once, to the last micro-unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kit.jobs import Job
from kit.ledger import FUNDS, LedgerHarness, Money, make_ledger
from kit.network import Network, make_key, make_network
from pocache.protocol.keys import SigningKey
from pocache.protocol.payoff import UnifiedPool
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.model import WireModel
from pocache_ledger.tables import ACCOUNTS, POSTINGS

USER, WORKER = make_key("user"), make_key("worker")
V1, V2, V3 = (make_key(f"verifier-{stage}") for stage in (1, 2, 3))
EVERYBODY = (USER, WORKER, V1, V2, V3)


def settled(ledger: LedgerHarness) -> m.PayoutSettledV1:
    """Return the one settlement that was announced, its lines checked against its pool."""
    (body,) = ledger.outbox_of(t.PAYOUT_SETTLED)
    assert sum(line.amount_micro for line in body.lines) == body.pool_micro
    assert sum(line.held_micro for line in body.lines) == body.pool_micro
    return body


def gains(ledger: LedgerHarness, *keys: SigningKey) -> list[int]:
    """Return what each of them has more than at the start, nothing being locked any more."""
    moneys = [ledger.money(key) for key in keys]
    assert all(money.locked == 0 for money in moneys)
    return [
        money.total - (FUNDS if key is USER else 2 * FUNDS) for key, money in zip(keys, moneys, strict=True)
    ]


def refused_without_trace(ledger: LedgerHarness, topic: t.Topic[Any], body: WireModel) -> str:
    """Deliver what is refused, check that it changed nothing, and return the code."""
    ledger.drain()
    before = ledger.dump()
    assert ledger.deliver(topic, body).action == "term"
    assert ledger.dump() == before
    return ledger.refusal().code


def test_a_commitment_returns_the_surplus_at_once(ledger: LedgerHarness, job: Job) -> None:
    """What the job cannot cost any more is free again."""
    ledger.commit(job)
    assert job.products.deposit < job.products_max.deposit
    kept, stake = job.products.deposit, job.products.generator_stake
    assert ledger.money(USER) == Money(FUNDS - kept, 0, kept)
    assert ledger.money(WORKER) == Money(FUNDS, FUNDS - stake, stake)
    posted = ledger.outbox_of(t.STAKE_POSTED)
    assert (posted[-1].stake_micro, posted[-1].free_micro) == (FUNDS, FUNDS - stake)


def test_no_challenge(ledger: LedgerHarness, job: Job) -> None:
    """The generator earns αCg, the user gets αCv back; the stake is a stake again."""
    ledger.commit(job)
    ledger.drain()
    ledger.must(t.WINDOW_CLOSED, job.window_closed())
    earned = job.products.a_cg
    assert ledger.money(USER) == Money(FUNDS - earned, 0, 0)
    assert ledger.money(WORKER) == Money(FUNDS + earned, FUNDS, 0)
    body = settled(ledger)
    assert (body.case, body.attempt, body.slashed) == ("no_challenge", 1, ())
    assert (body.generation_micro, body.verification_micro) == (
        job.generation_cost(),
        job.verification_cost(),
    )
    assert body.pool_micro == job.products.deposit + job.products.generator_stake


def test_agreement(ledger: LedgerHarness, job: Job) -> None:
    """The verifier earns αCv, which the user pays."""
    ledger.commit(job, V1)
    ledger.drain()
    ledger.must(t.OUTCOME_DECIDED, job.outcome("agree", (V1,)))
    products = job.products
    assert gains(ledger, USER, WORKER, V1) == [-products.deposit, products.a_cg, products.a_cv]
    assert ledger.money(V1) == Money(FUNDS + products.a_cv, FUNDS, 0)
    assert settled(ledger).slashed == ()


def test_a_partial_corner_pays_for_what_was_looked_at(ledger: LedgerHarness, job: Job) -> None:
    """Cv is that of the corner; what was held for full depth beyond it goes back first."""
    ledger.commit(job, V1)
    ledger.drain()
    corner = job.corner(layer_max=0, position_max=job.leaf_count - 3)
    ledger.must(t.OUTCOME_DECIDED, job.outcome("agree", (V1,), corner=corner))
    cost = job.verification_cost(0, job.leaf_count - 3)
    rules = ledger.network.genesis.rule_set
    assert isinstance(rules, UnifiedPool)
    earned = rules.alpha.floor_of(cost)
    assert 0 < earned < job.products.a_cv
    assert gains(ledger, USER, WORKER, V1) == [-job.products.a_cg - earned, job.products.a_cg, earned]
    body = settled(ledger)
    assert body.verification_micro == cost


def test_the_second_verifier_confirms_the_generator(ledger: LedgerHarness, job: Job) -> None:
    """The first one loses its whole stake to the second."""
    ledger.commit(job, V1, V2)
    ledger.drain()
    ledger.must(t.OUTCOME_DECIDED, job.outcome("confirm_generator", (V1, V2)))
    products = job.products
    stake = products.verifier_stake
    assert gains(ledger, USER, WORKER, V1, V2) == [
        -products.deposit,
        products.a_cg,
        -stake,
        products.a_cv + stake,
    ]
    assert ledger.money(V1).stake == FUNDS - stake
    assert ledger.money(V2) == Money(FUNDS + products.a_cv + stake, FUNDS, 0)
    assert settled(ledger).slashed == (V1.participant_id,)


def test_a_later_verifier_confirms_an_earlier_one(ledger: LedgerHarness, job: Job) -> None:
    """The generator is slashed, the user refunded, who stood alone loses."""
    ledger.commit(job, V1, V2, V3)
    ledger.drain()
    ledger.must(t.OUTCOME_DECIDED, job.outcome("confirm_prior", (V1, V2, V3), prior=V1))
    products = job.products
    stake = products.verifier_stake
    deciding = products.generator_stake + 2 * stake - products.a_cv - stake
    assert gains(ledger, *EVERYBODY) == [0, -products.generator_stake, products.a_cv, -stake, deciding]
    assert ledger.money(WORKER) == Money(FUNDS, FUNDS - products.generator_stake, 0)
    body = settled(ledger)
    assert body.slashed == (WORKER.participant_id, V2.participant_id)
    losses = {line.account: (line.held_micro, line.amount_micro) for line in body.lines}
    assert losses[WORKER.participant_id] == (products.generator_stake, 0)


def test_void_returns_everything_but_a_silent_verifiers_stake(ledger: LedgerHarness, job: Job) -> None:
    """The user has that one: it waited in vain."""
    ledger.commit(job, V1, V2)
    ledger.drain()
    ledger.must(t.OUTCOME_DECIDED, job.outcome("void", (V1, V2), silent=(V2,)))
    stake = job.products.verifier_stake
    assert gains(ledger, USER, WORKER, V1, V2) == [stake, 0, 0, -stake]
    assert settled(ledger).slashed == (V2.participant_id,)


def test_void_before_any_verifier(ledger: LedgerHarness, job: Job) -> None:
    """Nobody to draw: everything back."""
    ledger.commit(job)
    ledger.must(t.OUTCOME_DECIDED, job.outcome("void"))
    assert gains(ledger, USER, WORKER) == [0, 0]


def test_a_generator_that_does_not_open_pays_who_did(ledger: LedgerHarness, job: Job) -> None:
    """Its stake and the silent verifier's are the openers'."""
    ledger.commit(job, V1, V2)
    ledger.drain()
    ledger.must(t.OUTCOME_DECIDED, job.outcome("no_opening", (V1, V2), silent=(V1,)))
    products = job.products
    won = products.generator_stake + products.verifier_stake
    assert gains(ledger, USER, WORKER, V1, V2) == [
        0,
        -products.generator_stake,
        -products.verifier_stake,
        won,
    ]
    assert settled(ledger).slashed == (WORKER.participant_id, V1.participant_id)


def test_equivocation_pays_the_treasury(ledger: LedgerHarness, job: Job) -> None:
    """The evidence needs no verifier; theirs is returned."""
    ledger.commit(job, V1)
    ledger.drain()
    ledger.must(t.OUTCOME_DECIDED, job.outcome("equivocation", (V1,)))
    products = job.products
    assert gains(ledger, USER, WORKER, V1) == [0, -products.generator_stake, 0]
    assert ledger.totals().treasury_micro == products.generator_stake
    lines = {line.account: line.amount_micro for line in settled(ledger).lines}
    assert lines["treasury"] == products.generator_stake


def test_a_verifier_whom_the_outcome_does_not_name_has_its_stake_back(
    ledger: LedgerHarness, job: Job
) -> None:
    """Its hold was placed while the outcome was being decided."""
    ledger.commit(job, V1, V2)
    ledger.drain()
    ledger.must(t.OUTCOME_DECIDED, job.outcome("agree", (V1,)))
    assert gains(ledger, V1, V2) == [job.products.a_cv, 0]
    settled(ledger)


def test_every_case_empties_and_closes_the_pool(ledger: LedgerHarness, job: Job) -> None:
    """The account is there, closed, with nothing in it; nothing is held for the job any more."""
    ledger.commit(job, V1)
    ledger.must(t.OUTCOME_DECIDED, job.outcome("agree", (V1,)))
    with ledger.store.begin() as connection:
        pool = connection.execute(
            sa.select(ACCOUNTS).where(ACCOUNTS.c.name == f"pool:{job.job_id.hex()}")
        ).one()
    assert (pool.balance_micro, pool.is_closed) == (0, True)
    totals = ledger.totals()
    assert (totals.open_pool_count, totals.open_pools_micro) == (0, 0)


def test_a_job_is_paid_once(ledger: LedgerHarness, job: Job) -> None:
    """Whatever comes after the settlement is told in the log and moves nothing."""
    ledger.commit(job, V1)
    ledger.must(t.OUTCOME_DECIDED, job.outcome("agree", (V1,)))
    ledger.drain()
    before = ledger.dump()
    ledger.must(t.OUTCOME_DECIDED, job.outcome("void", (V1,)))
    ledger.must(t.OUTCOME_DECIDED, job.outcome("equivocation"))
    ledger.must(t.WINDOW_CLOSED, job.window_closed())
    ledger.must(t.JOB_ABANDONED, job.abandoned())
    ledger.must(t.COMMITMENT_RECORDED, job.committed().model_copy(update={"log_index": 9}))
    assert ledger.outbox() == []
    assert ledger.dump() == before


def test_a_hold_for_a_settled_job_is_refused(ledger: LedgerHarness, job: Job) -> None:
    """The next stage's request crossed the outcome."""
    ledger.commit(job, V1)
    ledger.must(t.OUTCOME_DECIDED, job.outcome("agree", (V1,)))
    ledger.drain()
    ledger.hold(job.verifier_stake(2, V2))
    (refused,) = ledger.outbox_of(t.HOLD_REFUSED)
    assert refused.code == "E206"
    assert ledger.money(V2) == Money(FUNDS, FUNDS, 0)


def test_an_outcome_waits_for_the_commitment(ledger: LedgerHarness, job: Job) -> None:
    """Delivered again until it is there; refused once it can be taken for lost."""
    assert ledger.deliver(t.OUTCOME_DECIDED, job.outcome("void")).action == "nak"
    ledger.admit(job)
    outcome = ledger.last
    assert ledger.deliver(t.WINDOW_CLOSED, job.window_closed()).action == "nak"
    window = ledger.last
    ledger.hold(job.generator_stake())
    assert outcome is not None
    assert window is not None
    ledger.must(t.COMMITMENT_RECORDED, job.committed())
    assert ledger.apply(window).action == "ack"
    assert gains(ledger, USER, WORKER) == [-job.products.a_cg, job.products.a_cg]


@pytest.mark.parametrize("is_admitted", [True, False])
def test_an_outcome_of_nothing_is_refused_in_the_end(
    ledger: LedgerHarness, job: Job, is_admitted: bool
) -> None:
    """No job, or no commitment, after as many rounds as the ledger is patient."""
    if is_admitted:
        ledger.admit(job)
        ledger.drain()
    assert ledger.deliver(t.OUTCOME_DECIDED, job.outcome("void")).action == "nak"
    outcome = ledger.last
    assert outcome is not None
    ledger.pass_rounds(3)
    assert ledger.apply(outcome).action == "term"
    assert ledger.refusal().code == "E207"


def test_outcomes_that_contradict_what_is_held_are_refused(ledger: LedgerHarness, job: Job) -> None:
    """Another attempt, a corner outside the commitment, a verifier without a stake, no row of the rules."""
    ledger.commit(job, V1)
    good = job.outcome("agree", (V1,))
    far = job.corner(layer_max=1, position_max=job.leaf_count)
    deep = job.corner(layer_max=2, position_max=1)
    stranger = good.verifiers[0].model_copy(update={"participant": V2.participant_id})
    for outcome, code in (
        (good.model_copy(update={"attempt": 2}), "E402"),
        (good.model_copy(update={"corner": far}), "E402"),
        (good.model_copy(update={"corner": deep}), "E402"),
        (good.model_copy(update={"verifiers": (stranger,), "deciding": V2.participant_id}), "E402"),
        (good.model_copy(update={"deciding": None}), "E401"),
        (good.model_copy(update={"case": "confirm_prior"}), "E401"),
    ):
        assert refused_without_trace(ledger, t.OUTCOME_DECIDED, outcome) == code
    ledger.must(t.OUTCOME_DECIDED, good)
    assert gains(ledger, V1) == [job.products.a_cv]


def test_a_window_of_another_attempt_settles_nothing(ledger: LedgerHarness, job: Job) -> None:
    """Only the recorded attempt's."""
    ledger.commit(job)
    other = job.window_closed().model_copy(update={"attempt": 2})
    assert refused_without_trace(ledger, t.WINDOW_CLOSED, other) == "E402"


def test_commitments_that_are_not_the_stakeholders_are_refused(
    ledger: LedgerHarness, network: Network
) -> None:
    """Another generator, another attempt, more tokens than admitted, a result of another job."""
    job = Job(network)
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    longer = Job(network, output_count=job.token_count_max + 1)
    foreign = Job(network, generator_name="verifier-1")
    other = Job(network, name="other")
    for body, code in (
        (job.committed().model_copy(update={"generator": V1.participant_id}), "E102"),
        (job.committed().model_copy(update={"result": other.result()}), "E102"),
        (job.committed().model_copy(update={"attempt": 2}), "E102"),
        (Job(network, attempt=2).committed(), "E402"),
        (longer.committed(), "E402"),
    ):
        assert body.job_id == job.job_id
        assert refused_without_trace(ledger, t.COMMITMENT_RECORDED, body) == code
    ledger.must(t.COMMITMENT_RECORDED, job.committed())
    assert refused_without_trace(ledger, t.COMMITMENT_RECORDED, foreign.committed()) == "E208"


def test_a_commitment_without_its_own_stake_is_refused(ledger: LedgerHarness, network: Network) -> None:
    """The stake is another worker's."""
    job = Job(network)
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    foreign = Job(network, generator_name="verifier-1")
    assert refused_without_trace(ledger, t.COMMITMENT_RECORDED, foreign.committed()) == "E402"


def test_a_lapsed_attempt_costs_the_fee(ledger: LedgerHarness, job: Job, network: Network) -> None:
    """The rest of the stake is free again; the next attempt is another worker's, and is settled as ever."""
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    ledger.must(t.ATTEMPT_CHARGED, job.charged())
    fee = network.genesis.rules.lease_fee_micro
    assert ledger.money(WORKER) == Money(FUNDS, FUNDS - fee, 0)
    assert ledger.totals().treasury_micro == fee
    again = Job(network, attempt=2, generator_name="verifier-1")
    ledger.hold(again.generator_stake())
    ledger.must(t.COMMITMENT_RECORDED, again.committed())
    ledger.must(t.WINDOW_CLOSED, again.window_closed())
    assert gains(ledger, WORKER, V1) == [-fee, job.products.a_cg]


@pytest.mark.parametrize("missing", [-1, 0, 1], ids=["more", "exactly", "less"])
def test_the_fee_is_at_most_the_stake(missing: int) -> None:
    """What is held, then what is free; never what is available."""
    network = make_network(rules={"lease_fee_micro": FUNDS})
    ledger = make_ledger(network)
    local = Job(network)
    ledger.fund(USER, available=FUNDS)
    ledger.fund(WORKER, available=FUNDS, stake=FUNDS - missing)
    ledger.admit(local)
    ledger.hold(local.generator_stake())
    ledger.must(t.ATTEMPT_CHARGED, local.charged())
    assert ledger.money(WORKER) == Money(FUNDS, max(0, -missing), 0)
    assert ledger.totals().treasury_micro == FUNDS - max(0, missing)
    ledger.close()


def test_an_attempt_is_charged_once_and_only_its_own_worker(ledger: LedgerHarness, job: Job) -> None:
    """Another worker, another attempt, a committed one: refused. The same attempt again: nothing."""
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    for change in ({"generator": V1.participant_id}, {"attempt": 2}):
        assert (
            refused_without_trace(ledger, t.ATTEMPT_CHARGED, job.charged().model_copy(update=change))
            == "E402"
        )
    ledger.must(t.COMMITMENT_RECORDED, job.committed())
    assert refused_without_trace(ledger, t.ATTEMPT_CHARGED, job.charged()) == "E402"


def test_a_charged_worker_cannot_take_the_attempt_again(ledger: LedgerHarness, job: Job) -> None:
    """An attempt that ended is over, for everybody."""
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    ledger.must(t.ATTEMPT_CHARGED, job.charged())
    ledger.drain()
    for key in (WORKER, V1):
        ledger.hold(
            job.generator_stake().model_copy(update={"party": key.participant_id, "amount_micro": FUNDS})
        )
    assert [body.code for body in ledger.outbox_of(t.HOLD_REFUSED)] == ["E206", "E206"]


def test_an_abandoned_job_is_refunded(ledger: LedgerHarness, job: Job) -> None:
    """Everybody has everything back, no fee, and the settlement says so."""
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    ledger.drain()
    ledger.must(t.JOB_ABANDONED, job.abandoned())
    assert ledger.money(USER) == Money(FUNDS, 0, 0)
    assert ledger.money(WORKER) == Money(FUNDS, FUNDS, 0)
    body = settled(ledger)
    assert (body.case, body.slashed) == ("refunded", ())
    assert ledger.totals().open_pool_count == 0


def test_a_job_abandoned_before_its_escrow_closes_too(ledger: LedgerHarness, job: Job) -> None:
    """Nothing was held; an escrow that comes late is refused."""
    ledger.must(t.JOB_ADMITTED, job.admitted())
    ledger.must(t.JOB_ABANDONED, job.abandoned())
    assert settled(ledger).pool_micro == 0
    ledger.hold(job.escrow())
    assert ledger.outbox_of(t.HOLD_REFUSED)[0].code == "E206"


def test_a_committed_job_cannot_be_abandoned(ledger: LedgerHarness, job: Job) -> None:
    """Its generator did the work."""
    ledger.commit(job)
    assert refused_without_trace(ledger, t.JOB_ABANDONED, job.abandoned()) == "E208"


def test_every_message_delivered_again_changes_nothing(ledger: LedgerHarness, job: Job) -> None:
    """Redelivery at any point of a job's life, and of everything at its end."""
    ledger.commit(job, V1, V2)
    deliveries = []
    original = ledger.apply

    def record(delivery: object) -> object:
        deliveries.append(delivery)
        return original(delivery)  # type: ignore[arg-type]

    ledger.apply = record  # type: ignore[method-assign, assignment]
    ledger.must(t.OUTCOME_DECIDED, job.outcome("confirm_generator", (V1, V2)))
    ledger.drain()
    before = ledger.dump()
    for delivery in deliveries:
        assert original(delivery).action == "ack"  # type: ignore[arg-type]
    assert ledger.dump() == before
    assert ledger.outbox() == []


def test_a_restarted_ledger_goes_on_where_it_was(network: Network, job: Job, tmp_path: Path) -> None:
    """Opened again from its file before every step, it ends with the same totals as one that ran through."""
    ledger = make_ledger(network, f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    straight = make_ledger(network)
    for one in (ledger, straight):
        one.fund(USER, available=FUNDS)
        for key in (WORKER, V1, V2):
            one.fund(key, stake=FUNDS)
    steps = (
        (t.JOB_ADMITTED, job.admitted()),
        (t.ROUTER_HOLD_REQUESTED, job.escrow()),
        (t.ROUTER_HOLD_REQUESTED, job.generator_stake()),
        (t.COMMITMENT_RECORDED, job.committed()),
        (t.VERIFIER_HOLD_REQUESTED, job.verifier_stake(1, V1)),
        (t.VERIFIER_HOLD_REQUESTED, job.verifier_stake(2, V2)),
        (t.OUTCOME_DECIDED, job.outcome("confirm_prior", (V1, V2), prior=V1)),
    )
    for topic, body in steps:
        ledger.close()
        ledger.open()
        ledger.must(topic, body)
        straight.must(topic, body)
        redelivered = ledger.last
        assert redelivered is not None
        ledger.close()
        ledger.open()
        assert ledger.apply(redelivered).action == "ack"
        assert ledger.totals() == straight.totals()
        assert ledger.dump() == straight.dump()
    assert ledger.money(USER) == Money(FUNDS, 0, 0)
    ledger.close()
    straight.close()


def test_balances_are_told_to_their_owner_and_the_operator_only(ledger: LedgerHarness) -> None:
    """Anybody else learns nothing."""
    question = m.BalanceQueryV1(participant=USER.participant_id)
    for key in (USER, None):
        signer = key or ledger.network.keys[t.Role.OPERATOR]
        reply = ledger.ask(t.BALANCE_QUERY, question, m.BalanceReplyV1, signer)
        assert isinstance(reply, m.BalanceReplyV1)
        assert reply.available_micro == FUNDS
    for signer, tokens in ((WORKER, {}), (WORKER, {"participant": WORKER.participant_id})):
        refused = ledger.ask(t.BALANCE_QUERY, question, m.BalanceReplyV1, signer, **tokens)
        assert isinstance(refused, m.RefusalV1)
        assert refused.code == ("E102" if tokens else "E209")


def test_totals_are_the_operators(ledger: LedgerHarness) -> None:
    """And say when the journal is broken."""
    refused = ledger.ask(t.TOTALS_QUERY, m.TotalsQueryV1(), m.TotalsReplyV1, USER)
    assert isinstance(refused, m.RefusalV1)
    assert refused.code == "E102"
    assert ledger.totals().deposited_micro == 9 * FUNDS
    with ledger.store.begin() as connection:
        connection.execute(sa.update(POSTINGS).where(POSTINGS.c.number == 1).values(amount_micro=1))
    reply = ledger.ask(t.TOTALS_QUERY, m.TotalsQueryV1(), m.TotalsReplyV1)
    assert isinstance(reply, m.TotalsReplyV1)
    assert not reply.journal_intact
