"""Capture: rows are taken as attention reads them, sketched on the device, and joined into leaves on the host.

Owns the recorder of a prefill over one or many jobs, the rows that a job gathers over its life, and the cache class
for models that decode one job at a time. Refuses a layer that writes twice in one pass, layers that leave positions
out, and whatever is not finite. Keys are seen after the rotary embedding, in the cache's own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from pocache.engine.attention import CornerReachedError, Storage, Visitor, flatten_heads
from pocache.engine.port import GenerateRequest, VerifyRequest
from pocache.numerics.sketch import Sketcher, get_dtype, get_projection
from pocache.protocol.encoding import SCORE_FORMAT, SCORE_WIDTH, RowKind, RowSchema, join_leaves
from pocache.protocol.errors import EncodingError, EngineError

SCORE_BYTES = SCORE_FORMAT.size * SCORE_WIDTH


class CapturingCache(DynamicCache):
    """A dynamic cache that shows what each layer has written to a visitor, which may then end the pass."""

    def __init__(
        self, config: PretrainedConfig, visitor: Visitor | None = None, *, storage: Storage | None = None
    ) -> None:
        super().__init__(config=config)
        self.visitor = visitor
        self._storage = storage

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write, and show what the attention reads of the new positions."""
        if self._storage is not None:
            key_states, value_states = self._storage(key_states), self._storage(value_states)
        key_BHTD, value_BHTD = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        count = key_states.shape[-2]
        if self.visitor is not None:
            key_TD, value_TD = (
                flatten_heads(key_BHTD[:, :, -count:]),
                flatten_heads(value_BHTD[:, :, -count:]),
            )
            if not self.visitor(layer_idx, key_TD, value_TD):
                raise CornerReachedError
        return key_BHTD, value_BHTD


@dataclass(frozen=True, slots=True)
class PackedJob:
    """One segment of a pass: whose signs, how many tokens, and the schema of what is wanted of it."""

    sketcher: Sketcher
    token_count: int
    schema: RowSchema


