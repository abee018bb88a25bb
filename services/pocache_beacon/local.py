"""The local chain: one key of the network's own signs each round when it is due, also those that were missed.

Owns the chain's secret; `pocache_beacon.publishing` owns when. Refuses a chain of another scheme and a secret that is not
the chain's.

Not covered: its operator, who holds the secret, knows every round to come (docs/protocol.md 5.3). A network where no
single process may know them has a threshold beacon or a relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from pocache.bus.port import Bus
from pocache.protocol.beacon import Scheme, compute_public_key, sign_round
from pocache.protocol.errors import BeaconError, ConfigError
from pocache.protocol.keys import SigningKey
from pocache.runtime.network import Genesis, NetworkDirectory, read_secret
from pocache.service.dispatch import read_clock_ms
from pocache_beacon.publishing import RoundPublisher, SignedRound, Wait, wait_until_set

KEY_FILE: Final = "secrets/beacon-bls.hex"
"""In the network directory: the BLS secret, 64 hexadecimal digits."""


def read_bls_secret(directory: NetworkDirectory) -> bytes:
    """Return a network's chain secret from its directory. Raises ConfigError that says what is wrong."""
    secret, public_key = read_bls_key(directory, KEY_FILE)
    chain = directory.genesis.beacon_chain
    if chain.scheme is not Scheme.BLS_UNCHAINED_G1_RFC9380:
        raise ConfigError(
            f"this network's chain is {chain.scheme}: the local beacon signs no other than "
            f"{Scheme.BLS_UNCHAINED_G1_RFC9380}"
        )
    if public_key != chain.public_key:
        file = directory.path / KEY_FILE
        raise ConfigError(f"{file} is not the secret of this network's chain: its public key is another")
    return secret


def read_bls_key(directory: NetworkDirectory, name: str) -> tuple[bytes, bytes]:
    """Return a BLS secret from a private file of the directory, and its public key. Raises ConfigError."""
    file = directory.path / name
    text = read_secret(file)
    try:
        secret = bytes.fromhex(text)
        return secret, compute_public_key(secret)
    except (ValueError, BeaconError) as error:
        # The text itself stays out of the message.
        raise ConfigError(f"{file} is not a BLS secret in hexadecimal digits") from error


class LocalBeacon(RoundPublisher):
    """Publishes a local chain's rounds on a bus."""

    def __init__(
        self,
        genesis: Genesis,
        *,
        key: SigningKey,
        bls_secret: bytes,
        bus: Bus,
        clock_ms: Callable[[], int] = read_clock_ms,
        wait: Wait = wait_until_set,
    ) -> None:
        super().__init__(genesis, key=key, bus=bus, clock_ms=clock_ms, wait=wait)
        self._bls_secret = bls_secret

    async def get_rounds(self, first: int, last: int) -> Sequence[SignedRound]:
        """Sign them."""
        await asyncio.sleep(0)  # catching up may be long: others of this process go on
        return [
            SignedRound(number, sign_round(self._bls_secret, number)) for number in range(first, last + 1)
        ]
