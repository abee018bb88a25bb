"""Members, stakes, snapshots, and a sortition that anyone can draw again from what was announced."""

from __future__ import annotations

from typing import Any

import pytest

from kit.network import STACK, make_network
from kit.pool import STAKE, Pool
from pocache.protocol.beacon import compute_round_time_ms, verify_round
from pocache.protocol.challenge import DeterministicStream, Tag, compute_seed, draw_order
from pocache.protocol.errors import ConfigError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.limits import MEMBERS_MAX, PAYLOAD_BYTES_MAX
from pocache.runtime.network import Model
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_verifier import membership
from pocache_verifier.service import VerifierService


def test_a_snapshot_has_who_verifies_and_has_stake() -> None:
    pool = Pool()
    one, two, three = (pool.network.key(name) for name in ("one", "two", "three"))
    pool.enroll(one, 5)
    pool.enroll(two, 7, verifies=False)
    pool.enroll(three, 0)
    pool.stake(pool.network.key("four"), 9)
    pool.harness.pass_rounds()
    snapshot = pool.hear(t.SNAPSHOT_TAKEN)
    assert snapshot.number == 1
    assert snapshot.members == (
        m.SnapshotMemberV1(
            participant=one.participant_id, stake_micro=5, model_ids=(pool.network.model.model_id,)
        ),
    )


@pytest.mark.parametrize("change", [{"stack": "fake/2"}, {"model_ids": (b"\x99" * 32,)}, {"model_ids": ()}])
def test_who_cannot_verify_any_model_here_is_not_drawn(change: dict[str, Any]) -> None:
    pool = Pool()
    pool.enroll(pool.network.key("one"), **change)
    pool.harness.pass_rounds()
    assert pool.listen(t.SNAPSHOT_TAKEN) == []


def test_snapshots_are_taken_only_when_something_changed() -> None:
    pool = Pool()
    one = pool.network.key("one")
    pool.enroll(one, 5)
    pool.harness.pass_rounds(3)
    assert pool.hear(t.SNAPSHOT_TAKEN).number == 1
    pool.stake(one, 5, entry=2)
    pool.harness.pass_rounds()
    assert pool.listen(t.SNAPSHOT_TAKEN) == []
    pool.stake(one, 6, entry=3)
    pool.harness.pass_rounds()
    snapshot = pool.hear(t.SNAPSHOT_TAKEN)
    assert (snapshot.number, snapshot.members[0].stake_micro) == (2, 6)


def test_an_older_stake_or_announcement_does_not_replace_a_newer_one() -> None:
    pool = Pool()
    one = pool.network.key("one")
    pool.harness.clock_ms += 10_000
    pool.enroll(one, 5)
    pool.stake(one, 9, entry=4)
    pool.stake(one, 7, entry=3)
    pool.enroll(one, 8, verifies=False, announced_ms=pool.harness.clock_ms - 1)
    pool.harness.pass_rounds()
    assert pool.hear(t.SNAPSHOT_TAKEN).members[0].stake_micro == 9


def test_a_member_can_leave() -> None:
    pool = Pool()
    one = pool.network.key("one")
    pool.enroll(one)
    pool.harness.pass_rounds()
    pool.harness.clock_ms += 1
    pool.enroll(one, verifies=False)
    pool.harness.pass_rounds()
    assert [snapshot.members for snapshot in pool.listen(t.SNAPSHOT_TAKEN)][-1] == ()


def test_an_announcement_from_the_future_is_refused() -> None:
    pool = Pool()
    body = m.MemberV1(
        generates=False,
        verifies=True,
        model_ids=(),
        stack=STACK,
        announced_ms=pool.harness.clock_ms + pool.network.genesis.bounds.submission_age_ms_max + 1,
    )
    pool.tell(t.MEMBER_ANNOUNCED, body, pool.network.key("one"), action="term")
    assert pool.harness.refusal().code == "E206"


def test_a_lagging_clock_does_not_backdate_a_snapshot() -> None:
    """Its stakes may have been chosen with the round in view, so that round must not draw from them."""
    pool = Pool()
    pool.enroll(pool.network.key("one"))
    number = pool.harness.latest_round + 5
    body = pool.network.make_round(number)
    pool.tell(t.BEACON_ROUND, body)
    assert pool.hear(t.SNAPSHOT_TAKEN).taken_ms == compute_round_time_ms(pool.network.chain, number)
    assert pool.harness.clock_ms < compute_round_time_ms(pool.network.chain, number)


def test_a_round_that_comes_late_does_not_backdate_a_snapshot_either() -> None:
    """What counts is the latest round that is known, not the one that was delivered last."""
    pool = Pool()
    number = pool.harness.latest_round + 5
    pool.tell(t.BEACON_ROUND, pool.network.make_round(number))
    pool.enroll(pool.network.key("one"))
    pool.tell(t.BEACON_ROUND, pool.network.make_round(number - 1))
    assert pool.hear(t.SNAPSHOT_TAKEN).taken_ms == compute_round_time_ms(pool.network.chain, number)


