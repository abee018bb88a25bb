"""Participants' keys: one spelling each, NATS's own format, and no key under which anybody can sign."""

from __future__ import annotations

import base64
import binascii

import nacl.bindings
import nkeys
import pytest

from pocache.protocol.errors import SignatureError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.keys import SigningKey, decode_participant, encode_participant, verify_signature

ENTROPY = bytes(range(32))
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

# Every canonical encoding of a point of order 1, 2, 4 or 8.
SMALL_ORDER_KEYS = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]
# The identity, spelled with y = p + 1, and with the sign bit of a zero x.
NON_CANONICAL_KEYS = [
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0100000000000000000000000000000000000000000000000000000000000080",
]
ORDER_TWO = bytes.fromhex(SMALL_ORDER_KEYS[1])


def spell(prefix: int, key: bytes) -> ParticipantId:
    """Write any bytes as NATS writes a key, without a look at what they are."""
    body = bytes([prefix]) + key
    text = base64.b32encode(body + binascii.crc_hqx(body, 0).to_bytes(2, "little"))
    return ParticipantId(text.rstrip(b"=").decode())


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate(ENTROPY)


def test_the_text_forms_are_those_of_nkeys(key: SigningKey) -> None:
    """The nkeys package reads our seed, and writes the same public key and the same signature."""
    theirs = nkeys.from_seed(key.seed_text.encode())
    assert theirs.public_key.decode() == key.participant_id
    assert theirs.seed.decode() == key.seed_text
    assert theirs.sign(b"message") == key.sign(b"message")


def test_a_seed_of_nkeys_is_read(key: SigningKey) -> None:
    """What the nkeys package encodes as a user seed is our key."""
    text = nkeys.encode_seed(ENTROPY, nkeys.PREFIX_BYTE_USER).decode()
    assert SigningKey.from_seed_text(text).participant_id == key.participant_id


def test_known_answer() -> None:
    """RFC 8032's first test vector, in our text form."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public_key = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595b"
        "be24655141438e7a100b"
    )
    key = SigningKey.generate(seed)
    assert decode_participant(key.participant_id) == public_key
    assert key.sign(b"") == signature
    verify_signature(key.participant_id, b"", signature)


def test_text_is_recognised_at_sight(key: SigningKey) -> None:
    """A participant is 56 characters from U; a seed 58 from SU."""
    assert len(key.participant_id) == 56
    assert key.participant_id.startswith("U")
    assert len(key.seed_text) == 58
    assert key.seed_text.startswith("SU")


def test_the_seed_is_not_in_the_representation(key: SigningKey) -> None:
    """A logged key shows its public part alone."""
    assert key.seed_text not in repr(key) + str(key)
    assert key.participant_id in repr(key)


def test_every_flipped_bit_of_a_signature_is_refused(key: SigningKey) -> None:
    """No bit of a signature is without meaning."""
    signature = key.sign(b"message")
    verify_signature(key.participant_id, b"message", signature)
    for bit in range(len(signature) * 8):
        forged = bytearray(signature)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            verify_signature(key.participant_id, b"message", bytes(forged))


def test_another_message_or_signer_is_refused(key: SigningKey) -> None:
    """A signature is one participant's over one message."""
    signature = key.sign(b"message")
    other = SigningKey.generate(bytes(32))
    with pytest.raises(SignatureError):
        verify_signature(key.participant_id, b"massage", signature)
    with pytest.raises(SignatureError):
        verify_signature(other.participant_id, b"message", signature)


@pytest.mark.parametrize("size", [0, 32, 63, 65, 128])
def test_a_signature_of_another_size_is_refused(key: SigningKey, size: int) -> None:
    """Sixty-four bytes, nothing before and nothing behind."""
    signature = (key.sign(b"message") + bytes(64))[:size]
    with pytest.raises(SignatureError, match="64 bytes"):
        verify_signature(key.participant_id, b"message", signature)


def test_a_malleable_signature_is_refused(key: SigningKey) -> None:
    """s + L verifies in careless libraries; one message would have two signatures."""
    order = 2**252 + 27742317777372353535851937790883648493
    signature = key.sign(b"message")
    s = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(SignatureError):
        verify_signature(key.participant_id, b"message", signature[:32] + s.to_bytes(32, "little"))


