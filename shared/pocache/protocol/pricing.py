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
    from pocache.protocol.payoff import UnifiedPool

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


def validate_prices(rules: UnifiedPool, prices: PriceList) -> None:
    """Refuse prices under which β(Cg+Cv) < αCv for a job of some length; PayoffError names the inequality.

    With β ≥ α it always holds. Otherwise let p be the cheaper of the two token prices and v the price of
    verifying one. A job has one token more than positions, so Cg ≥ p(N+1) while Cv ≤ vN: βp ≥ (α−β)v gives
    β(Cg+Cv) ≥ αCv + βp, and βp ≥ 1 makes up for the flooring of the products.
    """
    if rules.stage_max == 1:
        return
    a_num = rules.alpha.numerator * rules.beta.denominator
    b_num = rules.beta.numerator * rules.alpha.denominator
    if b_num >= a_num:
        return
    denominator = rules.alpha.denominator * rules.beta.denominator
    price = min(prices.prompt_token_micro, prices.output_token_micro)
    if b_num * price < max((a_num - b_num) * prices.verify_token_micro, denominator):
        message = (
            f"β(Cg+Cv) ≥ αCv is violated for some job: with β = {rules.beta} below α = {rules.alpha} it takes"
            f" βp ≥ max((α−β)v, 1), but the cheaper token costs p = {price} and verifying one costs"
            f" v = {prices.verify_token_micro}"
        )
        raise PayoffError(message)


def _verify_count(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        message = f"{low} ≤ {name} ≤ {high} is violated: {name} = {value!r}"
        raise PayoffError(message)
