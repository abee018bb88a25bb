"""Every cheat is a mismatch under thresholds that were calibrated on honest runs, and honest runs match."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kit.engines import build_request, build_verification, decode_rows, run_request
from pocache.engine.adversary import FAKE_KINDS, AdversaryKind, build_adversary, list_attacks
from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache.engine.fake import FakeEngine
from pocache.engine.port import Engine
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.challenge import compute_full_corner
from pocache.protocol.errors import EngineError
from pocache.protocol.matching import Comparison, MatchingProfile, Verdict, compare

TOKEN_KINDS = {
    AdversaryKind.SPOOF_TRUE_SCORES,
    AdversaryKind.SPOOF_INT4,
    AdversaryKind.HOTTER,
    AdversaryKind.COLDER,
    AdversaryKind.WRONG_SEED,
    AdversaryKind.EDITED_OUTPUT,
    AdversaryKind.TRUNCATED_OUTPUT,
}
"""Cheats whose every row is right: only the tokens are not the model's."""

GENERATOR_KINDS = [kind for kind in AdversaryKind if kind is not AdversaryKind.GARBAGE]


@pytest.fixture(scope="module")
def honest(model_dir: Path) -> Engine:
    return TransformersEngine(model_dir)


@pytest.fixture(scope="module")
def profile(honest: Engine) -> MatchingProfile:
    return run_calibration(honest, honest, draw_prompts(honest.capabilities(), count=4), max_tokens=24)


@pytest.fixture(scope="module")
def fake_profile() -> MatchingProfile:
    engine = FakeEngine()
    return run_calibration(engine, engine, draw_prompts(engine.capabilities(), count=3), max_tokens=8)


def judge(
    generator: Engine, verifier: Engine, profile: MatchingProfile, *, checks_tokens: bool = True
) -> Comparison:
    request = build_request(job="judged", prompt=range(40, 56), max_tokens=32)
    capture = run_request(generator, request)
    corner = compute_full_corner(verifier.capabilities().layer_count, len(capture.leaves))
    [verified] = verifier.verify([build_verification(request, capture.output, corner)])
    ours, theirs = decode_rows(verified, 16), decode_rows(capture, 16)
    return compare(profile, ours, theirs, capture.schema.float_format, checks_tokens=checks_tokens)


def test_honest_work_matches(honest: Engine, profile: MatchingProfile) -> None:
    assert judge(honest, honest, profile).verdict is Verdict.MATCH


@pytest.mark.parametrize("kind", GENERATOR_KINDS)
def test_a_cheating_generator_mismatches(
    kind: AdversaryKind, model_dir: Path, honest: Engine, profile: MatchingProfile
) -> None:
    adversary = build_adversary(kind, lambda: TransformersEngine(model_dir))
    assert adversary.capabilities() == honest.capabilities(), "it claims the honest model"
    assert judge(adversary, honest, profile).verdict is Verdict.MISMATCH


def test_a_verifier_that_seals_noise_mismatches(
    model_dir: Path, honest: Engine, profile: MatchingProfile
) -> None:
    garbage = build_adversary(AdversaryKind.GARBAGE, lambda: TransformersEngine(model_dir))
    assert judge(honest, garbage, profile).verdict is Verdict.MISMATCH
    assert judge(garbage, honest, profile).verdict is Verdict.MATCH, "it generates honestly"


@pytest.mark.parametrize("kind", sorted(FAKE_KINDS - {AdversaryKind.GARBAGE}))
def test_cheats_over_the_fake_engine_mismatch(kind: AdversaryKind, fake_profile: MatchingProfile) -> None:
    adversary = build_adversary(kind, FakeEngine)
    assert adversary.capabilities() == FakeEngine().capabilities()
    assert judge(adversary, FakeEngine(), fake_profile).verdict is Verdict.MISMATCH
    assert judge(FakeEngine(), FakeEngine(), fake_profile).verdict is Verdict.MATCH


def test_garbage_over_the_fake_engine_mismatches(fake_profile: MatchingProfile) -> None:
    garbage = build_adversary("garbage", FakeEngine)
    assert judge(FakeEngine(), garbage, fake_profile).verdict is Verdict.MISMATCH


@pytest.mark.parametrize("kind", sorted(TOKEN_KINDS))
def test_a_cheat_with_tokens_has_true_rows_for_what_it_delivers(
    kind: AdversaryKind, model_dir: Path, honest: Engine, profile: MatchingProfile
) -> None:
    """It delivers other tokens than the honest engine, streams what it commits, and no row tells."""
    adversary = build_adversary(kind, lambda: TransformersEngine(model_dir))
    request = build_request(job="judged", prompt=range(40, 56), max_tokens=32)
    streamed: list[int] = []
    capture = adversary.generate(request, streamed.extend, lambda: False)
    assert tuple(streamed) == capture.output != run_request(honest, request).output
    assert judge(adversary, honest, profile, checks_tokens=False).verdict is Verdict.MATCH


def test_every_attack_of_the_registry_can_be_built_by_its_name(model_dir: Path) -> None:
    attacks = list_attacks(2)
    assert len({attack.name for attack in attacks}) == len(attacks) > 30
    for attack in attacks:
        build_adversary(attack.name, lambda: TransformersEngine(model_dir))
    with pytest.raises(EngineError, match="are not all among"):
        build_adversary("skip-layer-2", lambda: TransformersEngine(model_dir))


def test_unknown_and_impossible_cheats_are_refused() -> None:
    with pytest.raises(EngineError, match="no adversary"):
        build_adversary("kindness", FakeEngine)
    with pytest.raises(EngineError, match="fake engine"):
        build_adversary("int4", FakeEngine)


def test_a_cut_is_never_where_the_model_itself_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nothing would be cheated: the tokens up to a drawn EOS are the honest ones."""
    engine = FakeEngine()
    request = build_request(job="cut", max_tokens=32)
    output = run_request(engine, request).output
    known = engine.capabilities()
    monkeypatch.setattr(engine, "capabilities", lambda: replace(known, eos_tokens=(output[15],)))
    cut = run_request(build_adversary("truncated-output", lambda: engine), request).output
    assert cut == (*output[:14], output[15])
    assert output[14] != output[15]
