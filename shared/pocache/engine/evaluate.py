"""Evaluation: held-out honest jobs and every known cheat, through the comparison that decides about money.

Owns the runs and what becomes of them: each job is audited as the protocol audits it, at full depth, at drawn
positions, once more with four times as many where the first look is inconclusive. Refuses a profile of another model or
stack. Torch-free; what the engines need, they bring.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pocache.engine.adversary import Attack, build_adversary
from pocache.engine.measure import (
    BATCH_SIZES,
    build_request,
    compute_run,
    cut_batches,
    decode_rows,
    draw_prompts,
    generate_together,
    list_rows,
)
from pocache.engine.port import Capabilities, Engine, build_full_verification
from pocache.numerics.calibration import HonestRun, draw_positions
from pocache.numerics.detection import (
    compute_auc,
    compute_auc_low,
    compute_score,
    compute_threshold,
    compute_wilson,
    count_jobs,
    count_tokens,
)
from pocache.protocol.commitment import Sampling
from pocache.protocol.errors import EngineError
from pocache.protocol.limits import SAMPLE_COUNT_MAX
from pocache.protocol.matching import Comparison, MatchingProfile, Verdict, judge
from pocache.protocol.sprt import Standing, judge_jobs

HELD_OUT_START = 1_000_000
"""Jobs of an evaluation are numbered from here on: none of them was calibrated on."""

PROMPT_TOKENS_MIN = 8
"""Shortest prompt: of one token there is nothing to cut and no early one to change."""

SAMPLE_COUNT_DEFAULT = 16
"""Positions of an audit, as in the genesis's default."""
SECOND_LOOK_FACTOR = 4

SAMPLED = (Sampling(temperature_micro=1_000_000),)
"""How jobs are drawn that are to show a change of temperature or of seed."""


@dataclass(frozen=True, slots=True)
class Audit:
    """One job as it was judged: its score, its verdict after a second look, and its grade."""

    score: float
    verdict: Verdict
    grade: int
    is_too_exact: bool


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What became of one cheat's jobs."""

    attack: Attack
    audits: tuple[Audit, ...]
    auc: float
    auc_low: float
    detected_at_rate: float
    """Share above the threshold at a false-reject rate of 10⁻³."""
    detected: float
    """Share that the profile's limits call a mismatch."""
    detected_interval: tuple[float, float]
    too_exact: float
    jobs_to_999: int | None
    jobs_to_eject: int | None
    """Jobs until the test over a worker's jobs ejects it, cycling through these; None when it does not."""
    tokens_to_999_auc: int | None
    token_curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class HonestResult:
    """What became of the honest jobs."""

    audits: tuple[Audit, ...]
    false_rejects: int
    inconclusive: int
    threshold: float
    margins: tuple[int | None, ...]


