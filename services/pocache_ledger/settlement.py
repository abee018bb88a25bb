"""Emptying the pool of a job: after a commitment in part, at its end to the last micro-unit.

Owns which numbers a job is settled with, where each payout goes (a stake returns to the free stake it came
from, earnings and refunds to the available money), and that it happens once: the operation is named by the
job. Refused: an outcome whose attempt, corner or verifiers are not those that money is held for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pocache.protocol import payoff
from pocache.protocol.commitment import compute_leaf_count
from pocache.protocol.errors import LedgerError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.limits import TOKEN_BYTES
from pocache.protocol.payoff import Case, RuleSet, VerifierStanding
from pocache.runtime.network import Model
from pocache.service.unit import Unit
from pocache.wire import topics as t
from pocache.wire.messages import CornerV1, OutcomeV1, PayoutLineV1, PayoutSettledV1, ResultV1
from pocache_ledger.accounts import (
    RESERVE,
    TREASURY,
    Operation,
    Posting,
    close,
    compute_operation_id,
    compute_subject,
    get_balance,
    pool_account,
    post,
    stake_account,
)
from pocache_ledger.books import ESCROW, GENERATOR_STAKE, STAKES, VERIFIER_STAKE, Hold, Job
from pocache_ledger.holds import (
    COMMITTED,
    SETTLED,
    announce_stakes,
    end,
    get_books,
    get_holds,
    reduce,
)

REFUNDED: Final = "refunded"

_HOUSE: Final[Mapping[str, str]] = {payoff.TREASURY: TREASURY, payoff.RESERVE: RESERVE}
"""Accounts of nobody's: as the rules name them, and as they are called here."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends: the row of the rules, and who stood where."""

    case: Case
    stage: int
    verification_micro: int
    """Cv of the corner that was looked at."""
    verifiers: tuple[VerifierStanding, ...] = ()
    deciding: ParticipantId | None = None
    prior: ParticipantId | None = None
    is_challenged: bool = False


def release_surplus(
    unit: Unit,
    rules: RuleSet,
    model: Model,
    job: Job,
    result: ResultV1,
    *,
    generator: str,
    cause: bytes,
) -> None:
    """Fix the job's Cg and full-depth Cv by its commitment, and return what was held beyond them at once.

    The escrow keeps the rules' deposit, the generator's stake βCg. Raises LedgerError when the commitment is not one
    that the holds were placed for.
    """
    books = get_books(unit)
    output_count = len(result.output) // TOKEN_BYTES
    leaf_count = compute_leaf_count(job.prompt_count, output_count)
    layer_count = model.schema.layer_count
    cg = model.prices.compute_generation_cost(job.prompt_count, output_count)
    cv = model.prices.compute_verification_cost(
        layer_max=layer_count - 1, position_max=leaf_count - 1, layer_count=layer_count
    )
    products = rules.compute_products(cg, cv)
    keeps = {ESCROW: products.deposit, GENERATOR_STAKE: products.generator_stake}
    # A charge for an earlier attempt may still be on its way: its stake is not this attempt's.
    holds = {
        hold.purpose: hold
        for hold in get_holds(books, job.job_id)
        if hold.purpose == ESCROW or hold.attempt == result.attempt
    }
    postings: list[Posting] = []
    for purpose, keep in keeps.items():
        hold = holds.get(purpose)
        if hold is None or keep > hold.amount_micro:
            raise LedgerError(
                f"{purpose}: {keep} micro-units are needed, {hold.amount_micro if hold else 0} are held"
            )
        surplus = hold.amount_micro - keep
        postings += [Posting(pool_account(job.job_id), -surplus), Posting(hold.home, surplus)]
        reduce(books, job.job_id, hold, keep)
    if holds[GENERATOR_STAKE].party != generator:
        raise LedgerError(f"the stake of attempt {result.attempt} is another worker's than {generator}'s")
    entry = post(
        books,
        Operation("surplus", compute_subject(job.job_id, result.attempt), cause, tuple(postings)),
        now_ms=unit.now_ms,
    )
    committed = job._replace(
        phase=COMMITTED,
        attempt=result.attempt,
        generator=generator,
        leaf_count=leaf_count,
        generation_micro=cg,
        verification_micro=cv,
    )
    books.jobs.put(job.job_id, committed)
    announce_stakes(unit, [generator], entry)


