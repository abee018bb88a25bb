"""A beacon key in n shares of which any t sign: owns shares, partial signatures, and their combination.

Shamir's sharing over the group order r: share i is f(i) of a polynomial f of degree t - 1 whose f(0) is the chain's
secret. BLS is linear, so t partial signatures interpolate, in the exponent, to the one signature that f(0) would have
made: a round of scheme bls-unchained-g1-rfc9380 like any other, the same whichever t made it (docs/protocol.md 5.6).
Refused: a committee whose public shares do not lie on one polynomial below the group key, a partial that is not its
member's, fewer partials than t.

Not covered: who dealt the shares. Whoever ran `split_secret` could sign alone; so can any t members together, and they
know the rounds to come. A key that never was in one place needs distributed key generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha512
from typing import Final

from pocache.protocol import bls
from pocache.protocol.beacon import Scheme, compute_public_key, sign_round, verify_round_signature
from pocache.protocol.errors import BeaconError
from pocache.protocol.limits import BEACON_MEMBERS_MAX

SCHEME: Final = Scheme.BLS_UNCHAINED_G1_RFC9380
_COEFFICIENT_DOMAIN: Final = b"pocache/v1/bls-share"


@dataclass(frozen=True, slots=True)
class Committee:
    """Who may sign for a chain: t, the group's key, and each member's public share; member i's is at i - 1.

    Construction interpolates every public share beyond the first t, and the group key, from the first t: then any t
    members make the same signature, and it is the group's.
    """

    threshold: int
    public_key: bytes
    public_shares: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _verify_size(self.threshold, len(self.public_shares))
        first = range(1, self.threshold + 1)
        known = self.public_shares[: self.threshold]
        for index, expected in ((0, self.public_key), *enumerate(self.public_shares, start=1)):
            if index in first:
                continue
            weights = compute_lagrange_weights(first, at=index)
            if bls.combine_public_keys(SCHEME.arrangement, known, weights) != expected:
                what = f"public share {index}" if index else "the chain's public key"
                raise BeaconError(f"{what} does not belong to the first {self.threshold} public shares")


def split_secret(secret: bytes, threshold: int, member_count: int, entropy: bytes) -> tuple[bytes, ...]:
    """Return the shares of members 1 … n: f(i) for f(x) = secret + Σ a_k x^k, k = 1 … t - 1.

    a_k = SHA-512(domain ‖ u32 k ‖ entropy) mod r; the entropy, at least 32 bytes, is the caller's and is forgotten.
    """
    _verify_size(threshold, member_count)
    if len(entropy) < bls.SECRET_BYTES:
        raise BeaconError(f"shares need at least {bls.SECRET_BYTES} bytes of entropy, not {len(entropy)}")
    compute_public_key(secret)  # refuses what is no secret
    coefficients = [int.from_bytes(secret, "big")]
    for power in range(1, threshold):
        digest = sha512(_COEFFICIENT_DOMAIN + power.to_bytes(4, "big") + entropy).digest()
        coefficients.append(int.from_bytes(digest, "big") % bls.ORDER)
    return tuple(_evaluate(coefficients, index) for index in range(1, member_count + 1))


def compute_committee(threshold: int, secret: bytes, shares: Sequence[bytes]) -> Committee:
    """Return the public side of a secret and its shares."""
    return Committee(
        threshold, compute_public_key(secret), tuple(compute_public_key(share) for share in shares)
    )


def sign_partial(share: bytes, round_number: int) -> bytes:
    """Return a member's part of a round: the signature that its share alone makes, 48 bytes."""
    return sign_round(share, round_number)


def verify_partial(committee: Committee, index: int, round_number: int, partial: bytes) -> None:
    """Check a member's part of a round against its public share, or raise BeaconError that names the member."""
    if not 1 <= index <= len(committee.public_shares):
        raise BeaconError(f"the beacon has no member {index}")
    try:
        verify_round_signature(SCHEME, committee.public_shares[index - 1], round_number, partial)
    except BeaconError as error:
        raise BeaconError(f"the part of member {index} in round {round_number} is false: {error}") from error


def combine_partials(committee: Committee, round_number: int, partials: Mapping[int, bytes]) -> bytes:
    """Return the round's signature from the parts of at least t members, by member; verified under the group key.

    Σ λ_i · partial_i over the t lowest members given, λ_i = Π_{j≠i} j / (j - i) mod r. When it does not verify, a
    part is false: BeaconError names the members whose parts are.
    """
    if len(partials) < committee.threshold:
        raise BeaconError(f"a round needs the parts of {committee.threshold} members, not {len(partials)}")
    indexes = sorted(partials)[: committee.threshold]
    signatures = [partials[index] for index in indexes]
    try:
        signature = bls.combine_signatures(
            SCHEME.arrangement, signatures, compute_lagrange_weights(indexes, at=0)
        )
        verify_round_signature(SCHEME, committee.public_key, round_number, signature)
    except BeaconError as error:
        false = find_false_partials(committee, round_number, partials)
        assert false, "true parts combine to the group's signature: construction of the committee checked it"
        raise BeaconError(f"false parts in round {round_number}, of members {false}: {error}") from error
    return signature


def find_false_partials(
    committee: Committee, round_number: int, partials: Mapping[int, bytes]
) -> tuple[int, ...]:
    """Return the members, ascending, whose parts do not verify."""
    false = []
    for index in sorted(partials):
        try:
            verify_partial(committee, index, round_number, partials[index])
        except BeaconError:
            false.append(index)
    return tuple(false)


def compute_lagrange_weights(indexes: Sequence[int], *, at: int) -> list[int]:
    """Return λ_i = Π_{j≠i} (at - j) / (i - j) mod r for distinct indexes: f(at) = Σ λ_i f(i)."""
    assert len(set(indexes)) == len(indexes)
    weights = []
    for i in indexes:
        numerator = denominator = 1
        for j in indexes:
            if j != i:
                numerator = numerator * (at - j) % bls.ORDER
                denominator = denominator * (i - j) % bls.ORDER
        weights.append(numerator * pow(denominator, -1, bls.ORDER) % bls.ORDER)
    return weights


def _evaluate(coefficients: Sequence[int], index: int) -> bytes:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * index + coefficient) % bls.ORDER
    if value == 0:
        raise BeaconError(f"share {index} is zero: take other entropy")
    return value.to_bytes(bls.SECRET_BYTES, "big")


def _verify_size(threshold: int, member_count: int) -> None:
    if not 1 <= threshold <= member_count <= BEACON_MEMBERS_MAX:
        raise BeaconError(
            f"a beacon of {threshold} of {member_count}: 1 ≤ t ≤ n ≤ {BEACON_MEMBERS_MAX} must hold"
        )
