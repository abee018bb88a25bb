"""The sketch's dimension and float format against detection: what an audit of few positions tells at each size.

Command: ``python -m bench.sketch [MODEL] [--jobs N] [--honest N] [--svg FILE]``, on one thread; MODEL is the reference model unless
told otherwise. Recorded figures: bench/RESULTS.md. Every size sees the same captures: raw rows are captured once for each job, and
sketched afterwards. Rows alone decide here, by their mean (docs/protocol.md 7.3): the token check does not depend on the sketch.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from bench.toploc import NETWORK, Pair, make_job, run_jobs
from pocache.engine.adversary import build_adversary
from pocache.engine.reference import REFERENCE_NAME
from pocache.engine.transformers import TransformersEngine
from pocache.numerics.calibration import SCALE_MIN_Q16, draw_positions
from pocache.numerics.detection import compute_auc
from pocache.numerics.sketch import Sketcher, get_dtype
from pocache.protocol.encoding import FloatFormat, RowKey, RowSchema
from pocache.protocol.matching import LOG2_FLOOR_Q16, ONE_Q16

SIZES: Final = (4, 8, 16, 32, 64, 128)
FORMATS: Final = (FloatFormat.F16, FloatFormat.F32)
POSITIONS: Final = (1, 2, 4, 16)
"""Positions of an audit: the default 16, and fewer, where sizes still differ."""
CHEATS: Final = ("kv-int8", "int8", "int8-mlp", "noise-0.1-percent", "fine-tuned", "token-changed-late")
"""Those whose rows lie nearest to honest ones."""
HONEST_JOBS, ATTACK_JOBS = 48, 24
DRAWS: Final = 8
"""Samples of positions from each job."""
LAYERS_8B, HASH_BYTES, DEPTH = 32, 32, 10
PLOTTED: Final = (
    ("int8-mlp", 1, "#c2570c"),
    ("token-changed-late", 4, "#0e7490"),
    ("token-changed-late", 16, "#1d4ed8"),
)
"""Cheats and numbers of positions at which sizes differ: all others are told apart by the smallest."""
AREA_MIN: Final = 0.75

Distances = list[dict[RowKey, float]]
"""The log2 distances of one job's rows, by position."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one size tells: by cheat and number of positions, the area under the curve."""

    columns: int
    float_format: FloatFormat
    areas: Mapping[tuple[str, int], float]


def main() -> None:
    """Print the table, and draw the curve where a file is given for it."""
    parser = argparse.ArgumentParser(prog="bench.sketch", description=__doc__)
    parser.add_argument("model", nargs="?", default=REFERENCE_NAME)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--jobs", type=int, default=ATTACK_JOBS, help="jobs of each cheat")
    parser.add_argument("--honest", type=int, default=HONEST_JOBS, help="honest jobs")
    parser.add_argument("--svg", type=Path, help="draw the curve here")
    given = parser.parse_args()
    torch.set_num_threads(1)

    def build() -> TransformersEngine:
        wide = FloatFormat.F32  # what is sketched lost nothing before
        return TransformersEngine(
            given.model, dtype=given.dtype, encoding="raw", threads=1, float_format=wide
        )

    honest = build()
    clean = run_jobs(honest, honest, [make_job(index, honest) for index in range(given.honest)])
    cheats = {
        name: run_jobs(
            build_adversary(name, build),
            honest,
            [make_job(1_000 + index, honest) for index in range(given.jobs)],
        )
        for name in CHEATS
    }
    found = [_judge(columns, float_format, clean, cheats) for columns in SIZES for float_format in FORMATS]
    print(f"{given.model}, {given.dtype}: {given.honest} honest jobs, {given.jobs} of each cheat\n")
    _print_table(found)
    if given.svg is not None:
        given.svg.write_text(_draw(found), encoding="utf-8")


def _judge(
    columns: int, float_format: FloatFormat, clean: Sequence[Pair], cheats: Mapping[str, Sequence[Pair]]
) -> Found:
    honest = [_measure(columns, float_format, pair) for pair in clean]
    values: dict[RowKey, list[float]] = {}
    for job in honest:
        for leaf in job:
            for key, value in leaf.items():
                values.setdefault(key, []).append(value)
    spread = {
        key: (
            statistics.median(found),
            max(SCALE_MIN_Q16 / ONE_Q16, statistics.quantiles(found, n=10)[-1] - statistics.median(found)),
        )
        for key, found in values.items()
    }
    areas = {}
    for count in POSITIONS:
        scores = [
            score for at, job in enumerate(honest) for score in _draw_means(job, clean[at], spread, count)
        ]
        for name, pairs in cheats.items():
            bad = [
                score
                for pair in pairs
                for score in _draw_means(_measure(columns, float_format, pair), pair, spread, count)
            ]
            areas[name, count] = compute_auc(scores, bad)
    return Found(columns, float_format, areas)


