"""The gateway: what it adds to an engine's first token and to its throughput, and 500 streams at once.

Command: ``make bench ARGS=gateway``. Recorded figures: bench/RESULTS.md. A whole network runs: nats-server, every service in
a process of its own, one worker process with eight identities on one engine of one thread (a Llama shape of 8 layers
with random weights), the gateway in a process of its own, and the clients in this one. The baseline is the worker's own loop
over the same eight jobs, before and after each round through the gateway: the engine in the thread that a worker has for it,
handing out its steps as there, in this process and without a network.

Both sides are measured by the same rule, from the first token of all to the last of all, and do the same work within it:
the own loop's other seven jobs join when the first has its first token, as they do at a worker, so that their prefill
counts on both sides. (It began with all eight prefilled once, which the worker's never does.) What the gateway's side has more
of is what it costs: leases that come one after another, commitments, other processes on the same cores. The second row is the
pace of a stream from its own first token to its own last, eight of them at once. Both are measured with short answers and with
longer ones, as most of that cost belongs to a job and not to its tokens. A round's share is that of the mean of the own loop
before and after it; the median of the shares, and their quartiles, stand beside each row.

That engine is small and takes one of the machine's cores, as no engine does that is worth a network. So the same is measured
with one whose step takes 24 ms and leaves the processor free, about what an 8B model's takes for eight streams on a GPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import structlog

from bench.measure import Row
from kit.local import SECTIONS, USER
from kit.sse import iterate_events
from kit.wealth import RULES
from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache.engine.demo_model import build_demo_model
from pocache.engine.fake import FakeEngine
from pocache.engine.port import Engine, GenerateRequest
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.commitment import Sampling
from pocache.protocol.ids import JobId, NetworkId
from pocache.storage.api_keys import KeyLimits, open_api_keys
from pocache_cli.bootstrap import NetworkPlan, create_network, register_model
from pocache_cli.calibrate import describe
from pocache_cli.children import pick_python_environment
from pocache_cli.local_network import LocalNetwork, WorkerProcess, run_network
from pocache_cli.models import record_source
from pocache_worker.cheats import HONEST
from pocache_worker.engines import EngineHost

STREAMS, TOKENS, PROMPT = 8, 96, "Once upon a time there was a model"
GENERATORS = tuple(f"generator-{number}" for number in range(STREAMS))
LONG_TOKENS = 384
"""Of a longer answer: what belongs to a job and not to its tokens weighs a quarter."""
ROUNDS, SINGLES = 9, 15
"""The own loop alone scatters by a tenth from one run to the next on a shared machine: three rounds say little."""
PACED, PACED_STEP_MS = "fake:steps@3", 24
"""Each token takes 3 ms, one stream's after another's. Of this name the answer begins and ends with a whole character."""
CONNECTIONS = 500
BUDGET_MS = 25.0
MONEY_MICRO = 100_000_000_000
QUIET = {
    **SECTIONS,
    "audit": {**SECTIONS["audit"], "lottery_share": "0/1", "window_rounds": 40},
    "deadlines": {**SECTIONS["deadlines"], "lease_ticks": 300},
    "rules": RULES,
}
"""No audits: the verifier's work on the same two cores is measured elsewhere."""


@dataclass(frozen=True)
class Streamed:
    """One answer as its client saw it."""

    job_id: str
    first_ns: int
    """Wall clock of the first piece of text, or of the first token."""
    last_ns: int
    token_count: int


@dataclass(frozen=True)
class Round:
    """Eight streams at once through the gateway, and the own loop before and after."""

    answers: list[Streamed]
    wall_ms: float
    """From the requests to the last one's end."""
    own: tuple[list[Streamed], list[Streamed]]


def run() -> list[Row]:
    """Return the rows of this benchmark."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    return [
        *asyncio.run(_measure_small()),
        *asyncio.run(_measure_paced()),
        asyncio.run(_measure_connections()),
    ]


async def _measure_small() -> list[Row]:
    """Measure the small engine that takes a core."""
    with tempfile.TemporaryDirectory() as folder:
        model = str(build_demo_model(Path(folder) / "model", layer_count=8, hidden_size=384, kv_head_count=4))
        engine = TransformersEngine(model, dtype="float32", device="cpu", threads=1)
        async with (
            _open(Path(folder), model, engine) as (network, client),
            _open_own_loop(engine, network) as host,
        ):
            await _warm_up(client)
            singles = [await _stream(client, 4) for _ in range(SINGLES)]
            delays = _compute_delays(network, singles)
            rounds = [await _measure_round(client, host) for _ in range(ROUNDS)]
            crowded = _compute_delays(network, [one for played in rounds for one in played.answers])
            long = [await _measure_round(client, host, LONG_TOKENS) for _ in range(ROUNDS)]
    walls = [played.wall_ms / (STREAMS * TOKENS) for played in rounds]
    note = (
        f"- first token after the engine's, {STREAMS} streams at once: median {statistics.median(crowded):.1f} ms\n"
        f"- throughput with submission, escrow, lease and commitment: {statistics.median(walls):.3f} ms per token"
    )
    return [
        _make_row("first token at the client, after the engine's", "budget", delays, [BUDGET_MS]),
        *_make_throughput_rows("", rounds, note),
        *_make_throughput_rows("", long),
    ]


async def _measure_paced() -> list[Row]:
    """Measure the engine whose step takes as long as a large model's, and leaves the processor free."""
    engine = FakeEngine(PACED.removeprefix("fake:"))
    with tempfile.TemporaryDirectory() as folder:
        async with (
            _open(Path(folder), PACED, engine) as (network, client),
            _open_own_loop(engine, network) as host,
        ):
            await _warm_up(client)
            rounds = [await _measure_round(client, host) for _ in range(ROUNDS)]
    return _make_throughput_rows(f", steps of {PACED_STEP_MS} ms", rounds)


