"""Disputes: records become events of the machine in ``pocache.protocol.procedure``, its commands become messages.

Owns the deadline of each claim, and what is said when a dispute ends. A claim is checked against the task that was
given out, and refused to its sender's face; everything else comes from services and is taken once, whatever the order
in which it arrives, and what it shows of a party is held against the party's own signature. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
import structlog
from pydantic import TypeAdapter

from pocache.protocol import dispute_terms as d
from pocache.protocol.challenge import Corner
from pocache.protocol.dispute_committee_terms import CommitteeState
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import BeaconError, CommitmentError, NotYetError, UnknownJobError
from pocache.protocol.ids import Digest, ModelId, ParticipantId
from pocache.protocol.limits import TOKEN_BYTES
from pocache.protocol.payoff import FIXED_FEE_COMMITTEE, UNIFIED_POOL
from pocache.protocol.procedure import AnyEvent, State
from pocache.runtime.network import Genesis, Model
from pocache.service.unit import Inbound, Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import delete_rows, update_rows, upsert
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import decode, decode_value, encode, encode_value
from pocache_verifier.claims import keep_claim, read_hidden_claims, show_claims
from pocache_verifier.comparison import compare_parties, keep_comparison, read_comparisons, read_leaves
from pocache_verifier.drawing import (
    FIRST_STAGE,
    RoundDrawn,
    announce_drawn,
    bind_stage,
    draw_recheck,
    draw_stage,
    read_due,
)
from pocache_verifier.ejection import count_outcome
from pocache_verifier.evidence import open_opening, verify_challenge, verify_contradiction
from pocache_verifier.holding import (
    hold_closing,
    is_partial_match,
    read_held,
    read_held_due,
    release_closing,
)
from pocache_verifier.jobs import Job, Jobs
from pocache_verifier.membership import note_change
from pocache_verifier.tables import DISPUTES, OPENINGS

_ADAPTERS: Final[Mapping[str, TypeAdapter[Any]]] = {
    UNIFIED_POOL: TypeAdapter(d.DisputeState),
    FIXED_FEE_COMMITTEE: TypeAdapter(CommitteeState),
}
_VERIFIER_STAKE: Final = "verifier_stake"

_GET_STATE: Final = Prepared(sa.select(DISPUTES.c.state).where(DISPUTES.c.job_id == sa.bindparam("job_id")))
_GET_OVERDUE: Final = Prepared(
    sa.select(DISPUTES.c.job_id)
    .where(DISPUTES.c.phase == d.Phase.SEALING.value, DISPUTES.c.deadline_tick <= sa.bindparam("tick"))
    .order_by(DISPUTES.c.deadline_tick, DISPUTES.c.job_id)
)


class Disputes:
    """Handles audits, holds, claims, openings and equivocations, and ends what is due in a round."""

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        self._genesis = genesis
        self._procedure = genesis.procedure
        self._adapter = _ADAPTERS[genesis.rules.name]
        self._jobs = Jobs(genesis, models)
        self._log = structlog.get_logger().bind(service="verifier")

    def open(self, unit: Unit, inbound: Inbound[m.AuditOpenedV1]) -> None:
        """Draw the verifiers of an audit by its round, from the snapshot taken before it."""
        body = inbound.body
        job = self._jobs.get(unit.connection, body.job_id, body.attempt)
        randomness = unit.get_randomness(body.round_number)
        if randomness is None:
            raise NotYetError(f"round {body.round_number} has not arrived")
        if randomness != body.randomness:
            raise BeaconError(
                f"the audit was drawn by other randomness than that of round {body.round_number}"
            )
        is_challenged = body.reason == "challenge"
        if is_challenged:
            verify_challenge(self._genesis.network_id, job, body.challenge)
        state = self._load(unit.connection, job)
        if state.phase is not d.Phase.WAITING:
            return
        self._save(unit.connection, job, state)
        drawn = RoundDrawn(body.round_number, randomness)
        order = draw_stage(self._genesis, unit, job, drawn, stage=FIRST_STAGE, excluded=())
        for event in self._procedure.get_first_events(is_challenged=is_challenged):
            self._advance(unit, job, event)
        self._advance(unit, job, d.AuditOpened(order, _read_corner(body.corner)))

    def deepen(self, unit: Unit, inbound: Inbound[m.AuditDeepenedV1]) -> None:
        """The user challenged while the audit was open."""
        job = self._jobs.get(unit.connection, inbound.body.job_id, inbound.body.attempt)
        verify_challenge(self._genesis.network_id, job, inbound.body.challenge)
        self._advance(unit, job, d.Deepened())
        held = read_held(unit.connection, job)
        if held is not None:
            self._close(unit, job, held)

    def equivocate(self, unit: Unit, inbound: Inbound[m.EvidenceV1]) -> None:
        """The generator contradicted itself: it is convicted without verifiers, audited or not."""
        body = inbound.body
        job = self._jobs.get(unit.connection, body.job_id, body.attempt)
        second_id = verify_contradiction(self._genesis, job, body.result)
        reason = f"the generator signed two different results, {job.result_id.hex()} and {second_id.hex()}"
        self._advance(unit, job, d.Equivocated(reason))

    def place_hold(self, unit: Unit, inbound: Inbound[m.HoldPlacedV1]) -> None:
        """The ledger locked a candidate's stake."""
        body = inbound.body
        if body.purpose == _VERIFIER_STAKE:
            job = self._jobs.get(unit.connection, body.job_id, body.attempt)
            self._advance(unit, job, d.HoldPlaced(ParticipantId(body.party), body.stage))

    def refuse_hold(self, unit: Unit, inbound: Inbound[m.HoldRefusedV1]) -> None:
        """The ledger did not lock it; a job whose own escrow it refused is over before it began."""
        body = inbound.body
        if body.purpose == "escrow":
            self._jobs.refuse(unit, body.job_id)
        elif body.purpose == _VERIFIER_STAKE:
            job = self._jobs.get(unit.connection, body.job_id, body.attempt)
            self._log.info("hold_refused", job=job.job_id.hex(), verifier=body.party, code=body.code)
            self._advance(unit, job, d.HoldRefused(ParticipantId(body.party), body.stage))

    def seal_claim(self, unit: Unit, inbound: Inbound[m.ClaimSealedV1]) -> None:
        """Take a drawn verifier's claim, if it is the one that was asked for; the last one seals the stage."""
        body = inbound.body
        job = self._jobs.find(unit.connection, body.job_id)
        if job is None or job.attempt != body.attempt:
            raise UnknownJobError("no commitment is recorded for this job and attempt")
        state = self._load(unit.connection, job)
        claim = d.ClaimSealed(
            participant=inbound.sender,
            stage=self._procedure.find_seat(state, inbound.sender, body.stage),
            retry=body.retry,
            corner=_read_corner(body.corner),
            leaf_count=body.leaf_count,
            root=Digest(body.root),
        )
        self._procedure.verify_claim(state, claim)
        if body.stack != job.model.entry.stack:
            raise CommitmentError(f"computed on {body.stack!r}, the profile is for {job.model.entry.stack!r}")
        keep_claim(unit.connection, job, claim.stage, inbound.envelope)
        self._advance(unit, job, claim)

    def accept_opening(self, unit: Unit, inbound: Inbound[m.OpeningAcceptedV1]) -> None:
        """Keep the leaves of a part that its party signed, while its stage is the one that is being opened."""
        body = inbound.body
        job = self._jobs.get(unit.connection, body.job_id, body.attempt)
        state = self._load(unit.connection, job)
        if not _is_opening(state, body.stage, body.retry):
            return
        told_stage = self._procedure.get_told_stage(body.stage)
        opening = open_opening(
            self._genesis.network_id, job, self._procedure.get_parties(state), body, told_stage
        )
        key = {"job_id": job.job_id, "participant": body.participant, "part": opening.part}
        upsert(unit.connection, OPENINGS, key, {"body": encode(opening)})

    def close_openings(self, unit: Unit, inbound: Inbound[m.OpeningsClosedV1]) -> None:
        """All leaves of a stage that will ever come are here: compare them."""
        body = inbound.body
        job = self._jobs.get(unit.connection, body.job_id, body.attempt)
        state = self._load(unit.connection, job)
        if not _is_opening(state, body.stage, body.retry):
            return
        positions = unpack_tokens(body.positions)
        for party in self._procedure.get_parties(state):
            within = {position for position in positions if position <= party.corner.position_max}
            is_open = party.participant in body.opened
            if is_open and not within <= read_leaves(unit.connection, job, party.participant).keys():
                raise NotYetError(f"not every leaf of {party.participant} has arrived")
        is_early = unit.get_latest_round() <= job.window_close_round
        closing = _read_closing(body)
        if is_early and is_partial_match(unit.connection, job, self._procedure, state, closing):
            hold_closing(unit.connection, job, body)
            return
        self._close(unit, job, body)

    def close_held(self, unit: Unit) -> None:
        """Go on with every match at partial depth that no user can have deepened any more."""
        for job_id, body in read_held_due(unit.connection, unit.get_latest_round()):
            job = self._jobs.find(unit.connection, job_id)
            assert job is not None, "a dispute refers to its commitment"
            self._close(unit, job, body)

    def expire_due(self, unit: Unit) -> None:
        """End the wait for every claim whose deadline has passed."""
        for row in _GET_OVERDUE.all(unit.connection, tick=unit.tick):
            job = self._jobs.find(unit.connection, row.job_id)
            assert job is not None, "a dispute refers to its commitment"
            state = self._load(unit.connection, job)
            self._advance(unit, job, d.SealExpired(state.stage, state.retry))

    def draw_due(self, unit: Unit) -> None:
        """Draw every stage whose round has come."""
        for job_id, drawn in read_due(unit.connection):
            job = self._jobs.find(unit.connection, job_id)
            assert job is not None, "a dispute refers to its commitment"
            state = self._load(unit.connection, job)
            excluded = tuple(state.drawn) if isinstance(state, d.DisputeState) else ()
            is_drawn, corner = draw_recheck(self._genesis, job, drawn, stage=state.stage)
            order = draw_stage(self._genesis, unit, job, drawn, stage=state.stage, excluded=excluded)
            event = self._procedure.make_drawn(state.stage, order, is_drawn=is_drawn, corner=corner)
            self._advance(unit, job, event)

    def _close(self, unit: Unit, job: Job, body: m.OpeningsClosedV1) -> None:
        """End a stage's openings: compare, and forget the leaves."""
        release_closing(unit.connection, job)
        self._advance(unit, job, _read_closing(body))
        delete_rows(unit.connection, OPENINGS, {"job_id": job.job_id})

    def _advance(self, unit: Unit, job: Job, event: AnyEvent) -> None:
        """Apply an event, and the verdicts that it makes the machine ask for."""
        if job.is_settled:
            return
        state = self._load(unit.connection, job)
        pending: AnyEvent | None = event
        while pending is not None:
            step = self._procedure.advance(state, pending)
            state, pending = step.state, None
            self._save(unit.connection, job, state)
            for command in step.commands:
                pending = self._execute(unit, job, command)

    def _execute(self, unit: Unit, job: Job, command: d.Command) -> AnyEvent | None:
        """Do what the machine asks for; the verdict of a comparison is the next event."""
        match command:
            case d.AwaitDraw():
                bind_stage(self._genesis, unit, job, command)
            case d.RequestHold():
                announce_drawn(unit, job, command)
                self._request_hold(unit, job, command)
            case d.AssignTask():
                self._assign(unit, job, command)
            case d.SealStage():
                unit.emit(t.STAGE_SEALED, self._make_stage(unit, job, command), job=job.job_id)
            case d.Decide():
                self._announce(unit, job, command.outcome)
            case d.Compare():
                comparison = compare_parties(unit.connection, job, command)
                keep_comparison(unit.connection, job, command, comparison)
                return self._procedure.make_verdict(command, comparison.verdict)
        return None

    def _request_hold(self, unit: Unit, job: Job, command: d.RequestHold) -> None:
        """Ask for βCv of the whole job: how deep the dispute will go is not known yet."""
        full, prices = job.full_corner, job.model.prices
        cg = prices.compute_generation_cost(job.prompt_count, len(job.output) // TOKEN_BYTES)
        cv = prices.compute_verification_cost(
            layer_max=full.layer_max, position_max=full.position_max, layer_count=full.layer_max + 1
        )
        request = m.HoldRequestV1(
            purpose=_VERIFIER_STAKE,
            job_id=job.job_id,
            attempt=job.attempt,
            stage=command.stage,
            party=command.participant,
            amount_micro=self._genesis.rule_set.compute_products(cg, cv).verifier_stake,
        )
        unit.emit(t.VERIFIER_HOLD_REQUESTED, request, job=job.job_id)

    def _assign(self, unit: Unit, job: Job, command: d.AssignTask) -> None:
        task = m.VerifyTaskV1(
            job_id=job.job_id,
            attempt=job.attempt,
            # A recheck's is an audit's: who is drawn cannot tell the one from the other.
            stage=self._procedure.get_told_stage(command.stage),
            retry=command.retry,
            model_id=job.model.model_id,
            tokens=job.prompt + job.output,
            prompt_count=job.prompt_count,
            corner=_make_corner(command.corner),
            sampling=decode(m.SamplingV1, job.sampling),
            seed=job.seed,
        )
        unit.emit(t.VERIFY_TASK, task, worker=command.participant)
        deadline_tick = unit.tick + self._genesis.deadlines.seal_ticks
        update_rows(unit.connection, DISPUTES, {"job_id": job.job_id}, {"deadline_tick": deadline_tick})

    def _announce(self, unit: Unit, job: Job, outcome: d.Outcome) -> None:
        body = m.OutcomeV1(
            job_id=job.job_id,
            attempt=job.attempt,
            # Every case but no_challenge, in which no dispute ends.
            case=outcome.case.value,  # type: ignore[arg-type]
            stage=outcome.stage,
            corner=_make_corner(outcome.corner),
            verifiers=tuple(
                m.VerifierStandingV1(
                    participant=seat.participant, stage=seat.stage, opened=seat.opened, upheld=seat.upheld
                )
                for seat in outcome.verifiers
            ),
            deciding=outcome.deciding,
            prior=outcome.prior,
            is_challenged=outcome.is_challenged,
            claims=read_hidden_claims(unit.connection, job, [seat.stage for seat in outcome.verifiers]),
            comparisons=read_comparisons(unit.connection, job),
            reason=outcome.reason,
        )
        outcome_id = unit.emit(t.OUTCOME_DECIDED, body, job=job.job_id)
        self._log.info("decided", job=job.job_id.hex(), case=body.case, stage=body.stage, reason=body.reason)
        if count_outcome(self._genesis, unit, job, body, outcome_id):
            note_change(unit.connection)

    def _make_stage(self, unit: Unit, job: Job, command: d.SealStage) -> m.StageSealedV1:
        claims = show_claims(unit.connection, job, [party.stage for party in command.parties])
        return m.StageSealedV1(
            job_id=job.job_id,
            attempt=job.attempt,
            stage=command.stage,
            retry=command.retry,
            corner=_make_corner(command.corner),
            parties=tuple(
                m.StagePartyV1(
                    participant=party.participant,
                    stage=party.stage,
                    root=party.root,
                    leaf_count=party.corner.position_max + 1,
                    corner=_make_corner(party.corner),
                    claim=claims.get(party.stage),
                )
                for party in command.parties
            ),
            sample_count=command.sample_count,
            sealed_ms=unit.now_ms,
        )

    def _load(self, connection: sa.Connection, job: Job) -> State:
        """Return a job's dispute, or the one of a job that nothing was said about yet."""
        data = _GET_STATE.scalar(connection, job_id=job.job_id)
        if data is not None:
            state: State = self._adapter.validate_python(decode_value(data))
            return state
        return self._procedure.start(
            generator=d.Party(job.generator, d.GENERATOR_STAGE, job.root, job.full_corner),
            sample_count=self._genesis.audit.sample_count,
        )

    def _save(self, connection: sa.Connection, job: Job, state: State) -> None:
        fields: dict[str, Any] = self._adapter.dump_python(state)
        upsert(
            connection,
            DISPUTES,
            {"job_id": job.job_id},
            {"phase": state.phase.value, "state": encode_value(fields)},
        )


def _is_opening(state: State, stage: int, retry: int) -> bool:
    return state.phase is d.Phase.OPENING and (stage, retry) == (state.stage, state.retry)


def _read_closing(body: m.OpeningsClosedV1) -> d.OpeningsClosed:
    opened = frozenset(map(ParticipantId, body.opened))
    return d.OpeningsClosed(body.stage, body.retry, unpack_tokens(body.positions), opened)


def _make_corner(corner: Corner) -> m.CornerV1:
    return m.CornerV1(
        layer_max=corner.layer_max, position_max=corner.position_max, full_depth=corner.full_depth
    )


def _read_corner(body: m.CornerV1) -> Corner:
    return Corner(layer_max=body.layer_max, position_max=body.position_max, full_depth=body.full_depth)
