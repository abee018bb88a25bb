"""The sampler: temperature, top-k, top-p, then Gumbel-max with noise that anyone can draw again.

Owns how a token follows from logits, seed and position, and the score row that lets a verifier hold its own
logits against the delivered token (docs/protocol.md 3.7 and 3.8). Refuses logits that are not finite. What
decides a token after the logits is one float64 division and one addition, correctly rounded everywhere; only
top-p's mass and the logsumexp pass through an exponential. A generator's own score row proves nothing about
its tokens; the verifier's does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocache.numerics.philox import compute_gumbel
from pocache.protocol.commitment import Sampling
from pocache.protocol.errors import EngineError
from pocache.protocol.limits import TOP_P_MICRO_ONE

NOISE_CELLS_MAX = 1 << 16
"""Noise drawn in one go: many positions of a small vocabulary, as one draw is a hundred operations."""

EDGE_LOGITS = 0.125
"""Tokens that so much rounding may move out of top-k or top-p elsewhere: none of them is held against another."""

MASS_MIN = 1e-12
"""Mass below this, or so near to 1, is taken for it: its odds are finite."""

SCORE_ROWS_MAX = 64
"""Rows scored in one go; [64, V] in float64 stays near 100 MB at large vocabularies."""


class Sampler:
    """The tokens of one job, position by position."""

    def __init__(
        self, sampling: Sampling, seed: bytes, vocab_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self._sampling = sampling
        self._seed = seed
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._block_start = 0
        self._block: Tensor | None = None

    def sample(self, logits_V: Tensor, position: int) -> tuple[int, Tensor]:
        """Return the token that follows position p and its score row [3]: logit, logsumexp, gap (here 0)."""
        ranking = _rank(logits_V[None], self._sampling, self._get_noise(position))
        best_B1 = ranking.perturbed_BV.amax(dim=1, keepdim=True)
        token = int((ranking.perturbed_BV == best_B1)[0].nonzero()[0, 0])  # ties: the lowest token
        return token, _score(ranking, torch.tensor([token], device=self._device))[0]

    def score(self, logits_TV: Tensor, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Return the score rows [T, 3] of delivered tokens under these logits: what a verifier recomputes."""
        chunks = []
        for start in range(0, len(tokens), SCORE_ROWS_MAX):
            window = slice(start, start + SCORE_ROWS_MAX)
            noise = self._draw_noise(torch.tensor(positions[window], device=self._device))
            ranking = _rank(logits_TV[window], self._sampling, noise, is_scored=True)
            chunks.append(_score(ranking, torch.tensor(tokens[window], device=self._device)))
        return torch.cat(chunks)

    def _get_noise(self, position: int) -> Tensor | None:
        """Return the noise [1, V] of one position out of a block drawn ahead."""
        if self._sampling.temperature_micro == 0:
            return None
        length = max(1, NOISE_CELLS_MAX // self._vocab_size)
        if self._block is None or not self._block_start <= position < self._block_start + length:
            self._block_start = position
            self._block = self._draw_noise(torch.arange(position, position + length, device=self._device))
            assert self._block is not None
        offset = position - self._block_start
        return self._block[offset : offset + 1]

    def _draw_noise(self, positions_B: Tensor) -> Tensor | None:
        if self._sampling.temperature_micro == 0:
            return None
        return compute_gumbel(self._seed, positions_B, self._vocab_size)


def sample(logits_V: Tensor, sampling: Sampling, seed: bytes, position: int) -> tuple[int, Tensor]:
    """Return one token and its score row [3]; see Sampler for many."""
    return Sampler(sampling, seed, logits_V.shape[-1], logits_V.device).sample(logits_V, position)


def score(logits_V: Tensor, token: int, sampling: Sampling, seed: bytes, position: int) -> Tensor:
    """Return the score row [3] of one delivered token; see Sampler for many."""
    return Sampler(sampling, seed, logits_V.shape[-1], logits_V.device).score(
        logits_V[None], [token], [position]
    )[0]


@dataclass(frozen=True, slots=True)
class _Cut:
    """What top-k and top-p keep: the tokens from ``kept_B1`` on, which are those that both rules keep."""

    kept_B1: Tensor
    """The smallest logit kept."""
    ranked_B1: Tensor
    """The smallest that top-k alone keeps."""
    spare_BV: Tensor | None
    """How much larger the odds of the mass before a token may become until top-p drops it, as a logarithm: negative for a
    token that is dropped. None without top-p."""


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Logits, what temperature and noise make of them, and what is cut off; no cut where all is kept."""

    logits_BV: Tensor
    temperature: float
    noise_BV: Tensor | None
    perturbed_BV: Tensor
    cut: _Cut | None


def _rank(
    logits_BV: Tensor, sampling: Sampling, noise_BV: Tensor | None, *, is_scored: bool = False
) -> _Ranking:
    """``is_scored`` asks for all that a score needs of the cut."""
    logits_BV = logits_BV.to(torch.float64)
    if not bool(torch.isfinite(logits_BV).all()):
        raise EngineError("logits are not finite: no token can be drawn from them")
    if noise_BV is None:  # greedy: top-k and top-p always keep the best
        return _Ranking(logits_BV, 1.0, None, logits_BV, None)
    temperature = sampling.temperature_micro / 1_000_000
    perturbed_BV = logits_BV / temperature + noise_BV
    cut = _compute_cut(logits_BV, sampling, temperature, is_scored=is_scored)
    if cut is not None:
        perturbed_BV = perturbed_BV.masked_fill(logits_BV < cut.kept_B1, float("-inf"))
    return _Ranking(logits_BV, temperature, noise_BV, perturbed_BV, cut)


def _compute_cut(
    logits_BV: Tensor, sampling: Sampling, temperature: float, *, is_scored: bool
) -> _Cut | None:
    """Return what is kept: the k largest logits, then of them the prefix that reaches p; ties stay."""
    vocab_size = logits_BV.shape[1]
    top_k = min(sampling.top_k or vocab_size, vocab_size)
    if sampling.top_p_micro == TOP_P_MICRO_ONE:
        if top_k == vocab_size:
            return None
        ranked_B1 = logits_BV.topk(top_k, dim=1).values[:, -1:]
        return _Cut(ranked_B1, ranked_B1, None)
    share = sampling.top_p_micro / TOP_P_MICRO_ONE
    ordered_BV = logits_BV.sort(dim=1, descending=True)
    sorted_BK = ordered_BV.values[:, :top_k]
    mass_BK = torch.softmax(sorted_BK / temperature, dim=1)
    before_BK = mass_BK.cumsum(dim=1) - mass_BK
    kept_B1 = (before_BK < share).sum(dim=1, keepdim=True).clamp(min=1)
    spare_BV = None
    if is_scored:
        spare_BK = math.log(share / (1 - share)) - torch.logit(before_BK, eps=MASS_MIN)
        # What top-k dropped comes in, if it does, in the place of the last one that it kept.
        spare_BV = (
            spare_BK[:, -1:].expand(logits_BV.shape).scatter(1, ordered_BV.indices[:, :top_k], spare_BK)
        )
    return _Cut(sorted_BK.gather(1, kept_B1 - 1), sorted_BK[:, -1:], spare_BV)


def _score(ranking: _Ranking, tokens_B: Tensor) -> Tensor:
    """Return float32 [B, 3]: the token's logit, the logsumexp, the gap to the best perturbed score (docs/protocol.md 3.8).

    A token that top-k or top-p cut off is first brought back, by the lesser of two ways: its own logit rises to the
    smallest one kept, or the odds of all that lies before it fall until its turn comes. An honest token that
    rounding moved over the edge has a small gap so, however far the next logit lies. And the best is that of the tokens that are kept
    for certain: one that rounding moved inside may have any noise.
    """
    tokens_B1 = tokens_B[:, None]
    logit_B1 = ranking.logits_BV.gather(1, tokens_B1)
    noise_B1: Tensor | float = 0.0 if ranking.noise_BV is None else ranking.noise_BV.gather(1, tokens_B1)
    best_B1 = _mask_edge(ranking).amax(dim=1, keepdim=True)

    def compute_gap(floor_B1: Tensor) -> Tensor:
        """Return the gap of the token once its logit is at least the floor."""
        raised_B1 = torch.maximum(logit_B1, floor_B1)
        perturbed_B1 = raised_B1 / ranking.temperature + noise_B1
        return (raised_B1 - logit_B1) / ranking.temperature + (best_B1 - perturbed_B1).clamp(min=0)

    cut = ranking.cut
    gap_B1 = compute_gap(logit_B1 if cut is None else cut.kept_B1)
    if cut is not None and cut.spare_BV is not None:
        shift_B1 = (-cut.spare_BV.gather(1, tokens_B1)).clamp(min=0)
        gap_B1 = torch.minimum(gap_B1, shift_B1 + compute_gap(cut.ranked_B1))
    total_B1 = ranking.logits_BV.logsumexp(dim=1, keepdim=True)
    return torch.cat((logit_B1, total_B1, gap_B1), dim=1).to(torch.float32)


def _mask_edge(ranking: _Ranking) -> Tensor:
    """Return the perturbed scores of what is kept for certain, minus infinity for the rest."""
    cut = ranking.cut
    if cut is None:
        return ranking.perturbed_BV
    is_edge_BV = ranking.logits_BV < cut.kept_B1 + EDGE_LOGITS
    if cut.spare_BV is not None:
        is_edge_BV = is_edge_BV | (cut.spare_BV < EDGE_LOGITS / ranking.temperature)
    return ranking.perturbed_BV.masked_fill(is_edge_BV, float("-inf"))
