"""Receipts and records under `fixed-fee-committee`: a forgery of each thing that its rules add is found, and where.

Both verifiers are asked wherever the second one can be run; ``tests/integration/test_js_verifier.py`` runs it over all endings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from kit.endings import LOOKED_AT, RECHECKED, SEATED, Played, play
from kit.forging import drop, find_said, forge, open_body, reseal
from kit.loopback import Habit, Loopback
from kit.network import make_key
from pocache.protocol.ids import JobId
from pocache.receipt.audit import A_MONEY, A_RECORD, AuditReport
from pocache.receipt.explain import explain_job
from pocache.receipt.export import Entry
from pocache.receipt.format import Receipt, encode_binary
from pocache.receipt.report import Step
from pocache.receipt.verify import examine_receipt
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_cli.audit import audit_entries

Forge = Callable[[Played], Receipt]


def decided(**changes: Any) -> Forge:
    """Return a forger of the outcome; values may be functions of it."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        body = find_said(played.receipt, network, t.OUTCOME_DECIDED).body
        fields = {name: value(body) if callable(value) else value for name, value in changes.items()}
        return forge(played.receipt, network, t.OUTCOME_DECIDED, **fields)

    return make


def with_standing(number: int, **changes: Any) -> Forge:
    """Return a forger of one standing of the outcome."""

    def change(body: m.OutcomeV1) -> tuple[m.VerifierStandingV1, ...]:
        seats = list(body.verifiers)
        seats[number] = seats[number].model_copy(update=changes)
        return tuple(seats)

    return decided(verifiers=change)


def snapped(**changes: Any) -> Forge:
    """Return a forger of the snapshot that the audit was drawn from, signed by the pool."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        snapshot = open_body(network, played.receipt.snapshots[0], m.SnapshotV1)
        fields = {name: value(played, snapshot) for name, value in changes.items()}
        data = reseal(network, played.receipt.snapshots[0], m.SnapshotV1, **fields)
        return replace(played.receipt, snapshots=(data, *played.receipt.snapshots[1:]))

    return make


def find_drawn(played: Played) -> str:
    """Return who was drawn for the audit."""
    drawn = find_said(played.receipt, played.loopback.network, t.VERIFIER_DRAWN, stage=1)
    return str(drawn.body.participant)


def without_stake(played: Played, snapshot: m.SnapshotV1) -> tuple[m.SnapshotMemberV1, ...]:
    """The one that was drawn has next to no stake, as if the snapshot had been written after the round."""
    drawn = find_drawn(played)
    return tuple(
        one.model_copy(update={"stake_micro": 1}) if one.participant == drawn else one
        for one in snapshot.members
    )


def owned_by_generator(played: Played, _snapshot: m.SnapshotV1) -> tuple[m.OwnedV1, ...]:
    """The one that was drawn is the generator's."""
    generator = make_key(played.loopback.generator).participant_id
    return (m.OwnedV1(participant=find_drawn(played), owner=generator),)


def paid(**changes: Any) -> Forge:
    """Return a forger of the payout."""
    return lambda played: forge(played.receipt, played.loopback.network, t.PAYOUT_SETTLED, **changes)


def reseat(seat: int) -> Forge:
    """Return a forger that says that the audit's verifier was drawn for another seat."""
    return lambda played: forge(
        played.receipt, played.loopback.network, t.VERIFIER_DRAWN, {"stage": 1}, stage=seat
    )


def dropped(topic: t.Topic[Any], **which: object) -> Forge:
    """Return a forger that leaves a message out."""
    return lambda played: drop(played.receipt, played.loopback.network, topic, **which)


FORGERIES: tuple[tuple[str, str, Forge, Step], ...] = (
    ("a stake altered after the round", "committee_agree", snapped(members=without_stake), Step.SORTITION),
    ("a verifier of the generator's", "committee_agree", snapped(owners=owned_by_generator), Step.SORTITION),
    ("a seat that the rules do not have", "committee_agree", reseat(13), Step.SORTITION),
    ("an audit's verifier in a recheck", "committee_agree", reseat(4), Step.SORTITION),
    (
        "a recheck that was drawn and not done",
        "committee_rechecked",
        dropped(t.VERIFIER_DRAWN, stage=4),
        Step.OUTCOME,
    ),
    (
        "a recheck's round that is not shown",
        "committee_rechecked",
        dropped(t.STAGE_BOUND, stage=4),
        Step.ROUNDS,
    ),
    ("a member that was not drawn", "committee_conviction", dropped(t.VERIFIER_DRAWN, stage=8), Step.OUTCOME),
    ("acquitted where it was convicted", "committee_conviction", decided(case="acquittal"), Step.OUTCOME),
    ("agreed where a committee was called", "committee_acquittal", decided(case="agree"), Step.OUTCOME),
    ("the finder of another's cheat", "committee_conviction", decided(prior=None), Step.OUTCOME),
    ("a liar borne out", "committee_acquittal", with_standing(0, upheld=True), Step.OUTCOME),
    ("a member not borne out", "committee_conviction", with_standing(1, upheld=False), Step.OUTCOME),
    ("a silent one that opened", "committee_silent_auditor", with_standing(0, opened=True), Step.OUTCOME),
    ("asked by nobody", "committee_agree", decided(is_challenged=False), Step.OUTCOME),
    ("asked by its user", "committee_lottery", decided(is_challenged=True), Step.OUTCOME),
    ("a claim of the too few left out", "committee_too_few", decided(claims=()), Step.OUTCOME),
    (
        "a claim too many",
        "committee_too_few",
        decided(claims=lambda body: (*body.claims, body.claims[0])),
        Step.OUTCOME,
    ),
    ("a reserve that pays more than was paid", "committee_void", paid(reserve_micro=10**9), Step.PAYOFF),
    ("nobody slashed", "committee_conviction", paid(slashed=()), Step.PAYOFF),
)


