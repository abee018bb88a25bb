"""Who may be drawn: announcements, stakes, snapshots of both, and sortition's order from a snapshot.

Owns the rule which snapshot a round draws from: the latest that was taken before the round was due. A snapshot is taken
in the first round after a change, so it is older than every round that will use it, and nobody can join or stake
because of a draw that it has seen. Who was ejected from a model is in no later snapshot for it. An announcement by itself gives no chance, and stake without one gives none either.
Refuses announcements from the future, which could never be followed by a newer one. Whose somebody is, only the operator
says, who credits stakes and knows where they came from.

Not covered: an owner that the operator does not know to be behind two keys draws with both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import sqlalchemy as sa

from pocache.protocol.beacon import compute_round_time_ms
from pocache.protocol.errors import ExpiredError, LimitError
from pocache.protocol.ids import ModelId
from pocache.protocol.limits import MEMBERS_MAX, OWNERS_MAX, PAYLOAD_BYTES_MAX
from pocache.runtime.network import Genesis, Model
from pocache.service.unit import Inbound, RoundView, Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import find_row, insert_row, upsert
from pocache.storage.store import get_meta, set_meta
from pocache.wire.codec import decode, encode
from pocache.wire.messages import MemberV1, OwnedV1, OwnerV1, SnapshotMemberV1, SnapshotV1, StakePostedV1
from pocache.wire.topics import SNAPSHOT_TAKEN
from pocache_verifier.ejection import read_ejected
from pocache_verifier.tables import MEMBERS, OWNERS, SNAPSHOTS, STAKES

SNAPSHOTS_KEPT: Final = 2_000
"""One per round at most: far more rounds than any audit waits for the randomness it was bound to."""

_CHANGED: Final = "members_changed"
_ID_BYTES: Final = 32
_MEMBER_BYTES: Final = 128
"""More than a member's key, stake and field names take in a snapshot."""
_MODEL_BYTES: Final = 34
_OWNED_BYTES: Final = 140
"""More than two keys and their field names take in a snapshot."""
_SNAPSHOT_BYTES_MAX: Final = PAYLOAD_BYTES_MAX * 9 // 10

_GET_SNAPSHOT: Final = Prepared(sa.select(SNAPSHOTS.c.body).order_by(SNAPSHOTS.c.number.desc()).limit(1))
_GET_SNAPSHOT_BEFORE: Final = Prepared(
    sa.select(SNAPSHOTS.c.body)
    .where(SNAPSHOTS.c.taken_ms < sa.bindparam("time_ms"))
    .order_by(SNAPSHOTS.c.taken_ms.desc(), SNAPSHOTS.c.number.desc())
    .limit(1)
)


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
        known = find_row(unit.connection, MEMBERS, {"participant": inbound.sender})
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
        known = find_row(unit.connection, STAKES, {"participant": body.participant})
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

    def declare_owner(self, unit: Unit, inbound: Inbound[OwnerV1]) -> None:
        """Note whose a participant is, as the operator attests. Raises LimitError where a snapshot would not hold it."""
        body = inbound.body
        known = find_row(unit.connection, OWNERS, {"participant": body.participant})
        if known is not None and known.declared_ms >= body.declared_ms:
            return
        count = unit.connection.execute(sa.select(sa.func.count()).select_from(OWNERS)).scalar_one()
        if known is None and count >= OWNERS_MAX:
            raise LimitError(f"the owners of {count} participants are known, as many as a snapshot says")
        upsert(
            unit.connection,
            OWNERS,
            {"participant": body.participant},
            {"owner": body.owner, "declared_ms": body.declared_ms},
        )
        set_meta(unit.connection, _CHANGED, "1")

    def take_snapshot(self, unit: Unit, view: RoundView) -> None:
        """Take and announce a snapshot when the members' stakes or models have changed since the last one."""
        if get_meta(unit.connection, _CHANGED) != "1":
            return
        set_meta(unit.connection, _CHANGED, "0")
        last = _get_latest(unit.connection)
        owners = _read_owners(unit.connection)
        members = _read_members(unit.connection, _SNAPSHOT_BYTES_MAX - _OWNED_BYTES * len(owners))
        if (members, owners) == (((), ()) if last is None else (last.members, last.owners)):
            return
        chain = self._genesis.beacon_chain
        snapshot = SnapshotV1(
            number=1 if last is None else last.number + 1,
            members=members,
            owners=owners,
            # Never before the latest round that is known: a clock that lags must not let it draw from this snapshot.
            taken_ms=max(
                unit.now_ms, compute_round_time_ms(chain, max(view.number, unit.get_latest_round()))
            ),
        )
        taken = {"number": snapshot.number, "taken_ms": snapshot.taken_ms, "body": encode(snapshot)}
        insert_row(unit.connection, SNAPSHOTS, taken)
        unit.connection.execute(
            sa.delete(SNAPSHOTS).where(SNAPSHOTS.c.number <= snapshot.number - SNAPSHOTS_KEPT)
        )
        unit.emit(SNAPSHOT_TAKEN, snapshot)

    def _can_verify(self, model_id: ModelId, stack: str) -> bool:
        model = self._models.get(model_id)
        return model is not None and model.entry.stack == stack