def test_an_audit_draws_from_the_snapshot_before_its_round() -> None:
    pool = Pool(verifier_count=1)
    pool.commit()
    late = pool.network.key("late")
    pool.enroll(late, 1_000_000 * STAKE)
    pool.audit()  # its own round is the one in which the late member enters a snapshot
    assert pool.hear(t.VERIFIER_HOLD_REQUESTED).party != late.participant_id
    assert late.participant_id in {member.participant for member in pool.listen(t.SNAPSHOT_TAKEN)[-1].members}


def test_an_audit_draws_from_the_latest_such_snapshot() -> None:
    pool = Pool(verifier_count=1)
    gone = pool.network.key("gone")
    pool.enroll(gone, 1_000_000 * STAKE)
    pool.harness.pass_rounds()
    pool.harness.clock_ms += 1
    pool.enroll(gone, 1_000_000 * STAKE, verifies=False)
    pool.start()
    assert pool.hear(t.VERIFIER_HOLD_REQUESTED).party != gone.participant_id


def test_only_members_with_the_model_are_drawn() -> None:
    pool = Pool(verifier_count=1)
    other = Pool(verifier_count=1, sections={"layer_count": 3}).network.key("other")
    pool.enroll(other, 1_000_000 * STAKE, model_ids=(b"\x02" * 32,))
    pool.start()
    assert pool.hear(t.VERIFIER_HOLD_REQUESTED).party != other.participant_id


def test_sortition_can_be_drawn_again_from_the_record() -> None:
    """From the announced snapshot, round, commitment and nothing of the pool's own."""
    pool = Pool(verifier_count=8)
    for number, key in enumerate(list(pool.keys.values()), 1):
        pool.stake(key, number * STAKE, entry=number)
    pool.commit()
    audit = pool.audit()
    drawn = []
    while requests := pool.listen(t.VERIFIER_HOLD_REQUESTED):
        drawn.append(requests[0].party)
        fields = requests[0].model_dump(exclude={"amount_micro"})
        pool.tell(t.HOLD_REFUSED, m.HoldRefusedV1(**fields, code="E204", reason="no stake"))

    network, chain = pool.network, pool.network.chain
    beacon = network.make_round(audit.round_number)
    due_ms = compute_round_time_ms(chain, audit.round_number)
    snapshot = [one for one in pool.listen(t.SNAPSHOT_TAKEN) if one.taken_ms < due_ms][-1]
    result = network.open(pool.job.committed().result, m.ResultV1)
    seed = compute_seed(
        Tag.VERIFIERS,
        network=network.network_id,
        chain_hash=chain.chain_hash,
        round_number=audit.round_number,
        randomness=verify_round(chain, audit.round_number, beacon.signature),
        root=result.root,  # type: ignore[arg-type]
        leaf_count=result.leaf_count,
        job_id=audit.job_id,  # type: ignore[arg-type]
        stage=1,
    )
    parties = {pool.job.generator.participant_id, pool.job.user.participant_id}
    stakes = [
        (ParticipantId(member.participant), member.stake_micro)
        for member in snapshot.members
        if member.participant not in parties
    ]
    assert len(snapshot.members) == 10
    assert tuple(drawn) == draw_order(DeterministicStream(seed), stakes)
    assert len(drawn) == 8


def test_the_largest_snapshot_fits_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all fit, those with most stake are in it."""
    monkeypatch.setattr(membership, "_SNAPSHOT_BYTES_MAX", 4 * 162)
    pool = Pool(verifier_count=6)
    for number, key in enumerate(pool.keys.values(), 1):
        pool.enroll(key, number)
    pool.harness.pass_rounds()
    members = pool.hear(t.SNAPSHOT_TAKEN).members
    assert sorted(member.stake_micro for member in members) == [5, 6, 7, 8]
    assert [member.participant for member in members] == sorted(member.participant for member in members)


def test_a_full_snapshot_stays_below_the_largest_payload() -> None:
    pool = Pool()
    member = m.SnapshotMemberV1(
        participant=pool.network.participant("one"), stake_micro=2**62, model_ids=(b"\x01" * 32,) * 64
    )
    count = membership._SNAPSHOT_BYTES_MAX // (membership._MEMBER_BYTES + 64 * membership._MODEL_BYTES)
    body = m.SnapshotV1(number=2**50, members=(member,) * count, owners=(), taken_ms=2**50)
    assert len(pool.network.seal(pool.network.key("one"), body)) < PAYLOAD_BYTES_MAX
    lean = member.model_copy(update={"model_ids": (b"\x01" * 32,)})
    body = m.SnapshotV1(number=1, members=(lean,) * MEMBERS_MAX, owners=(), taken_ms=1)
    assert MEMBERS_MAX * (membership._MEMBER_BYTES + membership._MODEL_BYTES) < membership._SNAPSHOT_BYTES_MAX
    assert len(pool.network.seal(pool.network.key("one"), body)) < PAYLOAD_BYTES_MAX


def test_a_model_whose_profile_lacks_rows_is_refused_at_start() -> None:
    network = make_network(layer_count=2)
    shallow = make_network(layer_count=1).model.entry
    entry = network.model.entry.model_copy(update={"profile": shallow.profile})
    with pytest.raises(ConfigError, match="K rows of layer 1"):
        VerifierService(network.genesis, {network.model.model_id: Model(entry)})
