"""Rows, row schemas, leaves and packed tokens, byte for byte (docs/protocol.md 3).

Owns which rows a leaf has, in which order, and how they are laid out. Refuses whatever is not the one
canonical form: another length, header or position, a row too many or too few, and floats that are not finite.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum, StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, Literal, TypeAlias

from pocache.protocol.errors import EncodingError, LimitError
from pocache.protocol.ids import Digest
from pocache.protocol.limits import (
    LAYER_COUNT_MAX,
    LEAF_BYTES_MAX,
    LEAF_COUNT_MAX,
    LOGPROB_BYTES,
    ROW_WIDTH_MAX,
    TOKEN_BYTES,
)

SCHEMA_DOMAIN: Final = b"pocache/schema/v1"
SCHEMA_KIND: Final = "row-schema.v1"
LEAF_DOMAIN: Final = b"pocache/leaf/v1"

SCORE_WIDTH: Final = 3
"""Floats in a score row: the delivered token's logit, the logsumexp, the perturbed score's gap to best."""

_FLAG_HIDDEN: Final = 1
_FLAG_SCORES: Final = 2
_HEADER: Final = struct.Struct(f">{len(LEAF_DOMAIN)}sIHB")


class RowKind(IntEnum):
    """What a row is; the number is the one on the wire."""

    K = 1
    V = 2
    HIDDEN = 3
    """The final hidden state, after the last norm."""
    SCORES = 4
    RAW_DIGEST = 5
    """Reserved: no schema has it yet."""


class FloatFormat(StrEnum):
    """How the floats of a row are stored; both little-endian IEEE 754."""

    F16 = "f16"
    F32 = "f32"

    @property
    def size(self) -> int:
        """Return the bytes of one float."""
        return 2 if self is FloatFormat.F16 else 4


SCORE_FORMAT: Final = FloatFormat.F32
"""Score rows are float32 whatever the format of the others."""

RowKey: TypeAlias = tuple[RowKind, int]
"""Kind and layer; the layer of a hidden or score row is 0."""


@dataclass(frozen=True, slots=True)
class RowSchema:
    """Which rows each leaf has and how wide they are; fixed by the manifest, never chosen per job.

    Widths count floats. Under ``sketch`` all three are the k columns of the projection; under ``raw`` they
    are KV heads × head dimension and the hidden size.
    """

    encoding: Literal["sketch", "raw"]
    float_format: FloatFormat
    layer_count: int
    key_width: int
    value_width: int
    hidden_width: int
    has_hidden: bool = True
    has_scores: bool = True

    def __post_init__(self) -> None:
        if self.encoding not in ("sketch", "raw"):
            raise EncodingError(f"unknown row encoding {self.encoding!r}: sketch or raw")
        if not isinstance(self.float_format, FloatFormat):
            raise EncodingError(f"float format {self.float_format!r} is not a FloatFormat")
        if type(self.has_hidden) is not bool or type(self.has_scores) is not bool:
            raise EncodingError("has_hidden and has_scores are booleans")
        _check_range("layer_count", self.layer_count, 1, LAYER_COUNT_MAX)
        widths = (self.key_width, self.value_width, self.hidden_width)
        for name, width in zip(("key_width", "value_width", "hidden_width"), widths, strict=True):
            _check_range(name, width, 1, ROW_WIDTH_MAX)
        if self.encoding == "sketch" and len(set(widths)) != 1:
            raise EncodingError(f"a sketch has one width for all rows, not {widths}")
        if self.leaf_bytes(scored=True) > LEAF_BYTES_MAX:
            raise LimitError(f"a leaf of {self.leaf_bytes(scored=True)} bytes exceeds {LEAF_BYTES_MAX}")

    def digest(self) -> Digest:
        """Return SHA256(lp(domain) ‖ lp(encoding) ‖ lp(format) ‖ u32be counts and widths ‖ u8 flags)."""
        numbers = struct.pack(
            ">IIIIB",
            self.layer_count,
            self.key_width,
            self.value_width,
            self.hidden_width,
            _flags(has_hidden=self.has_hidden, has_scores=self.has_scores),
        )
        texts = lp(SCHEMA_DOMAIN, self.encoding.encode(), self.float_format.value.encode())
        return Digest(sha256(texts + numbers).digest())

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as JSON-safe values; ``from_dict`` reads exactly this."""
        return {name.name: getattr(self, name.name) for name in fields(self)} | {"kind": SCHEMA_KIND}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RowSchema:
        """Return the schema that ``to_dict`` wrote. Raises EncodingError for any other shape."""
        expected = {"kind", *(name.name for name in fields(cls))}
        if not isinstance(data, Mapping) or set(data) != expected or data["kind"] != SCHEMA_KIND:
            raise EncodingError(f"not a {SCHEMA_KIND} with exactly the fields {sorted(expected)}")
        values = {name: value for name, value in data.items() if name != "kind"}
        try:
            values["float_format"] = FloatFormat(values["float_format"])
        except ValueError as error:
            raise EncodingError(f"float format {values['float_format']!r} is not f16 or f32") from error
        return cls(**values)

    def restrict(self, layer_max: int | None, *, full_depth: bool = False) -> RowSchema:
        """Return the schema of a corner: layers 0 … ``layer_max``, final row and scores only at full depth.

        ``None`` is full depth. ``full_depth`` must name the last layer; without it even the last layer's
        corner leaves out the hidden state and the scores (docs/protocol.md 3.4). Raises EncodingError.
        """
        if layer_max is None:
            return self
        _check_range("layer_max", layer_max, 0, self.layer_count - 1)
        if not full_depth:
            return replace(self, layer_count=layer_max + 1, has_hidden=False, has_scores=False)
        if layer_max != self.layer_count - 1:
            raise EncodingError(f"full depth ends at layer {self.layer_count - 1}, not {layer_max}")
        return self

    def row_keys(self, *, scored: bool) -> tuple[RowKey, ...]:
        """Return the rows of one leaf in canonical order: K, V of each layer, then hidden, then scores."""
        return _row_keys(self.layer_count, self.has_hidden, self.has_scores and scored)

    def row_bytes(self, kind: RowKind) -> int:
        """Return the bytes of one row of that kind. Raises EncodingError for a kind that no schema has."""
        size = self.float_format.size
        match kind:
            case RowKind.K:
                return size * self.key_width
            case RowKind.V:
                return size * self.value_width
            case RowKind.HIDDEN:
                return size * self.hidden_width
            case RowKind.SCORES:
                return SCORE_FORMAT.size * SCORE_WIDTH
            case _:
                raise EncodingError(f"row kind {kind!r} is reserved")

    def leaf_bytes(self, scored: bool) -> int:
        """Return the bytes of one encoded leaf; ``scored`` says that its position is an output position."""
        total = _HEADER.size + self.layer_count * (self.row_bytes(RowKind.K) + self.row_bytes(RowKind.V))
        if self.has_hidden:
            total += self.row_bytes(RowKind.HIDDEN)
        if self.has_scores and scored:
            total += self.row_bytes(RowKind.SCORES)
        return total


