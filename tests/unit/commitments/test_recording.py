"""Results: what is recorded and bound to which round, and every reason for which one is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.committing import EOS, Job, make_tree
from kit.network import Harness, Network, make_key
from pocache.protocol.beacon import bind_round, compute_round_at, compute_round_time_ms
from pocache.protocol.encoding import pack_tokens
from pocache.protocol.ids import Digest, JobId
from pocache.protocol.keys import SigningKey
from pocache.protocol.merkle import MerkleTree
from pocache.service.dispatch import Delivery, Dispatcher
from pocache.wire.messages import CancelRequestV1, LeaseLapsedV1, ResultV1
from pocache.wire.topics import (
    ATTEMPT_CLOSED,
    CHECKPOINT,
    COMMITMENT_RECORDED,
    EQUIVOCATION,
    EVIDENCE,
    LEASE_LAPSED,
    REFUSALS,
    RESULT_COMPLETED,
    Role,
)
from pocache_commitments.log import compute_log_leaf
from pocache_commitments.service import CommitmentsService

OTHER = hashlib.sha256(b"other").digest()


def record(harness: Harness, job: Job, **changes: Any) -> str:
    """Deliver the job's result; return the decision's action."""
    result = job.make_result(harness.clock_ms, **changes)
    return harness.deliver(RESULT_COMPLETED, result, job.worker).action


def expect_refusal(harness: Harness, result: ResultV1, signer: Any, code: str) -> None:
    """Deliver a result that must be refused with this code and leave nothing behind."""
    before = harness.dump()
    decision = harness.deliver(RESULT_COMPLETED, result, signer)
    assert decision.action == "term"
    assert harness.refusal().code == code
    assert harness.dump() == before


def test_a_result_is_recorded_and_bound_to_rounds_to_come(harness: Harness, network: Network) -> None:
    """The audit round is bind(t), the window counts from the round of t, the checkpoint covers it."""
    job = Job(network)
    harness.clock_ms += 700
    assert record(harness, job) == "ack"
    recorded, checkpoint = harness.outbox()
    assert (recorded[0], checkpoint[0]) == (COMMITMENT_RECORDED, CHECKPOINT)
    body: Any = recorded[1]
    assert (body.job_id, body.attempt, body.generator) == (job.job_id, 1, job.worker.participant_id)
    assert (body.log_index, body.received_ms, body.recorded_ms) == (0, harness.clock_ms, harness.clock_ms)
    assert body.audit_round == bind_round(network.chain, harness.clock_ms, 3_000)
    assert compute_round_time_ms(network.chain, body.audit_round) > harness.clock_ms + 3_000
    assert body.window_close_round == compute_round_at(network.chain, harness.clock_ms) + 6
    assert network.open(body.result, ResultV1).root == job.generator.tree.root()
    entry = compute_log_leaf(
        job_id=job.job_id,
        attempt=1,
        root=job.generator.tree.root(),
        leaf_count=job.leaf_count,
        binding=Digest(network.open(body.result, ResultV1).binding),
        result_id=network.envelope_id(body.result),
    )
    assert (checkpoint[1].size, checkpoint[1].root) == (1, make_tree([entry]).root())  # type: ignore[attr-defined]


def test_every_checkpoint_is_the_rfc_6962_root_of_all_entries(harness: Harness, network: Network) -> None:
    """Five commitments, five checkpoints, one tree."""
    tree = MerkleTree()
    for number in range(5):
        job = Job(network, name=f"job {number}")
        record(harness, job)
        recorded, checkpoint = (body for _, body in harness.outbox())
        result = network.open(recorded.result, ResultV1)  # type: ignore[attr-defined]
        entry = compute_log_leaf(
            job_id=job.job_id,
            attempt=1,
            root=Digest(result.root),
            leaf_count=result.leaf_count,
            binding=Digest(result.binding),
            result_id=network.envelope_id(recorded.result),  # type: ignore[attr-defined]
        )
        assert tree.append(entry) == recorded.log_index == number  # type: ignore[attr-defined]
        assert (checkpoint.size, checkpoint.root) == (number + 1, tree.root())  # type: ignore[attr-defined]


def test_the_audit_round_is_later_than_every_round_known_here(harness: Harness, network: Network) -> None:
    """A clock that runs behind does not make a known round decide."""
    harness.round(40)
    harness.clock_ms = compute_round_time_ms(network.chain, 10)
    record(harness, Job(network))
    (recorded,) = harness.outbox_of(COMMITMENT_RECORDED)
    assert recorded.audit_round == 41
    assert recorded.window_close_round > 41


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"leaf_count": 8}, "E304"),
        ({"leaf_count": 6}, "E304"),
        ({"binding": OTHER}, "E304"),
        ({"output": pack_tokens((8, 9, 10, 11, 13))}, "E304"),
        ({"finish_reason": "stop"}, "E304"),
        ({"output": b"\x01\x00\x00\x00\x02"}, "E105"),
        ({"attempt": 2}, "E207"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_a_result_that_does_not_fit_is_refused(
    harness: Harness, network: Network, changes: dict[str, Any], code: str
) -> None:
    """N, binding, how the output ends, packing, attempt: each by itself."""
    job = Job(network)
    expect_refusal(harness, job.make_result(harness.clock_ms, **changes), job.worker, code)


@pytest.mark.parametrize(
    "options",
    [
        {"output": (8, 9, 10, 11, 100)},
        {"output": (8, 9, 10, 11, 12, EOS)},
        {"output": (8, 9, 10)},
        {"output": (8, EOS, 10, 11, 12)},
        {"stack": "fake/2"},
    ],
    ids=["vocabulary", "too-long", "too-short", "goes-on-after-eos", "stack"],
)
def test_a_commitment_to_the_wrong_thing_is_refused(
    harness: Harness, network: Network, options: dict[str, Any]
) -> None:
    """Consistent in itself, and honestly bound: E304."""
    job = Job(network, **options)
    expect_refusal(harness, job.make_result(harness.clock_ms), job.worker, "E304")


def test_an_early_end_of_sequence_is_a_stop(harness: Harness, network: Network) -> None:
    """It is recorded as ``stop``, and refused as ``length``."""
    job = Job(network, output=(8, EOS))
    wrong = job.make_result(harness.clock_ms, finish_reason="length")
    expect_refusal(harness, wrong, job.worker, "E304")
    assert record(harness, job) == "ack"


def test_without_eos_stop_an_output_has_its_full_length(harness: Harness, network: Network) -> None:
    """An EOS is a token like another then."""
    short = Job(network, output=(8, EOS), eos_stop=False)
    expect_refusal(harness, short.make_result(harness.clock_ms), short.worker, "E304")
    assert record(harness, Job(network, output=(8, EOS, 8, 8, EOS), eos_stop=False)) == "ack"


@pytest.mark.parametrize("name", ["schema_digest", "profile_set"])
def test_a_lease_for_another_schema_or_profile_is_refused(
    harness: Harness, network: Network, name: str
) -> None:
    """The rows could not be opened, or not be judged."""
    job = Job(network, lease_changes={name: OTHER})
    expect_refusal(harness, job.make_result(harness.clock_ms), job.worker, "E304")


def test_an_unknown_model_is_refused(harness: Harness, network: Network) -> None:
    """E201."""
    job = Job(network, lease_changes={"model_id": OTHER})
    expect_refusal(harness, job.make_result(harness.clock_ms), job.worker, "E201")


def test_a_job_that_was_never_dispatched_is_refused(harness: Harness, network: Network) -> None:
    """No lease at all, a lease that somebody else signed, and the true lease of another job."""
    job = Job(network)
    nothing = job.make_result(harness.clock_ms).model_copy(update={"lease": b"not a lease"})
    expect_refusal(harness, nothing, job.worker, "E207")
    forged = job.make_lease(job.worker)
    expect_refusal(harness, job.make_result(harness.clock_ms, lease=forged), job.worker, "E207")
    others = Job(network, name="other").make_lease()
    expect_refusal(harness, job.make_result(harness.clock_ms, lease=others), job.worker, "E207")


def test_only_the_leaseholder_commits(harness: Harness, network: Network) -> None:
    """E209."""
    job = Job(network)
    expect_refusal(harness, job.make_result(harness.clock_ms), make_key("worker-2"), "E209")


def test_a_commitment_after_the_lease_is_refused(harness: Harness, network: Network) -> None:
    """The server's clock decides: at the deadline it is in time, one millisecond later it is not."""
    job = Job(network, deadline_ms=harness.clock_ms - 1)
    expect_refusal(harness, job.make_result(harness.clock_ms), job.worker, "E206")
    assert record(harness, Job(network, deadline_ms=harness.clock_ms)) == "ack"


