"""The relay against real HTTP servers: recorded drand rounds, and servers that misbehave in every way we know."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, cast

import pytest

from kit.drand import Answer, DrandServer, Fault, Recorded, SignedChain, serve_drand, write_answer
from kit.network import GENESIS_S, make_network
from pocache.bus.port import Bus, StreamRecord
from pocache.protocol.beacon import (
    DRAND_DEFAULT,
    QUICKNET,
    Chain,
    Scheme,
    compute_round_time_ms,
    verify_round,
)
from pocache.protocol.errors import ConfigError, PocacheError
from pocache.runtime.network import ChainConfig, Genesis
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import BeaconRoundV1
from pocache.wire.topics import BEACON_ROUND, Role
from pocache_beacon import drand, publishing, relay
from pocache_beacon.drand import BODY_BYTES_MAX, DrandClient, RelaySettings, open_http
from pocache_beacon.publishing import SignedRound
from pocache_beacon.relay import RelayBeacon

QUICKNET_123 = Recorded(
    bytes.fromhex(
        "b75c69d0b72a5d906e854e808ba7e2accb1542ac355ae486d591aa9d43765482e26cd02df835d3546d23c4b13e0dfc92"
    )
)
QUICKNET_42 = Recorded(
    bytes.fromhex(
        "95a9f9f5b231b7714de1553105d8ffdf3dcda24cfdb1e689319bccf79a9c8ce430a91b811fbfaf763900bc998b5d686a"
    )
)
DEFAULT_1 = Recorded(
    bytes.fromhex(
        "8d61d9100567de44682506aea1a7a6fa6e5491cd27a0a0ed349ef6910ac5ac20ff7bc3e09d7c046566c9f7f3c6f3b101"
        "04990e7cb424998203d8f7de586fb7fa5f60045417a432684f85093b06ca91c769f0e7ca19268375e659c2a2352b4655"
    ),
    DRAND_DEFAULT.genesis_seed,
)
DEFAULT_5347804 = Recorded(
    bytes.fromhex(
        "92daf5745411a415b539caebda0b523fa20d4d12b28eb2fe427decdf5dcc976046a9c83b54f1db991fa191ffca8fcbdc"
        "07563036664f6ba47dcf00593559286f667574f6b0a2ba0be2683463b5bf3472e5696ac28b75d5b2223dbb98a56c96a3"
    ),
    bytes.fromhex(
        "b01091c60b2b1a7c1f7a79610cd94e0c06e93bd305cf04229fe1571669257d16583a02e4038fdd755e6c39944b0116e3"
        "0256874eede733a79c5e72c787db3889a1678c4ea6423b467de56208c5bd8e10cc090b6e0429f7f33653086a089cc3f8"
    ),
)
RECORDED_QUICKNET = {42: QUICKNET_42, 123: QUICKNET_123}
RECORDED_DEFAULT = {1: DEFAULT_1, 5_347_804: DEFAULT_5347804}
VERSIONS = ["", "/v2", "/v2/beacons"]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is asked directly, whatever this machine's settings are."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


async def ask(
    chain: Chain, urls: Sequence[str], number: int, *, timeout_s: float = 20.0, hedge_s: float = 20.0
) -> tuple[SignedRound | None, DrandClient]:
    """Ask these servers for one round."""
    settings = RelaySettings(tuple(urls), timeout_s=timeout_s, hedge_s=hedge_s)
    async with open_http(settings) as http:
        client = DrandClient(chain, settings, http, jitter=lambda: 1.0)
        return await client.get_round(number), client


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("chain", "rounds"), [(QUICKNET, RECORDED_QUICKNET), (DRAND_DEFAULT, RECORDED_DEFAULT)]
)
async def test_recorded_rounds_are_fetched_and_verified(
    chain: Chain, rounds: dict[int, Recorded], version: str
) -> None:
    """Both public chains, by both versions of the interface, by hash and by id."""
    async with serve_drand(DrandServer(chain, rounds)) as (server,):
        for number, recorded in rounds.items():
            signed, _ = await ask(chain, [server.url + version], number)
            assert signed == SignedRound(number, recorded.signature, recorded.previous or b"")


def wrong_round(_: str, document: dict[str, Any]) -> dict[str, Any]:
    return (
        document | {"round": 42, "signature": QUICKNET_42.signature.hex()}
        if "round" in document
        else document
    )


def other_rounds_signature(_: str, document: dict[str, Any]) -> dict[str, Any]:
    changes = {"signature": QUICKNET_42.signature.hex(), "randomness": drop}
    return change_round(document, changes)


def drop() -> None:
    """Mark a field that is to be left out."""


def change_round(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    if "round" not in document:
        return document
    return {name: value for name, value in (document | changes).items() if value is not drop}


def with_signature(signature: bytes) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    return lambda _, document: change_round(document, {"signature": signature.hex(), "randomness": drop})


def change_info(**changes: Any) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    return lambda path, document: document | changes if path.endswith("/info") else document


LIES = {
    "wrong round": wrong_round,
    "wrong number, right signature": lambda _, document: change_round(document, {"round": 42}),
    "another round's signature": other_rounds_signature,
    "flipped bit": with_signature(QUICKNET_123.signature[:-1] + b"\x93"),
    "identity": with_signature(bytes([0xC0]) + bytes(47)),
    "off the curve": with_signature(bytes([0x80]) + bytes(46) + b"\x02"),
    "cut signature": with_signature(QUICKNET_123.signature[:-1]),
    "other randomness": lambda _, document: change_round(document, {"randomness": "00" * 32}),
    "other chain": change_info(**DRAND_DEFAULT.to_info()),
    "other key, same hash": change_info(public_key=DRAND_DEFAULT.public_key.hex()),
    "other scheme": change_info(schemeID=Scheme.BLS_UNCHAINED_ON_G1.value),
    "other period": change_info(period=30),
    "other genesis, its own hash": change_info(
        **{name: replace(QUICKNET, genesis_s=1).to_info()[name] for name in ("genesis_time", "hash")}
    ),
}
MALFORMED = {
    "round as text": lambda _, document: change_round(document, {"round": "123"}),
    "round as float": lambda _, document: change_round(document, {"round": 123.0}),
    "no signature": lambda _, document: change_round(document, {"signature": drop}),
    "signature as number": lambda _, document: change_round(document, {"signature": 7}),
    "signature not hexadecimal": lambda _, document: change_round(document, {"signature": "xyz"}),
    "a list": lambda *_: [],
    "a text": lambda *_: "round",
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_is_not_true_is_refused_and_the_next_server_asked(lie: str) -> None:
    """The liar is left alone for long; the round comes from the honest server."""
    liar = DrandServer(QUICKNET, RECORDED_QUICKNET, change=LIES[lie])
    async with serve_drand(liar, DrandServer(QUICKNET, RECORDED_QUICKNET)) as (_, honest):
        assert (await ask(QUICKNET, [liar.url], 123))[0] is None
        signed, client = await ask(QUICKNET, [liar.url, honest.url], 123)
        assert signed == SignedRound(123, QUICKNET_123.signature)
        resting = client.endpoints[0]
        assert resting.rests_until_s - asyncio.get_running_loop().time() > drand.REST_S_MAX / 2
        assert not resting.is_pinned


@pytest.mark.parametrize("shape", MALFORMED)
async def test_what_is_malformed_is_refused_and_the_next_server_asked(shape: str) -> None:
    bad = DrandServer(QUICKNET, RECORDED_QUICKNET, change=cast("Any", MALFORMED[shape]))
    async with serve_drand(bad, DrandServer(QUICKNET, RECORDED_QUICKNET)) as (_, honest):
        assert (await ask(QUICKNET, [bad.url], 123))[0] is None
        signed, client = await ask(QUICKNET, [bad.url, honest.url], 123)
        assert signed == SignedRound(123, QUICKNET_123.signature)
        assert client.endpoints[0].failure_count == 1


def answering(status: int, body: bytes, *headers: str) -> Fault:
    async def fault(writer: asyncio.StreamWriter, _: Answer) -> None:
        write_answer(writer, (status, body), *headers)

    return fault


async def truncate(writer: asyncio.StreamWriter, answer: Answer) -> None:
    write_answer(writer, (answer[0], answer[1][:-20]), length=len(answer[1]))
    await writer.drain()
    writer.close()


async def cut_json(writer: asyncio.StreamWriter, answer: Answer) -> None:
    write_answer(writer, (answer[0], answer[1][:-20]))


async def hang_up(writer: asyncio.StreamWriter, _: Answer) -> None:
    writer.close()


async def pad(writer: asyncio.StreamWriter, answer: Answer) -> None:
    """A true document behind more spaces than a document may have."""
    write_answer(writer, (answer[0], b" " * BODY_BYTES_MAX + answer[1]))


async def compress(writer: asyncio.StreamWriter, answer: Answer) -> None:
    write_answer(writer, (answer[0], gzip.compress(answer[1])), "Content-Encoding: gzip")


async def repeat_key(writer: asyncio.StreamWriter, answer: Answer) -> None:
    write_answer(writer, (answer[0], b'{"round": 123, ' + answer[1][1:]))


FAULTS: dict[str, Fault] = {
    "500": answering(500, b"Failed to get beacon\n"),
    "200 with HTML": answering(200, b"<html></html>"),
    "empty": answering(200, b""),
    "no HTTP": hang_up,
    "truncated body": truncate,
    "truncated JSON": cut_json,
    "huge body": pad,
    "compressed": compress,
    "a key twice": repeat_key,
    "deeply nested": answering(200, b"[" * 10_000),
    "huge number": answering(200, b'{"round": ' + b"9" * 10_000 + b"}"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_server_that_fails_is_left_alone_for_a_moment(name: str) -> None:
    bad = DrandServer(QUICKNET, RECORDED_QUICKNET, fault=FAULTS[name])
    async with serve_drand(bad, DrandServer(QUICKNET, RECORDED_QUICKNET)) as (_, honest):
        assert (await ask(QUICKNET, [bad.url], 123))[0] is None
        signed, client = await ask(QUICKNET, [bad.url, honest.url], 123)
        assert signed == SignedRound(123, QUICKNET_123.signature)
        assert client.endpoints[0].failure_count == 1
        assert client.endpoints[0].rests_until_s > asyncio.get_running_loop().time() - 20
        assert client.compute_rest_s() == 0.0, "the honest one may be asked at once"


async def test_a_redirect_is_not_followed() -> None:
    """Not even to a server that tells the truth: who may be asked was configured."""
    async with serve_drand(DrandServer(QUICKNET, RECORDED_QUICKNET), DrandServer(QUICKNET)) as (honest, bad):
        path = f"{QUICKNET.chain_hash.hex()}/info"
        bad.fault = answering(302, b"", f"Location: {honest.url}/{path}")
        assert (await ask(QUICKNET, [bad.url], 123))[0] is None
        assert honest.asked == []


async def test_a_silent_server_is_hedged_and_then_given_up() -> None:
    """The next one is asked beside it; alone it costs its time limit."""
    held = asyncio.Event()

    async def hold(_: asyncio.StreamWriter, __: Answer) -> None:
        await held.wait()

    silent = DrandServer(QUICKNET, RECORDED_QUICKNET, fault=hold)
    async with serve_drand(silent, DrandServer(QUICKNET, RECORDED_QUICKNET)) as (_, honest):
        signed, client = await ask(QUICKNET, [silent.url, honest.url], 123, hedge_s=0.01)
        assert signed == SignedRound(123, QUICKNET_123.signature)
        assert silent.asked, "it was asked first"
        assert client.endpoints[0].failure_count == 0, "what was cancelled says nothing of it"
        signed, client = await ask(QUICKNET, [silent.url], 123, timeout_s=0.05)
        assert signed is None
        assert client.endpoints[0].failure_count == 1


async def test_a_body_that_drips_ends_with_the_time_limit() -> None:
    """The limit is of the whole request, not of each byte."""
    released = asyncio.Event()

    async def drip(writer: asyncio.StreamWriter, answer: Answer) -> None:
        write_answer(writer, (200, answer[1][:10]), length=len(answer[1]))
        await writer.drain()
        await released.wait()

    async with serve_drand(DrandServer(QUICKNET, RECORDED_QUICKNET, fault=drip)) as (server,):
        assert (await ask(QUICKNET, [server.url], 123, timeout_s=0.05))[0] is None


@pytest.mark.parametrize("status", [404, 425])
async def test_a_round_that_is_not_there_yet_is_no_failure(status: int) -> None:
    """Also of a stale server: it is asked last from then on."""
    stale = DrandServer(QUICKNET, {42: QUICKNET_42}, too_early=status)
    async with serve_drand(stale, DrandServer(QUICKNET, RECORDED_QUICKNET)) as (_, honest):
        signed, client = await ask(QUICKNET, [stale.url], 123)
        assert signed is None
        assert client.endpoints[0].failure_count == 0
        signed, client = await ask(QUICKNET, [stale.url, honest.url], 123)
        assert signed == SignedRound(123, QUICKNET_123.signature)
        assert client._rank()[0].url == honest.url


async def test_a_server_is_asked_for_its_chain_once() -> None:
    """The pinned chain is checked before the first round, and again only after a lie."""
    async with serve_drand(DrandServer(QUICKNET, RECORDED_QUICKNET)) as (server,):
        settings = RelaySettings((server.url,))
        async with open_http(settings) as http:
            client = DrandClient(QUICKNET, settings, http)
            found = await asyncio.gather(*(client.get_round(123) for _ in range(4)), client.get_round(42))
        assert all(found)
        assert sum(path.endswith("/info") for path in server.asked) == 1


async def test_rests_grow_and_are_bounded() -> None:
    """Each failure doubles the rest; failures side by side are one."""
    endpoint = drand.Endpoint("http://127.0.0.1:1", QUICKNET)
    rests = []
    now_s = 1_000.0
    for _ in range(12):
        endpoint.rest(now_s, 1.0)
        endpoint.rest(now_s, 1.0)
        rests.append(endpoint.rests_until_s - now_s)
        now_s = endpoint.rests_until_s
    assert rests[:3] == [0.5, 1.0, 2.0]
    assert max(rests) == rests[-1] == drand.REST_S_MAX


@pytest.mark.parametrize(
    "url",
    [
        "api.drand.sh",
        "ftp://api.drand.sh",
        "https://",
        "https://a:b@api.drand.sh",
        "https://a/?x=1",
        "file:///etc",
    ],
)
def test_what_is_no_server_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError):
        drand.Endpoint(url, QUICKNET)


@pytest.mark.parametrize("urls", [(), ("http://a", "http://a"), tuple(f"http://a{n}" for n in range(17))])
def test_lists_of_servers_are_bounded(urls: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        RelaySettings(urls)


# the relay: rounds in order, onto a stream


@dataclass
class FakeStream:
    """The BEACON stream, and the clock of a test."""

    genesis: Genesis
    now_ms: int
    stored: list[bytes] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    waits_s: list[float] = field(default_factory=list)

    async def publish(self, subject: str, data: bytes, *, message_id: str, **_: Any) -> int:
        assert subject == BEACON_ROUND.subject()
        if message_id not in self.ids:
            self.ids.add(message_id)
            self.stored.append(data)
        return len(self.stored)

    async def get_last(self, stream: str, subject: str) -> StreamRecord | None:
        if not self.stored:
            return None
        return StreamRecord(subject, self.stored[-1], {}, stream, len(self.stored), self.now_ms)

    async def wait_closed(self) -> NoReturn:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    def rounds(self) -> list[int]:
        """Return the numbers of what was published, each verified as a service would."""
        numbers = []
        chain = self.genesis.beacon_chain
        for data in self.stored:
            body = open_envelope(data, self.genesis.network_id, BeaconRoundV1).body
            assert body.chain_hash == chain.chain_hash
            verify_round(chain, body.round_number, body.signature, body.previous_signature or None)
            numbers.append(body.round_number)
        return numbers

    async def run(self, urls: Sequence[str], on_wait: Callable[[FakeStream], bool]) -> RelayBeacon:
        """Run a relay; at each wait ``on_wait`` may change the world and says whether to stop."""

        async def wait(stop: asyncio.Event, timeout_s: float) -> None:
            self.waits_s.append(timeout_s)
            if on_wait(self):
                stop.set()

        settings = RelaySettings(tuple(urls), timeout_s=20.0, hedge_s=20.0)
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(open_http(settings))
            beacon = RelayBeacon(
                self.genesis,
                key=make_network().keys[Role.BEACON],
                client=DrandClient(self.genesis.beacon_chain, settings, http, jitter=lambda: 0.0),
                bus=cast("Bus", self),
                clock_ms=lambda: self.now_ms,
                wait=wait,
                jitter=lambda: 1.0,
            )
            await beacon.run(asyncio.Event())
            return beacon


def make_genesis(chain: Chain, *, created_ms: int | None = None, source: str = "relay") -> Genesis:
    config = ChainConfig(
        scheme=chain.scheme.value,
        public_key_hex=chain.public_key.hex(),
        genesis_s=chain.genesis_s,
        period_s=chain.period_s,
        genesis_seed_hex=chain.genesis_seed.hex(),
        beacon_id=chain.beacon_id,
        source=cast("Any", source),
    )
    created = chain.genesis_s * 1_000 if created_ms is None else created_ms
    return make_network().genesis.model_copy(update={"chain": config, "created_ms": created})


@pytest.mark.parametrize("scheme", list(Scheme))
async def test_an_outage_is_caught_up_in_order(scheme: Scheme) -> None:
    """Of every scheme; more rounds than are fetched side by side; chained ones carry the signature before."""
    signed = SignedChain(scheme, genesis_s=GENESIS_S)
    server = DrandServer(signed.chain, signed.make_rounds(20))
    stream = FakeStream(make_genesis(signed.chain), compute_round_time_ms(signed.chain, 20))
    async with serve_drand(server):
        await stream.run([server.url + "/v2"], lambda _: True)
    assert stream.rounds() == list(range(1, 21))


async def test_an_outage_of_all_servers_is_waited_out() -> None:
    """With growing delays; no round is skipped when they come back, and a restart repeats nothing."""
    signed = SignedChain(Scheme.BLS_UNCHAINED_G1_RFC9380, genesis_s=GENESIS_S)
    rounds = signed.make_rounds(9)
    servers = [DrandServer(signed.chain, dict(rounds), fault=answering(500, b"")) for _ in range(2)]
    stream = FakeStream(make_genesis(signed.chain), compute_round_time_ms(signed.chain, 6))

    def heal(world: FakeStream) -> bool:
        if len(world.waits_s) == 4:
            for server in servers:
                server.fault = None
        return bool(world.stored)

    async with serve_drand(*servers):
        urls = [server.url for server in servers]
        await stream.run(urls, heal)
        assert stream.rounds() == [1, 2, 3, 4, 5, 6]
        assert stream.waits_s[:4] == [0.25, 0.5, 1.0, 2.0]
        stream.now_ms = compute_round_time_ms(signed.chain, 9)
        await stream.run(urls, lambda _: True)
    assert stream.rounds() == list(range(1, 10))


async def test_a_missing_round_holds_up_those_after_it() -> None:
    """Rounds that came side by side are published in order, up to the first that is not there."""
    signed = SignedChain(Scheme.PEDERSEN_BLS_CHAINED, genesis_s=GENESIS_S)
    rounds = signed.make_rounds(5)
    late = {3: rounds.pop(3)}
    server = DrandServer(signed.chain, rounds)
    stream = FakeStream(make_genesis(signed.chain), compute_round_time_ms(signed.chain, 5))
    seen: list[list[int]] = []

    def bring(world: FakeStream) -> bool:
        seen.append(world.rounds())
        server.rounds.update(late)
        return len(seen) == 2

    async with serve_drand(server):
        await stream.run([server.url], bring)
    assert seen == [[1, 2], [1, 2, 3, 4, 5]]


async def test_catching_up_begins_with_the_network_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """drand's rounds before the network was made are nobody's; of too many the latest are fetched."""
    signed = SignedChain(Scheme.BLS_UNCHAINED_G1_RFC9380, genesis_s=GENESIS_S)
    server = DrandServer(signed.chain, signed.make_rounds(12))
    created_ms = compute_round_time_ms(signed.chain, 10) + 500
    now_ms = compute_round_time_ms(signed.chain, 12)
    async with serve_drand(server):
        stream = FakeStream(make_genesis(signed.chain, created_ms=created_ms), now_ms)
        await stream.run([server.url], lambda _: True)
        assert stream.rounds() == [10, 11, 12]
        monkeypatch.setattr(publishing, "CATCH_UP_ROUNDS_MAX", 4)
        stream = FakeStream(make_genesis(signed.chain), now_ms)
        await stream.run([server.url], lambda _: True)
        assert stream.rounds() == [9, 10, 11, 12]


async def test_a_relay_that_gets_nothing_is_not_ready_and_says_what_servers_claim() -> None:
    """After some attempts their latest rounds are asked for, to tell stale from silent."""
    signed = SignedChain(Scheme.BLS_UNCHAINED_G1_RFC9380, genesis_s=GENESIS_S)
    server = DrandServer(signed.chain, signed.make_rounds(2))
    stream = FakeStream(make_genesis(signed.chain), compute_round_time_ms(signed.chain, 9))
    async with serve_drand(server):
        await stream.run([server.url], lambda world: len(world.waits_s) > relay.STALLED_FAILURES + 1)
    assert stream.rounds() == [1, 2]
    assert sum(path.endswith("/latest") for path in server.asked) == 1
    assert max(stream.waits_s) <= relay.DELAY_S_MAX


async def test_a_stream_of_another_chain_is_not_continued() -> None:
    signed = SignedChain(Scheme.BLS_UNCHAINED_G1_RFC9380, genesis_s=GENESIS_S)
    other = SignedChain(Scheme.BLS_UNCHAINED_G1_RFC9380, genesis_s=GENESIS_S, seed=b"o" * 32)
    server = DrandServer(other.chain, other.make_rounds(1))
    stream = FakeStream(make_genesis(other.chain), compute_round_time_ms(other.chain, 1))
    async with serve_drand(server):
        await stream.run([server.url], lambda _: True)
        stream.genesis = make_genesis(signed.chain)
        with pytest.raises(ExceptionGroup) as caught:
            await stream.run([server.url], lambda _: True)
    assert isinstance(caught.value.exceptions[0], PocacheError)


def test_a_network_that_is_not_relayed_has_no_relay() -> None:
    genesis = make_genesis(QUICKNET, source="local")
    with pytest.raises(ConfigError, match="not relayed"):
        RelayBeacon(genesis, key=cast("Any", None), client=cast("Any", None), bus=cast("Any", None))


def test_the_pinned_chain_of_the_genesis_is_drands() -> None:
    """With its beacon id, which is part of the hash."""
    assert make_genesis(QUICKNET).beacon_chain.chain_hash == QUICKNET.chain_hash
    assert make_genesis(DRAND_DEFAULT).beacon_chain.chain_hash == DRAND_DEFAULT.chain_hash
