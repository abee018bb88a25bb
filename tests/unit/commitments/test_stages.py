"""Stages: when positions are drawn and by what, who is asked for which, and how openings end."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from kit.committing import Holder, Job, to_wire
from kit.network import Harness, Network
from pocache.protocol.beacon import bind_round, verify_round
from pocache.protocol.challenge import (
    Corner,
    DeterministicStream,
    Tag,
    compute_seed,
    draw_positions,
)
from pocache.protocol.encoding import unpack_tokens
from pocache.wire.messages import ChallengeIssuedV1, ChallengeRequestV1, StageSealedV1
from pocache.wire.topics import (
    CHALLENGE_ISSUED,
    CHALLENGE_REQUESTED,
    OPENING_ACCEPTED,
    OPENING_SUBMITTED,
    OPENINGS_CLOSED,
    RESULT_COMPLETED,
    STAGE_SEALED,
)

OTHER = hashlib.sha256(b"other").digest()


def open_audit(harness: Harness, job: Job) -> None:
    """Bring the job to where its audit is open."""
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms), job.worker)
    request = ChallengeRequestV1(job_id=job.job_id, attempt=job.attempt)
    harness.deliver(CHALLENGE_REQUESTED, request, job.user)
    harness.pass_rounds(4)
    harness.drain()


def seal(harness: Harness, job: Job, *verifiers: Holder, **options: Any) -> str:
    """Deliver the sealed stage of the last of these verifiers; return the decision's action."""
    sealed = job.make_stage(*verifiers, sealed_ms=options.pop("sealed_ms", harness.clock_ms), **options)
    return harness.deliver(STAGE_SEALED, sealed).action


def issue(harness: Harness, job: Job, *verifiers: Holder, **options: Any) -> list[ChallengeIssuedV1]:
    """Seal a stage, pass rounds until its positions are drawn, and return the challenges."""
    assert seal(harness, job, *verifiers, **options) == "ack"
    for _ in range(6):
        harness.pass_rounds(1)
        if issued := harness.outbox_of(CHALLENGE_ISSUED):
            return issued
    pytest.fail("no positions were drawn")


def compute_positions(
    network: Network, job: Job, issued: ChallengeIssuedV1, corner: Corner, seed_stage: int, sample_count: int
) -> tuple[int, ...]:
    """Draw the positions again, from the record alone."""
    number = issued.round_number
    seed = compute_seed(
        Tag.POSITIONS,
        network=network.network_id,
        chain_hash=network.chain.chain_hash,
        round_number=number,
        randomness=verify_round(network.chain, number, network.make_round(number).signature),
        root=job.generator.tree.root(),
        leaf_count=job.leaf_count,
        job_id=job.job_id,
        stage=seed_stage,
    )
    return draw_positions(DeterministicStream(seed), corner, prompt_count=3, sample_count=sample_count)


@pytest.fixture
def job(harness: Harness, network: Network) -> Job:
    """A job whose audit is open at full depth."""
    made = Job(network)
    open_audit(harness, made)
    return made


@pytest.fixture
def verifier(job: Job) -> Holder:
    """The honest first verifier."""
    return job.make_holder("verifier-1", 1, job.full_corner)


def test_positions_are_drawn_in_the_round_bound_after_the_seal(
    harness: Harness, network: Network, job: Job, verifier: Holder
) -> None:
    """bind(t of the seal); every party is asked the same, with its own root; anyone draws the same again."""
    harness.clock_ms += 1_300
    due = bind_round(network.chain, harness.clock_ms, 3_000)
    assert seal(harness, job, verifier) == "ack"
    harness.pass_rounds_to(due - 1)
    assert harness.outbox() == []
    harness.pass_rounds(1)
    emitted = harness.drain()
    assert [emission.topic for emission in emitted] == [CHALLENGE_ISSUED, CHALLENGE_ISSUED]
    for emission, holder in zip(emitted, (job.generator, verifier), strict=True):
        body: Any = emission.body
        assert emission.subject.endswith(holder.key.participant_id)
        assert (body.round_number, body.stage, body.retry) == (due, 1, 0)
        assert (body.root, body.leaf_count) == (holder.tree.root(), 7)
        drawn = compute_positions(network, job, body, job.full_corner, 1, 4)
        assert unpack_tokens(body.positions) == drawn


def test_a_seal_that_was_delayed_is_bound_to_a_round_to_come(
    harness: Harness, network: Network, job: Job, verifier: Holder
) -> None:
    """The round that the seal's own time would name is known by now, so it draws nothing."""
    early_ms = harness.clock_ms - 6_000
    assert bind_round(network.chain, early_ms, 3_000) <= harness.latest_round
    latest = harness.latest_round
    (first, *_) = issue(harness, job, verifier, sealed_ms=early_ms)
    assert first.round_number > latest


