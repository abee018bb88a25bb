"""TOPLOC beside this project's comparison: the same model, sequences and cheats; bytes, build and verify time.

Command: ``python -m bench.toploc [MODEL] [--jobs N]``, on one thread; MODEL is the reference model unless told otherwise.
Recorded figures: bench/RESULTS.md. Needs the package ``toploc`` 0.1.6, whose wheel has to be built against the installed torch:
``pip install --no-build-isolation --no-binary toploc toploc==0.1.6`` (g++, some minutes). It is no dependency of the product.

Both sides see the same captures: raw rows in bfloat16, from which sketches and TOPLOC's proofs (128 values of 32 tokens' final
hidden states, its defaults) are made. Both are calibrated on the same honest jobs, and each may use all of its statistics:
a job's score is the largest of them, each over its largest excursion in calibration. TOPLOC's own fixed thresholds are not used.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pocache.engine.adversary import build_adversary, list_attacks
from pocache.engine.measure import compute_run
from pocache.engine.port import Capture, Engine, GenerateRequest, VerifyCapture, VerifyRequest
from pocache.engine.reference import REFERENCE_NAME
from pocache.engine.transformers import COLUMNS_DEFAULT, TransformersEngine
from pocache.numerics.calibration import HonestRun, compute_profile
from pocache.numerics.sketch import Sketcher
from pocache.protocol.challenge import DeterministicStream, compute_full_corner, draw_positions
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import FloatFormat, RowKey, RowKind, RowSchema, decode_leaf
from pocache.protocol.ids import Digest, JobId, NetworkId
from pocache.protocol.matching import ONE_Q16, MatchingProfile, compare
from pocache.protocol.merkle import MerkleTree

NETWORK: Final = NetworkId(bytes(32))
BATCH: Final = 8
PROMPT_TOKENS, OUTPUT_TOKENS = 48, 96
CALIBRATION_JOBS, HELD_OUT_JOBS, ATTACK_JOBS = 24, 24, 8
POSITIONS: Final = 16
"""The default sample of an audit."""
SECOND_LOOK_POSITIONS: Final = 64
"""What an inconclusive one is looked at with again (docs/protocol.md 8.6)."""
CHUNK_TOKENS, TOP_VALUES = 32, 128
REACH_MIN: Final = 1.0
"""Of a statistic that never moved among honest jobs: one scale, token, exponent or unit of the mantissa."""

Rows = dict[int, dict[RowKey, bytes]]


@dataclass(frozen=True, slots=True)
class Side:
    """One party's raw rows of one job: [T, width] by kind and layer, and its score rows."""

    vectors: Mapping[RowKey, Tensor]
    scores: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Pair:
    """One job: what was asked, what the generator committed, what an honest verifier computed."""

    request: GenerateRequest
    output: tuple[int, ...]
    theirs: Side
    ours: Side


class Judge:
    """Scores of jobs by one method, calibrated on honest ones: above 1 is beyond all of them."""

    def __init__(self, measure: Callable[[Pair], tuple[float, ...]], honest: Sequence[Pair]) -> None:
        self._measure = measure
        columns = list(zip(*map(measure, honest), strict=True))
        self._middles = [statistics.median(column) for column in columns]
        self._reaches = [
            max(max(column) - middle, REACH_MIN)
            for column, middle in zip(columns, self._middles, strict=True)
        ]

    def score(self, pair: Pair) -> float:
        """Return the largest of the job's statistics, each by its own honest reach."""
        found = zip(self._measure(pair), self._middles, self._reaches, strict=True)
        return max((value - middle) / reach for value, middle, reach in found)


def main() -> None:
    """Print the tables of detection, bytes and time."""
    parser = argparse.ArgumentParser(prog="bench.toploc", description=__doc__)
    parser.add_argument("model", nargs="?", default=REFERENCE_NAME)
    parser.add_argument("--jobs", type=int, default=ATTACK_JOBS, help="jobs of each cheat")
    parser.add_argument("--only", help="cheats whose names contain this")
    given = parser.parse_args()
    torch.set_num_threads(1)
    _print_costs()
    _print_detection(given.model, given.jobs, given.only or "")


