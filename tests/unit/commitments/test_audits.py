"""The lottery, the user's challenge, the window: who is audited, when, how deeply; who may not ask."""

from __future__ import annotations

from typing import Any

import pytest

from kit.committing import Job, to_wire
from kit.network import Harness, Network, make_key, make_network
from pocache.protocol.beacon import bind_round, compute_round_time_ms, verify_round
from pocache.protocol.challenge import DeterministicStream, Tag, compute_seed, draw_corner, is_drawn
from pocache.wire.codec import encode, encode_value
from pocache.wire.envelope import compute_preimage, open_envelope
from pocache.wire.messages import (
    ChallengeRequestV1,
    CheckpointV1,
    CommitmentReboundV1,
    CommitmentRecordedV1,
    OutcomeV1,
    PayoutSettledV1,
    ResultV1,
)
from pocache.wire.topics import (
    AUDIT_DEEPENED,
    AUDIT_OPENED,
    CHALLENGE_REQUESTED,
    COMMITMENT_RECORDED,
    OUTCOME_DECIDED,
    PAYOUT_SETTLED,
    RESULT_COMPLETED,
    WINDOW_CLOSED,
)
from pocache_commitments.service import CommitmentsService


def record(harness: Harness, job: Job) -> CommitmentRecordedV1:
    """Record the job's commitment and return what was said about it."""
    assert harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms), job.worker).action == "ack"
    (recorded,) = harness.outbox_of(COMMITMENT_RECORDED)
    return recorded


def challenge(harness: Harness, job: Job, signer: Any = None) -> str:
    """Deliver the user's challenge; return its refusal's code, or nothing."""
    request = ChallengeRequestV1(job_id=job.job_id, attempt=job.attempt)
    before = harness.dump()
    decision = harness.deliver(CHALLENGE_REQUESTED, request, signer or job.user)
    if decision.action == "ack":
        return ""
    assert harness.dump() == before
    return harness.refusal().code


def challenge_in_other_bytes(harness: Harness, job: Job) -> str:
    """Deliver the user's challenge in an envelope of another id, and return its refusal's code."""
    payload = encode_value({"attempt": job.attempt, "job_id": job.job_id})
    kind, network_id = ChallengeRequestV1.kind, harness.network.network_id
    assert payload != encode(ChallengeRequestV1(job_id=job.job_id, attempt=job.attempt))
    signature = job.user.sign(compute_preimage(network_id, kind, payload))
    sender = job.user.participant_id
    data = encode_value({"kind": kind, "payload": payload, "kid": sender, "sig": signature})
    assert harness.deliver_data(CHALLENGE_REQUESTED, data, user=sender, job=job.job_id).action == "term"
    refusal = harness.refusal()
    assert "there is one dispute per job" in refusal.reason
    return refusal.code


def decide(harness: Harness, job: Job) -> None:
    """Deliver the pool's outcome."""
    outcome = OutcomeV1(
        job_id=job.job_id,
        attempt=job.attempt,
        case="void",
        stage=1,
        corner=to_wire(job.full_corner),
        verifiers=(),
        deciding=None,
        prior=None,
        is_challenged=False,
        claims=(),
        comparisons=(),
        reason="no candidates",
    )
    assert harness.deliver(OUTCOME_DECIDED, outcome).action == "ack"


def make_harness(lottery_share: str, **audit: Any) -> Harness:
    """Return the service on a network with another lottery."""
    values = {
        "full_depth_share": "1/4",
        "sample_count": 4,
        "window_rounds": 6,
        "lottery_share": lottery_share,
        **audit,
    }
    network = make_network(audit=values, deadlines={"opening_ticks": 3})
    harness = Harness(CommitmentsService(network.genesis, network.models), network)
    harness.pass_rounds(2)
    return harness


def open_stream(
    network: Network, tag: Tag, recorded: CommitmentRecordedV1, randomness: bytes
) -> DeterministicStream:
    """Return the stream of a draw, made from the record alone."""
    result = network.open(recorded.result, ResultV1)
    seed = compute_seed(
        tag,
        network=network.network_id,
        chain_hash=network.chain.chain_hash,
        round_number=recorded.audit_round,
        randomness=randomness,
        root=result.root,  # type: ignore[arg-type]
        leaf_count=result.leaf_count,
        job_id=recorded.job_id,  # type: ignore[arg-type]
        stage=0,
    )
    return DeterministicStream(seed)


