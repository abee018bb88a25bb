"""The pipeline without engine cost: jobs from submission to a recorded commitment, against a bare chain of nats-py.

Ours: every service in its own process, accounts, signatures, ledger and log as in production, the engine a stub that writes
eight tokens at once. Bare: what ours asked of the bus for a job, counted in the same run (``Traffic``), and nothing else:

- as many messages *stored*, one after the other, on the same nats-server settings (every message flushed before it is
  acknowledged), each taken by a nats-py pull consumer, written to an SQLite database (WAL, FULL) with whatever else was
  fetched, published on and acknowledged;
- as many messages *taken* from streams: where several of our services read one message, more consumers of the chain take
  it, write it likewise and acknowledge it;
- as many messages *heard* without a consumer: the events and the text that the user's process is told.

It runs in as many processes as ours. A second chain stores as many messages and takes each but once, whatever ours takes:
the least that so many messages one after the other can cost. Both shares are given.

Command: ``make bench ARGS=pipeline``. Recorded figures: bench/RESULTS.md. Times are of one job in milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import structlog
from nats.js import api

from bench.measure import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.local import SECTIONS, USER, get_model_id, start_network
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.client import Job, PocacheClient, open_client
from pocache.protocol.lifecycle import Phase
from pocache.wire.topics import Stream
from pocache_cli.bootstrap import PROVISIONER
from pocache_cli.local_network import LocalNetwork, WorkerProcess
from pocache_cli.provision import plan_objects

JOBS = 400
TOKENS = 8
REPETITIONS = 3
IDENTITIES = 4
JOBS_MAX = 64
"""That each of them has in hand at once."""
BARE_PROCESSES = 6
BARE_BYTES = 600
"""About the mean of ours."""
STREAMS = 4
FETCH = 64
NETWORK = {
    **SECTIONS,
    "audit": {**SECTIONS["audit"], "lottery_share": "0/1", "window_rounds": 600},
    "deadlines": {"queue_ticks": 900, "lease_ticks": 600, "seal_ticks": 60, "opening_ticks": 60},
    "rules": {"unbonding_ticks": 20_000},
}
"""Nothing is audited or paid while it is measured: windows outlast the run."""


@dataclass(frozen=True)
class Traffic:
    """What a job asks of the bus, in whole messages."""

    stored: int
    taken: int
    """By consumers of streams."""
    heard: int
    """By the user's process, without a consumer."""