async def _warm_up(client: httpx.AsyncClient) -> None:
    """Have everything loaded and connected."""
    await asyncio.gather(*(_stream(client, 8) for _ in range(STREAMS)))


async def _measure_round(client: httpx.AsyncClient, host: EngineHost, count: int = TOKENS) -> Round:
    before = await _run_own_loop(host, count)
    started_ns = time.time_ns()
    answers = await asyncio.gather(*(_stream(client, count) for _ in range(STREAMS)))
    wall_ms = (time.time_ns() - started_ns) / 1e6
    after = await _run_own_loop(host, count)
    return Round(answers, wall_ms, (before, after))


def _make_throughput_rows(what: str, rounds: list[Round], note: str = "") -> list[Row]:
    count = rounds[0].answers[0].token_count
    ours = [played.answers for played in rounds]
    own = [loop for played in rounds for loop in played.own]
    measures = (
        (f"ms per token, {STREAMS} streams of {count} through the gateway{what}", _compute_ms_per_token),
        (f"ms per token by a stream's own pace, {STREAMS} streams of {count}{what}", _compute_pace_ms),
    )
    rows: list[Row] = []
    for name, compute in measures:
        shares = [statistics.fmean(map(compute, played.own)) / compute(played.answers) for played in rounds]
        low, median, high = statistics.quantiles(shares, n=4)
        shown = f"- {name}: {median:.3f} of the own loop's throughput, quartiles {low:.3f} and {high:.3f} of {len(rounds)} rounds"
        rows.append(
            _make_row(
                name,
                "the worker's own loop",
                [compute(one) for one in ours],
                [compute(one) for one in own],
                f"{shown}\n{note}".rstrip(),
            )
        )
        note = ""
    return rows


@asynccontextmanager
async def _open(
    folder: Path, model: str, engine: Engine
) -> AsyncIterator[tuple[LocalNetwork, httpx.AsyncClient]]:
    """Run a network of one model, one user and eight generators behind a gateway; yield a client of the gateway."""
    plan = NetworkPlan(
        "bench", (USER,), (*GENERATORS, "verifier-1"), is_demo=True, sections=QUIET, period_s=1
    )
    directory = create_network(folder / "network", plan)
    prompts = draw_prompts(engine.capabilities(), count=3)
    profile = run_calibration(engine, engine, prompts, max_tokens=8)
    entry = register_model(directory, describe(engine.capabilities(), profile, "bench"))
    record_source(directory, entry.model_id, model)
    limits = KeyLimits(1_000_000, 10_000, 1_000_000)
    state = directory.path / "state"
    state.mkdir(parents=True, exist_ok=True)
    with open_api_keys(f"sqlite:///{state / 'gateway.sqlite'}") as keys:
        secret, _ = keys.issue(USER, limits=limits)
    port = _find_port()
    workers = (WorkerProcess("generators", GENERATORS, roles="generate"),)
    async with run_network(directory, workers, model=model, gateway_port=port) as network:
        await network.deposit(USER, "available", MONEY_MICRO, "bench/user")
        for name in GENERATORS:
            await network.deposit(name, "stake", MONEY_MICRO, f"bench/{name}")
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120
        ) as client:
            yield network, client