def test_a_seal_handled_after_an_outage_is_bound_to_now(
    harness: Harness, network: Network, job: Job, verifier: Holder
) -> None:
    """Rounds that have passed are no draw, although they have not arrived here yet."""
    sealed_ms = harness.clock_ms
    harness.clock_ms += 60_000
    due = bind_round(network.chain, harness.clock_ms, 3_000)
    assert seal(harness, job, verifier, sealed_ms=sealed_ms) == "ack"
    harness.pass_rounds_to(due - 1)
    assert harness.outbox() == []
    harness.pass_rounds(1)
    assert {body.round_number for body in harness.outbox_of(CHALLENGE_ISSUED)} == {due}


def test_a_retry_draws_from_another_seed(
    harness: Harness, network: Network, job: Job, verifier: Holder
) -> None:
    """The seed's stage is (retry << 16) | stage."""
    issue(harness, job, verifier)
    again = issue(harness, job, verifier, retry=1, sample_count=5)
    drawn = compute_positions(network, job, again[0], job.full_corner, (1 << 16) | 1, 5)
    assert unpack_tokens(again[0].positions) == drawn
    assert {body.retry for body in again} == {1}


def test_an_earlier_verifier_is_asked_within_its_corner(harness: Harness, network: Network, job: Job) -> None:
    """Its leaves end earlier: positions beyond them are not its to open."""
    first = job.make_holder("verifier-1", 1, Corner(0, 4, False))
    second = job.make_holder("verifier-2", 2, job.full_corner)
    issued = issue(harness, job, first, second, sample_count=7)
    assert [unpack_tokens(body.positions) for body in issued] == [
        tuple(range(7)),
        tuple(range(5)),
        tuple(range(7)),
    ]
    assert issued[1].leaf_count == 5


def test_who_is_asked_for_nothing_is_not_missing(harness: Harness, network: Network, job: Job) -> None:
    """One position, beyond the first verifier's corner."""
    first = job.make_holder("verifier-1", 1, Corner(0, 2, False))
    second = job.make_holder("verifier-2", 2, job.full_corner)
    issued = issue(harness, job, first, second, sample_count=1)
    assert [unpack_tokens(body.positions) for body in issued] == [(6,), (6,)]
    harness.pass_rounds(3)
    (closed,) = harness.outbox_of(OPENINGS_CLOSED)
    assert closed.opened == (first.key.participant_id,)
    assert closed.missing == (job.worker.participant_id, second.key.participant_id)


def test_the_deadline_names_who_did_not_open(
    harness: Harness, network: Network, job: Job, verifier: Holder
) -> None:
    """After three ticks, not two, and once."""
    issued = issue(harness, job, verifier)
    positions = unpack_tokens(issued[0].positions)
    opening = verifier.open(job, positions)
    assert harness.deliver(OPENING_SUBMITTED, opening, verifier.key).action == "ack"
    assert [topic for topic, _ in harness.outbox()] == [OPENING_ACCEPTED]
    harness.pass_rounds(2)
    assert harness.outbox() == []
    harness.pass_rounds(1)
    ((topic, closed),) = harness.outbox()
    body: Any = closed
    assert topic is OPENINGS_CLOSED
    assert (body.stage, body.retry, body.round_number) == (1, 0, issued[0].round_number)
    assert (body.positions, body.opened) == (issued[0].positions, (verifier.key.participant_id,))
    assert body.missing == (job.worker.participant_id,)
    harness.pass_rounds(4)
    assert harness.outbox() == []


def test_rounds_that_come_late_do_not_count_against_a_party(
    harness: Harness, network: Network, job: Job, verifier: Holder
) -> None:
    """The deadline counts ticks: what passed while this service was away is not the party's silence."""
    issue(harness, job, verifier)
    latest = harness.latest_round
    harness.clock_ms += 60_000
    for number in range(latest + 1, latest + 10):
        harness.round(number)
    assert harness.outbox() == []


def test_openings_end_when_everybody_has_opened(
    harness: Harness, network: Network, job: Job, verifier: Holder
) -> None:
    """Before the deadline; the deadline then says nothing more."""
    issued = issue(harness, job, verifier)
    positions = unpack_tokens(issued[0].positions)
    harness.deliver(OPENING_SUBMITTED, job.generator.open(job, positions), job.worker)
    harness.deliver(OPENING_SUBMITTED, verifier.open(job, positions), verifier.key)
    emitted = harness.outbox()
    assert [topic for topic, _ in emitted] == [OPENING_ACCEPTED, OPENING_ACCEPTED, OPENINGS_CLOSED]
    closed: Any = emitted[-1][1]
    assert closed.opened == (job.worker.participant_id, verifier.key.participant_id)
    assert closed.missing == ()
    harness.pass_rounds(5)
    assert harness.outbox() == []


