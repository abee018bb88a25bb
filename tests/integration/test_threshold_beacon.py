"""A threshold beacon on a real server: any three of five make every round, and who lies is named."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kit.network import GENESIS_S, make_key, make_network
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.provision import provision
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.protocol.beacon import (
    compute_public_key,
    compute_round_time_ms,
    compute_secret,
    sign_round,
    verify_round,
)
from pocache.protocol.errors import ConfigError, PocacheError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.threshold import sign_partial, split_secret
from pocache.runtime.network import BeaconMember, Bounds, ChainConfig, Genesis, NetworkDirectory
from pocache.service.provisioning import get_stream_specs
from pocache.wire.envelope import open_envelope, seal
from pocache.wire.messages import BeaconPartialV1, BeaconRoundV1
from pocache.wire.topics import BEACON_PARTIAL, BEACON_ROUND, Role
from pocache_beacon.threshold import ThresholdBeacon, read_share
from pocache_cli.bootstrap import (
    PROVISIONER,
    NetworkPlan,
    compute_operator,
    compute_users,
    create_network,
    load_parties,
)
from pocache_cli.bootstrap_beacon import BeaconPlan
from pocache_cli.children import Child, pick_python_environment

THRESHOLD, COUNT = 3, 5
SECRET = compute_secret(b"threshold beacon" * 3)
SHARES = split_secret(SECRET, THRESHOLD, COUNT, b"polynomial" * 5)
KEYS = [make_key(f"beacon member {index}") for index in range(1, COUNT + 1)]
BEACON_STREAM = [spec for spec in get_stream_specs(Bounds()) if spec.name == "BEACON"]


def make_genesis() -> Genesis:
    """Return a genesis with five members."""
    chain = ChainConfig(
        **{
            **make_network().genesis.chain.model_dump(),
            "public_key_hex": compute_public_key(SECRET).hex(),
            "source": "threshold",
            "threshold": THRESHOLD,
            "members": tuple(
                BeaconMember(participant=key.participant_id, public_share_hex=compute_public_key(share).hex())
                for key, share in zip(KEYS, SHARES, strict=True)
            ),
        }
    )
    return make_network().genesis.model_copy(update={"chain": chain})


@dataclass
class World:
    """Members of one beacon on one server; the test's clock is theirs."""

    genesis: Genesis
    url: str
    bus: NatsBus
    due: int = 6

    @asynccontextmanager
    async def run(self, members: Sequence[int]) -> AsyncIterator[list[ThresholdBeacon]]:
        """Run these members, counted from 1, from when each was heard; rounds must be due that need all of them."""
        stop = asyncio.Event()
        async with AsyncExitStack() as stack:
            beacons = []
            for index in members:
                bus = await stack.enter_async_context(
                    connect_bus(NatsSettings(url=self.url, name=f"beacon-{index}"))
                )
                beacons.append(
                    ThresholdBeacon(
                        self.genesis,
                        key=KEYS[index - 1],
                        share=SHARES[index - 1],
                        bus=bus,
                        clock_ms=lambda: compute_round_time_ms(self.genesis.beacon_chain, self.due),
                    )
                )
            async with (
                self.bus.subscribe_core(BEACON_PARTIAL.filter()) as parts,
                asyncio.TaskGroup() as group,
            ):
                for beacon in beacons:
                    group.create_task(beacon.run(stop))
                try:
                    waiting = {KEYS[index - 1].participant_id for index in members}
                    while waiting:  # who speaks listens already
                        waiting.discard(ParticipantId((await anext(aiter(parts))).subject.split(".")[-1]))
                    yield beacons
                finally:
                    stop.set()

    async def read_rounds(self) -> list[int]:
        """Return the numbers of the rounds in the stream that verify, in its order."""
        numbers = []
        async for record in self.bus.read("BEACON", subject=BEACON_ROUND.subject()):
            try:
                opened = open_envelope(record.data, self.genesis.network_id, BeaconRoundV1)
                verify_round(self.genesis.beacon_chain, opened.body.round_number, opened.body.signature)
            except PocacheError:
                continue
            assert opened.sender in self.genesis.round_signers
            numbers.append(opened.body.round_number)
        return numbers

    async def wait_round(self, number: int) -> None:
        """Wait until a round is in the stream."""
        async with self.bus.subscribe_core(BEACON_ROUND.subject()) as rounds:
            while number not in await self.read_rounds():
                await anext(aiter(rounds))

    def seal_round(self, member: int, number: int, signature: bytes) -> bytes:
        """Return a round as a member announces it, true or not."""
        body = BeaconRoundV1(
            chain_hash=self.genesis.beacon_chain.chain_hash, round_number=number, signature=signature
        )
        return seal(KEYS[member - 1], self.genesis.network_id, body)

    async def say_part(self, member: int, number: int, part: bytes) -> None:
        """Say a member's part, true or not."""
        body = BeaconPartialV1(
            chain_hash=self.genesis.beacon_chain.chain_hash, round_number=number, signature=part
        )
        data = seal(KEYS[member - 1], self.genesis.network_id, body)
        await self.bus.publish_core(BEACON_PARTIAL.subject(signer=KEYS[member - 1].participant_id), data)