def _print_detection(model: str, count: int, only: str) -> None:
    def build() -> TransformersEngine:
        return TransformersEngine(model, dtype="bfloat16", encoding="raw", threads=1)

    honest = build()
    jobs = [make_job(index, honest) for index in range(CALIBRATION_JOBS + HELD_OUT_JOBS)]
    pairs = run_jobs(honest, honest, jobs)
    calibration, held_out = pairs[:CALIBRATION_JOBS], pairs[CALIBRATION_JOBS:]
    profile = _calibrate(calibration)
    judges = {
        **{
            f"ours, {positions}": Judge(partial(_measure_ours, profile, positions), calibration)
            for positions in (POSITIONS, SECOND_LOOK_POSITIONS)
        },
        "TOPLOC": Judge(_measure_toploc, calibration),
    }
    clean = {name: [judge.score(pair) for pair in held_out] for name, judge in judges.items()}
    limits = {name: max(1.0, *scores) for name, scores in clean.items()}
    rejected = {name: sum(score > 1 for score in scores) for name, scores in clean.items()}
    print(f"honest jobs held out, beyond calibration's largest: {rejected} of {len(held_out)}\n")
    print(f"| cheat | {' | '.join(f'{name}: AUC | caught' for name in judges)} |")
    print(f"|---|{'---|---|' * len(judges)}")
    for attack in list_attacks(honest.capabilities().layer_count):
        if only not in attack.name:
            continue
        cheated = run_jobs(
            build_adversary(attack.name, build),
            honest,
            [make_job(1_000 + index, honest) for index in range(count)],
        )
        cells = []
        for name, judge in judges.items():
            scores = (
                _score_apart(judge, cheated)
                if attack.family == "null"
                else [judge.score(pair) for pair in cheated]
            )
            cells.append(_format(scores, clean[name], limits[name], len(cheated)))
        print(f"| {attack.title} | {' | '.join(cells)} |", flush=True)


def _score_apart(judge: Judge, pairs: Sequence[Pair]) -> list[float] | None:
    """Score in a child process: a proof of zeros ends TOPLOC's verifier with a signal. None when it did."""
    global _TASK  # noqa: PLW0603 - handed to a forked child, which cannot be sent a closure
    _TASK = lambda: [judge.score(pair) for pair in pairs]  # noqa: E731
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        try:
            return pool.submit(_run_task).result()
        except BrokenProcessPool:
            return None


_TASK: Callable[[], list[float]] = list


def _run_task() -> list[float]:
    return _TASK()


def _format(scores: list[float] | None, clean: Sequence[float], limit: float, count: int) -> str:
    if scores is None:
        return "verifier killed | –"
    auc = statistics.fmean((bad > good) + (bad == good) / 2 for bad in scores for good in clean)
    return f"{auc:.3f} | {sum(score > limit for score in scores)}/{count}"


def make_job(index: int, engine: Engine) -> GenerateRequest:
    """Return a job with a prompt that the model wrote itself: text of its own kind."""
    seed = hashlib.sha256(b"toploc" + index.to_bytes(4, "big")).digest()
    found = engine.capabilities()
    first = int.from_bytes(seed[:4], "big") % found.vocab_size
    job = GenerateRequest(
        job_id=JobId(seed), attempt=1, prompt=(first,), max_tokens=PROMPT_TOKENS - 1,
        sampling=Sampling(temperature_micro=1_000_000), seed=seed, network=NETWORK, eos_stop=False,
    )  # fmt: skip
    prompt = (first, *_PROMPTS.setdefault(index, _generate(engine, [job])[0].output))
    return replace(job, prompt=prompt, max_tokens=OUTPUT_TOKENS)


_PROMPTS: dict[int, tuple[int, ...]] = {}


def run_jobs(generator: Engine, verifier: TransformersEngine, jobs: Sequence[GenerateRequest]) -> list[Pair]:
    """Return both sides of jobs that a generator decodes in batches and an honest verifier prefills."""
    pairs: list[Pair] = []
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        captures = _generate(generator, batch)
        requests = [
            _make_verification(verifier, job, capture) for job, capture in zip(batch, captures, strict=True)
        ]
        for job, capture, verified in zip(batch, captures, verifier.verify(requests), strict=True):
            count = len(job.prompt)
            pairs.append(Pair(job, capture.output, _read_side(capture, count), _read_side(verified, count)))
    return pairs


