"""Tokens follow from logits, seed and position; score rows say how far a delivered token is from the best."""

from __future__ import annotations

import math

import pytest
import torch

from pocache.numerics.philox import compute_gumbel
from pocache.numerics.sampler import Sampler, sample, score
from pocache.protocol.commitment import Sampling
from pocache.protocol.errors import EngineError

SEED = bytes(32)
PLAIN = Sampling(temperature_micro=1_000_000)
VOCAB_SIZE = 50


def draw_logits(seed: int = 0, count: int | None = None) -> torch.Tensor:
    shape = (VOCAB_SIZE,) if count is None else (count, VOCAB_SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def test_greedy_takes_the_best_and_the_lowest_of_equals() -> None:
    token, scores = sample(torch.tensor([1.0, 3.0, 3.0, 2.0]), Sampling(), SEED, 0)
    assert token == 1
    assert scores.tolist() == pytest.approx([3.0, math.log(sum(map(math.exp, (1, 3, 3, 2)))), 0.0])


def test_gumbel_max_draws_the_softmax_distribution() -> None:
    """20,000 positions: each share lies within five standard errors of its probability."""
    count, logits = 20_000, torch.tensor([0.0, 1.0, 2.0, -1.0])
    noise = compute_gumbel(SEED, torch.arange(count), 4)
    shares = torch.bincount((logits + noise).argmax(dim=1), minlength=4) / count
    expected = torch.softmax(logits, dim=0)
    assert bool(((shares - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all())


def test_the_sampler_follows_its_noise() -> None:
    logits = draw_logits()
    sampler = Sampler(PLAIN, SEED, VOCAB_SIZE)
    for position in (0, 3, 5_000, 2):
        expected = int((logits + compute_gumbel(SEED, torch.tensor([position]), VOCAB_SIZE)[0]).argmax())
        assert sampler.sample(logits, position)[0] == expected


def test_seed_and_position_change_the_token() -> None:
    logits = torch.zeros(VOCAB_SIZE)
    tokens = {
        sample(logits, PLAIN, bytes([seed]) * 32, position)[0] for seed in (1, 2) for position in range(8)
    }
    assert len(tokens) > 8


def test_temperature_divides_the_logits() -> None:
    logits, cold = draw_logits(), Sampling(temperature_micro=1_000)
    assert {sample(logits, cold, SEED, position)[0] for position in range(40)} == {int(logits.argmax())}


def test_top_k_and_top_p_keep_the_best_alone() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])
    hot = 5_000_000

    def seen(sampling: Sampling) -> set[int]:
        sampler = Sampler(sampling, SEED, 5)
        return {sampler.sample(logits, position)[0] for position in range(300)}

    assert seen(Sampling(hot)) == {0, 1, 2, 3, 4}
    assert seen(Sampling(hot, top_k=2)) == {0, 1}
    assert seen(Sampling(hot, top_k=99)) == {0, 1, 2, 3, 4}
    assert seen(Sampling(1_000_000, top_p_micro=700_000)) == {0, 1}  # .64, .24, .09, ...
    assert seen(Sampling(hot, top_p_micro=1)) == {0}
    assert seen(Sampling(1_000_000, top_k=2, top_p_micro=700_000)) == {0}  # .73 of what top-k kept


def test_a_delivered_token_scores_as_when_it_was_sampled() -> None:
    logits = draw_logits(1)
    for sampling in (Sampling(), PLAIN, Sampling(800_000, top_k=5, top_p_micro=900_000)):
        token, scores = sample(logits, sampling, SEED, 9)
        assert torch.equal(score(logits, token, sampling, SEED, 9), scores)
        assert float(scores[2]) == 0.0


def test_the_gap_is_the_distance_to_the_best_perturbed_score() -> None:
    logits = draw_logits(2)
    perturbed = logits.double() / 0.5 + compute_gumbel(SEED, torch.tensor([4]), VOCAB_SIZE)[0]
    for token in (0, 17):
        row = score(logits, token, Sampling(500_000), SEED, 4)
        assert float(row[2]) == pytest.approx(float(perturbed.max() - perturbed[token]), rel=1e-6)
        assert float(row[0]) == float(logits[token])


def test_a_token_just_below_the_cut_has_a_small_gap() -> None:
    """Rounding may move an honest token over the edge of top-k: its gap grows with the distance."""
    sampling = Sampling(1_000_000, top_k=1)
    assert float(score(torch.tensor([1.0, 1.0 - 1e-5]), 1, sampling, SEED, 0)[2]) < 10.0
    near, far = (
        float(score(torch.tensor([1.0, low]), 1, sampling, SEED, 0)[2]) for low in (1.0 - 1e-5, -6.0)
    )
    assert far == pytest.approx(near + 7.0, abs=1e-3)
    assert math.isfinite(far)


@pytest.mark.parametrize("kept_count", [2, 3, 4])
@pytest.mark.parametrize("top_k", [0, 5])
def test_rounding_at_the_edge_of_top_p_is_a_small_gap_however_far_the_next_logit(
    kept_count: int, top_k: int
) -> None:
    """The mass reaches p just where one more token is kept or not, and tokens lie a whole logit apart."""
    logits = -torch.arange(VOCAB_SIZE, dtype=torch.float64)
    mass = torch.softmax(logits[: top_k or VOCAB_SIZE], dim=0).cumsum(dim=0)
    sampling = Sampling(1_000_000, top_k=top_k, top_p_micro=round(float(mass[kept_count - 1]) * 1_000_000))
    sampler, count = Sampler(sampling, SEED, VOCAB_SIZE), 1_500
    rounded = logits + 0.01 * torch.randn((count, VOCAB_SIZE), generator=torch.Generator().manual_seed(0))
    tokens = [sampler.sample(rounded[position], position)[0] for position in range(count)]
    gaps = sampler.score(logits.expand(count, -1), tokens, range(count))[:, 2]
    assert max(tokens) == kept_count, "the token beyond the edge was drawn"
    assert float(gaps.max()) < 0.1


def test_the_gap_of_a_token_far_below_the_mass_grows_with_what_lies_before_it() -> None:
    logits = -torch.arange(VOCAB_SIZE, dtype=torch.float64)
    sampler = Sampler(Sampling(1_000_000, top_p_micro=900_000), SEED, VOCAB_SIZE)
    count = 200
    gaps = [
        float(sampler.score(logits.expand(count, -1), [token] * count, range(count))[:, 2].min())
        for token in (3, 5, 8, 12)
    ]
    assert gaps == sorted(gaps)
    assert gaps[0] > 0.5
    assert gaps[-1] > 5


def test_many_scores_equal_single_ones() -> None:
    logits, tokens, positions = (
        draw_logits(3, 70),
        [index % VOCAB_SIZE for index in range(70)],
        list(range(5, 75)),
    )
    sampling = Sampling(900_000, top_k=20)
    rows = Sampler(sampling, SEED, VOCAB_SIZE).score(logits, tokens, positions)
    for index in (0, 63, 64, 69):
        assert torch.equal(rows[index], score(logits[index], tokens[index], sampling, SEED, positions[index]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), PLAIN])
def test_logits_that_are_not_finite_are_refused(value: float, sampling: Sampling) -> None:
    logits = draw_logits()
    logits[3] = value
    with pytest.raises(EngineError, match="not finite"):
        sample(logits, sampling, SEED, 0)
    with pytest.raises(EngineError, match="not finite"):
        score(logits, 0, sampling, SEED, 0)
