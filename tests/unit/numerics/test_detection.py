"""The numbers of an evaluation are those of their definitions."""

from __future__ import annotations

import random

import pytest

from pocache.numerics.detection import (
    compute_auc,
    compute_auc_low,
    compute_binomial_score,
    compute_threshold,
    compute_wilson,
    count_jobs,
    count_tokens,
)
from pocache.protocol.errors import MatchingError


def draw(count: int, mean: float, seed: int) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(mean, 1) for _ in range(count)]


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    honest, cheats = draw(40, 0, 1), [*draw(30, 1, 2), 0.0]
    pairs = [(cheat > one) + 0.5 * (cheat == one) for cheat in cheats for one in honest]
    assert compute_auc(honest, cheats) == pytest.approx(sum(pairs) / len(pairs))
    assert compute_auc([1.0, 1.0], [1.0]) == 0.5
    assert compute_auc([0.0], [1.0]) == 1.0
    assert compute_auc_low(honest, cheats) < compute_auc(honest, cheats)
    assert compute_auc_low([0.0] * 10, [1.0] * 10) == pytest.approx(0.85)
    with pytest.raises(MatchingError):
        compute_auc([], cheats)


def test_binomial_scores_are_logarithms_of_tails() -> None:
    assert compute_binomial_score(10, 0.5, 10) == pytest.approx(3.0103, abs=1e-4)
    assert compute_binomial_score(10, 0.5, 0) == 0
    assert compute_binomial_score(2, 0.1, 1) == pytest.approx(0.7212, abs=1e-4)


def test_intervals_hold_the_share_and_end_at_nothing_and_everything() -> None:
    low, high = compute_wilson(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    assert compute_wilson(0, 10)[0] == 0
    assert compute_wilson(10, 10)[1] == 1
    assert compute_wilson(10, 10)[0] > 0.7


def test_a_threshold_is_a_tail_of_what_was_seen() -> None:
    honest = draw(2_000, 0, 3)
    assert 2.6 < compute_threshold(honest) < 4.5
    assert compute_threshold(honest[:10]) == max(honest[:10])


def test_weak_cheats_need_more_jobs_than_strong_ones() -> None:
    nothing = [0.0] * 400
    honest = [*zip(draw(400, 0, 4), nothing, strict=True)]
    strong, weak, none = (
        count_jobs(honest, [*zip(draw(400, shift, 5), nothing, strict=True)]) for shift in (9.0, 2.0, 0.0)
    )
    assert strong == 1
    assert weak is not None
    assert 4 <= weak <= 20
    assert none is None


def test_a_cheat_that_only_its_tokens_show_is_found_by_them() -> None:
    honest = [*zip(draw(400, 0, 4), draw(400, -0.5, 6), strict=True)]
    tokens = [*zip(draw(400, 0, 5), draw(400, 1.5, 7), strict=True)]
    found = count_jobs(honest, tokens)
    assert found is not None
    assert 4 <= found <= 20


def test_a_cheap_models_tokens_need_few_and_the_models_own_never_enough() -> None:
    source = random.Random(6)
    honest = [source.randrange(40) if source.random() < 0.005 else None for _ in range(4_000)]
    spoof = [100_000 if source.random() < 0.6 else None for _ in range(4_000)]
    count, curve = count_tokens(honest, spoof, 4_096)
    assert count is not None
    assert count <= 16
    assert curve[-1] == (count, curve[-1][1])
    assert count_tokens(honest, honest, 4_096)[0] is None
