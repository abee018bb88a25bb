"""The words of a settlement, whichever rule set makes it (docs/economics.md 1, 5).

Owns exact fractions, the ways a job can end, who stood where, what a rule set is asked and what it answers. Refuses
fractions that are no fractions and costs that are no costs. The rule sets themselves are ``unified_pool`` and
``committee``; ``payoff`` is the face of all three.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Final, Protocol

from pocache.protocol.errors import PayoffError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.limits import MICRO_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pocache.protocol.pricing import PriceList

TREASURY: Final = "TREASURY"
"""The network's own account; no participant id starts with T."""

RESERVE: Final = "RESERVE"
"""The account that the levy is paid into and audits are paid from; no participant id starts with R."""

RATIONAL_TERM_MAX: Final = 10**12
"""Largest numerator or denominator of a factor such as α and β."""

_RATIONAL_TEXT: Final = re.compile(r"([0-9]{1,13})(?:/([0-9]{1,13}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rational:
    """A non-negative fraction; α and β are never floats."""

    numerator: int
    denominator: int = 1

    def __post_init__(self) -> None:
        """Refuse negative, oversized or fractional terms and a zero denominator; PayoffError."""
        for term, low in ((self.numerator, 0), (self.denominator, 1)):
            if type(term) is not int or not low <= term <= RATIONAL_TERM_MAX:
                message = f"not a fraction of integers up to {RATIONAL_TERM_MAX}: {self}"
                raise PayoffError(message)

    @classmethod
    def parse(cls, text: str) -> Rational:
        """Read "6/5" or "5"; PayoffError for anything else, decimals included."""
        found = _RATIONAL_TEXT.fullmatch(text)
        if found is None:
            message = f'not a fraction such as "6/5" or "5": {text!r}'
            raise PayoffError(message)
        return cls(int(found[1]), int(found[2] or 1))

    @property
    def value(self) -> Fraction:
        """The fraction as a number, for formulas; payouts use :meth:`floor_of`."""
        return Fraction(self.numerator, self.denominator)

    def floor_of(self, amount: int) -> int:
        """Return ⌊self · amount⌋ in integers."""
        return amount * self.numerator // self.denominator

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return str(self.numerator) if self.denominator == 1 else f"{self.numerator}/{self.denominator}"


class Case(StrEnum):
    """How a job ended."""

    NO_CHALLENGE = "no_challenge"
    AGREE = "agree"
    CONFIRM_GENERATOR = "confirm_generator"
    """`unified-pool` only: a later verifier matches the generator."""
    CONFIRM_PRIOR = "confirm_prior"
    """`unified-pool` only: a later verifier matches an earlier one."""
    ACQUITTAL = "acquittal"
    """`fixed-fee-committee` only: a committee finds for the generator."""
    CONVICTION = "conviction"
    """`fixed-fee-committee` only: a committee finds against the generator."""
    VOID = "void"
    NO_OPENING = "no_opening"
    EQUIVOCATION = "equivocation"


@dataclass(frozen=True, slots=True)
class VerifierStanding:
    """A verifier whose βCv is in the pool: its stage, and whether it sealed and opened in time."""

    participant: ParticipantId
    stage: int
    """`unified-pool`: its stage, one verifier each; `fixed-fee-committee`: the number of its seat."""
    opened: bool
    upheld: bool = False
    """`fixed-fee-committee` only: the outcome bears out its claim."""


@dataclass(frozen=True, slots=True)
class JobEnding:
    """What a rule set has to know to empty a job's pool; amounts in micro-units."""

    case: Case
    cg: int
    cv: int
    user: ParticipantId
    generator: ParticipantId
    verifiers: tuple[VerifierStanding, ...] = ()
    """All whose stake is in the pool, silent ones included."""
    deciding: ParticipantId | None = None
    """`unified-pool`: the verifier of the last stage, where it decided."""
    prior: ParticipantId | None = None
    """Whose earlier claim was confirmed: V_j in Table 1, the finder under a committee."""
    is_challenged: bool = False
    """The user asked for the audit; otherwise the lottery did. `unified-pool` makes no difference."""
    reserve_micro: int = 0
    """What the levy reserve holds; a settlement never draws more."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Payouts by account, none zero, none twice, in all the pool; and whose whole stake went to others."""

    payouts: tuple[tuple[str, int], ...]
    pool: int
    """Everything held for the job, and what was drawn from the reserve."""
    slashed: tuple[ParticipantId, ...]
    drawn: int = 0
    """What has to be moved from the reserve into the pool before it is paid out."""

    def get_payout(self, account: str) -> int:
        """Return what an account gets from the pool: 0 for one without a payout."""
        return dict(self.payouts).get(account, 0)


class HoldAmounts(Protocol):
    """What each party has to put into a job's pool, in micro-units."""

    @property
    def deposit(self) -> int:
        """The user's."""

    @property
    def generator_stake(self) -> int:
        """The generator's."""

    @property
    def verifier_stake(self) -> int:
        """Each verifier's."""


class RuleSet(Protocol):
    """Who puts in what and who gets what: pure, and the same for every party that computes it."""

    @property
    def name(self) -> str:
        """What the network's configuration calls these rules."""

    @property
    def seat_max(self) -> int:
        """The largest stage or seat number that a verifier can have in one job."""

    def compute_products(self, cg: int, cv: int) -> HoldAmounts:
        """Return what is held for a job of these costs, each product floored once; PayoffError out of range."""

    def validate_costs(self, cg: int, cv: int) -> None:
        """Refuse costs for which some payout would be negative; PayoffError names the inequality."""

    def validate_prices(self, prices: PriceList) -> None:
        """Refuse prices under which a job of some length would have such costs; PayoffError."""

    def settle(self, ending: JobEnding) -> Settlement:
        """Empty the pool to the last micro-unit; PayoffError for standings that contradict the case."""


def verify_costs(cg: int, cv: int) -> None:
    """Refuse costs that no account could hold; PayoffError."""
    for name, cost in (("Cg", cg), ("Cv", cv)):
        if type(cost) is not int or not 0 <= cost <= MICRO_MAX:
            message = f"0 ≤ {name} ≤ {MICRO_MAX} is violated: {name} = {cost!r}"
            raise PayoffError(message)


def verify_factor(name: str, factor: Rational, consequence: str) -> None:
    """Refuse a factor of zero; PayoffError."""
    if factor.numerator == 0:
        message = f"{name} > 0 is violated: {consequence}"
        raise PayoffError(message)


def build_settlement(
    shares: Iterable[tuple[str, int]], *, pool: int, slashed: tuple[ParticipantId, ...], drawn: int = 0
) -> Settlement:
    """Add up shares by account; that they are the whole pool is the rule set's promise, asserted here."""
    payouts: dict[str, int] = {}
    for account, amount in shares:
        assert amount >= 0, "the configuration was to refuse a negative payout"
        payouts[account] = payouts.get(account, 0) + amount
    assert sum(payouts.values()) == pool, "a settlement must empty its pool"
    return Settlement(
        payouts=tuple((account, amount) for account, amount in payouts.items() if amount),
        pool=pool,
        slashed=slashed,
        drawn=drawn,
    )
