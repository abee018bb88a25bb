"""Tokens in chunks: the first at once, the rest gathered for all streams together, in order, under one running hash."""

from __future__ import annotations

import asyncio
import threading
from typing import cast

import pytest
from structlog.testing import capture_logs

from kit.network import make_key
from kit.worker import make_grant, make_worker_network
from pocache.bus.port import Bus
from pocache.protocol.commitment import CHUNK_HASH_START, compute_chunk_hash
from pocache.protocol.encoding import unpack_logprobs, unpack_tokens
from pocache.protocol.errors import BusError
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope, seal
from pocache_worker import streaming
from pocache_worker.streaming import GATHER_S_MAX, Pacer, TokenStream

NETWORK = make_worker_network()
WORKER = make_key("worker-1")
WAIT_S = 60.0
NEVER_S = 100_000.0


class Wire:
    """The bus as far as a stream needs it."""

    def __init__(self) -> None:
        self.chunks: list[m.TokenChunkV1] = []
        self.scores: list[tuple[int, m.TokenScoresV1]] = []
        """How many chunks there were before, and the scores."""
        self.is_away = False
        self.changed = asyncio.Event()

    async def publish_core(self, subject: str, data: bytes) -> None:
        """Take a chunk or its scores, signature and subject checked."""
        if t.SCORES.matches(subject):
            scores = open_envelope(data, NETWORK.network_id, m.TokenScoresV1)
            assert scores.sender == t.SCORES.parse(subject)["worker"] == WORKER.participant_id
            if self.is_away:
                raise BusError("away")
            self.scores.append((len(self.chunks), scores.body))
            return
        opened = open_envelope(data, NETWORK.network_id, m.TokenChunkV1)
        assert opened.sender == t.TOKENS.parse(subject)["worker"] == WORKER.participant_id
        self.changed.set()
        if self.is_away:
            raise BusError("away")
        self.chunks.append(opened.body)

    async def wait(self, count: int) -> None:
        """Wait until so many chunks came."""
        async with asyncio.timeout(WAIT_S):
            while len(self.chunks) < count:
                self.changed.clear()
                await self.changed.wait()

    def read(self) -> list[tuple[int, ...]]:
        """Return the tokens of each chunk, after checking that they follow one another."""
        index, running = 0, CHUNK_HASH_START
        for chunk in self.chunks:
            running = compute_chunk_hash(running, chunk.tokens)
            assert (chunk.first_index, chunk.running_hash) == (index, running)
            index += len(unpack_tokens(chunk.tokens))
        return [unpack_tokens(chunk.tokens) for chunk in self.chunks]


def open_stream(wire: Wire, pacer: Pacer) -> TokenStream:
    grant = make_grant(NETWORK, WORKER)
    lease = open_envelope(grant.lease, NETWORK.network_id, m.LeaseV1).body
    return TokenStream(cast("Bus", wire), lambda body: seal(WORKER, NETWORK.network_id, body), lease, pacer)


async def test_the_first_tokens_go_at_once_and_the_rest_with_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is never time for the others, the first chunk is there all the same, and the last has what waited."""
    monkeypatch.setattr(Pacer, "compute_gather_s", lambda _self: NEVER_S)
    wire = Wire()
    async with open_stream(wire, Pacer()) as stream:
        stream.push((1,))
        await wire.wait(1)
        for token in range(2, 9):
            stream.push((token,))
        await asyncio.sleep(0)
        assert wire.read() == [(1,)]
    assert wire.read() == [(1,), tuple(range(2, 9))]
    assert [chunk.is_last for chunk in wire.chunks] == [False, True]


async def test_all_streams_are_published_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream's time is the others' as well: what each has waiting goes in one chunk each."""
    monkeypatch.setattr(Pacer, "compute_gather_s", lambda _self: NEVER_S)
    pacer, wires = Pacer(), (Wire(), Wire())
    async with open_stream(wires[0], pacer) as one, open_stream(wires[1], pacer) as other:
        for stream in (one, other):
            stream.push((1,))
        for wire in wires:
            await wire.wait(1)
        monkeypatch.setattr(Pacer, "compute_gather_s", lambda _self: 0.0)
        for token in (2, 3):  # one step after the other, before the loop runs
            for stream in (one, other):
                stream.push((token,))
        for wire in wires:
            await wire.wait(2)
        assert [wire.read() for wire in wires] == [[(1,), (2, 3)]] * 2


