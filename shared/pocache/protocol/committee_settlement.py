"""Who gets what under `fixed-fee-committee`, outcome by outcome (docs/economics.md 5.3).

Owns the rows of the rule set and which standings each of them can have. Refuses standings that no run of
``dispute_committee`` produces. That nothing becomes negative is the parameters' business (``committee``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pocache.protocol.committee_terms import FIXED_FEE_COMMITTEE, CommitteeProducts, Part, SeatPlan
from pocache.protocol.errors import PayoffError
from pocache.protocol.limits import MICRO_MAX
from pocache.protocol.payoff_terms import (
    RESERVE,
    TREASURY,
    Case,
    JobEnding,
    Settlement,
    VerifierStanding,
    build_settlement,
)

if TYPE_CHECKING:
    from pocache.protocol.ids import ParticipantId


def settle_committee(plan: SeatPlan, ending: JobEnding, products: CommitteeProducts) -> Settlement:
    """Empty the pool by the row that the ending names; PayoffError for standings that contradict it."""
    seats = tuple(sorted(ending.verifiers, key=lambda standing: standing.stage))
    _verify_seats(plan, ending, seats)
    _verify_case(plan, ending, seats)
    match ending.case:
        case Case.NO_CHALLENGE | Case.AGREE | Case.ACQUITTAL:
            return _settle_paid(plan, ending, seats, products)
        case Case.CONVICTION | Case.NO_OPENING:
            return _settle_convicted(ending, seats, products)
        case Case.VOID:
            return _settle_void(ending, seats, products)
        case _:
            return _settle_equivocation(ending, seats, products)


def _settle_paid(
    plan: SeatPlan,
    ending: JobEnding,
    seats: tuple[VerifierStanding, ...],
    products: CommitteeProducts,
) -> Settlement:
    """Pay the generator αCg and its stake, every upheld verifier its stake and the fee.

    The fees of audit and recheck come from the reserve, into which the levy goes, and the user's αCv if it
    challenged; otherwise αCv goes back. A committee's fees come from the stakes of those who lost, as far as they
    reach; what these have left goes to the treasury.
    """
    paid, lost = _divide(seats, [seat for seat in seats if seat.opened and seat.upheld])
    forfeited = len(lost) * products.b_cv
    members = sum(plan.get_part(seat.stage) is Part.COMMITTEE for seat in paid)
    from_forfeits = min(forfeited, members * products.fee)
    income = products.levy + (products.a_cv if ending.is_challenged else 0)
    fee, balance = _pay_fees(len(paid), products.fee, from_forfeits + income, ending.reserve_micro)
    shares = [
        (ending.generator, products.a_cg + products.b_cg),
        (ending.user, 0 if ending.is_challenged else products.a_cv),
        *((seat.participant, products.b_cv + fee) for seat in paid),
        (TREASURY, forfeited - from_forfeits),
    ]
    return _close(shares, seats, products, balance=balance, slashed=_name(lost))


def _settle_convicted(
    ending: JobEnding, seats: tuple[VerifierStanding, ...], products: CommitteeProducts
) -> Settlement:
    """Pay the user its escrow and the bounty, who was right its stake and the fee, the finder the bonus.

    All of it from the generator's stake; what is left of that, and the losers' stakes, go to the treasury. When the
    generator did not open, nobody was found right or wrong: whoever opened is paid, and there is no finder.
    """
    is_judged = ending.case is Case.CONVICTION
    paid, lost = _divide(seats, [seat for seat in seats if seat.opened and (seat.upheld or not is_judged)])
    bonus = products.bonus if ending.prior is not None else 0
    rest = products.b_cg - len(paid) * products.fee - products.bounty - bonus
    shares = [
        (ending.user, products.deposit + products.bounty),
        *((seat.participant, products.b_cv + products.fee) for seat in paid),
        (TREASURY, rest + len(lost) * products.b_cv),
    ]
    if ending.prior is not None:
        shares.append((ending.prior, bonus))
    return _close(shares, seats, products, balance=0, slashed=(ending.generator, *_name(lost)))


def _settle_void(
    ending: JobEnding, seats: tuple[VerifierStanding, ...], products: CommitteeProducts
) -> Settlement:
    """Return deposit and stakes; pay who opened from the silent ones' stakes, and from the reserve."""
    paid, lost = _divide(seats, [seat for seat in seats if seat.opened])
    forfeited = len(lost) * products.b_cv
    from_forfeits = min(forfeited, len(paid) * products.fee)
    fee, balance = _pay_fees(len(paid), products.fee, from_forfeits, ending.reserve_micro)
    shares = [
        (ending.user, products.deposit),
        (ending.generator, products.b_cg),
        *((seat.participant, products.b_cv + fee) for seat in paid),
        (TREASURY, forfeited - from_forfeits),
    ]
    return _close(shares, seats, products, balance=balance, slashed=_name(lost))


