"""The slab behind a session: bounded, grown, emptied; and one job's fault or size is its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.engines import build_request, build_verification, compute_worst_log2, run_request, run_session
from pocache.engine.decoding import SlabRunner
from pocache.engine.port import Capture, GenerateRequest
from pocache.engine.session import BatchSession
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.errors import EngineError

HONEST_LOG2_MAX = -17.0


@pytest.fixture
def engine(model_dir: Path) -> TransformersEngine:
    return TransformersEngine(model_dir)


def build_jobs(count: int) -> list[GenerateRequest]:
    return [
        build_request(job=str(index), seed=str(index), prompt=range(3, 6 + 7 * index), max_tokens=6 + index)
        for index in range(count)
    ]


def verify_captures(
    engine: TransformersEngine, jobs: Sequence[GenerateRequest], captures: Sequence[Capture]
) -> None:
    for job, capture in zip(jobs, captures, strict=True):
        assert len(capture.output) == job.max_tokens
        corner = compute_full_corner(2, len(capture.leaves))
        [verified] = engine.verify([build_verification(job, capture.output, corner)])
        assert compute_worst_log2(verified, capture, len(job.prompt)) < HONEST_LOG2_MAX


def fail_above(
    limit: int, run: Callable[..., Any], count: Callable[..., int], error: Exception
) -> Callable[..., Any]:
    """Return ``run`` as it would be on a machine whose memory holds ``limit`` jobs."""

    def limited(*args: Any, **kwargs: Any) -> Any:
        if count(*args) > limit:
            raise error
        return run(*args, **kwargs)

    return limited


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_in_a_decoding_batch_loses_no_job(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The batch is run in halves from then on; rows and tokens are those of jobs alone."""
    jobs = build_jobs(5)
    expected = [run_request(engine, job).output for job in jobs]
    causal = engine.causal
    monkeypatch.setattr(
        causal,
        "run_decode",
        fail_above(2, causal.run_decode, lambda _slab, _first, tokens_B, *_: len(tokens_B), error),
    )
    captures = run_session(engine, jobs)
    assert [capture.output for capture in captures] == expected
    verify_captures(engine, jobs, captures)


