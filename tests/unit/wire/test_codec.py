"""The codec reads what it writes and refuses everything hostile with one of two errors."""

from __future__ import annotations

import contextlib
import struct
from enum import IntEnum, StrEnum
from typing import Annotated

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocache.protocol.errors import CodecError, InputError, LimitError
from pocache.protocol.limits import CODEC_DEPTH_MAX, CODEC_ITEMS_MAX, PAYLOAD_BYTES_MAX
from pocache.wire.codec import decode, decode_value, encode, encode_value
from pocache.wire.model import WIRE_ENUM, WireModel


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    ONE = 1


class Part(WireModel):
    kind = "part.v1"

    index: int


class Sample(WireModel):
    kind = "sample.v1"

    name: str
    data: bytes
    parts: tuple[Part, ...]
    colour: Annotated[Colour, WIRE_ENUM]
    level: Annotated[Level, WIRE_ENUM] = Level.ONE
    flag: bool = False
    note: str | None = None


SAMPLE = Sample(name="ä", data=b"\x00\xff", parts=(Part(index=1), Part(index=2**64 - 1)), colour=Colour.RED)


def make_fields(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {"name": "n", "data": b"d", "parts": [{"index": 1}], "colour": "red"}
    return fields | changes


def pack(value: object) -> bytes:
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def test_a_model_comes_back_as_it_went() -> None:
    assert decode(Sample, encode(SAMPLE)) == SAMPLE


@given(
    name=st.text(max_size=50), data=st.binary(max_size=50), indices=st.lists(st.integers(-(2**63), 2**64 - 1))
)
def test_any_value_of_the_fields_comes_back(name: str, data: bytes, indices: list[int]) -> None:
    sample = Sample(
        name=name.encode("utf-8", "replace").decode(),
        data=data,
        parts=tuple(Part(index=index) for index in indices),
        colour=Colour.RED,
    )
    assert decode(Sample, encode(sample)) == sample


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"name": b"n"},
        {"name": 1},
        {"data": "d"},
        {"parts": {"index": 1}},
        {"parts": [{"index": True}]},
        {"parts": [{"index": "1"}]},
        {"parts": [{"index": 1, "more": 1}]},
        {"parts": None},
        {"colour": "blue"},
        {"colour": None},
        {"level": True},
        {"level": "1"},
        {"level": 2},
        {"flag": 1},
    ],
)
def test_a_field_of_another_type_is_refused(changes: dict[str, object]) -> None:
    assert decode(Sample, pack(make_fields())).name == "n"
    with pytest.raises(CodecError, match=r"sample\.v1"):
        decode(Sample, pack(make_fields(**changes)))


def test_a_missing_field_is_refused() -> None:
    fields = make_fields()
    del fields["data"]
    with pytest.raises(CodecError, match="data"):
        decode(Sample, pack(fields))


@pytest.mark.parametrize("value", [[], "x", 1, None, [["name", "n"]]])
def test_a_body_that_is_no_map_is_refused(value: object) -> None:
    with pytest.raises(CodecError, match="map"):
        decode(Sample, pack(value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81\xa1",
        b"\xa1\xff",
        b"\xdf\xff\xff\xff\xff",
        pack({"a": 1}) + b"\x00",
        pack({"a": 1}) * 2,
        pack({1: 1}),
        pack({b"a": 1}),
        b"\x82\xa1a\x01\xa1a\x02",
        pack({"a": 1.5}),
        b"\xca" + struct.pack(">f", 1.0),
        pack({"a": float("nan")}),
        pack(msgpack.ExtType(5, b"x")),
        b"\xd6\xff" + b"\x00" * 4,
        b"\xc7\x0c\xff" + b"\x00" * 12,
    ],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_value(data)


def test_the_size_is_checked_before_anything_is_decoded() -> None:
    with pytest.raises(LimitError, match="exceeds"):
        decode_value(b"\xc1" * (PAYLOAD_BYTES_MAX + 1))
    with pytest.raises(LimitError, match="exceeds"):
        encode_value(b"x" * PAYLOAD_BYTES_MAX)
    assert len(encode_value(b"x" * (PAYLOAD_BYTES_MAX - 5))) == PAYLOAD_BYTES_MAX


def nest(depth: int) -> bytes:
    return b"\x91" * (depth - 1) + b"\x90"


def test_depth_is_bounded() -> None:
    decode_value(nest(CODEC_DEPTH_MAX))
    for depth in (CODEC_DEPTH_MAX + 1, 500, 2_000, 900_000):
        with pytest.raises(LimitError, match="nested"):
            decode_value(nest(depth))


def test_a_deep_map_is_refused() -> None:
    with pytest.raises(LimitError):
        decode_value(b"\x81\xa1a" * 300_000 + b"\xc0")


def test_counts_are_bounded() -> None:
    assert len(decode_value(pack([0] * CODEC_ITEMS_MAX))) == CODEC_ITEMS_MAX
    with pytest.raises(InputError):
        decode_value(pack([0] * (CODEC_ITEMS_MAX + 1)))
    with pytest.raises(LimitError):
        encode_value((0,) * (CODEC_ITEMS_MAX + 1))


def test_many_small_maps_are_refused() -> None:
    with pytest.raises(LimitError, match="map entries"):
        decode_value(pack([[{}] * 40_000, [{}] * 40_000]))


@pytest.mark.parametrize("value", [1.0, {1, 2}, object(), 2**64, -(2**63) - 1])
def test_values_outside_the_subset_are_not_encoded(value: object) -> None:
    with pytest.raises(InputError):
        encode_value({"a": value})


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_an_input_error(data: bytes) -> None:
    with contextlib.suppress(InputError):
        decode(Sample, data)


@given(st.data())
def test_a_changed_encoding_decodes_or_raises_an_input_error(data: st.DataObject) -> None:
    encoded = bytearray(encode(SAMPLE))
    index = data.draw(st.integers(0, len(encoded) - 1))
    encoded[index] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(InputError):
        decode(Sample, bytes(encoded))


def test_an_error_does_not_quote_the_input() -> None:
    with pytest.raises(CodecError) as caught:
        decode(Sample, pack(make_fields(name=b"SECRET", extra="SECRET")))
    assert "SECRET" not in str(caught.value)


def test_a_model_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SAMPLE.name = "other"
