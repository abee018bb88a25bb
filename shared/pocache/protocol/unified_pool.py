"""The rule set `unified-pool`, the paper's Table 1 (docs/economics.md 2; docs/protocol.md 9.3).

Owns the stakes it demands and the settlement of every case in integers: α and β are rationals, each of the four
products is floored once, and payouts are sums of those, so a pool empties exactly. Refuses parameters and costs under
which a payout would be negative, and standings that no run of the protocol produces. Does not know how a case was
reached (matching.py) or what tokens cost (pricing.py), and moves no money (the ledger does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pocache.protocol.errors import PayoffError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.limits import MICRO_MAX, STAGE_COUNT_MAX
from pocache.protocol.payoff_terms import (
    TREASURY,
    Case,
    JobEnding,
    Rational,
    Settlement,
    VerifierStanding,
    build_settlement,
    verify_costs,
    verify_factor,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pocache.protocol.pricing import PriceList


UNIFIED_POOL: Final = "unified-pool"


@dataclass(frozen=True, slots=True)
class Products:
    """⌊αCg⌋, ⌊αCv⌋, ⌊βCg⌋, ⌊βCv⌋ in micro-units: all that a settlement adds and subtracts."""

    a_cg: int
    a_cv: int
    b_cg: int
    b_cv: int

    @property
    def deposit(self) -> int:
        """What the user puts into the pool: αCg + αCv."""
        return self.a_cg + self.a_cv

    @property
    def generator_stake(self) -> int:
        """What the generator puts into the pool: βCg."""
        return self.b_cg

    @property
    def verifier_stake(self) -> int:
        """What each verifier puts into the pool: βCv."""
        return self.b_cv


@dataclass(frozen=True, slots=True)
class UnifiedPool:
    """The paper's rule set: one pool of deposit and stakes for each job, at most `stage_max` stages (K)."""

    alpha: Rational
    beta: Rational
    stage_max: int

    def __post_init__(self) -> None:
        """Refuse a factor of zero and a K out of range; PayoffError."""
        verify_factor("alpha", self.alpha, "nobody would be paid")
        verify_factor("beta", self.beta, "nobody would be at stake")
        if type(self.stage_max) is not int or not 1 <= self.stage_max <= STAGE_COUNT_MAX:
            message = f"1 ≤ stages ≤ {STAGE_COUNT_MAX} is violated: stages = {self.stage_max!r}"
            raise PayoffError(message)

    @property
    def name(self) -> str:
        """What the network's configuration calls these rules."""
        return UNIFIED_POOL

    @property
    def seat_max(self) -> int:
        """The last stage."""
        return self.stage_max

    def compute_products(self, cg: int, cv: int) -> Products:
        """Return the four products, each floored once; PayoffError for a cost or pool out of range."""
        verify_costs(cg, cv)
        products = Products(
            a_cg=self.alpha.floor_of(cg),
            a_cv=self.alpha.floor_of(cv),
            b_cg=self.beta.floor_of(cg),
            b_cv=self.beta.floor_of(cv),
        )
        pool_max = products.deposit + products.b_cg + self.stage_max * products.b_cv
        if pool_max > MICRO_MAX:
            message = f"pool ≤ {MICRO_MAX} is violated: at stage {self.stage_max} it holds {pool_max}"
            raise PayoffError(message)
        return products

    def validate_costs(self, cg: int, cv: int) -> None:
        """Refuse costs for which some payout is negative; PayoffError names the inequality.

        The one payout with a minus is the deciding verifier's when it confirms a prior one,
        βCg + ((k−1)β − α)Cv; it is smallest at k = 2, so β(Cg+Cv) ≥ αCv suffices for every k. With a single
        stage that case does not exist.
        """
        products = self.compute_products(cg, cv)
        if self.stage_max >= 2 and products.b_cg + products.b_cv < products.a_cv:
            message = (
                f"β(Cg+Cv) ≥ αCv is violated: {self.beta}·({cg}+{cv}) → {products.b_cg + products.b_cv}"
                f" < {self.alpha}·{cv} → {products.a_cv}; at stage 2 the deciding verifier would be paid"
                f" {products.b_cg + products.b_cv - products.a_cv}"
            )
            raise PayoffError(message)

    def validate_prices(self, prices: PriceList) -> None:
        """Refuse prices under which β(Cg+Cv) < αCv for a job of some length; PayoffError names the inequality.

        With β ≥ α it always holds. Otherwise let p be the cheaper of the two token prices and v the price of
        verifying one. A job has one token more than positions, so Cg ≥ p(N+1) while Cv ≤ vN: βp ≥ (α−β)v gives
        β(Cg+Cv) ≥ αCv + βp, and βp ≥ 1 makes up for the flooring of the products.
        """
        if self.stage_max == 1:
            return
        a_num = self.alpha.numerator * self.beta.denominator
        b_num = self.beta.numerator * self.alpha.denominator
        if b_num >= a_num:
            return
        denominator = self.alpha.denominator * self.beta.denominator
        price = min(prices.prompt_token_micro, prices.output_token_micro)
        if b_num * price < max((a_num - b_num) * prices.verify_token_micro, denominator):
            message = (
                f"β(Cg+Cv) ≥ αCv is violated for some job: with β = {self.beta} below α = {self.alpha} it takes"
                f" βp ≥ max((α−β)v, 1), but the cheaper token costs p = {price} and verifying one costs"
                f" v = {prices.verify_token_micro}"
            )
            raise PayoffError(message)

    def settle(self, ending: JobEnding) -> Settlement:
        """Empty the pool αCg + αCv + βCg + kβCv to the last micro-unit (docs/economics.md 2).

        The verifiers are all k whose stake is in the pool, one per stage, silent ones included: a silent verifier
        is one of those who lose. `deciding` is the verifier of stage k and `prior` an earlier one, in the cases
        that have them; the reserve is not touched. Errors: PayoffError for costs, standings or names that
        contradict the case.
        """
        self.validate_costs(ending.cg, ending.cv)
        standings = tuple(sorted(ending.verifiers, key=lambda standing: standing.stage))
        _verify_standings(self, standings, ending.generator)
        _verify_roles(ending.case, standings, ending.deciding, ending.prior)
        products = self.compute_products(ending.cg, ending.cv)
        shares = _PAYERS[ending.case](products, ending.user, ending.generator, standings, ending.prior)
        return build_settlement(
            shares,
            pool=products.deposit + products.b_cg + len(standings) * products.b_cv,
            slashed=_compute_slashed(ending.case, ending.generator, standings, ending.deciding, ending.prior),
        )


