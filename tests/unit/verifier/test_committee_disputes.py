"""Disputes under `fixed-fee-committee` as the services run them: what each is told, and what they do not take."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from kit.endings import COMMITTEE, RECHECKED, SEATED
from kit.loopback import Habit, Loopback
from kit.network import make_key
from pocache.protocol.ids import JobId
from pocache.service.dispatch import Decision
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Topic

CHEAT = {"worker": Habit("a cheat")}


def make(habits: dict[str, Habit] | None = None, sections: Any = COMMITTEE) -> Loopback:
    return Loopback(sections, verifiers=SEATED, habits=habits or {})


class Ear:
    """A loopback network of which every message is remembered, what only one worker hears among them."""

    def __init__(self, loopback: Loopback) -> None:
        self.loopback = loopback
        self.heard: list[tuple[str, WireModel]] = []
        act = loopback.act

        def listen() -> None:
            self.heard += [(one.subject, one.body) for one in loopback._pending]
            act()

        loopback.act = listen  # type: ignore[method-assign]

    def of(self, kind: type[Any]) -> list[tuple[str, Any]]:
        return [(subject, body) for subject, body in self.heard if isinstance(body, kind)]


def bodies(loopback: Loopback, topic: Topic[Any], job_id: bytes) -> list[Any]:
    wanted = topic.filter(job=job_id)
    return [
        open_envelope(one.data, loopback.network.network_id, topic.model).body
        for one in loopback.record
        if one.subject == wanted
    ]


@cache
def play_rechecked() -> tuple[Ear, JobId]:
    """A job that the lottery audits and the next round has rechecked."""
    ear = Ear(make(sections=RECHECKED))
    return ear, ear.loopback.play()


def test_a_recheck_looks_like_an_audit_to_whoever_is_drawn() -> None:
    """Nothing that a verifier is sent, or signs, says which of the two it is: the same fields, the same stage."""
    ear, job_id = play_rechecked()
    drawn = bodies(ear.loopback, t.VERIFIER_DRAWN, job_id)
    assert [one.stage for one in drawn] == [1, 4]
    tasks = [body for _, body in ear.of(m.VerifyTaskV1)]
    assert len(tasks) == 2
    assert [(one.stage, one.retry) for one in tasks] == [(1, 0), (1, 0)]
    differing = {
        name for name in m.VerifyTaskV1.model_fields if getattr(tasks[0], name) != getattr(tasks[1], name)
    }
    assert differing <= {"corner"}
    asked = {
        one.participant: [
            body.stage for subject, body in ear.of(m.ChallengeIssuedV1) if one.participant in subject
        ]
        for one in drawn
    }
    assert list(asked.values()) == [[1], [1]]


def test_the_audits_verifier_does_not_learn_of_the_recheck() -> None:
    """It is not asked to open again, and is no party of the recheck's stage."""
    ear, job_id = play_rechecked()
    first, second = (one.participant for one in bodies(ear.loopback, t.VERIFIER_DRAWN, job_id))
    stages = {
        one.stage: [party.participant for party in one.parties]
        for one in bodies(ear.loopback, t.STAGE_SEALED, job_id)
    }
    generator = make_key("worker").participant_id
    assert stages == {1: [generator, first], 4: [generator, second]}


def test_every_later_draw_is_from_a_round_to_come() -> None:
    """The audit's, the recheck's and the committee's rounds ascend, each bound before it was there."""
    loopback = make(dict(CHEAT), RECHECKED)
    job_id = loopback.play()
    audit = loopback.find(t.AUDIT_OPENED, job_id)
    bound = bodies(loopback, t.STAGE_BOUND, job_id)
    assert [one.stage for one in bound] == [7]
    assert audit.round_number < bound[0].round_number
    drawn = bodies(loopback, t.VERIFIER_DRAWN, job_id)
    assert {one.round_number for one in drawn if one.stage >= 7} == {bound[0].round_number}
    due_ms = loopback.network.chain.genesis_s * 1_000 + (bound[0].round_number - 1) * 3_000
    assert bound[0].ended_ms + loopback.network.genesis.audit.bind_delay_ms < due_ms


