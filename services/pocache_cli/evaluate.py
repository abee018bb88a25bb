"""``pocache evaluate MODEL``: held-out honest jobs and every known cheat, through the comparison that decides."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pocache_cli.calibrate import DTYPES, build_pair, make_thread_changer
from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from pocache.engine.adversary import Attack
    from pocache.engine.evaluate import AttackResult, Evaluation, HonestResult
    from pocache.engine.port import Engine
    from pocache.numerics.calibration import HonestRun
    from pocache.protocol.matching import MatchingProfile
    from pocache_cli.evaluation_state import MeasuredRuns

DEMO_MODEL: Final = "demo"
"""A name for the demo model, built for the occasion."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    calibration: int
    honest: int
    attack: int
    tokens: int


FULL: Final = Size(calibration=300, honest=1_000, attack=100, tokens=64)
QUICK: Final = Size(calibration=72, honest=72, attack=8, tokens=32)


@click.command()
@click.argument("model")
@click.option("--quick", is_flag=True, help="A small sample of everything: within three minutes on two cores.")
@click.option("--jobs", type=click.IntRange(8, 1_000_000), help=f"Held-out honest jobs (default: {FULL.honest}).")
@click.option("--attack-jobs", type=click.IntRange(2, 100_000), help=f"Jobs of each cheat (default: {FULL.attack}).")
@click.option("--calibration-jobs", type=click.IntRange(60, 100_000), help=f"Jobs to calibrate on (default: {FULL.calibration}).")
@click.option("--tokens", type=click.IntRange(4, 4_096), help=f"Output tokens of a job (default: {FULL.tokens}).")
@click.option("--written-prompts", is_flag=True, help="Prompts that the model wrote itself, instead of tokens drawn uniformly.")
@click.option("--samples", default=16, show_default=True, type=click.IntRange(2, 64), help="Positions of an audit.")
@click.option("--attack", "names", multiple=True, help="Only this cheat; repeat for more.")
@click.option("--profile", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Judge with this profile, as `pocache calibrate --out` wrote it.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the generator (default: float32 on CPU, bfloat16 on CUDA).")
@click.option("--attention", default="sdpa", show_default=True, help="The generator's attention kernel.")
@click.option("--verifier-dtype", type=click.Choice(DTYPES), help="Of the verifier (default: the generator's).")
@click.option("--verifier-attention", help="The verifier's attention kernel (default: the generator's).")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--threads", multiple=True, default=(2, 1), show_default=True, type=click.IntRange(1, 1_024), help="Torch threads; repeat to change between batches.")
@click.option("--state", type=click.Path(path_type=Path, file_okay=False), help="Keep raw distances in this folder, and go on from them.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write evaluation.json, .md and .svg here.")
@click.option("--json", "as_json", is_flag=True, help="Progress as JSON lines, the result as the last.")
def evaluate(model: str, *, quick: bool, names: tuple[str, ...], out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure how surely MODEL's cheats are found, and how surely honest work is not rejected.

    MODEL is a directory, a cached id, fake:NAME, or "demo" for the demo model. Calibrates this pair of stacks first
    unless a profile is given. Exits 1 when an honest job was rejected or a null forgery was not.
    """
    with exit_on_error("evaluate", as_json=as_json), tempfile.TemporaryDirectory() as folder:
        say = _make_reporter(as_json=as_json)
        if model == DEMO_MODEL:
            from pocache.engine.demo_model import build_demo_model

            model = str(build_demo_model(Path(folder) / "demo"))
        run = _Run(model, QUICK if quick else FULL, options, say)
        report = run.evaluate(names)
        if out is not None:
            _write(out, report)
        if as_json:
            click.echo(json.dumps(report, sort_keys=False))
        else:
            from pocache_cli.evaluation_report import render_markdown

            click.echo(render_markdown(report))
        sys.exit(0 if is_passed(report) else 1)


def is_passed(report: dict[str, Any]) -> bool:
    """Whether no honest job was rejected and every null forgery was."""
    nulls = [one for one in report["attacks"] if one["family"] == "null"]
    return report["honest"]["false_rejects"] == 0 and all(one["detected"] == 1 for one in nulls)


class _Run:
    """One evaluation from engines to report."""

    def __init__(self, model: str, size: Size, options: dict[str, Any], say: Callable[..., None]) -> None:
        self._model, self._options, self._say = model, options, say
        self._size = Size(
            calibration=options["calibration_jobs"] or size.calibration,
            honest=options["jobs"] or size.honest,
            attack=options["attack_jobs"] or size.attack,
            tokens=options["tokens"] or size.tokens,
        )

    def evaluate(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the report."""
        from pocache.engine.evaluate import Evaluation
        from pocache_cli.evaluation_state import MeasuredRuns

        started = time.monotonic()
        generator, verifier = self._build()
        attacks = choose_attacks(generator, names)
        prepare = make_thread_changer(self._options["threads"])
        if self._options["state"] is not None:
            self._options["state"].mkdir(parents=True, exist_ok=True)
        profile = self._get_profile(generator, verifier, prepare)
        evaluation = Evaluation(
            generator,
            verifier,
            profile,
            sample_count=self._options["samples"],
            max_tokens=self._size.tokens,
            is_written=self._options["written_prompts"],
            prepare=prepare,
        )
        measured = MeasuredRuns(evaluation, self._options["state"])
        count = self._size.honest
        honest = evaluation.judge_honest(
            measured.collect(
                "honest",
                evaluation.list_batches(count, is_honest=True),
                evaluation.measure_honest,
                lambda done: self._say("honest", done, count),
            )
        )
        results = []
        for number, attack in enumerate(attacks, 1):
            found = self._collect_attack(evaluation, measured, attack)
            results.append(evaluation.judge_attack(attack, found, honest))
            self._say(attack.name, number, len(attacks))
        return self._report(evaluation, honest, results, time.monotonic() - started)

    def _collect_attack(
        self, evaluation: Evaluation, measured: MeasuredRuns, attack: Attack
    ) -> list[HonestRun]:
        from pocache.engine.adversary import build_adversary

        @cache
        def build() -> Engine:  # only where something is left to measure
            return build_adversary(attack.name, lambda: self._build()[0])

        def measure(_number: int, batch: range) -> list[HonestRun]:
            return evaluation.measure_attack(attack, build(), batch)

        batches = evaluation.list_batches(self._size.attack, is_honest=False)
        return list(measured.collect(attack.name, batches, measure, lambda _done: None))

    def _build(self) -> tuple[Engine, Engine]:
        one = self._options
        return build_pair(
            self._model,
            encoding="sketch",
            device=one["device"],
            threads=one["threads"][0],
            stacks=(
                (one["dtype"], one["attention"]),
                (one["verifier_dtype"] or one["dtype"], one["verifier_attention"] or one["attention"]),
            ),
        )

    def _get_profile(
        self, generator: Engine, verifier: Engine, prepare: Callable[[int], None]
    ) -> MatchingProfile:
        from pocache.engine.calibrate import CalibrationPlan, draw_prompts
        from pocache_cli.measurements import run_plan

        if self._options["profile"] is not None:
            return read_profile(self._options["profile"])
        plan = CalibrationPlan(
            generator,
            verifier,
            draw_prompts(generator.capabilities(), count=self._size.calibration),
            self._size.tokens,
            is_routed=getattr(generator, "is_routed", False),
            prepare=prepare,
        )
        state = self._options["state"]
        kept = None if state is None else state / "calibration.jsonl"
        return run_plan(plan, kept, lambda done, total: self._say("calibrating", done, total))

    def _report(
        self, evaluation: Evaluation, honest: HonestResult, results: list[AttackResult], elapsed_s: float
    ) -> dict[str, Any]:
        capabilities = evaluation.generator.capabilities()
        scores = sorted(one.score for one in honest.audits)
        return {
            "model_id": capabilities.model_id.hex(),
            "generator_stack": capabilities.stack,
            "verifier_stack": evaluation.verifier.capabilities().stack,
            "sample_count": evaluation.sample_count,
            "output_tokens": evaluation.max_tokens,
            "written_prompts": evaluation.is_written,
            "calibration_jobs": evaluation.profile.about.get("job_count"),
            "elapsed_s": round(elapsed_s, 1),
            "honest": {
                "jobs": len(honest.audits),
                "false_rejects": honest.false_rejects,
                "inconclusive": honest.inconclusive,
                "false_reject_bound95": round(bound_rejects(honest), 6),
                "threshold_at_1e-3": round(honest.threshold, 3),
                "scores": [round(score, 3) for score in scores],
            },
            "attacks": [_describe_attack(one) for one in results],
            "profile": evaluation.profile.digest().hex(),
        }


def choose_attacks(generator: Engine, names: tuple[str, ...]) -> list[Attack]:
    """Return the cheats that this engine can be put up to, or those that were asked for. ConfigError."""
    from pocache.engine.adversary import FAKE_KINDS, list_attacks
    from pocache.engine.fake import FakeEngine
    from pocache.protocol.errors import ConfigError

    attacks = list_attacks(generator.capabilities().layer_count)
    if isinstance(generator, FakeEngine):
        possible: set[str] = {kind.value for kind in FAKE_KINDS}
        attacks = tuple(attack for attack in attacks if attack.name in possible)
    unknown = sorted(set(names) - {attack.name for attack in attacks})
    if unknown:
        known = ", ".join(attack.name for attack in attacks)
        raise ConfigError(f"no cheat {', '.join(unknown)} for this model; there are {known}")
    return [attack for attack in attacks if not names or attack.name in names]


def read_profile(path: Path) -> MatchingProfile:
    """Return the profile of a model's description, its signature checked where it has one. ConfigError."""
    from pocache.protocol.errors import ConfigError, PocacheError
    from pocache.protocol.matching import MatchingProfile
    from pocache_cli.signing import verify_description

    try:
        description = json.loads(path.read_text(encoding="ascii"))
        verify_description(description)
        return MatchingProfile.from_dict(description["profile"])
    except (OSError, ValueError, KeyError, TypeError, PocacheError) as error:
        raise ConfigError(f"{path} is not a description that `pocache calibrate --out` wrote: {error}") from error


def bound_rejects(honest: HonestResult) -> float:
    """Return the 95 % upper bound on the share of honest jobs that are rejected."""
    from pocache.numerics.detection import compute_wilson

    count = len(honest.audits)
    return 3 / count if not honest.false_rejects else compute_wilson(honest.false_rejects, count)[1]


def _describe_attack(one: AttackResult) -> dict[str, Any]:
    scores = sorted(audit.score for audit in one.audits)
    return {
        "name": one.attack.name,
        "auc": round(one.auc, 6),
        "detected": round(one.detected, 6),
        "jobs_to_999": one.jobs_to_999,
        "title": one.attack.title,
        "family": one.attack.family,
        "is_small": one.attack.is_small,
        "jobs": len(one.audits),
        "auc_low95": round(one.auc_low, 6),
        "detected_at_1e-3": round(one.detected_at_rate, 6),
        "detected_interval95": [round(bound, 6) for bound in one.detected_interval],
        "too_exact": round(one.too_exact, 6),
        "jobs_to_eject": one.jobs_to_eject,
        "tokens_to_auc_999": one.tokens_to_999_auc,
        "token_curve": [[count, round(auc, 6)] for count, auc in one.token_curve],
        "scores": [round(score, 3) for score in scores],
    }


def _write(out: Path, report: dict[str, Any]) -> None:
    from pocache_cli.evaluation_report import render_markdown, render_plot

    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (out / "evaluation.md").write_text(render_markdown(report), encoding="utf-8")
    (out / "evaluation.svg").write_text(render_plot(report), encoding="utf-8")


def _make_reporter(*, as_json: bool) -> Callable[..., None]:
    def say(what: str, done: int, total: int) -> None:
        if as_json:
            click.echo(json.dumps({"event": "evaluating", "what": what, "done": done, "total": total}))
        elif sys.stderr.isatty():
            click.echo(f"\r\x1b[K{what}: {done} of {total}", nl=done == total, err=True)

    return say