@pytest.mark.parametrize(
    ("ending", "forger", "step"), [one[1:] for one in FORGERIES], ids=[one[0] for one in FORGERIES]
)
def test_a_forgery_is_found_by_its_step(ending: str, forger: Forge, step: Step) -> None:
    played = play(ending)
    forged = forger(played)
    assert forged != played.receipt
    failure = played.verify(forged).failure
    assert failure is not None
    assert not failure.is_internal, failure.reason
    assert failure.step is step, failure


# --- the record -----------------------------------------------------------------------------------------------------


@cache
def play_many() -> tuple[Loopback, tuple[JobId, ...]]:
    """A network with jobs of several endings, of which some fill the reserve and some draw from it."""
    loopback = Loopback(RECHECKED, verifiers=SEATED)
    jobs = [loopback.play()]
    loopback.habits = {"worker": Habit("a cheat")}
    jobs.append(loopback.play())
    loopback.habits = {}
    jobs.append(loopback.play(challenge=True, challenge_after=2))
    loopback.habits = {"worker": Habit(opens=False)}
    jobs.append(loopback.play())
    return loopback, tuple(jobs)


def audit(change: Callable[[list[Entry]], None] | None = None) -> AuditReport:
    loopback, _ = play_many()
    record = list(loopback.record)
    if change is not None:
        change(record)
    return audit_entries(loopback.header, [*loopback.rounds, *record], loopback.trust)


def test_a_record_of_many_endings_is_sound() -> None:
    report = audit()
    assert report.divergences == []
    assert (report.jobs, report.jobs_open) == (4, 0)


def forge_entry(topic: t.Topic[Any], **changes: Any) -> Callable[[list[Entry]], None]:
    """Return what changes the last message of a topic in the record, signed again by its service."""

    def change(record: list[Entry]) -> None:
        network = play_many()[0].network
        place = max(number for number, one in enumerate(record) if topic.matches(one.subject))
        data = reseal(network, record[place].data, topic.model, network.keys[topic.signer], **changes)
        record[place] = replace(record[place], data=data)

    return change


def test_a_reserve_that_the_payouts_did_not_leave_is_found() -> None:
    """The one receipt alone takes the ledger's word; the record adds it up."""
    report = audit(forge_entry(t.PAYOUT_SETTLED, reserve_micro=9))
    assert (report.divergences[0].step, report.divergences[0].job_id) == (A_RECORD, play_many()[1][-1])
    assert "reserve of 9" in report.divergences[0].what


def test_an_outcome_against_the_rules_is_found_with_its_job() -> None:
    report = audit(forge_entry(t.OUTCOME_DECIDED, case="void"))
    assert [(one.step, one.job_id) for one in report.divergences] == [("R16", play_many()[1][-1])]


def test_a_verdict_after_settlement_is_a_divergence() -> None:
    """Whatever it says: the job was over."""
    loopback, jobs = play_many()
    number = len(loopback.record)

    def change(record: list[Entry]) -> None:
        again = next(
            one
            for one in record
            if t.OUTCOME_DECIDED.matches(one.subject) and one.subject.endswith(jobs[0].hex())
        )
        record.append(replace(again, sequence=number + 1))

    report = audit(change)
    assert [(one.step, one.job_id) for one in report.divergences] == [(A_RECORD, jobs[0])]
    assert "was over" in report.divergences[0].what


def test_money_is_followed_through_the_reserve() -> None:
    """What the reserve has at the end is what the payouts left, and the ledger's own word for it is the same."""
    loopback, jobs = play_many()
    last = loopback.find(t.PAYOUT_SETTLED, jobs[-1])
    first = loopback.find(t.PAYOUT_SETTLED, jobs[0])
    line = next(one for one in first.lines if one.account == "reserve")
    assert first.reserve_micro == 0
    assert last.reserve_micro == line.amount_micro - line.held_micro + sum(
        one.amount_micro - one.held_micro
        for job in jobs[1:-1]
        for one in loopback.find(t.PAYOUT_SETTLED, job).lines
        if one.account == "reserve"
    )
    assert A_MONEY not in [one.step for one in audit().divergences]


# --- in words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("committee_rechecked", "the agreement was to be looked at again"),
        ("committee_agree", "the agreement was left as it was"),
        ("committee_conviction", "A committee finds against the generator"),
        ("committee_acquittal", "for the audit: verifier"),
        ("committee_silent_auditor", "was silent"),
        ("committee_void", "nobody is convicted"),
    ],
)
def test_what_happened_is_said_in_words(ending: str, words: str) -> None:
    played = play(ending)
    report, case = examine_receipt(encode_binary(played.receipt), played.loopback.trust)
    assert case is not None
    text = "\n".join(explain_job(case, report.case, played.loopback.keys))
    assert words in text


def test_the_lottery_is_paid_by_the_reserve_and_a_challenge_by_its_user() -> None:
    """The user gets αCv back where it did not ask, and not where it did."""
    for ending, is_returned in (("committee_lottery", True), ("committee_agree", False)):
        played = play(ending)
        payout = played.loopback.find(t.PAYOUT_SETTLED, played.job_id)
        products = played.loopback.network.genesis.rule_set.compute_products(
            payout.generation_micro, payout.verification_micro
        )
        user = next(one for one in payout.lines if one.account == make_key("user").participant_id)
        assert bool(user.amount_micro) is is_returned
        assert user.held_micro == products.deposit
    assert LOOKED_AT["rules"]["name"] == "fixed-fee-committee"