def start_sealing(loopback: Loopback) -> tuple[JobId, m.VerifyTaskV1, str]:
    """Take a challenged job to where its audit's claim is awaited; the task, and who has it."""
    job_id = loopback.submit()
    for _ in range(20):
        tasks = [one for one in loopback._pending if isinstance(one.body, m.VerifyTaskV1)]
        if tasks:
            loopback._pending = [one for one in loopback._pending if one not in tasks]
            body = tasks[0].body
            assert isinstance(body, m.VerifyTaskV1)
            return job_id, body, t.VERIFY_TASK.parse(tasks[0].subject)["worker"]
        loopback.act()
        if loopback.find(t.COMMITMENT_RECORDED, job_id) is not None and not loopback.find(
            t.AUDIT_OPENED, job_id
        ):
            loopback.challenge(job_id)
        loopback.tick()
    raise AssertionError("no task was given out")


def make_claim(task: m.VerifyTaskV1, **changes: Any) -> m.ClaimSealedV1:
    fields = {name: getattr(task, name) for name in ("job_id", "attempt", "stage", "retry", "corner")}
    body = {**fields, "leaf_count": task.corner.position_max + 1, "root": b"\x07" * 32, "stack": "fake/1"}
    return m.ClaimSealedV1(**{**body, **changes})


def claim_as(loopback: Loopback, name: str, body: m.ClaimSealedV1) -> tuple[Decision, str]:
    """Deliver a claim to the pool; what became of it, and the refusal's code."""
    pool = loopback.services[Role.VERIFIER]
    pool.drain()
    decision = pool.deliver(t.CLAIM_SEALED, body, make_key(name))
    codes = [one.body.code for one in pool.drain() if isinstance(one.body, m.RefusalV1)]
    return decision, codes[0] if codes else ""


@pytest.mark.parametrize("rules", ["fixed-fee-committee", "unified-pool"])
def test_a_claim_of_who_was_not_drawn_is_refused(rules: str) -> None:
    """E209, whatever stage it names, and nothing of it is kept."""
    sections = COMMITTEE if rules == "fixed-fee-committee" else {**COMMITTEE, "rules": {"name": rules}}
    loopback = make(sections=sections)
    _, task, who = start_sealing(loopback)
    others = [name for name in SEATED if make_key(name).participant_id != who]
    before = loopback.services[Role.VERIFIER].dump()
    for stage in (1, 2, 4, 7):
        decision, code = claim_as(loopback, others[0], make_claim(task, stage=stage))
        assert (decision.action, code) == ("term", "E209")
    after = loopback.services[Role.VERIFIER].dump()
    assert {name: rows for name, rows in after.items() if name != "meta"} == {
        name: rows for name, rows in before.items() if name != "meta"
    }


def test_a_drawn_verifier_is_heard_only_for_what_it_was_told() -> None:
    """Another stage E209, a second look that nobody asked for E207, a second claim E208."""
    loopback = make()
    _, task, who = start_sealing(loopback)
    name = loopback.keys[who]
    assert claim_as(loopback, name, make_claim(task, stage=4))[1] == "E209"
    assert claim_as(loopback, name, make_claim(task, retry=1))[1] == "E207"
    assert claim_as(loopback, name, make_claim(task, leaf_count=1))[1] == "E304"
    assert claim_as(loopback, name, make_claim(task))[0].action == "ack"
    assert claim_as(loopback, name, make_claim(task, root=b"\x08" * 32))[1] == "E208"


def draw_with_late_stake(rules: str, rounds_before: int | None) -> m.VerifierDrawnV1:
    """Return who is drawn for an audit while another's stake grows so many rounds before the audit's, or does not."""
    sections = COMMITTEE if rules == "fixed-fee-committee" else {**COMMITTEE, "rules": {"name": rules}}
    loopback = make(sections=sections)
    job_id = loopback.submit()
    while loopback.find(t.COMMITMENT_RECORDED, job_id) is None:
        loopback.act()
        loopback.tick()
    loopback.challenge(job_id)
    if rounds_before is not None:
        number = draw_with_late_stake(rules, None).round_number
        pool = loopback.services[Role.VERIFIER]
        while pool.latest_round < number - rounds_before:
            loopback.tick()
        participant = make_key("verifier-3").participant_id
        deposit = {"participant": participant, "bucket": "stake", "amount_micro": 10**12, "reference": "late"}
        body = m.DepositV1.model_validate(deposit)
        loopback.say(t.DEPOSITED, body, loopback.network.keys[Role.OPERATOR], participant=participant)
    while loopback.find(t.AUDIT_OPENED, job_id) is None:
        loopback.tick()
    drawn: m.VerifierDrawnV1 = bodies(loopback, t.VERIFIER_DRAWN, job_id)[0]
    return drawn


