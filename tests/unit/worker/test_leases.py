"""Leases: asked for, granted or denied, checked against what the user signed, committed once."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from kit.network import make_key
from kit.worker import PROMPT, Bench, build_fake_engine, make_grant, make_submission
from pocache.engine.port import Capture, GenerateRequest
from pocache.protocol.commitment import compute_binding_digest
from pocache.protocol.encoding import pack_tokens
from pocache.protocol.errors import EngineError, EnvelopeError, NotAuthorizedError, PocacheError
from pocache.protocol.merkle import MerkleTree
from pocache.runtime.network import Model
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role
from pocache_worker.commits import (
    ANNOUNCE_COUNT_MAX,
    announce_again,
    commit_result,
    read_announced,
    read_announced_round,
)
from pocache_worker.generation import verify_task
from pocache_worker.grants import Grant, compute_binding, verify_cancellation, verify_grant
from pocache_worker.leases import (
    GrantedLease,
    finish_lease,
    read_cancellation,
    read_granted,
    read_lease,
    request_lease,
)
from pocache_worker.leaves import SealedLeaves
from pocache_worker.service import SentMessage, handle_refusal, verify_refusal
from pocache_worker.tables import LeasePhase

USER = make_key("user")
GRANTED, DENIED, COMMITTED = LeasePhase.GRANTED, LeasePhase.DENIED, LeasePhase.COMMITTED


def deliver_grant(bench: Bench, body: m.LeaseGrantedV1) -> str:
    """Deliver a grant as the router's record to this worker; returns the decision's action."""
    return bench.harness.deliver(t.LEASE_GRANTED, body, worker=bench.key.participant_id).action


def generate(bench: Bench, body: m.LeaseGrantedV1) -> tuple[Grant, Capture, SealedLeaves]:
    """Do what a generator does between a grant and its commitment."""
    grant = verify_grant(
        body, genesis=bench.network.genesis, model=bench.network.model, participant=bench.key.participant_id
    )
    request = GenerateRequest(
        job_id=grant.job_id,
        attempt=grant.lease.attempt,
        prompt=grant.prompt,
        max_tokens=grant.lease.token_count_max,
        sampling=grant.sampling,
        seed=grant.lease.seed,
        network=bench.network.network_id,
        eos_stop=grant.lease.eos_stop,
    )
    capture = build_fake_engine().generate(request, lambda _tokens: None, lambda: False)
    tree = MerkleTree()
    for leaf in capture.leaves:
        tree.append(leaf)
    return grant, capture, SealedLeaves(tree.root(), len(tree))


def commit(bench: Bench, body: m.LeaseGrantedV1, *, latest_round: int = 5, **flags: Any) -> bool:
    """Commit what :func:`generate` made."""
    grant, capture, sealed = generate(bench, body)
    return bench.transact(
        lambda unit: commit_result(
            unit,
            grant,
            capture,
            sealed,
            participant=bench.key.participant_id,
            network=bench.network.network_id,
            stack=bench.network.model.entry.stack,
            latest_round=latest_round,
            **flags,
        )
    )


def test_a_grant_is_kept_and_found_again(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    assert deliver_grant(bench, body) == "ack"
    assert bench.transact(read_granted) == [GrantedLease(body, None)]
    assert bench.rings


def test_a_grant_twice_changes_nothing(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    deliver_grant(bench, body)
    assert commit(bench, body)
    assert bench.harness.last is not None
    bench.harness.apply(bench.harness.last)
    deliver_grant(bench, make_grant(bench.network, bench.key, deadline_ms=10**15 - 1))
    assert bench.phases() == [COMMITTED]
    assert bench.transact(read_granted) == []


FALSIFIED: list[tuple[dict[str, Any], str]] = [
    ({"generator": make_key("other").participant_id}, "E209"),
    ({"prompt_hash": bytes(32)}, "E304"),
    ({"prompt_count": 4}, "E304"),
    ({"token_count_max": 7}, "E304"),
    ({"sampling": m.SamplingV1(temperature_micro=1)}, "E304"),
    ({"eos_stop": True}, "E304"),
    ({"salt": b"another sixteen."}, "E304"),
    ({"model_id": bytes(32)}, "E304"),
    ({"schema_digest": bytes(32)}, "E304"),
    ({"profile_set": bytes(32)}, "E304"),
    ({"user": make_key("other").participant_id}, "E304"),
    ({"signer": make_key("other")}, "E102"),
]


@pytest.mark.parametrize(("changes", "code"), FALSIFIED, ids=[next(iter(one)) for one, _ in FALSIFIED])
def test_a_lease_that_is_not_what_the_user_signed_is_not_generated(
    bench: Bench, changes: dict[str, Any], code: str
) -> None:
    """It counts as denied, so that whoever waits for the answer goes on."""
    body = make_grant(bench.network, bench.key, **changes)
    deliver_grant(bench, body)
    assert bench.transact(read_granted) == []
    answer = bench.transact(lambda unit: read_lease(unit, body.job_id, 1))
    assert answer is not None
    assert (answer.phase, answer.code) == (DENIED, code)


def test_a_users_own_seed_is_the_one_that_is_used(bench: Bench) -> None:
    submission = make_submission(bench.network, seed=b"s" * 32)
    honest = make_grant(bench.network, bench.key, submission=submission)
    forged = make_grant(bench.network, bench.key, submission=submission, seed=bytes(32))
    deliver_grant(bench, forged)
    assert bench.phases() == [DENIED]
    deliver_grant(bench, honest)
    assert bench.phases() == [GRANTED]


def test_a_lease_inside_another_jobs_message_is_refused(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    other = make_grant(bench.network, bench.key, submission=make_submission(bench.network, token_count_max=3))
    deliver_grant(bench, body.model_copy(update={"lease": other.lease}))
    assert bench.phases() == [DENIED]


def test_another_workers_record_and_a_strangers_signature_are_terminated_in_silence(bench: Bench) -> None:
    """A worker has no refusals stream: the message ends, the process goes on."""
    body = make_grant(bench.network, bench.key)
    other = bench.harness.deliver(t.LEASE_GRANTED, body, worker=make_key("other").participant_id)
    forged = bench.harness.deliver(t.LEASE_GRANTED, body, make_key("x"), worker=bench.key.participant_id)
    assert (other.action, forged.action) == ("term", "term")
    assert bench.phases() == []
    assert bench.harness.outbox() == []


def make_task(bench: Bench, job_id: bytes) -> m.GenerateTaskV1:
    return m.GenerateTaskV1(job_id=job_id, attempt=1, model_id=bench.network.model.model_id)


def test_a_task_is_asked_for_and_asked_for_again_with_another_envelope(bench: Bench) -> None:
    """A router refuses replays, so a second request must be a second statement."""
    task = make_task(bench, bytes(32)).model_copy(update={"publication": 3})
    bench.transact(lambda unit: request_lease(unit, task, bench.key.participant_id))
    bench.harness.clock_ms += 1
    bench.transact(lambda unit: request_lease(unit, task, bench.key.participant_id))
    first, second = bench.harness.drain()
    assert first.topic is t.LEASE_REQUESTED
    assert first.subject == f"leases.requested.{bench.key.participant_id}"
    assert first.envelope_id != second.envelope_id
    assert isinstance(first.body, m.LeaseRequestV1)
    assert first.body.publication == 3
    assert bench.phases() == [LeasePhase.REQUESTED]


def test_what_is_settled_is_not_asked_for(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    deliver_grant(bench, body)
    bench.transact(lambda unit: request_lease(unit, make_task(bench, body.job_id), bench.key.participant_id))
    assert bench.harness.outbox() == []
    assert bench.phases() == [GRANTED]


def test_a_denial_is_kept_with_its_code_and_does_not_touch_a_lease(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    denial = m.LeaseDeniedV1(job_id=body.job_id, attempt=1, code="E204", reason="no stake")
    bench.transact(lambda unit: request_lease(unit, make_task(bench, body.job_id), bench.key.participant_id))
    bench.harness.deliver(t.LEASE_DENIED, denial, worker=bench.key.participant_id)
    answer = bench.transact(lambda unit: read_lease(unit, body.job_id, 1))
    assert answer is not None
    assert (answer.phase, answer.code) == (DENIED, "E204")
    deliver_grant(bench, body)
    late = denial.model_copy(update={"reason": "late"})
    bench.harness.deliver(t.LEASE_DENIED, late, worker=bench.key.participant_id)
    assert bench.phases() == [GRANTED]


def test_the_result_binds_the_lease_the_output_and_the_root(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    deliver_grant(bench, body)
    assert commit(bench, body, latest_round=9)
    (result,) = bench.harness.outbox_of(t.RESULT_COMPLETED)
    grant, capture, sealed = generate(bench, body)
    binding = compute_binding(
        grant,
        network=bench.network.network_id,
        stack=bench.network.model.entry.stack,
        output=pack_tokens(capture.output),
    )
    assert result == m.ResultV1(
        job_id=body.job_id,
        attempt=1,
        lease=body.lease,
        output=pack_tokens(capture.output),
        finish_reason="length",
        leaf_count=len(PROMPT) + 6 - 1,
        root=sealed.root,
        binding=compute_binding_digest(binding),
        stack=bench.network.model.entry.stack,
        latest_round=9,
    )


def test_a_lease_is_committed_once(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    deliver_grant(bench, body)
    assert commit(bench, body)
    assert not commit(bench, body)
    assert len(bench.harness.outbox()) == 1


def test_nothing_is_said_for_a_lease_that_ended_meanwhile(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key, deadline_ms=bench.harness.clock_ms)
    deliver_grant(bench, body)
    assert bench.transact(read_granted) == []
    assert bench.phases() == [LeasePhase.EXPIRED]
    assert not commit(bench, body)
    assert bench.harness.outbox() == []


def test_a_failed_lease_is_not_begun_again(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    deliver_grant(bench, body)
    bench.transact(lambda unit: finish_lease(unit, body, LeasePhase.FAILED, EngineError("too large")))
    assert bench.transact(read_granted) == []
    assert bench.phases() == [LeasePhase.FAILED]


def test_two_commitments_contradict_each_other_under_one_lease(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    deliver_grant(bench, body)
    assert commit(bench, body, commits_twice=True)
    first, second = bench.harness.outbox_of(t.RESULT_COMPLETED)
    assert first.root != second.root
    assert first.model_copy(update={"root": second.root}) == second


def refuse(data: bytes, code: str) -> m.RefusalV1:
    """Return the refusal of a message that this worker sent."""
    return m.RefusalV1(message_hash=hashlib.sha256(data).digest(), subject="s", code=code, reason="r")


def test_a_refused_result_is_known_and_said_again_with_a_later_round_only(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key)
    deliver_grant(bench, body)
    commit(bench, body, latest_round=5)
    (sent,) = bench.harness.drain()
    known = bench.transact(lambda unit: handle_refusal(unit, refuse(sent.data, "E206")))
    assert known == SentMessage("result.v1", body.job_id, 1)

    def again(latest_round: int) -> bool:
        return bench.transact(
            lambda unit: announce_again(
                unit, body.job_id, 1, participant=bench.key.participant_id, latest_round=latest_round
            )
        )

    assert bench.transact(lambda unit: read_announced_round(unit, body.job_id, 1)) == 5
    assert not again(5)
    assert again(6)
    (result,) = bench.harness.outbox_of(t.RESULT_COMPLETED)
    assert isinstance(sent.body, m.ResultV1)
    assert result == sent.body.model_copy(update={"latest_round": 6})
    assert [again(round_number) for round_number in range(7, 20)].count(True) == ANNOUNCE_COUNT_MAX - 2


def test_a_result_is_not_said_again_after_its_lease(bench: Bench) -> None:
    body = make_grant(bench.network, bench.key, deadline_ms=bench.harness.clock_ms + 1)
    deliver_grant(bench, body)
    assert commit(bench, body)
    assert bench.transact(read_announced) == [(body.job_id, 1)]
    bench.harness.clock_ms += 2
    assert bench.transact(read_announced) == []
    assert not bench.transact(
        lambda unit: announce_again(
            unit, body.job_id, 1, participant=bench.key.participant_id, latest_round=99
        )
    )


def test_a_refused_request_is_an_answer_and_a_refused_result_is_none(bench: Bench) -> None:
    task = make_task(bench, bytes(32))
    bench.transact(lambda unit: request_lease(unit, task, bench.key.participant_id))
    (sent,) = bench.harness.drain()
    assert bench.transact(lambda unit: handle_refusal(unit, refuse(b"other", "E207"))) is None
    assert bench.phases() == [LeasePhase.REQUESTED]
    bench.transact(lambda unit: handle_refusal(unit, refuse(sent.data, "E207")))
    assert bench.phases() == [DENIED]


def test_a_refusal_counts_only_from_the_service_it_names(bench: Bench) -> None:
    genesis, keys = bench.network.genesis, bench.network.keys
    body = refuse(b"data", "E206")
    subject = t.REFUSALS[Role.COMMITMENTS].subject(ref=body.message_hash)
    sealed = bench.network.seal(keys[Role.COMMITMENTS], body)
    assert verify_refusal(sealed, subject, genesis) == body
    with pytest.raises(PocacheError, match="did not sign"):
        verify_refusal(bench.network.seal(keys[Role.ROUTER], body), subject, genesis)
    with pytest.raises(PocacheError, match="another message"):
        verify_refusal(sealed, t.REFUSALS[Role.COMMITMENTS].subject(ref=bytes(32)), genesis)
    with pytest.raises(PocacheError, match="not the subject"):
        verify_refusal(sealed, "jobs.submitted", genesis)


def test_only_the_routers_tasks_for_our_model_are_taken(bench: Bench) -> None:
    genesis, model, keys = bench.network.genesis, bench.network.model, bench.network.keys
    task = make_task(bench, bytes(32))
    subject = t.GENERATE_TASK.subject(model=model.model_id)
    assert verify_task(subject, bench.network.seal(keys[Role.ROUTER], task), genesis, model) == task
    with pytest.raises(EnvelopeError, match="signed by the router"):
        verify_task(subject, bench.network.seal(keys[Role.VERIFIER], task), genesis, model)
    foreign = task.model_copy(update={"model_id": bytes(32)})
    with pytest.raises(EnvelopeError, match="another model"):
        verify_task(subject, bench.network.seal(keys[Role.ROUTER], foreign), genesis, model)
    with pytest.raises(EnvelopeError, match="another model"):
        verify_task(
            t.GENERATE_TASK.subject(model=bytes(32)),
            bench.network.seal(keys[Role.ROUTER], foreign),
            genesis,
            Model(model.entry),
        )


def test_a_cancelled_lease_is_known_whichever_came_first(bench: Bench) -> None:
    """The notice may overtake its grant; it is found by the grant, and counts only when its user signed it."""
    body = make_grant(bench.network, bench.key)
    grant = generate(bench, body)[0]
    cancellation = bench.network.seal(USER, m.CancelRequestV1(job_id=body.job_id))
    assert bench.transact(lambda unit: read_cancellation(unit, grant)) is None
    notice = m.LeaseCancelledV1(job_id=body.job_id, attempt=1, cancellation=cancellation)
    decision = bench.harness.deliver(t.LEASE_CANCELLED, notice, worker=bench.key.participant_id)
    assert decision.action == "ack"
    assert bench.rings
    assert bench.transact(lambda unit: read_cancellation(unit, grant)) == cancellation
    verify_cancellation(grant, cancellation, network=bench.network.network_id)
    others = (
        bench.network.seal(bench.key, m.CancelRequestV1(job_id=body.job_id)),
        bench.network.seal(USER, m.CancelRequestV1(job_id=bytes(32))),
    )
    for other in others:
        with pytest.raises(NotAuthorizedError):
            verify_cancellation(grant, other, network=bench.network.network_id)