@pytest.mark.parametrize(("offset", "is_taken"), [(-3, False), (-2, True), (0, True), (1, False)])
def test_the_latest_round_fits_the_time_of_arrival(
    harness: Harness, network: Network, offset: int, is_taken: bool
) -> None:
    """At most two rounds old, never one that is still to come; what is refused may be announced again."""
    harness.pass_rounds(5)
    job = Job(network)
    current = compute_round_at(network.chain, harness.clock_ms)
    result = job.make_result(harness.clock_ms, latest_round=current + offset)
    if is_taken:
        assert harness.deliver(RESULT_COMPLETED, result, job.worker).action == "ack"
        return
    expect_refusal(harness, result, job.worker, "E206")
    assert record(harness, job) == "ack"
    assert len(harness.outbox_of(COMMITMENT_RECORDED)) == 1


def test_the_same_promise_again_changes_nothing(harness: Harness, network: Network) -> None:
    """Signed anew with a later round: no second entry, no evidence."""
    job = Job(network)
    record(harness, job)
    harness.pass_rounds(1)
    before = harness.dump()
    harness.drain()
    assert record(harness, job) == "ack"
    assert harness.outbox() == []
    assert harness.dump() == before


def test_a_replayed_result_is_refused_and_a_redelivery_is_not(harness: Harness, network: Network) -> None:
    """The same bytes at another place in the stream: E208; the same delivery: acknowledged in silence."""
    job = Job(network)
    result = job.make_result(harness.clock_ms)
    harness.deliver(RESULT_COMPLETED, result, job.worker)
    harness.drain()
    assert harness.last is not None
    assert harness.apply(harness.last).action == "ack"
    assert harness.outbox() == []
    expect_refusal(harness, result, job.worker, "E208")


