"""Capture: rows are taken from the KV cache as it is written, and a pass ends at its corner.

Owns the cache class that transformers writes into and the recorder that turns what was written into leaves.
Refuses a layer that writes twice in one pass, positions without all their rows, and whatever is not finite.
It sees what the attention reads: keys after the rotary embedding, in the cache's own dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from pocache.numerics.sketch import Sketcher
from pocache.protocol.encoding import RowKey, RowKind, RowSchema, encode_leaf
from pocache.protocol.errors import EngineError

Visitor = Callable[[int, Tensor, Tensor], None]
"""Called as visitor(layer, key_TD, value_TD) when a layer has written T rows of KV heads x head width."""

Storage = Callable[[Tensor], Tensor]
"""What a cache's own format makes of a tensor before it is stored; an honest engine has none."""


class CornerReachedError(Exception):
    """Ends the model's pass once the corner's last layer has been written; never leaves the engine."""


class CapturingCache(DynamicCache):
    """A dynamic cache that shows what each layer has written to a visitor, and may then end the pass."""

    def __init__(
        self,
        config: PretrainedConfig,
        visitor: Visitor,
        *,
        layer_max: int | None = None,
        storage: Storage | None = None,
    ) -> None:
        super().__init__(config=config)
        self._visitor = visitor
        self._layer_max = layer_max
        self._storage = storage

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write, visit what the attention reads of the new positions, stop behind the corner's last layer."""
        if self._storage is not None:
            key_states, value_states = self._storage(key_states), self._storage(value_states)
        key_BHTD, value_BHTD = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        count = key_states.shape[-2]
        self._visitor(layer_idx, _flatten_heads(key_BHTD, count), _flatten_heads(value_BHTD, count))
        if layer_idx == self._layer_max:
            raise CornerReachedError
        return key_BHTD, value_BHTD


class LeafRecorder:
    """Gathers the rows of one job's consecutive passes and encodes each position once it is complete."""

    def __init__(self, sketcher: Sketcher, schema: RowSchema) -> None:
        self.leaves: list[bytes] = []
        self._sketcher = sketcher
        self._schema = schema
        self._rows: dict[RowKey, list[bytes]] = {}

    def visit(self, layer: int, key_TD: Tensor, value_TD: Tensor) -> None:
        """Take the rows that one layer has written; the visitor of a CapturingCache."""
        for kind, vectors_TD in ((RowKind.K, key_TD), (RowKind.V, value_TD)):
            if (kind, layer) in self._rows:
                raise EngineError(
                    f"layer {layer} wrote its cache twice in one pass: this model cannot be captured"
                )
            self._rows[kind, layer] = self._sketcher.encode(kind, layer, vectors_TD)

    def finish_pass(self, hidden_TD: Tensor | None, scores_S3: Tensor | None) -> None:
        """Encode the positions of this pass; ``scores_S3`` belongs to its last S positions.

        EngineError when a layer of the schema wrote nothing, or when layers disagree about the number of
        positions.
        """
        rows, self._rows = self._rows, {}
        if self._schema.has_hidden:
            assert hidden_TD is not None, "a schema with a hidden row is captured at full depth"
            rows[RowKind.HIDDEN, 0] = self._sketcher.encode(RowKind.HIDDEN, 0, hidden_TD)
        keys = self._schema.row_keys(scored=False)
        counts = {len(rows.get(key, ())) for key in keys}
        if len(counts) != 1 or 0 in counts or len(rows) != len(keys):
            raise EngineError("the layers of this model do not each write every position to the cache")
        count = counts.pop()
        score_rows: list[bytes] = []
        if self._schema.has_scores and scores_S3 is not None:
            score_rows = [row.tobytes() for row in scores_S3.to(torch.float32).cpu().numpy().astype("<f4")]
        for index in range(count):
            leaf_rows = {key: values[index] for key, values in rows.items()}
            if (scored := index - (count - len(score_rows))) >= 0:
                leaf_rows[RowKind.SCORES, 0] = score_rows[scored]
            self.leaves.append(encode_leaf(self._schema, len(self.leaves), leaf_rows))


def _flatten_heads(states_BHTD: Tensor, count: int) -> Tensor:
    """Return the last T positions of batch row 0 as [T, heads x head width]."""
    return states_BHTD[0, :, -count:].transpose(0, 1).reshape(count, -1)