def get_row_format(kind: RowKind, float_format: FloatFormat) -> FloatFormat:
    """Return the format of a row's floats: scores are always float32."""
    return SCORE_FORMAT if kind is RowKind.SCORES else float_format


def encode_leaf(schema: RowSchema, position: int, rows: Mapping[RowKey, bytes]) -> bytes:
    """Return the leaf of one position.

    ``"pocache/leaf/v1" ‖ u32be position ‖ u16be layer_count ‖ u8 flags ‖ K₀ ‖ V₀ ‖ … ‖ hidden ‖ scores``,
    flags bit 0 hidden, bit 1 scores. A leaf has scores when ``rows`` has them. Raises EncodingError for a
    missing, extra or wrongly sized row, and for floats that are not finite: those cannot be committed.
    """
    scored = (RowKind.SCORES, 0) in rows
    keys = schema.row_keys(scored=scored)
    if len(rows) != len(keys):
        raise EncodingError(f"{len(rows)} rows where the schema has {len(keys)}")
    parts = [_encode_header(schema, position, scored=scored)]
    for key in keys:
        row = rows.get(key)
        if row is None:
            raise EncodingError(f"no {key[0].name} row of layer {key[1]}")
        _check_row(schema, key, row)
        parts.append(row)
    return b"".join(parts)