@pytest.fixture
async def world(nats_server: EmbeddedServer) -> AsyncIterator[World]:
    """A server with the stream of rounds."""
    async with connect_bus(NatsSettings(url=nats_server.url, name="tester")) as bus:
        await provision(bus.client.jetstream(), BEACON_STREAM, [])
        yield World(make_genesis(), nats_server.url, bus)


async def test_any_three_make_every_round_once(world: World) -> None:
    """One signature each, whoever made it; others go on where they stopped, from nothing but the stream."""
    async with world.run([1, 2, 3]) as beacons:
        await world.wait_round(6)
        assert all(beacon.is_ready for beacon in beacons) or await world.read_rounds() == [1, 2, 3, 4, 5, 6]
    world.due = 9
    async with world.run([2, 4, 5]):
        await world.wait_round(9)
    assert await world.read_rounds() == list(range(1, 10))
    record = await world.bus.get_last("BEACON", BEACON_ROUND.subject())
    assert record is not None
    body = open_envelope(record.data, world.genesis.network_id, BeaconRoundV1).body
    assert body.signature == sign_round(SECRET, 9)


async def test_two_make_none_until_a_third_comes(world: World) -> None:
    """What they said before is said again: no round is lost."""
    heard: dict[str, int] = {}
    async with world.run([1, 5]), world.bus.subscribe_core(BEACON_PARTIAL.filter()) as parts:
        async for message in parts:
            heard[message.subject] = heard.get(message.subject, 0) + 1
            if len(heard) == 2 and min(heard.values()) > world.due:
                break
        assert await world.bus.get_last("BEACON", BEACON_ROUND.subject()) is None
        async with world.run([3]):
            await world.wait_round(6)
    assert await world.read_rounds() == [1, 2, 3, 4, 5, 6]


async def test_no_part_is_said_before_its_round_is_due(world: World) -> None:
    """Three whose clocks are right never make a round early."""
    async with world.bus.subscribe_core(BEACON_PARTIAL.filter()) as parts, world.run([1, 2, 3]):
        await world.wait_round(6)
        await world.say_part(4, 99, sign_partial(SHARES[3], 99))
        async for message in parts:
            number = open_envelope(message.data, world.genesis.network_id, BeaconPartialV1).body.round_number
            if number == 99:
                break
            assert number <= 6
    assert await world.read_rounds() == [1, 2, 3, 4, 5, 6]


async def test_a_false_part_is_named_and_rounds_go_on(world: World) -> None:
    """Once for each round, with who signed it."""
    with capture_logs() as logs:
        async with world.run([1, 2]) as beacons:
            for number in (1, 1, 2):
                await world.say_part(4, number, sign_partial(SHARES[4], number))
            await world.say_part(4, 3, bytes([0xC0]) + bytes(47))
            await _wait_for(logs, "false_part", 6)
            async with world.run([3]):
                await world.wait_round(6)
        assert len(beacons) == 2
    found = [log for log in logs if log["event"] == "false_part" and log["member"] == 1]
    assert {(log["false_member"], log["participant"]) for log in found} == {(4, KEYS[3].participant_id)}
    assert sorted(log["round"] for log in found) == [1, 2, 3]
    assert await world.read_rounds() == [1, 2, 3, 4, 5, 6]


