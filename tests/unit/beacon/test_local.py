"""The local beacon: every round once, in order, never early; what was missed; what it refuses."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest

from kit.network import GENESIS_S, Network, make_key, make_network
from pocache.bus.port import Bus, StreamRecord
from pocache.protocol.beacon import Scheme, compute_round_time_ms, compute_secret, verify_round
from pocache.protocol.errors import BackpressureError, BeaconError, BusError, ConfigError
from pocache.protocol.keys import SigningKey
from pocache.runtime.network import ChainConfig, NetworkDirectory, write_secret
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import BeaconRoundV1
from pocache.wire.model import WireModel
from pocache.wire.topics import BEACON_ROUND, Role
from pocache_beacon import local, publishing
from pocache_beacon.local import LocalBeacon, read_bls_secret
from pocache_beacon.publishing import wait_until_set

PERIOD_MS = 3_000


@dataclass
class Stream:
    """The BEACON stream and the clock of a test: what was published, and when."""

    network: Network
    now_ms: int = GENESIS_S * 1_000
    stored: list[tuple[int, bytes, str | None]] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    is_lost: bool = False

    async def publish(self, subject: str, data: bytes, *, message_id: str | None = None, **_: Any) -> int:
        """Store a message unless a failure is due or its id is known."""
        assert subject == BEACON_ROUND.subject()
        if self.failures:
            raise self.failures.pop()
        if message_id not in {known for _, _, known in self.stored}:
            self.stored.append((self.now_ms, data, message_id))
        return len(self.stored)

    async def get_last(self, stream: str, subject: str) -> StreamRecord | None:
        """Return the last stored message."""
        assert (stream, subject) == ("BEACON", BEACON_ROUND.subject())
        if not self.stored:
            return None
        stored_ms, data, _ = self.stored[-1]
        return StreamRecord(subject, data, {}, stream, len(self.stored), stored_ms)

    async def wait_closed(self) -> NoReturn:
        """Raise when the bus is lost, else wait for ever."""
        if not self.is_lost:
            await asyncio.get_running_loop().create_future()
        raise BusError("closed")

    def put(self, body: WireModel, key: SigningKey) -> None:
        """Store a message of somebody."""
        self.stored.append((self.now_ms, self.network.seal(key, body), None))

    def make_beacon(self, until: Callable[[], bool]) -> LocalBeacon:
        """Return a beacon whose waits pass time on this clock; ``stop`` is set when ``until`` says so."""

        async def wait(stop: asyncio.Event, timeout_s: float) -> None:
            self.waits_s.append(timeout_s)
            self.now_ms += round(timeout_s * 1_000)
            if until():
                stop.set()
            await asyncio.sleep(0)

        return LocalBeacon(
            self.network.genesis,
            key=self.network.keys[Role.BEACON],
            bls_secret=self.network.beacon_secret,
            bus=cast("Bus", self),
            clock_ms=lambda: self.now_ms,
            wait=wait,
        )

    async def run_for(self, duration_ms: int) -> LocalBeacon:
        """Run a beacon, as a process of its own would, until this much time has passed."""
        end_ms = self.now_ms + duration_ms
        beacon = self.make_beacon(lambda: self.now_ms >= end_ms)
        await beacon.run(asyncio.Event())
        return beacon

    def rounds(self) -> list[int]:
        """Return the numbers of what was published, every signature verified."""
        numbers = []
        for _, data, _ in self.stored:
            opened = open_envelope(data, self.network.network_id, BeaconRoundV1)
            assert opened.sender == self.network.genesis.signer(Role.BEACON)
            assert opened.body.chain_hash == self.network.chain.chain_hash
            verify_round(self.network.chain, opened.body.round_number, opened.body.signature)
            numbers.append(opened.body.round_number)
        return numbers


@pytest.fixture
def stream() -> Stream:
    """An empty stream at genesis time."""
    return Stream(make_network())


async def test_each_round_is_published_at_its_time(stream: Stream) -> None:
    """Verifiable by anybody, in order, none before it is due."""
    await stream.run_for(5 * PERIOD_MS - 1)
    assert stream.rounds() == [1, 2, 3, 4, 5]
    for number, (stored_ms, _, _) in enumerate(stream.stored, start=1):
        assert stored_ms == compute_round_time_ms(stream.network.chain, number)


async def test_nothing_is_published_before_genesis(stream: Stream) -> None:
    """The first round comes at genesis time; no wait is longer than its bound."""
    stream.now_ms -= 60_000
    await stream.run_for(59_999)
    assert stream.stored == []
    assert max(stream.waits_s) <= publishing.WAIT_S_MAX
    await stream.run_for(1)
    assert stream.rounds() == [1]


async def test_a_restart_goes_on_after_the_last_round_and_catches_up(stream: Stream) -> None:
    """What was missed is published at once, in order, nothing twice."""
    await stream.run_for(2 * PERIOD_MS)
    before = len(stream.stored)
    stream.now_ms += 10 * PERIOD_MS
    resumed_ms = stream.now_ms
    await stream.run_for(PERIOD_MS)
    numbers = stream.rounds()
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= before + 10
    assert [stored_ms for stored_ms, _, _ in stream.stored[before : before + 10]] == [resumed_ms] * 10


async def test_catching_up_is_bounded(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more missed rounds than the limit the latest are published."""
    monkeypatch.setattr(publishing, "CATCH_UP_ROUNDS_MAX", 4)
    stream.now_ms += 20 * PERIOD_MS
    await stream.run_for(1)
    assert stream.rounds() == [18, 19, 20, 21]


