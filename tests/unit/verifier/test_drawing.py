"""Every stage has a draw of its own, in a round that nobody knew before, and anyone can draw it again."""

from __future__ import annotations

from pathlib import Path

from kit.network import Harness
from kit.pool import GARBAGE, STAKE, Pool
from pocache.protocol.beacon import bind_round, compute_round_time_ms, verify_round
from pocache.protocol.challenge import DeterministicStream, Tag, compute_seed, draw_order
from pocache.protocol.ids import ParticipantId
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_verifier.service import VerifierService


def draw_again(
    pool: Pool, snapshots: list[m.SnapshotV1], stage: int, round_number: int, drawn: list[str]
) -> tuple[int, tuple[ParticipantId, ...]]:
    """Return the snapshot's number and the order of a stage's candidates, from messages of the record alone."""
    chain = pool.network.chain
    due_ms = compute_round_time_ms(chain, round_number)
    snapshot = [one for one in snapshots if one.taken_ms < due_ms][-1]
    recorded = pool.job.committed()
    result = pool.network.open(recorded.result, m.ResultV1)
    lease = pool.network.open(result.lease, m.LeaseV1)
    seed = compute_seed(
        Tag.VERIFIERS,
        network=pool.network.network_id,
        chain_hash=chain.chain_hash,
        round_number=round_number,
        randomness=verify_round(chain, round_number, pool.network.make_round(round_number).signature),
        root=result.root,  # type: ignore[arg-type]
        leaf_count=result.leaf_count,
        job_id=recorded.job_id,  # type: ignore[arg-type]
        stage=stage,
    )
    excluded = {recorded.generator, lease.user, *drawn}
    stakes = [
        (ParticipantId(member.participant), member.stake_micro)
        for member in snapshot.members
        if lease.model_id in member.model_ids and member.participant not in excluded
    ]
    return snapshot.number, draw_order(DeterministicStream(seed), stakes)


def test_every_draw_can_be_made_again_from_the_record() -> None:
    """Three stages, a stake refused at each, a new member before the third: each draw is that of its own round."""
    pool = Pool(verifier_count=9, rows={1: GARBAGE, 2: 5.0, 3: -7.0})
    for number, key in enumerate(list(pool.keys.values()), 1):
        pool.stake(key, number * STAKE, entry=number)
    pool.commit()
    rounds = {1: pool.audit().round_number}
    snapshots = pool.listen(t.SNAPSHOT_TAKEN)
    said: list[list[m.VerifierDrawnV1]] = []
    drawn: list[str] = []
    for stage in (1, 2, 3):
        if stage > 1:
            bound = pool.hear(t.STAGE_BOUND)
            rounds[stage] = bound.round_number
            assert (bound.stage, bound.ended_ms) == (stage, pool.harness.clock_ms)
            assert bound.round_number == bind_round(pool.network.chain, bound.ended_ms, 3_000)
            assert pool.listen(t.VERIFIER_DRAWN) == []
            pool.harness.pass_rounds_to(bound.round_number)
        pool.refuse_hold()
        pool.play()
        if stage == 2:
            pool.keys[pool.network.participant("new")] = pool.network.key("new")
            pool.enroll(pool.network.key("new"), 1_000 * STAKE)
        snapshots += pool.listen(t.SNAPSHOT_TAKEN)
        said.append(pool.listen(t.VERIFIER_DRAWN))
    for stage, draws in zip((1, 2, 3), said, strict=True):
        number, order = draw_again(pool, snapshots, stage, rounds[stage], drawn)
        assert [(one.stage, one.round_number, one.place) for one in draws] == [
            (stage, rounds[stage], 0),
            (stage, rounds[stage], 1),
        ]
        assert {one.snapshot for one in draws} == {number}
        assert tuple(one.participant for one in draws) == order[:2]
        drawn += [one.participant for one in draws]
    assert len(set(rounds.values())) == 3
    assert said[2][0].snapshot > said[0][0].snapshot
    assert pool.network.participant("new") in {one.participant for one in said[2]}


def test_a_stage_is_drawn_in_its_round_and_in_no_other() -> None:
    """Nobody is asked before, and a round that was skipped decides as soon as it is there."""
    pool = Pool(rows={1: GARBAGE}).start()
    pool.play()
    bound = pool.hear(t.STAGE_BOUND)
    pool.harness.pass_rounds_to(bound.round_number - 1)
    pool.harness.round(bound.round_number + 1)
    assert pool.listen(t.VERIFIER_HOLD_REQUESTED) == []
    pool.harness.round(bound.round_number)
    assert pool.hear(t.VERIFIER_HOLD_REQUESTED).stage == 2
    assert {one.round_number for one in pool.listen(t.VERIFIER_DRAWN) if one.stage == 2} == {
        bound.round_number
    }


def test_a_stage_is_bound_later_than_every_round_known_here() -> None:
    """Whatever the clock says: a round that is known would let the pool choose the verifiers."""
    pool = Pool(rows={1: GARBAGE}).start()
    pool.hold()
    pool.seal()
    pool.tell(t.BEACON_ROUND, pool.network.make_round(pool.harness.latest_round + 40))
    known = pool.harness.latest_round
    pool.open()
    assert pool.hear(t.STAGE_BOUND).round_number == known + 1


def test_equivocation_ends_a_stage_before_its_draw() -> None:
    pool = Pool(rows={1: GARBAGE}).start()
    pool.play()
    bound = pool.hear(t.STAGE_BOUND)
    pool.equivocate()
    assert pool.outcome.case == "equivocation"
    pool.harness.pass_rounds_to(bound.round_number)
    assert pool.listen(t.VERIFIER_DRAWN)[1:] == []
    assert pool.listen(t.VERIFIER_HOLD_REQUESTED) == []


def test_a_restarted_pool_draws_the_stage_that_it_waited_for(tmp_path: Path) -> None:
    pool = Pool(rows={1: GARBAGE})
    url = f"sqlite:///{tmp_path}/verifier.db"
    pool.harness = Harness(VerifierService(pool.network.genesis, pool.network.models), pool.network, url=url)
    pool.start()
    first = pool.play()
    pool.harness.close()
    pool.harness.open()
    second = pool.play()
    assert first != second
    assert pool.outcome.case == "confirm_generator"
    pool.harness.close()
