"""Attacks, played by the real machines and settled by the real rules: none may gain under the committee's rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, partial
from xml.etree import ElementTree as ET

import pytest

from pocache.protocol.incentives import DEFAULT_DETECTION, build_committee_terms, compute_gain
from pocache.protocol.payoff import (
    DEFAULT_COMMITTEE,
    FIXED_FEE_COMMITTEE,
    UNIFIED_POOL,
    FixedFeeCommittee,
    Rational,
    UnifiedPool,
)
from pocache_cli.economics_chance import Chance, compute_mean, draw_sample, enumerate_branches
from pocache_cli.economics_play import Rows, Setting, Strategy, play
from pocache_cli.economics_plot import draw_plot
from pocache_cli.economics_simulation import (
    RING_SHARES,
    SHARE_MAX,
    Result,
    build_cases,
    compute_honest_profits,
    get_failures,
    simulate,
)
from pocache_cli.economics_view import print_results

THIRD = Fraction(1, 3)
SETTING = Setting(
    cg=1_000_000,
    cv=100_000,
    generation_cost=Fraction(4, 5),
    verification_cost=Fraction(3, 5),
    challenge_share=Fraction(1, 20),
    full_depth_share=Fraction(1, 2),
    output_count=128,
)
UNIFIED = UnifiedPool(Rational(6, 5), Rational(5), 6)
ATTACKS = {attack.name: attack for attack in DEFAULT_DETECTION.attacks}
JOBS = 4_000


@lru_cache(maxsize=1)
def simulate_all() -> tuple[Result, ...]:
    cases = build_cases(UNIFIED, DEFAULT_COMMITTEE, SETTING, DEFAULT_DETECTION)
    return tuple(simulate(case, SETTING, jobs=JOBS, seed=7) for case in cases)


def get_gain(rules: UnifiedPool | FixedFeeCommittee, strategy: Strategy, honest: Strategy) -> Fraction:
    means = [
        compute_mean(enumerate_branches(partial(play, rules, SETTING, one))) for one in (strategy, honest)
    ]
    return (means[0] - means[1]) / SETTING.cg


# --- the table ------------------------------------------------------------------------------------------------


def test_no_attack_up_to_a_third_of_the_stake_gains_under_the_committee() -> None:
    assert get_failures(simulate_all()) == ()
    promised = [r for r in simulate_all() if r.rules == FIXED_FEE_COMMITTEE and r.share <= SHARE_MAX]
    assert len(promised) == 7 + 4 * 4
    assert all(result.exact_gain < 0 for result in promised)
    assert all(result.simulated_gain - 5 * result.standard_error < 0 for result in promised)


def test_under_the_unified_pool_most_of_them_gain() -> None:
    gains = {(r.attack, r.share) for r in simulate_all() if r.rules == UNIFIED_POOL and r.is_gain}
    assert {attack for attack, _ in gains} == {
        "cheating generator, never challenged",
        "cheating generator",
        "cheating generator, lazy verifiers",
        "spoofing generator",
        "silent generator",
        "lazy verifier, per assignment",
        "ring convicts the honest",
        "ring and user convict the honest",
        "cheating generator and ring",
        "spoofing generator and ring",
    }
    assert ("ring convicts the honest", Fraction(1, 5)) in gains
    assert ("ring convicts the honest", Fraction(1, 10)) not in gains


def test_the_sample_agrees_with_the_expectation() -> None:
    for result in simulate_all():
        assert abs(result.simulated_gain - float(result.exact_gain)) <= 5 * result.standard_error + 1e-9


def test_every_attack_is_played_under_both_rules_at_every_share() -> None:
    played = {
        rules: {(r.attack, r.share) for r in simulate_all() if r.rules == rules}
        for rules in (UNIFIED_POOL, FIXED_FEE_COMMITTEE)
    }
    assert played[UNIFIED_POOL] == played[FIXED_FEE_COMMITTEE]
    for attack in ("ring convicts the honest", "cheating generator and ring"):
        assert {share for name, share in played[UNIFIED_POOL] if name == attack} == set(RING_SHARES)


def test_a_stake_below_the_least_lets_the_table_fail() -> None:
    """What the table must be able to show: with a quarter of the stake the spoof with a ring gains."""
    weak = replace(DEFAULT_COMMITTEE, beta_generator=Rational(5))
    cases = [
        case
        for case in build_cases(UNIFIED, weak, SETTING, DEFAULT_DETECTION)
        if case.rules is weak and case.attack == "spoofing generator and ring"
    ]
    failing = get_failures([simulate(case, SETTING, jobs=10, seed=1) for case in cases])
    assert {result.share for result in failing} == {share for share in RING_SHARES if share <= THIRD}


# --- single figures, by hand ----------------------------------------------------------------------------------


def test_honest_parties_net_their_margins() -> None:
    """0.4 and 0.06 as before; the user pays α and its challenges, or the levy."""
    assert compute_honest_profits(UNIFIED, SETTING) == (
        Fraction(2, 5),
        Fraction(3, 50),
        -Fraction(6, 5) - Fraction(1, 20) * Fraction(12, 100),
    )
    assert compute_honest_profits(DEFAULT_COMMITTEE, SETTING) == (
        Fraction(2, 5),
        Fraction(3, 50),
        -Fraction(6, 5) - Fraction(16_666, 10**6),
    )


def test_a_cheating_generator_gains_what_the_formula_says() -> None:
    """s − p(α+β): the recheck of those that slip through adds to p what the formula leaves out, at most q_a·q_r·(1−D)."""
    strategy = Strategy(is_generator=True, cheat=ATTACKS["another-model"])
    terms = build_committee_terms(
        DEFAULT_COMMITTEE, full_depth_share=Fraction(1, 2), output_count=128, collusion=Fraction(0)
    )
    formula = compute_gain(ATTACKS["another-model"], alpha=Fraction(6, 5), beta=Fraction(20), terms=terms)
    played = get_gain(DEFAULT_COMMITTEE, strategy, Strategy(is_generator=True))
    slipped = Fraction(1, 10) * Fraction(1, 10) * Fraction(1, 100) * Fraction(99, 100)
    assert played == formula - slipped * Fraction(106, 5)


def test_a_silent_generator_fares_as_if_convicted() -> None:
    strategy = Strategy(is_generator=True, cheat=ATTACKS["another-model"], opens=False)
    gain = get_gain(DEFAULT_COMMITTEE, strategy, Strategy(is_generator=True))
    assert gain == Fraction(3, 5) - Fraction(1, 10) * (Fraction(6, 5) + 20)


def test_a_ring_under_the_unified_pool_needs_two_seats_in_a_row() -> None:
    """a·[a·(β(Cg+Cv) …) − (1−a)·βCv] per challenge, by hand at a = 1/2 in units of Cg."""
    share = Fraction(1, 2)
    ring = Strategy(
        is_verifiers=True, share=share, challenge_share=Fraction(1), look=Rows.FORGED, vote=Rows.FORGED
    )
    honest = replace(ring, look=Rows.HONEST, vote=Rows.HONEST)
    both = Fraction(12, 100) + 5 - Fraction(12, 100)
    one = -Fraction(1, 2)
    margin = Fraction(6, 100)
    assert get_gain(UNIFIED, ring, honest) == share * (share * both + (1 - share) * one) - share * margin


def test_a_lazy_verifier_loses_its_stake_once_claims_are_sealed() -> None:
    lazy = Strategy(is_verifiers=True, is_assigned=True, look=Rows.NOISE)
    honest = replace(lazy, look=Rows.HONEST)
    assert get_gain(DEFAULT_COMMITTEE, lazy, honest) == -2 - Fraction(6, 100)


def test_a_ring_is_honest_in_a_committee_that_it_does_not_hold() -> None:
    """What it sees drawn among it is worth something: to vote blindly costs it more."""
    ring = Strategy(is_verifiers=True, share=THIRD, look=Rows.FORGED, vote=Rows.FORGED)
    honest = replace(ring, look=Rows.HONEST, vote=Rows.HONEST)
    blind = get_gain(DEFAULT_COMMITTEE, replace(ring, votes_blindly=True), honest)
    assert blind < get_gain(DEFAULT_COMMITTEE, ring, honest) < 0


def test_a_recheck_looks_elsewhere_than_the_audit_did() -> None:
    """With half of the verifiers in league, a cheat that half of the audits reach is found by whoever is not.

    p = q_a·[1/2·1/2 + (1/2 + 1/2·1/2)·q_r·1/2·1/2]·(1 − P): found by an honest audit that reaches it; or not, and by an
    honest recheck that does.
    """
    cheat = replace(ATTACKS["spoof"], detection=((1, Fraction(1)),))
    strategy = Strategy(
        is_generator=True, cheat=cheat, share=Fraction(1, 2), look=Rows.COPIED, vote=Rows.COPIED
    )
    found = Fraction(1, 4) + Fraction(3, 4) * Fraction(1, 10) * Fraction(1, 4)
    conviction = Fraction(1, 10) * found * Fraction(1, 2)
    gain = get_gain(DEFAULT_COMMITTEE, strategy, Strategy(is_generator=True))
    assert gain == cheat.saving - conviction * (Fraction(6, 5) + 20)


# --- every combination ----------------------------------------------------------------------------------------


def list_strategies() -> Iterator[Strategy]:
    """Every combination of who is in league, what it commits, what it seals and how it votes."""
    rows = (Rows.HONEST, Rows.FORGED, Rows.COPIED, Rows.NOISE)
    for has_generator, has_user in itertools.product((False, True), repeat=2):
        for cheat in (None, ATTACKS["another-model"]) if has_generator else (None,):
            for challenge, look, vote in itertools.product((0, 1) if has_user else (0,), rows, rows[:3]):
                yield Strategy(
                    is_generator=has_generator,
                    is_user=has_user,
                    is_verifiers=True,
                    cheat=cheat,
                    challenge_share=Fraction(challenge),
                    share=THIRD,
                    look=look,
                    vote=vote,
                )


def test_a_third_of_the_stake_gains_by_nothing_but_sharing_right_results() -> None:
    """The one combination that pays, and by how little: an honest generator's rows, copied by its verifiers.

    Nobody is harmed and nothing can show it: what is sealed is what an honest verifier would have sealed. It saves the
    work of q_a·a·(1 + q_r) verifications, and docs/economics.md 7.4 says so.
    """
    honest: dict[tuple[bool, bool], Strategy] = {}
    for strategy in list_strategies():
        parties = (strategy.is_generator, strategy.is_user)
        honest.setdefault(
            parties,
            Strategy(is_generator=parties[0], is_user=parties[1], is_verifiers=True, share=THIRD),
        )
        gain = get_gain(DEFAULT_COMMITTEE, strategy, honest[parties])
        is_sharing = strategy.cheat is None and strategy.look is Rows.COPIED and not strategy.challenge_share
        if is_sharing:
            assert gain == Fraction(1, 10) * THIRD * Fraction(11, 10) * Fraction(6, 100)
        else:
            assert gain <= 0, strategy


# --- chance, sample, plot -------------------------------------------------------------------------------------


def test_branches_are_all_the_ways_a_play_can_go() -> None:
    def toss(chance: Chance) -> Fraction:
        if chance.happens(Fraction(1, 4)):
            return Fraction(chance.count_of(2, Fraction(1, 2)))
        return Fraction(10)

    branches = enumerate_branches(toss)
    assert [(one.probability, one.value) for one in branches] == [
        (Fraction(3, 4), Fraction(10)),
        (Fraction(1, 16), Fraction(0)),
        (Fraction(1, 8), Fraction(1)),
        (Fraction(1, 16), Fraction(2)),
    ]
    assert compute_mean(branches) == Fraction(3, 4) * 10 + Fraction(1, 4)


@pytest.mark.parametrize("probability", [0, 1])
def test_what_is_certain_does_not_branch(probability: int) -> None:
    (branch,) = enumerate_branches(lambda chance: Fraction(chance.happens(Fraction(probability))))
    assert branch.probability == 1
    assert branch.value == probability


def test_a_sample_is_reproducible_and_another_seed_is_another_sample() -> None:
    branches = enumerate_branches(lambda chance: Fraction(chance.count_of(8, Fraction(1, 3))))
    first, again, other = (draw_sample(branches, count=500, seed=seed) for seed in ("1", "1", "2"))
    assert first == again
    assert first.mean != other.mean
    assert abs(first.mean - 8 / 3) < 5 * first.standard_error


def test_the_plot_has_a_bar_for_every_result() -> None:
    results = simulate_all()
    root = ET.fromstring(draw_plot(results, jobs=JOBS, seed=7))
    space = "{http://www.w3.org/2000/svg}"
    bars = [one for one in root.iter(f"{space}rect") if one.find(f"{space}title") is not None]
    assert len(bars) == len(results)
    width = float(root.attrib["width"])
    for bar in bars:
        assert 0 <= float(bar.attrib["x"]) <= float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
    texts = {one.text for one in root.iter(f"{space}text")}
    assert "ring convicts the honest, 33% of stake" in texts
    assert "0" in texts


def test_names_in_a_plot_are_escaped() -> None:
    result = Result("unified-pool", "<a & 'b'>", Fraction(0), Fraction(1), 1.0, 0.0)
    root = ET.fromstring(draw_plot([result], jobs=1, seed=1))
    assert any(one.text == "<a & 'b'>" for one in root.iter())


def test_a_narrow_terminal_shows_every_digit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words are folded there; a gain cut off after its sign would say nothing."""
    monkeypatch.setenv("COLUMNS", "80")
    print_results(simulate_all(), title="title", caption="caption")
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert all(f"{float(result.exact_gain):+.4f}" in shown for result in simulate_all())
    assert max(map(len, shown.splitlines())) <= 80