def _generate(engine: Engine, jobs: Sequence[GenerateRequest]) -> list[Capture]:
    session = engine.open_session(slot_count=len(jobs))
    handles = [session.submit(job, lambda _tokens: None, lambda: False) for job in jobs]
    while not session.is_idle:
        session.step()
    return [handle.result() for handle in handles]


def _make_verification(engine: Engine, job: GenerateRequest, capture: Capture) -> VerifyRequest:
    corner = compute_full_corner(engine.capabilities().layer_count, len(capture.leaves))
    return VerifyRequest(
        job.job_id, job.prompt + capture.output, len(job.prompt), corner, job.sampling, job.seed, job.network
    )


def _read_side(capture: Capture | VerifyCapture, prompt_count: int) -> Side:
    rows = [
        decode_leaf(capture.schema, position, position >= prompt_count - 1, leaf)
        for position, leaf in enumerate(capture.leaves)
    ]
    keys = [key for key in rows[0] if key[0] is not RowKind.SCORES]
    dtype = np.float16 if capture.schema.float_format is FloatFormat.F16 else np.float32
    vectors = {
        key: torch.from_numpy(
            np.frombuffer(b"".join(row[key] for row in rows), dtype).reshape(len(rows), -1).copy()
        )
        for key in keys
    }
    scores = {
        position: row[RowKind.SCORES, 0] for position, row in enumerate(rows) if (RowKind.SCORES, 0) in row
    }
    return Side(vectors, scores)


def _sketch(pair: Pair, side: Side) -> Rows:
    """Return the rows that the default encoding commits, of every position."""
    layers = sum(kind is RowKind.K for kind, _ in side.vectors)
    schema = RowSchema("sketch", FloatFormat.F16, layers, *(COLUMNS_DEFAULT,) * 3)
    job = pair.request
    sketcher = Sketcher(job.network, job.seed, job.job_id, schema)
    rows: Rows = {}
    for key, vectors in side.vectors.items():
        for position, row in enumerate(sketcher.encode(*key, vectors)):
            rows.setdefault(position, {})[key] = row
    for position, row in side.scores.items():
        rows[position][RowKind.SCORES, 0] = row
    return rows


def _calibrate(pairs: Sequence[Pair]) -> MatchingProfile:
    runs = []
    for pair in pairs:
        ours, theirs = (list(_sketch(pair, side).values()) for side in (pair.ours, pair.theirs))
        runs.append(compute_run(ours, theirs, len(pair.request.prompt), FloatFormat.F16))
    return compute_profile(runs, float_format=FloatFormat.F16, about={})


def _measure_ours(profile: MatchingProfile, position_count: int, pair: Pair) -> tuple[float, ...]:
    """Return what one full-depth audit of so many positions sees: mean and peak of the rows, and its token check."""
    ours, theirs = _sketch(pair, pair.ours), _sketch(pair, pair.theirs)
    stream = DeterministicStream(Digest(bytes(pair.request.job_id)))
    layers = sum(kind is RowKind.K for kind, _ in pair.ours.vectors)
    drawn = draw_positions(
        stream,
        compute_full_corner(layers, len(ours)),
        prompt_count=len(pair.request.prompt),
        sample_count=position_count,
    )
    sampled = ({one: rows[one] for one in drawn} for rows in (ours, theirs))
    found = compare(profile, *sampled, FloatFormat.F16, checks_tokens=True)
    tokens = found.tokens
    assert tokens is not None, "an audit at full depth compares output positions"
    return (
        found.mean_q16 / ONE_Q16,
        found.peak_q16 / ONE_Q16,
        tokens.mismatch_count,
        tokens.margin_sum_q16 / ONE_Q16,
        tokens.margin_peak_q16 / ONE_Q16,
    )


def _measure_toploc(pair: Pair) -> tuple[float, ...]:
    """Return exponent mismatches and mantissa errors (mean, median) over the chunks: average and largest of each."""
    from toploc import build_proofs_bytes, verify_proofs_bytes

    options = {"decode_batching_size": CHUNK_TOKENS, "topk": TOP_VALUES}
    proofs = build_proofs_bytes(_get_activations(pair, pair.theirs), **options)
    results = verify_proofs_bytes(_get_activations(pair, pair.ours), proofs, **options)
    columns = zip(
        *((one.exp_mismatches, one.mant_err_mean, one.mant_err_median) for one in results), strict=True
    )
    return tuple(value for column in columns for value in (statistics.fmean(column), max(column)))


