"""What every engine must keep: one suite over the fake engine and the transformers engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kit.engines import (
    build_request,
    build_small_model,
    build_verification,
    compute_worst_log2,
    decode_rows,
    run_request,
)
from pocache.engine.fake import FakeEngine
from pocache.engine.port import Engine
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import RowKind
from pocache.protocol.errors import EngineCancelledError, EngineError, PocacheError, PromptError

HONEST_LOG2_MAX = -17.0
"""Far above what float32 shows between decoding and prefill (2^-20), far below any other tokens (2^-3)."""


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of this suite's transformers engine."""
    torch.set_num_threads(1)
    return build_small_model(tmp_path_factory.mktemp("contract-model"))


@pytest.fixture(scope="module", params=["fake", "transformers", "transformers-raw"])
def engine(request: pytest.FixtureRequest, small_model: Path) -> Engine:
    """Each adapter of the port."""
    if request.param == "fake":
        return FakeEngine()
    return TransformersEngine(
        small_model, encoding="raw" if request.param == "transformers-raw" else "sketch"
    )


def test_every_leaf_is_there_and_scored_exactly_at_output_positions(engine: Engine) -> None:
    request = build_request()
    capture = run_request(engine, request)
    assert len(capture.output) == request.max_tokens
    assert len(capture.leaves) == len(request.prompt) + len(capture.output) - 1
    rows = decode_rows(capture, len(request.prompt))
    scored = [position for position, leaf in rows.items() if (RowKind.SCORES, 0) in leaf]
    assert scored == list(range(len(request.prompt) - 1, len(capture.leaves)))
    assert capture.finish_reason == "length"


@pytest.mark.parametrize(("prompt_count", "max_tokens"), [(1, 1), (1, 5), (4, 1)])
def test_the_smallest_jobs_verify(engine: Engine, prompt_count: int, max_tokens: int) -> None:
    request = build_request(prompt=range(1, prompt_count + 1), max_tokens=max_tokens)
    capture = run_request(engine, request)
    assert len(capture.leaves) == prompt_count + max_tokens - 1
    corner = compute_full_corner(engine.capabilities().layer_count, len(capture.leaves))
    [verified] = engine.verify([build_verification(request, capture.output, corner)])
    assert compute_worst_log2(verified, capture, prompt_count) < HONEST_LOG2_MAX


def test_steps_deliver_the_output_once_and_in_order(engine: Engine) -> None:
    steps: list[int] = []
    capture = engine.generate(build_request(), steps.extend, lambda: False)
    assert tuple(steps) == capture.output


def test_a_request_repeats_itself(engine: Engine) -> None:
    assert run_request(engine, build_request()) == run_request(engine, build_request())


def test_the_seed_matters_when_sampled_and_only_then(engine: Engine) -> None:
    sampled = [run_request(engine, build_request(seed=seed)).output for seed in ("one", "two")]
    assert sampled[0] != sampled[1]
    greedy = [
        run_request(engine, build_request(seed=seed, sampling=Sampling())).output for seed in ("one", "two")
    ]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(700_000, top_k=40, top_p_micro=900_000)])
def test_honest_verification_reproduces_the_rows(engine: Engine, sampling: Sampling) -> None:
    request = build_request(sampling=sampling, max_tokens=24)
    capture = run_request(engine, request)
    corner = compute_full_corner(engine.capabilities().layer_count, len(capture.leaves))
    [verified] = engine.verify([build_verification(request, capture.output, corner)])
    assert len(verified.leaves) == len(capture.leaves)
    assert compute_worst_log2(verified, capture, len(request.prompt)) < HONEST_LOG2_MAX


def test_a_corner_holds_its_layers_and_positions_alone(engine: Engine) -> None:
    request = build_request()
    capture = run_request(engine, request)
    [verified] = engine.verify([build_verification(request, capture.output, Corner(0, 8, full_depth=False))])
    assert len(verified.leaves) == 9
    keys = {key for leaf in decode_rows(verified, len(request.prompt)).values() for key in leaf}
    assert keys == {(RowKind.K, 0), (RowKind.V, 0)}
    assert compute_worst_log2(verified, capture, len(request.prompt)) < HONEST_LOG2_MAX