@pytest.mark.parametrize("rules", ["fixed-fee-committee", "unified-pool"])
def test_a_stake_that_comes_after_the_snapshot_changes_no_draw(rules: str) -> None:
    """Whoever stakes in the round before the audit's is drawn as it stood; two rounds before, another snapshot counts."""
    drawn = draw_with_late_stake(rules, None)
    assert draw_with_late_stake(rules, 1) == drawn
    assert draw_with_late_stake(rules, 2).snapshot == drawn.snapshot + 1


def test_who_is_the_generators_own_never_verifies_for_it() -> None:
    """Of eight verifiers seven are the generator's owner's, as the operator attests: only the eighth is drawn."""
    loopback = make()
    owner = make_key("a company").participant_id
    for name in ("worker", *SEATED[:7]):
        body = m.OwnerV1(
            participant=make_key(name).participant_id, owner=owner, declared_ms=loopback.clock_ms
        )
        loopback.say(
            t.OWNER_DECLARED, body, loopback.network.keys[Role.OPERATOR], participant=body.participant
        )
    loopback.tick(2)
    job_id = loopback.play(challenge=True)
    drawn = bodies(loopback, t.VERIFIER_DRAWN, job_id)
    assert {loopback.keys[one.participant] for one in drawn} == {SEATED[7]}
    snapshot = bodies_of_snapshots(loopback)[-1]
    assert len(snapshot.owners) == 8
    assert loopback.find(t.OUTCOME_DECIDED, job_id).case == "agree"


def bodies_of_snapshots(loopback: Loopback) -> list[m.SnapshotV1]:
    return [
        open_envelope(one.data, loopback.network.network_id, m.SnapshotV1).body
        for one in loopback.record
        if one.subject == t.SNAPSHOT_TAKEN.subject()
    ]


def test_a_users_own_verifiers_are_not_drawn_for_it() -> None:
    """The user owns every verifier: nobody is left to look, so the job is void and everything goes back."""
    loopback = make()
    user = make_key("user").participant_id
    for name in SEATED:
        body = m.OwnerV1(participant=make_key(name).participant_id, owner=user, declared_ms=1)
        loopback.say(
            t.OWNER_DECLARED, body, loopback.network.keys[Role.OPERATOR], participant=body.participant
        )
    loopback.tick(2)
    job_id = loopback.play(challenge=True)
    payout = loopback.find(t.PAYOUT_SETTLED, job_id)
    assert (payout.case, payout.slashed) == ("void", ())
    assert all(one.amount_micro == one.held_micro for one in payout.lines)


def test_an_owner_is_taken_back_by_the_participant_itself_and_the_latest_word_counts() -> None:
    loopback = make()
    one, owner = make_key("verifier-1").participant_id, make_key("a company").participant_id
    operator = loopback.network.keys[Role.OPERATOR]
    for declared_ms, whose in ((5, owner), (4, make_key("b").participant_id)):
        body = m.OwnerV1(participant=one, owner=whose, declared_ms=declared_ms)
        loopback.say(t.OWNER_DECLARED, body, operator, participant=one)
    loopback.tick(2)
    assert [(line.participant, line.owner) for line in bodies_of_snapshots(loopback)[-1].owners] == [
        (one, owner)
    ]
    body = m.OwnerV1(participant=one, owner=one, declared_ms=6)
    loopback.say(t.OWNER_DECLARED, body, operator, participant=one)
    loopback.tick(2)
    assert bodies_of_snapshots(loopback)[-1].owners == ()


def test_nobody_but_the_operator_says_whose_somebody_is() -> None:
    loopback = make()
    one = make_key("verifier-1").participant_id
    pool = loopback.services[Role.VERIFIER]
    decision = pool.deliver(
        t.OWNER_DECLARED, m.OwnerV1(participant=one, owner=one, declared_ms=1), make_key("verifier-2")
    )
    assert decision.action == "term"


@pytest.mark.parametrize("rules", ["fixed-fee-committee", "unified-pool"])
def test_a_verdict_after_settlement_moves_nothing(rules: str) -> None:
    """The same outcome again, or another one, signed by the pool: the job is paid once, and the reserve stands."""
    sections = COMMITTEE if rules == "fixed-fee-committee" else {**COMMITTEE, "rules": {"name": rules}}
    loopback = make(dict(CHEAT), sections)
    job_id = loopback.play(challenge=True)
    outcome = loopback.find(t.OUTCOME_DECIDED, job_id)
    ledger = loopback.services[Role.LEDGER]
    before = {
        name: rows for name, rows in ledger.dump().items() if name in ("accounts", "operations", "holds")
    }
    for body in (outcome, outcome.model_copy(update={"case": "void", "prior": None, "reason": "another"})):
        assert ledger.deliver(t.OUTCOME_DECIDED, body).action == "ack"
    after = ledger.dump()
    assert {name: after[name] for name in before} == before
    assert [one for one in ledger.drain() if one.topic is t.PAYOUT_SETTLED] == []