def join_leaves(
    schema: RowSchema, leaf_count: int, bodies: bytes, scores: bytes, *, scored_from: int
) -> list[bytes]:
    """Return the leaves of positions 0 … ``leaf_count`` − 1 whose rows were computed side by side.

    The same bytes as :func:`encode_leaf`. ``bodies`` holds the rows up to the hidden state of one position after the
    other, in canonical order and without gaps; ``scores`` the score rows of positions from ``scored_from`` on, unless
    the schema has none. Raises EncodingError for other lengths and for floats that are not finite.
    """
    _check_range("leaf_count", leaf_count, 1, LEAF_COUNT_MAX)
    width, score_width = schema.leaf_bytes(scored=False) - _HEADER.size, schema.row_bytes(RowKind.SCORES)
    first_scored = max(0, scored_from) if schema.has_scores else leaf_count
    if len(bodies) != leaf_count * width or len(scores) != max(0, leaf_count - first_scored) * score_width:
        raise EncodingError(
            f"{len(bodies)} and {len(scores)} bytes of rows do not fill {leaf_count} leaves of this schema"
        )
    plain, scored = (
        _flags(has_hidden=schema.has_hidden, has_scores=has_scores) for has_scores in (False, True)
    )
    leaves = []
    for position in range(leaf_count):
        body, at = bodies[position * width : (position + 1) * width], (position - first_scored) * score_width
        score = scores[at : at + score_width] if at >= 0 else b""
        if not (is_finite(body, schema.float_format) and is_finite(score, SCORE_FORMAT)):
            raise EncodingError(f"the rows of position {position} have floats that are not finite")
        header = _HEADER.pack(LEAF_DOMAIN, position, schema.layer_count, scored if score else plain)
        leaves.append(header + body + score)
    return leaves


def decode_leaf(schema: RowSchema, position: int, scored: bool, data: bytes) -> dict[RowKey, bytes]:
    """Return the rows of a leaf that was encoded for exactly this schema, position and kind of position.

    Raises EncodingError for any other length, header, position or flags, and for floats that are not finite.
    """
    layout = _lay_out(schema, scored)
    if len(data) != layout.size:
        raise EncodingError(f"a leaf of {len(data)} bytes where {layout.size} are due")
    header = _encode_header(schema, position, scored=scored and schema.has_scores)
    if data[: _HEADER.size] != header:
        raise EncodingError(f"leaf header is not that of position {position}")
    rows = {key: data[start:end] for key, start, end in layout.rows}
    body, scores = data[_HEADER.size : layout.scores_at], data[layout.scores_at :]
    if not (is_finite(body, schema.float_format) and is_finite(scores, SCORE_FORMAT)):
        for key, row in rows.items():  # says which
            _check_row(schema, key, row)
    return rows


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where each row of a leaf lies, in bytes from its beginning."""

    rows: tuple[tuple[RowKey, int, int], ...]
    scores_at: int
    size: int


@lru_cache(maxsize=64)
def _lay_out(schema: RowSchema, scored: bool) -> _Layout:
    rows = []
    start = scores_at = _HEADER.size
    for key in schema.row_keys(scored=scored):
        end = start + schema.row_bytes(key[0])
        rows.append((key, start, end))
        if key[0] is not RowKind.SCORES:
            scores_at = end
        start = end
    return _Layout(tuple(rows), scores_at, start)


def is_finite(row: bytes, float_format: FloatFormat) -> bool:
    """Return whether no float of the row is infinite or NaN, that is, no exponent has all its bits set.

    All lanes at once in one integer: adding one to a full exponent carries into the (masked) sign bit, and no
    lane carries into the next.
    """
    count, rest = divmod(len(row), float_format.size)
    if rest:
        return False
    exponents, ones, signs = _lane_masks(float_format, count)
    return not ((int.from_bytes(row, "little") & exponents) + ones) & signs


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Return token ids as u32 little-endian. Raises EncodingError for an id outside 0 … 2³²−1."""
    try:
        return struct.pack(f"<{len(tokens)}I", *tokens)
    except struct.error as error:
        raise EncodingError(f"token ids do not fit 32 bits: {error}") from None