def make_stale(job: Job, harness: Harness) -> ResultV1:
    harness.pass_rounds(5)
    return job.make_result(harness.clock_ms, root=OTHER, latest_round=1)


def make_late(job: Job, harness: Harness) -> ResultV1:
    harness.clock_ms = job.deadline_ms + 1
    return job.make_result(harness.clock_ms, root=OTHER)


@pytest.mark.parametrize(
    "make_second",
    [
        lambda job, harness: job.make_result(harness.clock_ms, root=OTHER),
        lambda job, harness: job.make_result(harness.clock_ms, binding=OTHER),
        lambda job, harness: job.make_result(harness.clock_ms, leaf_count=8),
        make_stale,
        make_late,
    ],
    ids=["root", "binding", "leaf-count", "stale", "late"],
)
def test_a_second_commitment_is_evidence(
    harness: Harness, network: Network, make_second: Callable[[Job, Harness], ResultV1]
) -> None:
    """Both envelopes are named, the second is kept whole, and its sender is told why; once."""
    job = Job(network, deadline_ms=harness.clock_ms + 60_000)
    record(harness, job)
    (recorded,) = harness.outbox_of(COMMITMENT_RECORDED)
    second = make_second(job, harness)
    harness.drain()
    assert harness.deliver(RESULT_COMPLETED, second, job.worker).action == "ack"
    emitted: Any = harness.outbox()
    assert [topic for topic, _ in emitted] == [EQUIVOCATION, EVIDENCE, REFUSALS[Role.COMMITMENTS]]
    found, evidence, refusal = (body for _, body in emitted)
    assert found.generator == job.worker.participant_id
    assert found.first_envelope_id == network.envelope_id(recorded.result)
    assert found.second_envelope_id == network.envelope_id(evidence.result)
    assert network.open(evidence.result, ResultV1) == second
    assert (refusal.code, refusal.message_hash) == ("E208", hashlib.sha256(evidence.result).digest())
    third = job.make_result(harness.clock_ms, root=hashlib.sha256(b"third").digest())
    expect_refusal(harness, third, job.worker, "E208")


def test_nobody_makes_evidence_against_another(harness: Harness, network: Network) -> None:
    """A second result signed by somebody else is refused; the commitment stands."""
    job = Job(network)
    record(harness, job)
    harness.drain()
    expect_refusal(harness, job.make_result(harness.clock_ms, root=OTHER), make_key("worker-2"), "E209")


def test_after_equivocation_nothing_is_drawn_and_no_window_closes(harness: Harness, network: Network) -> None:
    """The pool convicts; this service only waits for the outcome."""
    job = Job(network)
    record(harness, job)
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms, root=OTHER), job.worker)
    harness.drain()
    harness.pass_rounds(12)
    assert harness.outbox() == []


def test_after_the_window_a_second_commitment_is_only_refused(harness: Harness, network: Network) -> None:
    """The job is settled: the refusal says so, and nothing is accused."""
    job = Job(network)
    record(harness, job)
    harness.drain()
    harness.pass_rounds(12)
    harness.drain()
    expect_refusal(harness, job.make_result(harness.clock_ms, root=OTHER), job.worker, "E208")


