"""`pocache evaluate` and `pocache calibrate`: what scripts read, what people read, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pocache.engine.calibrate import CalibrationPlan, draw_prompts
from pocache.engine.evaluate import Evaluation, verify_fits
from pocache.engine.fake import FakeEngine
from pocache.engine.measure import generate_together
from pocache.protocol.errors import ConfigError, EngineError, SignatureError
from pocache.protocol.keys import SigningKey
from pocache.protocol.matching import MatchingProfile
from pocache_cli.calibrate import calibrate
from pocache_cli.evaluate import evaluate, is_passed, read_profile
from pocache_cli.measurements import run_plan
from pocache_cli.signing import verify_description

SMALL = ["--calibration-jobs", "60", "--jobs", "8", "--attack-jobs", "2", "--tokens", "8", "--threads", "1"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(evaluate, list(arguments))


def make_plan(engine: FakeEngine, count: int = 9) -> CalibrationPlan:
    return CalibrationPlan(engine, engine, draw_prompts(engine.capabilities(), count=count), 5)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One evaluation of the engine without a model, and the folder that it wrote."""
    out = tmp_path_factory.mktemp("evaluation")
    result = run("fake:evaluated", *SMALL, "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line.get("event") for line in lines[:-1]} == {"evaluating"}
    return lines[-1], out


def test_json_ends_with_the_result(report: tuple[dict[str, Any], Path]) -> None:
    found, _ = report
    assert found["honest"]["jobs"] == 8
    assert found["honest"]["false_rejects"] == 0
    assert bytes.fromhex(found["profile"])
    for attack in found["attacks"]:
        assert (attack["auc"], attack["detected"], attack["jobs_to_999"]) == (1.0, 1.0, 1), attack["name"]
    names = {attack["name"] for attack in found["attacks"]}
    assert {"spoof-true-scores", "edited-output", "null-permuted", "another-model"} <= names
    assert "garbage" not in names, "a verifier's cheat is no generator's"


def test_the_table_and_the_plot_have_every_cheat(report: tuple[dict[str, Any], Path]) -> None:
    found, out = report
    assert json.loads((out / "evaluation.json").read_text())["profile"] == found["profile"]
    table, plot = ((out / f"evaluation.{name}").read_text() for name in ("md", "svg"))
    for attack in found["attacks"]:
        assert f"| {attack['name']}" in table
        assert f">{attack['name']}<" in plot
    assert "10⁻³, observed" in plot
    assert plot.startswith("<svg ")


def test_a_rejected_honest_job_or_a_null_forgery_that_passes_is_no(
    report: tuple[dict[str, Any], Path],
) -> None:
    found, _ = report
    assert is_passed(found)
    assert not is_passed({**found, "honest": {**found["honest"], "false_rejects": 1}})
    passing = [{**one, "detected": 0.5 if one["family"] == "null" else 1.0} for one in found["attacks"]]
    assert not is_passed({**found, "attacks": passing})


def test_an_unknown_cheat_is_a_wrong_question() -> None:
    result = run("fake:x", *SMALL, "--attack", "kindness", "--json")
    assert result.exit_code == 2
    assert "no cheat kindness" in result.output


def test_a_calibration_is_signed_and_judges_its_own_model_only(tmp_path: Path) -> None:
    seed, out = tmp_path / "seed", tmp_path / "model.json"
    key = SigningKey.generate(random.Random(1).randbytes(32))
    seed.write_text(key.seed_text)
    arguments = ["fake:signed", "--runs", "4", "--tokens", "4", "--sign", str(seed), "--out", str(out)]
    seed.chmod(0o644)
    refused = CliRunner().invoke(calibrate, arguments)
    assert refused.exit_code == 2
    assert "read by others" in refused.output
    seed.chmod(0o600)
    done = CliRunner().invoke(calibrate, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    description = json.loads(out.read_text())
    assert verify_description(description) == key.participant_id
    profile = read_profile(out)
    assert description["profile_digest"] == profile.digest().hex()
    other = run("fake:another", *SMALL, "--profile", str(out), "--json")
    assert other.exit_code == 1
    assert "the profile's model id" in other.output
    description["profile"]["peak_match_max_q16"] -= 1
    with pytest.raises(SignatureError):
        verify_description(description)
    out.write_text(json.dumps(description))
    assert run("fake:signed", *SMALL, "--profile", str(out)).exit_code == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda one: replace(one, layer_count=3), "layer count"),
        (lambda one: replace(one, vocab_size=260), "vocab size"),
        (lambda one: replace(one, stack="fake/2 dtype=bfloat16"), "generator stack"),
        (lambda one: replace(one, model_id=bytes(32)), "model id"),
        (lambda one: replace(one, schema=replace(one.schema, layer_count=9)), "schema digest"),
    ],
)
def test_a_profile_of_another_pair_is_refused_by_name(change: Callable[[Any], Any], named: str) -> None:
    engine = FakeEngine()
    profile = run_plan(make_plan(engine), None, lambda _done, _total: None)
    capabilities = engine.capabilities()
    verify_fits(profile, capabilities, capabilities)
    with pytest.raises(EngineError, match=f"the profile's {named}"):
        verify_fits(profile, change(capabilities), capabilities)
    with pytest.raises(EngineError, match="verifier stack"):
        verify_fits(profile, capabilities, replace(capabilities, stack="fake/3"))
    with pytest.raises(EngineError, match="the profile's"):
        Evaluation(FakeEngine("other"), FakeEngine("other"), profile)


