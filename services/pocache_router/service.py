"""The router as a service: messages become events of the job's lifecycle, its commands become messages.

The lifecycle itself (``pocache.protocol.lifecycle``) decides; here are its tables, its leases and its words to others.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from pocache.protocol import lifecycle as life
from pocache.protocol.commitment import compute_sampling_seed, compute_token_hash
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import NotAuthorizedError, NotYetError, UnknownJobError
from pocache.protocol.ids import JobId, ModelId, ParticipantId
from pocache.runtime.network import Genesis, Model
from pocache.service.unit import Handler, Inbound, Query, RoundView, Unit
from pocache.storage.rows import find_row, insert_row, update_rows, upsert
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import decode
from pocache.wire.envelope import parse_envelope
from pocache.wire.topics import Role, Topic
from pocache_router.admission import admit
from pocache_router.escrows import confirm_escrow, forget_refused, open_escrow, refuse_escrow
from pocache_router.tables import (
    CANCELLATIONS,
    EJECTIONS,
    EPOCHS,
    JOBS,
    METADATA,
    compute_state_columns,
    count_open_jobs,
    get_epoch,
    get_job,
    get_overdue,
    get_unanswered,
    is_ejected,
    keep_result,
    read_state,
)

LAPSE_AGAIN_TICKS: Final = 60
"""After how long the commitment store is asked again about a lease that ended: its queue gives a message up in the end."""
EPOCH_TICKS: Final = 1_200
"""How long sampling seeds derive from one key."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Which of several requests for one attempt an answer belongs to."""

    publication: int = 1
    requested_ms: int = 0


UNASKED: Final = Answered()


