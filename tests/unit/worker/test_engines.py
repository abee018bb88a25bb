"""The engine's host: the network's model or none, a job's failure is the job's, a broken engine ends the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from kit.engines import build_request, build_verification
from kit.network import make_key
from kit.worker import CONTEXT_TOKENS_MAX, MODEL_NAME, build_fake_engine, make_worker_network
from pocache.engine.fake import FakeEngine
from pocache.engine.port import Capture, Engine, VerifyCapture, VerifyRequest
from pocache.protocol.challenge import compute_full_corner
from pocache.protocol.errors import ConfigError, EngineCancelledError, EngineError, PromptError
from pocache.wire import messages as m
from pocache.wire.topics import Role
from pocache_worker.cheats import HONEST, Cheat, parse_cheats
from pocache_worker.engines import BrokenEngineError, EngineHost, choose_engine, verify_engine
from pocache_worker.rounds import RoundTracker

NETWORK = make_worker_network()


class FaultyEngine(FakeEngine):
    """Raises what a test puts in its way."""

    def __init__(self) -> None:
        super().__init__(MODEL_NAME, context_tokens_max=CONTEXT_TOKENS_MAX)
        self.faults: list[Exception | None] = []

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        fault = self.faults.pop(0)
        if fault is not None:
            raise fault
        return super().verify(requests)


Open = Callable[[Engine], EngineHost]


@pytest.fixture
def open_host() -> Iterator[Open]:
    """Makes hosts of one honest identity, closed with the test."""
    hosts: list[EngineHost] = []

    def build(engine: Engine) -> EngineHost:
        hosts.append(EngineHost(lambda: engine, NETWORK.models, {"w": HONEST}))
        return hosts[-1]

    yield build
    for host in hosts:
        host.close()


def make_verification() -> VerifyRequest:
    request = build_request()
    return build_verification(request, (1, 2, 3), compute_full_corner(2, 8))


async def test_the_networks_model_is_loaded_in_the_engine_thread(open_host: Open) -> None:
    names: list[str] = []
    engine = FakeEngine(
        MODEL_NAME,
        context_tokens_max=CONTEXT_TOKENS_MAX,
        wait_step=lambda: names.append(threading.current_thread().name),
    )
    host = open_host(engine)
    assert await host.load() is NETWORK.model
    await host.generate("w", build_request(max_tokens=2), lambda _tokens: None, lambda: False)
    assert [name.startswith("engine") for name in names] == [True, True]


@pytest.mark.parametrize(
    ("engine", "what"),
    [
        (build_fake_engine("another"), "this network serves kit-model"),
        (FakeEngine(MODEL_NAME, columns=8), "row schema"),
        (FakeEngine(MODEL_NAME, layer_count=3), "row schema"),
    ],
)
def test_another_model_or_shape_is_refused_by_name(engine: Engine, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        verify_engine(engine, NETWORK.models)


def test_a_fake_engine_takes_the_networks_shape() -> None:
    network = make_worker_network()
    build = choose_engine(f"fake:{MODEL_NAME}", network.models, device=None, threads=None)
    assert build().capabilities() == build_fake_engine().capabilities()
    with pytest.raises(ConfigError, match="POCACHE_WORKER_MODEL is model"):
        verify_engine(
            choose_engine("fake:other", network.models, device=None, threads=None)(), network.models
        )


async def test_a_jobs_own_failure_never_ends_the_process(open_host: Open) -> None:
    engine = FaultyEngine()
    host = open_host(engine)
    await host.load()
    engine.faults = [PromptError("too long"), EngineError("no"), PromptError("again"), MemoryError()]
    for expected in (PromptError, EngineError, PromptError, EngineError):
        with pytest.raises(expected):
            await host.verify("w", [make_verification()])


async def test_two_unexpected_failures_in_a_row_end_the_process(open_host: Open) -> None:
    engine = FaultyEngine()
    host = open_host(engine)
    await host.load()
    engine.faults = [RuntimeError("odd"), None, RuntimeError("odd"), RuntimeError("odd")]
    with pytest.raises(EngineError, match="RuntimeError: odd"):
        await host.verify("w", [make_verification()])
    assert len(await host.verify("w", [make_verification()])) == 1
    with pytest.raises(EngineError, match="odd"):
        await host.verify("w", [make_verification()])
    with pytest.raises(BrokenEngineError):
        await host.verify("w", [make_verification()])


async def test_a_batchs_failure_does_not_count(open_host: Open) -> None:
    """Its jobs are tried one by one next, and one of them failing is that job's failure."""
    engine = FaultyEngine()
    host = open_host(engine)
    await host.load()
    engine.faults = [RuntimeError("odd"), RuntimeError("odd")]
    with pytest.raises(EngineError):
        await host.verify("w", [make_verification(), make_verification()])
    with pytest.raises(EngineError):
        await host.verify("w", [make_verification()])


async def test_closing_ends_a_generation_at_its_next_token(open_host: Open) -> None:
    host = open_host(build_fake_engine())
    await host.load()
    host_closed: list[None] = []

    def close(_tokens: tuple[int, ...]) -> None:
        host.close()
        host_closed.append(None)

    with pytest.raises(EngineCancelledError):
        await host.generate("w", build_request(), close, lambda: False)
    assert len(host_closed) == 1
    assert host.is_aborted