class _InterruptedError(Exception):
    """What ends a calibration in a test."""


def test_an_interrupted_calibration_goes_on_where_it_stopped(tmp_path: Path) -> None:
    state, engine = tmp_path / "raw.jsonl", FakeEngine()
    whole = run_plan(make_plan(engine), None, lambda _done, _total: None)

    def interrupt(done: int, _total: int) -> None:
        if done >= 3:
            raise _InterruptedError

    with pytest.raises(_InterruptedError):
        run_plan(make_plan(engine), state, interrupt)
    with state.open("a") as file:
        file.write('{"batch":2,"runs":[[')  # the line that a power cut ended
    measured: list[int] = []
    plan = replace(make_plan(engine), prepare=measured.append)
    assert run_plan(plan, state, lambda _done, _total: None).digest() == whole.digest()
    assert measured == [2, 3], "the first two batches were kept"
    again = replace(make_plan(engine), prepare=measured.append)
    assert run_plan(again, state, lambda _done, _total: None) == whole
    assert measured == [2, 3]


def test_measurements_of_another_model_are_refused(tmp_path: Path) -> None:
    state = tmp_path / "raw.jsonl"
    run_plan(make_plan(FakeEngine()), state, lambda _done, _total: None)
    for other in (make_plan(FakeEngine("other")), make_plan(FakeEngine(), count=8)):
        with pytest.raises(ConfigError, match="another model, stack or set of jobs"):
            run_plan(other, state, lambda _done, _total: None)
    state.write_text(state.read_text().replace('"leaves"', '"leafs"'))
    with pytest.raises(ConfigError, match="damaged"):
        run_plan(make_plan(FakeEngine()), state, lambda _done, _total: None)


def test_a_profile_of_few_jobs_still_judges_tokens() -> None:
    profile: MatchingProfile = run_plan(make_plan(FakeEngine()), None, lambda _done, _total: None)
    assert profile.limits.tokens is not None
    assert profile.limits.means == ()


def test_an_evaluation_is_judged_again_from_what_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More jobs measure the new ones alone, other positions nothing; another length is another evaluation."""
    measured: list[range] = []
    measure = Evaluation._measure

    def watch(self: Evaluation, engine: Any, batch: range, *rest: Any, **options: Any) -> Any:
        measured.append(batch)
        return measure(self, engine, batch, *rest, **options)

    monkeypatch.setattr(Evaluation, "_measure", watch)
    kept = ["--attack", "another-model", "--state", str(tmp_path / "kept"), "--json"]

    def ask(*more: str) -> dict[str, Any]:
        result = run("fake:kept", *SMALL, *kept, *more)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout.splitlines()[-1])
        del report["elapsed_s"]
        return dict(report)

    first = ask()
    assert [len(batch) for batch in measured] == [1, 7, 2]
    measured.clear()
    assert ask() == first
    assert ask("--samples", "4")["sample_count"] == 4
    assert measured == []
    more = ask("--jobs", "11")
    assert (more["honest"]["jobs"], more["profile"]) == (11, first["profile"])
    assert measured == [range(1, 9), range(9, 11)], "the batch that was cut short, and the new ones"
    for change in (("--tokens", "9"), ("--written-prompts",)):
        other = run("fake:kept", *SMALL, *kept, *change)
        assert other.exit_code == 2
        assert "another model, stack or set of jobs" in other.output


def test_prompts_that_the_model_wrote_are_other_jobs_of_the_same_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each begins with a token of its own and goes on as the model does; the cheats are found on them as well."""
    asked: list[list[tuple[int, ...]]] = []

    def remember(engine: Any, requests: Any) -> Any:
        asked.append([request.prompt for request in requests])
        return generate_together(engine, requests)

    monkeypatch.setattr("pocache.engine.evaluate.generate_together", remember)
    engine = FakeEngine()
    profile = run_plan(make_plan(engine), None, lambda _done, _total: None)
    for is_written in (False, True):
        evaluation = Evaluation(engine, engine, profile, max_tokens=4, is_written=is_written)
        evaluation.measure_honest(0, range(2))
    drawn, starts, written = asked
    assert [len(one) for one in drawn] == [len(one) for one in written]
    assert [one[:1] for one in drawn] == starts == [one[:1] for one in written]
    assert drawn != written
    monkeypatch.undo()
    result = run("fake:written", *SMALL, "--written-prompts", "--attack", "swapped-prompt", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["written_prompts"] is True
