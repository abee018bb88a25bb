"""Ed25519 keys in NKey text form: owns what a participant's name is and how it signs (docs/protocol.md 1.3).

A participant is called by its public key, written as NATS writes a user key: base32, without padding, of
``prefix byte ‖ key ‖ CRC-16``. One key has one spelling. Refused: another prefix (an account's or a server's
key), lower case, padding, a wrong checksum, and every key that is not a canonical point of prime order, the
identity above all, under which anybody can sign anything.

Not covered here: where a seed is stored, and erasing it from memory.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from typing import Final

import nacl.bindings
from nacl.exceptions import CryptoError

from pocache.protocol.errors import SignatureError
from pocache.protocol.ids import ParticipantId

SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
PARTICIPANT_TEXT_CHARS: Final = 56
SEED_TEXT_CHARS: Final = 58

PREFIX_USER: Final = 20 << 3
"""``U`` in base32: the key belongs to a user, in NATS's sense of the word."""

PREFIX_SEED: Final = 18 << 3
"""``S`` in base32: a seed; the prefix of the key's own kind follows, spread over two bytes."""

_SEED_HEADER: Final = bytes([PREFIX_SEED | PREFIX_USER >> 5, (PREFIX_USER & 0b11111) << 3])
_CHECKSUM_BYTES: Final = 2
_DECODED_KEYS_KEPT: Final = 4096


class SigningKey:
    """A participant's secret key; its text and representation never show the seed by accident."""

    __slots__ = ("_participant_id", "_secret_key", "_seed")

    def __init__(self, seed: bytes) -> None:
        """Make the key of a 32-byte seed; `generate`, `from_seed_text` are the ways in."""
        if len(seed) != SEED_BYTES:
            raise SignatureError(f"a signing seed has {SEED_BYTES} bytes, not {len(seed)}")
        public_key, secret_key = nacl.bindings.crypto_sign_seed_keypair(seed)
        self._seed = bytes(seed)
        self._secret_key = secret_key
        self._participant_id = encode_participant(public_key)

    @classmethod
    def generate(cls, entropy: bytes) -> SigningKey:
        """Return the key made of 32 bytes that the caller drew from a cryptographic generator."""
        return cls(entropy)

    @classmethod
    def from_seed_text(cls, text: str) -> SigningKey:
        """Return the key of a seed in NKey text form (``SU…``), or raise SignatureError."""
        data = _decode_base32(text, SEED_TEXT_CHARS, "seed")
        if data[:2] != _SEED_HEADER:
            raise SignatureError("not the seed of a user key: it must start with SU")
        return cls(data[2:])

    @property
    def seed_text(self) -> str:
        """The secret, in NKey text form: 58 characters that start with ``SU``."""
        return _encode_base32(_SEED_HEADER + self._seed)

    @property
    def participant_id(self) -> ParticipantId:
        """The public key, in NKey text form."""
        return self._participant_id

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature over the message's exact bytes."""
        return nacl.bindings.crypto_sign(bytes(message), self._secret_key)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey({self._participant_id})"


def verify_signature(participant: ParticipantId, message: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature over the message's exact bytes, or raise SignatureError.

    libsodium's rules: s below the group's order, R not of small order; the key is checked by `decode_participant`.
    """
    public_key = decode_participant(participant)
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureError(f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}")
    try:
        nacl.bindings.crypto_sign_open(bytes(signature) + bytes(message), public_key)
    except CryptoError as error:
        raise SignatureError(f"the signature is not {participant}'s over this message") from error


def encode_participant(public_key: bytes) -> ParticipantId:
    """Return the NKey text of a public key of 32 bytes, or raise SignatureError."""
    _verify_public_key(public_key)
    return ParticipantId(_encode_base32(bytes([PREFIX_USER]) + public_key))


@lru_cache(maxsize=_DECODED_KEYS_KEPT)
def decode_participant(text: str) -> bytes:
    """Return the 32 bytes of a public key in NKey text form, or raise SignatureError."""
    data = _decode_base32(text, PARTICIPANT_TEXT_CHARS, "participant id")
    if data[0] != PREFIX_USER:
        raise SignatureError("not a user key: a participant id starts with U")
    _verify_public_key(data[1:])
    return data[1:]


def _verify_public_key(public_key: bytes) -> None:
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise SignatureError(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    if not nacl.bindings.crypto_core_ed25519_is_valid_point(bytes(public_key)):
        raise SignatureError("not a public key: not a canonical point of prime order")


def _encode_base32(body: bytes) -> str:
    checksum = binascii.crc_hqx(body, 0).to_bytes(_CHECKSUM_BYTES, "little")
    return base64.b32encode(body + checksum).rstrip(b"=").decode("ascii")


def _decode_base32(text: str, char_count: int, what: str) -> bytes:
    """Return the body without its checksum; refuses every spelling but the one that `_encode_base32` writes."""
    # The text itself stays out of the messages: it may be a secret, or a megabyte.
    if not isinstance(text, str) or len(text) != char_count:
        raise SignatureError(f"a {what} has {char_count} characters")
    try:
        data = base64.b32decode(text + "=" * (-char_count % 8))
    except ValueError as error:
        raise SignatureError(f"a {what} is base32 in capitals") from error
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if binascii.crc_hqx(body, 0).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise SignatureError(f"the {what}'s checksum is wrong")
    if _encode_base32(body) != text:
        raise SignatureError(f"the {what} is not in its one canonical spelling")
    return body