def test_a_seat_beyond_the_last_has_no_stake() -> None:
    """M = 3 and two committees: twelve seats. The ledger locks nothing for a thirteenth."""
    loopback = make(dict(CHEAT))
    _, _, who = start_sealing(loopback)
    request = next(
        open_envelope(one.data, loopback.network.network_id, m.HoldRequestV1).body
        for one in loopback.record
        if one.subject.startswith("holds.requested.verifier.")
    )
    ledger = loopback.services[Role.LEDGER]
    other = next(make_key(name).participant_id for name in SEATED if make_key(name).participant_id != who)
    for stage, is_held in ((13, False), (12, True)):
        ledger.drain()
        body = request.model_copy(update={"stage": stage, "party": other})
        assert ledger.deliver(t.VERIFIER_HOLD_REQUESTED, body).action == "ack"
        said = [one.body for one in ledger.drain() if one.topic in (t.HOLD_PLACED, t.HOLD_REFUSED)]
        assert isinstance(said[0], m.HoldPlacedV1) is is_held
        if not is_held:
            assert isinstance(said[0], m.HoldRefusedV1)
            assert (said[0].code, "1 to 12" in said[0].reason) == ("E402", True)


@pytest.mark.parametrize(
    ("habits", "case", "slashed"),
    [
        (CHEAT, "conviction", {"worker"}),
        ({"worker": Habit(opens=False)}, "no_opening", {"worker"}),
        ({"worker": Habit(commits_twice=True)}, "equivocation", {"worker"}),
        ({}, "agree", set()),
    ],
)
def test_money_is_conserved_and_only_the_guilty_lose(
    habits: dict[str, Habit], case: str, slashed: set[str]
) -> None:
    loopback = make(dict(habits))
    job_id = loopback.play(challenge=True)
    payout = loopback.find(t.PAYOUT_SETTLED, job_id)
    assert (payout.case, {loopback.keys[one] for one in payout.slashed}) == (case, slashed)
    assert sum(line.amount_micro for line in payout.lines) == payout.pool_micro
    totals = loopback.services[Role.LEDGER].ask(t.TOTALS_QUERY, m.TotalsQueryV1(), m.TotalsReplyV1)
    assert isinstance(totals, m.TotalsReplyV1)
    assert totals.held_micro == totals.deposited_micro
    assert (totals.open_pools_micro, totals.closed_pools_micro, totals.journal_intact) == (0, 0, True)
    reserve = [line for line in payout.lines if line.account == "reserve"]
    assert totals.reserve_micro == sum(line.amount_micro - line.held_micro for line in reserve)


def test_a_reserve_that_is_too_short_pays_everybody_the_same_less() -> None:
    """Two unaudited jobs fill it; a void one has seven verifiers to pay from it. What does not divide stays in it."""
    loopback = make()
    for _ in range(2):
        loopback.play()
    loopback.habits = {name: Habit(name) for name in ("worker", *SEATED)}
    job_id = loopback.play(challenge=True)
    payout = loopback.find(t.PAYOUT_SETTLED, job_id)
    assert (payout.case, payout.slashed) == ("void", ())
    products = loopback.network.genesis.rule_set.compute_products(
        payout.generation_micro, payout.verification_micro
    )
    verifiers = {make_key(name).participant_id for name in SEATED}
    fees = [line.amount_micro - line.held_micro for line in payout.lines if line.account in verifiers]
    assert len(fees) == 7
    assert len(set(fees)) == 1
    assert 0 < fees[0] < products.verifier_stake // 20 * 6 // 5
    reserve = next(line for line in payout.lines if line.account == "reserve")
    assert (reserve.held_micro, reserve.amount_micro) == (7 * fees[0], 0)
    assert 0 <= payout.reserve_micro - reserve.held_micro < 7
    totals = loopback.services[Role.LEDGER].ask(t.TOTALS_QUERY, m.TotalsQueryV1(), m.TotalsReplyV1)
    assert isinstance(totals, m.TotalsReplyV1)
    assert totals.reserve_micro == payout.reserve_micro - reserve.held_micro
    assert totals.held_micro == totals.deposited_micro