def unpack_tokens(data: bytes) -> tuple[int, ...]:
    """Return the token ids of ``pack_tokens``. Raises EncodingError when the bytes are not whole tokens."""
    count, rest = divmod(len(data), TOKEN_BYTES)
    if rest:
        raise EncodingError(f"{len(data)} bytes are not whole tokens of {TOKEN_BYTES}")
    return struct.unpack(f"<{count}I", data)


def pack_logprobs(logprobs: Sequence[float]) -> bytes:
    """Return log-probabilities as float32 little-endian. Raises EncodingError for one that is not finite, or above 0."""
    try:
        data = struct.pack(f"<{len(logprobs)}f", *logprobs)
    except (struct.error, OverflowError) as error:
        raise EncodingError(f"log-probabilities do not fit 32 bits: {error}") from None
    unpack_logprobs(data)
    return data


def unpack_logprobs(data: bytes) -> tuple[float, ...]:
    """Return the numbers of ``pack_logprobs``. Raises EncodingError for what it would not have written."""
    count, rest = divmod(len(data), LOGPROB_BYTES)
    if rest:
        raise EncodingError(f"{len(data)} bytes are not whole log-probabilities of {LOGPROB_BYTES}")
    logprobs: tuple[float, ...] = struct.unpack(f"<{count}f", data)
    if not (is_finite(data, FloatFormat.F32) and max(logprobs, default=0.0) <= 0):
        raise EncodingError("a log-probability is finite and at most 0")
    return logprobs


def lp(*parts: bytes) -> bytes:
    """Return the parts one after another, each behind its length as u32 big-endian (docs/protocol.md 1.1)."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _flags(*, has_hidden: bool, has_scores: bool) -> int:
    return (_FLAG_HIDDEN if has_hidden else 0) | (_FLAG_SCORES if has_scores else 0)


def _encode_header(schema: RowSchema, position: int, *, scored: bool) -> bytes:
    _check_range("position", position, 0, LEAF_COUNT_MAX - 1)
    flags = _flags(has_hidden=schema.has_hidden, has_scores=scored)
    return _HEADER.pack(LEAF_DOMAIN, position, schema.layer_count, flags)


def _check_row(schema: RowSchema, key: RowKey, row: bytes) -> None:
    kind, layer = key
    size = schema.row_bytes(kind)
    if len(row) != size:
        raise EncodingError(f"{kind.name} row of layer {layer} has {len(row)} bytes, not {size}")
    if not is_finite(row, get_row_format(kind, schema.float_format)):
        raise EncodingError(f"{kind.name} row of layer {layer} has floats that are not finite")


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise EncodingError(f"{name} is {value!r}, outside {least} … {most}")


@lru_cache(maxsize=64)
def _row_keys(layer_count: int, has_hidden: bool, has_scores: bool) -> tuple[RowKey, ...]:
    keys: list[RowKey] = []
    for layer in range(layer_count):
        keys += ((RowKind.K, layer), (RowKind.V, layer))
    if has_hidden:
        keys.append((RowKind.HIDDEN, 0))
    if has_scores:
        keys.append((RowKind.SCORES, 0))
    return tuple(keys)


@lru_cache(maxsize=16)
def _lane_masks(float_format: FloatFormat, count: int) -> tuple[int, int, int]:
    """Return the exponent bits, the lowest exponent bit and the sign bit of ``count`` lanes."""
    if float_format is FloatFormat.F16:
        lanes = (b"\x00\x7c", b"\x00\x04", b"\x00\x80")
    else:
        lanes = (b"\x00\x00\x80\x7f", b"\x00\x00\x80\x00", b"\x00\x00\x00\x80")
    exponents, ones, signs = (int.from_bytes(lane * count, "little") for lane in lanes)
    return exponents, ones, signs
