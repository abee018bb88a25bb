"""Beacon rounds in drand's own formats: owns chains, rounds, their times and their binding (docs/protocol.md 5).

A chain is its scheme, key and clock; its hash names it in every seed. Refused: a round that its chain's key did not
sign, a previous signature where the scheme signs none, rounds before the first.

Not covered: who holds the key. The operator of a local chain knows its future rounds; only a chain signed by many,
such as quicknet, protects from its operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final

from pocache.protocol import bls
from pocache.protocol.bls import Arrangement
from pocache.protocol.errors import BeaconError
from pocache.protocol.ids import Digest, Round
from pocache.protocol.limits import ROUND_MAX, TEXT_BYTES_MAX, TIME_MS_MAX

ROUND_FIRST: Final = Round(1)
"""The round at genesis time; drand's round 0 is the genesis seed and has no signature."""

BEACON_ID_DEFAULT: Final = "default"
PERIOD_S_MAX: Final = 2**32 - 1

_DOMAIN_G1: Final = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"
_DOMAIN_G2: Final = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_NUL_"
_GENESIS_SEED_BYTES: Final = 32
_MS_PER_S: Final = 1000


class Scheme(StrEnum):
    """How a chain's rounds are signed, by drand's names."""

    PEDERSEN_BLS_CHAINED = "pedersen-bls-chained"
    """Signatures on G2 over the previous signature and the round: drand's first network."""

    PEDERSEN_BLS_UNCHAINED = "pedersen-bls-unchained"
    """Signatures on G2 over the round alone."""

    BLS_UNCHAINED_ON_G1 = "bls-unchained-on-g1"
    """Signatures on G1, hashed under G2's domain tag: a mistake of drand's that lives on for compatibility."""

    BLS_UNCHAINED_G1_RFC9380 = "bls-unchained-g1-rfc9380"
    """Signatures on G1 under G1's domain tag: quicknet, and the local chain."""

    @property
    def is_chained(self) -> bool:
        """Whether a round signs the one before it."""
        return self is Scheme.PEDERSEN_BLS_CHAINED

    @property
    def arrangement(self) -> Arrangement:
        """On which groups keys and signatures lie."""
        if self in (Scheme.PEDERSEN_BLS_CHAINED, Scheme.PEDERSEN_BLS_UNCHAINED):
            return Arrangement.SIGNATURE_ON_G2
        return Arrangement.SIGNATURE_ON_G1

    @property
    def domain(self) -> bytes:
        """The domain separation tag that messages are hashed under."""
        return _DOMAIN_G1 if self is Scheme.BLS_UNCHAINED_G1_RFC9380 else _DOMAIN_G2


