"""Every number of docs/economics.md comes out of the code that settles, deters and simulates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from pocache.protocol.incentives import (
    DEFAULT_DETECTION,
    AuditTerms,
    build_committee_terms,
    build_unified_terms,
    compute_capture,
    compute_deterrence,
    compute_verifier_stake_min,
    get_beta_min,
)
from pocache.protocol.payoff import (
    DEFAULT_COMMITTEE,
    FIXED_FEE_COMMITTEE,
    UNIFIED_POOL,
    Rational,
    UnifiedPool,
    compute_table,
)
from pocache_cli.economics_play import Setting
from pocache_cli.economics_plot import draw_plot
from pocache_cli.economics_simulation import Result, build_cases, compute_honest_profits, simulate

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "economics.md").read_text(encoding="utf-8")
PROSE = re.sub(r"\s+", " ", TEXT)
CG, CV, STAGES = 1_000_000, 100_000, 6
UNIFIED = UnifiedPool(Rational(6, 5), Rational(5), STAGES)
SETTING = Setting(
    cg=CG,
    cv=CV,
    generation_cost=Fraction(4, 5),
    verification_cost=Fraction(3, 5),
    challenge_share=Fraction(1, 20),
    full_depth_share=Fraction(1, 2),
    output_count=128,
)
JOBS, SEED = 20_000, 1
THIRD = Fraction(1, 3)


def read_table(head: str) -> list[list[str]]:
    """Return the rows of the one table whose head begins so, cells stripped of their marks."""
    lines = TEXT.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(head)]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("**", "").replace("−", "-") for cell in line.strip("|").split("|")])
    return rows


@cache
def simulate_all() -> Mapping[tuple[str, str, Fraction], Result]:
    cases = build_cases(UNIFIED, DEFAULT_COMMITTEE, SETTING, DEFAULT_DETECTION)
    results = [simulate(case, SETTING, jobs=JOBS, seed=SEED) for case in cases]
    return {(one.rules, one.attack, one.share): one for one in results}


def test_table_1_with_numbers() -> None:
    """Section 3, in thousands."""
    rows = {(row.case.value, row.k): row for row in compute_table(UNIFIED, CG, CV, STAGES)}
    shown = read_table("| case | pool |")
    assert len(shown) == 6
    for name, *cells in shown:
        case, _, k = name.replace("`", "").partition(", ")
        stage = int(k.split("= ")[1]) if k else {"no_challenge": 0, "agree": 1}[case]
        row = rows[case, stage]
        found = (
            row.pool_micro,
            row.generator_micro,
            row.user_micro,
            row.deciding_verifier_micro,
            row.prior_verifier_micro,
        )
        assert [int(cell.replace(",", "")) * 1_000 if cell else 0 for cell in cells[:5]] == list(found), name
        assert int(cells[5] or 0) == row.losing_verifiers


def test_the_table_of_gains_is_the_simulations() -> None:
    """Section 7.2, expected and simulated, and that nothing is missing."""
    shown = read_table("| attack | stake |")
    results = simulate_all()
    assert 2 * len(shown) == len(results)
    for attack, stake, *cells in shown:
        known = Fraction(0)
        if stake:
            known = next(
                share for _, _, share in results if stake == f"{float(share):.0%}".replace("%", " %")
            )
        # A third of the verifiers is lazy in one row, which a strategy's share says as well.
        for rules, expected, simulated in (
            (UNIFIED_POOL, *cells[:2]),
            (FIXED_FEE_COMMITTEE, *cells[2:]),
        ):
            result = results[rules, attack, known]
            assert expected == f"{float(result.exact_gain):+.3f}", (attack, stake, rules)
            assert simulated == f"{result.simulated_gain:+.3f} ± {result.standard_error:.3f}", (attack, stake)


def test_the_plot_is_the_simulations() -> None:
    drawn = draw_plot(list(simulate_all().values()), jobs=JOBS, seed=SEED)
    assert (DOCS / "economics-simulation.svg").read_text(encoding="utf-8") == drawn


def test_gains_under_the_unified_pool() -> None:
    """Section 4's table repeats some of 7.2, in its own words."""
    names = {
        "cheating generator, users never challenge": ("cheating generator, never challenged", Fraction(0)),
        "the same, users challenge": ("cheating generator", Fraction(0)),
        "the same, a third of the verifiers lazy": ("cheating generator, lazy verifiers", THIRD),
        "the same, a third of the verifiers in league with it": ("cheating generator and ring", THIRD),
        "generator that cheats and falls silent when challenged": ("silent generator", Fraction(0)),
        "lazy verifier, per assignment": ("lazy verifier, per assignment", Fraction(0)),
        "ring of a third of the verifiers and a user convict honest generators": (
            "ring and user convict the honest",
            THIRD,
        ),
        "ring of a fifth of the verifiers convicts honest generators": (
            "ring convicts the honest",
            Fraction(1, 5),
        ),
    }
    shown = {row[0]: row[1] for row in read_table("| strategy | gain |")}
    assert shown == {
        name: f"{float(simulate_all()[(UNIFIED_POOL, *key)].exact_gain):+.3f}" for name, key in names.items()
    }
    generator, verifier, _ = compute_honest_profits(UNIFIED, SETTING)
    assert (
        f"honest generator earns {float(generator):.3f} and an honest verifier {float(verifier):.3f}" in PROSE
    )


