"""A calibration measures what it says it measured, and refuses pairs and thresholds that mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pocache.engine.adversary import build_adversary
from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache.engine.fake import FakeEngine
from pocache.engine.forgery import NullForgery
from pocache.engine.port import GenerationSession, VerifyCapture, VerifyRequest
from pocache.numerics.calibration import MARGIN_MIN_Q16
from pocache.protocol.encoding import RowKind
from pocache.protocol.errors import EngineError, MatchingError
from pocache.protocol.matching import MatchingProfile


def test_a_profile_covers_the_schema_and_names_its_pair() -> None:
    engine = FakeEngine(layer_count=3)
    seen: list[tuple[int, int]] = []
    prompts = draw_prompts(engine.capabilities(), count=3)
    profile = run_calibration(engine, engine, prompts, max_tokens=5, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    keys = [(row.kind, row.layer) for row in profile.thresholds]
    layers = [(kind, layer) for kind in (RowKind.K, RowKind.V) for layer in range(3)]
    assert keys == [*layers, (RowKind.HIDDEN, 0), (RowKind.SCORES, 0)]
    capabilities = engine.capabilities()
    assert profile.about["model_id"] == capabilities.model_id.hex()
    assert profile.about["schema_digest"] == capabilities.schema.digest().hex()
    assert profile.about["generator_stack"] == profile.about["verifier_stack"] == capabilities.stack
    assert profile.about["job_count"] == 3
    assert profile.about["committed_leaf_count"] == sum(len(prompt) + 4 for prompt in prompts)
    for forgery in NullForgery:
        nearest = profile.about[f"null_{forgery}_mean_min_q16"]
        assert isinstance(nearest, int)
        assert nearest > profile.mean_mismatch_min_q16
    assert MatchingProfile.from_dict(profile.to_dict()) == profile


def test_calibration_batches_what_it_generates_and_packs_what_it_verifies() -> None:
    """Rows move with what runs beside them, so the honest distances must have seen both."""
    batches: list[int] = []
    calls: list[int] = []

    class Watching(FakeEngine):
        def open_session(self, *, slot_count: int = 8) -> GenerationSession:
            batches.append(slot_count)
            return super().open_session(slot_count=slot_count)

        def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
            calls.append(len(requests))
            return super().verify(requests)

    engine = Watching()
    profile = run_calibration(engine, engine, draw_prompts(engine.capabilities(), count=17), max_tokens=3)
    assert batches == [1, 2, 4, 8, 1, 1]
    assert profile.about["decoding_batches"] == ",".join(map(str, batches))
    assert sorted(set(calls)) == [1, 2, 4, 8, 16]


def test_calibration_repeats_itself() -> None:
    engine = FakeEngine()
    prompts = draw_prompts(engine.capabilities(), count=3)
    profiles = [run_calibration(engine, engine, prompts, max_tokens=4).digest() for _ in range(2)]
    assert profiles[0] == profiles[1]


def test_prompts_have_several_lengths_and_are_fixed() -> None:
    capabilities = FakeEngine().capabilities()
    prompts = draw_prompts(capabilities, count=4, token_count_max=10)
    assert [len(prompt) for prompt in prompts] == [1, 4, 7, 10]
    assert prompts == draw_prompts(capabilities, count=4, token_count_max=10)
    assert all(0 <= token < capabilities.vocab_size for prompt in prompts for token in prompt)


def test_two_models_have_no_profile() -> None:
    engine = FakeEngine()
    for other in (FakeEngine("other"), FakeEngine(columns=8)):
        with pytest.raises(EngineError, match="same model"):
            run_calibration(engine, other, draw_prompts(engine.capabilities(), count=3))


def test_thresholds_that_let_a_null_forgery_through_are_refused() -> None:
    """A verifier that computes noise makes thresholds so wide that another job's rows would pass."""
    engine = FakeEngine()
    with pytest.raises(MatchingError, match="null forgery"):
        run_calibration(
            engine,
            build_adversary("garbage", FakeEngine),
            draw_prompts(engine.capabilities(), count=3),
            max_tokens=4,
        )


def test_a_margin_of_almost_anything_is_refused() -> None:
    engine = FakeEngine()
    prompts = draw_prompts(engine.capabilities(), count=3)
    with pytest.raises(MatchingError, match="null forgery"):
        run_calibration(engine, engine, prompts, max_tokens=4, margin_q16=MARGIN_MIN_Q16 * 20)


def test_each_way_of_sampling_needs_a_prompt() -> None:
    engine = FakeEngine()
    with pytest.raises(EngineError, match="at least 3"):
        run_calibration(engine, engine, draw_prompts(engine.capabilities(), count=2))