def test_out_of_memory_in_a_pack_loses_no_job(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefills and verifications alike."""
    jobs = build_jobs(5)
    captures = run_session(engine, jobs)
    verifications = [
        build_verification(job, capture.output, compute_full_corner(2, len(capture.leaves)))
        for job, capture in zip(jobs, captures, strict=True)
    ]
    expected = engine.verify(verifications)
    causal = engine.causal
    tried: list[int] = []

    def count(tokens: Sequence[Any], *_: Any) -> int:
        tried.append(len(tokens))
        return len(tokens)

    limited = fail_above(2, causal.run_pack, count, torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(causal, "run_pack", limited)
    assert [capture.output for capture in run_session(engine, jobs)] == [one.output for one in captures]
    assert tried == [5, 2, 3, 1, 2]
    found = engine.verify(verifications)
    for ours, theirs, capture, job in zip(found, expected, captures, jobs, strict=True):
        assert len(ours.leaves) == len(theirs.leaves)
        assert compute_worst_log2(ours, capture, len(job.prompt)) < HONEST_LOG2_MAX


def test_a_job_that_fits_nowhere_fails_alone(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = build_jobs(3)
    causal, longest = engine.causal, len(jobs[2].prompt)

    def is_longest(tokens: Sequence[Any], *_: Any) -> int:
        return int(any(len(one) == longest for one in tokens))

    monkeypatch.setattr(causal, "run_pack", fail_above(0, causal.run_pack, is_longest, MemoryError()))
    session = engine.open_session()
    handles = [session.submit(job, lambda _tokens: None, lambda: False) for job in jobs]
    while not session.is_idle:
        session.step()
    with pytest.raises(EngineError, match="out of memory"):
        handles[2].result()
    monkeypatch.undo()
    verify_captures(engine, jobs[:2], [handle.result() for handle in handles[:2]])


@pytest.mark.parametrize("slot", [1, 2])
def test_a_job_without_finite_rows_ends_alone_and_poisons_no_slot(
    engine: TransformersEngine, slot: int
) -> None:
    """Its keys and values were in the slab: whoever gets the slot next must not read them, not even masked."""
    jobs = build_jobs(3)[::-1]
    after = build_request(job="after", prompt=(5,))
    expected = [run_request(engine, job).output for job in (*jobs, after)]
    poisoned: list[int] = []

    def poison(states: torch.Tensor) -> torch.Tensor:
        if states.shape[0] == 3 and len(poisoned) < 4:
            poisoned.append(1)
            states = states.clone()
            states[slot] = float("nan")
        return states

    engine.storage = poison
    session = engine.open_session(slot_count=3)
    handles = [session.submit(job, lambda _tokens: None, lambda: False) for job in (*jobs, after)]
    while not session.is_idle:
        session.step()
    with pytest.raises(EngineError, match="not finite"):
        handles.pop(slot).result()
    del expected[slot]
    assert [handle.result().output for handle in handles] == expected


def test_the_kv_memory_is_bounded_and_its_jobs_wait_their_turn(model_dir: Path) -> None:
    """At most two jobs of 128 tokens fit; a longer one behind them waits, and none overtakes it."""
    engine = TransformersEngine(model_dir, kv_tokens_max=256)
    session = engine.open_session(slot_count=8)
    started: list[int] = []
    jobs = [build_request(job=str(index), seed=str(index), max_tokens=120) for index in range(3)]
    jobs.append(build_request(job="long", max_tokens=200))
    jobs.append(build_request(job="short", max_tokens=2))

    def listen(index: int) -> Callable[[tuple[int, ...]], None]:
        return lambda _tokens: started.append(index) if index not in started else None

    handles = [session.submit(job, listen(index), lambda: False) for index, job in enumerate(jobs)]
    session.step()
    assert started == [0, 1]
    while not session.is_idle:
        session.step()
    assert started == [0, 1, 2, 3, 4]
    verify_captures(engine, jobs, [handle.result() for handle in handles])


def test_a_job_beyond_the_kv_memory_is_refused_at_once(model_dir: Path) -> None:
    session = TransformersEngine(model_dir, kv_tokens_max=100).open_session()
    with pytest.raises(EngineError, match="106 tokens exceeds the KV memory of 100"):
        session.submit(build_request(max_tokens=100), lambda _tokens: None, lambda: False)


def test_no_memory_for_one_cache_fails_that_job(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pocache.engine.decoding.KvSlab", refuse)
    session = engine.open_session()
    handle = session.submit(build_request(), lambda _tokens: None, lambda: False)
    assert session.step() == [handle]
    with pytest.raises(EngineError, match="out of memory"):
        handle.result()


def test_the_slab_grows_under_running_jobs(engine: TransformersEngine) -> None:
    session = engine.open_session()
    short, long = build_request(max_tokens=20), build_request(job="long", prompt=range(200), max_tokens=9)
    first = session.submit(short, lambda _tokens: None, lambda: False)
    for _ in range(3):
        session.step()
    second = session.submit(long, lambda _tokens: None, lambda: False)
    while not session.is_idle:
        session.step()
    verify_captures(engine, [short, long], [first.result(), second.result()])


@pytest.mark.parametrize("lag", [1, 3])
def test_steps_launched_ahead_deliver_the_same(engine: TransformersEngine, lag: int) -> None:
    """As on CUDA: a token is read while later steps run, and what ran beyond an end is dropped."""
    jobs = [
        *build_jobs(5),
        build_request(job="ends", max_tokens=300, sampling=Sampling(3_000_000), eos_stop=True),
        build_request(job="after", max_tokens=4),
    ]
    capabilities = engine.capabilities()
    runner = SlabRunner(engine.causal, capabilities.schema, slot_count=4, lag=lag)
    session = BatchSession(capabilities, runner, slot_count=4)
    handles = [session.submit(job, lambda _tokens: None, lambda: False) for job in jobs]
    while not session.is_idle:
        session.step()
    expected = [run_request(engine, job) for job in jobs]
    assert [handle.result().output for handle in handles] == [one.output for one in expected]
    for job, handle in zip(jobs, handles, strict=True):
        capture = handle.result()
        corner = Corner(1, len(capture.leaves) - 1, full_depth=True)
        [verified] = engine.verify([build_verification(job, capture.output, corner)])
        assert compute_worst_log2(verified, capture, len(job.prompt)) < HONEST_LOG2_MAX


def test_a_packed_pass_ends_at_the_deepest_corner_and_each_jobs_last_token(
    engine: TransformersEngine,
) -> None:
    jobs = build_jobs(2)
    captures = [run_request(engine, job) for job in jobs]
    ran: list[str] = []
    counts: list[int] = []
    model: Any = engine.model
    handles = [
        model.base_model.layers[1].register_forward_pre_hook(lambda *_: ran.append("layer 1")),
        model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: ran.append("mlp 0")),
        model.get_input_embeddings().register_forward_pre_hook(
            lambda _m, args: counts.append(args[0].shape[1])
        ),
    ]

    def verify(*corners: Corner) -> None:
        engine.verify(
            [
                build_verification(job, capture.output, corner)
                for job, capture, corner in zip(jobs, captures, corners, strict=True)
            ]
        )

    try:
        verify(Corner(0, 4, full_depth=False), Corner(0, 2, full_depth=False))
        assert (ran, counts) == ([], [8])
        verify(Corner(0, 4, full_depth=False), Corner(1, 2, full_depth=False))
        assert (ran, counts) == (["mlp 0", "layer 1"], [8, 8])
    finally:
        for handle in handles:
            handle.remove()
