"""Deposits and holds: what locks money, what is refused with which code, and that a refusal moves nothing."""

from __future__ import annotations

import pytest

from kit.jobs import Job
from kit.ledger import FUNDS, LedgerHarness, Money
from kit.network import Network, make_key
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role
from pocache_ledger.service import LedgerService

USER, WORKER = make_key("user"), make_key("worker")
FIRST, SECOND = make_key("verifier-1"), make_key("verifier-2")


def refused_with(ledger: LedgerHarness, request: m.HoldRequestV1) -> str:
    """Ask for a hold that is refused, check that nothing but the answer happened, and return the code."""
    before = ledger.dump()
    assert ledger.hold(request).action == "ack"
    ((topic, body),) = ledger.outbox()
    assert topic is t.HOLD_REFUSED
    assert isinstance(body, m.HoldRefusedV1)
    echoed = {"purpose", "job_id", "attempt", "stage", "party", "publication"}
    assert body.model_dump(include=echoed) == request.model_dump(include=echoed)
    assert body.reason
    assert ledger.dump() == before
    return body.code


def test_deposits_are_credited_and_stakes_announced(ledger: LedgerHarness) -> None:
    """Available money is private; a stake is what sortition draws by."""
    key = make_key("newcomer")
    ledger.fund(key, available=5, stake=7)
    assert ledger.money(key) == Money(5, 7, 0)
    (posted,) = ledger.outbox_of(t.STAKE_POSTED)
    assert (posted.participant, posted.stake_micro, posted.free_micro) == (key.participant_id, 7, 7)


def test_a_deposit_reference_counts_once(ledger: LedgerHarness) -> None:
    """The same deposit again is a no-op, another one under its reference is refused."""
    ledger.fund(USER, available=5, reference="wire 1")
    before = ledger.dump()
    ledger.fund(USER, available=5, reference="wire 1")
    assert ledger.dump() == before
    other = m.DepositV1(
        participant=USER.participant_id,
        bucket="available",
        amount_micro=6,
        reference=f"wire 1 available of {USER.participant_id}",
    )
    assert ledger.deliver(t.DEPOSITED, other).action == "term"
    assert ledger.refusal().code == "E208"
    assert ledger.dump() == before


def test_only_the_operator_deposits(ledger: LedgerHarness) -> None:
    """A participant cannot credit itself."""
    body = m.DepositV1(participant=USER.participant_id, bucket="available", amount_micro=5, reference="mine")
    assert ledger.deliver(t.DEPOSITED, body, USER).action == "term"
    assert ledger.refusal().code == "E102"
    assert ledger.money(USER) == Money(FUNDS, 0, 0)


def test_an_escrow_is_locked_in_the_pool_of_the_job(ledger: LedgerHarness, job: Job) -> None:
    """From available to locked, and the router is told."""
    ledger.admit(job)
    deposit = job.products_max.deposit
    assert deposit > 0
    assert ledger.money(USER) == Money(FUNDS - deposit, 0, deposit)
    ((topic, body),) = ledger.outbox()
    assert topic is t.HOLD_PLACED
    assert isinstance(body, m.HoldPlacedV1)
    assert (body.party, body.amount_micro) == (USER.participant_id, deposit)
    totals = ledger.totals()
    assert (totals.open_pool_count, totals.open_pools_micro) == (1, deposit)


def test_a_stake_is_locked_and_announced(ledger: LedgerHarness, job: Job) -> None:
    """The whole stake stays, its free part shrinks."""
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    stake = job.products_max.generator_stake
    assert ledger.money(WORKER) == Money(FUNDS, FUNDS - stake, stake)
    emitted = dict(ledger.outbox())
    posted = emitted[t.STAKE_POSTED]
    assert isinstance(posted, m.StakePostedV1)
    assert (posted.stake_micro, posted.free_micro) == (FUNDS, FUNDS - stake)


def test_equal_stakes_at_different_times_are_different_messages(ledger: LedgerHarness, job: Job) -> None:
    """Lock and release: the same numbers again must not pass for a repetition of the first announcement."""
    ledger.fund(WORKER, stake=1, reference="more")
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    ledger.must(t.JOB_ABANDONED, job.abandoned())
    posted = [one for one in ledger.drain() if one.topic is t.STAKE_POSTED]
    assert posted[0].body.model_dump(exclude={"entry"}) == posted[-1].body.model_dump(exclude={"entry"})
    assert len({one.envelope_id for one in posted}) == 3


def test_an_unknown_account_is_refused(ledger: LedgerHarness, network: Network) -> None:
    """Somebody who never deposited."""
    job = Job(network, user_name="stranger")
    ledger.must(t.JOB_ADMITTED, job.admitted())
    assert refused_with(ledger, job.escrow().model_copy(update={"publication": 2})) == "E204"


