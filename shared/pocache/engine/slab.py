"""The KV memory of a decoding batch: slots in one tensor per shape, read in place and bounded in tokens.

Active jobs hold slots 0 to B-1 without a gap, so a step reads views and copies nothing; a job that leaves is
replaced by the last one. A step's new rows are kept as they were written: what is committed is what the attention
reads. Refuses more tokens than it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from pocache.engine.attention import Storage
from pocache.engine.port import GenerateRequest
from pocache.protocol.errors import EngineError

KV_TOKENS_MAX = 65_536
"""Tokens of KV memory in one session: 8 GB at an 8B model's 128 KB a token."""

GRAIN_TOKENS = 64
"""Capacity grows in these steps, so that jobs of similar length share one allocation."""


@dataclass(frozen=True, slots=True)
class KvShape:
    """What each layer writes: (heads, head width) of K and of V, layer by layer."""

    layers: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    def groups(self) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
        """Return the distinct shapes and the rows of each; row 2l is K of layer l, row 2l + 1 its V."""
        rows: dict[tuple[int, int], list[int]] = {}
        for layer, pair in enumerate(self.layers):
            for offset, shape in enumerate(pair):
                rows.setdefault(shape, []).append(2 * layer + offset)
        return [(shape, tuple(found)) for shape, found in rows.items()]


class KvSlab:
    """Keys and values of up to ``slot_count`` jobs of up to ``token_count`` tokens each."""

    def __init__(
        self, shape: KvShape, slot_count: int, token_count: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.slot_count = slot_count
        self.token_count = token_count
        self.groups: list[Tensor] = []
        self.rows = [rows for _, rows in shape.groups()]
        self._places: dict[int, tuple[int, int]] = {}
        for group, ((heads, width), rows) in enumerate(shape.groups()):
            self.groups.append(
                torch.zeros(len(rows), slot_count, heads, token_count, width, dtype=dtype, device=device)
            )
            self._places |= {row: (group, index) for index, row in enumerate(rows)}

    def get(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values [S, H, T, D] of one layer, in place."""
        (key_group, key), (value_group, value) = self._places[2 * layer], self._places[2 * layer + 1]
        return self.groups[key_group][key], self.groups[value_group][value]

    def write(self, layer: int, slot: int, key_TD: Tensor, value_TD: Tensor) -> None:
        """Write a prompt's T positions into a slot, from position 0, and zeros behind them.

        Masked positions are multiplied by zero, and what a failed job left there may be NaN.
        """
        for states_SHTD, new_TD in zip(self.get(layer), (key_TD, value_TD), strict=True):
            slot_HTD, count = states_SHTD[slot], len(new_TD)
            slot_HTD[:, :count] = new_TD.reshape(count, slot_HTD.shape[0], -1).transpose(0, 1)
            slot_HTD[:, count:] = 0

    def move(self, source: int, target: int) -> None:
        """Let slot ``source`` replace ``target``, to its end: what was behind the target's tokens may be NaN."""
        for group in self.groups:
            group[:, target] = group[:, source]

    def take_over(self, other: KvSlab, slot_count: int, token_count: int) -> None:
        """Copy the first slots of another slab of the same shape."""
        for group, theirs in zip(self.groups, other.groups, strict=True):
            group[:, :slot_count, :, :token_count] = theirs[:, :slot_count, :, :token_count]


class SlabCache(Cache):
    """The view of slots [first, first + B) that a decoding step of transformers writes into and reads."""

    def __init__(
        self, slab: KvSlab, first: int, positions_B: Tensor, kv_count: int, storage: Storage | None
    ) -> None:
        super().__init__(layers=[])
        self._slab = slab
        self._slots = slice(first, first + len(positions_B))
        self._index_B = torch.arange(len(positions_B), device=positions_B.device)
        self._positions_B = positions_B
        self._kv_count = kv_count
        self._storage = storage
        self._written: dict[int, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write each slot's new token at its own position; return the keys and values of all positions."""
        views = []
        pair = zip(self._slab.get(layer_idx), (key_states, value_states), strict=True)
        for offset, (states_SHTD, new_BH1D) in enumerate(pair):
            view_BHTD = states_SHTD[self._slots]
            stored_BHD = (new_BH1D if self._storage is None else self._storage(new_BH1D))[:, :, 0]
            view_BHTD[self._index_B, :, self._positions_B] = stored_BHD
            self._written[2 * layer_idx + offset] = stored_BHD
            views.append(view_BHTD[:, :, : self._kv_count])
        return views[0], views[1]

    def get_written(self) -> list[Tensor]:
        """Return what this step wrote, [B, rows, heads x head width] for each group of rows of one shape."""
        return [
            torch.stack([self._written[row] for row in rows], dim=1).flatten(2) for rows in self._slab.rows
        ]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions before this step in the longest slot."""
        return self._kv_count - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the width of the view and its offset: keys begin at position zero."""
        return self._kv_count, 0


def compute_capacity(token_counts: Sequence[int], slots_max: int, tokens_max: int) -> tuple[int, int] | None:
    """Return (slots, tokens each) that hold jobs of these lengths within ``tokens_max``; None when none do."""
    longest = -(-max(token_counts) // GRAIN_TOKENS) * GRAIN_TOKENS
    for token_count in (longest, max(token_counts)):
        slot_count = min(slots_max, tokens_max // token_count)
        if slot_count >= len(token_counts):
            return slot_count, token_count
    return None


def verify_kv_tokens(request: GenerateRequest, tokens_max: int) -> None:
    """Refuse a job that is larger than the KV memory of a session: EngineError."""
    token_count = len(request.prompt) + request.max_tokens
    if token_count > tokens_max:
        raise EngineError(f"a job of {token_count} tokens exceeds the KV memory of {tokens_max}")
