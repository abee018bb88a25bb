"""Sketches: vectors cut down to k columns whose relative L2 distances survive (Johnson-Lindenstrauss).

Owns the signs of a job and the fixed public projection (docs/protocol.md 3.6). Refuses vectors that
are not finite, and rows of another width than the schema's. Sketches are linear: partial sketches of
tensor-parallel ranks may be added before they are rounded. The signs are public with the job's seed: a sketch
hides nothing, and whoever knows the seed can find two vectors with one sketch; the beacon's positions and the
model itself stand against that.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pocache.protocol.encoding import FloatFormat, RowKind, RowSchema
from pocache.protocol.errors import EngineError

_SIGNS_DOMAIN = b"pocache/sketch/v1"
_PROJECTION_DOMAIN = b"pocache/projection/v1"


class Sketcher:
    """One job's rows: signs from (network, seed, job), row kind and layer, then the public projection."""

    def __init__(
        self,
        network: bytes,
        seed: bytes,
        job_id: bytes,
        schema: RowSchema,
        device: torch.device | str = "cpu",
    ) -> None:
        self._prefix = b"".join(_lp(part) for part in (_SIGNS_DOMAIN, network, seed, job_id))
        self._schema = schema
        self._device = torch.device(device)
        self._dtype = get_dtype(schema)
        self._signs: dict[tuple[RowKind, int, int], Tensor] = {}

    def sketch(self, kind: RowKind, layer: int, vectors_TD: Tensor) -> Tensor:
        """Return the rows [T, width] of vectors [T, D]: (x ∘ signs) · P / √k in float32, then rounded.

        The raw encoding returns the vectors themselves in that format. EngineError when a result is not
        finite.
        """
        width = _get_width(self._schema, kind)
        if self._schema.encoding == "raw":
            if vectors_TD.shape[-1] != width:
                raise EngineError(f"a raw {kind.name} row has {width} floats, not {vectors_TD.shape[-1]}")
            rows_TW = vectors_TD.to(self._dtype)
        else:
            signs_D = self.get_signs(kind, layer, vectors_TD.shape[-1])
            projection_DW = get_projection(vectors_TD.shape[-1], width, self._device)
            rows_TW = ((vectors_TD.float() * signs_D) @ projection_DW).to(self._dtype)
        if not bool(torch.isfinite(rows_TW).all()):
            raise EngineError(f"{kind.name} of layer {layer} is not finite and cannot be committed")
        return rows_TW

    def encode(self, kind: RowKind, layer: int, vectors_TD: Tensor) -> list[bytes]:
        """Return the rows of vectors [T, D] as T little-endian byte strings."""
        rows_TW = self.sketch(kind, layer, vectors_TD)
        data, size = rows_TW.cpu().contiguous().numpy().tobytes(), rows_TW.shape[1] * rows_TW.element_size()
        return [data[start : start + size] for start in range(0, len(data), size)]

    def get_signs(self, kind: RowKind, layer: int, width: int) -> Tensor:
        """Return the signs [D] of one kind and layer, ±1 in float32."""
        key = (kind, layer, width)
        if key not in self._signs:
            label = self._prefix + int(kind).to_bytes(1, "big") + layer.to_bytes(2, "big")
            self._signs[key] = _expand_signs(label, width).to(self._device)
        return self._signs[key]


def get_dtype(schema: RowSchema) -> torch.dtype:
    """Return the torch dtype of a schema's rows."""
    return torch.float16 if schema.float_format is FloatFormat.F16 else torch.float32


@lru_cache(maxsize=64)
def get_projection(width: int, columns: int, device: torch.device) -> Tensor:
    """Return the projection [D, k] of ±1/√k: SHAKE256("pocache/projection/v1" ‖ u32 D ‖ u32 k)."""
    label = _PROJECTION_DOMAIN + width.to_bytes(4, "big") + columns.to_bytes(4, "big")
    signs = _expand_signs(label, width * columns).reshape(width, columns)
    return (signs / math.sqrt(columns)).to(device)


def _expand_signs(label: bytes, count: int) -> Tensor:
    """Return ``count`` signs, one per bit of SHAKE256(label), lowest bit first: 0 is +1, 1 is -1."""
    octets = np.frombuffer(hashlib.shake_256(label).digest((count + 7) // 8), np.uint8)
    bits = np.unpackbits(octets, count=count, bitorder="little")
    return torch.from_numpy(1.0 - 2.0 * bits.astype(np.float32))


def _get_width(schema: RowSchema, kind: RowKind) -> int:
    widths = {RowKind.K: schema.key_width, RowKind.V: schema.value_width, RowKind.HIDDEN: schema.hidden_width}
    assert kind in widths, "only vectors are sketched"
    return widths[kind]


def _lp(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part