def test_the_lottery_and_its_corner_can_be_drawn_again_from_the_record() -> None:
    """Twelve jobs at one half: each is audited or settled as its own round says, in the corner it says."""
    harness = make_harness("1/2")
    network = harness.network
    records = [record(harness, Job(network, name=f"job {number}")) for number in range(12)]
    harness.pass_rounds(8)
    emitted = harness.outbox()
    opened: dict[bytes, Any] = {body.job_id: body for topic, body in emitted if topic is AUDIT_OPENED}  # type: ignore[attr-defined]
    closed = {body.job_id for topic, body in emitted if topic is WINDOW_CLOSED}  # type: ignore[attr-defined]
    assert len(opened) + len(closed) == 12
    assert opened
    assert closed
    for recorded in records:
        signature = network.make_round(recorded.audit_round).signature
        randomness = verify_round(network.chain, recorded.audit_round, signature)
        wins = is_drawn(open_stream(network, Tag.AUDIT, recorded, randomness), 1, 2)
        assert wins == (recorded.job_id in opened) == (recorded.job_id not in closed)
        if wins:
            audit = opened[recorded.job_id]
            corner = draw_corner(
                open_stream(network, Tag.CORNER, recorded, randomness),
                layer_count=2,
                leaf_count=7,
                prompt_count=3,
                full_share=(1, 4),
            )
            assert (audit.reason, audit.corner, audit.challenge) == ("lottery", to_wire(corner), None)
            assert (audit.round_number, audit.randomness) == (recorded.audit_round, randomness)


def test_the_lottery_is_drawn_in_its_round_and_in_no_other() -> None:
    """Rounds before and after the audit round decide nothing; a late audit round still does."""
    harness = make_harness("1/1")
    recorded = record(harness, Job(harness.network))
    harness.pass_rounds_to(recorded.audit_round - 1)
    harness.round(recorded.audit_round + 1)
    harness.round(recorded.audit_round + 2)
    assert harness.outbox() == []
    harness.round(recorded.audit_round)
    (opened,) = harness.outbox_of(AUDIT_OPENED)
    assert opened.round_number == recorded.audit_round


def test_a_commitment_that_is_still_unpublished_in_its_round_is_bound_to_another() -> None:
    """As after a crash: strangers could not tell it from one that was made with the round in view."""
    harness = make_harness("1/1", window_rounds=3)
    job = Job(harness.network)
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms), job.worker)
    missed = bind_round(harness.network.chain, harness.clock_ms, 3_000)
    harness.pass_rounds_to(missed)
    recorded, checkpoint, rebound = (emission.body for emission in harness.drain())
    assert isinstance(recorded, CommitmentRecordedV1)
    assert isinstance(checkpoint, CheckpointV1)
    assert isinstance(rebound, CommitmentReboundV1)
    assert (rebound.missed_round, rebound.rebound_ms) == (recorded.audit_round, harness.clock_ms)
    assert rebound.audit_round == bind_round(harness.network.chain, harness.clock_ms, 3_000) > missed
    assert rebound.window_close_round == rebound.audit_round + 1 > recorded.window_close_round
    harness.pass_rounds_to(rebound.audit_round - 1)
    assert harness.outbox() == []
    harness.pass_rounds(1)
    (opened,) = harness.outbox_of(AUDIT_OPENED)
    assert opened.round_number == rebound.audit_round


def test_other_unpublished_messages_bind_nothing_again() -> None:
    """Its checkpoint is out; what waits is said about another job."""
    harness = make_harness("1/1")
    recorded = record(harness, Job(harness.network))
    other = Job(harness.network, name="other")
    harness.deliver(RESULT_COMPLETED, other.make_result(harness.clock_ms), other.worker)
    harness.pass_rounds_to(recorded.audit_round)
    assert [body.job_id for body in harness.outbox_of(AUDIT_OPENED)] == [recorded.job_id]


def test_a_window_closes_once_in_its_round(harness: Harness, network: Network) -> None:
    """Not a round earlier, and nothing follows."""
    job = Job(network)
    recorded = record(harness, job)
    harness.pass_rounds_to(recorded.window_close_round - 1)
    assert harness.outbox() == []
    harness.pass_rounds(1)
    ((topic, closed),) = harness.outbox()
    assert (topic, closed.job_id, closed.attempt) == (WINDOW_CLOSED, job.job_id, 1)  # type: ignore[attr-defined]
    harness.pass_rounds(3)
    assert harness.outbox() == []


