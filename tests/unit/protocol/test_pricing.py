"""Prices: the two cost formulas, and prices that would let a settlement go negative."""

from __future__ import annotations

import itertools

import pytest

from pocache.protocol.errors import PayoffError
from pocache.protocol.payoff import Rational, UnifiedPool
from pocache.protocol.pricing import PriceList, validate_prices

PRICES = PriceList(prompt_token_micro=10, output_token_micro=70, verify_token_micro=7)


def test_generation_costs_prompt_and_output_tokens() -> None:
    assert PRICES.compute_generation_cost(3, 5) == 3 * 10 + 5 * 70


def test_verification_costs_the_corner() -> None:
    """⌊7 · 11 tokens · 3 of 8 layers⌋ = ⌊28.875⌋."""
    assert PRICES.compute_verification_cost(layer_max=2, position_max=10, layer_count=8) == 28
    assert PRICES.compute_verification_cost(layer_max=7, position_max=10, layer_count=8) == 77


@pytest.mark.parametrize("name", ["prompt_token_micro", "output_token_micro", "verify_token_micro"])
@pytest.mark.parametrize("price", [-1, 1.5, True, 10**12 + 1])
def test_a_price_out_of_range_is_refused(name: str, price: int) -> None:
    prices = {"prompt_token_micro": 1, "output_token_micro": 1, "verify_token_micro": 1, name: price}
    with pytest.raises(PayoffError, match=name):
        PriceList(**prices)


@pytest.mark.parametrize(("prompt_count", "output_count"), [(0, 1), (1, -1), (65_537, 1), (1, 32_769)])
def test_token_counts_out_of_range_are_refused(prompt_count: int, output_count: int) -> None:
    with pytest.raises(PayoffError, match="_count"):
        PRICES.compute_generation_cost(prompt_count, output_count)


@pytest.mark.parametrize(
    ("layer_max", "position_max", "layer_count"),
    [(8, 0, 8), (-1, 0, 8), (0, -1, 8), (0, 98_304, 8), (0, 0, 0)],
)
def test_corners_outside_the_job_are_refused(layer_max: int, position_max: int, layer_count: int) -> None:
    with pytest.raises(PayoffError, match="violated"):
        PRICES.compute_verification_cost(
            layer_max=layer_max, position_max=position_max, layer_count=layer_count
        )


def test_a_stake_factor_of_at_least_alpha_takes_any_price() -> None:
    validate_prices(UnifiedPool(Rational(6, 5), Rational(6, 5), 4), PriceList(0, 0, 10**12))


def test_prices_that_could_make_a_payout_negative_are_refused() -> None:
    rules = UnifiedPool(Rational(6), Rational(1), 4)
    with pytest.raises(PayoffError, match="β\\(Cg\\+Cv\\) ≥ αCv is violated"):
        validate_prices(rules, PriceList(34, 100, 7))
    with pytest.raises(PayoffError, match="violated"):
        validate_prices(rules, PriceList(100, 34, 7))
    validate_prices(rules, PriceList(35, 35, 7))


def test_a_single_stage_has_no_negative_row() -> None:
    validate_prices(UnifiedPool(Rational(6), Rational(1), 1), PriceList(1, 1, 100))


@pytest.mark.parametrize(("alpha", "beta"), [("6/5", "5"), ("3/2", "7/5"), ("3", "1/2"), ("10", "1/3")])
def test_accepted_prices_pass_for_every_length(alpha: str, beta: str) -> None:
    """The cheapest list that is accepted settles for all short jobs and every corner, flooring included."""
    rules = UnifiedPool(Rational.parse(alpha), Rational.parse(beta), 4)
    for token_price in range(200):
        prices = PriceList(token_price, token_price + 1, 3)
        try:
            validate_prices(rules, prices)
        except PayoffError:
            continue
        break
    for prompt_count, output_count, layer_max in itertools.product(range(1, 9), range(1, 9), range(4)):
        cost = prices.compute_verification_cost(
            layer_max=layer_max, position_max=prompt_count + output_count - 2, layer_count=4
        )
        rules.validate_costs(prices.compute_generation_cost(prompt_count, output_count), cost)