def compute_ending(model: Model, job: Job, outcome: OutcomeV1) -> Ending:
    """Return an outcome in the rules' own terms; LedgerError for another attempt or an impossible corner."""
    if outcome.attempt != job.attempt:
        raise LedgerError(f"an outcome of attempt {outcome.attempt}; money is held for attempt {job.attempt}")
    return Ending(
        case=Case(outcome.case),
        stage=outcome.stage,
        verification_micro=_compute_corner_cost(model, job, outcome.corner),
        verifiers=tuple(
            VerifierStanding(ParticipantId(one.participant), one.stage, one.opened, one.upheld)
            for one in outcome.verifiers
        ),
        deciding=None if outcome.deciding is None else ParticipantId(outcome.deciding),
        prior=None if outcome.prior is None else ParticipantId(outcome.prior),
        is_challenged=outcome.is_challenged,
    )


def settle(unit: Unit, rules: RuleSet, job: Job, ending: Ending, cause: bytes) -> None:
    """Return every surplus, pay by the rules what is left and what they draw from the reserve, close the pool, say so.

    The announced lines are the rules' own: what each account had in the pool of Cg and Cv, and what it got.
    Raises LedgerError and PayoffError; the job stays open then.
    """
    if ending.stage > rules.seat_max:
        raise LedgerError(f"an outcome at stage {ending.stage}: the rules have {rules.seat_max}")
    books = get_books(unit)
    generator, generation_micro = job.generator, job.generation_micro
    assert generator is not None, "a job that is settled has its commitment"
    assert generation_micro is not None, "a job that is settled has its commitment"
    holds = get_holds(books, job.job_id)
    reserve_micro = get_balance(books, RESERVE) or 0
    settlement = payoff.settle(
        rules,
        case=ending.case,
        cg=generation_micro,
        cv=ending.verification_micro,
        user=ParticipantId(job.user),
        generator=ParticipantId(generator),
        verifiers=ending.verifiers,
        deciding=ending.deciding,
        prior=ending.prior,
        is_challenged=ending.is_challenged,
        reserve_micro=reserve_micro,
    )
    needs = _compute_needs(rules, job, ending, holds)
    postings = [Posting(hold.home, hold.amount_micro - needed) for hold, needed in needs]
    # What is drawn goes through no pool of its own: the lines of the one operation sum to zero.
    postings.append(Posting(RESERVE, -settlement.drawn))
    for account, amount in settlement.payouts:
        if account in _HOUSE:
            postings.append(Posting(_HOUSE[account], amount))
            continue
        staked = sum([needed for hold, needed in needs if hold.party == account and hold.purpose in STAKES])
        returned = 0 if account in settlement.slashed else min(amount, staked)
        postings += [Posting(stake_account(account), returned), Posting(account, amount - returned)]
    held: dict[str, int] = {RESERVE: settlement.drawn}
    for hold, needed in needs:
        held[hold.party] = held.get(hold.party, 0) + needed
    payouts = {_HOUSE.get(account, account): amount for account, amount in settlement.payouts}
    lines = tuple(
        [
            {"account": account, "amount_micro": amount, "held_micro": had}
            for account in dict.fromkeys([*held, *payouts])
            if (amount := payouts.get(account, 0)) | (had := held.get(account, 0))
        ]
    )
    _empty_pool(unit, job, str(ending.case), holds, postings, cause)
    payout = PayoutSettledV1.model_validate(
        {
            "job_id": job.job_id,
            "attempt": job.attempt,
            "case": ending.case.value,
            "stage": ending.stage,
            "pool_micro": settlement.pool,
            "generation_micro": generation_micro,
            "verification_micro": ending.verification_micro,
            "reserve_micro": reserve_micro,
            "lines": lines,
            "slashed": settlement.slashed,
        }
    )
    unit.emit(t.PAYOUT_SETTLED, payout, job=job.job_id)