def test_rounds_that_were_missed_extend_the_window(harness: Harness, network: Network) -> None:
    """Old rounds that arrive late are no ticks: the user keeps as many rounds as were promised."""
    recorded = record(harness, Job(network))
    close = recorded.window_close_round
    harness.clock_ms = compute_round_time_ms(network.chain, close + 2)
    for number in range(harness.latest_round + 1, close + 3):
        harness.round(number)
    # The last three of these were fresh, five are counted from the record on.
    assert harness.outbox() == []
    while not (emitted := harness.outbox()):
        harness.pass_rounds(1)
    assert [topic for topic, _ in emitted] == [WINDOW_CLOSED]
    assert harness.tick == 2 + 6


def test_a_window_closes_in_a_round_that_came_when_it_was_due(harness: Harness, network: Network) -> None:
    """Six ticks are not enough before the round, and the round is not enough when it comes late."""
    harness.clock_ms = compute_round_time_ms(network.chain, 3)
    recorded = record(harness, Job(network))
    assert recorded.window_close_round == 9
    harness.pass_rounds_to(8)
    assert harness.tick == 2 + 6
    assert harness.outbox() == []
    harness.clock_ms = compute_round_time_ms(network.chain, 20)
    harness.round(9)
    assert harness.outbox() == []
    harness.round(20)
    assert len(harness.outbox_of(WINDOW_CLOSED)) == 1


def test_a_window_waits_for_its_audit_round(harness: Harness, network: Network) -> None:
    """Without the round nobody knows whether there is an audit."""
    recorded = record(harness, Job(network))
    harness.pass_rounds_to(recorded.audit_round - 1)
    for number in range(recorded.audit_round + 1, recorded.window_close_round + 4):
        harness.round(number)
    assert harness.outbox() == []
    harness.round(recorded.audit_round)
    harness.round(recorded.window_close_round + 4)
    assert len(harness.outbox_of(WINDOW_CLOSED)) == 1


def test_a_challenge_opens_an_audit_of_everything_in_a_round_to_come(
    harness: Harness, network: Network
) -> None:
    """bind(t of the challenge), full depth, and no window closes."""
    job = Job(network)
    recorded = record(harness, job)
    harness.pass_rounds_to(recorded.audit_round + 1)
    harness.clock_ms += 900
    assert challenge(harness, job) == ""
    due = bind_round(network.chain, harness.clock_ms, 3_000)
    harness.pass_rounds_to(due - 1)
    assert harness.outbox() == []
    harness.pass_rounds(1)
    ((topic, opened),) = harness.outbox()
    assert topic is AUDIT_OPENED
    assert (opened.reason, opened.round_number) == ("challenge", due)  # type: ignore[attr-defined]
    assert opened.corner == to_wire(job.full_corner)  # type: ignore[attr-defined]
    asked = open_envelope(opened.challenge, network.network_id, ChallengeRequestV1)  # type: ignore[attr-defined]
    assert (asked.sender, asked.body.job_id) == (job.user.participant_id, job.job_id)
    harness.pass_rounds(8)
    assert harness.outbox() == []


def test_a_challenged_job_takes_part_in_no_lottery() -> None:
    """It is audited once, in full, although the lottery would have taken it."""
    harness = make_harness("1/1", full_depth_share="0/1")
    job = Job(harness.network)
    record(harness, job)
    assert challenge(harness, job) == ""
    harness.pass_rounds(10)
    (opened,) = harness.outbox_of(AUDIT_OPENED)
    assert opened.reason == "challenge"
    assert opened.corner.full_depth


def test_a_challenge_during_an_audit_deepens_it_once() -> None:
    """Whoever asks twice is refused: one dispute per job."""
    harness = make_harness("1/1")
    job = Job(harness.network)
    recorded = record(harness, job)
    harness.pass_rounds_to(recorded.audit_round)
    harness.drain()
    assert challenge(harness, job) == ""
    ((topic, deepened),) = harness.outbox()
    assert (topic, deepened.job_id) == (AUDIT_DEEPENED, job.job_id)  # type: ignore[attr-defined]
    asked = open_envelope(deepened.challenge, harness.network.network_id, ChallengeRequestV1)  # type: ignore[attr-defined]
    assert (asked.sender, asked.body.job_id) == (job.user.participant_id, job.job_id)
    assert challenge_in_other_bytes(harness, job) == "E208"
    harness.pass_rounds(10)
    assert harness.outbox() == []