def _get_activations(pair: Pair, side: Side) -> list[Tensor]:
    hidden = side.vectors[RowKind.HIDDEN, 0].to(torch.bfloat16)
    count = len(pair.request.prompt)
    return [hidden[:count], *hidden[count:]]


def _print_costs() -> None:
    """Print bytes and CPU time of 1,000 tokens at the shape of an 8B model: 32 layers, 8 KV heads of 128, hidden 4,096."""
    from toploc import build_proofs_bytes, verify_proofs_bytes

    tokens, layers, width, hidden_width = 1_000, 32, 1_024, 4_096
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, hidden_width, generator=generator).bfloat16()
    key = torch.randn(tokens, width, generator=generator).bfloat16()
    schema = RowSchema("sketch", FloatFormat.F16, layers, *(COLUMNS_DEFAULT,) * 3)
    sketcher = Sketcher(NETWORK, bytes(32), bytes(32), schema)
    options = {"decode_batching_size": CHUNK_TOKENS, "topk": TOP_VALUES, "skip_prefill": True}
    activations = list(hidden)

    def sketch(keys: Tensor) -> list[bytes]:
        parts = [
            sketcher.sketch(kind, layer, keys) for layer in range(layers) for kind in (RowKind.K, RowKind.V)
        ]
        rows = torch.cat([*parts, sketcher.sketch(RowKind.HIDDEN, 0, hidden)], dim=1)
        data, size = rows.numpy().tobytes(), rows.shape[1] * rows.element_size()
        return [data[start : start + size] for start in range(0, len(data), size)]

    def commit() -> None:
        tree = MerkleTree()
        for leaf in sketch(key):
            tree.append(leaf)
        tree.root()

    def sample(keys: Tensor) -> Rows:
        leaves, size = sketch(keys), schema.row_bytes(RowKind.K)
        cuts = {
            (kind, layer): size * (2 * layer + kind - 1)
            for layer in range(layers)
            for kind in (RowKind.K, RowKind.V)
        }
        drawn = range(0, tokens, tokens // POSITIONS + 1)
        return {place: {one: leaves[place][cut : cut + size] for one, cut in cuts.items()} for place in drawn}

    ours, theirs = sample(key), sample((key.float() * 1.001).bfloat16())
    run = HonestRun(tuple(dict.fromkeys(one, -10 << 16) for one in ours.values()), prompt_count=1)
    profile = compute_profile([run], float_format=FloatFormat.F16, about={})
    proofs = build_proofs_bytes(activations, **options)
    print("| 8B shape, 1,000 tokens | CPU ms, ours | CPU ms, TOPLOC |\n|---|---|---|")
    print(
        f"| build | {_time_ms(commit):.0f} | {_time_ms(lambda: build_proofs_bytes(activations, **options)):.0f} |"
    )
    print(
        f"| compare (beside the prefill, which both need) | {_time_ms(lambda: compare(profile, ours, theirs, FloatFormat.F16)):.1f} "
        f"| {_time_ms(lambda: verify_proofs_bytes(activations, proofs, **options)):.1f} |\n"
    )
    scored = schema.leaf_bytes(scored=True)
    digests = POSITIONS * 10  # at most the depth of the tree for each leaf
    opening = POSITIONS * scored + 32 * digests
    average = 32 + opening / 20
    print("| bytes, 8B shape, 1,000 tokens | ours | TOPLOC |\n|---|---|---|")
    print(f"| with every job | 32 | {sum(map(len, proofs)):,} |")
    print(f"| opened by the generator in an audit of {POSITIONS} positions, at most | {opening:,} | 0 |")
    print(
        f"| averaged over jobs at the default audit rate, 1 in 20 | {average:,.0f} | {sum(map(len, proofs)):,} |\n"
    )


def _time_ms(work: Callable[[], object], repetitions: int = 5) -> float:
    work()
    gc.disable()
    times = []
    for _ in range(repetitions):
        started = time.thread_time()
        work()
        times.append((time.thread_time() - started) * 1_000)
    gc.enable()
    return statistics.median(times)


if __name__ == "__main__":
    main()
