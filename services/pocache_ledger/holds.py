"""Locking and releasing money in a job's pool: escrow, stakes, the lease fee.

Owns which account a hold is taken from and returned to, who may be held for what, and how much at least: what
the rules of payment will need when the job is settled. A request that cannot be met is answered, not dropped;
nothing is locked then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Final

from pocache.protocol.errors import (
    ConflictError,
    ExpiredError,
    LedgerError,
    NotAuthorizedError,
    UnknownJobError,
)
from pocache.protocol.payoff import RuleSet
from pocache.service.unit import Unit
from pocache.wire import topics as t
from pocache.wire.messages import AttemptChargedV1, HoldRequestV1, StakePostedV1
from pocache_ledger import unbonding
from pocache_ledger.accounts import (
    RESERVE,
    TREASURY,
    Operation,
    Posting,
    compute_operation_id,
    compute_subject,
    get_balance,
    pool_account,
    post,
    stake_account,
    unbonding_account,
)
from pocache_ledger.books import ESCROW, GENERATOR_STAKE, STAKES, VERIFIER_STAKE, Books, Hold, Job

OPEN: Final = "open"
COMMITTED: Final = "committed"
SETTLED: Final = "settled"

_ORDER: Final = attrgetter("stage", "purpose")


def look_up(books: Books, job_ids: Sequence[bytes], operation_ids: Iterable[bytes | None]) -> None:
    """Read at once what messages about these jobs work on."""
    if not job_ids:
        return
    books.jobs.look_up(job_ids)
    books.holds.look_up(job_ids)
    books.numbers.look_up([one for one in operation_ids if one is not None])
    accounts = [TREASURY, RESERVE]
    for job_id in job_ids:
        accounts.append(pool_account(job_id))
        job = books.jobs.get(job_id)
        if job is not None:
            accounts.append(job.user)
        for hold in books.holds.get(job_id) or ():
            accounts += (hold.party, hold.home)
    books.accounts.look_up(accounts)


def get_operation_id(request: HoldRequestV1) -> bytes:
    """Return the id of the operation that places a hold."""
    return compute_operation_id("hold", _compute_subject(request))


def get_holds(books: Books, job_id: bytes) -> list[Hold]:
    """Return what is held for a job: escrow first, then the generator's stake, then verifiers' by stage."""
    held = [hold for hold in books.holds.get(job_id) or () if hold.is_held]
    return sorted(held, key=_ORDER)


def get_locked(books: Books, participant: str, purposes: Iterable[str]) -> int:
    """Return how much of a participant's money is held for these purposes, over all jobs."""
    locked = books.get_locked(participant)
    return sum(locked.get(purpose, 0) for purpose in purposes)


def place(
    books: Books, rules: RuleSet, job: Job, request: HoldRequestV1, *, cause: bytes, now_ms: int
) -> int | None:
    """Move the requested amount into the job's pool.

    Returns the journal entry, None when it is held already. Raises the error that the requester is told of:
    ExpiredError, ConflictError, UnknownJobError, NotAuthorizedError, LedgerError, FundsError, PayoffError.
    """
    hold = Hold(request.purpose, request.attempt, request.stage, request.party, request.amount_micro)
    known = _find(books, request.job_id, hold)
    if known == hold:
        return None
    if job.phase == SETTLED:
        raise ExpiredError(f"the job is settled ({job.settled_as}); nothing is held for it any more")
    if known is not None and not known.is_held:
        raise ExpiredError(f"the {hold.purpose} of attempt {hold.attempt} was released; it is over")
    if known is not None:
        raise ConflictError(
            f"{known.party} has the {hold.purpose} of attempt {hold.attempt}, stage {hold.stage}"
        )
    _verify_party(books, rules, job, hold)
    needed = _compute_needed(rules, job, hold)
    if hold.amount_micro < needed:
        raise LedgerError(f"a {hold.purpose} of {hold.amount_micro} micro-units, the rules need {needed}")
    operation = Operation(
        "hold",
        _compute_subject(request),
        cause,
        (Posting(hold.home, -hold.amount_micro), Posting(pool_account(request.job_id), hold.amount_micro)),
    )
    entry = post(books, operation, now_ms=now_ms)
    books.holds.put(request.job_id, (*(books.holds.get(request.job_id) or ()), hold))
    return entry


def reduce(books: Books, job_id: bytes, hold: Hold, amount_micro: int) -> None:
    """Write down that of a hold only this much is still in the pool."""
    assert 0 <= amount_micro <= hold.amount_micro, (hold, amount_micro)
    holds = books.holds.get(job_id) or ()
    reduced = hold._replace(amount_micro=amount_micro)
    books.holds.put(job_id, tuple([reduced if one.key == hold.key else one for one in holds]))


def end(books: Books, job_id: bytes, only: Hold | None = None) -> None:
    """Write down that a job's holds are over, or one of them: nothing of theirs is in the pool any more."""
    holds = books.holds.get(job_id) or ()
    books.holds.put(
        job_id,
        tuple(
            [
                Hold(hold.purpose, hold.attempt, hold.stage, hold.party, 0, is_held=False)
                if only is None or hold is only
                else hold
                for hold in holds
            ]
        ),
    )


