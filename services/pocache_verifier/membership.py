"""Who may be drawn: announcements, stakes, snapshots of both, and sortition's order from a snapshot.

Owns the rule which snapshot a round draws from: the latest that was taken before the round was due. A snapshot is taken
in the first round after a change, so it is older than every round that will use it, and nobody can join or stake
because of a draw that it has seen. An announcement by itself gives no chance, and stake without one gives none either.
Refuses announcements from the future, which could never be followed by a newer one.

Not covered: stake divided over many keys draws as often as in one hand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import sqlalchemy as sa

from pocache.protocol.beacon import compute_round_time_ms
from pocache.protocol.challenge import DeterministicStream, draw_order
from pocache.protocol.errors import ExpiredError
from pocache.protocol.ids import Digest, ModelId, ParticipantId
from pocache.protocol.limits import MEMBERS_MAX, PAYLOAD_BYTES_MAX
from pocache.runtime.network import Genesis, Model
from pocache.service.unit import Inbound, RoundView, Unit
from pocache.storage.store import get_meta, set_meta, upsert
from pocache.wire.codec import decode, encode
from pocache.wire.messages import MemberV1, SnapshotMemberV1, SnapshotV1, StakePostedV1
from pocache.wire.topics import SNAPSHOT_TAKEN
from pocache_verifier.tables import MEMBERS, SNAPSHOTS, STAKES

SNAPSHOTS_KEPT: Final = 2_000
"""One per round at most: far more rounds than any audit waits for the randomness it was bound to."""

_CHANGED: Final = "members_changed"
_ID_BYTES: Final = 32
_MEMBER_BYTES: Final = 128
"""More than a member's key, stake and field names take in a snapshot."""
_MODEL_BYTES: Final = 34
_SNAPSHOT_BYTES_MAX: Final = PAYLOAD_BYTES_MAX * 9 // 10


class Membership:
    """Handles announcements and stakes, and takes snapshots."""

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        self._genesis = genesis
        self._models = models

    def announce(self, unit: Unit, inbound: Inbound[MemberV1]) -> None:
        """Note what a worker can verify: its models that are served here, on the stack that they are calibrated for."""
        body = inbound.body
        if body.announced_ms > unit.now_ms + self._genesis.bounds.submission_age_ms_max:
            raise ExpiredError(f"announced at {body.announced_ms} ms, and it is {unit.now_ms} ms now")
        known = unit.connection.execute(
            sa.select(MEMBERS).where(MEMBERS.c.participant == inbound.sender)
        ).one_or_none()
        if known is not None and known.announced_ms >= body.announced_ms:
            return
        model_ids = sorted(
            {model_id for model_id in body.model_ids if self._can_verify(ModelId(model_id), body.stack)}
        )
        values = {"verifies": body.verifies, "model_ids": b"".join(model_ids)}
        upsert(
            unit.connection,
            MEMBERS,
            {"participant": inbound.sender},
            {**values, "announced_ms": body.announced_ms},
        )
        if known is None or {name: getattr(known, name) for name in values} != values:
            set_meta(unit.connection, _CHANGED, "1")

    def post_stake(self, unit: Unit, inbound: Inbound[StakePostedV1]) -> None:
        """Note a participant's whole stake: what is locked for one job still counts for the draw of another."""
        body = inbound.body
        known = unit.connection.execute(
            sa.select(STAKES).where(STAKES.c.participant == body.participant)
        ).one_or_none()
        if known is not None and known.entry > body.entry:
            return
        upsert(
            unit.connection,
            STAKES,
            {"participant": body.participant},
            {"stake_micro": body.stake_micro, "entry": body.entry},
        )
        if known is None or known.stake_micro != body.stake_micro:
            set_meta(unit.connection, _CHANGED, "1")

    def take_snapshot(self, unit: Unit, view: RoundView) -> None:
        """Take and announce a snapshot when the members' stakes or models have changed since the last one."""
        if get_meta(unit.connection, _CHANGED) != "1":
            return
        set_meta(unit.connection, _CHANGED, "0")
        last = _get_latest(unit.connection)
        members = _read_members(unit.connection)
        if members == (() if last is None else last.members):
            return
        chain = self._genesis.beacon_chain
        snapshot = SnapshotV1(
            number=1 if last is None else last.number + 1,
            members=members,
            # Never before the latest round that is known: a clock that lags must not let it draw from this snapshot.
            taken_ms=max(
                unit.now_ms, compute_round_time_ms(chain, max(view.number, unit.get_latest_round()))
            ),
        )
        unit.connection.execute(
            sa.insert(SNAPSHOTS).values(
                number=snapshot.number, taken_ms=snapshot.taken_ms, body=encode(snapshot)
            )
        )
        unit.connection.execute(
            sa.delete(SNAPSHOTS).where(SNAPSHOTS.c.number <= snapshot.number - SNAPSHOTS_KEPT)
        )
        unit.emit(SNAPSHOT_TAKEN, snapshot)

    def _can_verify(self, model_id: ModelId, stack: str) -> bool:
        model = self._models.get(model_id)
        return model is not None and model.entry.stack == stack