def test_a_batch_does_not_make_its_later_results_older_than_they_are(network: Network) -> None:
    """Each is bound by the clock at its own turn: the first took so long that its own round is due by the second's."""
    harness = Harness(CommitmentsService(network.genesis, network.models), network)
    harness.pass_rounds(2)
    started_ms = harness.clock_ms
    jobs = [Job(network, name=name) for name in ("first", "second")]
    deliveries: list[Any] = []
    for job in jobs:
        subject = RESULT_COMPLETED.subject(worker=job.worker.participant_id, job=job.job_id)
        data = network.seal(job.worker, job.make_result(started_ms))
        deliveries.append(Delivery(subject, data, "INTAKE", len(deliveries) + 1, started_ms))
    clock = iter([started_ms, started_ms, started_ms + 60_000])
    harness.dispatcher = Dispatcher(
        harness.service,
        harness.store,
        key=network.keys[Role.COMMITMENTS],
        genesis=network.genesis,
        clock_ms=lambda: next(clock),
    )
    assert [decision.action for decision in harness.dispatcher.apply(deliveries)] == ["ack", "ack"]
    first, second = harness.outbox_of(COMMITMENT_RECORDED)
    assert (first.recorded_ms, second.recorded_ms) == (started_ms, started_ms + 60_000)
    assert second.audit_round == bind_round(network.chain, started_ms + 60_000, 3_000)
    assert compute_round_time_ms(network.chain, first.audit_round) < second.recorded_ms


def lapse(harness: Harness, job: Job, generator: str = "worker") -> None:
    """Deliver the router's word that the job's lease lapsed."""
    holder = make_key(generator).participant_id
    body = LeaseLapsedV1(job_id=job.job_id, attempt=job.attempt, generator=holder)
    assert harness.deliver(LEASE_LAPSED, body).action == "ack"


def test_a_lapsed_attempt_is_closed_once_and_takes_no_commitment(harness: Harness, network: Network) -> None:
    """The next attempt is another matter."""
    job = Job(network)
    lapse(harness, job)
    ((topic, closed),) = harness.outbox()
    assert (topic, closed.job_id, closed.attempt) == (ATTEMPT_CLOSED, job.job_id, 1)  # type: ignore[attr-defined]
    lapse(harness, job, "worker-2")
    assert harness.outbox() == []
    expect_refusal(harness, job.make_result(harness.clock_ms), job.worker, "E206")
    assert record(harness, Job(network, attempt=2)) == "ack"


def test_a_lease_that_lapses_after_its_commitment_changes_nothing(harness: Harness, network: Network) -> None:
    """INTAKE is one order: whichever came first counts."""
    job = Job(network)
    record(harness, job)
    harness.drain()
    before = harness.dump()
    lapse(harness, job)
    assert harness.outbox() == []
    assert harness.dump() == before


def test_a_restart_goes_on_with_the_same_log(network: Network, tmp_path: Path) -> None:
    """What was recorded is there after the process died."""
    url = f"sqlite:///{tmp_path / 'state.sqlite'}"
    service = CommitmentsService(network.genesis, network.models)
    first = Harness(service, network, url=url)
    record(first, Job(network, name="a"))
    first.close()
    second = Harness(service, network, url=url, _sequences={"INTAKE": 1})
    record(second, Job(network, name="b"))
    recorded = second.outbox_of(COMMITMENT_RECORDED)
    assert [(JobId(body.job_id), body.log_index) for body in recorded] == [
        (Job(network, name="a").job_id, 0),
        (Job(network, name="b").job_id, 1),
    ]
    second.close()


def test_a_cancelled_output_needs_its_users_word(harness: Harness, network: Network) -> None:
    """Shorter than was asked for: recorded by the user's signed request for this very job, by nothing else."""
    job = Job(network, output=(8, 9))

    def make(signer: SigningKey, job_id: bytes) -> bytes:
        return network.seal(signer, CancelRequestV1(job_id=job_id))

    good = make(job.user, job.job_id)
    for reason, cancellation in (
        ("cancelled", None),
        ("length", good),
        ("cancelled", make(job.worker, job.job_id)),
        ("cancelled", make(job.user, OTHER)),
        ("cancelled", b"none"),
    ):
        wrong = job.make_result(harness.clock_ms, finish_reason=reason, cancellation=cancellation)
        expect_refusal(harness, wrong, job.worker, "E304")
    whole = Job(network).make_result(harness.clock_ms, finish_reason="cancelled", cancellation=good)
    expect_refusal(harness, whole, job.worker, "E304")
    result = job.make_result(harness.clock_ms, finish_reason="cancelled", cancellation=good)
    assert harness.deliver(RESULT_COMPLETED, result, job.worker).action == "ack"
    (recorded,) = harness.outbox_of(COMMITMENT_RECORDED)
    assert network.open(recorded.result, ResultV1).cancellation == good