def test_a_balance_too_short_is_refused(ledger: LedgerHarness, network: Network) -> None:
    """One micro-unit is missing; with enough, to the last one, the hold is placed."""
    job = Job(network, user_name="poor")
    ledger.fund(make_key("poor"), available=job.products_max.deposit - 1)
    ledger.must(t.JOB_ADMITTED, job.admitted())
    assert refused_with(ledger, job.escrow()) == "E204"
    ledger.fund(make_key("poor"), available=1, reference="rest")
    ledger.hold(job.escrow().model_copy(update={"publication": 2}))
    assert ledger.money(make_key("poor")) == Money(0, 0, job.products_max.deposit)


def test_a_request_published_again_is_answered_again(ledger: LedgerHarness, job: Job) -> None:
    """It locks nothing more, and who asked is not left waiting."""
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    ledger.drain()
    before = ledger.dump()
    ledger.hold(job.generator_stake().model_copy(update={"publication": 3}))
    ((topic, body),) = ledger.outbox()
    assert topic is t.HOLD_PLACED
    assert isinstance(body, m.HoldPlacedV1)
    assert (body.publication, body.party) == (3, WORKER.participant_id)
    assert ledger.dump() == before


def test_a_stake_is_not_taken_from_available_money(ledger: LedgerHarness, network: Network) -> None:
    """Who deposited to spend has no stake."""
    ledger.fund(make_key("rich"), available=FUNDS)
    job = Job(network, generator_name="rich")
    ledger.admit(job)
    ledger.drain()
    assert refused_with(ledger, job.generator_stake()) == "E204"


@pytest.mark.parametrize("purpose", ["escrow", "generator_stake", "verifier_stake"])
def test_a_hold_below_what_the_rules_need_is_refused(ledger: LedgerHarness, job: Job, purpose: str) -> None:
    """A pool that could not be settled is not begun."""
    if purpose == "escrow":
        ledger.must(t.JOB_ADMITTED, job.admitted())
        request = job.escrow()
    elif purpose == "generator_stake":
        ledger.admit(job)
        request = job.generator_stake()
    else:
        ledger.commit(job)
        request = job.verifier_stake(1, FIRST)
    ledger.drain()
    short = request.model_copy(update={"amount_micro": request.amount_micro - 1})
    assert refused_with(ledger, short) == "E402"


def test_an_escrow_is_the_users(ledger: LedgerHarness, job: Job) -> None:
    """Nobody else's money pays for a job."""
    ledger.must(t.JOB_ADMITTED, job.admitted())
    other = job.escrow().model_copy(update={"party": WORKER.participant_id})
    assert refused_with(ledger, other) == "E209"


@pytest.mark.parametrize("change", [{"attempt": 2}, {"stage": 1}])
def test_a_job_has_one_escrow(ledger: LedgerHarness, job: Job, change: dict[str, int]) -> None:
    """Not one per attempt or stage."""
    ledger.admit(job)
    ledger.drain()
    assert refused_with(ledger, job.escrow().model_copy(update=change)) == "E402"


def test_no_stake_without_an_escrow(ledger: LedgerHarness, job: Job) -> None:
    """A worker's stake is not locked for a job that nobody pays."""
    ledger.must(t.JOB_ADMITTED, job.admitted())
    assert refused_with(ledger, job.generator_stake()) == "E402"


def test_an_attempt_has_one_generator(ledger: LedgerHarness, job: Job) -> None:
    """The second worker is refused, the first one's stake stays."""
    ledger.admit(job)
    ledger.hold(job.generator_stake())
    ledger.drain()
    other = job.generator_stake().model_copy(update={"party": FIRST.participant_id})
    assert refused_with(ledger, other) == "E208"


def test_a_generator_stands_at_stage_zero(ledger: LedgerHarness, job: Job) -> None:
    """Stages are verifiers'."""
    ledger.admit(job)
    ledger.drain()
    assert refused_with(ledger, job.generator_stake().model_copy(update={"stage": 1})) == "E402"


def test_no_further_attempt_after_a_commitment(ledger: LedgerHarness, job: Job) -> None:
    """The job has its result."""
    ledger.commit(job)
    ledger.drain()
    late = job.generator_stake().model_copy(update={"attempt": 2, "party": FIRST.participant_id})
    assert refused_with(ledger, late) == "E206"


def test_a_verifier_is_neither_the_generator_nor_there_already(ledger: LedgerHarness, job: Job) -> None:
    """One party, one part: the settlement has no row for two."""
    ledger.commit(job, FIRST)
    ledger.drain()
    assert refused_with(ledger, job.verifier_stake(2, WORKER)) == "E208"
    assert refused_with(ledger, job.verifier_stake(2, FIRST)) == "E208"
    assert refused_with(ledger, job.verifier_stake(1, SECOND)) == "E208"