def charge_attempt(unit: Unit, body: AttemptChargedV1, *, fee_max_micro: int, cause: bytes) -> bool:
    """End an attempt without a commitment: fee to the treasury, the rest of the stake back to its worker.

    What the hold lacks of the fee is taken from the free stake, then from what unbonds: asking for one's stake does
    not save it.

    Returns whether there was anything to do. Raises LedgerError when it has a commitment, or no such stake.
    """
    books = get_books(unit)
    job = books.jobs.get(body.job_id)
    assert job is not None
    hold = _find(books, body.job_id, Hold(GENERATOR_STAKE, body.attempt, 0, body.generator, 0))
    if hold is None or hold.party != body.generator:
        raise LedgerError(f"{body.generator} holds no stake for attempt {body.attempt}")
    if not hold.is_held:
        return False
    if job.phase == COMMITTED and job.attempt == body.attempt:
        raise LedgerError(f"attempt {body.attempt} has a recorded commitment: it is settled, not charged")
    free = get_balance(books, stake_account(hold.party)) or 0
    from_hold = min(fee_max_micro, hold.amount_micro)
    from_free = min(fee_max_micro - from_hold, free)
    from_unbonding = min(
        fee_max_micro - from_hold - from_free, unbonding.compute_open_micro(unit.connection, hold.party)
    )
    entry = post(
        books,
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
    end(books, body.job_id, hold)
    announce_stakes(unit, [hold.party], entry)
    return True


def announce_stakes(unit: Unit, participants: Sequence[str], entry: int) -> None:
    """Tell everybody what these participants have at stake after a journal entry."""
    books = get_books(unit)
    participants = tuple(dict.fromkeys(participants))
    books.ask_locked(participants)
    for participant in participants:
        unit.emit_last(
            t.STAKE_POSTED, partial(_compute_stake, books, participant, entry), participant=participant
        )


def get_books(unit: Unit) -> Books:
    """Return the books of a unit of this service's."""
    books = unit.books
    assert isinstance(books, Books), books
    return books


def _compute_stake(books: Books, participant: str, entry: int) -> StakePostedV1:
    free = get_balance(books, stake_account(participant)) or 0
    locked = get_locked(books, participant, STAKES)
    return StakePostedV1(participant=participant, stake_micro=free + locked, free_micro=free, entry=entry)


def _verify_party(books: Books, rules: RuleSet, job: Job, hold: Hold) -> None:
    """Refuse a hold of somebody who has no such part in the job, or at a point where there is none."""
    if hold.purpose == ESCROW:
        if hold.party != job.user:
            raise NotAuthorizedError("an escrow is the deposit of the user whose job it is")
        if (hold.attempt, hold.stage) != (1, 0):
            raise LedgerError("a job has one escrow, asked for as attempt 1, stage 0")
        return
    holds = get_holds(books, job.job_id)
    if not any(other.purpose == ESCROW for other in holds):
        raise LedgerError("no stake is locked for a job without an escrow")
    if hold.purpose == VERIFIER_STAKE:
        _verify_verifier(rules, job, hold, holds)
    elif job.phase == COMMITTED:
        raise ExpiredError(f"attempt {job.attempt} of the job has its commitment")
    elif hold.stage != 0:
        raise LedgerError("a generator stands at stage 0")


def _verify_verifier(rules: RuleSet, job: Job, hold: Hold, holds: Sequence[Hold]) -> None:
    if hold.attempt != job.attempt:
        raise UnknownJobError(f"the recorded commitment is that of attempt {job.attempt}, not {hold.attempt}")
    if not 1 <= hold.stage <= rules.seat_max:
        raise LedgerError(f"verifiers stand at stages 1 to {rules.seat_max}, not {hold.stage}")
    verifiers = {other.party for other in holds if other.purpose == VERIFIER_STAKE}
    if hold.party == job.generator or hold.party in verifiers:
        raise ConflictError(f"{hold.party} has a part in this job already")


def _compute_needed(rules: RuleSet, job: Job, hold: Hold) -> int:
    if hold.purpose == VERIFIER_STAKE:
        assert job.generation_micro is not None, "a verifier is asked for after the commitment"
        assert job.verification_micro is not None, "a verifier is asked for after the commitment"
        return rules.compute_products(job.generation_micro, job.verification_micro).verifier_stake
    products = rules.compute_products(job.generation_max_micro, job.verification_max_micro)
    return products.deposit if hold.purpose == ESCROW else products.generator_stake


def _compute_subject(request: HoldRequestV1) -> bytes:
    return compute_subject(request.job_id, request.purpose, request.attempt, request.stage)


def _find(books: Books, job_id: bytes, wanted: Hold) -> Hold | None:
    """Return the hold of a job's with the key of ``wanted``, ended or not."""
    return next((hold for hold in books.holds.get(job_id) or () if hold.key == wanted.key), None)