class PackRecorder:
    """The rows of the jobs of one pass, in the order of their segments, which must not grow deeper.

    A layer's K and V of all jobs that reach it are sketched in two products and stay on the device until the end.
    """

    def __init__(self, jobs: Sequence[PackedJob], device: torch.device) -> None:
        depths = [job.schema.layer_count for job in jobs]
        assert depths == sorted(depths, reverse=True), "segments are sorted by depth, deepest first"
        self._jobs = jobs
        self._device = device
        self._ends: list[int] = []
        for job in jobs:
            self._ends.append((self._ends[-1] if self._ends else 0) + job.token_count)
        self._index_T = torch.arange(len(jobs)).repeat_interleave(
            torch.tensor([job.token_count for job in jobs])
        )
        self._index_T = self._index_T.to(device)
        self._rows: dict[tuple[int, RowKind], Tensor] = {}
        self._is_finished_early = not any(job.schema.has_hidden for job in jobs)

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Return [start, end) of each job in the pass."""
        return list(zip([0, *self._ends[:-1]], self._ends, strict=True))

    def visit(self, layer: int, key_TD: Tensor, value_TD: Tensor) -> bool:
        """Take one layer's rows; return whether any job wants more."""
        if (layer, RowKind.K) in self._rows:
            raise EngineError(
                f"layer {layer} wrote its cache twice in one pass: this model cannot be captured"
            )
        if len(key_TD) != self._ends[-1] or len(value_TD) != self._ends[-1]:
            raise EngineError("the layers of this model do not each write every position to the cache")
        count = sum(job.schema.layer_count > layer for job in self._jobs)
        for kind, vectors_TD in ((RowKind.K, key_TD), (RowKind.V, value_TD)):
            self._rows[layer, kind] = self._sketch(kind, layer, vectors_TD, count)
        return not (self._is_finished_early and layer + 1 >= self._jobs[0].schema.layer_count)

    def finish(self, hidden_TD: Tensor | None) -> list[np.ndarray[Any, Any]]:
        """Return each job's rows as bytes [T, bytes of a leaf's rows]. EngineError when rows are missing or not finite."""
        if any(job.schema.has_hidden for job in self._jobs):
            assert hidden_TD is not None, "a schema with a hidden row is captured at full depth"
            count = sum(job.schema.has_hidden for job in self._jobs)
            self._rows[0, RowKind.HIDDEN] = self._sketch(RowKind.HIDDEN, 0, hidden_TD, count)
        return [
            self._join(job, start, end) for job, (start, end) in zip(self._jobs, self.segments, strict=True)
        ]

    def _sketch(self, kind: RowKind, layer: int, vectors_TD: Tensor, job_count: int) -> Tensor:
        """Return the rows [T, width] of the first jobs' positions."""
        schema = self._jobs[0].schema
        vectors_TD = vectors_TD[: self._ends[job_count - 1]]
        width = vectors_TD.shape[1]
        if schema.encoding == "raw":
            expected = {
                RowKind.K: schema.key_width,
                RowKind.V: schema.value_width,
                RowKind.HIDDEN: schema.hidden_width,
            }
            if width != expected[kind]:
                raise EngineError(f"a raw {kind.name} row has {expected[kind]} floats, not {width}")
            return vectors_TD.to(get_dtype(schema))
        signs_JD = torch.stack([job.sketcher.get_signs(kind, layer, width) for job in self._jobs[:job_count]])
        signs_TD = signs_JD[0] if job_count == 1 else signs_JD[self._index_T[: len(vectors_TD)]]
        projection_DW = get_projection(width, schema.key_width, self._device)
        return ((vectors_TD.float() * signs_TD) @ projection_DW).to(get_dtype(schema))

    def _join(self, job: PackedJob, start: int, end: int) -> np.ndarray[Any, Any]:
        schema = job.schema
        keys = [(layer, kind) for layer in range(schema.layer_count) for kind in (RowKind.K, RowKind.V)]
        if schema.has_hidden:
            keys.append((0, RowKind.HIDDEN))
        if any(key not in self._rows for key in keys):
            raise EngineError("the layers of this model do not each write every position to the cache")
        rows_TF = torch.cat([self._rows[key][start:end] for key in keys], dim=1)
        if not bool(torch.isfinite(rows_TF).all()):
            raise EngineError("rows are not finite and cannot be committed")
        return to_bytes(rows_TF)


@dataclass(slots=True)
class LeafRows:
    """What one job's passes left behind: row bytes of consecutive positions, and the score rows of the last ones."""

    schema: RowSchema
    bodies: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """Each [T, bytes of a leaf's rows]."""
    scores: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """Each [T, SCORE_BYTES]."""

    def encode(self, leaf_count: int, scored_from: int) -> list[bytes]:
        """Return the first leaves; those from ``scored_from`` on carry the score rows. EngineError."""
        bodies = np.concatenate(self.bodies)[:leaf_count].tobytes()
        scored_count = max(0, leaf_count - scored_from) if self.schema.has_scores else 0
        scores = np.concatenate(self.scores)[:scored_count].tobytes() if scored_count else b""
        try:
            return join_leaves(self.schema, leaf_count, bodies, scores, scored_from=scored_from)
        except EncodingError as error:
            raise EngineError(
                f"rows are not finite or not whole, and cannot be committed: {error}"
            ) from error


def build_sketcher(
    request: GenerateRequest | VerifyRequest, schema: RowSchema, device: torch.device
) -> Sketcher:
    """Return the sketcher of one job."""
    return Sketcher(request.network, request.seed, request.job_id, schema, device)


def to_bytes(rows_TF: Tensor) -> np.ndarray[Any, Any]:
    """Return rows of floats as little-endian bytes [T, bytes] on the host."""
    array: np.ndarray[Any, Any] = rows_TF.contiguous().cpu().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8)