def _verify_standings(
    rules: UnifiedPool, standings: tuple[VerifierStanding, ...], generator: ParticipantId
) -> None:
    if [standing.stage for standing in standings] != list(range(1, len(standings) + 1)):
        message = f"one verifier per stage from 1 on, got stages {[standing.stage for standing in standings]}"
        raise PayoffError(message)
    if len(standings) > rules.stage_max:
        message = f"stage {len(standings)} is beyond the last, {rules.stage_max}"
        raise PayoffError(message)
    names = [standing.participant for standing in standings]
    if len({generator, *names}) != len(names) + 1:
        message = "a verifier stands twice, or verifies its own generation"
        raise PayoffError(message)


def _verify_roles(
    case: Case,
    standings: tuple[VerifierStanding, ...],
    deciding: ParticipantId | None,
    prior: ParticipantId | None,
) -> None:
    """Refuse a case without the verifiers that it needs, or with some that it cannot have; PayoffError."""
    if case not in _STAGE_RANGES:
        message = f"{UNIFIED_POOL} has no case {case}"
        raise PayoffError(message)
    count = len(standings)
    low, high = _STAGE_RANGES[case]
    if not low <= count <= high:
        message = f"case {case} cannot have {count} verifiers"
        raise PayoffError(message)
    opened = {standing.participant for standing in standings if standing.opened}
    if case in _DECIDED:
        last = standings[-1].participant
        if deciding != last or last not in opened:
            message = f"case {case}: the deciding verifier is that of stage {count}, and it opened"
            raise PayoffError(message)
    elif deciding is not None:
        message = f"case {case} has no deciding verifier"
        raise PayoffError(message)
    if case is Case.CONFIRM_PRIOR:
        if prior == deciding or prior not in opened:
            message = f"case {case}: the prior verifier stood at an earlier stage, and it opened"
            raise PayoffError(message)
    elif prior is not None:
        message = f"case {case} has no prior verifier"
        raise PayoffError(message)


