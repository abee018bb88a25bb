"""Evaluation: held-out honest jobs and every known cheat, through the comparison that decides about money.

Owns the runs and what becomes of them: each job is audited as the protocol audits it, at full depth, at drawn
positions, once more with four times as many where the first look is inconclusive. Refuses a profile of another model or
stack. Torch-free; what the engines need, they bring.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pocache.engine.adversary import Attack
from pocache.engine.measure import (
    SAMPLINGS,
    build_request,
    compute_run,
    cut_batches,
    decode_rows,
    draw_prompt,
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
from pocache.protocol.matching import ONE_Q16, Comparison, MatchingProfile, Verdict, judge
from pocache.protocol.sprt import (
    TOKEN_EVIDENCE_MAX_Q16,
    Standing,
    compute_token_evidence_q16,
    judge_jobs,
)

HELD_OUT_START = 1_000_000
"""Jobs of an evaluation are numbered from here on: none of them was calibrated on."""

PROMPT_TOKENS = range(8, 49)
"""Lengths of prompts: of one token there is nothing to cut and no early one to change."""
_PROMPT_STRIDE = 17
"""Coprime to the number of lengths, so that a few jobs have short and long ones."""

HONEST_BATCH_SIZES = (1, 8, 2, 8, 3, 8, 4, 8, 5, 8, 6, 8, 7, 8)
"""Jobs decoded together, batch after batch: every size from 1 to 8, most often the largest, where a job costs least."""
ATTACK_BATCH_SIZES = (8,)
"""What a cheat costs to measure; who decodes beside it changes nothing of it."""
THREADS_BATCHES = 2 * len(HONEST_BATCH_SIZES)
"""Batches after which what may differ between honest runs changes: every size, packed and alone, under each."""

SAMPLE_COUNT_DEFAULT = 16
"""Positions of an audit, as in the genesis's default."""
SECOND_LOOK_FACTOR = 4

SAMPLED = (Sampling(temperature_micro=1_000_000),)
"""How jobs are drawn that are to show a change of temperature or of seed."""


