"""Stages: from sealed claims to drawn positions, to everybody's openings or a deadline.

Owns when positions are drawn (in the first round bound after the last seal), who is asked for which of
them, and when a stage is over. Refuses a stage whose parties contradict what is recorded. What an opening
must be is in openings.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.challenge import Corner
from pocache.protocol.encoding import pack_tokens
from pocache.protocol.errors import ConflictError, InputError, UnknownJobError
from pocache.protocol.ids import ParticipantId
from pocache.runtime.network import Genesis
from pocache.service.binding import bind_event
from pocache.service.unit import Inbound, Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import find_row, insert_row, update_rows
from pocache.storage.store import ROUNDS
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import (
    ChallengeIssuedV1,
    ClaimSealedV1,
    OpeningsClosedV1,
    OpeningV1,
    StagePartyV1,
    StageSealedV1,
)
from pocache.wire.topics import CHALLENGE_ISSUED, OPENINGS_CLOSED
from pocache_commitments.draws import Draw, draw_stage_positions
from pocache_commitments.rows import get_commitment, to_committed
from pocache_commitments.tables import PARTIES, STAGE_KEY, STAGES, Phase, StagePhase

_BY_KEY: Final = tuple(STAGES.c[name] for name in STAGE_KEY)
_GET_DUE: Final = Prepared(
    sa.select(STAGES, ROUNDS.c.number, ROUNDS.c.randomness)
    .join(ROUNDS, ROUNDS.c.number == STAGES.c.due_round)
    .where(STAGES.c.phase == StagePhase.SEALED.value)
    .order_by(*_BY_KEY)
)
_GET_OVERDUE: Final = Prepared(
    sa.select(STAGES)
    .where(STAGES.c.phase == StagePhase.CHALLENGED.value, STAGES.c.deadline_tick <= sa.bindparam("tick"))
    .order_by(*_BY_KEY)
)
_GET_PARTIES: Final = Prepared(
    sa.select(PARTIES)
    .where(*(PARTIES.c[name] == sa.bindparam(name) for name in STAGE_KEY))
    .order_by(PARTIES.c.party_stage)
)
_GET_SEATS: Final = Prepared(
    sa.select(PARTIES.c.stage, PARTIES.c.party_stage).where(
        *(PARTIES.c[name] == sa.bindparam(name) for name in STAGE_KEY if name != "stage"),
        PARTIES.c.participant == sa.bindparam("participant"),
    )
)


class Stages:
    """Handles sealed stages, and draws and ends what is due in a round."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis

    def seal(self, unit: Unit, inbound: Inbound[StageSealedV1]) -> None:
        """Bind a sealed stage to the round that will draw its positions."""
        sealed = inbound.body
        commitment = get_commitment(unit.connection, sealed.job_id, sealed.attempt)
        if commitment is None:
            raise UnknownJobError("no commitment is recorded for this job and attempt")
        key = {name: getattr(sealed, name) for name in STAGE_KEY}
        if get_stage(unit.connection, key) is not None:
            return
        if commitment.phase in (Phase.EQUIVOCATED, Phase.CLOSED):
            return  # the outcome is known, or on its way without this stage
        if commitment.phase == Phase.WINDOW:
            raise ConflictError("no audit of this commitment is open")
        _verify_parties(self._genesis, commitment, sealed)
        stage = {
            **key,
            "layer_max": sealed.corner.layer_max,
            "position_max": sealed.corner.position_max,
            "full_depth": sealed.corner.full_depth,
            "sample_count": sealed.sample_count,
            "due_round": bind_event(self._genesis, unit, sealed.sealed_ms),
            "phase": StagePhase.SEALED.value,
        }
        insert_row(unit.connection, STAGES, stage)
        for one in sealed.parties:
            party = {
                **key,
                "participant": one.participant,
                "party_stage": one.stage,
                "root": one.root,
                "leaf_count": one.leaf_count,
                "layer_max": one.corner.layer_max,
                "full_depth": one.corner.full_depth,
            }
            insert_row(unit.connection, PARTIES, party)

    def issue_due(self, unit: Unit) -> None:
        """Draw the positions of every stage whose round has come, and ask its parties to open them."""
        for stage in _GET_DUE.all(unit.connection):
            self._issue(unit, stage)

    def close_due(self, unit: Unit) -> None:
        """Close the openings of every stage whose deadline has passed."""
        for stage in _GET_OVERDUE.all(unit.connection, tick=unit.tick):
            close_openings(unit, stage)

    def _issue(self, unit: Unit, stage: Any) -> None:
        commitment = get_commitment(unit.connection, stage.job_id, stage.attempt)
        assert commitment is not None, "a stage refers to its commitment"
        positions = draw_stage_positions(
            self._genesis,
            to_committed(commitment),
            Draw(stage.number, stage.randomness),
            corner=Corner(stage.layer_max, stage.position_max, bool(stage.full_depth)),
            stage=stage.stage,
            retry=stage.retry,
            sample_count=stage.sample_count,
        )
        update_stage(
            unit.connection,
            stage,
            phase=StagePhase.CHALLENGED.value,
            positions=pack_tokens(positions),
            deadline_tick=unit.tick + self._genesis.deadlines.opening_ticks,
        )
        for party in get_parties(unit.connection, stage):
            # An earlier stage's verifier may have sealed a smaller corner: it is asked for what lies in it.
            asked = pack_tokens([position for position in positions if position < party.leaf_count])
            update_party(unit.connection, party, positions=asked, has_opened=not asked)
            if asked:
                challenge = ChallengeIssuedV1(
                    **{**_key_of(stage), "stage": self._get_asked_stage(stage, party)},
                    round_number=stage.number,
                    positions=asked,
                    root=party.root,
                    leaf_count=party.leaf_count,
                )
                unit.emit(CHALLENGE_ISSUED, challenge, worker=party.participant)

    def _get_asked_stage(self, stage: Any, party: Any) -> int:
        """Return the stage as a party is told of it: a verifier cannot tell a recheck from an audit."""
        number = int(stage.stage)
        return number if party.party_stage == 0 else self._genesis.procedure.get_told_stage(number)


