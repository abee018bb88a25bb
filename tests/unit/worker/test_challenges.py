"""Claims, challenges and openings: only what was promised is opened, in parts that fit, and forgotten when settled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kit.worker import Bench, make_grant, make_submission
from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.errors import EnvelopeError
from pocache.protocol.ids import Digest
from pocache.protocol.merkle import hash_leaf, verify_multiproof
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role
from pocache_worker import openings
from pocache_worker.identity import forget_removals, read_removals
from pocache_worker.leaves import LeafStore, LeavesError, compute_claim_name
from pocache_worker.openings import DueOpening, compute_parts, read_due, send_opening
from pocache_worker.tables import CLAIMS, LEASES, OPENINGS, SENT, OpeningPhase
from pocache_worker.verification import compute_request, is_sealed, seal_claim, verify_task

JOB = b"\x07" * 32
LEAVES = [bytes([index]) * 40 for index in range(10)]


def make_verify_task(bench: Bench, **changes: Any) -> m.VerifyTaskV1:
    fields: dict[str, Any] = {
        "job_id": JOB,
        "attempt": 1,
        "stage": 2,
        "retry": 0,
        "model_id": bench.network.model.model_id,
        "tokens": pack_tokens(range(11)),
        "prompt_count": 5,
        "corner": m.CornerV1(layer_max=1, position_max=9, full_depth=True),
        "sampling": m.SamplingV1(),
        "seed": bytes(32),
        **changes,
    }
    return m.VerifyTaskV1(**fields)


def make_challenge(
    root: bytes, positions: tuple[int, ...] = (1, 4, 9), **changes: Any
) -> m.ChallengeIssuedV1:
    fields: dict[str, Any] = {
        "job_id": JOB,
        "attempt": 1,
        "stage": 2,
        "retry": 0,
        "round_number": 3,
        "positions": pack_tokens(positions),
        "root": root,
        "leaf_count": len(LEAVES),
        **changes,
    }
    return m.ChallengeIssuedV1(**fields)


def seal(bench: Bench, tmp_path: Path) -> tuple[LeafStore, bytes]:
    """Make a claim's leaves durable and seal them; returns the files and the root."""
    store, task = LeafStore(tmp_path), make_verify_task(bench)
    sealed = store.write(compute_claim_name(JOB, 1, 2, 0), LEAVES)
    for _ in range(2):
        bench.transact(
            lambda unit: seal_claim(unit, task, sealed, worker=bench.key.participant_id, stack="fake/1")
        )
    return store, sealed.root


def challenge(bench: Bench, body: m.ChallengeIssuedV1) -> str:
    return bench.harness.deliver(t.CHALLENGE_ISSUED, body, worker=bench.key.participant_id).action


def get_due(bench: Bench) -> DueOpening:
    due = bench.transact(read_due)
    assert due is not None
    return due


def test_a_claim_is_sealed_once_over_what_is_durable(bench: Bench, tmp_path: Path) -> None:
    _, root = seal(bench, tmp_path)
    (claim,) = bench.harness.outbox_of(t.CLAIM_SEALED)
    assert (claim.root, claim.leaf_count, claim.stage, claim.stack) == (root, 10, 2, "fake/1")
    assert bench.transact(lambda unit: is_sealed(unit, make_verify_task(bench)))
    assert not bench.transact(lambda unit: is_sealed(unit, make_verify_task(bench, retry=1)))


def test_only_the_pools_tasks_for_us_and_inside_the_job_are_taken(bench: Bench) -> None:
    genesis, model, keys = bench.network.genesis, bench.network.model, bench.network.keys
    worker = bench.key.participant_id
    subject = t.VERIFY_TASK.subject(worker=worker)

    def verify(task: m.VerifyTaskV1, signer: Role = Role.VERIFIER, on: str = subject) -> m.VerifyTaskV1:
        return verify_task(on, bench.network.seal(keys[signer], task), genesis, model, worker)

    task = make_verify_task(bench)
    assert verify(task) == task
    assert compute_request(task, genesis.network_id).tokens == tuple(range(11))
    with pytest.raises(EnvelopeError, match="verifier pool"):
        verify(task, signer=Role.ROUTER)
    with pytest.raises(EnvelopeError, match="another worker"):
        verify(task, on=t.VERIFY_TASK.subject(worker=bench.network.participant("other")))
    with pytest.raises(EnvelopeError, match="another model"):
        verify(make_verify_task(bench, model_id=bytes(32)))
    with pytest.raises(EnvelopeError, match="corner beyond"):
        verify(make_verify_task(bench, corner=m.CornerV1(layer_max=1, position_max=10, full_depth=True)))
    with pytest.raises(EnvelopeError, match="corner beyond"):
        verify(make_verify_task(bench, corner=m.CornerV1(layer_max=2, position_max=9, full_depth=False)))


