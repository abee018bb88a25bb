"""The sampler and the sketches of a decoding batch: all slots at once, without waiting for the device.

Owns what the slots of a batch keep on the device: temperatures, Philox keys and the noise drawn ahead, signs of
the sketches. Its tokens, scores and rows are those of ``Sampler`` and ``Sketcher``, slot by slot. It raises nothing
for numbers that are not finite: a flag for each slot says so, and the caller ends that job alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pocache.numerics.philox import compute_gumbel_rows, compute_key
from pocache.numerics.sampler import NOISE_CELLS_MAX
from pocache.numerics.sketch import Sketcher, get_dtype, get_projection
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import RowKind, RowSchema
from pocache.protocol.limits import TOP_P_MICRO_ONE


class SlotSampler:
    """Draws one token for each of the first B slots; see ``Sampler`` for what is drawn."""

    def __init__(self, slot_count: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._window = max(1, NOISE_CELLS_MAX // vocab_size)
        self._samplings = [Sampling()] * slot_count
        self._keys_S2 = torch.zeros(slot_count, 2, dtype=torch.int64, device=device)
        self._is_sampled_S1 = torch.zeros(slot_count, 1, dtype=torch.bool, device=device)
        self._starts = [0] * slot_count
        self._drawn = [False] * slot_count
        self._temperature_S1 = torch.ones(slot_count, 1, dtype=torch.float64, device=device)
        self._noise_SWV: Tensor | None = None
        self._start_S = torch.zeros(slot_count, dtype=torch.int64, device=device)
        self._vocab_V = torch.arange(vocab_size, device=device)
        self._cuts: tuple[tuple[Sampling, ...], tuple[Tensor, Tensor, Tensor]] | None = None

    def join(self, slot: int, sampling: Sampling, seed: bytes) -> None:
        """Give a slot to a job."""
        self._samplings[slot], self._drawn[slot] = sampling, False
        is_sampled = sampling.temperature_micro != 0
        self._temperature_S1[slot] = sampling.temperature_micro / 1_000_000 if is_sampled else 1.0
        self._is_sampled_S1[slot] = is_sampled
        self._keys_S2[slot] = torch.tensor(compute_key(seed))
        if self._noise_SWV is not None:
            self._noise_SWV[slot] = 0.0

    def move(self, source: int, target: int) -> None:
        """Let the job of one slot go on in another."""
        self._samplings[target] = self._samplings[source]
        self._starts[target], self._drawn[target] = self._starts[source], self._drawn[source]
        kept = (self._temperature_S1, self._is_sampled_S1, self._keys_S2, self._start_S, self._noise_SWV)
        for held in kept:
            if held is not None:
                held[target] = held[source]

    def sample(
        self, first: int, logits_BV: Tensor, positions_B: Tensor, positions: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens [B], score rows [B, 3] and which slots had finite logits [B], for slots from ``first`` on.

        ``positions`` are the same numbers as ``positions_B``, known here without asking the device.
        """
        count = len(positions)
        slots = slice(first, first + count)
        logits_BV = logits_BV.to(torch.float64)
        is_sampled = any(one.temperature_micro for one in self._samplings[slots])
        perturbed_BV = logits_BV
        if is_sampled:
            noise_BV = self._get_noise(first, positions_B, positions)
            perturbed_BV = logits_BV / self._temperature_S1[slots] + noise_BV
            perturbed_BV = self._cut(first, logits_BV, perturbed_BV)
        best_B1 = perturbed_BV.amax(dim=1, keepdim=True)
        # Ties: the lowest token. A row that is not finite has no best and takes the last token; its flag says so.
        tokens_B = torch.where(perturbed_BV == best_B1, self._vocab_V, self._vocab_size - 1).amin(dim=1)
        logit_B = logits_BV.gather(1, tokens_B[:, None])[:, 0]
        total_B = logits_BV.logsumexp(dim=1)
        scores_B3 = torch.stack((logit_B, total_B, torch.zeros_like(total_B)), dim=1).to(torch.float32)
        return tokens_B, scores_B3, torch.isfinite(logits_BV).all(dim=1)

    def _get_noise(self, first: int, positions_B: Tensor, positions: Sequence[int]) -> Tensor:
        """Return the noise [B, V] out of blocks drawn ahead; slots that ran out of theirs draw together.

        A vocabulary that fills a block draws every step, and needs nothing of the host for it.
        """
        slots = slice(first, first + len(positions))
        if self._window == 1:
            key0_B, key1_B = self._keys_S2[slots].unbind(1)
            noise_BV = compute_gumbel_rows((key0_B, key1_B), positions_B, self._vocab_size)
            return noise_BV.masked_fill_(~self._is_sampled_S1[slots], 0.0)
        if self._noise_SWV is None:
            self._noise_SWV = torch.zeros(
                len(self._samplings), self._window, self._vocab_size, device=self._device
            )
        stale = [
            (slot, position)
            for slot, position in enumerate(positions, first)
            if self._samplings[slot].temperature_micro
            and not (self._drawn[slot] and self._starts[slot] <= position < self._starts[slot] + self._window)
        ]
        if stale:
            self._draw(stale)
        index_B = torch.arange(len(positions), device=self._device)
        # Greedy slots have drawn nothing: their noise is zero wherever it is read.
        offsets_B = (positions_B - self._start_S[slots]).clamp(0, self._window - 1)
        return self._noise_SWV[slots][index_B, offsets_B]

    def _draw(self, stale: Sequence[tuple[int, int]]) -> None:
        assert self._noise_SWV is not None
        for slot, position in stale:
            self._starts[slot], self._drawn[slot] = position, True
        slots_N, starts_N = torch.tensor(stale).to(self._device, non_blocking=True).unbind(1)
        key0_N, key1_N = self._keys_S2[slots_N].unbind(1)
        ahead_W = torch.arange(self._window, device=self._device)
        noise = compute_gumbel_rows(
            (key0_N.repeat_interleave(self._window), key1_N.repeat_interleave(self._window)),
            (starts_N[:, None] + ahead_W).flatten(),
            self._vocab_size,
        )
        self._noise_SWV[slots_N] = noise.reshape(len(stale), self._window, self._vocab_size)
        self._start_S[slots_N] = starts_N

    def _cut(self, first: int, logits_BV: Tensor, perturbed_BV: Tensor) -> Tensor:
        """Leave out what top-k and top-p do not keep: below the k-th largest, and below the prefix that reaches p."""
        samplings = tuple(self._samplings[first : first + len(logits_BV)])
        if not any(_has_cut(one) for one in samplings):
            return perturbed_BV
        if self._cuts is None or self._cuts[0] != samplings:  # the same jobs as a rule, step after step
            self._cuts = (samplings, self._build_cuts(samplings))
        chosen_C, top_k_C1, top_p_C1 = self._cuts[1]
        sorted_CV = logits_BV[chosen_C].sort(dim=1, descending=True).values
        kept_CV = self._vocab_V[None] < top_k_C1
        scaled_CV = (sorted_CV / self._temperature_S1[first + chosen_C]).masked_fill(~kept_CV, float("-inf"))
        mass_CV = torch.softmax(scaled_CV, dim=1)
        before_CV = mass_CV.cumsum(dim=1) - mass_CV
        # p = 1 keeps all of top-k, as in Sampler: a sum of masses may round to 1 before the last of them.
        kept_CV = kept_CV & ((before_CV < top_p_C1) | (top_p_C1 >= 1.0))
        count_C1 = kept_CV.sum(dim=1, keepdim=True).clamp(min=1)
        cut_C1 = sorted_CV.gather(1, count_C1 - 1)
        result_BV = perturbed_BV.clone()
        result_BV[chosen_C] = perturbed_BV[chosen_C].masked_fill(logits_BV[chosen_C] < cut_C1, float("-inf"))
        return result_BV

    def _build_cuts(self, samplings: Sequence[Sampling]) -> tuple[Tensor, Tensor, Tensor]:
        """Return which rows are cut, and the k [C, 1] and the p [C, 1] of each."""
        cutting = [index for index, one in enumerate(samplings) if _has_cut(one)]
        vocab_size = self._vocab_size
        top_k = [[min(samplings[index].top_k or vocab_size, vocab_size)] for index in cutting]
        top_p = [[samplings[index].top_p_micro / TOP_P_MICRO_ONE] for index in cutting]
        return (
            torch.tensor(cutting, device=self._device),
            torch.tensor(top_k, device=self._device),
            torch.tensor(top_p, dtype=torch.float64, device=self._device),
        )


