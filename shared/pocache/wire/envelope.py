"""Signed envelopes: what crosses a trust boundary (docs/protocol.md 2).

An envelope is the msgpack map ``{kind, payload, kid, sig}``; the signature covers
``0xFF ‖ "pocache/v1" ‖ lp(network) ‖ lp(kind) ‖ lp(payload)``, lp being a u32 big-endian length prefix. The payload is
signed as the bytes that were sent: nothing is decoded before the signature holds and nothing is re-encoded to
check it. Refused: another network, another kind, any field beside the four. Not covered: whether the sender may
say this at all, and whether it was said before; a service asks both of its own state, by ``envelope_id``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Generic, TypeVar

from pocache.protocol.errors import EnvelopeError
from pocache.protocol.ids import EnvelopeId, NetworkId, ParticipantId
from pocache.protocol.keys import SigningKey, verify_signature
from pocache.protocol.limits import PAYLOAD_BYTES_MAX
from pocache.wire.codec import decode, decode_value, encode, encode_value
from pocache.wire.model import WireModel

M = TypeVar("M", bound=WireModel)

DOMAIN: Final = b"\xffpocache/v1"
"""0xFF starts no UTF-8 text and no msgpack map, so a signature here is a signature over nothing else."""

ENVELOPE_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + 512
KIND_CHARS_MAX: Final = 64
KID_CHARS: Final = 56
SIGNATURE_BYTES: Final = 64
_FRAMES_KEPT: Final = 256
_FIELDS: Final = frozenset({"kind", "payload", "kid", "sig"})

# A map header, four short keys, and kind, kid and sig with their headers fit what an envelope may add.
assert (
    1 + 4 * 8 + 2 + KIND_CHARS_MAX + 5 + 2 + KID_CHARS + 2 + SIGNATURE_BYTES
    <= ENVELOPE_BYTES_MAX - PAYLOAD_BYTES_MAX
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """The four fields, well-formed but not yet verified."""

    kind: str
    payload: bytes
    kid: ParticipantId
    sig: bytes


@dataclass(frozen=True, slots=True)
class OpenedEnvelope(Generic[M]):
    """A body whose signature holds, who signed it, and the identifier under which its effects are kept."""

    envelope_id: EnvelopeId
    sender: ParticipantId
    body: M


@dataclass(frozen=True, slots=True)
class UnsignedEnvelope:
    """A statement that is ready to be signed: its identifier and its size are known."""

    envelope_id: EnvelopeId
    preimage: bytes
    head: bytes
    """The envelope without its last 64 bytes, which are the signature."""

    def __len__(self) -> int:
        return len(self.head) + SIGNATURE_BYTES

    def sign(self, key: SigningKey) -> bytes:
        """Return the envelope as bytes; ``key`` is whose it was prepared for."""
        return self.head + key.sign(self.preimage)


def seal(key: SigningKey, network: NetworkId, model: WireModel) -> bytes:
    """Return the signed envelope of ``model`` as bytes."""
    return prepare_envelope(key.participant_id, network, model).sign(key)


def seal_identified(key: SigningKey, network: NetworkId, model: WireModel) -> tuple[bytes, EnvelopeId]:
    """Return the signed envelope of ``model``, and its id."""
    unsigned = prepare_envelope(key.participant_id, network, model)
    return unsigned.sign(key), unsigned.envelope_id


def prepare_envelope(kid: ParticipantId, network: NetworkId, model: WireModel) -> UnsignedEnvelope:
    """Return the envelope of ``model`` up to its signature. Raises LimitError for one that is too large."""
    payload = encode(model)
    preimage = compute_preimage(network, model.kind, payload)
    before, after = _frame(model.kind, kid)
    # The payload within its bound, what is around it fits: asserted above.
    head = before + encode_value(payload, bytes_max=ENVELOPE_BYTES_MAX) + after
    return UnsignedEnvelope(compute_envelope_id(preimage, kid), preimage, head)


@lru_cache(maxsize=_FRAMES_KEPT)
def _frame(kind: str, kid: ParticipantId) -> tuple[bytes, bytes]:
    """Return an envelope's bytes before its payload, and between that and its signature: the same for all of a kind."""
    fields = {"kind": kind, "payload": b"", "kid": kid, "sig": bytes(SIGNATURE_BYTES)}
    data = encode_value(fields, bytes_max=ENVELOPE_BYTES_MAX)
    cut = len(encode_value({"kind": kind, "payload": b""})) - len(encode_value(b""))
    return data[:cut], data[cut + len(encode_value(b"")) : -SIGNATURE_BYTES]


def open_envelope(
    data: bytes, network: NetworkId, model_type: type[M], expected_kind: str | None = None
) -> OpenedEnvelope[M]:
    """Return the body of an envelope of exactly this kind, its signature verified first.

    ``expected_kind`` is the model's own unless given. Raises EnvelopeError, SignatureError, CodecError, LimitError.
    """
    envelope = parse_envelope(data)
    kind = model_type.kind if expected_kind is None else expected_kind
    if envelope.kind != kind:
        raise EnvelopeError(f"expected an envelope of kind {kind}, not {envelope.kind}")
    preimage = compute_preimage(network, envelope.kind, envelope.payload)
    verify_signature(envelope.kid, preimage, envelope.sig)
    body = decode(model_type, envelope.payload)
    return OpenedEnvelope(compute_envelope_id(preimage, envelope.kid), envelope.kid, body)


def parse_envelope(data: bytes) -> Envelope:
    """Return the four fields of an envelope, sizes and types checked, signature not verified."""
    value = decode_value(data, bytes_max=ENVELOPE_BYTES_MAX)
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise EnvelopeError("an envelope has exactly the fields kind, payload, kid and sig")
    kind, payload, kid, sig = value["kind"], value["payload"], value["kid"], value["sig"]
    if not isinstance(kind, str) or not 0 < len(kind) <= KIND_CHARS_MAX or not _is_kind_text(kind):
        raise EnvelopeError(f"kind is not a name of at most {KIND_CHARS_MAX} characters")
    if not isinstance(payload, bytes) or len(payload) > PAYLOAD_BYTES_MAX:
        raise EnvelopeError(f"payload is not at most {PAYLOAD_BYTES_MAX} bytes")
    if not isinstance(kid, str) or len(kid) != KID_CHARS or not kid.isascii():
        raise EnvelopeError("kid is not a participant's key")
    if not isinstance(sig, bytes) or len(sig) != SIGNATURE_BYTES:
        raise EnvelopeError(f"sig is not {SIGNATURE_BYTES} bytes")
    return Envelope(kind=kind, payload=payload, kid=ParticipantId(kid), sig=sig)


def compute_preimage(network: NetworkId, kind: str, payload: bytes) -> bytes:
    """Return what is signed: 0xFF ‖ "pocache/v1" ‖ lp(network) ‖ lp(kind) ‖ lp(payload)."""
    return _compute_context(network, kind) + _lp(payload)


@lru_cache(maxsize=_FRAMES_KEPT)
def _compute_context(network: NetworkId, kind: str) -> bytes:
    return DOMAIN + _lp(network) + _lp(kind.encode())


def compute_envelope_id(preimage: bytes, kid: ParticipantId) -> EnvelopeId:
    """Return SHA-256 of what was signed and of who signed: the same for every encoding of the same statement."""
    return EnvelopeId(hashlib.sha256(preimage + _lp(kid.encode())).digest())


def _lp(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _is_kind_text(kind: str) -> bool:
    return kind.isascii() and kind.isprintable() and " " not in kind
