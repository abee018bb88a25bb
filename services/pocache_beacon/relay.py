"""The relay: passes the rounds of a drand chain on to the network, each verified before it is published.

Owns the catching up after an outage, and how often to ask for a round that is late; which server to ask is
`pocache_beacon.drand`'s, the order of rounds is `pocache_beacon.publishing`'s. A relay signs the envelope and
nothing in it: it can delay a round, and cannot choose, change or foresee one (docs/protocol.md 5.7). Refuses a network
whose genesis does not say that its chain is relayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, Final

from pocache.bus.port import Bus
from pocache.protocol.errors import ConfigError
from pocache.protocol.keys import SigningKey
from pocache.runtime.config import Settings, read_number
from pocache.runtime.network import Genesis
from pocache.service.dispatch import read_clock_ms
from pocache_beacon.drand import DrandClient, Jitter, RelaySettings, draw_jitter, open_http
from pocache_beacon.publishing import RoundPublisher, SignedRound, Wait, wait_until_set

DELAY_FIRST_S: Final = 0.25
DELAY_S_MAX: Final = 10.0
STALLED_FAILURES: Final = 8
"""After so many attempts in a row without a round, the log says what the servers claim to be their latest."""


def read_relay_settings(settings: Settings) -> RelaySettings:
    """Return which servers a relay's process was told to ask. Raises ConfigError that names what to set."""
    text = settings.variables.get("POCACHE_BEACON_ENDPOINTS", "")
    endpoints = tuple(part.strip() for part in text.split(",") if part.strip())
    if not endpoints:
        raise ConfigError(
            "this network's beacon is a relay: set POCACHE_BEACON_ENDPOINTS to the URLs of drand servers, such as "
            "https://api.drand.sh,https://drand.cloudflare.com"
        )
    return RelaySettings(
        endpoints=endpoints,
        timeout_s=float(read_number(settings.variables, "POCACHE_BEACON_TIMEOUT_S", 5, 1, 60)),
        hedge_s=read_number(settings.variables, "POCACHE_BEACON_HEDGE_MS", 300, 1, 60_000) / 1_000,
    )


@asynccontextmanager
async def open_relay(
    genesis: Genesis, settings: RelaySettings, *, key: SigningKey, bus: Bus
) -> AsyncIterator[RelayBeacon]:
    """Make a relay with an HTTP client of its own, while the context lasts."""
    async with open_http(settings) as http:
        client = DrandClient(genesis.beacon_chain, settings, http)
        yield RelayBeacon(genesis, key=key, client=client, bus=bus)


class RelayBeacon(RoundPublisher):
    """Publishes a drand chain's rounds on a bus."""

    batch_rounds: ClassVar[int] = 16

    def __init__(
        self,
        genesis: Genesis,
        *,
        key: SigningKey,
        client: DrandClient,
        bus: Bus,
        clock_ms: Callable[[], int] = read_clock_ms,
        wait: Wait = wait_until_set,
        jitter: Jitter = draw_jitter,
    ) -> None:
        if genesis.chain.source != "relay":
            raise ConfigError(f"this network's rounds are {genesis.chain.source}, not relayed")
        super().__init__(genesis, key=key, bus=bus, clock_ms=clock_ms, wait=wait)
        self._client = client
        self._jitter = jitter
        self._missed_count = 0

    async def get_rounds(self, first: int, last: int) -> Sequence[SignedRound]:
        """Fetch and verify them, side by side; those before the first that is missing count."""
        found = await asyncio.gather(*(self._client.get_round(number) for number in range(first, last + 1)))
        rounds: list[SignedRound] = []
        for signed in found:
            if signed is None:
                break
            rounds.append(signed)
        self._missed_count = 0 if rounds else self._missed_count + 1
        if self._missed_count == STALLED_FAILURES:
            latest = await self._client.get_latest()
            self._log.warning("chain_stalled", missing_round=first, latest=dict(latest))
        return rounds

    def compute_delay_s(self, failure_count: int) -> float:
        """Return 0.25 s, doubled with each attempt, at most 10 s, times jitter; no shorter than all servers rest."""
        backoff_s = min(DELAY_S_MAX, DELAY_FIRST_S * 2.0 ** min(failure_count - 1, 16))
        return max(self._jitter() * backoff_s, self._client.compute_rest_s())