async def test_a_part_in_anothers_name_is_refused(world: World) -> None:
    """By a stranger, on another's subject, of another chain, or no envelope at all: dropped, logged, harmless."""
    genesis, chain_hash = world.genesis, world.genesis.beacon_chain.chain_hash
    own = BEACON_PARTIAL.subject(signer=KEYS[0].participant_id)
    part = BeaconPartialV1(chain_hash=chain_hash, round_number=1, signature=sign_partial(SHARES[0], 1))
    stranger = make_key("stranger")
    with capture_logs() as logs:
        async with world.run([2, 3]):
            said = (
                (
                    BEACON_PARTIAL.subject(signer=stranger.participant_id),
                    seal(stranger, genesis.network_id, part),
                ),
                (own, seal(KEYS[1], genesis.network_id, part)),
                (own, seal(KEYS[0], genesis.network_id, part.model_copy(update={"chain_hash": bytes(32)}))),
                (own, b"no envelope"),
            )
            async with asyncio.timeout(60):
                # Parts travel at most once: what a member did not hear is said again.
                while sum(log["event"] == "part_refused" for log in logs) < 2 * len(said):
                    for subject, data in said:
                        await world.bus.publish_core(subject, data)
                    await asyncio.sleep(0.05)
        assert await world.bus.get_last("BEACON", BEACON_ROUND.subject()) is None
    assert not [log for log in logs if log["event"] == "false_part"]


async def test_a_false_round_moves_nobody_on(world: World) -> None:
    """A member that stores rubbish, far numbers or true rounds out of order is named; no round is lost."""
    for number, signature in ((1, sign_round(SECRET, 2)), (10**9, sign_round(SECRET, 10**9 + 1))):
        await world.bus.publish(BEACON_ROUND.subject(), world.seal_round(5, number, signature))
    await world.bus.publish(BEACON_ROUND.subject(), world.seal_round(5, 4, sign_round(SECRET, 4)))
    with capture_logs() as logs:
        async with world.run([1, 2, 3]):
            await world.wait_round(6)
    assert sorted(await world.read_rounds()) in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 4, 5, 6])
    named = {log["participant"] for log in logs if log["event"] == "false_round"}
    assert named == {KEYS[4].participant_id}


async def test_a_taken_message_id_hides_no_round(world: World) -> None:
    """The shared id of a round is known to whoever can make it; rubbish under it does not keep the round out."""
    chain_hash, signature = world.genesis.beacon_chain.chain_hash, sign_round(SECRET, 1)
    shared = hashlib.sha256(chain_hash + (1).to_bytes(8, "big") + signature).hexdigest()
    rubbish = world.seal_round(5, 1, sign_round(SECRET, 2))
    await world.bus.publish(BEACON_ROUND.subject(), rubbish, message_id=shared)
    async with world.run([1, 2, 3]):
        await world.wait_round(6)
        await world.wait_round(1)  # said again under another id once its absence is seen, later rounds may precede it
    assert sorted(set(await world.read_rounds())) == [1, 2, 3, 4, 5, 6]


async def _wait_for(logs: list[Any], event: str, count: int) -> None:
    """Wait, a turn of the loop at a time, until something was logged so often."""
    async with asyncio.timeout(60):
        while sum(log["event"] == event for log in logs) < count:
            await asyncio.sleep(0)


def make_directory(path: Path, *, threshold: int = THRESHOLD, count: int = COUNT) -> NetworkDirectory:
    """Create a network with a threshold beacon, its rounds a second apart."""
    beacon = BeaconPlan("threshold", threshold=threshold, member_count=count)
    return create_network(path, NetworkPlan(name="test", users=(), workers=(), period_s=1, beacon=beacon))