def find_opened_stage(
    connection: sa.Connection, genesis: Genesis, opening: OpeningV1, sender: ParticipantId
) -> Any:
    """Return the sealed stage that a sender's opening speaks of, by the number that it was told; None for none.

    Who is no party of any such stage is given the one of that very number, to be refused there.
    """
    key = {name: getattr(opening, name) for name in STAGE_KEY}
    rows = _GET_SEATS.all(connection, **key, participant=sender)
    told = [
        row.stage
        for row in rows
        if opening.stage
        == (row.stage if row.party_stage == 0 else genesis.procedure.get_told_stage(row.stage))
    ]
    return get_stage(connection, {**key, "stage": max(told, default=opening.stage)})


def get_stage(connection: sa.Connection, key: Mapping[str, Any]) -> Any:
    """Return a stage by its key, None when it was never sealed."""
    return find_row(connection, STAGES, key)


def get_parties(connection: sa.Connection, stage: Any) -> list[Any]:
    """Return a stage's parties: the generator, then the verifiers in the order of their stages."""
    return _GET_PARTIES.all(connection, **_key_of(stage))


def update_stage(connection: sa.Connection, stage: Any, **values: object) -> None:
    """Change a stage."""
    update_rows(connection, STAGES, _key_of(stage), values)


def update_party(connection: sa.Connection, party: Any, **values: object) -> None:
    """Change a party of a stage."""
    update_rows(connection, PARTIES, {**_key_of(party), "participant": party.participant}, values)


def close_openings(unit: Unit, stage: Any) -> None:
    """End a stage's openings and say who opened and who did not."""
    update_stage(unit.connection, stage, phase=StagePhase.CLOSED.value)
    opened: list[ParticipantId] = []
    missing: list[ParticipantId] = []
    for party in get_parties(unit.connection, stage):
        (opened if party.has_opened else missing).append(party.participant)
    closed = OpeningsClosedV1(
        **_key_of(stage),
        round_number=stage.due_round,
        positions=stage.positions,
        opened=tuple(opened),
        missing=tuple(missing),
    )
    unit.emit(OPENINGS_CLOSED, closed, job=stage.job_id)


def _key_of(stage: Any) -> dict[str, Any]:
    return {name: getattr(stage, name) for name in STAGE_KEY}


def _verify_parties(genesis: Genesis, commitment: Any, sealed: StageSealedV1) -> None:
    """Check that the generator comes first, as recorded, then verifiers by seat, the stage's own last; ConflictError."""
    generator, *verifiers = sealed.parties
    recorded = (commitment.generator, 0, commitment.root, commitment.leaf_count)
    if (generator.participant, generator.stage, generator.root, generator.leaf_count) != recorded:
        raise ConflictError("the first party of a stage is the generator with its recorded commitment")
    if sealed.corner.position_max >= commitment.leaf_count:
        raise ConflictError("the stage's corner lies outside the commitment")
    stages = [party.stage for party in verifiers]
    own = [genesis.procedure.get_stage(stage) for stage in stages]
    if stages != sorted(set(stages)) or stages[0] < 1 or own[-1] != sealed.stage:
        raise ConflictError(
            "the other parties of a stage are its sealed verifiers, one for each seat, its own last"
        )
    if len({party.participant for party in sealed.parties}) != len(sealed.parties):
        raise ConflictError("a participant is a party of a stage once")
    for party in verifiers:
        claim = _open_claim(genesis, commitment, party)
        if party.leaf_count != party.corner.position_max + 1 or party.leaf_count > commitment.leaf_count:
            raise ConflictError("a claim covers exactly the positions of its corner")
        # An earlier verifier's claim may be of its own second look; the stage's own is of the one that is sealed.
        if genesis.procedure.get_stage(party.stage) == sealed.stage and claim.retry != sealed.retry:
            raise ConflictError("the stage's own claim is of another look than the stage")


def _open_claim(genesis: Genesis, commitment: Any, party: StagePartyV1) -> ClaimSealedV1:
    """Return the claim that a verifier signed, if it says what the stage says of it; ConflictError."""
    if party.claim is None:
        raise ConflictError(f"stage {party.stage}: the verifier's claim is not shown")
    try:
        claim = open_envelope(party.claim, genesis.network_id, ClaimSealedV1)
    except InputError as error:
        raise ConflictError(f"stage {party.stage}: no claim of its verifier: {error}") from error
    body = claim.body
    signed = (claim.sender, body.job_id, body.attempt, body.stage, body.root, body.leaf_count, body.corner)
    job = (commitment.job_id, commitment.attempt)
    told = genesis.procedure.get_told_stage(party.stage)
    if signed != (party.participant, *job, told, party.root, party.leaf_count, party.corner):
        raise ConflictError(f"stage {party.stage}: the verifier signed another claim than the stage has")
    return body