@dataclass(frozen=True, slots=True)
class Audit:
    """One job as it was judged: its score, its verdict after a second look, and what adds up over jobs."""

    score: float
    verdict: Verdict
    grade: int
    is_too_exact: bool
    token_evidence_q16: int
    """What its tokens say to the test over a worker's jobs."""

    @property
    def evidence(self) -> tuple[float, float]:
        """Return what may be added up over jobs: the score, and what the tokens say."""
        return self.score, min(self.token_evidence_q16, TOKEN_EVIDENCE_MAX_Q16) / ONE_Q16


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
    is_written: bool = False
    """Prompts are what the model itself writes, instead of tokens drawn uniformly."""
    prepare: Callable[[int], None] = lambda _batch: None
    """Called before each honest batch, to set what may differ between honest runs, such as threads."""

    def __post_init__(self) -> None:
        verify_fits(self.profile, self.generator.capabilities(), self.verifier.capabilities())

    def list_batches(self, job_count: int, *, is_honest: bool) -> list[range]:
        """Return which jobs decode together; more jobs begin with the same batches but for the last."""
        return cut_batches(job_count, HONEST_BATCH_SIZES if is_honest else ATTACK_BATCH_SIZES)

    def measure_honest(self, number: int, batch: range) -> list[HonestRun]:
        """Run one batch of held-out honest jobs, verified packed with their batch and alone in turns."""
        self.prepare(number // THREADS_BATCHES)
        is_packed = (number + number // len(HONEST_BATCH_SIZES)) % 2 == 0
        return self._measure(self.generator, batch, None, is_packed=is_packed)

    def measure_attack(self, attack: Attack, engine: Engine, batch: range) -> list[HonestRun]:
        """Run one batch of a cheat's jobs; the same prompts and seeds as the first honest ones."""
        samplings = SAMPLED if attack.needs_sampling else None
        return self._measure(engine, batch, samplings, is_packed=True)

    def audit(self, run: HonestRun, number: int) -> Audit:
        """Judge one job: at the positions of an audit, and where that is inconclusive once more at four times as many."""
        first = self._look(run, f"first {number}", self.sample_count)
        last = first
        if first.verdict is Verdict.INCONCLUSIVE:
            count = min(SAMPLE_COUNT_MAX, SECOND_LOOK_FACTOR * self.sample_count)
            last = self._look(run, f"second {number}", count)
        score = max(compute_score(self.profile, one) for one in (first, last))
        tokens, limits = last.tokens, self.profile.limits.tokens
        evidence = (
            0
            if tokens is None or limits is None
            else compute_token_evidence_q16(limits, tokens.token_count, tokens.margin_sum_q16)
        )
        return Audit(score, last.verdict, last.grade, first.is_too_exact, evidence)

    def judge_honest(self, runs: Iterable[HonestRun]) -> HonestResult:
        """Return what became of honest jobs; each is judged as it comes, and its distances are let go."""
        audits: list[Audit] = []
        margins: list[int | None] = []
        for number, run in enumerate(runs):
            audits.append(self.audit(run, number))
            margins += run.margins
        return HonestResult(
            audits=tuple(audits),
            false_rejects=sum(one.verdict is Verdict.MISMATCH for one in audits),
            inconclusive=sum(one.verdict is Verdict.INCONCLUSIVE for one in audits),
            threshold=compute_threshold([one.score for one in audits]),
            margins=tuple(margins),
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
            jobs_to_999=count_jobs([one.evidence for one in honest.audits], [one.evidence for one in audits]),
            jobs_to_eject=_count_ejection(audits),
            tokens_to_999_auc=tokens,
            token_curve=tuple(curve),
        )

    def _measure(
        self, engine: Engine, batch: range, samplings: tuple[Sampling, ...] | None, *, is_packed: bool
    ) -> list[HonestRun]:
        capabilities = self.verifier.capabilities()
        numbers = [HELD_OUT_START + index for index in batch]
        requests = [
            build_request(number, prompt, self.max_tokens, samplings=samplings or SAMPLINGS)
            for number, prompt in zip(numbers, self._draw_prompts(numbers), strict=True)
        ]
        captures = generate_together(engine, requests)
        asked = [
            build_full_verification(request, capture.output, self.verifier)
            for request, capture in zip(requests, captures, strict=True)
        ]
        verified = (
            self.verifier.verify(asked)
            if is_packed
            else [one for alone in asked for one in self.verifier.verify([alone])]
        )
        runs = []
        for capture, one in zip(captures, verified, strict=True):
            ours, theirs = (decode_rows(side, capture.prompt_count) for side in (one, capture))
            runs.append(compute_run(ours, theirs, capture.prompt_count, capabilities.schema.float_format))
        return runs

    def _draw_prompts(self, numbers: Sequence[int]) -> list[tuple[int, ...]]:
        capabilities = self.verifier.capabilities()
        lengths = [
            PROMPT_TOKENS[_PROMPT_STRIDE * (number - HELD_OUT_START) % len(PROMPT_TOKENS)]
            for number in numbers
        ]
        if not self.is_written:
            return [
                draw_prompt(capabilities, number, length)
                for number, length in zip(numbers, lengths, strict=True)
            ]
        starts = [draw_prompt(capabilities, number, 1) for number in numbers]
        asked = [
            build_request(number, start, length - 1, samplings=SAMPLED)
            for number, start, length in zip(numbers, starts, lengths, strict=True)
        ]
        written = generate_together(self.verifier, asked)
        return [(*start, *one.output) for start, one in zip(starts, written, strict=True)]

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


def _count_ejection(audits: Sequence[Audit]) -> int | None:
    """Return the jobs until an ejection when a worker's jobs are these over and over, ten times at most."""
    many = [*audits] * 10
    record = judge_jobs([one.grade for one in many], [one.token_evidence_q16 for one in many])
    return record.job_count if record.standing is Standing.EJECTED else None