async def test_killed_members_cost_no_round(tmp_path: Path) -> None:
    """Five processes with their own keys and permissions; two are killed; one of them comes back."""
    directory = make_directory(tmp_path / "network")
    genesis = NetworkDirectory(directory.path).genesis
    users = compute_users(directory, load_parties(directory), ())
    operator_config = compute_operator(directory, users)
    settings = ServerSettings(tmp_path / "nats", sync_always=False, operator=operator_config)
    async with EmbeddedServer(settings) as server:

        def connect(name: str) -> Any:
            return connect_bus(
                NatsSettings(url=server.url, name=name, nkey_seed=directory.transport_seed(name))
            )

        async with connect(PROVISIONER) as provisioner:
            await provision(provisioner.client.jetstream(), BEACON_STREAM, [])
        environ = {
            **pick_python_environment(),
            "POCACHE_NETWORK_DIR": str(directory.path),
            "POCACHE_NATS_URL": server.url,
        }
        children = [
            Child(name, "pocache_beacon", {**environ, "POCACHE_NAME": name}, tmp_path / f"{name}.log")
            for name in (f"beacon-{index}" for index in range(1, COUNT + 1))
        ]
        async with AsyncExitStack() as stack:
            operator = await stack.enter_async_context(connect(Role.OPERATOR.value))
            rounds = await stack.enter_async_context(operator.subscribe_core(BEACON_ROUND.subject()))

            async def hear(count: int) -> int:
                """Return the number of the round after so many more."""
                numbers: set[int] = set()
                async for message in rounds:
                    body = open_envelope(message.data, genesis.network_id, BeaconRoundV1).body
                    verify_round(genesis.beacon_chain, body.round_number, body.signature)
                    numbers.add(body.round_number)
                    if len(numbers) == count:
                        break
                return max(numbers)

            for child in children:
                await child.start()
                stack.push_async_callback(child.stop)
            for child in children:
                await child.wait_ready(60)
            await hear(1)
            await asyncio.gather(children[0].kill(), children[3].kill())
            await hear(3)
            await children[3].start()
            await children[3].wait_ready(60)
            last = await hear(2)
            stored = [
                open_envelope(record.data, genesis.network_id, BeaconRoundV1).body.round_number
                async for record in operator.read("BEACON", subject=BEACON_ROUND.subject())
            ]
            assert stored[:last] == list(range(1, last + 1))
            assert [await child.stop() for child in children if child.pid] == [0, 0, 0, 0]
    assert "denied" not in "".join((tmp_path / f"{child.name}.log").read_text() for child in children)


def test_a_member_reads_its_own_share_alone(tmp_path: Path) -> None:
    """Another's share, another's name, a network without members: each says what is wrong."""
    directory = make_directory(tmp_path / "network")
    folder = directory.path / "secrets"
    assert sorted(file.name for file in folder.iterdir()) == [
        f"beacon-{index}-share.hex" for index in range(1, 6)
    ]
    share = read_share(directory, "beacon-2")
    assert compute_public_key(share).hex() == directory.genesis.chain.members[1].public_share_hex
    (folder / "beacon-2-share.hex").write_text((folder / "beacon-3-share.hex").read_text())
    with pytest.raises(ConfigError, match="not the share of member 2"):
        read_share(directory, "beacon-2")
    with pytest.raises(ConfigError, match="not a member"):
        read_share(directory, "router")
    local = create_network(tmp_path / "local", NetworkPlan(name="test", users=(), workers=()))
    with pytest.raises(ConfigError, match="not a threshold beacon"):
        read_share(local, "beacon")


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0},
        {"threshold": 2},
        {"members": ()},
        {"source": "local"},
        {"source": "relay"},
        {"scheme": "bls-unchained-on-g1"},
        {"members": make_genesis().chain.members[::-1]},
        {"members": (*make_genesis().chain.members[:4], make_genesis().chain.members[0])},
    ],
    ids="-".join,
)
def test_a_genesis_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Before any process of it starts."""
    genesis = make_genesis()
    chain = genesis.chain.model_copy(update=changes)
    directory = NetworkDirectory(tmp_path)
    directory.write_genesis(genesis.model_copy(update={"chain": chain}))
    with pytest.raises(ConfigError, match="not a genesis"):
        NetworkDirectory(tmp_path).genesis


def test_plans_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must hold"):
        make_directory(tmp_path / "network", threshold=6)
    with pytest.raises(ConfigError, match="pins"):
        BeaconPlan("relay")
    assert make_genesis().created_ms == GENESIS_S * 1_000
