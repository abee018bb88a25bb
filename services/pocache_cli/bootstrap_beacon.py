"""A new network's beacon: its chain for the genesis, and the secrets that its processes will read.

Local and threshold chains are dealt here, from this machine's randomness: who runs this knows the key. A threshold's whole
secret is not written anywhere; each member's file is to be carried to its own machine. A relay's chain is drand's and
has no secret.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pocache.protocol.beacon import Chain, Scheme, compute_public_key, compute_secret
from pocache.protocol.errors import BeaconError, ConfigError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.threshold import compute_committee, split_secret
from pocache.runtime.network import write_secret

BEACON_KEY_NAME: Final = "beacon-bls"
MEMBER_PREFIX: Final = "beacon-"
_ENTROPY_BYTES: Final = 48


@dataclass(frozen=True, slots=True)
class BeaconPlan:
    """Where a new network's rounds come from: one key, any ``threshold`` of ``member_count`` shares, or drand."""

    source: Literal["local", "threshold", "relay"] = "local"
    threshold: int = 3
    member_count: int = 5
    relayed: Chain | None = None
    """The drand chain, pinned whole, such as ``pocache.protocol.beacon.QUICKNET``; for a relay."""

    def __post_init__(self) -> None:
        if (self.source == "relay") != (self.relayed is not None):
            raise ConfigError("a relay's network pins the chain that is relayed, and no other network does")

    @property
    def member_names(self) -> tuple[str, ...]:
        """The names of a threshold beacon's members, in the order of their shares: beacon-1, beacon-2, …"""
        if self.source != "threshold":
            return ()
        return tuple(f"{MEMBER_PREFIX}{index}" for index in range(1, self.member_count + 1))


def create_chain(
    path: Path, plan: BeaconPlan, members: Mapping[str, ParticipantId], *, genesis_s: int, period_s: int
) -> dict[str, Any]:
    """Write the beacon's secrets into a network directory and return the genesis's ``chain``; ``members`` by name."""
    if plan.relayed is not None:
        return {**_describe(plan.relayed), "source": "relay"}
    secret = compute_secret(secrets.token_bytes(_ENTROPY_BYTES))
    chain = Chain(
        scheme=Scheme.BLS_UNCHAINED_G1_RFC9380,
        public_key=compute_public_key(secret),
        genesis_s=genesis_s,
        period_s=period_s,
        genesis_seed=secrets.token_bytes(32),
    )
    if plan.source == "local":
        write_secret(path / "secrets" / f"{BEACON_KEY_NAME}.hex", secret.hex())
        return _describe(chain)
    try:
        shares = split_secret(secret, plan.threshold, plan.member_count, secrets.token_bytes(_ENTROPY_BYTES))
        committee = compute_committee(plan.threshold, secret, shares)
    except BeaconError as error:
        raise ConfigError(str(error)) from error
    for name, share in zip(plan.member_names, shares, strict=True):
        write_secret(path / "secrets" / f"{name}-share.hex", share.hex())
    return {
        **_describe(chain),
        "source": "threshold",
        "threshold": plan.threshold,
        "members": tuple(
            {"participant": members[name], "public_share_hex": public_share.hex()}
            for name, public_share in zip(plan.member_names, committee.public_shares, strict=True)
        ),
    }


def _describe(chain: Chain) -> dict[str, Any]:
    return {
        "scheme": chain.scheme.value,
        "public_key_hex": chain.public_key.hex(),
        "genesis_s": chain.genesis_s,
        "period_s": chain.period_s,
        "genesis_seed_hex": chain.genesis_seed.hex(),
        "beacon_id": chain.beacon_id,
    }