def test_the_same_stage_sealed_again_changes_nothing(
    harness: Harness, network: Network, job: Job, verifier: Holder
) -> None:
    """The round stays the one of the first seal."""
    assert seal(harness, job, verifier) == "ack"
    before = harness.dump()
    harness.clock_ms += 5_000
    assert seal(harness, job, verifier) == "ack"
    # What was said twice is kept twice, for the receipt; it has no second effect.
    after = harness.dump()
    assert len(after.pop("dossier")) == len(before.pop("dossier")) + 1
    assert after == before


def test_a_stage_without_an_audit_is_refused(harness: Harness, network: Network) -> None:
    """Of an unknown job E207, of one in its window E208."""
    job = Job(network)
    verifier = job.make_holder("verifier-1", 1, job.full_corner)
    assert seal(harness, job, verifier) == "term"
    assert harness.refusal().code == "E207"
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms), job.worker)
    harness.drain()
    assert seal(harness, job, verifier) == "term"
    assert harness.refusal().code == "E208"


def change_party(sealed: StageSealedV1, index: int, **changes: Any) -> StageSealedV1:
    """Return the stage with one party changed."""
    parties = list(sealed.parties)
    parties[index] = parties[index].model_copy(update=changes)
    return sealed.model_copy(update={"parties": tuple(parties)})


@pytest.mark.parametrize(
    "change",
    [
        lambda sealed, job: change_party(sealed, 0, root=OTHER),
        lambda sealed, job: change_party(sealed, 0, leaf_count=6),
        lambda sealed, job: change_party(sealed, 0, stage=1),
        lambda sealed, job: change_party(sealed, 0, participant=job.user.participant_id),
        lambda sealed, job: change_party(sealed, 1, stage=2),
        lambda sealed, job: change_party(sealed, 1, leaf_count=6),
        lambda sealed, job: change_party(sealed, 1, participant=job.worker.participant_id),
        lambda sealed, job: sealed.model_copy(update={"parties": (*sealed.parties, sealed.parties[1])}),
        lambda sealed, job: sealed.model_copy(
            update={"corner": sealed.corner.model_copy(update={"position_max": 7})}
        ),
    ],
)
def test_a_stage_that_contradicts_the_record_is_refused(
    harness: Harness, network: Network, job: Job, verifier: Holder, change: Any
) -> None:
    """E208, and nothing is kept of it."""
    before = harness.dump()
    sealed = change(job.make_stage(verifier, sealed_ms=harness.clock_ms), job)
    assert harness.deliver(STAGE_SEALED, sealed).action == "term"
    assert harness.refusal().code == "E208"
    assert harness.dump() == before


@pytest.mark.parametrize(
    "make_claim",
    [
        lambda _job, _verifier: None,
        lambda _job, _verifier: b"not an envelope",
        lambda job, verifier: verifier.make_claim(job, signer=job.worker),
        lambda job, verifier: verifier.make_claim(job, root=OTHER),
        lambda job, verifier: verifier.make_claim(job, leaf_count=6),
        lambda job, verifier: verifier.make_claim(job, stage=2),
        lambda job, verifier: verifier.make_claim(job, retry=1),
        lambda job, verifier: verifier.make_claim(job, attempt=2),
        lambda job, verifier: verifier.make_claim(job, job_id=OTHER),
        lambda job, verifier: verifier.make_claim(
            job, corner=to_wire(job.full_corner).model_copy(update={"layer_max": 0})
        ),
    ],
    ids=["none", "garbage", "signer", "root", "count", "stage", "retry", "attempt", "job", "corner"],
)
def test_a_stage_without_its_verifiers_own_claim_is_refused(
    harness: Harness, job: Job, verifier: Holder, make_claim: Any
) -> None:
    """The pool's word is not enough: what a verifier must open is what it signed."""
    sealed = job.make_stage(verifier, sealed_ms=harness.clock_ms)
    forged = change_party(sealed, 1, claim=make_claim(job, verifier))
    assert harness.deliver(STAGE_SEALED, forged).action == "term"
    assert harness.refusal().code == "E208"
    assert harness.deliver(STAGE_SEALED, sealed).action == "ack"


def test_equivocation_ends_a_stage_before_its_positions(
    harness: Harness, network: Network, job: Job, verifier: Holder
) -> None:
    """Neither a sealed stage nor a later one asks anybody for anything."""
    assert seal(harness, job, verifier) == "ack"
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms, root=OTHER), job.worker)
    harness.drain()
    harness.pass_rounds(4)
    assert seal(harness, job, verifier, retry=1) == "ack"
    harness.pass_rounds(4)
    assert harness.outbox() == []