def _has_cut(sampling: Sampling) -> bool:
    return bool(sampling.temperature_micro and (sampling.top_k or sampling.top_p_micro != TOP_P_MICRO_ONE))


class SlotSketcher:
    """Rows of one position of each of the first B slots, in the order in which a leaf has them."""

    def __init__(
        self,
        schema: RowSchema,
        groups: Sequence[tuple[int, Sequence[int]]],
        slot_count: int,
        device: torch.device,
    ) -> None:
        """``groups`` lists (vector width, rows) of vectors that come together; row 2·layer_count is the hidden state."""
        self._schema = schema
        self._groups = [(width, tuple(rows)) for width, rows in groups]
        self._device = device
        self._is_raw = schema.encoding == "raw"
        self._keys = [(kind, layer) for layer in range(schema.layer_count) for kind in (RowKind.K, RowKind.V)]
        self._keys.append((RowKind.HIDDEN, 0))
        self._signs = [
            torch.empty(slot_count, len(rows), width, device=device) if not self._is_raw else None
            for width, rows in self._groups
        ]
        order = [row for _, rows in self._groups for row in rows]
        self._order = None if order == sorted(order) else [order.index(row) for row in range(len(order))]

    def join(self, slot: int, sketcher: Sketcher) -> None:
        """Give a slot to a job."""
        for signs_SRD, (width, rows) in zip(self._signs, self._groups, strict=True):
            if signs_SRD is not None:
                signs = [sketcher.get_signs(*self._keys[row], width) for row in rows]
                signs_SRD[slot] = torch.stack(signs)

    def move(self, source: int, target: int) -> None:
        """Let the job of one slot go on in another."""
        for signs_SRD in self._signs:
            if signs_SRD is not None:
                signs_SRD[target] = signs_SRD[source]

    def sketch(self, first: int, vectors: Sequence[Tensor]) -> Tensor:
        """Return the rows [B, all floats of a leaf's rows] of vectors [B, rows, width], one tensor per group."""
        parts = []
        for signs_SRD, vectors_BRD, (width, _) in zip(self._signs, vectors, self._groups, strict=True):
            if signs_SRD is None:
                parts.append(vectors_BRD)
                continue
            signs_BRD = signs_SRD[first : first + len(vectors_BRD)]
            projection_DW = get_projection(width, self._schema.key_width, self._device)
            parts.append((vectors_BRD.float() * signs_BRD) @ projection_DW)
        if self._order is not None:
            rows = [row for part in parts for row in part.unbind(1)]
            return torch.cat([rows[index] for index in self._order], dim=1).to(get_dtype(self._schema))
        return torch.cat([part.flatten(1) for part in parts], dim=1).to(get_dtype(self._schema))