@dataclass(frozen=True, slots=True)
class Chain:
    """A beacon chain: who signs its rounds, and when; construction refuses what cannot be one."""

    scheme: Scheme
    public_key: bytes
    genesis_s: int
    period_s: int
    genesis_seed: bytes
    beacon_id: str = BEACON_ID_DEFAULT

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, Scheme):
            raise BeaconError("the chain's scheme is none of drand's")
        if not 0 <= self.genesis_s <= TIME_MS_MAX // _MS_PER_S:
            raise BeaconError(f"genesis time {self.genesis_s} s is out of range")
        if not 1 <= self.period_s <= PERIOD_S_MAX:
            raise BeaconError(f"period {self.period_s} s is out of range")
        if len(self.genesis_seed) != _GENESIS_SEED_BYTES:
            raise BeaconError(f"a genesis seed has {_GENESIS_SEED_BYTES} bytes, not {len(self.genesis_seed)}")
        if len(self.beacon_id.encode()) > TEXT_BYTES_MAX:
            raise BeaconError("the beacon id is too long")
        bls.verify_public_key(self.scheme.arrangement, self.public_key)

    @property
    def chain_hash(self) -> Digest:
        """The chain's name, by drand's own formula (its `common/chain/info.go`).

        SHA256(u32be period in s ‖ i64be genesis time in s ‖ public key ‖ genesis seed ‖ beacon id), the id being
        left out when it is ``default`` or empty. The scheme is not in it: pin scheme and hash together.
        """
        body = self.period_s.to_bytes(4, "big") + self.genesis_s.to_bytes(8, "big")
        body += self.public_key + self.genesis_seed
        if self.beacon_id != BEACON_ID_DEFAULT:
            body += self.beacon_id.encode()
        return Digest(sha256(body).digest())

    def to_info(self) -> dict[str, object]:
        """Return drand's info document of the chain, as its HTTP interface serves it."""
        return {
            "public_key": self.public_key.hex(),
            "period": self.period_s,
            "genesis_time": self.genesis_s,
            "hash": self.chain_hash.hex(),
            "groupHash": self.genesis_seed.hex(),
            "schemeID": self.scheme.value,
            "metadata": {"beaconID": self.beacon_id},
        }

    @classmethod
    def from_info(cls, info: Mapping[str, object]) -> Chain:
        """Return the chain of a drand info document whose stated hash is its own, or raise BeaconError.

        Both of drand's forms are read: v1 (``hash``, ``groupHash``, ``schemeID``, ``metadata``), and v2 (``chain_hash``,
        ``genesis_seed``, ``scheme``, ``beacon_id``).
        It says nothing about whose chain it is: the caller compares `chain_hash` and `scheme` with what it pinned.
        """
        if "chain_hash" in info:
            info = _read_info_v2(info)
        metadata = info.get("metadata", {})
        beacon_id = metadata.get("beaconID", BEACON_ID_DEFAULT) if isinstance(metadata, Mapping) else None
        period_s, genesis_s, scheme = info.get("period"), info.get("genesis_time"), info.get("schemeID")
        if type(period_s) is not int or type(genesis_s) is not int or not isinstance(beacon_id, str):
            raise BeaconError("chain info: period and genesis_time are integers, metadata.beaconID is a text")
        if scheme not in tuple(Scheme):
            raise BeaconError("chain info: unknown schemeID")
        chain = cls(
            scheme=Scheme(str(scheme)),
            public_key=_decode_hex(info, "public_key"),
            genesis_s=genesis_s,
            period_s=period_s,
            genesis_seed=_decode_hex(info, "groupHash"),
            beacon_id=beacon_id,
        )
        if _decode_hex(info, "hash") != chain.chain_hash:
            raise BeaconError("chain info: the hash is not that of the other fields")
        return chain


def verify_round(
    chain: Chain, round_number: int, signature: bytes, previous_signature: bytes | None = None
) -> bytes:
    """Check a round of a chain and return its randomness, SHA256(signature); or raise BeaconError.

    A chained scheme needs the previous signature; before its first round stands the genesis seed.
    """
    if chain.scheme.is_chained and round_number == ROUND_FIRST and previous_signature != chain.genesis_seed:
        raise BeaconError("before the first round of a chained scheme stands the chain's genesis seed")
    return verify_round_signature(chain.scheme, chain.public_key, round_number, signature, previous_signature)


def verify_round_signature(
    scheme: Scheme,
    public_key: bytes,
    round_number: int,
    signature: bytes,
    previous_signature: bytes | None = None,
) -> bytes:
    """Check a round by scheme and key alone and return its randomness, or raise BeaconError.

    The message is SHA256(previous signature ‖ u64be round), the previous signature only where the scheme is chained.
    """
    message = _compute_message(scheme, round_number, previous_signature)
    bls.verify_signature(scheme.arrangement, public_key, message, signature, scheme.domain)
    return sha256(signature).digest()


def sign_round(secret: bytes, round_number: int) -> bytes:
    """Return a local chain's signature of a round: scheme bls-unchained-g1-rfc9380, 48 bytes."""
    scheme = Scheme.BLS_UNCHAINED_G1_RFC9380
    return bls.sign(scheme.arrangement, secret, _compute_message(scheme, round_number, None), scheme.domain)


def compute_public_key(secret: bytes) -> bytes:
    """Return a local chain's public key: 96 bytes, on G2."""
    return bls.compute_public_key(Scheme.BLS_UNCHAINED_G1_RFC9380.arrangement, secret)


def compute_secret(entropy: bytes) -> bytes:
    """Return a local chain's secret, made of at least 32 bytes of the caller's entropy."""
    return bls.compute_secret(entropy)


def compute_round_time_ms(chain: Chain, round_number: int) -> int:
    """Return when a round is due, in ms: genesis + (round - 1) · period."""
    _verify_round_number(round_number)
    return (chain.genesis_s + (round_number - 1) * chain.period_s) * _MS_PER_S


