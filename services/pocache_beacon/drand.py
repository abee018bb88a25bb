"""drand's HTTP interface, over servers that nobody has to trust: owns paths, sizes, times, and which server to ask.

Both versions are spoken. v1: ``/{chain hash}/info`` and ``/{chain hash}/public/{N | latest}``; v2: ``/v2/chains/{chain
hash}/…`` or ``/v2/beacons/{id}/…`` with ``info`` and ``rounds/{N | latest}``. A server answers 425 (some 404) for a round that is not
there yet. What is believed is only what verifies: a server's chain info must be the pinned chain, its hash computed
again from its fields, before its rounds are looked at, and each round must carry the pinned key's signature over the
number that was asked for. Refused besides: redirects, compressed or overlong bodies, anything after a time limit.

Several servers are hedged: the best is asked first, the next one when it fails or stays silent for a moment; the first
round that verifies counts. A server that failed rests, longer each time, with jitter.

Not covered: that all servers withhold a round together. Nobody can make another one in its place; the network waits.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import structlog

from pocache.protocol.beacon import Chain, verify_round
from pocache.protocol.errors import BeaconError, ConfigError
from pocache_beacon.publishing import SignedRound

BODY_BYTES_MAX: Final = 16_384
"""A round has about 500 bytes and a chain's info about 600."""
ENDPOINTS_MAX: Final = 16
CONNECTIONS_MAX: Final = 32
REST_FIRST_S: Final = 0.5
REST_S_MAX: Final = 60.0
_TOO_EARLY: Final = frozenset({404, 425})
_SCORE_KEPT: Final = 0.8

Jitter = Callable[[], float]


def draw_jitter() -> float:
    """Return a number from [0.5, 1.5): many relays that failed together do not come back together."""
    return 0.5 + secrets.randbelow(1_000_000) / 1_000_000


class NotThereYetError(BeaconError):
    """A server says that it has no such round, as for one that lies ahead."""


class EndpointError(BeaconError):
    """A server did not answer, or not in the way of drand's interface."""


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Which servers are asked, how long one may take, and when the next one is asked beside it."""

    endpoints: tuple[str, ...]
    timeout_s: float = 5.0
    hedge_s: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= len(self.endpoints) <= ENDPOINTS_MAX:
            raise ConfigError(f"a relay asks 1 to {ENDPOINTS_MAX} drand servers, not {len(self.endpoints)}")
        if len(set(self.endpoints)) != len(self.endpoints):
            raise ConfigError("a drand server is listed twice")


@dataclass(eq=False, slots=True)
class Endpoint:
    """One server: its paths for one chain, and what is known of it. Raises ConfigError on what is no base URL."""

    url: str
    chain: Chain
    is_pinned: bool = False
    """Its chain info was seen to be the pinned chain's."""
    failure_count: int = 0
    rests_until_s: float = 0.0
    latency_s: float = 0.0
    pinning: asyncio.Lock = field(default_factory=asyncio.Lock)
    base: str = field(init=False)
    rounds: str = field(init=False)

    def __post_init__(self) -> None:
        url = self.url.rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"{self.url!r} is not the URL of a drand server, such as https://api.drand.sh")
        if "@" in parts.netloc:
            raise ConfigError(f"the URL of the drand server {parts.hostname} must not carry a password")
        chain_hash = self.chain.chain_hash.hex()
        if parts.path.endswith("/v2/beacons"):
            self.base, self.rounds = f"{url}/{self.chain.beacon_id}", "rounds"
        elif parts.path.endswith("/v2"):
            self.base, self.rounds = f"{url}/chains/{chain_hash}", "rounds"
        else:
            self.base, self.rounds = f"{url}/{chain_hash}", "public"

    def rest(self, now_s: float, jitter: float, rest_s: float | None = None) -> None:
        """Leave it alone: for ``rest_s``, or twice as long as after the failure before."""
        if now_s < self.rests_until_s:
            return  # several requests that were under way together failed once
        self.failure_count += 1
        backoff_s = min(REST_S_MAX, REST_FIRST_S * 2.0 ** min(self.failure_count - 1, 16))
        self.rests_until_s = now_s + jitter * (backoff_s if rest_s is None else rest_s)


@asynccontextmanager
async def open_http(settings: RelaySettings) -> AsyncIterator[httpx.AsyncClient]:
    """Open the HTTP client while the context lasts: certificates are checked, redirects are not followed."""
    limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=ENDPOINTS_MAX)
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "pocache-relay"}
    async with httpx.AsyncClient(
        timeout=settings.timeout_s, limits=limits, headers=headers, follow_redirects=False
    ) as http:
        yield http