def test_the_attacks_and_the_parameters_are_the_codes() -> None:
    shown = read_table("| attack | s_x |")
    told: dict[str, tuple[Fraction, ...]] = {}
    for names, savings, reveal, rates in shown:
        labels = re.findall(r"`([a-z0-9-]+)`", names)
        parts = [[Fraction(cell) for cell in column.split(", ")] for column in (savings, reveal)]
        firsts = [Fraction(rate.split(" ")[0]) for rate in rates.split(", ")]
        several = len(labels) > 1
        for number, label in enumerate(labels):
            s, r = (part[number if len(part) > 1 else 0] for part in parts)
            ds = (firsts[number if len(firsts) > 1 else 0],) if several else tuple(firsts)
            told[label] = (s, r, *ds)
    known = {
        one.name: (one.saving, one.partial_reveal, *(rate for _, rate in reversed(one.detection)))
        for one in DEFAULT_DETECTION.attacks
    }
    assert told == known
    assert "0.99 from 128 tokens, 0.5 from 8, 0.1 below" in TEXT
    assert [length for length, _ in DEFAULT_DETECTION.attacks[1].detection] == [1, 8, 128]
    defaults = {name.split(",")[0].strip("`"): value for name, _, value, _ in read_table("| name | symbol |")}
    for name, value in defaults.items():
        if name not in ("committee_size", "bounty"):
            assert Fraction(value) == getattr(DEFAULT_COMMITTEE, name).value, name
    rules = DEFAULT_COMMITTEE
    assert (defaults["committee_size"], defaults["bounty"]) == (
        f"{rules.committee_size}, {rules.committee_count}",
        f"{rules.bounty}, {rules.bonus}",
    )


def get_committee_min(**changes: object) -> float:
    terms = build_committee_terms(
        DEFAULT_COMMITTEE, full_depth_share=Fraction(1, 2), output_count=128, collusion=THIRD
    )
    return get_min(replace(terms, **changes), DEFAULT_COMMITTEE.alpha.value)  # type: ignore[arg-type]


def get_min(terms: AuditTerms, alpha: Fraction) -> float:
    rows = compute_deterrence(DEFAULT_DETECTION, alpha=alpha, beta=Fraction(20), terms=terms)
    least = get_beta_min(rows)
    assert least is not None
    return float(least)


def compute_unified_min(challenge_share: Fraction) -> float:
    terms = build_unified_terms(
        challenge_share=challenge_share,
        full_depth_share=Fraction(1),
        output_count=128,
        collusion=THIRD,
    )
    return get_min(terms, UNIFIED.alpha.value)


def get_figures() -> dict[str, object]:
    """Return the sentences with figures in them, and what the code says these are."""
    rules = DEFAULT_COMMITTEE
    levy, alpha, phi = rules.levy.value, rules.alpha.value, rules.phi.value
    least = compute_verifier_stake_min(rules, cg=CG, cv=CV, collusion=THIRD)
    assert least is not None
    sharing = rules.lottery.value * THIRD * (1 + rules.recheck.value) * SETTING.verification_cost * CV / CG
    often, seldom = (compute_unified_min(Fraction(1, count)) for count in (20, 100))
    return {
        "β_G = 20 is β_min = {:.2f} (6.1)": get_committee_min(),
        "At a quarter, β_min would be {:.1f}": get_committee_min(full_depth_share=Fraction(1, 4)),
        "at 8 tokens the spoof takes β = {:.1f}": get_committee_min(output_count=8),
        "one challenge in twenty β_min is {:.0f} at a = 1/3": often,
        "about five times that with one in a hundred": 4.5 < seldom / often < 5.5,
        "At a = 1/3, M = 7 and Cg = 10·Cv this takes β_V ≥ {:.1f}": float(least),
        "is three times what a false conviction takes (6.3)": 2.95
        < float(rules.beta_verifier.value / least)
        < 3.1,
        "a fifth of the stake has the say in {:.1f} % of committees": 100
        * float(compute_capture(7, Fraction(1, 5))),
        "a third in {:.1f} %": 100 * float(compute_capture(7, THIRD)),
        "committees (2Mφ = {:.1f})": float(2 * rules.committee_size * phi),
        "on every job: {:.1f} % of what it pays at Cg = 10·Cv": 100 * float(levy * CV / (alpha * CG)),
        "{:.4f} Cg at a third of the stake": float(sharing),
        "+{:.2f} Cg: convicting pays better": float(5 - (2 * alpha + 5) * CV / CG),
        "where verifying is a fiftieth of generating, 20 is too little": (
            compute_verifier_stake_min(rules, cg=50 * CV, cv=CV, collusion=THIRD) or 0
        )
        > rules.beta_verifier.value,
        "half of the stake is the majority of half of the committees": compute_capture(7, Fraction(1, 2))
        == Fraction(1, 2),
    }


@pytest.mark.parametrize("sentence", list(get_figures()))
def test_a_figure_in_a_sentence(sentence: str) -> None:
    value = get_figures()[sentence]
    assert value is True or not isinstance(value, bool)
    text = sentence if value is True else sentence.format(value)
    assert PROSE.count(text) == 1, text
