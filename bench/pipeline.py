"""The pipeline without engine cost: jobs from submission to a recorded commitment, against a bare chain of nats-py.

Ours: every service in its own process, accounts, signatures, ledger and log as in production, the engine a stub that writes
eight tokens at once. Bare: the same nats-server settings (every message flushed before it is acknowledged), as many stored
messages for each job as ours stored, one after the other, each taken by a nats-py pull consumer, written to an
SQLite database (WAL, FULL) with whatever else was fetched, published on and acknowledged; in as many processes as ours.

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
from pathlib import Path
from typing import Any

import nats
import structlog
from nats.js import api

from bench.measure import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.local import SECTIONS, USER, get_model_id, start_network
from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.client import Job, PocacheClient
from pocache.protocol.lifecycle import Phase
from pocache.wire.topics import Stream
from pocache_cli.bootstrap import PROVISIONER
from pocache_cli.local_network import LocalNetwork, WorkerProcess

JOBS = 100
TOKENS = 8
REPETITIONS = 3
IDENTITIES = 4
JOBS_MAX = 8
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


def run() -> list[Row]:
    """Return one row: how long a job takes us, and how long it takes the bare chain, at full load."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    logging.disable(logging.CRITICAL)
    return [asyncio.run(_run())]


async def _run() -> Row:
    generators = tuple(f"generator-{number}" for number in range(1, IDENTITIES + 1))
    workers = (
        WorkerProcess("generators", generators, roles="generate", jobs_max=JOBS_MAX),
        WorkerProcess("verifiers", ("verifier-1",), roles="verify"),
    )
    ours: list[float] = []
    bare: list[float] = []
    latencies_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with start_network(Path(folder) / "network", workers=workers, sections=NETWORK) as network:
            async with network.open_user(USER) as client:
                await _play(network, client, IDENTITIES * JOBS_MAX)  # warm
                for number in range(REPETITIONS):
                    stored = await _count_stored(network)
                    seconds, taken = await _play(network, client, JOBS)
                    hops = round((await _count_stored(network) - stored) / JOBS)
                    ours.append(seconds / JOBS)
                    latencies_s += taken
                    bare.append(await _run_bare(Path(folder) / f"bare-{number}", hops) / JOBS)
                    print(f"ours {ours[-1]:.4f} s, bare {bare[-1]:.4f} s a job, {hops} hops", file=sys.stderr)
    latencies_s.sort()
    p50, p99 = (latencies_s[int(len(latencies_s) * share)] for share in (0.50, 0.99))
    share = statistics.median(theirs / mine for mine, theirs in zip(ours, bare, strict=True))
    return Row(
        name=f"pipeline, {JOBS} jobs at once, {hops} stored messages a job",
        baseline="bare nats-py chain",
        median_ms=statistics.median(ours) * 1_000,
        spread_ms=(max(ours) - min(ours)) / 2 * 1_000,
        baseline_ms=statistics.median(bare) * 1_000,
        note=f"{1 / statistics.median(ours):.0f} jobs/s, {share:.0%} of the bare chain's; from submission to the recorded "
        f"commitment with {JOBS} jobs at once p50 {p50:.2f} s, p99 {p99:.2f} s",
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


async def _count_stored(network: LocalNetwork) -> int:
    """Return how many messages about jobs were stored since the network began."""
    total = 0
    settings = NatsSettings.of(network.directory, network.server.url, PROVISIONER)
    async with connect_bus(settings) as bus:
        js = bus.client.jetstream()
        for stream in (Stream.SUBMISSIONS, Stream.INTAKE, Stream.TASKS, Stream.RECORD):
            total += (await js.stream_info(stream.value)).state.last_seq
    return total


async def _run_bare(folder: Path, hops: int) -> float:
    """Return how long the bare chain takes for as many jobs, in seconds."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(ServerSettings(folder / "nats")))
        client = await nats.connect(server.url)
        stack.push_async_callback(client.close)
        js = client.jetstream()
        for number in range(STREAMS):
            subjects = [f"chain.{hop}" for hop in range(hops + 1) if hop % STREAMS == number]
            await js.add_stream(api.StreamConfig(name=f"CHAIN{number}", subjects=subjects))
        for hop in range(hops + 1):
            await js.add_consumer(
                f"CHAIN{hop % STREAMS}",
                api.ConsumerConfig(
                    durable_name=f"hop-{hop}",
                    filter_subject=f"chain.{hop}",
                    ack_policy=api.AckPolicy.EXPLICIT,
                ),
            )
        for number in range(BARE_PROCESSES):
            mine = [str(hop) for hop in range(hops) if hop % BARE_PROCESSES == number]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bench.pipeline", server.url, str(folder / f"{number}.sqlite"), *mine
            )
            stack.push_async_callback(_end, process)
        last = await js.pull_subscribe_bind(durable=f"hop-{hops}", stream=f"CHAIN{hops % STREAMS}")
        await _pass_one(js, last)  # every process has started by then: that is not measured
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
        return time.perf_counter() - started


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


async def _serve_hops(url: str, database: str, hops: list[int]) -> None:
    """Move messages on by these hops until ended."""
    client = await nats.connect(url)
    js = client.jetstream()
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE taken (data BLOB)")

    async def serve(hop: int) -> None:
        subscription = await js.pull_subscribe_bind(durable=f"hop-{hop}", stream=f"CHAIN{hop % STREAMS}")
        while True:
            try:
                messages: list[Any] = await subscription.fetch(FETCH, timeout=5.0)
            except TimeoutError:
                continue
            with connection:
                connection.executemany(
                    "INSERT INTO taken VALUES (?)", [(message.data,) for message in messages]
                )
            await asyncio.gather(*(js.publish(f"chain.{hop + 1}", message.data) for message in messages))
            await asyncio.gather(*(message.ack() for message in messages))

    async with asyncio.TaskGroup() as group:
        for hop in hops:
            group.create_task(serve(hop))


if __name__ == "__main__":
    asyncio.run(_serve_hops(sys.argv[1], sys.argv[2], [int(hop) for hop in sys.argv[3:]]))
