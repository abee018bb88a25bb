"""Public drand rounds of all four schemes: the League of Entropy's signatures verify here, and nothing near them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from pocache.protocol.beacon import QUICKNET, Chain, Scheme, verify_round, verify_round_signature
from pocache.protocol.errors import BeaconError

FIELD_MODULUS = (
    0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB
)
INFINITY_FLAGS = 0xC0
COMPRESSED_FLAG = 0x80


@dataclass(frozen=True)
class PublishedRound:
    """A round as drand publishes it, and the chain's published hash."""

    chain: Chain
    chain_hash: str
    number: int
    signature: bytes
    previous: bytes | None
    randomness: str


MAINNET = PublishedRound(
    chain=Chain(
        scheme=Scheme.PEDERSEN_BLS_CHAINED,
        public_key=bytes.fromhex(
            "868f005eb8e6e4ca0a47c8a77ceaa5309a47978a7c71bc5cce96366b5d7a569937c529eeda66c7293784a9402801af31"
        ),
        genesis_s=1595431050,
        period_s=30,
        genesis_seed=bytes.fromhex("176f93498eac9ca337150b46d21dd58673ea4e3581185f869672e59fa4cb390a"),
    ),
    chain_hash="8990e7a9aaed2ffed73dbd7092123d6f289930540d7651336225dc172e51b2ce",
    number=1,
    signature=bytes.fromhex(
        "8d61d9100567de44682506aea1a7a6fa6e5491cd27a0a0ed349ef6910ac5ac20ff7bc3e09d7c046566c9f7f3c6f3b101"
        "04990e7cb424998203d8f7de586fb7fa5f60045417a432684f85093b06ca91c769f0e7ca19268375e659c2a2352b4655"
    ),
    previous=bytes.fromhex("176f93498eac9ca337150b46d21dd58673ea4e3581185f869672e59fa4cb390a"),
    randomness="101297f1ca7dc44ef6088d94ad5fb7ba03455dc33d53ddb412bbc4564ed986ec",
)
QUICKNET_123 = PublishedRound(
    chain=QUICKNET,
    chain_hash="52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971",
    number=123,
    signature=bytes.fromhex(
        "b75c69d0b72a5d906e854e808ba7e2accb1542ac355ae486d591aa9d43765482e26cd02df835d3546d23c4b13e0dfc92"
    ),
    previous=None,
    randomness="fb8f7bc29bf24db51871ec8c79f3a1e4bd0557bc0dfcee9ed1d924e69d1c60dc",
)
FASTNET = PublishedRound(
    chain=Chain(
        scheme=Scheme.BLS_UNCHAINED_ON_G1,
        public_key=bytes.fromhex(
            "a0b862a7527fee3a731bcb59280ab6abd62d5c0b6ea03dc4ddf6612fdfc9d01f01c31542541771903475eb1ec6615f8d"
            "0df0b8b6dce385811d6dcf8cbefb8759e5e616a3dfd054c928940766d9a5b9db91e3b697e5d70a975181e007f87fca5e"
        ),
        genesis_s=1677685200,
        period_s=3,
        genesis_seed=bytes.fromhex("a81e9d63f614ccdb144b8ff79fbd4d5a2d22055c0bfe4ee9a8092003dab1c6c0"),
        beacon_id="fastnet",
    ),
    chain_hash="dbd506d6ef76e5f386f41c651dcb808c5bcbd75471cc4eafa3f4df7ad4e4c493",
    number=3,
    signature=bytes.fromhex(
        "8176555f90d71aa49ceb37739683749491c2bab15a46094b255289ed25cf8f01cdfb1fe8bd9cd5a19eb09448a3e53186"
    ),
    previous=None,
    randomness="a4eb0ed6c4132da066843c3bfdce732ce5013eda86e74c136ab8ccc387b798dd",
)
TESTNET_UNCHAINED = PublishedRound(
    chain=Chain(
        scheme=Scheme.PEDERSEN_BLS_UNCHAINED,
        public_key=bytes.fromhex(
            "8200fc249deb0148eb918d6e213980c5d01acd7fc251900d9260136da3b54836ce125172399ddc69c4e3e11429b62c11"
        ),
        genesis_s=1651677099,
        period_s=3,
        genesis_seed=bytes.fromhex("65083634d852ae169e21b6ce5f0410be9ed4cc679b9970236f7875cff667e13d"),
        beacon_id="testnet-unchained-3s",
    ),
    chain_hash="7672797f548f3f4748ac4bf3352fc6c6b6468c9ad40ad456a397545c6e2df5bf",
    number=1000,
    signature=bytes.fromhex(
        "a4721e6c3eafcd823f138cd29c6c82e8c5149101d0bb4bafddbac1c2d1fe3738895e4e21dd4b8b41bf00704644022091"
        "0bb1cdb91f50a84a0d7f33ff2e8577aa62ac64b35a291a728a9db5ac91e06d1312b48a376138d77b4d6ad27c24221afe"
    ),
    previous=None,
    randomness="3467f5d3118af125fbe8ffa0272e9fd1df026702afd4da50d0a0c8b3ff2dbf21",
)
ROUNDS = [
    pytest.param(MAINNET, id="mainnet-chained"),
    pytest.param(QUICKNET_123, id="quicknet"),
    pytest.param(FASTNET, id="fastnet"),
    pytest.param(TESTNET_UNCHAINED, id="testnet-unchained"),
]
all_rounds = pytest.mark.parametrize("published", ROUNDS)