def _settle_equivocation(
    ending: JobEnding, seats: tuple[VerifierStanding, ...], products: CommitteeProducts
) -> Settlement:
    """Pay the user its escrow, the treasury βCg, every verifier its stake: the evidence needs none of them."""
    shares = [
        (ending.user, products.deposit),
        (TREASURY, products.b_cg),
        *((seat.participant, products.b_cv) for seat in seats),
    ]
    return _close(shares, seats, products, balance=0, slashed=(ending.generator,))


def _pay_fees(count: int, fee: int, income: int, reserve_micro: int) -> tuple[int, int]:
    """Return the fee that can be paid `count` times, and what the reserve gains by it (negative: is drawn).

    A reserve that is too short pays everybody the same lesser fee, rather than hold the job open.
    """
    if count * fee > income + reserve_micro:
        fee = (income + reserve_micro) // count
    return fee, income - count * fee


def _close(
    shares: list[tuple[str, int]],
    seats: tuple[VerifierStanding, ...],
    products: CommitteeProducts,
    *,
    balance: int,
    slashed: tuple[ParticipantId, ...],
) -> Settlement:
    """Add the reserve's side: what it gains is a payout, what it gives is drawn into the pool."""
    drawn = max(0, -balance)
    return build_settlement(
        [*shares, (RESERVE, max(0, balance))],
        pool=products.deposit + products.b_cg + len(seats) * products.b_cv + drawn,
        slashed=slashed,
        drawn=drawn,
    )


def _divide(
    seats: tuple[VerifierStanding, ...], paid: list[VerifierStanding]
) -> tuple[list[VerifierStanding], list[VerifierStanding]]:
    return paid, [seat for seat in seats if seat not in paid]


def _name(seats: list[VerifierStanding]) -> tuple[ParticipantId, ...]:
    return tuple(seat.participant for seat in seats)


def _verify_seats(plan: SeatPlan, ending: JobEnding, seats: tuple[VerifierStanding, ...]) -> None:
    """Refuse seats that do not exist or are taken twice, and claims that were borne out unseen; PayoffError."""
    numbers = [seat.stage for seat in seats]
    if len(set(numbers)) != len(numbers):
        message = f"two verifiers in one seat: {numbers}"
        raise PayoffError(message)
    for seat in seats:
        plan.get_part(seat.stage)
        if seat.upheld and not seat.opened:
            message = f"{seat.participant} did not open: no outcome bears its claim out"
            raise PayoffError(message)
    for part in (Part.AUDIT, Part.RECHECK):
        if sum(seat.opened and plan.get_part(seat.stage) is part for seat in seats) > 1:
            message = f"a verifier is replaced only when it is silent: two have opened in the {part}"
            raise PayoffError(message)
    names = {seat.participant for seat in seats}
    if len({ending.generator, *names}) != len(seats) + 1:
        message = "a verifier stands twice, or verifies its own generation"
        raise PayoffError(message)
    if type(ending.reserve_micro) is not int or not 0 <= ending.reserve_micro <= MICRO_MAX:
        message = f"0 ≤ reserve ≤ {MICRO_MAX} is violated: {ending.reserve_micro!r}"
        raise PayoffError(message)


def _verify_case(plan: SeatPlan, ending: JobEnding, seats: tuple[VerifierStanding, ...]) -> None:
    """Refuse a case without the verifiers that it needs, or with some that it cannot have; PayoffError."""
    case = ending.case
    if case in {Case.CONFIRM_GENERATOR, Case.CONFIRM_PRIOR}:
        message = f"{FIXED_FEE_COMMITTEE} has no case {case}"
        raise PayoffError(message)
    upheld = [seat for seat in seats if seat.upheld]
    members = [seat.stage for seat in seats if plan.get_part(seat.stage) is Part.COMMITTEE]
    if case is Case.NO_CHALLENGE and (seats or ending.is_challenged):
        message = f"case {case} has no verifiers and no challenge"
        raise PayoffError(message)
    if case is Case.AGREE and (members or not upheld or len(upheld) != sum(seat.opened for seat in seats)):
        message = f"case {case}: whoever opened agreed, and no committee was called"
        raise PayoffError(message)
    if case in {Case.ACQUITTAL, Case.CONVICTION}:
        last = max((plan.get_stage(number) for number in members), default=0)
        majority = sum(plan.get_stage(seat.stage) == last for seat in upheld)
        if majority < plan.majority:
            message = f"case {case}: the last committee bears it out by {majority}, it takes {plan.majority}"
            raise PayoffError(message)
    elif case is not Case.AGREE and upheld:
        message = f"case {case} bears nobody's claim out"
        raise PayoffError(message)
    if ending.deciding is not None:
        message = f"{FIXED_FEE_COMMITTEE} has no deciding verifier: a committee decides"
        raise PayoffError(message)
    finders = {seat.participant for seat in upheld if plan.get_part(seat.stage) is not Part.COMMITTEE}
    if ending.prior is not None and (case is not Case.CONVICTION or ending.prior not in finders):
        message = f"case {case}: a finder is a verifier of audit or recheck whom a conviction bears out"
        raise PayoffError(message)