def get_operation_id(job_id: bytes) -> bytes:
    """Return the id of the operation that empties a job's pool."""
    return compute_operation_id("settle", compute_subject(job_id))


def refund(unit: Unit, job: Job, cause: bytes) -> None:
    """Return everything that is held for a job that will not be done, close its pool, and say so."""
    books = get_books(unit)
    holds = get_holds(books, job.job_id)
    _empty_pool(unit, job, REFUNDED, holds, [Posting(hold.home, hold.amount_micro) for hold in holds], cause)
    returned: dict[str, int] = {}
    for hold in holds:
        returned[hold.party] = returned.get(hold.party, 0) + hold.amount_micro
    unit.emit(
        t.PAYOUT_SETTLED,
        PayoutSettledV1(
            job_id=job.job_id,
            attempt=job.attempt,
            case=REFUNDED,
            stage=0,
            pool_micro=sum(returned.values()),
            generation_micro=0,
            verification_micro=0,
            reserve_micro=get_balance(books, RESERVE) or 0,
            lines=tuple(
                PayoutLineV1(account=account, amount_micro=amount, held_micro=amount)
                for account, amount in returned.items()
            ),
            slashed=(),
        ),
        job=job.job_id,
    )


def _empty_pool(
    unit: Unit, job: Job, case: str, holds: Sequence[Hold], postings: Sequence[Posting], cause: bytes
) -> None:
    """Post the payouts against the whole pool, end its holds, close it for ever."""
    books = get_books(unit)
    pool = pool_account(job.job_id)
    total = sum([hold.amount_micro for hold in holds])
    assert (get_balance(books, pool) or 0) == total, "a pool holds what is held for its job"
    entry = post(
        books,
        Operation("settle", compute_subject(job.job_id), cause, (Posting(pool, -total), *postings)),
        now_ms=unit.now_ms,
    )
    end(books, job.job_id)
    close(books, pool)
    books.jobs.put(job.job_id, job._replace(phase=SETTLED, settled_as=case))
    announce_stakes(unit, [hold.party for hold in holds if hold.purpose in STAKES], entry)


def _compute_needs(rules: RuleSet, job: Job, ending: Ending, holds: Sequence[Hold]) -> list[tuple[Hold, int]]:
    """Return each hold with what the rules need of it; who is not in the outcome gets all of its own back.

    Raises LedgerError when nothing is held for somebody who stood in the dispute.
    """
    assert job.generation_micro is not None, "a job that is settled has its commitment"
    products = rules.compute_products(job.generation_micro, ending.verification_micro)
    standing = {(verifier.participant, verifier.stage) for verifier in ending.verifiers}
    needs: list[tuple[Hold, int]] = []
    for hold in holds:
        if hold.purpose == VERIFIER_STAKE:
            is_party = (hold.party, hold.stage) in standing
            standing.discard((ParticipantId(hold.party), hold.stage))
            needed = products.verifier_stake if is_party else 0
        elif hold.purpose == GENERATOR_STAKE:
            needed = products.generator_stake if hold.attempt == job.attempt else 0
        else:
            needed = products.deposit
        assert needed <= hold.amount_micro, "a hold covers full depth, and no corner costs more"
        needs.append((hold, needed))
    if standing:
        raise LedgerError(f"no stake is held for the verifiers {sorted(standing)}")
    return needs


def _compute_corner_cost(model: Model, job: Job, corner: CornerV1) -> int:
    assert job.leaf_count is not None, "an outcome is of a job with a commitment"
    layer_count = model.schema.layer_count
    if corner.layer_max >= layer_count or corner.position_max >= job.leaf_count:
        raise LedgerError(
            f"a corner at layer {corner.layer_max}, position {corner.position_max}, but there are "
            f"{layer_count} layers and {job.leaf_count} positions"
        )
    return model.prices.compute_verification_cost(
        layer_max=corner.layer_max, position_max=corner.position_max, layer_count=layer_count
    )