def verify(published: PublishedRound, signature: bytes) -> bytes:
    return verify_round(published.chain, published.number, signature, published.previous)


def infinity(size: int) -> bytes:
    """The compressed identity of either group."""
    return bytes([INFINITY_FLAGS]) + bytes(size - 1)


@all_rounds
def test_a_published_round_verifies(published: PublishedRound) -> None:
    """The signature is the chain's, and the randomness is the one that was published."""
    assert verify(published, published.signature).hex() == published.randomness


@all_rounds
def test_the_chain_hash_is_the_published_one(published: PublishedRound) -> None:
    """drand's formula over key, clock, seed and beacon id."""
    assert published.chain.chain_hash.hex() == published.chain_hash


@all_rounds
def test_flipped_bits_are_refused(published: PublishedRound) -> None:
    """In the signature, one bit of each byte; in the key, one bit of its first and last."""
    for index in range(len(published.signature)):
        forged = bytearray(published.signature)
        forged[index] ^= 1 << index % 8
        with pytest.raises(BeaconError):
            verify(published, bytes(forged))
    for index in (0, -1):
        key = bytearray(published.chain.public_key)
        key[index] ^= 0x20
        with pytest.raises(BeaconError):
            verify_round_signature(
                published.chain.scheme, bytes(key), published.number, published.signature, published.previous
            )


@all_rounds
@pytest.mark.parametrize("step", [-1, 1, 256])
def test_another_round_is_refused(published: PublishedRound, step: int) -> None:
    """A signature is worth one round."""
    with pytest.raises(BeaconError):
        verify_round(published.chain, published.number + step, published.signature, published.previous)


@all_rounds
def test_the_identity_is_refused(published: PublishedRound) -> None:
    """As signature, as key, and above all as both, where the pairing equation holds for every round."""
    scheme = published.chain.scheme
    no_signature = infinity(len(published.signature))
    no_key = infinity(len(published.chain.public_key))
    with pytest.raises(BeaconError, match="signature is the identity"):
        verify(published, no_signature)
    with pytest.raises(BeaconError, match="public key is the identity"):
        verify_round_signature(scheme, no_key, published.number, published.signature, published.previous)
    with pytest.raises(BeaconError, match="identity"):
        verify_round_signature(scheme, no_key, published.number, no_signature, published.previous)
    with pytest.raises(BeaconError, match="public key is the identity"):
        replace(published.chain, public_key=no_key)


@all_rounds
def test_the_identity_in_disguise_is_refused(published: PublishedRound) -> None:
    """arkworks reads rubbish behind the infinity flag as the identity too."""
    for disguise in (infinity(len(published.signature))[:-1] + b"\x01", b"\xff" * len(published.signature)):
        with pytest.raises(BeaconError, match="identity|canonical|not a point"):
            verify(published, disguise)


@all_rounds
def test_what_is_no_point_is_refused(published: PublishedRound) -> None:
    """Off the curve, outside the subgroup, above the field's modulus, uncompressed, cut, or too long."""
    size = len(published.signature)
    hostile = [bytes([COMPRESSED_FLAG]) + bytes(size - 2) + bytes([x]) for x in range(8)]
    modulus = bytearray(FIELD_MODULUS.to_bytes(48, "big") + bytes(size - 48))
    modulus[0] |= COMPRESSED_FLAG
    hostile += [bytes(modulus), bytes(size)]
    for signature in hostile:
        with pytest.raises(BeaconError, match="not a point"):
            verify(published, signature)
    for signature in (published.signature[:-1], published.signature + b"\x00", b""):
        with pytest.raises(BeaconError, match="bytes, not"):
            verify(published, signature)


@all_rounds
def test_a_round_of_another_scheme_is_refused(published: PublishedRound) -> None:
    """The same key and signature under every other scheme of the same or another arrangement."""
    for scheme in set(Scheme) - {published.chain.scheme}:
        for previous in (None, published.previous):
            with pytest.raises(BeaconError):
                verify_round_signature(
                    scheme, published.chain.public_key, published.number, published.signature, previous
                )


@pytest.mark.parametrize(
    "previous", [None, b"", bytes(32), MAINNET.signature], ids=["none", "empty", "zeros", "later"]
)
def test_another_previous_signature_is_refused(previous: bytes | None) -> None:
    """A chained round signs exactly what came before it."""
    with pytest.raises(BeaconError):
        verify_round(MAINNET.chain, 1, MAINNET.signature, previous)


def test_a_chain_with_another_genesis_seed_does_not_own_the_first_round() -> None:
    """Before round 1 stands the chain's own seed."""
    other = replace(MAINNET.chain, genesis_seed=bytes(32))
    with pytest.raises(BeaconError, match="genesis seed"):
        verify_round(other, 1, MAINNET.signature, MAINNET.previous)


@pytest.mark.parametrize("published", ROUNDS[1:])
def test_an_unsigned_previous_signature_is_refused(published: PublishedRound) -> None:
    """Nothing in an unchained scheme vouches for it."""
    with pytest.raises(BeaconError, match="no previous signature"):
        verify_round(published.chain, published.number, published.signature, bytes(48))