_DECIDED: Final = frozenset({Case.AGREE, Case.CONFIRM_GENERATOR, Case.CONFIRM_PRIOR})

_STAGE_RANGES: Final[Mapping[Case, tuple[int, int]]] = {
    Case.NO_CHALLENGE: (0, 0),
    Case.AGREE: (1, 1),
    Case.CONFIRM_GENERATOR: (2, STAGE_COUNT_MAX),
    Case.CONFIRM_PRIOR: (2, STAGE_COUNT_MAX),
    # Void, silence and equivocation can come before the first verifier's stake is in the pool.
    Case.VOID: (0, STAGE_COUNT_MAX),
    Case.NO_OPENING: (0, STAGE_COUNT_MAX),
    Case.EQUIVOCATION: (0, STAGE_COUNT_MAX),
}

_Shares = list[tuple[str, int]]


def _pay_no_challenge(
    products: Products,
    user: ParticipantId,
    generator: ParticipantId,
    _standings: tuple[VerifierStanding, ...],
    _prior: ParticipantId | None,
) -> _Shares:
    """Pay the generator (α+β)Cg, the user αCv."""
    return [(generator, products.a_cg + products.b_cg), (user, products.a_cv)]


def _pay_generator(
    products: Products,
    _user: ParticipantId,
    generator: ParticipantId,
    standings: tuple[VerifierStanding, ...],
    _prior: ParticipantId | None,
) -> _Shares:
    """Pay the generator (α+β)Cg, the deciding verifier (α+kβ)Cv; k = 1 is plain agreement."""
    return [
        (generator, products.a_cg + products.b_cg),
        (standings[-1].participant, products.a_cv + len(standings) * products.b_cv),
    ]


def _pay_prior(
    products: Products,
    user: ParticipantId,
    _generator: ParticipantId,
    standings: tuple[VerifierStanding, ...],
    prior: ParticipantId | None,
) -> _Shares:
    """Pay the user α(Cg+Cv), the prior verifier (α+β)Cv, the deciding one βCg + ((k−1)β−α)Cv."""
    assert prior is not None
    return [
        (user, products.deposit),
        (prior, products.a_cv + products.b_cv),
        (standings[-1].participant, products.b_cg + (len(standings) - 1) * products.b_cv - products.a_cv),
    ]


def _pay_void(
    products: Products,
    user: ParticipantId,
    generator: ParticipantId,
    standings: tuple[VerifierStanding, ...],
    _prior: ParticipantId | None,
) -> _Shares:
    """Return everything to whom it came from, but the stake of a verifier that never opened to the user."""
    stakes: _Shares = [(seat.participant if seat.opened else user, products.b_cv) for seat in standings]
    return [(user, products.deposit), (generator, products.b_cg), *stakes]


def _pay_no_opening(
    products: Products,
    user: ParticipantId,
    _generator: ParticipantId,
    standings: tuple[VerifierStanding, ...],
    _prior: ParticipantId | None,
) -> _Shares:
    """Pay the user α(Cg+Cv), who opened βCv and an equal share of βCg and of the silent verifiers' stakes.

    The remainder of the division goes to the first who opened; when nobody did, everything goes to the user,
    the party of remainders.
    """
    opened = [seat.participant for seat in standings if seat.opened]
    forfeited = products.b_cg + (len(standings) - len(opened)) * products.b_cv
    shares: _Shares = [(user, products.deposit)]
    if not opened:
        return [*shares, (user, forfeited)]
    share, remainder = divmod(forfeited, len(opened))
    shares.extend((participant, products.b_cv + share) for participant in opened)
    shares.append((opened[0], remainder))
    return shares


