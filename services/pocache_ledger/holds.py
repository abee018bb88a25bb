"""Locking and releasing money in a job's pool: escrow, stakes, the lease fee.

Owns which account a hold is taken from and returned to, who may be held for what, and how much at least: what
the rules of payment will need when the job is settled. A request that cannot be met is answered, not dropped;
nothing is locked then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.errors import (
    ConflictError,
    ExpiredError,
    LedgerError,
    NotAuthorizedError,
    UnknownJobError,
)
from pocache.protocol.payoff import RuleSet
from pocache.service.unit import Unit
from pocache.storage.prepared import Prepared
from pocache.wire import topics as t
from pocache.wire.messages import AttemptChargedV1, HoldRequestV1, StakePostedV1
from pocache_ledger import unbonding
from pocache_ledger.accounts import (
    TREASURY,
    Operation,
    Posting,
    compute_subject,
    get_balance,
    pool_account,
    post,
    stake_account,
    unbonding_account,
)
from pocache_ledger.tables import HOLDS, JOBS

ESCROW: Final = "escrow"
GENERATOR_STAKE: Final = "generator_stake"
VERIFIER_STAKE: Final = "verifier_stake"
STAKES: Final = (GENERATOR_STAKE, VERIFIER_STAKE)

OPEN: Final = "open"
COMMITTED: Final = "committed"
SETTLED: Final = "settled"

_GET_JOB: Final = Prepared(sa.select(JOBS).where(JOBS.c.job_id == sa.bindparam("job_id")))
_GET_HOLDS: Final = Prepared(
    sa.select(HOLDS)
    .where(HOLDS.c.job_id == sa.bindparam("job_id"), HOLDS.c.is_held)
    .order_by(HOLDS.c.stage, HOLDS.c.purpose)
)
_GET_LOCKED: Final = Prepared(
    sa.select(HOLDS.c.purpose, HOLDS.c.amount_micro).where(
        HOLDS.c.party == sa.bindparam("party"), HOLDS.c.is_held
    )
)
_END_HOLD: Final = Prepared(
    sa.update(HOLDS)
    .where(
        HOLDS.c.job_id == sa.bindparam("of_job"),
        HOLDS.c.purpose == sa.bindparam("of_purpose"),
        HOLDS.c.attempt == sa.bindparam("of_attempt"),
        HOLDS.c.stage == sa.bindparam("of_stage"),
    )
    .values(amount_micro=0, is_held=False)
)


@dataclass(frozen=True, slots=True)
class Hold:
    """Somebody's money in a job's pool."""

    purpose: str
    attempt: int
    stage: int
    party: str
    amount_micro: int

    @property
    def home(self) -> str:
        """The account that it came from and returns to."""
        return stake_account(self.party) if self.purpose in STAKES else self.party


def get_job(connection: sa.Connection, job_id: bytes) -> sa.Row[Any] | None:
    """Return what the ledger knows of a job, None before it is admitted."""
    job: sa.Row[Any] | None = _GET_JOB.first(connection, job_id=job_id)
    return job


def get_holds(connection: sa.Connection, job_id: bytes) -> tuple[Hold, ...]:
    """Return what is held for a job: escrow first, then the generator's stake, then verifiers' by stage."""
    return tuple(_to_hold(row) for row in _GET_HOLDS.all(connection, job_id=job_id))


def get_locked(connection: sa.Connection, participant: str, purposes: Iterable[str]) -> int:
    """Return how much of a participant's money is held for these purposes, over all jobs."""
    wanted = frozenset(purposes)
    rows = _GET_LOCKED.all(connection, party=participant)
    return sum(row.amount_micro for row in rows if row.purpose in wanted)