def run() -> list[Row]:
    """Return two rows, one for each bare chain: how long a job takes us, and how long it takes the chain, at full load."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    logging.disable(logging.CRITICAL)
    return asyncio.run(_run())


async def _run() -> list[Row]:
    generators = tuple(f"generator-{number}" for number in range(1, IDENTITIES + 1))
    workers = (
        WorkerProcess("generators", generators, roles="generate", jobs_max=JOBS_MAX),
        WorkerProcess("verifiers", ("verifier-1",), roles="verify"),
    )
    ours: list[float] = []
    whole: list[float] = []
    short: list[float] = []
    latencies_s: list[float] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = await stack.enter_async_context(
            start_network(folder / "network", workers=workers, sections=NETWORK)
        )
        settings = NatsSettings.of(network.directory, network.server.url, USER)
        bus = await stack.enter_async_context(connect_bus(settings))
        directory = network.directory
        client = await stack.enter_async_context(
            open_client(bus, directory.genesis, directory.signing_key(USER))
        )
        await _play(network, client, IDENTITIES * JOBS_MAX)  # warm
        for number in range(REPETITIONS):
            before = await _count(network, bus)
            seconds, taken = await _play(network, client, JOBS)
            after = await _count(network, bus)
            traffic = Traffic(*(round((now - then) / JOBS) for then, now in zip(before, after, strict=True)))
            ours.append(seconds / JOBS)
            latencies_s += taken
            whole.append(await _run_bare(folder / f"whole-{number}", traffic) / JOBS)
            least = Traffic(traffic.stored, traffic.stored, 0)
            short.append(await _run_bare(folder / f"short-{number}", least) / JOBS)
            print(
                f"ours {ours[-1]:.4f} s, bare {whole[-1]:.4f} s, short {short[-1]:.4f} s a job; {traffic}",
                file=sys.stderr,
            )
    latencies_s.sort()
    p50, p99 = (latencies_s[int(len(latencies_s) * share)] for share in (0.50, 0.99))
    note = (
        f"{1 / statistics.median(ours):.0f} jobs/s; from submission to the recorded commitment with {JOBS} jobs at once "
        f"p50 {p50:.2f} s, p99 {p99:.2f} s"
    )
    name = f"pipeline, {JOBS} jobs at once"
    asked = f"{traffic.stored} messages stored, {traffic.taken} taken, {traffic.heard} heard"
    return [
        _make_row(name, f"bare nats-py chain, {asked}", ours, whole, note),
        _make_row(name, f"bare nats-py chain, {traffic.stored} stored and taken", ours, short),
    ]


def _make_row(name: str, baseline: str, ours: list[float], bare: list[float], note: str = "") -> Row:
    share = statistics.median(theirs / mine for mine, theirs in zip(ours, bare, strict=True))
    return Row(
        name=name,
        baseline=baseline,
        median_ms=statistics.median(ours) * 1_000,
        spread_ms=(max(ours) - min(ours)) / 2 * 1_000,
        baseline_ms=statistics.median(bare) * 1_000,
        note=f"{share:.0%} of this chain's jobs/s{'; ' if note else ''}{note}",
    )


async def _play(network: LocalNetwork, client: PocacheClient, count: int) -> tuple[float, list[float]]:
    """Return how long ``count`` jobs took together, and each of them, in seconds."""
    started = time.perf_counter()
    model = get_model_id(network)

    async def follow(job: Job, began: float) -> float:
        await client.wait(job, Phase.COMMITTED)
        return time.perf_counter() - began

    async with asyncio.TaskGroup() as group:
        tasks = []
        for number in range(count):
            began = time.perf_counter()
            job = await client.submit(model, (number % 200, 2, 3), token_count_max=TOKENS, eos_stop=False)
            tasks.append(group.create_task(follow(job, began)))
    return time.perf_counter() - started, [task.result() for task in tasks]


async def _count(network: LocalNetwork, user: NatsBus) -> tuple[int, int, int]:
    """Return how many messages about jobs were stored, taken by consumers and heard by the user since the network began."""
    stored = taken = 0
    _, consumers = await asyncio.to_thread(plan_objects, network.directory)
    settings = NatsSettings.of(network.directory, network.server.url, PROVISIONER)
    streams = {stream.value for stream in (Stream.SUBMISSIONS, Stream.INTAKE, Stream.TASKS, Stream.RECORD)}
    async with connect_bus(settings) as bus:
        js = bus.client.jetstream()
        for stream in streams:
            stored += (await js.stream_info(stream)).state.last_seq
        for consumer in consumers:
            if consumer.stream in streams:
                delivered = (await js.consumer_info(consumer.stream, consumer.durable)).delivered
                taken += delivered.consumer_seq if delivered else 0
    return stored, taken, user.client.stats["in_msgs"]


async def _run_bare(folder: Path, traffic: Traffic) -> float:
    """Return how long the bare chain takes for as many jobs, in seconds."""
    hops = traffic.stored
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(ServerSettings(folder / "nats")))
        client = await nats.connect(server.url)
        stack.push_async_callback(client.close)
        js = client.jetstream()
        for number in range(STREAMS):
            subjects = [f"chain.{hop}" for hop in range(hops + 1) if hop % STREAMS == number]
            await js.add_stream(api.StreamConfig(name=f"CHAIN{number}", subjects=subjects))
        consumers = [(f"hop-{hop}", hop) for hop in range(hops + 1)]
        consumers += [(f"also-{number}", number % hops) for number in range(traffic.taken - hops)]
        for durable, hop in consumers:
            await js.add_consumer(
                f"CHAIN{hop % STREAMS}",
                api.ConsumerConfig(
                    durable_name=durable, filter_subject=f"chain.{hop}", ack_policy=api.AckPolicy.EXPLICIT
                ),
            )
        heard = _Heard(traffic.heard * JOBS)
        for number in range(traffic.heard):
            await client.subscribe(f"chain.{number % hops}", cb=heard.hear)
        shares: list[list[str]] = [[] for _ in range(BARE_PROCESSES)]
        for number, (durable, _) in enumerate(one for one in consumers if one != (f"hop-{hops}", hops)):
            shares[number % BARE_PROCESSES].append(durable)
        for number, share in enumerate(shares):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.pipeline", server.url, str(folder / f"{number}.sqlite")),
                *(str(hops), *share),
            )
            stack.push_async_callback(_end, process)
        last = await js.pull_subscribe_bind(durable=f"hop-{hops}", stream=f"CHAIN{hops % STREAMS}")
        await _pass_one(js, last)  # every process has started by then: that is not measured
        heard.count = 0
        started = time.perf_counter()
        await asyncio.gather(*(js.publish("chain.0", bytes(BARE_BYTES)) for _ in range(JOBS)))
        arrived = 0
        while arrived < JOBS:
            try:
                messages = await last.fetch(FETCH, timeout=1.0)
            except TimeoutError:
                continue
            arrived += len(messages)
            await asyncio.gather(*(message.ack() for message in messages))
        await heard.wait()
        return time.perf_counter() - started


class _Heard:
    """Counts what a process is told without asking."""

    def __init__(self, expected: int) -> None:
        self.count = 0
        self._expected = expected
        self._all = asyncio.Event()

    async def hear(self, _message: Any) -> None:
        self.count += 1
        if self.count >= self._expected:
            self._all.set()

    async def wait(self) -> None:
        """Wait until all was heard that is expected."""
        if self._expected:
            await self._all.wait()


async def _pass_one(js: Any, last: Any) -> None:
    await js.publish("chain.0", b"first")
    while True:
        try:
            (message,) = await last.fetch(1, timeout=5.0)
        except TimeoutError:
            continue
        return await message.ack()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


async def _serve_hops(url: str, database: str, hops: int, durables: list[str]) -> None:
    """Take the messages of these consumers until ended; those named for a hop pass them on."""
    client = await nats.connect(url)
    js = client.jetstream()
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE taken (data BLOB)")

    async def serve(durable: str) -> None:
        name, _, text = durable.partition("-")
        hop = int(text) % hops
        subscription = await js.pull_subscribe_bind(durable=durable, stream=f"CHAIN{hop % STREAMS}")
        while True:
            try:
                messages: list[Any] = await subscription.fetch(FETCH, timeout=5.0)
            except TimeoutError:
                continue
            with connection:
                connection.executemany(
                    "INSERT INTO taken VALUES (?)", [(message.data,) for message in messages]
                )
            if name == "hop":
                await asyncio.gather(*(js.publish(f"chain.{hop + 1}", message.data) for message in messages))
            await asyncio.gather(*(message.ack() for message in messages))

    async with asyncio.TaskGroup() as group:
        for durable in durables:
            group.create_task(serve(durable))


if __name__ == "__main__":
    asyncio.run(_serve_hops(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