async def _stream(client: httpx.AsyncClient, count: int) -> Streamed:
    """Stream one answer of exactly ``count`` tokens."""
    body = {
        "model": "bench",
        "prompt": PROMPT,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first_ns = last_ns = produced = 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for _, data in iterate_events(response):
            if data == "[DONE]":
                continue
            chunk = json.loads(data)
            if any(choice["text"] for choice in chunk["choices"]):
                last_ns = time.time_ns()
                first_ns = first_ns or last_ns
            if chunk.get("usage"):
                produced = chunk["usage"]["completion_tokens"]
    assert produced == count, f"{produced} tokens of {count}"
    return Streamed(response.headers["x-pocache-job"], first_ns, last_ns, produced)


def _compute_delays(network: LocalNetwork, answers: list[Streamed]) -> list[float]:
    """Return, for each answer, the ms from the engine's first token (by the worker's log) to the client's."""
    log = network.directory.path / "logs" / "generators.log"
    lines = [json.loads(line) for line in log.read_text().splitlines() if '"first_token"' in line]
    engine_ns = {line["job"]: line["engine_ns"] for line in lines}
    return [(one.first_ns - engine_ns[one.job_id]) / 1e6 for one in answers]


def _compute_ms_per_token(answers: list[Streamed]) -> float:
    """Return ms per token from the first piece of text to the last, of all streams together."""
    first, last = min(one.first_ns for one in answers), max(one.last_ns for one in answers)
    return (last - first) / 1e6 / sum(one.token_count for one in answers)


def _compute_pace_ms(answers: list[Streamed]) -> float:
    """Return ms per token of all streams together, each by its own time between its first token and its last."""
    paces = [(one.last_ns - one.first_ns) / 1e6 / (one.token_count - 1) for one in answers]
    return statistics.fmean(paces) / len(answers)


async def _run_own_loop(host: EngineHost, count: int) -> list[Streamed]:
    """Give a worker's engine thread the same jobs and no network: the first, and at its first token all the others."""
    stamps: list[list[int]] = [[] for _ in range(STREAMS)]
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def generate(index: int) -> None:
        request = GenerateRequest(
            job_id=JobId(bytes([index]) * 32),
            attempt=1,
            prompt=tuple(PROMPT.encode()),
            max_tokens=count,
            sampling=Sampling(),
            seed=bytes(32),
            network=NetworkId(bytes(32)),
            eos_stop=False,
        )

        def take(_tokens: tuple[int, ...]) -> None:
            stamps[index].append(time.time_ns())
            if not index and len(stamps[0]) == 1:
                loop.call_soon_threadsafe(begun.set)

        await host.generate(GENERATORS[index], request, take, lambda: False)

    async with asyncio.TaskGroup() as group:
        group.create_task(generate(0))
        await begun.wait()
        for index in range(1, STREAMS):
            group.create_task(generate(index))
    return [Streamed("", one[0], one[-1], len(one)) for one in stamps]


@asynccontextmanager
async def _open_own_loop(engine: Engine, network: LocalNetwork) -> AsyncIterator[EngineHost]:
    """Yield what a worker of eight identities has around its engine."""
    host = EngineHost(lambda: engine, network.directory.load_models(), dict.fromkeys(GENERATORS, HONEST))
    try:
        await host.load()
        yield host
    finally:
        host.close()


async def _measure_connections() -> Row:
    """Open 500 streams at once against a gateway process whose engine is a stub, and read each to its end."""
    command = (sys.executable, "-m", "bench.gateway_stub")
    environ = _get_environment()
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environ
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        told = json.loads(await process.stdout.readline())
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"authorization": f"Bearer {told['key']}"}
        before_kib = _read_rss_kib(process.pid, "VmRSS")
        async with httpx.AsyncClient(
            base_url=told["url"], headers=headers, timeout=300, limits=limits
        ) as client:
            started = time.perf_counter()
            counts = await asyncio.gather(*(_read_stub(client) for _ in range(CONNECTIONS)))
            wall_s = time.perf_counter() - started
        peak_kib = _read_rss_kib(process.pid, "VmHWM")
    finally:
        process.stdin.close()
        await process.wait()
    whole = sum(count == told["tokens"] for count in counts)
    assert whole == CONNECTIONS, f"{CONNECTIONS - whole} of {CONNECTIONS} streams were dropped or cut short"
    note = (
        f"- {CONNECTIONS} streams of {told['tokens']} tokens at once: {whole} whole, none dropped; the gateway's memory: "
        f"{before_kib / 1_024:.0f} MiB before, {peak_kib / 1_024:.0f} MiB at its peak"
    )
    ideal_ms = told["tokens"] * told["interval_s"] * 1_000
    return _make_row(
        f"{CONNECTIONS} streams, to the last one's end",
        "the stub engine's own pace",
        [wall_s * 1_000],
        [ideal_ms],
        note,
    )


async def _read_stub(client: httpx.AsyncClient) -> int:
    """Return how many tokens a stream's client was given."""
    body = {"model": "kit-model", "prompt": "Hi", "max_tokens": 1_000, "stream": True}
    text = ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for _, data in iterate_events(response):
            if data != "[DONE]":
                text += "".join(choice["text"] for choice in json.loads(data)["choices"])
    return len(text)


def _read_rss_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _get_environment() -> dict[str, str]:
    root = Path(__file__).parents[1]
    paths = pick_python_environment()["PYTHONPATH"]
    return {**os.environ, "PYTHONPATH": f"{paths}:{root}:{root / 'tests'}"}


def _find_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _make_row(name: str, baseline: str, ours: list[float], theirs: list[float], note: str = "") -> Row:
    spread: Any = statistics.quantiles(ours, n=4) if len(ours) > 1 else [ours[0], ours[0], ours[0]]
    return Row(
        name=name,
        baseline=baseline,
        median_ms=statistics.median(ours),
        spread_ms=(spread[2] - spread[0]) / 2,
        baseline_ms=statistics.median(theirs),
        note=note,
    )