async def test_identities_decode_together_and_a_verification_waits_for_a_step_alone() -> None:
    """What comes while the first job's first token is computed joins behind that token, not behind the job."""
    gate, held, loop, order = threading.Event(), asyncio.Event(), asyncio.get_running_loop(), list[str]()

    class Noting(FakeEngine):
        def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
            order.append("verified")
            return super().verify(requests)

    def wait_step() -> None:
        loop.call_soon_threadsafe(held.set)
        assert gate.wait(30)

    def start(name: str) -> asyncio.Task[Capture]:
        request = build_request(job=name, max_tokens=3)
        return asyncio.create_task(host.generate(name, request, lambda _: order.append(name), lambda: False))

    engine = Noting(MODEL_NAME, context_tokens_max=CONTEXT_TOKENS_MAX, wait_step=wait_step)
    host = EngineHost(lambda: engine, NETWORK.models, {"a": HONEST, "b": HONEST})
    try:
        await host.load()
        first = start("a")
        await held.wait()
        second = start("b")
        verifying = asyncio.create_task(host.verify("a", [make_verification()]))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, second, verifying)
    finally:
        gate.set()
        host.close()
    assert order == ["a", "verified", "a", "b", "a", "b", "b"]


async def test_a_job_whose_waiter_is_gone_stops(open_host: Open) -> None:
    counted, loop, started, gate = list[int](), asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def on_step(tokens: tuple[int, ...]) -> None:
        counted.extend(tokens)
        loop.call_soon_threadsafe(started.set)
        assert gate.wait(30)

    host = open_host(build_fake_engine())
    await host.load()
    waiter = asyncio.create_task(host.generate("w", build_request(max_tokens=50), on_step, lambda: False))
    await started.wait()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    gate.set()
    await host.generate("w", build_request(max_tokens=50), lambda _tokens: None, lambda: False)
    assert len(counted) == 1


async def test_what_is_queued_when_the_host_closes_ends_with_it(open_host: Open) -> None:
    gate, loop, held = threading.Event(), asyncio.get_running_loop(), asyncio.Event()

    def wait_step() -> None:
        loop.call_soon_threadsafe(held.set)
        gate.wait(30)

    host = open_host(FakeEngine(MODEL_NAME, context_tokens_max=CONTEXT_TOKENS_MAX, wait_step=wait_step))
    await host.load()
    jobs = [asyncio.create_task(host.generate("w", build_request(), lambda _tokens: None, lambda: False))]
    await held.wait()
    jobs.append(asyncio.create_task(host.generate("w", build_request(), lambda _tokens: None, lambda: False)))
    verification = asyncio.create_task(host.verify("w", [make_verification()]))
    await asyncio.sleep(0)
    host.close()
    gate.set()
    for waiting in (*jobs, verification):
        with pytest.raises(EngineCancelledError):
            await waiting


async def test_cheats_get_engines_of_their_own_and_the_honest_weights_stay_honest() -> None:
    """One engine per kind of cheat; wrappers share the honest one, tampering never touches it."""
    built: list[FakeEngine] = []

    def build() -> Engine:
        built.append(build_fake_engine())
        return built[-1]

    cheats = parse_cheats(
        "b:another-model,c:swapped-prompt,d:garbage-claims,e:another-model,f:never-opens",
        "abcdef",
        is_demo=True,
    )
    assert cheats["a"] == Cheat()
    host = EngineHost(build, NETWORK.models, cheats)
    try:
        await host.load()
        request, verification = build_request(), make_verification()
        runs = {
            name: await host.generate(name, request, lambda _tokens: None, lambda: False) for name in "abcef"
        }
        honest = build_fake_engine().generate(request, lambda _tokens: None, lambda: False)
        claims = {name: (await host.verify(name, [verification]))[0].leaves for name in "acdf"}
    finally:
        host.close()
    assert len(built) == 2
    assert runs["a"].leaves == runs["f"].leaves == honest.leaves
    assert runs["b"].leaves == runs["e"].leaves
    assert len({tuple(runs[name].leaves) for name in "abc"}) == 3
    assert claims["a"] == claims["c"] == claims["f"] == build_fake_engine().verify([verification])[0].leaves
    assert claims["d"] != claims["a"]
    assert [len(leaf) for leaf in claims["d"]] == [len(leaf) for leaf in claims["a"]]


def test_a_worker_on_a_fake_engine_never_imports_torch() -> None:
    code = (
        "import sys, pocache_worker.__main__; from pocache_worker.engines import choose_engine;"
        "choose_engine('fake:x', {}, device=None, threads=None)(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert done.returncode == 0


async def test_only_verified_rounds_of_the_beacon_are_named() -> None:
    tracker = RoundTracker(NETWORK.genesis)
    beacon = NETWORK.keys[Role.BEACON]
    tracker.observe(NETWORK.seal(beacon, NETWORK.make_round(3)))
    assert await tracker.wait_beyond(0) == 3
    forged = NETWORK.make_round(9).model_copy(update={"round_number": 10})
    other_chain = NETWORK.make_round(9).model_copy(update={"chain_hash": bytes(32)})
    tracker.observe(NETWORK.seal(beacon, forged))
    tracker.observe(NETWORK.seal(beacon, other_chain))
    tracker.observe(NETWORK.seal(make_key("stranger"), NETWORK.make_round(9)))
    tracker.observe(b"noise")
    tracker.observe(NETWORK.seal(beacon, m.BeaconRoundV1.model_copy(NETWORK.make_round(2))))
    assert tracker.latest == 3
    tracker.observe(NETWORK.seal(beacon, NETWORK.make_round(4)))
    assert await tracker.wait_beyond(3) == 4