def note_change(connection: sa.Connection) -> None:
    """Have the next round take a snapshot, if it differs from the last one."""
    set_meta(connection, _CHANGED, "1")


def get_snapshot_before(connection: sa.Connection, time_ms: int) -> SnapshotV1 | None:
    """Return the latest snapshot that was taken before a time, None when there is none."""
    body = _GET_SNAPSHOT_BEFORE.scalar(connection, time_ms=time_ms)
    return None if body is None else decode(SnapshotV1, body)


def _get_latest(connection: sa.Connection) -> SnapshotV1 | None:
    body = _GET_SNAPSHOT.scalar(connection)
    return None if body is None else decode(SnapshotV1, body)


def _read_members(connection: sa.Connection, bytes_max: int) -> tuple[SnapshotMemberV1, ...]:
    """Return who verifies something and has a stake, ascending by id."""
    rows = connection.execute(
        sa.select(MEMBERS.c.participant, MEMBERS.c.model_ids, STAKES.c.stake_micro)
        .join(STAKES, STAKES.c.participant == MEMBERS.c.participant)
        .where(MEMBERS.c.verifies, STAKES.c.stake_micro > 0, MEMBERS.c.model_ids != b"")
        .order_by(STAKES.c.stake_micro.desc(), MEMBERS.c.participant)
        .limit(MEMBERS_MAX)
    ).mappings()
    found = _select_fitting(rows, read_ejected(connection), bytes_max)
    return tuple(sorted(found, key=lambda member: member.participant))


def _select_fitting(
    rows: Iterable[sa.RowMapping], ejected: Mapping[str, set[bytes]], bytes_max: int
) -> list[SnapshotMemberV1]:
    """Return as many members as one message carries, those with most stake first, without what they were ejected from."""
    members: list[SnapshotMemberV1] = []
    size = 0
    for row in rows:
        announced = (
            row["model_ids"][start : start + _ID_BYTES]
            for start in range(0, len(row["model_ids"]), _ID_BYTES)
        )
        model_ids = [one for one in announced if one not in ejected.get(row["participant"], ())]
        if not model_ids:
            continue
        size += _MEMBER_BYTES + _MODEL_BYTES * len(model_ids)
        if size > bytes_max:
            break
        members.append(
            SnapshotMemberV1(
                participant=row["participant"], stake_micro=row["stake_micro"], model_ids=tuple(model_ids)
            )
        )
    return members


def _read_owners(connection: sa.Connection) -> tuple[OwnedV1, ...]:
    rows = connection.execute(
        sa.select(OWNERS).where(OWNERS.c.owner != OWNERS.c.participant).order_by(OWNERS.c.participant)
    )
    return tuple(OwnedV1(participant=row.participant, owner=row.owner) for row in rows)


assert _OWNED_BYTES * OWNERS_MAX < _SNAPSHOT_BYTES_MAX // 2
