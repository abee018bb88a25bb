"""Calibration: run honest jobs through a generator and a verifier, and measure what honest looks like.

Owns the plan: prompts of several lengths, sampled and greedy, decoded in batches of several sizes and under several
thread counts, verified at full depth and at shallower corners, packed and alone; the raw distances, batch by batch, so
that an interrupted calibration goes on where it stopped; and the null forgeries beside them, which no threshold may
let through. Refuses engines of different models or schemas, and thresholds under which a null forgery would pass.
Torch-free: whatever the engines need, they bring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pocache.engine.forgery import NullForgery, forge_rows
from pocache.engine.measure import (
    BATCH_SIZES,
    CALIBRATION_NETWORK,
    SAMPLINGS,
    MeasuredJob,
    build_request,
    compute_run,
    cut_batches,
    draw_prompts,
    list_rows,
    measure_batch,
)
from pocache.engine.port import Capabilities, Engine
from pocache.numerics.calibration import MARGIN_MIN_Q16, HonestRun, compute_profile
from pocache.protocol.errors import EngineError, MatchingError
from pocache.protocol.ids import NetworkId
from pocache.protocol.matching import MatchingProfile, Verdict, judge

__all__ = ["CalibrationPlan", "Progress", "draw_prompts", "run_calibration"]

FORGED_JOBS_MAX = 12
"""Jobs whose null forgeries are measured: they lie whole norms away from every threshold."""

Progress = Callable[[int, int], None]
"""Called as progress(done, total) after each job."""


@dataclass(frozen=True, slots=True)
class Forged:
    """What one job's null forgeries look like: by forgery, the forged distances."""

    runs: Mapping[NullForgery, HonestRun]


@dataclass(frozen=True)
class CalibrationPlan:
    """What is measured: the pair of engines, the jobs, and how they are batched."""

    generator: Engine
    verifier: Engine
    prompts: Sequence[tuple[int, ...]]
    max_tokens: int = 64
    network: NetworkId = CALIBRATION_NETWORK
    margin_q16: int = MARGIN_MIN_Q16
    is_routed: bool = False
    about: Mapping[str, str | int] = field(default_factory=dict)
    prepare: Callable[[int], None] = lambda _batch: None
    """Called before each batch with its number, to set what may differ between honest runs, such as threads."""

    def __post_init__(self) -> None:
        claims, others = self.generator.capabilities(), self.verifier.capabilities()
        if (claims.model_id, claims.schema) != (others.model_id, others.schema):
            raise EngineError("generator and verifier must run the same model with the same row schema")
        if len(self.prompts) < len(SAMPLINGS):
            raise EngineError(
                f"calibration needs at least {len(SAMPLINGS)} prompts: one for each way of sampling"
            )

    @property
    def batches(self) -> list[range]:
        """Return which jobs decode together."""
        return cut_batches(len(self.prompts))

    def measure(self, number: int) -> tuple[list[HonestRun], list[Forged]]:
        """Run one batch; return its honest runs, three of each job, and the first jobs' forgeries."""
        batch = self.batches[number]
        self.prepare(number)
        requests = [
            build_request(index, self.prompts[index], self.max_tokens, self.network) for index in batch
        ]
        float_format = self.generator.capabilities().schema.float_format
        jobs = measure_batch(self.generator, self.verifier, requests, first=batch.start)
        runs = [
            compute_run(rows, job.committed, job.capture.prompt_count, float_format)
            for job in jobs
            for rows in job.verified
        ]
        is_forged = len(jobs) > 1 and batch.start < FORGED_JOBS_MAX
        return runs, [self._forge(job, jobs[at - 1]) for at, job in enumerate(jobs) if is_forged]

    def _forge(self, job: MeasuredJob, other: MeasuredJob) -> Forged:
        float_format = job.capture.schema.float_format
        found = {}
        for forgery in NullForgery:
            rows = forge_rows(forgery, job.committed, other.committed, float_format)
            found[forgery] = compute_run(
                job.verified[0][: len(rows)], rows, job.capture.prompt_count, float_format
            )
        return Forged(found)

    def finish(self, runs: Sequence[HonestRun], forged: Sequence[Forged]) -> MatchingProfile:
        """Return the profile of all batches' runs. MatchingError when a null forgery would not be a mismatch."""
        claims, others = self.generator.capabilities(), self.verifier.capabilities()
        profile = compute_profile(
            runs,
            float_format=claims.schema.float_format,
            about={**self._describe(claims, others, runs), **self.about},
            margin_q16=self.margin_q16,
            is_routed=self.is_routed,
            job_count=len(self.prompts),
        )
        return profile.with_about(**_measure_null_forgeries(profile, forged))

    def _describe(
        self, generator: Capabilities, verifier: Capabilities, runs: Sequence[HonestRun]
    ) -> dict[str, str | int]:
        return {
            "model_id": generator.model_id.hex(),
            "generator_stack": generator.stack,
            "verifier_stack": verifier.stack,
            "schema_digest": generator.schema.digest().hex(),
            "vocab_size": generator.vocab_size,
            "layer_count": generator.layer_count,
            "job_count": len(self.prompts),
            "decoding_batches": ",".join(str(len(batch)) for batch in self.batches[: 2 * len(BATCH_SIZES)]),
            "verification": "packed with the batch, in a corner, and alone",
            "committed_leaf_count": sum(len(run.distances) for run in runs[::3]),
        }


def run_calibration(
    generator: Engine,
    verifier: Engine,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_tokens: int = 64,
    network: NetworkId = CALIBRATION_NETWORK,
    margin_q16: int = MARGIN_MIN_Q16,
    is_routed: bool = False,
    progress: Progress | None = None,
) -> MatchingProfile:
    """Generate from each prompt, verify, and return the profile of this pair of stacks.

    Each job is verified at full depth and at one shallower corner that ends inside its output, packed with its batch,
    and once more by itself. MatchingError when a null forgery would not be a mismatch; EngineError when the engines do
    not run the same model.
    """
    plan = CalibrationPlan(generator, verifier, prompts, max_tokens, network, margin_q16, is_routed)
    runs: list[HonestRun] = []
    forged: list[Forged] = []
    for number, batch in enumerate(plan.batches):
        more, faked = plan.measure(number)
        runs += more
        forged += faked
        if progress is not None:
            for done in batch:
                progress(done + 1, len(prompts))
    return plan.finish(runs, forged)


def _measure_null_forgeries(profile: MatchingProfile, forged: Sequence[Forged]) -> dict[str, str | int]:
    """Return each null forgery's smallest mean over whole jobs; MatchingError when one is no mismatch."""
    found: dict[str, str | int] = {}
    for forgery in NullForgery:
        means = []
        for one in forged:
            run = one.runs[forgery]
            comparison = judge(profile, list_rows(run.distances), run.margins)
            if comparison.verdict is not Verdict.MISMATCH:
                raise MatchingError(
                    f"the null forgery {forgery!r} is a {comparison.verdict}: no usable thresholds"
                )
            means.append(comparison.mean_q16)
        found[f"null_{forgery}_mean_min_q16"] = min(means)
    return found
