"""Open mode on a real model: who computed and who did not, and passes that end when nothing is left to match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kit.engines import build_request, run_request
from pocache.engine.adversary import build_adversary
from pocache.engine.attention import Visitor
from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache.engine.open_mode import OpenRequest, answer_questions
from pocache.engine.port import Capture, GenerateRequest
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.challenge import DeterministicStream
from pocache.protocol.context import ContextRule, collect_samples, compute_due, verify_samples
from pocache.protocol.errors import EngineError, MatchingError, PromptError
from pocache.protocol.ids import Digest
from pocache.protocol.matching import MatchingProfile
from pocache.protocol.open_mode import (
    OpenAnswer,
    OpenIndex,
    OpenKey,
    OpenQuestion,
    OpenVerdict,
    build_question,
    verify_answer,
)

RULE = ContextRule((1, 2), 1)


@pytest.fixture(scope="module")
def engine(model_dir: Path) -> TransformersEngine:
    return TransformersEngine(model_dir, threads=1)


@pytest.fixture(scope="module")
def profile(engine: TransformersEngine) -> MatchingProfile:
    return run_calibration(engine, engine, draw_prompts(engine.capabilities(), count=4), max_tokens=12)


def make_job(number: int) -> GenerateRequest:
    request = build_request(job=f"open-{number}", seed=f"open-{number}", max_tokens=24)
    return replace(request, prompt=tuple((11 * number + 5 * place) % 250 for place in range(6 + number)))


def ask(
    engine: TransformersEngine,
    job: GenerateRequest,
    capture: Capture,
    *,
    indexed: bool,
    pairs: int = 0,
    places: list[OpenIndex] | None = None,
) -> tuple[OpenRequest, OpenKey]:
    tokens = job.prompt + capture.output
    due = places or compute_due(tokens, len(job.prompt), engine.capabilities().layer_count, RULE)
    samples = collect_samples(capture.schema, capture.leaves, len(job.prompt), due)
    if places is None:
        verify_samples(samples, tokens, len(job.prompt), engine.capabilities().layer_count, RULE)
    stream = DeterministicStream(Digest(bytes(32)))
    question, key = build_question(samples, indexed=indexed, decoy_pairs=pairs, stream=stream)
    return OpenRequest(job.job_id, tokens, len(job.prompt), job.seed, job.network, question), key


@pytest.mark.parametrize("indexed", [True, False])
def test_an_honest_pair_matches_packed_and_alone(
    engine: TransformersEngine, profile: MatchingProfile, indexed: bool
) -> None:
    asked = []
    for number in range(3):
        job = make_job(number)
        asked.append(ask(engine, job, run_request(engine, job), indexed=indexed, pairs=2 if indexed else 0))
    requests = [request for request, _ in asked]
    packed = answer_questions(engine, requests, profile)
    alone = [answer_questions(engine, [request], profile)[0] for request in requests]
    for (request, key), together, single in zip(asked, packed, alone, strict=True):
        assert len(request.question.vectors) > 4
        assert verify_answer(request.question, key, together) is OpenVerdict.MATCHED
        assert together == single


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize(
    "cheat", ["another-model", "int4", "kv-int4", "skip-layer-0", "swapped-prompt", "null-negated"]
)
def test_a_cheating_generator_is_not_matched(
    engine: TransformersEngine, profile: MatchingProfile, model_dir: Path, cheat: str, indexed: bool
) -> None:
    job = make_job(1)
    capture = run_request(build_adversary(cheat, lambda: TransformersEngine(model_dir, threads=1)), job)
    request, key = ask(engine, job, capture, indexed=indexed)
    [answer] = answer_questions(engine, [request], profile)
    assert verify_answer(request.question, key, answer) is OpenVerdict.UNMATCHED


def test_a_verifier_that_ran_another_model_is_not_believed(
    engine: TransformersEngine, profile: MatchingProfile, model_dir: Path
) -> None:
    job = make_job(2)
    request, key = ask(engine, job, run_request(engine, job), indexed=False)
    cheap = TransformersEngine(model_dir, threads=1)
    with torch.no_grad():
        for parameter in cheap.model.parameters():
            parameter.mul_(0.9)
    [answer] = answer_questions(cheap, [request], profile)
    assert verify_answer(request.question, key, answer) is not OpenVerdict.MATCHED
    told = tuple((number, index) for number, index in enumerate(key.indices[::-1]) if index is not None)
    assert verify_answer(request.question, key, OpenAnswer(told, 1)) is OpenVerdict.FALSE_CLAIM


@pytest.mark.parametrize("indexed", [True, False])
def test_the_pass_ends_when_nothing_is_left_to_match(
    engine: TransformersEngine, profile: MatchingProfile, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    job = make_job(1)
    capture = run_request(engine, job)
    seen: list[tuple[int, int]] = []
    visit = engine.visit

    def watch(tokens: Sequence[Sequence[int]], visitor: Visitor) -> None:
        def look(layer: int, key_TD: torch.Tensor, value_TD: torch.Tensor) -> bool:
            seen.append((layer, len(key_TD)))
            return visitor(layer, key_TD, value_TD)

        visit(tokens, look)

    monkeypatch.setattr(engine, "visit", watch)
    places = [OpenIndex(8, 0), OpenIndex(11, 0)]
    request, key = ask(engine, job, capture, indexed=indexed, places=places)
    [answer] = answer_questions(engine, [request], profile)
    assert verify_answer(request.question, key, answer) is OpenVerdict.MATCHED
    assert answer.layers_run == 1
    assert seen == [(0, 12 if indexed else len(request.tokens) - 1)], (
        "no deeper layer and, with indices, no later token"
    )


def test_a_bound_on_failures_ends_the_pass(engine: TransformersEngine, profile: MatchingProfile) -> None:
    job = make_job(1)
    capture = run_request(build_adversary("null-negated", lambda: engine), job)
    places = [OpenIndex(position, layer) for layer in (0, 1) for position in (8, 9)]
    request, key = ask(engine, job, capture, indexed=True, places=places)
    assert answer_questions(engine, [request], profile)[0].layers_run == 2
    bounded = replace(request, question=replace(request.question, unmatched_max=0))
    [answer] = answer_questions(engine, [bounded], profile)
    assert answer.layers_run == 1
    assert verify_answer(bounded.question, key, answer) is OpenVerdict.UNMATCHED


def test_what_cannot_be_run_is_refused(engine: TransformersEngine, profile: MatchingProfile) -> None:
    job = make_job(1)
    capture = run_request(engine, job)
    request, _ = ask(engine, job, capture, indexed=True)
    for places, error in (
        ((OpenIndex(0, 99),), EngineError),
        ((OpenIndex(len(request.tokens) - 1, 0),), EngineError),
    ):
        question = OpenQuestion(request.question.vectors[:1], places)
        with pytest.raises(error, match="outside"):
            answer_questions(engine, [replace(request, question=question)], profile)
    with pytest.raises(PromptError):
        answer_questions(engine, [replace(request, tokens=(*request.tokens[:-1], 10**6))], profile)
    short = replace(request.question.vectors[0], key_row=b"")
    with pytest.raises(MatchingError):
        answer_questions(engine, [replace(request, question=OpenQuestion((short,), None))], profile)


def test_models_that_run_alone_answer_too(model_dir: Path, profile: MatchingProfile) -> None:
    """One job at a time, through the cache, as where packs would not be exact."""
    single = TransformersEngine(model_dir, threads=1)
    single.causal.is_packable = False
    jobs = [make_job(number) for number in (0, 1)]
    asked = [ask(single, job, run_request(single, job), indexed=False) for job in jobs]
    for (request, key), answer in zip(
        asked, answer_questions(single, [request for request, _ in asked], profile), strict=True
    ):
        assert verify_answer(request.question, key, answer) is OpenVerdict.MATCHED
    with pytest.raises(EngineError, match="one job at a time"):
        single.visit([[1, 2], [3, 4]], lambda *_: False)