def get_snapshot_before(connection: sa.Connection, time_ms: int) -> SnapshotV1 | None:
    """Return the latest snapshot that was taken before a time, None when there is none."""
    row = connection.execute(
        sa.select(SNAPSHOTS.c.body)
        .where(SNAPSHOTS.c.taken_ms < time_ms)
        .order_by(SNAPSHOTS.c.taken_ms.desc(), SNAPSHOTS.c.number.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else decode(SnapshotV1, row.body)


def compute_verifier_order(
    snapshot: SnapshotV1 | None, seed: Digest, *, model_id: ModelId, excluded: Collection[ParticipantId]
) -> tuple[ParticipantId, ...]:
    """Return sortition's order of a snapshot's members that have the model and no part in the job.

    A pure function of what is announced: draw_order(stream(seed), stakes ascending by id).
    """
    if snapshot is None:
        return ()
    stakes = sorted(
        (ParticipantId(member.participant), member.stake_micro)
        for member in snapshot.members
        if model_id in member.model_ids and member.participant not in excluded
    )
    return draw_order(DeterministicStream(seed), stakes)


def _get_latest(connection: sa.Connection) -> SnapshotV1 | None:
    row = connection.execute(
        sa.select(SNAPSHOTS.c.body).order_by(SNAPSHOTS.c.number.desc()).limit(1)
    ).one_or_none()
    return None if row is None else decode(SnapshotV1, row.body)


def _read_members(connection: sa.Connection) -> tuple[SnapshotMemberV1, ...]:
    """Return who verifies something and has a stake, ascending by id."""
    rows = connection.execute(
        sa.select(MEMBERS.c.participant, MEMBERS.c.model_ids, STAKES.c.stake_micro)
        .join(STAKES, STAKES.c.participant == MEMBERS.c.participant)
        .where(MEMBERS.c.verifies, STAKES.c.stake_micro > 0, MEMBERS.c.model_ids != b"")
        .order_by(STAKES.c.stake_micro.desc(), MEMBERS.c.participant)
        .limit(MEMBERS_MAX)
    ).mappings()
    return tuple(sorted(_select_fitting(rows), key=lambda member: member.participant))


def _select_fitting(rows: Iterable[sa.RowMapping]) -> list[SnapshotMemberV1]:
    """Return as many members as one message carries, those with most stake first."""
    members: list[SnapshotMemberV1] = []
    size = 0
    for row in rows:
        model_ids = [
            row["model_ids"][start : start + _ID_BYTES]
            for start in range(0, len(row["model_ids"]), _ID_BYTES)
        ]
        size += _MEMBER_BYTES + _MODEL_BYTES * len(model_ids)
        if size > _SNAPSHOT_BYTES_MAX:
            break
        members.append(
            SnapshotMemberV1(
                participant=row["participant"], stake_micro=row["stake_micro"], model_ids=tuple(model_ids)
            )
        )
    return members
