"""The bytes of leaves, schemas and tokens, and everything that is not exactly those bytes."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from hashlib import sha256

import pytest

from pocache.protocol.encoding import (
    FloatFormat,
    RowKey,
    RowKind,
    RowSchema,
    decode_leaf,
    encode_leaf,
    is_finite,
    join_leaves,
    lp,
    pack_tokens,
    unpack_tokens,
)
from pocache.protocol.errors import EncodingError, LimitError
from pocache.protocol.limits import LAYER_COUNT_MAX, LEAF_COUNT_MAX, ROW_WIDTH_MAX

RAW = RowSchema("raw", FloatFormat.F16, layer_count=2, key_width=2, value_width=1, hidden_width=3)
HEADER_BYTES = 15 + 4 + 2 + 1


def make_rows(schema: RowSchema, *, scored: bool) -> dict[RowKey, bytes]:
    """Rows whose bytes all differ, as finite floats."""
    rows: dict[RowKey, bytes] = {}
    for index, (kind, layer) in enumerate(schema.row_keys(scored=scored)):
        size = schema.row_bytes(kind)
        rows[kind, layer] = bytes((index * 7 + place) % 96 for place in range(size))
    return rows


def test_leaf_bytes_are_header_layers_hidden_scores() -> None:
    rows = {
        (RowKind.K, 0): b"\x01\x02\x03\x04",
        (RowKind.V, 0): b"\x05\x06",
        (RowKind.K, 1): b"\x07\x08\x09\x0a",
        (RowKind.V, 1): b"\x0b\x0c",
        (RowKind.HIDDEN, 0): b"\x11\x12\x13\x14\x15\x16",
        (RowKind.SCORES, 0): struct.pack("<3f", 1.5, 2.5, 0.0),
    }
    leaf = encode_leaf(RAW, 258, rows)
    assert leaf == (
        b"pocache/leaf/v1\x00\x00\x01\x02\x00\x02\x03"
        b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c"
        b"\x11\x12\x13\x14\x15\x16"
        b"\x00\x00\xc0\x3f\x00\x00\x20\x40\x00\x00\x00\x00"
    )
    assert decode_leaf(RAW, 258, True, leaf) == rows


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("float_format", list(FloatFormat))
@pytest.mark.parametrize("layer_max", [None, 0, 1])
def test_every_leaf_comes_back(scored: bool, float_format: FloatFormat, layer_max: int | None) -> None:
    schema = replace(RAW, float_format=float_format).restrict(layer_max)
    rows = make_rows(schema, scored=scored)
    leaf = encode_leaf(schema, 7, rows)
    assert len(leaf) == schema.leaf_bytes(scored)
    assert decode_leaf(schema, 7, scored, leaf) == rows


def test_row_order_of_the_mapping_does_not_matter() -> None:
    rows = make_rows(RAW, scored=True)
    assert encode_leaf(RAW, 0, dict(reversed(rows.items()))) == encode_leaf(RAW, 0, rows)


def test_leaf_size_counts_every_row() -> None:
    assert RAW.leaf_bytes(scored=False) == HEADER_BYTES + 2 * (4 + 2) + 6
    assert RAW.leaf_bytes(scored=True) == RAW.leaf_bytes(scored=False) + 12
    assert replace(RAW, float_format=FloatFormat.F32).leaf_bytes(scored=True) == HEADER_BYTES + 36 + 12


def test_decoding_refuses_another_position_layer_count_flag_or_length() -> None:
    leaf = encode_leaf(RAW, 7, make_rows(RAW, scored=True))
    bad = {
        "domain": b"P" + leaf[1:],
        "position": leaf[:18] + b"\x08" + leaf[19:],
        "layer count": leaf[:20] + b"\x03" + leaf[21:],
        "flags": leaf[:21] + b"\x07" + leaf[22:],
        "short": leaf[:-1],
        "long": leaf + b"\x00",
        "empty": b"",
    }
    for name, data in bad.items():
        with pytest.raises(EncodingError):
            pytest.fail(f"{name}: {decode_leaf(RAW, 7, True, data)}")
    with pytest.raises(EncodingError, match="position 8"):
        decode_leaf(RAW, 8, True, leaf)
    with pytest.raises(EncodingError, match="bytes"):
        decode_leaf(RAW, 7, False, leaf)


def test_flags_of_a_leaf_with_the_same_length_must_agree() -> None:
    """A hidden row of score size must not pass as scores, nor the other way round."""
    hidden_only = RowSchema("raw", FloatFormat.F32, 1, 1, 1, 3, has_scores=False)
    scores_only = replace(hidden_only, has_hidden=False, has_scores=True)
    leaf = encode_leaf(hidden_only, 0, make_rows(hidden_only, scored=True))
    assert len(leaf) == scores_only.leaf_bytes(scored=True)
    with pytest.raises(EncodingError, match="header"):
        decode_leaf(scores_only, 0, True, leaf)


@pytest.mark.parametrize("key", [(RowKind.K, 1), (RowKind.V, 0), (RowKind.HIDDEN, 0)])
def test_encoding_refuses_a_missing_extra_or_resized_row(key: RowKey) -> None:
    rows = make_rows(RAW, scored=False)
    missing = {other: row for other, row in rows.items() if other != key}
    for wrong in (
        missing,
        {**missing, (RowKind.K, 9): rows[key]},
        {**rows, (RowKind.K, 2): b"\x00" * 4},
        {**rows, key: rows[key] + b"\x00\x00"},
        {**rows, key: rows[key][:-2]},
        {**rows, key: b""},
    ):
        with pytest.raises(EncodingError):
            encode_leaf(RAW, 0, wrong)


def test_a_schema_without_scores_refuses_them() -> None:
    corner = RAW.restrict(1)
    rows = make_rows(corner, scored=False)
    with pytest.raises(EncodingError, match="5 rows where the schema has 4"):
        encode_leaf(corner, 0, {**rows, (RowKind.SCORES, 0): bytes(12)})


F16_BAD = [0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF]
F32_BAD = [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF]
F16_GOOD = [0x0000, 0x8000, 0x7BFF, 0xFBFF, 0x0001, 0x83FF, 0x0400]
F32_GOOD = [0, 0x80000000, 0x7F7FFFFF, 0xFF7FFFFF, 1, 0x807FFFFF, 0x00800000]


@pytest.mark.parametrize(
    ("float_format", "letter", "bad", "good"),
    [(FloatFormat.F16, "H", F16_BAD, F16_GOOD), (FloatFormat.F32, "I", F32_BAD, F32_GOOD)],
)
def test_infinities_and_nans_are_seen_in_every_lane(
    float_format: FloatFormat, letter: str, bad: list[int], good: list[int]
) -> None:
    assert is_finite(struct.pack(f"<{len(good)}{letter}", *good), float_format)
    for bits in bad:
        for lane in range(len(good)):
            lanes = [*good[:lane], bits, *good[lane + 1 :]]
            assert not is_finite(struct.pack(f"<{len(good)}{letter}", *lanes), float_format)
    assert not is_finite(b"\x00" * 3, float_format)


@pytest.mark.parametrize("key", [(RowKind.K, 0), (RowKind.V, 1), (RowKind.HIDDEN, 0), (RowKind.SCORES, 0)])
def test_a_nan_anywhere_is_neither_encoded_nor_decoded(key: RowKey) -> None:
    schema = replace(RAW, float_format=FloatFormat.F32)
    rows = make_rows(schema, scored=True)
    leaf = encode_leaf(schema, 0, rows)
    nan_row = rows[key][:-4] + struct.pack("<f", float("nan"))
    with pytest.raises(EncodingError, match="not finite"):
        encode_leaf(schema, 0, {**rows, key: nan_row})
    forged = leaf.replace(rows[key], nan_row)
    assert forged != leaf
    with pytest.raises(EncodingError, match="not finite"):
        decode_leaf(schema, 0, True, forged)


@pytest.mark.parametrize("scored_from", [0, 2, 9])
@pytest.mark.parametrize("layer_max", [None, 0])
def test_joined_leaves_are_those_encoded_row_by_row(scored_from: int, layer_max: int | None) -> None:
    schema = RAW.restrict(layer_max)
    bodies, scores, expected = b"", b"", []
    for position in range(4):
        scored = schema.has_scores and position >= scored_from
        rows = make_rows(schema, scored=scored)
        expected.append(encode_leaf(schema, position, rows))
        bodies += b"".join(row for (kind, _), row in rows.items() if kind is not RowKind.SCORES)
        scores += rows.get((RowKind.SCORES, 0), b"")
    assert join_leaves(schema, 4, bodies, scores, scored_from=scored_from) == expected


def test_joining_refuses_other_lengths_and_what_is_not_finite() -> None:
    width = RAW.leaf_bytes(scored=False) - HEADER_BYTES
    bodies, scores = bytes(2 * width), bytes(12)
    assert len(join_leaves(RAW, 2, bodies, scores, scored_from=1)) == 2
    nan = struct.pack("<f", float("nan"))
    for changed_bodies, changed_scores, count in (
        (bodies[:-1], scores, 2),
        (bodies + b"\x00", scores, 2),
        (bodies, scores + bytes(12), 2),
        (bodies, b"", 2),
        (bodies, scores, 3),
        (b"", b"", 0),
        (b"\x00\x7c" + bodies[2:], scores, 2),
        (bodies, nan + scores[4:], 2),
    ):
        with pytest.raises(EncodingError):
            join_leaves(RAW, count, changed_bodies, changed_scores, scored_from=1)


def test_scores_are_float32_beside_float16_rows() -> None:
    """The bits of an infinite float16 are an ordinary part of a float32."""
    rows = make_rows(RAW, scored=True)
    rows[RowKind.SCORES, 0] = struct.pack("<3I", 0x7C007C00, 0x00007C00, 0)
    assert decode_leaf(RAW, 0, True, encode_leaf(RAW, 0, rows)) == rows


@pytest.mark.parametrize("position", [-1, LEAF_COUNT_MAX, 1.0, True])
def test_positions_outside_the_protocol_are_refused(position: int) -> None:
    with pytest.raises(EncodingError, match="position"):
        encode_leaf(RAW, position, make_rows(RAW, scored=True))


def test_schema_digest_is_over_length_prefixed_canonical_bytes() -> None:
    numbers = struct.pack(">IIIIB", 2, 2, 1, 3, 3)
    expected = sha256(lp(b"pocache/schema/v1", b"raw", b"f16") + numbers).digest()
    assert RAW.digest() == expected
    assert lp(b"ab", b"") == b"\x00\x00\x00\x02ab\x00\x00\x00\x00"


def test_schema_digest_binds_every_field() -> None:
    variants = [
        RAW,
        replace(RAW, encoding="sketch", key_width=1, value_width=1, hidden_width=1),
        replace(RAW, float_format=FloatFormat.F32),
        replace(RAW, layer_count=3),
        replace(RAW, key_width=3),
        replace(RAW, value_width=2),
        replace(RAW, hidden_width=4),
        replace(RAW, has_hidden=False),
        replace(RAW, has_scores=False),
    ]
    assert len({schema.digest() for schema in variants}) == len(variants)


def test_schema_survives_json() -> None:
    for schema in (RAW, RAW.restrict(0), replace(RAW, float_format=FloatFormat.F32)):
        again = RowSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
        assert again == schema
        assert again.digest() == schema.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "row-schema.v0"},
        {"extra": 1},
        {"float_format": "f64"},
        {"float_format": []},
        {"encoding": None},
        {"layer_count": "2"},
        {"key_width": 2.0},
        {"has_scores": None},
    ],
)
def test_schema_from_dict_is_strict(change: dict[str, object]) -> None:
    with pytest.raises(EncodingError):
        RowSchema.from_dict({**RAW.to_dict(), **change})
    for name in RAW.to_dict():
        with pytest.raises(EncodingError, match="exactly the fields"):
            RowSchema.from_dict({key: value for key, value in RAW.to_dict().items() if key != name})


def test_a_corner_keeps_final_row_and_scores_only_at_full_depth() -> None:
    assert RAW.restrict(None) == RAW
    assert RAW.restrict(1, full_depth=True) == RAW
    shallow = RAW.restrict(0)
    assert shallow.row_keys(scored=True) == ((RowKind.K, 0), (RowKind.V, 0))
    assert (RAW.restrict(1).has_hidden, RAW.restrict(1).has_scores) == (False, False)
    without = replace(RAW, has_hidden=False)
    assert not without.restrict(1, full_depth=True).has_hidden
    for layer_max, full_depth in ((2, False), (-1, False), (0, True)):
        with pytest.raises(EncodingError):
            RAW.restrict(layer_max, full_depth=full_depth)


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "sketch"},  # three widths
        {"encoding": "other"},
        {"float_format": "f16"},
        {"layer_count": 0},
        {"layer_count": LAYER_COUNT_MAX + 1},
        {"key_width": 0},
        {"value_width": -1},
        {"hidden_width": ROW_WIDTH_MAX + 1},
        {"layer_count": True},
        {"has_hidden": 1},
    ],
)
def test_schemas_out_of_bounds_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(EncodingError):
        replace(RAW, **change)  # type: ignore[arg-type]


def test_a_schema_whose_leaf_would_not_fit_a_message_is_refused() -> None:
    with pytest.raises(LimitError, match="exceeds"):
        replace(RAW, layer_count=LAYER_COUNT_MAX, key_width=4096, value_width=4096)


def test_a_reserved_row_kind_has_no_bytes() -> None:
    with pytest.raises(EncodingError, match="reserved"):
        RAW.row_bytes(RowKind.RAW_DIGEST)


def test_tokens_are_u32_little_endian() -> None:
    assert pack_tokens([1, 0x01020304]) == b"\x01\x00\x00\x00\x04\x03\x02\x01"
    assert unpack_tokens(b"\x01\x00\x00\x00\x04\x03\x02\x01") == (1, 0x01020304)
    assert unpack_tokens(pack_tokens([])) == ()


@pytest.mark.parametrize("tokens", [[-1], [2**32], [1.5], ["1"], [None]])
def test_token_ids_that_do_not_fit_are_refused(tokens: list[int]) -> None:
    with pytest.raises(EncodingError, match="32 bits"):
        pack_tokens(tokens)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_broken_token_bytes_are_refused(size: int) -> None:
    with pytest.raises(EncodingError, match="whole tokens"):
        unpack_tokens(bytes(size))