def _pay_equivocation(
    products: Products,
    user: ParticipantId,
    _generator: ParticipantId,
    standings: tuple[VerifierStanding, ...],
    _prior: ParticipantId | None,
) -> _Shares:
    """Pay the user α(Cg+Cv), the treasury βCg, every verifier βCv: the evidence needs none of them."""
    stakes: _Shares = [(seat.participant, products.b_cv) for seat in standings]
    return [(user, products.deposit), (TREASURY, products.b_cg), *stakes]


_PAYERS: Final = {
    Case.NO_CHALLENGE: _pay_no_challenge,
    Case.AGREE: _pay_generator,
    Case.CONFIRM_GENERATOR: _pay_generator,
    Case.CONFIRM_PRIOR: _pay_prior,
    Case.VOID: _pay_void,
    Case.NO_OPENING: _pay_no_opening,
    Case.EQUIVOCATION: _pay_equivocation,
}


def _compute_slashed(
    case: Case,
    generator: ParticipantId,
    standings: tuple[VerifierStanding, ...],
    deciding: ParticipantId | None,
    prior: ParticipantId | None,
) -> tuple[ParticipantId, ...]:
    """Return whose whole stake went to others: generator first, verifiers by stage."""
    convicted = case in {Case.CONFIRM_PRIOR, Case.NO_OPENING, Case.EQUIVOCATION}
    slashed = [generator] if convicted else []
    if case in _DECIDED:
        slashed += [seat.participant for seat in standings if seat.participant not in {deciding, prior}]
    elif case is not Case.EQUIVOCATION:
        slashed += [seat.participant for seat in standings if not seat.opened]
    return tuple(slashed)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of Table 1 in numbers; every `_micro` is a gross payout from the pool, a loser's is 0."""

    case: Case
    k: int
    pool_micro: int
    generator_micro: int
    user_micro: int
    deciding_verifier_micro: int
    prior_verifier_micro: int
    losing_verifiers: int


def compute_table(rules: UnifiedPool, cg: int, cv: int, stage_max: int) -> tuple[TableRow, ...]:
    """Return Table 1 for every case and every k that it has up to `stage_max`, by settling each; PayoffError.

    In the void row the deciding verifier is that of stage K, and the prior column is the sum of the other
    K−1.
    """
    bounded = UnifiedPool(rules.alpha, rules.beta, stage_max)
    stages = [(Case.NO_CHALLENGE, 0), (Case.AGREE, 1)]
    stages += [
        (case, k) for case in (Case.CONFIRM_GENERATOR, Case.CONFIRM_PRIOR) for k in range(2, stage_max + 1)
    ]
    return tuple(_compute_row(bounded, cg, cv, case, k) for case, k in [*stages, (Case.VOID, stage_max)])


def _compute_row(rules: UnifiedPool, cg: int, cv: int, case: Case, k: int) -> TableRow:
    user, generator = ParticipantId("user"), ParticipantId("generator")
    names = [ParticipantId(f"verifier {stage}") for stage in range(1, k + 1)]
    deciding = names[-1] if names else None
    settlement = rules.settle(
        JobEnding(
            case=case,
            cg=cg,
            cv=cv,
            user=user,
            generator=generator,
            verifiers=tuple(
                VerifierStanding(name, stage, opened=True) for stage, name in enumerate(names, 1)
            ),
            deciding=deciding if case in _DECIDED else None,
            prior=names[0] if case is Case.CONFIRM_PRIOR else None,
        )
    )
    return TableRow(
        case=case,
        k=k,
        pool_micro=settlement.pool,
        generator_micro=settlement.get_payout(generator),
        user_micro=settlement.get_payout(user),
        deciding_verifier_micro=settlement.get_payout(deciding) if deciding else 0,
        prior_verifier_micro=sum(settlement.get_payout(name) for name in names[:-1]),
        losing_verifiers=sum(name in settlement.slashed for name in names),
    )