def place(unit: Unit, rules: RuleSet, job: sa.Row[Any], request: HoldRequestV1, cause: bytes) -> int | None:
    """Move the requested amount into the job's pool.

    Returns the journal entry, None when it is held already. Raises the error that the requester is told of:
    ExpiredError, ConflictError, UnknownJobError, NotAuthorizedError, LedgerError, FundsError, PayoffError.
    """
    hold = Hold(request.purpose, request.attempt, request.stage, request.party, request.amount_micro)
    known = unit.connection.execute(_select_hold(request.job_id, hold)).one_or_none()
    if known is not None and known.is_held and _to_hold(known) == hold:
        return None
    if job.phase == SETTLED:
        raise ExpiredError(f"the job is settled ({job.settled_as}); nothing is held for it any more")
    if known is not None and not known.is_held:
        raise ExpiredError(f"the {hold.purpose} of attempt {hold.attempt} was released; it is over")
    if known is not None:
        raise ConflictError(
            f"{known.party} has the {hold.purpose} of attempt {hold.attempt}, stage {hold.stage}"
        )
    _verify_party(unit.connection, rules, job, hold)
    needed = _compute_needed(rules, job, hold)
    if hold.amount_micro < needed:
        raise LedgerError(f"a {hold.purpose} of {hold.amount_micro} micro-units, the rules need {needed}")
    entry = post(
        unit.connection,
        Operation(
            kind="hold",
            subject=compute_subject(request.job_id, hold.purpose, hold.attempt, hold.stage),
            cause=cause,
            postings=(
                Posting(hold.home, -hold.amount_micro),
                Posting(pool_account(request.job_id), hold.amount_micro),
            ),
        ),
        now_ms=unit.now_ms,
    )
    unit.connection.execute(
        sa.insert(HOLDS).values(
            job_id=request.job_id,
            purpose=hold.purpose,
            attempt=hold.attempt,
            stage=hold.stage,
            party=hold.party,
            amount_micro=hold.amount_micro,
            is_held=True,
        )
    )
    return entry


def reduce(unit: Unit, job_id: bytes, hold: Hold, amount_micro: int) -> None:
    """Write down that of a hold only this much is still in the pool."""
    assert 0 <= amount_micro <= hold.amount_micro, (hold, amount_micro)
    unit.connection.execute(
        sa.update(HOLDS).where(*_hold_key(job_id, hold)).values(amount_micro=amount_micro)
    )


def end(unit: Unit, job_id: bytes, holds: Iterable[Hold]) -> None:
    """Write down that these holds are over: nothing of theirs is in the pool any more."""
    keys = [
        {"of_job": job_id, "of_purpose": hold.purpose, "of_attempt": hold.attempt, "of_stage": hold.stage}
        for hold in holds
    ]
    if keys:
        _END_HOLD.run_many(unit.connection, keys)


def charge_attempt(unit: Unit, body: AttemptChargedV1, *, fee_max_micro: int, cause: bytes) -> bool:
    """End an attempt without a commitment: fee to the treasury, the rest of the stake back to its worker.

    What the hold lacks of the fee is taken from the free stake, then from what unbonds: asking for one's stake does
    not save it.

    Returns whether there was anything to do. Raises LedgerError when it has a commitment, or no such stake.
    """
    job = get_job(unit.connection, body.job_id)
    assert job is not None
    wanted = Hold(GENERATOR_STAKE, body.attempt, 0, body.generator, 0)
    row = unit.connection.execute(_select_hold(body.job_id, wanted)).one_or_none()
    if row is None or row.party != body.generator:
        raise LedgerError(f"{body.generator} holds no stake for attempt {body.attempt}")
    if not row.is_held:
        return False
    if job.phase == COMMITTED and job.attempt == body.attempt:
        raise LedgerError(f"attempt {body.attempt} has a recorded commitment: it is settled, not charged")
    hold = _to_hold(row)
    free = get_balance(unit.connection, stake_account(hold.party)) or 0
    from_hold = min(fee_max_micro, hold.amount_micro)
    from_free = min(fee_max_micro - from_hold, free)
    from_unbonding = min(
        fee_max_micro - from_hold - from_free, unbonding.compute_open_micro(unit.connection, hold.party)
    )
    entry = post(
        unit.connection,
        Operation(
            kind="charge",
            subject=compute_subject(body.job_id, body.attempt),
            cause=cause,
            postings=(
                Posting(pool_account(body.job_id), -hold.amount_micro),
                Posting(TREASURY, from_hold + from_free + from_unbonding),
                Posting(hold.home, hold.amount_micro - from_hold - from_free),
                Posting(unbonding_account(hold.party), -from_unbonding),
            ),
        ),
        now_ms=unit.now_ms,
    )
    unbonding.take(unit.connection, hold.party, from_unbonding)
    end(unit, body.job_id, [hold])
    announce_stakes(unit, [hold.party], entry)
    return True