def test_a_verifier_of_another_attempt_or_beyond_the_last_stage_is_refused(
    ledger: LedgerHarness, job: Job
) -> None:
    """Only the recorded commitment is verified, and only so often."""
    ledger.commit(job)
    ledger.drain()
    request = job.verifier_stake(1, FIRST)
    assert refused_with(ledger, request.model_copy(update={"attempt": 2})) == "E207"
    assert refused_with(ledger, request.model_copy(update={"stage": 0})) == "E402"
    stage_max = ledger.network.genesis.rule_set.seat_max
    assert refused_with(ledger, request.model_copy(update={"stage": stage_max + 1})) == "E402"
    assert ledger.hold(request.model_copy(update={"stage": stage_max})).action == "ack"
    assert [topic for topic, _ in ledger.outbox()] == [t.HOLD_PLACED, t.STAKE_POSTED]


def test_after_a_refusal_another_verifier_may_take_the_stage(ledger: LedgerHarness, job: Job) -> None:
    """A refused hold occupies nothing."""
    ledger.commit(job)
    ledger.hold(job.verifier_stake(1, make_key("stranger")))
    ledger.drain()
    ledger.hold(job.verifier_stake(1, FIRST))
    assert ledger.outbox_of(t.HOLD_PLACED)[0].party == FIRST.participant_id


@pytest.mark.parametrize(
    ("topic", "purpose"), [(t.ROUTER_HOLD_REQUESTED, "verifier_stake"), (t.VERIFIER_HOLD_REQUESTED, "escrow")]
)
def test_each_service_asks_for_its_own_kind_of_hold(
    ledger: LedgerHarness, job: Job, topic: t.Topic[m.HoldRequestV1], purpose: str
) -> None:
    """The router for users and generators, the verifier pool for verifiers."""
    ledger.commit(job)
    before = ledger.dump()
    request = job.verifier_stake(1, FIRST).model_copy(update={"purpose": purpose})
    assert ledger.deliver(topic, request).action == "term"
    assert ledger.refusal().code == "E209"
    assert ledger.dump() == before


@pytest.mark.parametrize("role", [Role.VERIFIER, Role.COMMITMENTS, Role.LEDGER, Role.OPERATOR])
def test_another_service_cannot_speak_for_the_router(
    ledger: LedgerHarness, network: Network, job: Job, role: Role
) -> None:
    """A subject has one signer."""
    ledger.must(t.JOB_ADMITTED, job.admitted())
    assert ledger.deliver(t.ROUTER_HOLD_REQUESTED, job.escrow(), network.keys[role]).action == "term"
    assert ledger.refusal().code == "E102"
    assert ledger.money(USER).locked == 0


def test_a_hold_waits_for_its_job_and_is_refused_when_it_never_comes(ledger: LedgerHarness, job: Job) -> None:
    """Delivered again while the admission may come; patience is counted in rounds lived through."""
    assert ledger.hold(job.escrow()).action == "nak"
    request = ledger.last
    assert request is not None
    ledger.pass_rounds(2)
    assert ledger.apply(request).action == "nak"
    ledger.pass_rounds(1)
    assert ledger.apply(request).action == "term"
    assert ledger.refusal().code == "E207"


def test_a_hold_is_placed_once_its_job_is_there(ledger: LedgerHarness, job: Job) -> None:
    """Two streams, any order."""
    assert ledger.hold(job.escrow()).action == "nak"
    request = ledger.last
    assert request is not None
    ledger.must(t.JOB_ADMITTED, job.admitted())
    assert ledger.apply(request).action == "ack"
    assert [topic for topic, _ in ledger.outbox()] == [t.HOLD_PLACED]


def test_a_verifiers_hold_waits_for_the_commitment(ledger: LedgerHarness, job: Job) -> None:
    """What it must be is known by then."""
    ledger.admit(job)
    assert ledger.hold(job.verifier_stake(1, FIRST)).action == "nak"


def test_a_job_is_admitted_on_its_own_terms_only(ledger: LedgerHarness, job: Job, network: Network) -> None:
    """The same again is a no-op; other terms, another's submission and another user's name are refused."""
    ledger.must(t.JOB_ADMITTED, job.admitted())
    before = ledger.dump()
    for change, code in (
        ({"generation_max_micro": 1}, "E208"),
        ({"submission": Job(network, name="other").submission}, "E102"),
        ({"user": WORKER.participant_id}, "E102"),
    ):
        assert ledger.deliver(t.JOB_ADMITTED, job.admitted().model_copy(update=change)).action == "term"
        assert ledger.refusal().code == code
    assert ledger.dump() == before


def test_a_model_without_prices_halts(network: Network, job: Job) -> None:
    """The ledger does not guess what a job costs; its operator must add the model."""
    ledger = LedgerHarness(LedgerService(genesis=network.genesis, models={}), network)
    decision = ledger.deliver(t.JOB_ADMITTED, job.admitted())
    assert decision.action == "halt"
    assert decision.reason.startswith("E601")
    ledger.close()