@pytest.mark.parametrize("key_hex", SMALL_ORDER_KEYS + NON_CANONICAL_KEYS)
def test_a_key_that_anybody_can_sign_for_is_refused(key_hex: str) -> None:
    """Small orders and second spellings are no participants, neither written nor read."""
    with pytest.raises(SignatureError, match="prime order"):
        encode_participant(bytes.fromhex(key_hex))
    with pytest.raises(SignatureError, match="prime order"):
        decode_participant(spell(20 << 3, bytes.fromhex(key_hex)))


def test_a_key_of_mixed_order_is_refused(key: SigningKey) -> None:
    """A good key plus a point of order two: verifiers disagree on its signatures."""
    mixed = nacl.bindings.crypto_core_ed25519_add(decode_participant(key.participant_id), ORDER_TWO)
    with pytest.raises(SignatureError, match="prime order"):
        decode_participant(spell(20 << 3, mixed))


def test_the_identity_key_signs_nothing() -> None:
    """Under the identity R = s·B fits every message; the key is refused before that is tried."""
    identity = bytes.fromhex(SMALL_ORDER_KEYS[0])
    forged = nacl.bindings.crypto_scalarmult_ed25519_base_noclamp((7).to_bytes(32, "little"))
    with pytest.raises(SignatureError):
        verify_signature(spell(20 << 3, identity), b"anything", forged + (7).to_bytes(32, "little"))


@pytest.mark.parametrize("prefix", [0, 13 << 3, 14 << 3, 15 << 3, 18 << 3, 20 << 3 | 1, 255])
def test_another_kind_of_key_is_refused(key: SigningKey, prefix: int) -> None:
    """An account's, server's or operator's key is no participant."""
    with pytest.raises(SignatureError, match="starts with U"):
        decode_participant(spell(prefix, decode_participant(key.participant_id)))


def test_every_changed_character_is_refused(key: SigningKey) -> None:
    """The checksum covers the prefix and the key."""
    text = key.participant_id
    for index, char in enumerate(text):
        changed = text[:index] + ALPHABET[(ALPHABET.index(char) + 1) % 32] + text[index + 1 :]
        with pytest.raises(SignatureError, match="checksum"):
            decode_participant(changed)


def test_other_spellings_are_refused(key: SigningKey) -> None:
    """No lower case, padding, white space, or foreign characters: one key, one text."""
    text = key.participant_id
    for other in (
        "",
        text.lower(),
        text + "=",
        text[:-1],
        text + "A",
        " " + text[1:],
        text[:-1] + "\n",
        "é" * 56,
    ):
        with pytest.raises(SignatureError):
            decode_participant(other)


def test_a_seed_with_loose_bits_at_its_end_is_refused(key: SigningKey) -> None:
    """Fifty-eight characters hold two bits more than the seed needs; they are zero."""
    text = key.seed_text
    loose = text[:-1] + ALPHABET[ALPHABET.index(text[-1]) + 1]
    assert base64.b32decode(loose + "=" * 6) == base64.b32decode(text + "=" * 6)
    with pytest.raises(SignatureError, match="canonical"):
        SigningKey.from_seed_text(loose)


def test_other_seeds_are_refused(key: SigningKey) -> None:
    """An account's seed, a public key, a seed cut short."""
    account = nkeys.encode_seed(ENTROPY, nkeys.PREFIX_BYTE_ACCOUNT).decode()
    with pytest.raises(SignatureError, match="SU"):
        SigningKey.from_seed_text(account)
    for text in ("", key.participant_id, key.seed_text[:-1], key.seed_text.lower()):
        with pytest.raises(SignatureError):
            SigningKey.from_seed_text(text)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_entropy_and_keys_of_another_size_are_refused(size: int) -> None:
    """Thirty-two bytes each."""
    with pytest.raises(SignatureError):
        SigningKey.generate(bytes(size))
    with pytest.raises(SignatureError):
        encode_participant(bytes(size))


def test_refusals_do_not_repeat_what_may_be_a_secret(key: SigningKey) -> None:
    """An error about a seed is logged; the seed is not."""
    broken = key.seed_text[:-3] + "AAA"
    with pytest.raises(SignatureError) as caught:
        SigningKey.from_seed_text(broken)
    assert broken[2:20] not in str(caught.value)