def announce_stakes(unit: Unit, participants: Sequence[str], entry: int) -> None:
    """Tell everybody what these participants have at stake after a journal entry."""
    for participant in dict.fromkeys(participants):
        unit.emit_last(
            t.STAKE_POSTED,
            partial(_compute_stake, unit.connection, participant, entry),
            participant=participant,
        )


def _compute_stake(connection: sa.Connection, participant: str, entry: int) -> StakePostedV1:
    free = get_balance(connection, stake_account(participant)) or 0
    locked = get_locked(connection, participant, STAKES)
    return StakePostedV1(participant=participant, stake_micro=free + locked, free_micro=free, entry=entry)


def _verify_party(connection: sa.Connection, rules: RuleSet, job: sa.Row[Any], hold: Hold) -> None:
    """Refuse a hold of somebody who has no such part in the job, or at a point where there is none."""
    if hold.purpose == ESCROW:
        if hold.party != job.user:
            raise NotAuthorizedError("an escrow is the deposit of the user whose job it is")
        if (hold.attempt, hold.stage) != (1, 0):
            raise LedgerError("a job has one escrow, asked for as attempt 1, stage 0")
        return
    holds = get_holds(connection, job.job_id)
    if not any(other.purpose == ESCROW for other in holds):
        raise LedgerError("no stake is locked for a job without an escrow")
    if hold.purpose == VERIFIER_STAKE:
        _verify_verifier(rules, job, hold, holds)
    elif job.phase == COMMITTED:
        raise ExpiredError(f"attempt {job.attempt} of the job has its commitment")
    elif hold.stage != 0:
        raise LedgerError("a generator stands at stage 0")


def _verify_verifier(rules: RuleSet, job: sa.Row[Any], hold: Hold, holds: Sequence[Hold]) -> None:
    if hold.attempt != job.attempt:
        raise UnknownJobError(f"the recorded commitment is that of attempt {job.attempt}, not {hold.attempt}")
    if not 1 <= hold.stage <= rules.seat_max:
        raise LedgerError(f"verifiers stand at stages 1 to {rules.seat_max}, not {hold.stage}")
    verifiers = {other.party for other in holds if other.purpose == VERIFIER_STAKE}
    if hold.party == job.generator or hold.party in verifiers:
        raise ConflictError(f"{hold.party} has a part in this job already")


def _compute_needed(rules: RuleSet, job: sa.Row[Any], hold: Hold) -> int:
    if hold.purpose == VERIFIER_STAKE:
        return rules.compute_products(job.generation_micro, job.verification_micro).verifier_stake
    products = rules.compute_products(job.generation_max_micro, job.verification_max_micro)
    return products.deposit if hold.purpose == ESCROW else products.generator_stake


def _hold_key(job_id: bytes, hold: Hold) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        HOLDS.c.job_id == job_id,
        HOLDS.c.purpose == hold.purpose,
        HOLDS.c.attempt == hold.attempt,
        HOLDS.c.stage == hold.stage,
    )


def _select_hold(job_id: bytes, hold: Hold) -> sa.Select[Any]:
    return sa.select(HOLDS).where(*_hold_key(job_id, hold))


def _to_hold(row: sa.Row[Any]) -> Hold:
    return Hold(row.purpose, row.attempt, row.stage, row.party, row.amount_micro)
