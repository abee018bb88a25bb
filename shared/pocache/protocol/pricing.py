"""What a job costs: Cg and Cv from a price list, in micro-units (docs/economics.md 1).

Owns the price list, the two cost formulas, and the refusal of prices under which a job of some length would
settle with a negative payout. Refuses counts that no job has. Who pays what part is payoff.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pocache.protocol.errors import PayoffError
from pocache.protocol.limits import LAYER_COUNT_MAX, LEAF_COUNT_MAX, OUTPUT_TOKENS_MAX, PROMPT_TOKENS_MAX

if TYPE_CHECKING:
    from pocache.protocol.payoff_terms import RuleSet

TOKEN_PRICE_MICRO_MAX: Final = 10**12
"""Keeps the cost of the longest job far below what an account can hold."""


@dataclass(frozen=True, slots=True)
class PriceList:
    """Micro-units per prompt token, per output token, and per token verified through all layers."""

    prompt_token_micro: int
    output_token_micro: int
    verify_token_micro: int

    def __post_init__(self) -> None:
        """Refuse negative, fractional or oversized prices; PayoffError."""
        for name in ("prompt_token_micro", "output_token_micro", "verify_token_micro"):
            _verify_count(name, getattr(self, name), 0, TOKEN_PRICE_MICRO_MAX)

    def compute_generation_cost(self, prompt_count: int, output_count: int) -> int:
        """Return Cg = prompt price · |prompt| + output price · |output|; PayoffError."""
        _verify_count("prompt_count", prompt_count, 1, PROMPT_TOKENS_MAX)
        _verify_count("output_count", output_count, 0, OUTPUT_TOKENS_MAX)
        return self.prompt_token_micro * prompt_count + self.output_token_micro * output_count

    def compute_verification_cost(self, *, layer_max: int, position_max: int, layer_count: int) -> int:
        """Return Cv = ⌊verify price · (position_max+1) · (layer_max+1) / layer_count⌋; PayoffError.

        Both bounds are inclusive indices, those of the corner; the whole job is layer_count−1 and N−1.
        """
        _verify_count("layer_count", layer_count, 1, LAYER_COUNT_MAX)
        _verify_count("layer_max", layer_max, 0, layer_count - 1)
        _verify_count("position_max", position_max, 0, LEAF_COUNT_MAX - 1)
        return self.verify_token_micro * (position_max + 1) * (layer_max + 1) // layer_count


def validate_prices(rules: RuleSet, prices: PriceList) -> None:
    """Refuse prices under which the rules would pay less than nothing for a job of some length; PayoffError.

    The message names the inequality. Each rule set has its own, for jobs of every length at once.
    """
    rules.validate_prices(prices)


def _verify_count(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        message = f"{low} ≤ {name} ≤ {high} is violated: {name} = {value!r}"
        raise PayoffError(message)
