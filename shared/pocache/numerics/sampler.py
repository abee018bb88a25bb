"""The sampler: temperature, top-k, top-p, then Gumbel-max with noise that anyone can draw again.

Owns how a token follows from logits, seed and position, and the score row that lets a verifier hold its own
logits against the delivered token (docs/protocol.md 3.7 and 3.8). Refuses logits that are not finite. What
decides a token after the logits is one float64 division and one addition, correctly rounded everywhere; only
top-p's mass and the logsumexp pass through an exponential. A generator's own score row proves nothing about
its tokens; the verifier's does.
"""

from __future__ import annotations

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
"""Tokens so near above the cut of top-k or top-p may lie below it elsewhere: none of them is held against another."""

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
            ranking = _rank(logits_TV[window], self._sampling, noise)
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
class _Ranking:
    """Logits, what temperature and noise make of them, and the smallest logit that top-k and top-p keep."""

    logits_BV: Tensor
    temperature: float
    noise_BV: Tensor | None
    perturbed_BV: Tensor
    cut_B1: Tensor
    has_cut: bool = False


def _rank(logits_BV: Tensor, sampling: Sampling, noise_BV: Tensor | None) -> _Ranking:
    logits_BV = logits_BV.to(torch.float64)
    if not bool(torch.isfinite(logits_BV).all()):
        raise EngineError("logits are not finite: no token can be drawn from them")
    if noise_BV is None:  # greedy: top-k and top-p always keep the best
        lowest_B1 = logits_BV.amin(dim=1, keepdim=True)
        return _Ranking(logits_BV, 1.0, None, logits_BV, lowest_B1)
    temperature = sampling.temperature_micro / 1_000_000
    cut_B1 = _compute_cut(logits_BV, sampling, temperature)
    perturbed_BV = logits_BV / temperature + noise_BV
    perturbed_BV = perturbed_BV.masked_fill(logits_BV < cut_B1, float("-inf"))
    has_cut = bool(sampling.top_k) or sampling.top_p_micro != TOP_P_MICRO_ONE
    return _Ranking(logits_BV, temperature, noise_BV, perturbed_BV, cut_B1, has_cut)


def _compute_cut(logits_BV: Tensor, sampling: Sampling, temperature: float) -> Tensor:
    """Return the smallest kept logit [B, 1]: the k-th largest, then the prefix that reaches p; ties stay."""
    vocab_size = logits_BV.shape[1]
    top_k = min(sampling.top_k or vocab_size, vocab_size)
    if sampling.top_p_micro == TOP_P_MICRO_ONE:
        if top_k == vocab_size:
            return logits_BV.amin(dim=1, keepdim=True)
        return logits_BV.topk(top_k, dim=1).values[:, -1:]
    sorted_BK = logits_BV.sort(dim=1, descending=True).values[:, :top_k]
    mass_BK = torch.softmax(sorted_BK / temperature, dim=1)
    before_BK = mass_BK.cumsum(dim=1) - mass_BK
    kept_B1 = (before_BK < sampling.top_p_micro / TOP_P_MICRO_ONE).sum(dim=1, keepdim=True).clamp(min=1)
    return sorted_BK.gather(1, kept_B1 - 1)


def _score(ranking: _Ranking, tokens_B: Tensor) -> Tensor:
    """Return float32 [B, 3]: the token's logit, the logsumexp, the gap to the best perturbed score.

    gap = max(0, cut - logit)/T + max(0, best - (max(logit, cut)/T + noise)). A token that top-k or top-p cut
    off is first raised to the cut: an honest token that rounding moved over the edge has a small gap, not an
    infinite one. And the best is that of the tokens that are kept for certain: one that rounding moved inside may have
    any noise.
    """
    tokens_B1 = tokens_B[:, None]
    logit_B1 = ranking.logits_BV.gather(1, tokens_B1)
    perturbed_BV = ranking.perturbed_BV
    if ranking.has_cut:
        is_edge_BV = ranking.logits_BV < ranking.cut_B1 + EDGE_LOGITS
        perturbed_BV = perturbed_BV.masked_fill(is_edge_BV, float("-inf"))
    best_B1 = perturbed_BV.amax(dim=1, keepdim=True)
    raised_B1 = torch.maximum(logit_B1, ranking.cut_B1)
    perturbed_B1 = raised_B1 / ranking.temperature
    if ranking.noise_BV is not None:
        perturbed_B1 = perturbed_B1 + ranking.noise_BV.gather(1, tokens_B1)
    gap_B1 = (raised_B1 - logit_B1) / ranking.temperature + (best_B1 - perturbed_B1).clamp(min=0)
    total_B1 = ranking.logits_BV.logsumexp(dim=1, keepdim=True)
    return torch.cat((logit_B1, total_B1, gap_B1), dim=1).to(torch.float32)
