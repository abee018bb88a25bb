"""Context sampling: which vectors a generator ships along with its tokens, by the tokens alone (docs/protocol.md 16).

Owns the paper's deterministic token sampler and layer sampler, the collection of what is due, and the user's check that
just that was shipped. Refuses vectors missing, extra, out of order or malformed. The generator can foresee every choice,
and a cheat may compute the due vectors honestly and nothing else: this is a service to the user while tokens stream, and
never counts as an audit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from pocache.protocol.challenge import DeterministicStream, draw_subset, is_drawn
from pocache.protocol.encoding import RowKind, RowSchema, decode_leaf, is_finite, lp, pack_tokens
from pocache.protocol.errors import EncodingError, OpeningError
from pocache.protocol.ids import Digest
from pocache.protocol.limits import LAYER_COUNT_MAX, LEAF_COUNT_MAX
from pocache.protocol.open_mode import OpenIndex, OpenSample, OpenVector

CONTEXT_DOMAIN: Final = b"pocache/v1/context"
_HEADER: Final = struct.Struct(">IH")


@dataclass(frozen=True, slots=True)
class ContextRule:
    """How much is shipped: the share of output positions, and how many layers of each."""

    share: tuple[int, int] = (1, 16)
    layer_count: int = 1

    def __post_init__(self) -> None:
        numerator, denominator = self.share
        if not 0 < numerator <= denominator < 2**32:
            raise EncodingError(f"a share of {numerator}/{denominator} is not in 0 … 1")
        if not 1 <= self.layer_count <= LAYER_COUNT_MAX:
            raise EncodingError(
                f"{self.layer_count} layers of each position are not in 1 … {LAYER_COUNT_MAX}"
            )


class ContextSampler:
    """Both samplers, fed token by token as they are known, so that the cost does not grow with the context."""

    def __init__(self, rule: ContextRule, layer_count: int) -> None:
        if rule.layer_count > layer_count:
            raise EncodingError(
                f"{rule.layer_count} layers of each position, of a model that has {layer_count}"
            )
        self._rule = rule
        self._layer_count = layer_count
        self._state = sha256(lp(CONTEXT_DOMAIN))

    def feed(self, token: int, *, is_last: bool = False) -> tuple[int, ...]:
        """Take the token of the next position; return the layers that are due of that position, ascending.

        seed = SHA256(lp("pocache/v1/context") ‖ the tokens of positions 0 … p as u32 little-endian). Of its stream, first
        the token sampler: below(denominator) < numerator; then the layers: a subset by Floyd. At the
        last leaf the token sampler is drawn and passed over, so that no output is without a sample.
        """
        self._state.update(pack_tokens([token]))
        stream = DeterministicStream(Digest(self._state.digest()))
        if not is_drawn(stream, *self._rule.share) and not is_last:
            return ()
        return draw_subset(stream, self._layer_count, self._rule.layer_count)


def compute_due(
    tokens: Sequence[int], prompt_count: int, layer_count: int, rule: ContextRule
) -> tuple[OpenIndex, ...]:
    """Return every index that is due of the output's positions, ascending; the last leaf always has some."""
    leaf_count = len(tokens) - 1
    if not 1 <= prompt_count <= leaf_count or leaf_count > LEAF_COUNT_MAX:
        raise EncodingError(f"{len(tokens)} tokens with {prompt_count} of the prompt have no output")
    sampler = ContextSampler(rule, layer_count)
    due: list[OpenIndex] = []
    for position, token in enumerate(tokens[:-1]):
        layers = sampler.feed(token, is_last=position == leaf_count - 1)
        if position >= prompt_count - 1:
            due += (OpenIndex(position, layer) for layer in layers)
    return tuple(due)


def collect_samples(
    schema: RowSchema, leaves: Sequence[bytes], prompt_count: int, due: Sequence[OpenIndex]
) -> tuple[OpenSample, ...]:
    """Return the vectors at the due indices of a generator's leaves."""
    samples = []
    for index in due:
        scored = index.position >= prompt_count - 1
        rows = decode_leaf(schema, index.position, scored, leaves[index.position])
        vector = OpenVector(rows[RowKind.K, index.layer], rows[RowKind.V, index.layer])
        samples.append(OpenSample(index, vector))
    return tuple(samples)


def encode_samples(samples: Sequence[OpenSample]) -> bytes:
    """Return samples as they are shipped: for each, u32 position ‖ u16 layer ‖ K row ‖ V row."""
    return b"".join(
        _HEADER.pack(sample.index.position, sample.index.layer)
        + sample.vector.key_row
        + sample.vector.value_row
        for sample in samples
    )


def decode_samples(schema: RowSchema, data: bytes) -> tuple[OpenSample, ...]:
    """Return shipped samples. Raises EncodingError for bytes that are not whole samples of finite rows."""
    key_bytes, value_bytes = schema.row_bytes(RowKind.K), schema.row_bytes(RowKind.V)
    size = _HEADER.size + key_bytes + value_bytes
    if len(data) % size:
        raise EncodingError(f"{len(data)} bytes are not whole samples of {size}")
    samples = []
    for start in range(0, len(data), size):
        position, layer = _HEADER.unpack_from(data, start)
        middle = start + _HEADER.size + key_bytes
        vector = OpenVector(data[start + _HEADER.size : middle], data[middle : start + size])
        if not all(is_finite(row, schema.float_format) for row in (vector.key_row, vector.value_row)):
            raise EncodingError(f"the sample at position {position}, layer {layer} is not finite")
        samples.append(OpenSample(OpenIndex(position, layer), vector))
    return tuple(samples)


def verify_samples(
    samples: Sequence[OpenSample],
    tokens: Sequence[int],
    prompt_count: int,
    layer_count: int,
    rule: ContextRule,
) -> None:
    """Raise OpeningError unless exactly the due vectors were shipped, in order."""
    due = compute_due(tokens, prompt_count, layer_count, rule)
    shipped = tuple(sample.index for sample in samples)
    if shipped == due:
        return
    missing, extra = sorted(set(due) - set(shipped)), sorted(set(shipped) - set(due))
    raise OpeningError(
        f"{len(shipped)} vectors were shipped where {len(due)} are due: {len(missing)} missing, {len(extra)} not due"
        + ("" if missing or extra else ", in another order")
    )