class DrandClient:
    """Gets verified rounds of one pinned chain from several servers."""

    def __init__(
        self, chain: Chain, settings: RelaySettings, http: httpx.AsyncClient, *, jitter: Jitter = draw_jitter
    ) -> None:
        self._chain = chain
        self._settings = settings
        self._http = http
        self._jitter = jitter
        self._log = structlog.get_logger().bind(service="beacon")
        self.endpoints = tuple(Endpoint(url, chain) for url in settings.endpoints)

    async def get_round(self, number: int) -> SignedRound | None:
        """Return a round that verifies, from whichever server has it first; None when no server gives it now."""
        waiting = self._rank()
        running: dict[asyncio.Task[SignedRound | None], Endpoint] = {}
        try:
            while waiting or running:
                if waiting:
                    endpoint = waiting.pop(0)
                    running[asyncio.create_task(self._try_endpoint(endpoint, number))] = endpoint
                timeout_s = self._settings.hedge_s if waiting else None
                done, _ = await asyncio.wait(running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    found = task.result()
                    if found is not None:
                        return found
            return None
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def get_latest(self) -> Mapping[str, int]:
        """Return the latest round that each server names, by its URL, for a log: not verified, and missing where none."""

        async def ask(endpoint: Endpoint) -> int | None:
            try:
                return _read_number(await self._get_json(endpoint, f"{endpoint.rounds}/latest"), "round")
            except BeaconError:
                return None

        latest = await asyncio.gather(*(ask(endpoint) for endpoint in self.endpoints))
        return {
            endpoint.url: number
            for endpoint, number in zip(self.endpoints, latest, strict=True)
            if number is not None
        }

    def compute_rest_s(self) -> float:
        """Return how long until some server may be asked again; 0 when one may now."""
        now_s = asyncio.get_running_loop().time()
        return max(0.0, min(endpoint.rests_until_s for endpoint in self.endpoints) - now_s)

    def _rank(self) -> list[Endpoint]:
        """Return the servers that do not rest, the most reliable and then the fastest first."""
        now_s = asyncio.get_running_loop().time()
        awake = [endpoint for endpoint in self.endpoints if endpoint.rests_until_s <= now_s]
        return sorted(awake, key=lambda endpoint: (endpoint.failure_count, endpoint.latency_s))

    async def _try_endpoint(self, endpoint: Endpoint, number: int) -> SignedRound | None:
        """Return a server's round, verified, or None; remember how it did."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            async with endpoint.pinning:
                if not endpoint.is_pinned:
                    await self._verify_info(endpoint)
            signed = await self._fetch_round(endpoint, number)
        except NotThereYetError:
            # No failure: rounds reach the servers one after another. But who lags is asked last.
            endpoint.latency_s = (
                _SCORE_KEPT * endpoint.latency_s + (1 - _SCORE_KEPT) * self._settings.timeout_s
            )
            return None
        except EndpointError as error:
            endpoint.rest(loop.time(), self._jitter())
            self._log.info("endpoint_failed", endpoint=endpoint.url, round=number, reason=str(error))
            return None
        except BeaconError as error:
            # It said what is not true: no outage, and not soon mended.
            endpoint.rest(loop.time(), self._jitter(), REST_S_MAX)
            endpoint.is_pinned = False
            self._log.warning("endpoint_false", endpoint=endpoint.url, round=number, reason=str(error))
            return None
        endpoint.failure_count = 0
        endpoint.rests_until_s = 0.0
        taken_s = loop.time() - started_s
        endpoint.latency_s = _SCORE_KEPT * endpoint.latency_s + (1 - _SCORE_KEPT) * taken_s
        return signed

    async def _verify_info(self, endpoint: Endpoint) -> None:
        """Check that a server serves the pinned chain: its info's own hash, its key, its clock and its scheme."""
        try:
            info = await self._get_json(endpoint, "info")
        except NotThereYetError as error:
            raise EndpointError("the server does not know the pinned chain") from error
        served = Chain.from_info(info)
        if served != self._chain:
            raise BeaconError(
                f"the server's chain is {served.chain_hash.hex()} ({served.scheme}), "
                f"not the pinned {self._chain.chain_hash.hex()} ({self._chain.scheme})"
            )
        endpoint.is_pinned = True

    async def _fetch_round(self, endpoint: Endpoint, number: int) -> SignedRound:
        """Return a round as a server gives it, verified under the pinned key. Raises BeaconError."""
        document = await self._get_json(endpoint, f"{endpoint.rounds}/{number}")
        if _read_number(document, "round") != number:
            raise BeaconError(f"asked for round {number}, the server gave another")
        signature = _read_hex(document, "signature")
        # Where the scheme signs no previous signature, what a server puts there means nothing and goes no further.
        previous = _read_hex(document, "previous_signature") if self._chain.scheme.is_chained else b""
        randomness = verify_round(self._chain, number, signature, previous or None)
        if "randomness" in document and _read_hex(document, "randomness") != randomness:
            raise BeaconError(f"the randomness given with round {number} is not its signature's hash")
        return SignedRound(number, signature, previous)

    async def _get_json(self, endpoint: Endpoint, path: str) -> Mapping[str, object]:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                body = await self._get_body(f"{endpoint.base}/{path}")
        except TimeoutError as error:
            raise EndpointError(f"no answer in {self._settings.timeout_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EndpointError(f"{type(error).__name__}: {error}") from error
        try:
            document = json.loads(body, object_pairs_hook=_refuse_duplicates)
        except (ValueError, RecursionError) as error:
            raise EndpointError("the answer is not JSON") from error
        if not isinstance(document, dict):
            raise EndpointError("the answer is not a JSON object")
        return document

    async def _get_body(self, url: str) -> bytes:
        async with self._http.stream("GET", url) as response:
            if response.status_code in _TOO_EARLY:
                raise NotThereYetError(f"status {response.status_code}")
            if response.status_code != httpx.codes.OK:
                raise EndpointError(f"status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise EndpointError("the body is compressed, which was not asked for")
            body = bytearray()
            async for part in response.aiter_raw():
                body += part
                if len(body) > BODY_BYTES_MAX:
                    raise EndpointError(f"the body is longer than {BODY_BYTES_MAX} bytes")
            return bytes(body)


def _read_number(document: Mapping[str, object], name: str) -> int:
    value = document.get(name)
    if type(value) is not int:
        raise EndpointError(f"{name} is not an integer")
    return value


def _read_hex(document: Mapping[str, object], name: str) -> bytes:
    text = document.get(name)
    try:
        return bytes.fromhex(text if isinstance(text, str) else "not hex")
    except ValueError as error:
        raise EndpointError(f"{name} is not hexadecimal") from error


def _refuse_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key twice")
    return document