async def test_a_clock_set_back_repeats_nothing(stream: Stream) -> None:
    """It waits until the next round is due."""
    await stream.run_for(3 * PERIOD_MS)
    published = stream.rounds()
    stream.now_ms -= 2 * PERIOD_MS
    await stream.run_for(PERIOD_MS)
    assert stream.rounds() == published


@pytest.mark.parametrize("error", [BusError("away"), BackpressureError("full")])
async def test_a_publish_that_fails_is_repeated(stream: Stream, error: Exception) -> None:
    """The round is not skipped, whatever came of the first try."""
    stream.failures = [error]
    await stream.run_for(2 * PERIOD_MS - 1)
    assert stream.rounds() == [1, 2]
    assert stream.waits_s[0] == publishing.RETRY_DELAY_S


async def test_a_round_has_one_message_id(stream: Stream) -> None:
    """So the stream drops what two beacons, or one that lost an answer, publish twice."""
    await stream.run_for(1)
    ((_, data, message_id),) = stream.stored
    assert message_id == hashlib.sha256(data).hexdigest()
    again = Stream(stream.network)
    await again.run_for(1)
    assert again.stored[0][1:] == (data, message_id)


async def test_stop_ends_catching_up(stream: Stream) -> None:
    """Between two rounds, at the latest."""
    stream.now_ms += 100 * PERIOD_MS
    stop = asyncio.Event()
    beacon = stream.make_beacon(lambda: True)
    publish = stream.publish

    async def publish_and_stop(*args: Any, **options: Any) -> int:
        stop.set()
        return await publish(*args, **options)

    stream.publish = publish_and_stop  # type: ignore[method-assign]
    await beacon.run(stop)
    assert stream.rounds() == [1]
    assert not beacon.is_ready


async def test_the_beacon_ends_with_its_bus(stream: Stream) -> None:
    """A process without a bus is no process."""
    stream.is_lost = True
    with pytest.raises(ExceptionGroup) as caught:
        await stream.run_for(PERIOD_MS)
    assert isinstance(caught.value.exceptions[0], BusError)


@pytest.mark.parametrize("who", ["stranger", "another chain"])
async def test_a_stream_of_somebody_else_is_not_continued(stream: Stream, who: str) -> None:
    """A last round that another signed, or of another chain."""
    body = stream.network.make_round(7)
    if who == "another chain":
        stream.put(body.model_copy(update={"chain_hash": bytes(32)}), stream.network.keys[Role.BEACON])
    else:
        stream.put(body, make_key("stranger"))
    with pytest.raises(ExceptionGroup) as caught:
        await stream.run_for(PERIOD_MS)
    assert isinstance(caught.value.exceptions[0], BeaconError)


async def test_waiting_ends_with_stop() -> None:
    """At once, and without it after the time."""
    stop = asyncio.Event()
    await wait_until_set(stop, 0.0)
    stop.set()
    await asyncio.wait_for(wait_until_set(stop, 3_600.0), 10.0)


def make_directory(path: Path, network: Network, secret: str) -> NetworkDirectory:
    """Write a network directory with this text as its chain's secret."""
    directory = NetworkDirectory(path)
    directory.write_genesis(network.genesis)
    write_secret(path / local.KEY_FILE, secret)
    return directory


def test_the_secret_is_read_from_the_directory(tmp_path: Path) -> None:
    """Hexadecimal digits in a file of its owner's alone."""
    network = make_network()
    directory = make_directory(tmp_path, network, network.beacon_secret.hex())
    assert read_bls_secret(directory) == network.beacon_secret
    (tmp_path / local.KEY_FILE).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_bls_secret(directory)


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (compute_secret(bytes(32)).hex(), "its public key is another"),
        ("not hexadecimal", "not a BLS secret"),
        ("00" * 32, "not a BLS secret"),
        ("5eed5eed", "not a BLS secret"),
    ],
)
def test_a_wrong_secret_is_refused_and_not_shown(tmp_path: Path, secret: str, reason: str) -> None:
    """At the start, rather than with rounds that nobody can verify."""
    directory = make_directory(tmp_path, make_network(), secret)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_bls_secret(directory)
    assert secret not in str(caught.value)


def test_a_missing_secret_is_a_configuration_error(tmp_path: Path) -> None:
    """It names the file."""
    directory = NetworkDirectory(tmp_path)
    directory.write_genesis(make_network().genesis)
    with pytest.raises(ConfigError, match="beacon-bls"):
        read_bls_secret(directory)


def test_a_chain_of_another_scheme_is_not_signed_here(tmp_path: Path) -> None:
    """A local beacon has one scheme; a relay's chain needs no secret."""
    network = make_network()
    chain = ChainConfig(**{**network.genesis.chain.model_dump(), "scheme": Scheme.BLS_UNCHAINED_ON_G1.value})
    genesis = network.genesis.model_copy(update={"chain": chain})
    directory = NetworkDirectory(tmp_path)
    directory.write_genesis(genesis)
    write_secret(tmp_path / local.KEY_FILE, network.beacon_secret.hex())
    with pytest.raises(ConfigError, match="signs no other"):
        read_bls_secret(directory)
