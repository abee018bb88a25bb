"""BLS signatures on BLS12-381: owns points, pairings and secrets; knows nothing of rounds (docs/protocol.md 5).

Both arrangements that drand uses: keys on G2 with signatures on G1 (48 bytes), and keys on G1 with signatures on G2.
Points travel compressed, in the ZCash format. arkworks checks the curve and the subgroup; it accepts the identity
(with rubbish behind its flag) and says nothing about keys, so these are refused here: the identity as key or as
signature (it "signs" everything), every second spelling of a point, secrets outside 1 … r-1.

Not covered: aggregation of keys, whose shares are in ``protocol.threshold``, and constant time; signing belongs where
nobody measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from hashlib import sha512
from typing import Any, Final

from py_arkworks_bls12381 import GT, G1Point, G2Point, Scalar

from pocache.protocol.errors import BeaconError

G1_BYTES: Final = 48
G2_BYTES: Final = 96
SECRET_BYTES: Final = 32

ORDER: Final = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
"""r: the order of G1 and of G2."""

_SECRET_DOMAIN: Final = b"pocache/v1/bls-secret"


class Arrangement(Enum):
    """On which of the two groups the signatures lie; the keys lie on the other."""

    SIGNATURE_ON_G1 = "signature on G1, key on G2"
    SIGNATURE_ON_G2 = "signature on G2, key on G1"

    @property
    def public_key_bytes(self) -> int:
        """Size of a compressed public key."""
        return G2_BYTES if self is Arrangement.SIGNATURE_ON_G1 else G1_BYTES

    @property
    def signature_bytes(self) -> int:
        """Size of a compressed signature."""
        return G1_BYTES if self is Arrangement.SIGNATURE_ON_G1 else G2_BYTES


def verify_signature(
    arrangement: Arrangement, public_key: bytes, message: bytes, signature: bytes, domain: bytes
) -> None:
    """Check one BLS signature, or raise BeaconError.

    e(signature, generator) = e(H(message), key), as one product of two pairings; H is RFC 9380's random-oracle
    suite with SHA-256 and SSWU under the domain separation tag `domain`.
    """
    if arrangement is Arrangement.SIGNATURE_ON_G1:
        g1s = [_decode_g1(signature, "signature"), -G1Point.hash_to_curve(message, domain)]
        g2s = [G2Point(), _decode_g2(public_key, "public key")]
    else:
        g1s = [-G1Point(), _decode_g1(public_key, "public key")]
        g2s = [_decode_g2(signature, "signature"), G2Point.hash_to_curve(message, domain)]
    if not GT.pairing_check(g1s, g2s):
        raise BeaconError("the BLS signature is not this key's over this message")


def verify_public_key(arrangement: Arrangement, public_key: bytes) -> None:
    """Check that a public key is a canonical point of the right group and not the identity, or raise BeaconError."""
    if arrangement is Arrangement.SIGNATURE_ON_G1:
        _decode_g2(public_key, "public key")
    else:
        _decode_g1(public_key, "public key")


def sign(arrangement: Arrangement, secret: bytes, message: bytes, domain: bytes) -> bytes:
    """Return the compressed signature secret · H(message)."""
    scalar = _decode_secret(secret)
    if arrangement is Arrangement.SIGNATURE_ON_G1:
        return (G1Point.hash_to_curve(message, domain) * scalar).to_compressed_bytes()
    return (G2Point.hash_to_curve(message, domain) * scalar).to_compressed_bytes()


def compute_public_key(arrangement: Arrangement, secret: bytes) -> bytes:
    """Return the compressed public key secret · generator."""
    scalar = _decode_secret(secret)
    if arrangement is Arrangement.SIGNATURE_ON_G1:
        return (G2Point() * scalar).to_compressed_bytes()
    return (G1Point() * scalar).to_compressed_bytes()


def compute_secret(entropy: bytes) -> bytes:
    """Return a secret in 1 … r-1, 32 bytes big-endian, from at least 32 bytes of the caller's entropy.

    1 + (SHA-512(domain ‖ entropy) mod (r-1)): 512 bits, so the bias of the modulus is below 2^-256.
    """
    if len(entropy) < SECRET_BYTES:
        raise BeaconError(f"a secret needs at least {SECRET_BYTES} bytes of entropy, not {len(entropy)}")
    number = int.from_bytes(sha512(_SECRET_DOMAIN + entropy).digest(), "big")
    return (1 + number % (ORDER - 1)).to_bytes(SECRET_BYTES, "big")


def combine_signatures(
    arrangement: Arrangement, signatures: Sequence[bytes], weights: Sequence[int]
) -> bytes:
    """Return the compressed point Σ weight · signature; weights are taken modulo r (docs/protocol.md 5.6.2)."""
    if arrangement is Arrangement.SIGNATURE_ON_G1:
        return _combine(G1Point.identity(), [_decode_g1(one, "signature") for one in signatures], weights)
    return _combine(G2Point.identity(), [_decode_g2(one, "signature") for one in signatures], weights)


def combine_public_keys(
    arrangement: Arrangement, public_keys: Sequence[bytes], weights: Sequence[int]
) -> bytes:
    """Return the compressed point Σ weight · public key; weights are taken modulo r (docs/protocol.md 5.6.2)."""
    if arrangement is Arrangement.SIGNATURE_ON_G1:
        return _combine(G2Point.identity(), [_decode_g2(one, "public key") for one in public_keys], weights)
    return _combine(G1Point.identity(), [_decode_g1(one, "public key") for one in public_keys], weights)


def _combine(total: Any, points: Sequence[Any], weights: Sequence[int]) -> bytes:
    assert len(points) == len(weights)
    for point, weight in zip(points, weights, strict=True):
        total = total + point * Scalar.from_be_bytes((weight % ORDER).to_bytes(SECRET_BYTES, "big"))
    return bytes(total.to_compressed_bytes())


def _decode_secret(secret: bytes) -> Scalar:
    if len(secret) != SECRET_BYTES or not 0 < int.from_bytes(secret, "big") < ORDER:
        raise BeaconError(f"a BLS secret is {SECRET_BYTES} bytes, big-endian, between 1 and r-1")
    return Scalar.from_be_bytes(secret)


def _decode_g1(data: bytes, what: str) -> G1Point:
    if len(data) != G1_BYTES:
        raise BeaconError(f"a {what} on G1 has {G1_BYTES} bytes, not {len(data)}")
    try:
        point = G1Point.from_compressed_bytes(data)
    except ValueError as error:
        raise BeaconError(f"the {what} is not a point of G1") from error
    if point == G1Point.identity():
        raise BeaconError(f"the {what} is the identity")
    if point.to_compressed_bytes() != data:
        raise BeaconError(f"the {what} is not in its one canonical spelling")
    return point


def _decode_g2(data: bytes, what: str) -> G2Point:
    if len(data) != G2_BYTES:
        raise BeaconError(f"a {what} on G2 has {G2_BYTES} bytes, not {len(data)}")
    try:
        point = G2Point.from_compressed_bytes(data)
    except ValueError as error:
        raise BeaconError(f"the {what} is not a point of G2") from error
    if point == G2Point.identity():
        raise BeaconError(f"the {what} is the identity")
    if point.to_compressed_bytes() != data:
        raise BeaconError(f"the {what} is not in its one canonical spelling")
    return point
