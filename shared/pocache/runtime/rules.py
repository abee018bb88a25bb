"""The rules of payment as a network's genesis states them: two models, one for each rule set.

Owns their fields and defaults, the rule set and the procedure that they stand for, and what is refused when a network
is configured: parameters under which a payout could be negative, and stakes that do not deter (docs/economics.md 5.4).
What the rule sets do is ``pocache.protocol``'s.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from pocache.protocol import incentives
from pocache.protocol.committee_terms import COMMITTEE_COUNT_MAX, COMMITTEE_SIZE_MAX, SeatPlan
from pocache.protocol.limits import MICRO_MAX, STAGE_COUNT_MAX
from pocache.protocol.payoff import (
    FIXED_FEE_COMMITTEE,
    RULES_DEFAULT,
    UNIFIED_POOL,
    FixedFeeCommittee,
    Rational,
    RuleSet,
    UnifiedPool,
)
from pocache.protocol.pricing import PriceList, validate_prices
from pocache.protocol.procedure import CommitteeProcedure, Procedure, UnifiedProcedure

DETERRED_OUTPUT_TOKENS: Final = 128
DETERRED_COLLUSION: Final = Fraction(1, 3)
"""For which outputs, and with which share of the stake in league with a cheat, stakes must deter."""

Ticks = Annotated[int, Field(ge=1, le=10_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=True)


class _CommonRules(_Strict):
    lease_fee_micro: Annotated[int, Field(ge=0, le=MICRO_MAX)] = 1_000
    """What a worker pays the treasury for an attempt that ends without a commitment, at most its stake."""
    unbonding_ticks: Ticks = 10_000
    """How long stake that was asked for stays within reach of a slash before it is paid out."""


class UnifiedPoolRules(_CommonRules):
    """The paper's Table 1. The lottery's audits are paid from the user's αCv."""

    name: Literal["unified-pool"] = "unified-pool"
    alpha: str = "6/5"
    beta: str = "5"
    stage_max: Annotated[int, Field(ge=2, le=STAGE_COUNT_MAX)] = 5

    def build(self, lottery: Rational) -> RuleSet:
        """Return the rule set; the lottery's share is no part of it."""
        del lottery
        return UnifiedPool(
            alpha=Rational.parse(self.alpha), beta=Rational.parse(self.beta), stage_max=self.stage_max
        )

    def make_procedure(self) -> Procedure:
        """Return how a dispute goes."""
        return UnifiedProcedure(self.stage_max)

    @property
    def recheck_share(self) -> tuple[int, int] | None:
        """There is no recheck."""
        return None


class CommitteeRules(_CommonRules):
    """Fixed fees, a recheck, committees. Which share of jobs the lottery takes is ``audit.lottery_share``."""

    name: Literal["fixed-fee-committee"] = "fixed-fee-committee"
    alpha: str = "6/5"
    beta_generator: str = "20"
    beta_verifier: str = "20"
    phi: str = "6/5"
    levy: str = "1/6"
    recheck: str = "1/10"
    committee_size: Annotated[int, Field(ge=3, le=COMMITTEE_SIZE_MAX)] = 7
    committee_count: Annotated[int, Field(ge=1, le=COMMITTEE_COUNT_MAX)] = 2
    bounty: str = "1/2"
    bonus: str = "1/4"
    reserve: str = "1/4"

    def build(self, lottery: Rational) -> FixedFeeCommittee:
        """Return the rule set; PayoffError names the inequality that its parameters violate."""
        return FixedFeeCommittee(
            alpha=Rational.parse(self.alpha),
            beta_generator=Rational.parse(self.beta_generator),
            beta_verifier=Rational.parse(self.beta_verifier),
            phi=Rational.parse(self.phi),
            levy=Rational.parse(self.levy),
            lottery=lottery,
            recheck=Rational.parse(self.recheck),
            committee_size=self.committee_size,
            committee_count=self.committee_count,
            bounty=Rational.parse(self.bounty),
            bonus=Rational.parse(self.bonus),
            reserve=Rational.parse(self.reserve),
        )

    def make_procedure(self) -> Procedure:
        """Return how a dispute goes."""
        return CommitteeProcedure(SeatPlan(self.committee_size, self.committee_count))

    @property
    def recheck_share(self) -> tuple[int, int] | None:
        """q_r as numerator and denominator."""
        share = Rational.parse(self.recheck)
        return share.numerator, share.denominator


def _read_name(value: Any) -> str:
    """Return which rules are meant: those that are named, else the default ones."""
    named = (
        value.get("name", RULES_DEFAULT) if isinstance(value, dict) else getattr(value, "name", RULES_DEFAULT)
    )
    return str(named)


Rules: TypeAlias = Annotated[
    Annotated[UnifiedPoolRules, Tag(UNIFIED_POOL)] | Annotated[CommitteeRules, Tag(FIXED_FEE_COMMITTEE)],
    Discriminator(_read_name),
]
"""The rules of payment: whichever the name says."""


def make_default_rules() -> UnifiedPoolRules | CommitteeRules:
    """Return the rules of a genesis that says nothing about them."""
    return UnifiedPoolRules() if RULES_DEFAULT == UNIFIED_POOL else CommitteeRules()


def validate_deterrence(rules: RuleSet, full_depth_share: Fraction) -> None:
    """Refuse a generator's stake that deters not every attack of the table; PayoffError (docs/economics.md 6.1).

    `unified-pool` has no such stake: its audits are its users' challenges, of which nobody knows how many there will be.
    """
    if not isinstance(rules, FixedFeeCommittee):
        return
    terms = incentives.build_committee_terms(
        rules,
        full_depth_share=full_depth_share,
        output_count=DETERRED_OUTPUT_TOKENS,
        collusion=DETERRED_COLLUSION,
    )
    incentives.validate_generator_stake(rules, incentives.DEFAULT_DETECTION, terms)


def validate_model_prices(rules: RuleSet, prices: PriceList) -> None:
    """Refuse prices that the rules cannot be paid with, or under which a ring gains by convicting; PayoffError.

    What verifying costs is least, against what is generated, for the shortest job: one token of each kind, one position.
    With p the dearer token and n+1 tokens a job costs at most Cg ≤ (p₁ + p₂) + (n−1)p, and p ≤ p₁ + p₂.
    """
    validate_prices(rules, prices)
    if isinstance(rules, FixedFeeCommittee):
        cg = prices.compute_generation_cost(1, 1)
        incentives.validate_verifier_stake(
            rules, cg=cg, cv=prices.verify_token_micro, collusion=DETERRED_COLLUSION
        )