def compute_round_at(chain: Chain, time_ms: int) -> Round:
    """Return the latest round that is due at a time; 0 before genesis."""
    _verify_time_ms(time_ms)
    since_genesis_ms = time_ms - chain.genesis_s * _MS_PER_S
    return Round(max(0, since_genesis_ms // (chain.period_s * _MS_PER_S) + 1))


def bind_round(chain: Chain, time_ms: int, delay_ms: int) -> Round:
    """Return the round that an event at a time is bound to: the first one due strictly after t + Δ.

    ⌊(t + Δ - genesis) / period⌋ + 2 in integers, and never before the first round (docs/protocol.md 5.4.2).
    """
    _verify_time_ms(time_ms)
    if not 0 <= delay_ms <= TIME_MS_MAX:
        raise BeaconError(f"a binding delay of {delay_ms} ms is out of range")
    since_genesis_ms = time_ms + delay_ms - chain.genesis_s * _MS_PER_S
    return Round(max(ROUND_FIRST, since_genesis_ms // (chain.period_s * _MS_PER_S) + 2))


def _compute_message(scheme: Scheme, round_number: int, previous_signature: bytes | None) -> bytes:
    _verify_round_number(round_number)
    number = round_number.to_bytes(8, "big")
    if not scheme.is_chained:
        # Nothing signs it, so whoever passes it on would be believed for no reason.
        if previous_signature is not None:
            raise BeaconError(f"a round of {scheme} carries no previous signature")
        return sha256(number).digest()
    if previous_signature is None:
        raise BeaconError(f"a round of {scheme} needs the previous signature")
    expected = _GENESIS_SEED_BYTES if round_number == ROUND_FIRST else scheme.arrangement.signature_bytes
    # The message is a plain concatenation: only the fixed size keeps its two parts apart.
    if len(previous_signature) != expected:
        raise BeaconError(
            f"before round {round_number} stand {expected} bytes, not {len(previous_signature)}"
        )
    return sha256(previous_signature + number).digest()


def _verify_round_number(round_number: int) -> None:
    if not ROUND_FIRST <= round_number <= ROUND_MAX:
        raise BeaconError(f"round {round_number} is out of range")


def _verify_time_ms(time_ms: int) -> None:
    if not 0 <= time_ms <= TIME_MS_MAX:
        raise BeaconError(f"time {time_ms} ms is out of range")


def _read_info_v2(info: Mapping[str, object]) -> dict[str, object]:
    """Return drand's second form of the document in the words of the first."""
    return {
        "public_key": info.get("public_key"),
        "period": info.get("period"),
        "genesis_time": info.get("genesis_time"),
        "hash": info.get("chain_hash"),
        "groupHash": info.get("genesis_seed"),
        "schemeID": info.get("scheme"),
        "metadata": {"beaconID": info.get("beacon_id")},
    }


def _decode_hex(info: Mapping[str, object], name: str) -> bytes:
    text = info.get(name)
    try:
        return bytes.fromhex(text if isinstance(text, str) else "not hex")
    except ValueError as error:
        raise BeaconError(f"chain info: {name} is not hexadecimal") from error


QUICKNET: Final = Chain(
    scheme=Scheme.BLS_UNCHAINED_G1_RFC9380,
    public_key=bytes.fromhex(
        "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451"
        "0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a"
    ),
    genesis_s=1692803367,
    period_s=3,
    genesis_seed=bytes.fromhex("f477d5c89f21a17c863a7f937c6a6d15859414d2be09cd448d4279af331c5d3e"),
    beacon_id="quicknet",
)
"""The League of Entropy's unchained network, pinned whole: what a relay must serve to be believed."""

DRAND_DEFAULT: Final = Chain(
    scheme=Scheme.PEDERSEN_BLS_CHAINED,
    public_key=bytes.fromhex(
        "868f005eb8e6e4ca0a47c8a77ceaa5309a47978a7c71bc5cce96366b5d7a569937c529eeda66c7293784a9402801af31"
    ),
    genesis_s=1595431050,
    period_s=30,
    genesis_seed=bytes.fromhex("176f93498eac9ca337150b46d21dd58673ea4e3581185f869672e59fa4cb390a"),
)
"""The League of Entropy's first network, chained: each round signs the one before it."""