def test_a_challenge_of_an_unknown_job_is_refused(harness: Harness, network: Network) -> None:
    """Unknown job, and unknown attempt of a known one."""
    assert challenge(harness, Job(network)) == "E207"
    record(harness, Job(network))
    assert challenge(harness, Job(network, attempt=2)) == "E207"


@pytest.mark.parametrize("name", ["worker", "user-2"])
def test_only_the_user_challenges(harness: Harness, network: Network, name: str) -> None:
    """E209, also to the generator."""
    job = Job(network)
    record(harness, job)
    assert challenge(harness, job, make_key(name)) == "E209"


def test_a_second_challenge_is_refused(harness: Harness, network: Network) -> None:
    """The same envelope as a replay, another one by what is recorded, before any round has come."""
    job = Job(network)
    record(harness, job)
    assert challenge(harness, job) == ""
    assert challenge(harness, job) == "E208"
    assert challenge_in_other_bytes(harness, job) == "E208"
    harness.pass_rounds(4)
    assert len(harness.outbox_of(AUDIT_OPENED)) == 1


def test_a_challenge_counts_by_when_it_arrived(harness: Harness, network: Network) -> None:
    """In the last round before the window closes it is in time, in the next it is not."""
    early, late = Job(network, name="early"), Job(network, name="late")
    recorded = record(harness, early)
    record(harness, late)
    close_ms = compute_round_time_ms(network.chain, recorded.window_close_round)
    harness.pass_rounds_to(recorded.window_close_round - 1)
    harness.clock_ms = close_ms - 1
    assert challenge(harness, early) == ""
    harness.clock_ms = close_ms
    assert challenge(harness, late) == "E206"
    harness.pass_rounds(1)
    assert [body.job_id for body in harness.outbox_of(WINDOW_CLOSED)] == [late.job_id]
    assert challenge(harness, late) == "E206"


def test_after_equivocation_a_challenge_is_refused(harness: Harness, network: Network) -> None:
    """The generator is convicted anyway."""
    job = Job(network)
    record(harness, job)
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms, root=bytes(32)), job.worker)
    harness.drain()
    assert challenge(harness, job) == "E208"


def test_equivocation_ends_a_pending_challenge(harness: Harness, network: Network) -> None:
    """No audit is opened for a job that is convicted already."""
    job = Job(network)
    record(harness, job)
    assert challenge(harness, job) == ""
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms, root=bytes(32)), job.worker)
    harness.drain()
    harness.pass_rounds(10)
    assert harness.outbox() == []


def test_an_outcome_ends_everything(harness: Harness, network: Network) -> None:
    """No window closes, no challenge is taken, further results are only refused."""
    job = Job(network)
    recorded = record(harness, job)
    decide(harness, job)
    assert challenge(harness, job) == "E206"
    harness.pass_rounds_to(recorded.window_close_round + 2)
    assert harness.outbox() == []


def test_a_settled_job_is_left_alone(harness: Harness, network: Network) -> None:
    """Whatever settled it: nothing is drawn for it any more. A job that never committed is no trouble."""
    job = Job(network)
    record(harness, job)
    for job_id in (job.job_id, bytes(32)):
        settled = PayoutSettledV1(
            job_id=job_id,
            attempt=0,
            case="refunded",
            stage=0,
            pool_micro=0,
            generation_micro=0,
            verification_micro=0,
            reserve_micro=0,
            lines=(),
            slashed=(),
        )
        assert harness.deliver(PAYOUT_SETTLED, settled).action == "ack"
    assert challenge(harness, job) == "E206"
    harness.pass_rounds(10)
    assert harness.outbox() == []


def test_an_outcome_of_an_unknown_job_is_refused(harness: Harness, network: Network) -> None:
    """E207, and the service goes on."""
    with pytest.raises(AssertionError):
        decide(harness, Job(network))
    assert harness.refusal().code == "E207"
    record(harness, Job(network))