async def test_what_another_thread_pushes_arrives_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "GATHER_S_PER_STREAM", 0.001)
    wire, count = Wire(), 2_000
    async with open_stream(wire, Pacer()) as stream:

        def push_all() -> None:
            for token in range(count):
                stream.push((token,))

        pushing = threading.Thread(target=push_all)
        pushing.start()
        await wire.wait(1)
        await asyncio.to_thread(pushing.join)
    tokens = [token for chunk in wire.read() for token in chunk]
    assert tokens == list(range(count))
    assert len(wire.chunks) < count, "tokens were gathered"
    assert [chunk.is_last for chunk in wire.chunks].index(True) == len(wire.chunks) - 1


async def test_tokens_wait_longer_the_more_streams_there_are_up_to_a_bound() -> None:
    pacer, waits = Pacer(), []
    for _ in range(50):
        pacer.add(open_stream(Wire(), pacer))
        waits.append(pacer.compute_gather_s())
    assert waits == sorted(waits)
    assert waits[0] == streaming.GATHER_S_PER_STREAM < waits[-1] == GATHER_S_MAX


async def test_a_generation_that_fails_says_no_last_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pacer, "compute_gather_s", lambda _self: NEVER_S)
    wire, pacer = Wire(), Pacer()
    with pytest.raises(ValueError, match="engine"):
        async with open_stream(wire, pacer) as stream:
            stream.push((1,))
            await wire.wait(1)
            stream.push((2,))
            raise ValueError("the engine failed")
    assert wire.read() == [(1,)]
    assert not wire.chunks[0].is_last


async def test_a_bus_that_is_away_holds_nothing_up() -> None:
    """What could not be sent is in the result; the chunks behind it show the gap."""
    wire = Wire()
    wire.is_away = True
    async with open_stream(wire, Pacer()) as stream:
        stream.push((1,))
        async with asyncio.timeout(WAIT_S):
            await wire.changed.wait()
        wire.is_away = False
        stream.push((2,))
    assert [(chunk.first_index, unpack_tokens(chunk.tokens)) for chunk in wire.chunks] == [(1, (2,))]


def push(stream: TokenStream, *tokens: int) -> None:
    """Push tokens as an engine does that has their scores: these first."""
    for token in tokens:
        stream.score((-token / 4,))
        stream.push((token,))


async def test_scores_go_before_their_chunk_with_the_same_first_and_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pacer, "compute_gather_s", lambda _self: NEVER_S)
    wire = Wire()
    async with open_stream(wire, Pacer()) as stream:
        push(stream, 1)
        await wire.wait(1)
        push(stream, 2, 3)
    assert [index for index, _ in wire.scores] == [0, 1]
    heard = [(one.first_index, unpack_logprobs(one.logprobs)) for _, one in wire.scores]
    assert heard == [(0, (-0.25,)), (1, (-0.5, -0.75))]
    assert [chunk.first_index for chunk in wire.chunks] == [0, 1]


async def test_an_engine_without_scores_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pacer, "compute_gather_s", lambda _self: NEVER_S)
    wire = Wire()
    with capture_logs() as logs:
        async with open_stream(wire, Pacer()) as stream:
            stream.push((1,))
            await wire.wait(1)
            push(stream, 2)  # behind a gap they would be another token's
    assert wire.read() == [(1,), (2,)]
    assert wire.scores == []
    assert [one["event"] for one in logs].count("scores_not_sent") == 1


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), 0.5])
async def test_a_score_that_is_none_is_not_said_and_the_tokens_are(
    monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    monkeypatch.setattr(Pacer, "compute_gather_s", lambda _self: NEVER_S)
    wire = Wire()
    async with open_stream(wire, Pacer()) as stream:
        stream.score((wrong,))
        stream.push((1,))
        await wire.wait(1)
        push(stream, 2)
    assert wire.read() == [(1,), (2,)]
    assert wire.scores == []