def test_full_depth_may_end_before_the_last_position(engine: Engine) -> None:
    request = build_request()
    capture = run_request(engine, request)
    layer_max = engine.capabilities().layer_count - 1
    [verified] = engine.verify(
        [build_verification(request, capture.output, Corner(layer_max, 9, full_depth=True))]
    )
    assert len(verified.leaves) == 10
    assert (RowKind.SCORES, 0) in decode_rows(verified, len(request.prompt))[9]
    assert compute_worst_log2(verified, capture, len(request.prompt)) < HONEST_LOG2_MAX


def test_several_verifications_answer_in_order(engine: Engine) -> None:
    requests = [build_request(job=job, prompt=prompt) for job, prompt in (("a", (1, 2)), ("b", (3, 4, 5)))]
    captures = [run_request(engine, request) for request in requests]
    answers = engine.verify(
        [
            build_verification(request, capture.output, Corner(0, position, full_depth=False))
            for request, capture, position in zip(requests, captures, (3, 5), strict=True)
        ]
    )
    for answer, request, capture, count in zip(answers, requests, captures, (4, 6), strict=True):
        assert len(answer.leaves) == count
        assert compute_worst_log2(answer, capture, len(request.prompt)) < HONEST_LOG2_MAX


@pytest.mark.parametrize("changed", ["tokens", "job", "seed"])
def test_rows_depend_on_tokens_job_and_seed(engine: Engine, changed: str) -> None:
    if changed in {"job", "seed"} and engine.capabilities().schema.encoding == "raw":
        changed = "tokens"  # raw rows are the vectors themselves, the same for every job
    request = build_request()
    capture = run_request(engine, request)
    other = {
        "tokens": replace(request, prompt=tuple(token + 1 for token in request.prompt)),
        "job": replace(request, job_id=build_request(job="other").job_id),
        "seed": replace(request, seed=build_request(seed="other").seed),
    }[changed]
    corner = Corner(0, len(capture.leaves) - 1, full_depth=False)
    [verified] = engine.verify([build_verification(other, capture.output, corner)])
    assert compute_worst_log2(verified, capture, len(request.prompt)) > -2.0


def test_the_end_token_stops_when_asked_and_counts_as_output(engine: Engine) -> None:
    endless = build_request(max_tokens=900, sampling=Sampling(3_000_000))
    output = run_request(engine, endless).output
    ends = [index for index, token in enumerate(output) if token in engine.capabilities().eos_tokens]
    assert ends, "this seed was chosen so that an end token comes"
    stopped = run_request(engine, replace(endless, eos_stop=True))
    assert stopped.output == output[: ends[0] + 1]
    assert stopped.finish_reason == "stop"


def test_a_cancelled_generation_has_no_rows(engine: Engine) -> None:
    delivered: list[int] = []
    with pytest.raises(EngineCancelledError):
        engine.generate(build_request(), delivered.extend, lambda: len(delivered) == 3)
    assert len(delivered) == 3


def test_an_error_of_the_listener_is_passed_on(engine: Engine) -> None:
    def fail(_tokens: tuple[int, ...]) -> None:
        raise ConnectionError("the listener is gone")

    with pytest.raises(ConnectionError):
        engine.generate(build_request(), fail, lambda: False)
    assert run_request(engine, build_request()).output, "the engine goes on"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prompt": ()}, PromptError),
        ({"prompt": (1, -1)}, PromptError),
        ({"prompt": (1, 259)}, PromptError),
        ({"max_tokens": 0}, PromptError),
        ({"max_tokens": 5_000}, PromptError),
        ({"prompt": (1,) * 5_000}, PromptError),  # longer than the context
        ({"seed": b"short"}, EngineError),
    ],
)
def test_requests_out_of_bounds_are_refused(
    engine: Engine, change: dict[str, object], error: type[PocacheError]
) -> None:
    with pytest.raises(error):
        run_request(engine, replace(build_request(), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"corner": Corner(9, 3, full_depth=False)}, EngineError),
        ({"corner": Corner(0, 17, full_depth=False)}, EngineError),
        ({"corner": Corner(0, 3, full_depth=True)}, EngineError),
        ({"prompt_count": 18}, PromptError),
        ({"prompt_count": 0}, PromptError),
        ({"tokens": (1, 999)}, PromptError),
        ({"tokens": (1,) * 5_000}, PromptError),
        ({"seed": b""}, EngineError),
    ],
)
def test_verifications_out_of_bounds_are_refused(
    engine: Engine, change: dict[str, object], error: type[PocacheError]
) -> None:
    verification = build_verification(build_request(), range(12), Corner(0, 5, full_depth=False))
    with pytest.raises(error):
        engine.verify([replace(verification, **change)])  # type: ignore[arg-type]