def _measure(columns: int, float_format: FloatFormat, pair: Pair) -> Distances:
    """Return the log2 distances of K, V and hidden rows at every position, as sketched to this size."""
    layers = (len(pair.ours.vectors) - 1) // 2
    schema = RowSchema("sketch", float_format, layers, columns, columns, columns)
    job = pair.request
    sketcher = Sketcher(NETWORK, job.seed, job.job_id, schema)
    leaves: Distances = []
    for key, vectors in pair.ours.vectors.items():
        ours, theirs = (
            sketcher.sketch(*key, side).to(get_dtype(schema)).double()
            for side in (vectors, pair.theirs.vectors[key])
        )
        distances = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
        for position, value in enumerate(distances.log2().clamp(min=LOG2_FLOOR_Q16 / ONE_Q16).tolist()):
            if position == len(leaves):
                leaves.append({})
            leaves[position][key] = value
    return leaves


def _draw_means(
    leaves: Distances, pair: Pair, spread: Mapping[RowKey, tuple[float, float]], count: int
) -> list[float]:
    """Return the standardised means of samples of ``count`` positions, drawn as an audit draws them."""
    source = random.Random(f"{pair.request.job_id.hex()} {count}")
    means = []
    for _ in range(DRAWS):
        chosen = draw_positions(source, len(leaves), len(pair.request.prompt), count)
        if count == 1:
            chosen = [source.randrange(len(leaves))]
        rows = [
            max(-4.0, (value - spread[key][0]) / spread[key][1])
            for position in chosen
            for key, value in leaves[position].items()
        ]
        means.append(statistics.fmean(rows))
    return means


def _compute_opening_bytes(columns: int, float_format: FloatFormat) -> int:
    """Return the generator's bytes for 16 positions of an 8B model's job of 1,000 tokens, at most."""
    schema = RowSchema("sketch", float_format, LAYERS_8B, columns, columns, columns)
    return 16 * (schema.leaf_bytes(scored=True) + HASH_BYTES * DEPTH)


def _print_table(found: Sequence[Found]) -> None:
    print(f"| columns | format | bytes of an audit, 8B | averaged, 1 in 20 | {' | '.join(CHEATS)} |")
    print(f"|---|---|---|---|{'---|' * len(CHEATS)}")
    for one in found:
        size = _compute_opening_bytes(one.columns, one.float_format)
        cells = [" ".join(f"{one.areas[name, count]:.3f}" for count in POSITIONS) for name in CHEATS]
        print(
            f"| {one.columns} | {one.float_format.value} | {size:,} | {HASH_BYTES + size / 20:,.0f} "
            f"| {' | '.join(cells)} |"
        )
    print(f"\nareas under the curve by the mean of {', '.join(map(str, POSITIONS))} positions")


def _draw(found: Sequence[Found]) -> str:
    """Return an SVG: the area under the curve against the columns of a float16 sketch, a line for each of PLOTTED."""
    width, height, left, right, bottom = 640, 330, 60, 190, 290
    rows = [one for one in found if one.float_format is FloatFormat.F16]

    def place(index: int, area: float) -> tuple[float, float]:
        share = (min(max(area, AREA_MIN), 1.0) - AREA_MIN) / (1 - AREA_MIN)
        return left + index * (width - left - right) / (len(rows) - 1), bottom - share * (bottom - 45)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="20" font-size="13">Area under the curve by the rows\' mean, against the columns of a sketch</text>',
    ]
    for step in range(6):
        area = AREA_MIN + step * (1 - AREA_MIN) / 5
        x, y = place(0, area)
        parts.append(f'<path d="M{x:.0f} {y:.1f}H{width - right}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8:.0f}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{area:.2f}</text>')
    for index, one in enumerate(rows):
        x, _ = place(index, AREA_MIN)
        parts.append(
            f'<text x="{x:.0f}" y="{bottom + 18}" text-anchor="middle" fill="#555">{one.columns}</text>'
        )
    below = 0.0
    for name, count, colour in sorted(PLOTTED, key=lambda one: -rows[-1].areas[one[:2]]):
        points = [place(index, one.areas[name, count]) for index, one in enumerate(rows)]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        label = f"{name}, {count} position{'s' if count > 1 else ''}"
        below = max(below + 14, points[-1][1] + 4)
        parts.append(f'<path d="M{line}" stroke="{colour}" fill="none" stroke-width="2"/>')
        parts.append(f'<text x="{width - right + 8}" y="{below:.1f}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
