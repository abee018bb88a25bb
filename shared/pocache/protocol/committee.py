"""The rule set `fixed-fee-committee`: its parameters and what they are refused for (docs/economics.md 5).

Owns the factors, the stakes they demand, the numbers of the verifiers' seats. Whoever decides is paid the same whichever
way it decides. Refuses parameters under which a payout would be negative, a stake would not pay for what it stands
for, or the levy would not pay for the audits, naming the inequality. The payouts are ``committee_settlement``; whether
β deters is ``incentives``' question, as it takes measured detection.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from pocache.protocol.committee_settlement import settle_committee
from pocache.protocol.committee_terms import (
    COMMITTEE_COUNT_MAX,
    COMMITTEE_SIZE_MAX,
    FIXED_FEE_COMMITTEE,
    CommitteeProducts,
    SeatPlan,
)
from pocache.protocol.errors import PayoffError
from pocache.protocol.limits import MICRO_MAX
from pocache.protocol.payoff_terms import JobEnding, Rational, Settlement, verify_costs, verify_factor

if TYPE_CHECKING:
    from pocache.protocol.pricing import PriceList


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedFeeCommittee:
    """Lottery audits paid from a levy, silent rechecks, committees of M."""

    alpha: Rational
    """α: the user pays αCg for the output, and αCv when it asks for an audit."""
    beta_generator: Rational
    """The generator's stake over Cg."""
    beta_verifier: Rational
    """A verifier's stake over Cv."""
    phi: Rational
    """φ: what one verification is paid, over Cv."""
    levy: Rational
    """λ: what every job pays into the reserve, over its Cv."""
    lottery: Rational
    """q_a: the share of commitments that are audited without anybody asking."""
    recheck: Rational
    """q_r: the share of agreements that another verifier looks at again."""
    committee_size: int
    """M."""
    committee_count: int
    """How many committees may be called before a job is void."""
    bounty: Rational
    """What a cheated user gets besides its escrow, over Cg."""
    bonus: Rational
    """What the verifier gets whose mismatch a committee confirmed, over Cg."""
    reserve: Rational
    """How much the levy must exceed what the expected audits cost: it pays for void jobs and bad luck."""

    def __post_init__(self) -> None:
        """Refuse parameters that contradict each other; PayoffError names the violated inequality."""
        verify_factor("alpha", self.alpha, "nobody would be paid")
        verify_factor("beta_generator", self.beta_generator, "no generator would be at stake")
        verify_factor("beta_verifier", self.beta_verifier, "no verifier would be at stake")
        verify_factor("phi", self.phi, "no verifier would be paid")
        verify_factor("lottery", self.lottery, "nothing would be audited unasked")
        for name, share in (("lottery", self.lottery), ("recheck", self.recheck)):
            if share.value > 1:
                message = f"{name} ≤ 1 is violated: {name} = {share}"
                raise PayoffError(message)
        size, count = self.committee_size, self.committee_count
        if type(size) is not int or not 3 <= size <= COMMITTEE_SIZE_MAX or size % 2 == 0:
            message = (
                f"M odd, 3 ≤ M ≤ {COMMITTEE_SIZE_MAX} is violated: M = {size!r}; an even one can be split"
            )
            raise PayoffError(message)
        if type(count) is not int or not 1 <= count <= COMMITTEE_COUNT_MAX:
            message = f"1 ≤ committees ≤ {COMMITTEE_COUNT_MAX} is violated: committees = {count!r}"
            raise PayoffError(message)
        self._verify_relations()

    def _verify_relations(self) -> None:
        if self.phi.value > self.alpha.value:
            message = f"φ ≤ α is violated: a challenge costs the user {self.alpha}·Cv, its verifier gets {self.phi}·Cv"
            raise PayoffError(message)
        members = self.committee_count * self.committee_size
        if self.beta_verifier.value < members * self.phi.value:
            message = (
                f"β_V ≥ {self.committee_count}Mφ is violated: {self.beta_verifier} < {members}·{self.phi}; the stake"
                " of one who calls committees for nothing would not pay them"
            )
            raise PayoffError(message)
        needed = (1 + self.reserve.value) * self.lottery.value * (1 + self.recheck.value) * self.phi.value
        if self.levy.value < needed:
            message = f"λ ≥ (1+ρ)·q_a·(1+q_r)·φ is violated: {self.levy} < {needed}; the levy would not pay the audits"
            raise PayoffError(message)
        if self.levy.value + self.alpha.value - self.phi.value < self.recheck.value * self.phi.value:
            message = (
                f"λ + α − φ ≥ q_r·φ is violated: {self.levy} + {self.alpha} − {self.phi} < {self.recheck}·{self.phi};"
                " challenges would drain the reserve by their rechecks"
            )
            raise PayoffError(message)
        if self.beta_generator.value <= self.bounty.value + self.bonus.value:
            message = (
                f"fees + bounty + bonus < βCg is violated at any cost: β_G = {self.beta_generator} ≤"
                f" {self.bounty} + {self.bonus}"
            )
            raise PayoffError(message)

    @property
    def name(self) -> str:
        """What the network's configuration calls these rules."""
        return FIXED_FEE_COMMITTEE

    @property
    def seat_max(self) -> int:
        """The last seat of the last committee."""
        return self.plan.seat_max

    @property
    def plan(self) -> SeatPlan:
        """How the seats of a job are numbered."""
        return SeatPlan(self.committee_size, self.committee_count)

    @property
    def paid_max(self) -> int:
        """The most verifiers that one job can owe a fee: an audit's, a recheck's, all members."""
        return 2 + self.committee_count * self.committee_size

    def compute_products(self, cg: int, cv: int) -> CommitteeProducts:
        """Return all products, each floored once; PayoffError for a cost or pool out of range."""
        verify_costs(cg, cv)
        products = CommitteeProducts(
            a_cg=self.alpha.floor_of(cg),
            a_cv=self.alpha.floor_of(cv),
            levy=self.levy.floor_of(cv),
            b_cg=self.beta_generator.floor_of(cg),
            b_cv=self.beta_verifier.floor_of(cv),
            fee=self.phi.floor_of(cv),
            bounty=self.bounty.floor_of(cg),
            bonus=self.bonus.floor_of(cg),
        )
        pool_max = (
            products.deposit + products.b_cg + self.seat_max * products.b_cv + self.paid_max * products.fee
        )
        if pool_max > MICRO_MAX:
            message = f"pool ≤ {MICRO_MAX} is violated: with every seat taken it holds {pool_max}"
            raise PayoffError(message)
        return products

    def validate_costs(self, cg: int, cv: int) -> None:
        """Refuse costs for which a conviction would pay out more than the generator's stake; PayoffError.

        fees + bounty + bonus < βCg, with as many fees as one job can owe. The strict sign is what makes a conviction
        that a generator arranges for itself a loss, even when every other party to it is its own.
        """
        products = self.compute_products(cg, cv)
        fees = self.paid_max * products.fee
        if fees + products.bounty + products.bonus >= products.b_cg:
            message = (
                f"fees + bounty + bonus < βCg is violated: {self.paid_max}·{products.fee} + {products.bounty} +"
                f" {products.bonus} = {fees + products.bounty + products.bonus} ≥ {products.b_cg};"
                f" the treasury would be paid {products.b_cg - fees - products.bounty - products.bonus}"
            )
            raise PayoffError(message)

    def validate_prices(self, prices: PriceList) -> None:
        """Refuse prices under which fees + bounty + bonus ≥ βCg for a job of some length; PayoffError.

        Let p be the cheaper of the two token prices, v the price of verifying one and n the most fees. A job has one
        token more than positions: Cg ≥ p(N+1), Cv ≤ vN. With x = β_G − bounty − bonus, xp ≥ nφv gives
        xCg ≥ nφCv + xp, and xp ≥ 1 makes up for the flooring of βCg.
        """
        price = min(prices.prompt_token_micro, prices.output_token_micro)
        left = (self.beta_generator.value - self.bounty.value - self.bonus.value) * price
        needed = max(self.paid_max * self.phi.value * prices.verify_token_micro, Fraction(1))
        if left < needed:
            message = (
                f"fees + bounty + bonus < βCg is violated for some job: it takes (β_G − bounty − bonus)·p ≥"
                f" max({self.paid_max}φv, 1), but the cheaper token costs p = {price}, verifying one costs"
                f" v = {prices.verify_token_micro}: {left} < {needed}"
            )
            raise PayoffError(message)

    def settle(self, ending: JobEnding) -> Settlement:
        """Empty the pool α(Cg+Cv) + λCv + β_G·Cg + kβ_V·Cv, and what is drawn from the reserve (docs/economics.md 5.3).

        The verifiers are all k whose stake is in the pool, by their seats. `upheld` says whose claim the outcome bears
        out; `prior` is the finder of a conviction, if its own claim was borne out. Errors: PayoffError for costs,
        standings or names that contradict the case.
        """
        self.validate_costs(ending.cg, ending.cv)
        return settle_committee(self.plan, ending, self.compute_products(ending.cg, ending.cv))


DEFAULT_COMMITTEE: Final = FixedFeeCommittee(
    alpha=Rational(6, 5),
    beta_generator=Rational(20),
    beta_verifier=Rational(20),
    phi=Rational(6, 5),
    levy=Rational(1, 6),
    lottery=Rational(1, 10),
    recheck=Rational(1, 10),
    committee_size=7,
    committee_count=2,
    bounty=Rational(1, 2),
    bonus=Rational(1, 4),
    reserve=Rational(1, 4),
)
"""The network's own choice; docs/economics.md 5.6 says why each is what it is."""