def test_a_challenge_is_opened_with_a_proof_that_leads_to_the_root(bench: Bench, tmp_path: Path) -> None:
    store, root = seal(bench, tmp_path)
    bench.harness.drain()
    assert challenge(bench, make_challenge(root)) == "ack"
    due = get_due(bench)
    parts = compute_parts(due, store.read(due.file_name, unpack_tokens(due.positions)))
    bench.transact(
        lambda unit: send_opening(unit, due, parts, OpeningPhase.SENT, worker=bench.key.participant_id)
    )
    (opening,) = bench.harness.outbox_of(t.OPENING_SUBMITTED)
    assert opening.leaves == (LEAVES[1], LEAVES[4], LEAVES[9])
    proof = [Digest(opening.proof[start : start + 32]) for start in range(0, len(opening.proof), 32)]
    hashes = {index: hash_leaf(LEAVES[index]) for index in (1, 4, 9)}
    verify_multiproof(hashes, 10, proof, Digest(root))
    assert bench.transact(read_due) is None


def test_large_leaves_are_opened_in_parts_that_each_prove_themselves(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, root = seal(bench, tmp_path)
    challenge(bench, make_challenge(root, positions=(0, 1, 2, 5, 9)))
    due = get_due(bench)
    stored = store.read(due.file_name, unpack_tokens(due.positions))
    monkeypatch.setattr(openings, "PART_LEAVES_BYTES_MAX", 80)
    parts = compute_parts(due, stored)
    assert [unpack_tokens(part.positions) for part in parts] == [(0, 1), (2, 5), (9,)]
    assert [(part.part, part.part_count) for part in parts] == [(0, 3), (1, 3), (2, 3)]
    for part in parts:
        proof = [Digest(part.proof[start : start + 32]) for start in range(0, len(part.proof), 32)]
        hashes = {
            index: hash_leaf(leaf)
            for index, leaf in zip(unpack_tokens(part.positions), part.leaves, strict=True)
        }
        verify_multiproof(hashes, 10, proof, Digest(root))
    monkeypatch.setattr(openings, "PART_LEAVES_BYTES_MAX", 1)
    assert len(compute_parts(due, stored)) == 5


def test_leaves_of_another_root_are_never_opened(bench: Bench, tmp_path: Path) -> None:
    store, root = seal(bench, tmp_path)
    challenge(bench, make_challenge(root))
    due = get_due(bench)
    store.write(due.file_name, [*LEAVES[:-1], b"changed"])
    with pytest.raises(LeavesError, match="not the challenged"):
        compute_parts(due, store.read(due.file_name, (1, 4, 9)))


def test_an_opening_is_due_until_it_is_said_and_then_never_again(bench: Bench, tmp_path: Path) -> None:
    """After a crash between challenge and opening it is still due; after the opening a redelivery is no-op."""
    _, root = seal(bench, tmp_path)
    challenge(bench, make_challenge(root))
    first = get_due(bench)
    assert get_due(bench) == first
    bench.transact(
        lambda unit: send_opening(unit, first, (), OpeningPhase.SENT, worker=bench.key.participant_id)
    )
    challenge(bench, make_challenge(root, round_number=4))
    assert bench.transact(read_due) is None


def test_a_root_that_was_never_promised_is_refused(bench: Bench, tmp_path: Path) -> None:
    _, root = seal(bench, tmp_path)
    assert challenge(bench, make_challenge(bytes(32))) == "term"
    assert challenge(bench, make_challenge(root, job_id=bytes(32))) == "term"
    assert bench.opening_phases() == []


def test_silence_is_withheld_not_due(silent_bench: Bench, tmp_path: Path) -> None:
    _, root = seal(silent_bench, tmp_path)
    assert challenge(silent_bench, make_challenge(root)) == "ack"
    assert silent_bench.opening_phases() == [OpeningPhase.WITHHELD]
    assert silent_bench.transact(read_due) is None


def make_payout(job_id: bytes) -> m.PayoutSettledV1:
    return m.PayoutSettledV1(
        job_id=job_id,
        attempt=1,
        case="agree",
        stage=1,
        pool_micro=0,
        generation_micro=0,
        verification_micro=0,
        reserve_micro=0,
        lines=(),
        slashed=(),
    )


def test_a_settled_job_is_forgotten_and_its_files_are_to_go(bench: Bench, tmp_path: Path) -> None:
    _, root = seal(bench, tmp_path)
    challenge(bench, make_challenge(root))
    grant = make_grant(bench.network, bench.key, submission=make_submission(bench.network, token_count_max=2))
    bench.harness.deliver(t.LEASE_GRANTED, grant, worker=bench.key.participant_id)
    bench.harness.deliver(t.PAYOUT_SETTLED, make_payout(JOB))
    names = bench.transact(read_removals)
    assert names == [compute_claim_name(JOB, 1, 2, 0)]

    def count(unit: Any, table: sa.Table) -> int:
        return int(unit.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())

    counts = {
        table.name: bench.transact(lambda unit, table=table: count(unit, table))  # type: ignore[misc]
        for table in (CLAIMS, OPENINGS, SENT, LEASES)
    }
    assert counts == {"claims": 0, "openings": 0, "sent": 0, "leases": 1}
    bench.transact(lambda unit: forget_removals(unit, names))
    assert bench.transact(read_removals) == []


def test_a_settlement_of_a_strangers_job_touches_nothing(bench: Bench, tmp_path: Path) -> None:
    seal(bench, tmp_path)
    before = bench.harness.dump()
    rings = len(bench.rings)
    bench.harness.deliver(t.PAYOUT_SETTLED, make_payout(bytes(32)))
    assert bench.harness.dump() == before
    assert len(bench.rings) == rings
