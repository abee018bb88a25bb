"""β_min and what goes into it, against numbers computed by hand; and what an evaluation may not say."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pocache.protocol.errors import PayoffError
from pocache.protocol.incentives import (
    DEFAULT_DETECTION,
    Attack,
    AuditTerms,
    DetectionTable,
    build_committee_terms,
    build_unified_terms,
    compute_capture,
    compute_conviction,
    compute_deterrence,
    compute_gain,
    compute_verifier_stake_min,
    get_beta_min,
    parse_evaluation,
    validate_generator_stake,
    validate_verifier_stake,
)
from pocache.protocol.payoff import DEFAULT_COMMITTEE, Rational

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
TERMS = AuditTerms(
    audit_share=Fraction(1, 10),
    recheck=Fraction(1, 4),
    full_depth_share=HALF,
    output_count=100,
    collusion=THIRD,
    capture=Fraction(1, 5),
)
ATTACK = Attack("x", Fraction(3, 5), Fraction(1, 4), ((1, HALF), (64, Fraction(9, 10))))
DEFAULT_TERMS = build_committee_terms(
    DEFAULT_COMMITTEE, full_depth_share=HALF, output_count=128, collusion=THIRD
)


def test_conviction_is_the_product_of_its_parts() -> None:
    """1/10 · (1/2 + 1/2·1/4) · 9/10 · (2/3)(1 + 1/12)(4/5)."""
    judgement = Fraction(2, 3) * Fraction(13, 12) * Fraction(4, 5)
    assert TERMS.compute_judgement() == judgement
    assert compute_conviction(ATTACK, TERMS) == Fraction(1, 10) * Fraction(5, 8) * Fraction(9, 10) * judgement


def test_detection_is_that_of_the_longest_length_reached() -> None:
    assert [ATTACK.get_detection(count) for count in (1, 63, 64, 10_000)] == [
        HALF,
        HALF,
        Fraction(9, 10),
        Fraction(9, 10),
    ]
    assert Attack("x", HALF, HALF, ((8, HALF),)).get_detection(7) == 0


def test_capture_is_the_majority_of_a_binomial() -> None:
    """The figures at a fifth of the stake are those that were simulated before: .104, .058, .033."""
    assert compute_capture(3, HALF) == compute_capture(7, HALF) == HALF
    assert compute_capture(3, Fraction(1, 5)) == Fraction(13, 125)
    found = [round(float(compute_capture(size, Fraction(1, 5))), 3) for size in (3, 5, 7)]
    assert found == [0.104, 0.058, 0.033]
    assert compute_capture(5, Fraction(0)) == 0
    assert compute_capture(5, Fraction(1)) == 1


def test_at_the_least_stake_and_at_the_break_even_lottery_the_gain_is_zero() -> None:
    alpha, beta = Fraction(6, 5), Fraction(20)
    table = DetectionTable((ATTACK,), "a test")
    (row,) = compute_deterrence(table, alpha=alpha, beta=beta, terms=TERMS)
    assert row.beta_min is not None
    assert row.lottery_min is not None
    assert compute_gain(ATTACK, alpha=alpha, beta=row.beta_min, terms=TERMS) == 0
    even = replace(TERMS, audit_share=row.lottery_min)
    assert compute_gain(ATTACK, alpha=alpha, beta=beta, terms=even) == 0


def test_what_is_never_found_has_no_stake_and_no_lottery() -> None:
    blind = replace(ATTACK, detection=())
    harmless = replace(blind, saving=Fraction(0))
    rare = replace(ATTACK, detection=((1, Fraction(1, 1000)),))
    rows = compute_deterrence(
        DetectionTable((harmless, rare, blind), "a test"), alpha=Fraction(1), beta=Fraction(1), terms=TERMS
    )
    assert [(row.beta_min is None, row.lottery_min) for row in rows] == [
        (True, None),
        (False, None),
        (False, 0),
    ]
    assert get_beta_min(rows) is None
    assert get_beta_min(rows[2:]) == 0


def test_the_networks_own_stake_deters_every_stated_attack() -> None:
    validate_generator_stake(DEFAULT_COMMITTEE, DEFAULT_DETECTION, DEFAULT_TERMS)
    rows = compute_deterrence(DEFAULT_DETECTION, alpha=Fraction(6, 5), beta=Fraction(20), terms=DEFAULT_TERMS)
    least = get_beta_min(rows)
    assert rows[0].attack == "spoof"
    assert least is not None
    assert 17 < least < 20


@pytest.mark.parametrize(
    ("change", "attack"),
    [
        ({"full_depth_share": Fraction(1, 4)}, "spoof"),
        ({"output_count": 127}, "spoof"),
        ({"collusion": Fraction(2, 5)}, "spoof"),
        ({"full_depth_share": Fraction(0)}, "skip-last-layer|spoof"),
    ],
)
def test_a_smaller_stake_than_the_least_is_refused_with_the_attack(
    change: dict[str, Any], attack: str
) -> None:
    terms: dict[str, Any] = {"full_depth_share": HALF, "output_count": 128, "collusion": THIRD, **change}
    weaker = build_committee_terms(DEFAULT_COMMITTEE, **terms)
    with pytest.raises(PayoffError, match=f"β_G ≥ s/p − α is violated for ({attack})"):
        validate_generator_stake(DEFAULT_COMMITTEE, DEFAULT_DETECTION, weaker)


def test_the_refusal_is_at_the_least_stake_exactly() -> None:
    table = DetectionTable((ATTACK,), "a test")
    (row,) = compute_deterrence(
        table, alpha=DEFAULT_COMMITTEE.alpha.value, beta=Fraction(1), terms=DEFAULT_TERMS
    )
    least = row.beta_min
    assert least is not None
    enough = Rational(least.numerator, least.denominator)
    validate_generator_stake(replace(DEFAULT_COMMITTEE, beta_generator=enough), table, DEFAULT_TERMS)
    less = Rational(least.numerator - 1, least.denominator)
    with pytest.raises(PayoffError, match="violated for x"):
        validate_generator_stake(replace(DEFAULT_COMMITTEE, beta_generator=less), table, DEFAULT_TERMS)


def test_under_the_unified_pool_two_honest_verifiers_in_a_row_convict() -> None:
    terms = build_unified_terms(
        challenge_share=Fraction(1, 20), full_depth_share=HALF, output_count=100, collusion=THIRD
    )
    assert terms.compute_judgement() == Fraction(4, 9)


def test_the_verifiers_stake_outweighs_a_false_conviction() -> None:
    """P = 1/2 of M = 3 at a = 1/2: [(α + bounty + bonus)·10 + α + λ]/2 + aMφ over 1/2, less φ."""
    rules = replace(DEFAULT_COMMITTEE, committee_size=3)
    least = compute_verifier_stake_min(rules, cg=10, cv=1, collusion=HALF)
    alpha, phi = Fraction(6, 5), Fraction(6, 5)
    prize = (alpha + Fraction(3, 4)) * 10 + alpha + Fraction(1, 6)
    assert least == (prize / 2 + Fraction(3, 2) * phi) / HALF - phi
    assert compute_verifier_stake_min(rules, cg=10, cv=0, collusion=HALF) is None
    assert compute_verifier_stake_min(rules, cg=10, cv=1, collusion=Fraction(1)) is None


def test_a_verifiers_stake_that_is_too_small_for_cheap_verification_is_refused() -> None:
    validate_verifier_stake(DEFAULT_COMMITTEE, cg=1_000, cv=100, collusion=THIRD)
    with pytest.raises(PayoffError, match="it takes β_V ≥ 22"):
        validate_verifier_stake(DEFAULT_COMMITTEE, cg=1_000, cv=20, collusion=THIRD)
    with pytest.raises(PayoffError, match="∞"):
        validate_verifier_stake(DEFAULT_COMMITTEE, cg=1_000, cv=0, collusion=THIRD)


def test_an_evaluation_replaces_the_stated_detection_and_says_what_it_left() -> None:
    table = parse_evaluation(
        {
            "honest": {"jobs": 10, "false_rejects": 0},
            "attacks": [
                {"name": "spoof", "auc": 1.0, "detected": 0.75, "output_tokens": 64},
                {"name": "spoof", "detected": 0.25, "output_tokens": 8},
                {"name": "int8", "detected": 1},
                {"name": "null-zeros", "detected": 1.0},
                {"name": "own", "detected": "1/3", "saving": 0.1, "partial_reveal": 0.5},
            ],
            "profile": "abc",
        }
    )
    attacks = {attack.name: attack for attack in table.attacks}
    assert attacks["spoof"].detection == ((8, Fraction(1, 4)), (64, Fraction(3, 4)))
    assert attacks["spoof"].saving == Fraction(27, 50)
    assert attacks["int8"].detection == ((1, Fraction(1)),)
    assert attacks["own"] == Attack("own", Fraction(1, 10), HALF, ((1, THIRD),))
    assert len(table.attacks) == len(DEFAULT_DETECTION.attacks) + 1
    assert table.unpriced == ("null-zeros",)
    assert table.source.startswith(
        "evaluation under profile abc; not evaluated, stated defaults: another-model,"
    )
    assert "spoof" not in table.source


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"attacks": {}},
        {"attacks": ["spoof"]},
        {"attacks": [{"name": "spoof"}]},
        {"attacks": [{"detected": 1}]},
        {"attacks": [{"name": "spoof", "detected": 1.5}]},
        {"attacks": [{"name": "spoof", "detected": -0.1}]},
        {"attacks": [{"name": "spoof", "detected": "much"}]},
        {"attacks": [{"name": "spoof", "detected": "1/0"}]},
        {"attacks": [{"name": "spoof", "detected": float("nan")}]},
        {"attacks": [{"name": "spoof", "detected": True}]},
        {"attacks": [{"name": "spoof", "detected": None}]},
        {"attacks": [{"name": "spoof", "detected": 1, "output_tokens": 0}]},
        {"attacks": [{"name": "spoof", "detected": 1, "saving": 2}]},
        {"attacks": [{"name": "spoof", "detected": 1}, {"name": "spoof", "detected": 0}]},
    ],
)
def test_what_is_no_evaluation_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(PayoffError, match="evaluation|share|lengths"):
        parse_evaluation(record)


@pytest.mark.parametrize("name", ["audit_share", "recheck", "full_depth_share", "collusion", "capture"])
def test_terms_that_are_no_shares_are_refused(name: str) -> None:
    change: dict[str, Any] = {name: Fraction(11, 10)}
    with pytest.raises(PayoffError, match=f"0 ≤ {name} ≤ 1"):
        replace(TERMS, **change)
