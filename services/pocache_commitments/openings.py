"""Openings: leaves of a committed or sealed root, checked strictly, part by part.

Refused, so that it may be sent again until the deadline: a sender who is no party of the stage, positions
other than those asked for, an envelope too large to be passed on whole, a missing, extra, repeated or
malformed leaf, floats that are not finite, a proof that does not lead to the root. Whether rows are
*right* is compared by the verifier pool: here they are only what was promised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import (
    ConflictError,
    ExpiredError,
    LimitError,
    NotAuthorizedError,
    OpeningError,
    UnknownJobError,
)
from pocache.protocol.ids import Digest, ModelId
from pocache.protocol.limits import CARRIED_BYTES_MAX
from pocache.protocol.opening import verify_opening
from pocache.runtime.network import Genesis, Model
from pocache.service.unit import Inbound, Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import insert_row
from pocache.wire.messages import OpeningAcceptedV1, OpeningV1
from pocache.wire.topics import OPENING_ACCEPTED
from pocache_commitments.rows import get_commitment
from pocache_commitments.stages import close_openings, find_opened_stage, get_parties, update_party
from pocache_commitments.tables import PARTS, STAGE_KEY, Phase, StagePhase

_PARTY_KEY: Final = (*STAGE_KEY, "participant")
_GET_PARTS: Final = Prepared(
    sa.select(PARTS)
    .where(*(PARTS.c[name] == sa.bindparam(name) for name in _PARTY_KEY))
    .order_by(PARTS.c.part)
)


class Openings:
    """Handles what parties open."""

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        self._genesis = genesis
        self._models = models

    def accept(self, unit: Unit, inbound: Inbound[OpeningV1]) -> None:
        """Accept one valid part; when it was the last one that was due, close the stage's openings."""
        opening = inbound.body
        if len(inbound.envelope) > CARRIED_BYTES_MAX:
            raise LimitError(
                f"an opening of {len(inbound.envelope)} bytes does not fit the record, which takes"
                f" {CARRIED_BYTES_MAX}: open it in more parts"
            )
        commitment = get_commitment(unit.connection, opening.job_id, opening.attempt)
        if commitment is None:
            raise UnknownJobError("no commitment is recorded for this job and attempt")
        if commitment.phase in (Phase.EQUIVOCATED, Phase.CLOSED):
            raise ExpiredError("the job is decided: nothing has to be opened any more")
        stage = find_opened_stage(unit.connection, self._genesis, opening, inbound.sender)
        if stage is None:
            raise UnknownJobError(f"no stage {opening.stage} (retry {opening.retry}) of this job is sealed")
        party = _find_party(unit, stage, inbound)
        if stage.phase == StagePhase.SEALED:
            raise UnknownJobError("the stage's positions are not drawn yet")
        if stage.phase == StagePhase.CLOSED:
            raise ExpiredError("the stage's openings are closed")
        asked = unpack_tokens(party.positions)
        parts = _get_parts(unit.connection, party)
        first, end = _locate(opening, asked, parts)
        self._verify_leaves(commitment, party, opening)
        part = {
            **{name: getattr(party, name) for name in _PARTY_KEY},
            "part": opening.part,
            "part_count": opening.part_count,
            "first_index": first,
            "end_index": end,
            "opening_id": inbound.envelope_id,
        }
        insert_row(unit.connection, PARTS, part)
        accepted = OpeningAcceptedV1(
            job_id=opening.job_id,
            attempt=opening.attempt,
            stage=stage.stage,
            retry=opening.retry,
            participant=inbound.sender,
            opening=inbound.envelope,
        )
        unit.emit(OPENING_ACCEPTED, accepted, job=opening.job_id)
        if len(parts) + 1 == opening.part_count:
            update_party(unit.connection, party, has_opened=True)
            if all(other.has_opened for other in get_parties(unit.connection, stage)):
                close_openings(unit, stage)

    def _verify_leaves(self, commitment: Any, party: Any, opening: OpeningV1) -> None:
        """Check the leaves and the proof against what the party promised; OpeningError, MerkleError."""
        schema = self._models[ModelId(commitment.model_id)].schema
        if party.party_stage > 0:
            schema = schema.restrict(party.layer_max, full_depth=bool(party.full_depth))
        verify_opening(
            unpack_tokens(opening.positions),
            opening.leaves,
            opening.proof,
            schema=schema,
            prompt_count=commitment.prompt_count,
            leaf_count=party.leaf_count,
            root=Digest(party.root),
        )


def _find_party(unit: Unit, stage: Any, inbound: Inbound[OpeningV1]) -> Any:
    for party in get_parties(unit.connection, stage):
        if party.participant == inbound.sender:
            return party
    raise NotAuthorizedError("the sender is not a party of this stage")


def _get_parts(connection: sa.Connection, party: Any) -> list[Any]:
    return _GET_PARTS.all(connection, **{name: getattr(party, name) for name in _PARTY_KEY})


def _locate(opening: OpeningV1, asked: tuple[int, ...], parts: list[Any]) -> tuple[int, int]:
    """Return which half-open range of the asked positions a part covers. Raises OpeningError, ConflictError.

    A part is a run of the asked positions, in their order. Against every part accepted before, and against
    both ends, it leaves no gap to a neighbour and at least one position for each part between: so the last
    part completes all.
    """
    positions = unpack_tokens(opening.positions)
    if opening.part >= opening.part_count:
        raise OpeningError(f"part {opening.part} of {opening.part_count}")
    if any(part.part == opening.part for part in parts):
        raise ConflictError(f"part {opening.part} was accepted before")
    if any(part.part_count != opening.part_count for part in parts):
        raise OpeningError(f"{opening.part_count} parts where an accepted one said {parts[0].part_count}")
    first = asked.index(positions[0]) if positions[0] in asked else -1
    end = first + len(positions)
    if first < 0 or asked[first:end] != positions:
        raise OpeningError("the positions are not those asked for, in their order, each once")
    bounds = [(-1, 0, 0), (opening.part_count, len(asked), len(asked))]
    bounds += [(part.part, part.first_index, part.end_index) for part in parts]
    for number, other_first, other_end in bounds:
        gap = first - other_end if number < opening.part else other_first - end
        between = abs(opening.part - number) - 1
        if gap < between or (between == 0 and gap != 0):
            raise OpeningError(
                f"part {opening.part} leaves positions out, or repeats them, beside part {number}"
            )
    return first, end
