"""What the truth is worth to each verifier, and what a job locks up."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pocache.protocol.payoff import DEFAULT_COMMITTEE, Rational, UnifiedPool
from pocache.protocol.truth import (
    compute_committee_truth,
    compute_locked_capital,
    compute_unified_truth,
    get_lies_that_pay,
)

CG, CV = 1_000_000, 100_000
UNIFIED = UnifiedPool(Rational(6, 5), Rational(5), 6)


def test_under_the_unified_pool_the_deciding_verifier_is_paid_to_convict_at_every_stage() -> None:
    """βCg − (2α+β)Cv = 4.26 Cg whoever is right: the lie pays where the generator is honest (docs/economics.md 4)."""
    rows = [row for row in compute_unified_truth(UNIFIED, CG, CV) if row.verifier != "V1"]
    assert [row.verifier for row in rows] == [f"V{k}" for k in range(2, 7) for _ in range(2)]
    for row in rows:
        assert abs(row.incentive_micro) == 4_260_000
        assert (row.incentive_micro < 0) == (row.generator == "honest")


def test_under_the_unified_pool_nothing_rewards_the_first_verifier_for_finding_a_cheat() -> None:
    rows = {row.generator: row for row in compute_unified_truth(UNIFIED, CG, CV) if row.verifier == "V1"}
    assert rows["cheats"].incentive_micro == 0
    assert rows["honest"].incentive_micro == 120_000 + 500_000


def test_a_single_stage_leaves_a_lie_unpunished() -> None:
    (row,) = compute_unified_truth(UnifiedPool(Rational(6, 5), Rational(5), 1), CG, CV)
    assert row.truth_micro == 120_000
    assert row.lie_micro == 0


def test_under_the_committee_the_truth_pays_every_verifier() -> None:
    rows = {(row.verifier, row.generator): row for row in compute_committee_truth(DEFAULT_COMMITTEE, CG, CV)}
    assert set(rows) == {(v, g) for v in ("audit", "recheck", "member") for g in ("honest", "cheats")}
    assert get_lies_that_pay(tuple(rows.values())) == ()
    assert rows["audit", "honest"].incentive_micro == 120_000 + 2_000_000
    assert rows["audit", "cheats"].lie_micro == Fraction(9 * 120_000 - 2_000_000, 10)
    assert rows["audit", "cheats"].truth_micro == 120_000 + 250_000
    assert rows["member", "honest"].incentive_micro == rows["member", "cheats"].incentive_micro


def test_the_lies_that_pay_are_named() -> None:
    found = {
        (row.verifier, row.generator) for row in get_lies_that_pay(compute_unified_truth(UNIFIED, CG, CV))
    }
    assert found == {("V1", "cheats"), *((f"V{k}", "honest") for k in range(2, 7))}


@pytest.mark.parametrize(
    ("audit_share", "recheck", "seated"), [("1/10", "1/10", "11/100"), ("1/20", "0", "1/20")]
)
def test_locked_capital(audit_share: str, recheck: str, seated: str) -> None:
    user, generator, verifiers = compute_locked_capital(
        DEFAULT_COMMITTEE, CG, CV, audit_share=Fraction(audit_share), recheck=Fraction(recheck)
    )
    assert (user.count, user.each_micro) == (1, 1_200_000 + 120_000 + 16_666)
    assert generator.count == 1
    assert generator.expected_micro == 20_000_000
    assert (verifiers.count, verifiers.each_micro) == (20, 2_000_000)
    assert verifiers.expected_micro == 2_000_000 * Fraction(seated)
