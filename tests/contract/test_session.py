"""What every engine's session must keep: jobs join and leave between steps, and each comes out as it would alone."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kit.engines import (
    PLAIN,
    build_request,
    build_small_model,
    build_verification,
    compute_worst_log2,
    run_request,
    run_session,
)
from pocache.engine.adversary import build_adversary
from pocache.engine.fake import FakeEngine
from pocache.engine.port import Engine, GenerateRequest, OnStep
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import RowKind, decode_leaf
from pocache.protocol.errors import EngineCancelledError, EngineError, PromptError

HONEST_LOG2_MAX = -17.0
"""Far above what float32 shows between batched decoding and packed prefill (2^-20), far below other tokens (2^-3)."""

SAMPLINGS = (Sampling(), PLAIN, Sampling(700_000, top_k=40, top_p_micro=900_000))


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return build_small_model(tmp_path_factory.mktemp("session-model"))


@pytest.fixture(scope="module", params=["fake", "swapped-prompt", "transformers", "transformers-raw"])
def engine(request: pytest.FixtureRequest, small_model: Path) -> Engine:
    """Each adapter of the port; of the dishonest ones, the one whose session changes what it is given."""
    if request.param == "fake":
        return FakeEngine()
    if request.param == "swapped-prompt":
        return build_adversary("swapped-prompt", FakeEngine)
    return TransformersEngine(
        small_model, encoding="raw" if request.param == "transformers-raw" else "sketch"
    )


def build_ragged(count: int) -> list[GenerateRequest]:
    """Return jobs of different prompts, lengths and ways of sampling."""
    return [
        build_request(
            job=f"job {index}",
            seed=f"seed {index}",
            prompt=tuple(range(1 + index, 4 + 4 * index)),
            max_tokens=1 + (5 * index) % 12,
            sampling=SAMPLINGS[index % len(SAMPLINGS)],
        )
        for index in range(count)
    ]


def test_jobs_decoded_together_are_those_decoded_alone(engine: Engine) -> None:
    requests = build_ragged(7)
    together = run_session(engine, requests, slot_count=3)
    for request, capture in zip(requests, together, strict=True):
        alone = run_request(engine, request)
        assert capture.output == alone.output
        assert (capture.finish_reason, len(capture.leaves)) == ("length", len(alone.leaves))


@pytest.mark.parametrize("slot_count", [1, 2, 8])
def test_honest_verification_reproduces_batched_rows(small_model: Path, slot_count: int) -> None:
    engine = TransformersEngine(small_model)
    requests = build_ragged(6)
    captures = run_session(engine, requests, slot_count=slot_count)
    corners = [compute_full_corner(2, len(capture.leaves)) for capture in captures]
    verified = engine.verify(
        [
            build_verification(request, capture.output, corner)
            for request, capture, corner in zip(requests, captures, corners, strict=True)
        ]
    )
    for request, capture, ours in zip(requests, captures, verified, strict=True):
        assert compute_worst_log2(ours, capture, len(request.prompt)) < HONEST_LOG2_MAX


def test_what_is_packed_together_does_not_matter(small_model: Path) -> None:
    """Corners of all depths in one call give what each gives alone, up to rounding."""
    engine = TransformersEngine(small_model)
    requests = build_ragged(6)
    captures = [run_request(engine, request) for request in requests]
    corners = [
        compute_full_corner(2, len(captures[0].leaves)),
        Corner(0, 1, full_depth=False),
        Corner(1, len(captures[2].leaves) - 1, full_depth=False),
        compute_full_corner(2, len(captures[3].leaves)),
        Corner(1, 3, full_depth=True),
        Corner(0, len(captures[5].leaves) - 1, full_depth=False),
    ]
    verifications = [
        build_verification(request, capture.output, corner)
        for request, capture, corner in zip(requests, captures, corners, strict=True)
    ]
    together = engine.verify(verifications)
    for index, verification in enumerate(verifications):
        [alone] = engine.verify([verification])
        assert alone.schema == together[index].schema
        assert len(alone.leaves) == len(together[index].leaves) == corners[index].position_max + 1
        for ours in (alone, together[index]):
            assert compute_worst_log2(ours, captures[index], len(requests[index].prompt)) < HONEST_LOG2_MAX


def test_each_token_is_delivered_once_and_one_a_step(engine: Engine) -> None:
    session = engine.open_session(slot_count=2)
    delivered: dict[int, list[int]] = {index: [] for index in range(4)}
    handles = [
        session.submit(request, delivered[index].extend, lambda: False)
        for index, request in enumerate(build_ragged(4))
    ]
    before = dict.fromkeys(delivered, 0)
    while not session.is_idle:
        session.step()
        for index, tokens in delivered.items():
            assert len(tokens) - before[index] <= 1
            before[index] = len(tokens)
    assert [tuple(delivered[index]) for index in range(4)] == [handle.result().output for handle in handles]


def test_before_each_token_comes_how_likely_it_was_by_the_row_that_is_committed(engine: Engine) -> None:
    """One number for each token, from the score row of the leaf that predicts it."""
    session = engine.open_session(slot_count=2)
    requests = build_ragged(4)
    heard: dict[int, list[float]] = {index: [] for index in range(4)}

    def listen(index: int) -> OnStep:
        counted = [0]

        def take(tokens: tuple[int, ...]) -> None:
            counted[0] += len(tokens)
            assert len(heard[index]) == counted[0]

        return take

    handles = [
        session.submit(request, listen(index), lambda: False, heard[index].extend)
        for index, request in enumerate(requests)
    ]
    while not session.is_idle:
        session.step()
    for index, handle in enumerate(handles):
        capture = handle.result()
        rows = []
        for position in range(capture.prompt_count - 1, len(capture.leaves)):
            row = decode_leaf(capture.schema, position, True, capture.leaves[position])[RowKind.SCORES, 0]
            logit, total, _ = struct.unpack("<3f", row)
            rows.append(min(0.0, logit - total))
        assert heard[index] == rows
        assert len(rows) == len(capture.output)
        assert max(rows) <= 0.0 > min(rows)


def test_every_listener_has_its_token_before_a_job_that_ends_is_made_into_leaves(engine: Engine) -> None:
    session = engine.open_session(slot_count=2)
    first = build_request(job="short", max_tokens=2)
    other = build_request(job="long", max_tokens=4)
    seen: list[bool] = []
    short = session.submit(first, lambda _tokens: None, lambda: False)
    session.submit(other, lambda _tokens: seen.append(short.is_done), lambda: False)
    while not session.is_idle:
        session.step()
    assert seen == [False, False, True, True]


def test_a_job_joins_when_a_slot_is_free_and_says_so_when_done(engine: Engine) -> None:
    session = engine.open_session(slot_count=1)
    order: list[str] = []
    requests = [build_request(job=job, max_tokens=2) for job in ("one", "two")]

    def listen(name: str) -> Callable[[tuple[int, ...]], None]:
        return lambda _tokens: order.append(name)

    handles = [
        session.submit(request, listen(name), lambda: False)
        for request, name in zip(requests, ("one", "two"), strict=True)
    ]
    done = [session.step() for _ in range(4)]
    assert order == ["one", "one", "two", "two"]
    assert done == [[], [handles[0]], [], [handles[1]]]
    assert session.is_idle


def test_a_job_that_is_stopped_ends_alone(engine: Engine) -> None:
    """One while it decodes, one while it waits."""
    session = engine.open_session(slot_count=2)
    requests = build_ragged(4)[1:]
    tokens: list[int] = []
    asked: list[None] = []

    def stop_waiting() -> bool:
        asked.append(None)
        return len(asked) == 2

    handles = [
        session.submit(requests[0], tokens.extend, lambda: len(tokens) == 2),
        session.submit(requests[1], lambda _tokens: None, lambda: False),
        session.submit(requests[2], lambda _tokens: None, stop_waiting),
    ]
    while not session.is_idle:
        session.step()
    assert len(tokens) == 2
    for stopped in (handles[0], handles[2]):
        with pytest.raises(EngineCancelledError):
            stopped.result()
    assert handles[1].result().output == run_request(engine, requests[1]).output


def test_a_listeners_error_ends_its_job_alone(engine: Engine) -> None:
    def fail(_tokens: Sequence[int]) -> None:
        raise ConnectionError("the listener is gone")

    session = engine.open_session()
    requests = build_ragged(3)[1:]
    bad = session.submit(requests[0], fail, lambda: False)
    good = session.submit(requests[1], lambda _tokens: None, lambda: False)
    while not session.is_idle:
        session.step()
    with pytest.raises(ConnectionError):
        bad.result()
    assert good.result().output == run_request(engine, requests[1]).output


def test_a_verification_between_steps_changes_nothing(engine: Engine) -> None:
    requests = build_ragged(3)
    expected = run_session(engine, requests)
    verification = build_verification(requests[2], expected[2].output, Corner(1, 5, full_depth=True))
    session = engine.open_session()
    handles = [session.submit(request, lambda _tokens: None, lambda: False) for request in requests]
    while not session.is_idle:
        session.step()
        engine.verify([verification])
    assert [handle.result() for handle in handles] == expected


def test_closing_abandons_what_is_open(engine: Engine) -> None:
    session = engine.open_session(slot_count=1)
    handles = [
        session.submit(request, lambda _tokens: None, lambda: False) for request in build_ragged(3)[1:]
    ]
    session.step()
    session.close()
    assert session.is_idle
    for handle in handles:
        with pytest.raises(EngineCancelledError):
            handle.result()


def test_a_refused_request_is_not_queued(engine: Engine) -> None:
    session = engine.open_session()
    for change, error in (({"prompt": ()}, PromptError), ({"seed": b"short"}, EngineError)):
        with pytest.raises(error):
            session.submit(
                replace(build_request(), **change),
                lambda _tokens: None,
                lambda: False,
            )
    assert session.is_idle


def test_the_end_token_frees_a_slot_for_the_next(engine: Engine) -> None:
    endless = build_request(max_tokens=900, sampling=Sampling(3_000_000), eos_stop=True)
    stopped, after = run_session(engine, [endless, build_request()], slot_count=1)
    assert stopped.finish_reason == "stop"
    assert stopped.output[-1] in engine.capabilities().eos_tokens
    assert after.output == run_request(engine, build_request()).output


def test_a_listener_that_wants_no_more_gets_the_rows_of_what_there_is(engine: Engine) -> None:
    """The output is a prefix of the whole one, its leaves are those of the same job with fewer tokens."""
    request = build_request(max_tokens=12)
    whole = run_request(engine, request)
    heard: list[int] = []

    def listen(tokens: tuple[int, ...]) -> bool:
        heard.extend(tokens)
        return len(heard) == 4

    session = engine.open_session(slot_count=1)
    handle = session.submit(request, listen, lambda: False)
    while not handle.is_done:
        session.step()
    cut = handle.result()
    assert (cut.finish_reason, cut.output, tuple(heard)) == ("cancelled", whole.output[:4], whole.output[:4])
    assert len(cut.leaves) == len(request.prompt) + 3
    assert cut.leaves == whole.leaves[: len(cut.leaves)]
    assert session.is_idle
