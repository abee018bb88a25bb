"""An envelope opens for exactly the network, kind, signer and bytes that were sealed."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocache.protocol.errors import CodecError, EnvelopeError, InputError, LimitError, SignatureError
from pocache.protocol.ids import NetworkId
from pocache.protocol.keys import SigningKey, verify_signature
from pocache.protocol.limits import PAYLOAD_BYTES_MAX
from pocache.wire.envelope import ENVELOPE_BYTES_MAX, open_envelope, parse_envelope, seal
from pocache.wire.model import WireModel

NETWORK = NetworkId(b"n" * 32)
KEY = SigningKey.generate(b"\x01" * 32)
OTHER = SigningKey.generate(b"\x02" * 32)


class Note(WireModel):
    kind = "note.v1"

    data: bytes


class Memo(WireModel):
    kind = "memo.v1"

    data: bytes


NOTE = Note(data=b"hello")
SEALED = seal(KEY, NETWORK, NOTE)


def unpack(data: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(data)
    return fields


def repack(**changes: object) -> bytes:
    data: bytes = msgpack.packb(unpack(SEALED) | changes, use_bin_type=True)
    return data


def test_what_was_sealed_opens() -> None:
    opened = open_envelope(SEALED, NETWORK, Note)
    assert opened.body == NOTE
    assert opened.sender == KEY.participant_id
    assert len(opened.envelope_id) == 32


def test_the_signature_covers_the_bytes_of_the_specification() -> None:
    """0xFF ‖ "pocache/v1" ‖ lp(network) ‖ lp(kind) ‖ lp(payload), written out by hand."""

    def lp(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    fields = unpack(SEALED)
    preimage = b"\xffpocache/v1" + lp(NETWORK) + lp(b"note.v1") + lp(fields["payload"])
    verify_signature(KEY.participant_id, preimage, fields["sig"])
    expected = hashlib.sha256(preimage + lp(fields["kid"].encode())).digest()
    assert open_envelope(SEALED, NETWORK, Note).envelope_id == expected
    assert fields.keys() == {"kind", "payload", "kid", "sig"}


def test_another_network_is_refused() -> None:
    with pytest.raises(SignatureError):
        open_envelope(SEALED, NetworkId(b"m" * 32), Note)


def test_another_kind_is_refused() -> None:
    with pytest.raises(EnvelopeError, match=r"memo\.v1"):
        open_envelope(SEALED, NETWORK, Memo)


def test_a_renamed_kind_is_refused() -> None:
    with pytest.raises(SignatureError):
        open_envelope(repack(kind="memo.v1"), NETWORK, Memo)


def test_another_signer_is_refused() -> None:
    with pytest.raises(SignatureError):
        open_envelope(repack(kid=OTHER.participant_id), NETWORK, Note)


def test_a_changed_payload_is_refused() -> None:
    payload = unpack(SEALED)["payload"]
    with pytest.raises(SignatureError):
        open_envelope(repack(payload=payload[:-1] + b"!"), NETWORK, Note)


def test_the_signature_is_checked_before_the_body_is_read() -> None:
    with pytest.raises(SignatureError):
        open_envelope(repack(payload=b"\xc1"), NETWORK, Note)


def test_a_signed_body_that_does_not_decode_is_refused() -> None:
    class Wrong(WireModel):
        kind = "note.v1"

        other: int

    with pytest.raises(CodecError):
        open_envelope(seal(KEY, NETWORK, Wrong(other=1)), NETWORK, Note)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"kind": ""},
        {"kind": b"note.v1"},
        {"kind": "k" * 65},
        {"kind": "a b"},
        {"payload": "text"},
        {"payload": None},
        {"kid": ""},
        {"kid": b"U" * 56},
        {"kid": "ä" * 56},
        {"sig": b"\x00" * 63},
        {"sig": b"\x00" * 65},
        {"sig": "0" * 64},
    ],
)
def test_malformed_fields_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EnvelopeError):
        parse_envelope(repack(**changes))


@pytest.mark.parametrize("name", ["kind", "payload", "kid", "sig"])
def test_a_missing_field_is_refused(name: str) -> None:
    fields = unpack(SEALED)
    del fields[name]
    with pytest.raises(EnvelopeError):
        parse_envelope(msgpack.packb(fields, use_bin_type=True))


def test_a_repeated_field_is_refused() -> None:
    twice = b"\x85" + SEALED[1:] + b"\xa4kind\xa7note.v1"
    with pytest.raises(CodecError, match="twice"):
        parse_envelope(twice)


def test_an_oversized_envelope_is_refused() -> None:
    with pytest.raises(LimitError):
        parse_envelope(b"\x00" * (ENVELOPE_BYTES_MAX + 1))


def test_the_largest_payload_fits() -> None:
    header_bytes = len(b"\x81\xa4data\xc6") + 4
    note = Note(data=b"x" * (PAYLOAD_BYTES_MAX - header_bytes))
    assert open_envelope(seal(KEY, NETWORK, note), NETWORK, Note).body == note
    with pytest.raises(LimitError):
        seal(KEY, NETWORK, Note(data=note.data + b"x"))


@pytest.mark.parametrize("size", [0, 1, 200, 246, 247, 248, 249, 65_525, 65_526, 65_527, 65_528, 100_000])
def test_an_envelope_is_one_map_whatever_the_size_of_its_payload(size: int) -> None:
    """It is put together of parts: the bytes are those of msgpack's own encoding of the four fields, in their order."""
    sealed = seal(KEY, NETWORK, Note(data=b"x" * size))
    fields = unpack(sealed)
    assert list(fields) == ["kind", "payload", "kid", "sig"]
    assert msgpack.packb(fields, use_bin_type=True) == sealed


def test_the_id_does_not_depend_on_how_the_envelope_is_encoded() -> None:
    """Another field order is the same statement, so it has the same effects."""
    fields = unpack(SEALED)
    shuffled = msgpack.packb({key: fields[key] for key in reversed(list(fields))}, use_bin_type=True)
    assert shuffled != SEALED
    expected = open_envelope(SEALED, NETWORK, Note).envelope_id
    assert open_envelope(shuffled, NETWORK, Note).envelope_id == expected
    assert open_envelope(seal(OTHER, NETWORK, NOTE), NETWORK, Note).envelope_id != expected


@given(index=st.integers(0, len(SEALED) - 1), mask=st.integers(1, 255))
def test_one_changed_byte_never_opens_as_another_statement(index: int, mask: int) -> None:
    changed = bytearray(SEALED)
    changed[index] ^= mask
    with pytest.raises(InputError):
        open_envelope(bytes(changed), NETWORK, Note)