class RouterService:
    """Admits jobs, leases them, follows them."""

    role = Role.ROUTER
    metadata = METADATA
    halts_on_poison = False

    def __init__(
        self,
        genesis: Genesis,
        models: Mapping[ModelId, Model],
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._genesis = genesis
        self._models = models
        self._entropy = entropy
        self._log = structlog.get_logger().bind(service="router")

    def handlers(self) -> Mapping[Topic[Any], Handler]:
        """Return what is done with each topic."""
        return {
            t.JOB_SUBMITTED: self.on_submission,
            t.LEASE_REQUESTED: self.on_lease_request,
            t.CANCEL_REQUESTED: self.on_cancel_request,
            t.HOLD_PLACED: self.on_hold_placed,
            t.HOLD_REFUSED: self.on_hold_refused,
            t.COMMITMENT_RECORDED: self.on_recorded,
            t.ATTEMPT_CLOSED: self.on_attempt_closed,
            t.PAYOUT_SETTLED: self.on_payout,
            t.WORKER_EJECTED: self.on_ejection,
        }

    def queries(self) -> Mapping[Topic[Any], Query]:
        """Return nothing: the router answers by events."""
        return {}

    def on_round(self, unit: Unit, view: RoundView) -> None:
        """Open a seed epoch when one is due; expire queued jobs and lapsed leases; whoever had no money may try again."""
        self._turn_epoch(unit)
        forget_refused(unit.connection, view.number)
        for job_id in get_overdue(unit.connection, tick=unit.tick, now_ms=unit.now_ms):
            self._advance(unit, job_id, life.Ticked(unit.tick))
        if view.is_fresh:
            self._ask_again(unit)

    def _ask_again(self, unit: Unit) -> None:
        """Say once more which leases have lapsed long ago without an answer, in the same words."""
        for row in get_unanswered(unit.connection, tick=unit.tick, every=LAPSE_AGAIN_TICKS):
            self._execute(unit, row, read_state(row), life.LapseLease(row.attempt), UNASKED)

    def on_submission(self, unit: Unit, inbound: Inbound[m.SubmissionV1]) -> None:
        """Admit a job: its id is the id of its envelope."""
        body, job_id = inbound.body, JobId(inbound.envelope_id)
        quote = admit(
            body,
            genesis=self._genesis,
            models=self._models,
            now_ms=unit.now_ms,
            open_jobs=count_open_jobs(unit.connection),
        )
        open_escrow(
            unit.connection,
            job_id,
            inbound.sender,
            len(inbound.envelope),
            period_s=self._genesis.chain.period_s,
        )
        state = life.create_job(
            attempt_max=self._genesis.bounds.attempt_max,
            expires_tick=unit.tick + self._genesis.deadlines.queue_ticks,
        )
        job = {
            "job_id": job_id,
            "user": inbound.sender,
            "model_id": body.model_id,
            "submission": inbound.envelope,
            "generator_stake_micro": quote.generator_stake_micro,
        }
        insert_row(unit.connection, JOBS, {**job, **compute_state_columns(state)})
        unit.emit(
            t.JOB_ADMITTED,
            m.JobAdmittedV1(
                job_id=job_id,
                user=inbound.sender,
                submission=inbound.envelope,
                generation_max_micro=quote.generation_max_micro,
                verification_max_micro=quote.verification_max_micro,
            ),
            job=job_id,
        )
        self._request_hold(unit, "escrow", job_id, 1, inbound.sender, quote.deposit_micro)
        self._announce(unit, job_id, inbound.sender, state, life.Announce(state.phase))
        self._log.info("admitted", job=job_id, user=inbound.sender)

    def on_lease_request(self, unit: Unit, inbound: Inbound[m.LeaseRequestV1]) -> None:
        """A worker wants to generate an attempt."""
        body = inbound.body
        job = get_job(unit.connection, body.job_id)
        is_out = job is not None and is_ejected(unit.connection, inbound.sender, job.model_id)
        event = life.LeaseRequested(
            inbound.sender, body.attempt, is_ejected=is_out, publication=body.publication
        )
        answered = Answered(body.publication, body.requested_ms)
        self._advance(unit, JobId(body.job_id), event, answered)

    def on_cancel_request(self, unit: Unit, inbound: Inbound[m.CancelRequestV1]) -> None:
        """The user wants no more of its job; what was generated by then is committed to and paid."""
        job_id = JobId(inbound.body.job_id)
        job = get_job(unit.connection, job_id)
        if job is None:
            raise NotYetError("the job is not admitted yet")  # its submission travels in another stream
        if job.user != inbound.sender:
            raise NotAuthorizedError("only who submitted a job may cancel it")
        upsert(unit.connection, CANCELLATIONS, {"job_id": job_id}, {"cancellation": inbound.envelope})
        self._advance(unit, job_id, life.CancelRequested())

    def on_hold_placed(self, unit: Unit, inbound: Inbound[m.HoldPlacedV1]) -> None:
        """The ledger locked a deposit or a generator's stake."""
        body = inbound.body
        if body.purpose == "escrow":
            confirm_escrow(unit.connection, JobId(body.job_id), ParticipantId(body.party))
            self._advance(unit, JobId(body.job_id), life.EscrowPlaced())
        elif body.purpose == "generator_stake":
            deadline = unit.tick + self._genesis.deadlines.lease_ticks
            self._advance(
                unit,
                JobId(body.job_id),
                life.StakePlaced(ParticipantId(body.party), body.attempt, deadline),
            )

    def on_hold_refused(self, unit: Unit, inbound: Inbound[m.HoldRefusedV1]) -> None:
        """The ledger did not lock it."""
        body = inbound.body
        if body.purpose == "escrow":
            refused_round = unit.get_latest_round()
            refuse_escrow(unit.connection, JobId(body.job_id), ParticipantId(body.party), refused_round)
            self._advance(unit, JobId(body.job_id), life.EscrowRefused(body.code, body.reason))
        elif body.purpose == "generator_stake":
            refused = life.StakeRefused(ParticipantId(body.party), body.attempt, body.code, body.reason)
            self._advance(unit, JobId(body.job_id), refused, Answered(body.publication))

    def on_recorded(self, unit: Unit, inbound: Inbound[m.CommitmentRecordedV1]) -> None:
        """The attempt's commitment is in the log: the user gets the result."""
        body = inbound.body
        keep_result(unit.connection, body.job_id, body.attempt, body.result)
        self._advance(unit, JobId(body.job_id), life.Recorded(body.attempt))

    def on_attempt_closed(self, unit: Unit, inbound: Inbound[m.AttemptClosedV1]) -> None:
        """The attempt ended without a commitment."""
        self._advance(unit, JobId(inbound.body.job_id), life.AttemptClosed(inbound.body.attempt))

    def on_payout(self, unit: Unit, inbound: Inbound[m.PayoutSettledV1]) -> None:
        """The job's pool is empty."""
        case = inbound.body.case
        event = life.Refunded() if case == "refunded" else life.Settled(case)
        self._advance(unit, JobId(inbound.body.job_id), event)

    def on_ejection(self, unit: Unit, inbound: Inbound[m.EjectionV1]) -> None:
        """Lease a model to a worker no more; what it holds ends as it would have."""
        key = {"worker": inbound.body.participant, "model_id": inbound.body.model_id}
        upsert(unit.connection, EJECTIONS, key, {})
        self._log.warning("ejected", worker=inbound.body.participant, model=inbound.body.model_id.hex())

    def _advance(self, unit: Unit, job_id: JobId, event: life.Event, answered: Answered = UNASKED) -> None:
        """Take one step of a job's life; a denial says by ``answered`` which request it belongs to."""
        row = get_job(unit.connection, job_id)
        if row is None:
            raise UnknownJobError(f"no job {job_id.hex()} was admitted here")
        before = read_state(row)
        after, commands = life.advance(before, event)
        if after != before:
            update_rows(unit.connection, JOBS, {"job_id": job_id}, compute_state_columns(after))
        for command in commands:
            self._execute(unit, row, after, command, answered)

    def _execute(
        self, unit: Unit, row: Any, state: life.JobState, command: life.Command, answered: Answered
    ) -> None:
        job_id = JobId(row.job_id)
        match command:
            case life.PublishTask(attempt, publication):
                task = m.GenerateTaskV1(
                    job_id=job_id, attempt=attempt, model_id=row.model_id, publication=publication
                )
                unit.emit(t.GENERATE_TASK, task, model=row.model_id)
            case life.RequestStake(worker, attempt, publication):
                request = m.HoldRequestV1(
                    purpose="generator_stake",
                    job_id=job_id,
                    attempt=attempt,
                    party=worker,
                    amount_micro=row.generator_stake_micro,
                    publication=publication,
                )
                unit.emit(t.ROUTER_HOLD_REQUESTED, request, job=job_id)
            case life.GrantLease(worker, attempt):
                self._grant(unit, row, worker, attempt)
            case life.DenyLease(worker, attempt, code, reason):
                denial = m.LeaseDeniedV1(
                    job_id=job_id,
                    attempt=attempt,
                    code=code,
                    reason=reason,
                    publication=answered.publication,
                    requested_ms=answered.requested_ms,
                )
                unit.emit(t.LEASE_DENIED, denial, worker=worker)
            case life.CancelLease(worker, attempt):
                kept = find_row(unit.connection, CANCELLATIONS, {"job_id": job_id})
                notice = m.LeaseCancelledV1(job_id=job_id, attempt=attempt, cancellation=kept.cancellation)
                unit.emit(t.LEASE_CANCELLED, notice, worker=worker)
            case life.LapseLease(attempt):
                assert row.holder is not None, "a lease has a holder"
                lapse = m.LeaseLapsedV1(job_id=job_id, attempt=attempt, generator=row.holder)
                unit.emit(t.LEASE_LAPSED, lapse, job=job_id)
            case life.ChargeAttempt(attempt, worker):
                charge = m.AttemptChargedV1(job_id=job_id, attempt=attempt, generator=worker)
                unit.emit(t.ATTEMPT_CHARGED, charge, job=job_id)
            case life.Abandon(reason):
                unit.emit(t.JOB_ABANDONED, m.JobAbandonedV1(job_id=job_id, reason=reason), job=job_id)
            case life.Announce():
                self._announce(unit, job_id, row.user, state, command, row.result)

    def _grant(self, unit: Unit, row: Any, worker: ParticipantId, attempt: int) -> None:
        """Send the worker its lease; the same one again when it asks again."""
        lease = row.lease
        known = None if lease is None else decode(m.LeaseV1, parse_envelope(lease).payload)
        if known is None or (known.attempt, known.generator) != (attempt, worker):
            terms = self._make_lease(unit, row, worker, attempt)
            lease, _ = unit.sign(terms)
            kept = {"lease": lease, "lease_deadline_ms": terms.deadline_ms}
            update_rows(unit.connection, JOBS, {"job_id": row.job_id}, kept)
        granted = m.LeaseGrantedV1(job_id=row.job_id, attempt=attempt, lease=lease, submission=row.submission)
        unit.emit(t.LEASE_GRANTED, granted, worker=worker)
        self._log.info("leased", job=row.job_id, attempt=attempt, worker=worker)

    def _make_lease(self, unit: Unit, row: Any, worker: ParticipantId, attempt: int) -> m.LeaseV1:
        submission = decode(m.SubmissionV1, parse_envelope(row.submission).payload)  # verified when it came
        model = self._models[ModelId(row.model_id)]
        lease_ms = self._genesis.deadlines.lease_ticks * self._genesis.chain.period_s * 1_000
        return m.LeaseV1(
            job_id=row.job_id,
            attempt=attempt,
            generator=worker,
            user=row.user,
            model_id=row.model_id,
            prompt_hash=compute_token_hash(submission.salt, submission.prompt),
            prompt_count=len(unpack_tokens(submission.prompt)),
            token_count_max=submission.token_count_max,
            sampling=submission.sampling,
            eos_stop=submission.eos_stop,
            seed=compute_sampling_seed(submission.seed, self._get_epoch_key(unit), JobId(row.job_id)),
            salt=submission.salt,
            schema_digest=model.schema.digest(),
            profile_set=model.profile_set,
            granted_ms=unit.now_ms,
            deadline_ms=unit.now_ms + lease_ms,
        )

    def _request_hold(
        self, unit: Unit, purpose: Any, job_id: JobId, attempt: int, party: ParticipantId, amount_micro: int
    ) -> None:
        request = m.HoldRequestV1(
            purpose=purpose, job_id=job_id, attempt=attempt, party=party, amount_micro=amount_micro
        )
        unit.emit(t.ROUTER_HOLD_REQUESTED, request, job=job_id)

    def _announce(
        self,
        unit: Unit,
        job_id: JobId,
        user: str,
        state: life.JobState,
        command: life.Announce,
        result: bytes | None = None,
    ) -> None:
        event = m.JobEventV1(
            job_id=job_id,
            phase=command.phase.value,
            attempt=state.attempt,
            code=command.code,
            detail=command.reason,
            at_ms=unit.now_ms,
            # Again at the end: whoever missed the commitment has the result by the last event alone.
            result=result if command.phase in (life.Phase.COMMITTED, life.Phase.SETTLED) else None,
            generator=state.holder,
        )
        unit.emit(t.JOB_EVENT, event, user=user, job=job_id)

    def _turn_epoch(self, unit: Unit) -> None:
        """Log the next key's hash, and the last key, when an epoch has lasted long enough."""
        last = get_epoch(unit.connection)
        if last is not None and unit.tick < last.opened_tick + EPOCH_TICKS:
            return
        number, key = (1 if last is None else last.number + 1), self._entropy(32)
        insert_row(unit.connection, EPOCHS, {"number": number, "key": key, "opened_tick": unit.tick})
        unit.emit(
            t.EPOCH,
            m.EpochV1(
                number=number,
                key_hash=hashlib.sha256(key).digest(),
                previous_key=None if last is None else last.key,
            ),
        )

    @staticmethod
    def _get_epoch_key(unit: Unit) -> bytes:
        epoch = get_epoch(unit.connection)
        if epoch is None:
            raise NotYetError("no beacon round has come yet, and with it no epoch for seeds")
        key: bytes = epoch.key
        return key
