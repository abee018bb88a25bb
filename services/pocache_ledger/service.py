"""The ledger service: what it does with each message about money, and what it answers.

Owns the order of a job's money: admitted, held, committed, settled. All that it takes is signed by the
operator or a service, and withdrawals by their owners; a message that refers to something not seen yet is delivered again until its patience,
counted in rounds, is over. Halts rather than skip a message that it failed to handle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
import structlog

from pocache.protocol.errors import (
    ConfigError,
    ConflictError,
    Disposition,
    EnvelopeError,
    LedgerError,
    NotAuthorizedError,
    NotYetError,
    PocacheError,
    UnknownJobError,
)
from pocache.protocol.ids import ModelId
from pocache.protocol.limits import TOKEN_BYTES
from pocache.protocol.payoff import Case
from pocache.runtime.metrics import Metrics
from pocache.runtime.network import Genesis, Model
from pocache.service.reports import Report, ReportView
from pocache.service.unit import Handler, Inbound, Query, RoundView, TransactionBooks, Unit
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role, Topic
from pocache_ledger import holds, settlement
from pocache_ledger.accounts import (
    Operation,
    Posting,
    compute_totals,
    get_balance,
    post,
    stake_account,
    sum_accounts,
    verify_journal,
)
from pocache_ledger.bonds import begin_bond, collect_bonds
from pocache_ledger.books import ESCROW, STAKES, VERIFIER_STAKE, Books, Job
from pocache_ledger.settlement import Ending
from pocache_ledger.statements import announce_checkpoints, compute_statement, read_checkpoints
from pocache_ledger.tables import METADATA, WORLD
from pocache_ledger.unbonding import compute_open_micro
from pocache_ledger.withdrawals import pay_matured, withdraw

_WAITING_MAX: Final = 100_000
"""Messages whose patience is counted at once; beyond that all counts start again: a longer wait, no loss."""


_ABOUT_JOBS: Final[frozenset[Topic[Any]]] = frozenset(
    {
        t.JOB_ADMITTED,
        t.ROUTER_HOLD_REQUESTED,
        t.VERIFIER_HOLD_REQUESTED,
        t.COMMITMENT_RECORDED,
        t.WINDOW_CLOSED,
        t.OUTCOME_DECIDED,
        t.JOB_ABANDONED,
    }
)


class UnknownPricesError(ConfigError):
    """A job of a model that this ledger was not given: it must not guess what the job costs."""

    disposition = Disposition.HALT


class LedgerService:
    """Accounts, holds and settlement on the bus."""

    role = Role.LEDGER
    metadata = METADATA
    halts_on_poison = True
    kept_in_books: frozenset[Topic[Any]] = _ABOUT_JOBS | {t.DEPOSITED}

    def __init__(self, *, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        """Keep the rules of the network and what its models cost."""
        self._genesis = genesis
        self._models = models
        self._rules = genesis.rule_set
        self._patience_ticks = genesis.deadlines.queue_ticks
        self._waiting: dict[bytes, int] = {}
        self._log = structlog.get_logger().bind(service=self.role.value)

    def observe_state(self, connection: sa.Connection, metrics: Metrics) -> None:
        """Set what the accounts add up to, as the database sums it."""
        totals = sum_accounts(connection)
        metrics.observe_totals(
            deposited_micro=totals.deposited_micro,
            held_micro=totals.held_micro,
            open_pools=totals.open_pool_count,
        )

    def handlers(self) -> Mapping[Topic[Any], Handler]:
        """Return what is done with each topic."""
        return {
            t.DEPOSITED: self._on_deposit,
            t.USER_WITHDRAWAL_REQUESTED: self._on_withdrawal,
            t.WORKER_WITHDRAWAL_REQUESTED: self._on_withdrawal,
            t.JOB_ADMITTED: self._on_admitted,
            t.ROUTER_HOLD_REQUESTED: self._on_router_hold,
            t.VERIFIER_HOLD_REQUESTED: self._on_verifier_hold,
            t.COMMITMENT_RECORDED: self._on_commitment,
            t.ATTEMPT_CHARGED: self._on_charge,
            t.WINDOW_CLOSED: self._on_window_closed,
            t.OUTCOME_DECIDED: self._on_outcome,
            t.JOB_ABANDONED: self._on_abandoned,
            t.WORKER_EJECTED: self._on_ejection,
        }

    def queries(self) -> Mapping[Topic[Any], Query]:
        """Return what is answered."""
        return {
            t.BALANCE_QUERY: self._on_balance_query,
            t.STATEMENT_QUERY: self._on_statement_query,
        }

    def reports(self) -> Mapping[Topic[Any], Report]:
        """Return what is answered from a snapshot, because all accounts and the whole journal are read for it."""
        return {t.TOTALS_QUERY: self._on_totals_query}

    def open_books(self, connection: sa.Connection) -> Books:
        """Return the accounts, jobs, holds and journal of one transaction."""
        return Books(connection)

    def look_up(self, books: TransactionBooks, inbounds: Sequence[Inbound[Any]]) -> None:
        """Read the jobs, holds and accounts that these messages are about, and whether they were posted before."""
        assert isinstance(books, Books), books
        bodies = [inbound.body for inbound in inbounds if inbound.topic in _ABOUT_JOBS]
        holds.look_up(books, [body.job_id for body in bodies], [_get_operation_id(body) for body in bodies])

    def on_round(self, unit: Unit, view: RoundView) -> None:
        """Take what bonds are due, pay out what has unbonded, publish the journal's checkpoints, forget the waits that ended."""
        collect_bonds(unit)  # before what it could be taken from has left
        pay_matured(unit)
        announce_checkpoints(unit)
        horizon = unit.tick - 2 * self._patience_ticks
        self._waiting = {name: since for name, since in self._waiting.items() if since > horizon}

    def _on_deposit(self, unit: Unit, inbound: Inbound[m.DepositV1]) -> None:
        body = inbound.body
        is_stake = body.bucket == "stake"
        account = stake_account(body.participant) if is_stake else body.participant
        operation = Operation(
            kind="deposit",
            subject=body.reference.encode(),
            cause=inbound.envelope_id,
            postings=(Posting(WORLD, -body.amount_micro), Posting(account, body.amount_micro)),
        )
        entry = post(holds.get_books(unit), operation, now_ms=unit.now_ms)
        if is_stake:
            holds.announce_stakes(unit, [body.participant], entry)

    def _on_withdrawal(self, unit: Unit, inbound: Inbound[m.WithdrawalRequestV1]) -> None:
        withdraw(unit, inbound, unbonding_ticks=self._genesis.rules.unbonding_ticks)

    def _on_admitted(self, unit: Unit, inbound: Inbound[m.JobAdmittedV1]) -> None:
        body = inbound.body
        submission = open_envelope(body.submission, self._genesis.network_id, m.SubmissionV1)
        if submission.envelope_id != body.job_id or submission.sender != body.user:
            raise EnvelopeError("the submission is not that of this job and user")
        facts: dict[str, Any] = {
            "user": body.user,
            "model_id": submission.body.model_id,
            "prompt_count": len(submission.body.prompt) // TOKEN_BYTES,
            "generation_max_micro": body.generation_max_micro,
            "verification_max_micro": body.verification_max_micro,
        }
        self._get_model(submission.body.model_id)
        books = holds.get_books(unit)
        known = books.jobs.get(body.job_id)
        if known is None:
            books.jobs.put(body.job_id, Job(job_id=body.job_id, phase=holds.OPEN, **facts))
        elif {name: getattr(known, name) for name in facts} != facts:
            raise ConflictError("this job was admitted before with other terms")

    def _on_router_hold(self, unit: Unit, inbound: Inbound[m.HoldRequestV1]) -> None:
        if inbound.body.purpose == VERIFIER_STAKE:
            raise NotAuthorizedError("only the verifier pool asks for a verifier's stake")
        self._hold(unit, inbound)

    def _on_verifier_hold(self, unit: Unit, inbound: Inbound[m.HoldRequestV1]) -> None:
        if inbound.body.purpose != VERIFIER_STAKE:
            raise NotAuthorizedError("the verifier pool asks for verifiers' stakes and for nothing else")
        job = self._await_job(unit, inbound)
        if job.phase == holds.OPEN:
            raise self._not_yet(unit, inbound, "the job has no recorded commitment yet")
        self._hold(unit, inbound)

    def _hold(self, unit: Unit, inbound: Inbound[m.HoldRequestV1]) -> None:
        """Place a hold, or answer why not; a request that cannot be met moves nothing.

        A request for what is held already is answered like the first one: it is another publication of it.
        """
        job = self._await_job(unit, inbound)
        body = inbound.body
        try:
            entry = holds.place(
                holds.get_books(unit), self._rules, job, body, cause=inbound.envelope_id, now_ms=unit.now_ms
            )
        except PocacheError as error:
            self._log.info("hold_refused", job=body.job_id.hex(), purpose=body.purpose, code=error.code)
            refused = m.HoldRefusedV1(
                purpose=body.purpose,
                job_id=body.job_id,
                attempt=body.attempt,
                stage=body.stage,
                party=body.party,
                code=error.code,
                reason=str(error),
                publication=body.publication,
            )
            unit.emit(t.HOLD_REFUSED, refused, job=body.job_id)
            return
        placed = m.HoldPlacedV1(
            purpose=body.purpose,
            job_id=body.job_id,
            attempt=body.attempt,
            stage=body.stage,
            party=body.party,
            amount_micro=body.amount_micro,
            publication=body.publication,
        )
        unit.emit(t.HOLD_PLACED, placed, job=body.job_id)
        if entry is not None and body.purpose in STAKES:
            holds.announce_stakes(unit, [body.party], entry)

    def _on_commitment(self, unit: Unit, inbound: Inbound[m.CommitmentRecordedV1]) -> None:
        body = inbound.body
        job = self._await_job(unit, inbound)
        result = open_envelope(body.result, self._genesis.network_id, m.ResultV1)
        if result.sender != body.generator or (result.body.job_id, result.body.attempt) != (
            body.job_id,
            body.attempt,
        ):
            raise EnvelopeError("the result is not that of this generator, job and attempt")
        if job.phase != holds.OPEN:
            if job.phase == holds.COMMITTED and (job.attempt, job.generator) != (
                body.attempt,
                body.generator,
            ):
                raise ConflictError(f"attempt {job.attempt} by {job.generator} is recorded for this job")
            self._log.warning("commitment_ignored", job=body.job_id.hex(), phase=job.phase)
            return
        model = self._get_model(job.model_id)
        settlement.release_surplus(
            unit, self._rules, model, job, result.body, generator=body.generator, cause=inbound.envelope_id
        )

    def _on_charge(self, unit: Unit, inbound: Inbound[m.AttemptChargedV1]) -> None:
        self._await_job(unit, inbound)
        fee_max_micro = self._genesis.rules.lease_fee_micro
        if not holds.charge_attempt(
            unit, inbound.body, fee_max_micro=fee_max_micro, cause=inbound.envelope_id
        ):
            self._log.warning("charge_ignored", job=inbound.body.job_id.hex(), attempt=inbound.body.attempt)

    def _on_window_closed(self, unit: Unit, inbound: Inbound[m.WindowClosedV1]) -> None:
        job = self._await_commitment(unit, inbound)
        if job is None:
            return
        if inbound.body.attempt != job.attempt:
            raise LedgerError(
                f"the window of attempt {inbound.body.attempt}; money is held for {job.attempt}"
            )
        assert job.verification_micro is not None, "a commitment fixed it"
        ending = Ending(case=Case.NO_CHALLENGE, stage=0, verification_micro=job.verification_micro)
        settlement.settle(unit, self._rules, job, ending, inbound.envelope_id)

    def _on_outcome(self, unit: Unit, inbound: Inbound[m.OutcomeV1]) -> None:
        job = self._await_commitment(unit, inbound)
        if job is None:
            return
        ending = settlement.compute_ending(self._get_model(job.model_id), job, inbound.body)
        settlement.settle(unit, self._rules, job, ending, inbound.envelope_id)

    def _on_abandoned(self, unit: Unit, inbound: Inbound[m.JobAbandonedV1]) -> None:
        job = self._await_job(unit, inbound)
        if job.phase == holds.SETTLED:
            self._log.warning("abandonment_ignored", job=job.job_id.hex(), settled_as=job.settled_as)
            return
        if job.phase == holds.COMMITTED:
            raise ConflictError("the job has a recorded commitment: it is settled, not abandoned")
        settlement.refund(unit, job, inbound.envelope_id)

    def _on_ejection(self, unit: Unit, inbound: Inbound[m.EjectionV1]) -> None:
        share = self._genesis.bond_share
        if share is None:
            raise LedgerError("by its genesis this network ejects nobody")
        if not begin_bond(unit, inbound.body, inbound.envelope_id, share):
            self._log.warning("ejection_ignored", worker=inbound.body.participant)

    def _on_balance_query(self, unit: Unit, inbound: Inbound[m.BalanceQueryV1]) -> m.BalanceReplyV1:
        participant = self._verify_asker(inbound)
        books = holds.get_books(unit)
        return m.BalanceReplyV1(
            participant=participant,
            available_micro=get_balance(books, participant) or 0,
            stake_micro=get_balance(books, stake_account(participant)) or 0,
            locked_micro=holds.get_locked(books, participant, (ESCROW, *STAKES)),
            unbonding_micro=compute_open_micro(unit.connection, participant),
        )

    def _on_statement_query(self, unit: Unit, inbound: Inbound[m.StatementQueryV1]) -> m.StatementReplyV1:
        self._verify_asker(inbound)
        return compute_statement(unit.connection, inbound.body)

    def _verify_asker(self, inbound: Inbound[Any]) -> str:
        """Return whose money is asked about; it is told to its owner and to the operator."""
        participant: str = inbound.body.participant
        if inbound.tokens["participant"] != participant:
            raise EnvelopeError("the subject names another participant than the question")
        if inbound.sender not in (participant, self._genesis.signer(Role.OPERATOR)):
            raise NotAuthorizedError("an account is told to its owner and to the operator")
        return participant

    def _on_totals_query(self, view: ReportView, _inbound: Inbound[m.TotalsQueryV1]) -> m.TotalsReplyV1:
        connection, check = view.connection, view.check
        totals = compute_totals(connection, check)
        try:
            ledger = self._genesis.signer(Role.LEDGER)
            checkpoints = read_checkpoints(connection, self._genesis.network_id, ledger, check)
            verify_journal(connection, checkpoints, check)
            is_intact = True
        except LedgerError as error:
            self._log.critical("journal_broken", reason=str(error))
            is_intact = False
        return m.TotalsReplyV1(
            deposited_micro=totals.deposited_micro,
            held_micro=totals.held_micro,
            open_pools_micro=totals.open_pools_micro,
            closed_pools_micro=totals.closed_pools_micro,
            open_pool_count=totals.open_pool_count,
            treasury_micro=totals.treasury_micro,
            reserve_micro=totals.reserve_micro,
            journal_entries=totals.journal_entries,
            journal_intact=is_intact,
        )

    def _await_job(self, unit: Unit, inbound: Inbound[Any]) -> Job:
        """Return the job of a message.

        Raises NotYetError while its admission may still come, then UnknownJobError.
        """
        job = holds.get_books(unit).jobs.get(inbound.body.job_id)
        if job is None:
            raise self._not_yet(unit, inbound, "the job was not admitted yet")
        return job

    def _await_commitment(self, unit: Unit, inbound: Inbound[Any]) -> Job | None:
        """Return a committed job, None when it is settled: nothing is paid a second time."""
        job = self._await_job(unit, inbound)
        if job.phase == holds.SETTLED:
            self._log.warning(
                "settlement_ignored", job=job.job_id.hex(), settled_as=job.settled_as, kind=inbound.body.kind
            )
            return None
        if job.phase == holds.OPEN:
            raise self._not_yet(unit, inbound, "the job has no recorded commitment yet")
        return job

    def _not_yet(self, unit: Unit, inbound: Inbound[Any], reason: str) -> PocacheError:
        """Return NotYetError until this process has waited for the patience, then UnknownJobError.

        The count is in memory: a restarted ledger is patient anew, as what it waits for may be on its way.
        """
        if len(self._waiting) >= _WAITING_MAX:
            self._waiting.clear()
        since = self._waiting.setdefault(inbound.envelope_id, unit.tick)
        if unit.tick - since < self._patience_ticks:
            return NotYetError(reason)
        del self._waiting[inbound.envelope_id]
        return UnknownJobError(f"{reason}, after {self._patience_ticks} rounds")

    def _get_model(self, model_id: bytes) -> Model:
        model = self._models.get(ModelId(model_id))
        if model is None:
            raise UnknownPricesError(
                f"no entry of model {model_id.hex()}: add it to the network directory, restart"
            )
        return model


def _get_operation_id(body: Any) -> bytes | None:
    """Return what a message about a job will be posted under, where it is one of the many."""
    if isinstance(body, m.HoldRequestV1):
        return holds.get_operation_id(body)
    if isinstance(body, (m.WindowClosedV1, m.OutcomeV1, m.JobAbandonedV1)):
        return settlement.get_operation_id(body.job_id)
    return None