@dataclass(frozen=True)
class Evaluation:
    """The pair that is evaluated, and how much of it."""

    generator: Engine
    verifier: Engine
    profile: MatchingProfile
    sample_count: int = SAMPLE_COUNT_DEFAULT
    max_tokens: int = 48
    prepare: Callable[[int], None] = lambda _batch: None
    """Called before each honest batch, to set what may differ between honest runs, such as threads."""

    def __post_init__(self) -> None:
        verify_fits(self.profile, self.generator.capabilities(), self.verifier.capabilities())

    def run_honest(self, job_count: int, *, start: int = 0) -> Iterator[HonestRun]:
        """Yield held-out honest jobs, verified packed with their batch and alone in turns."""
        yield from self._run(self.generator, job_count, start, None)

    def run_attack(self, attack: Attack, factory: Callable[[], Engine], job_count: int) -> list[HonestRun]:
        """Return a cheat's jobs; the same prompts and seeds as the first honest ones."""
        engine = build_adversary(attack.name, factory)
        return list(self._run(engine, job_count, 0, SAMPLED if attack.needs_sampling else None))

    def audit(self, run: HonestRun, number: int) -> Audit:
        """Judge one job: at the positions of an audit, and where that is inconclusive once more at four times as many."""
        first = self._look(run, f"first {number}", self.sample_count)
        last = first
        if first.verdict is Verdict.INCONCLUSIVE:
            count = min(SAMPLE_COUNT_MAX, SECOND_LOOK_FACTOR * self.sample_count)
            last = self._look(run, f"second {number}", count)
        score = max(compute_score(self.profile, one) for one in (first, last))
        return Audit(score, last.verdict, max(first.grade, last.grade), first.is_too_exact)

    def judge_honest(self, runs: Sequence[HonestRun]) -> HonestResult:
        """Return what became of honest jobs."""
        audits = tuple(self.audit(run, number) for number, run in enumerate(runs))
        return HonestResult(
            audits=audits,
            false_rejects=sum(one.verdict is Verdict.MISMATCH for one in audits),
            inconclusive=sum(one.verdict is Verdict.INCONCLUSIVE for one in audits),
            threshold=compute_threshold([one.score for one in audits]),
            margins=tuple(margin for run in runs for margin in run.margins),
        )

    def judge_attack(self, attack: Attack, runs: Sequence[HonestRun], honest: HonestResult) -> AttackResult:
        """Return what became of a cheat's jobs, against the honest ones."""
        audits = tuple(self.audit(run, number) for number, run in enumerate(runs))
        scores, clean = [one.score for one in audits], [one.score for one in honest.audits]
        found = sum(one.verdict is Verdict.MISMATCH for one in audits)
        tokens, curve = self._count_tokens(attack, runs, honest)
        return AttackResult(
            attack=attack,
            audits=audits,
            auc=compute_auc(clean, scores),
            auc_low=compute_auc_low(clean, scores),
            detected_at_rate=sum(score > honest.threshold for score in scores) / len(scores),
            detected=found / len(audits),
            detected_interval=compute_wilson(found, len(audits)),
            too_exact=sum(one.is_too_exact for one in audits) / len(audits),
            jobs_to_999=count_jobs(clean, scores),
            jobs_to_eject=_count_ejection([one.grade for one in audits]),
            tokens_to_999_auc=tokens,
            token_curve=tuple(curve),
        )

    def _run(
        self, engine: Engine, job_count: int, start: int, samplings: tuple[Sampling, ...] | None
    ) -> Iterator[HonestRun]:
        capabilities = self.verifier.capabilities()
        first = HELD_OUT_START + start
        prompts = draw_prompts(capabilities, count=job_count, token_count_min=PROMPT_TOKENS_MIN, start=first)
        for number, batch in enumerate(cut_batches(job_count, BATCH_SIZES)):
            self.prepare(number)
            requests = [
                build_request(first + index, prompts[index], self.max_tokens, samplings=samplings)
                if samplings
                else build_request(first + index, prompts[index], self.max_tokens)
                for index in batch
            ]
            captures = generate_together(engine, requests)
            asked = [
                build_full_verification(request, capture.output, self.verifier)
                for request, capture in zip(requests, captures, strict=True)
            ]
            verified = (
                self.verifier.verify(asked)
                if number % 2 == 0
                else [one for alone in asked for one in self.verifier.verify([alone])]
            )
            for capture, one in zip(captures, verified, strict=True):
                ours, theirs = (decode_rows(side, capture.prompt_count) for side in (one, capture))
                yield compute_run(ours, theirs, capture.prompt_count, capabilities.schema.float_format)

    def _look(self, run: HonestRun, name: str, count: int) -> Comparison:
        leaf_count = len(run.distances)
        source = random.Random(name)  # noqa: S311 - a sample of measurements
        chosen = draw_positions(source, leaf_count, run.prompt_count, min(count, leaf_count))
        rows = [row for row in list_rows(run.distances) if row[0] in set(chosen)]
        first = run.prompt_count - 1
        margins = [run.margins[position - first] for position in chosen if position >= first and run.margins]
        return judge(self.profile, rows, margins)

    def _count_tokens(
        self, attack: Attack, runs: Sequence[HonestRun], honest: HonestResult
    ) -> tuple[int | None, list[tuple[int, float]]]:
        limits = self.profile.limits.tokens
        if attack.family != "tokens" or limits is None:
            return None, []
        margins = [margin for run in runs for margin in run.margins]
        return count_tokens(honest.margins, margins, limits.clip_q16)


def verify_fits(profile: MatchingProfile, generator: Capabilities, verifier: Capabilities) -> None:
    """Refuse to judge with a profile of another model, schema, dtype or version: EngineError, which names both."""
    wanted: dict[str, str | int] = {
        "layer_count": generator.layer_count,
        "vocab_size": generator.vocab_size,
        "schema_digest": generator.schema.digest().hex(),
        "generator_stack": generator.stack,
        "verifier_stack": verifier.stack,
        "model_id": generator.model_id.hex(),
    }
    for name, value in wanted.items():
        if profile.about.get(name) != value:
            raise EngineError(
                f"the profile's {name.replace('_', ' ')} is {profile.about.get(name)!r}, here it is {value!r}:"
                " calibrate this pair first"
            )


def _count_ejection(grades: Sequence[int]) -> int | None:
    """Return the jobs until an ejection when a worker's jobs have these grades over and over, ten times at most."""
    record = judge_jobs([*grades] * 10)
    return record.job_count if record.standing is Standing.EJECTED else None
