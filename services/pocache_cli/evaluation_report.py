"""An evaluation to read: a Markdown table, and a plot of honest jobs against each cheat with the threshold drawn.

Plain text and plain SVG: no library draws it, and it opens in any browser. Refuses nothing; it says what the report has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

LEFT: Final = 230
WIDTH: Final = 900
ROW_HEIGHT: Final = 16
TOP: Final = 56
SCORE_LOW: Final = -2.0
SCORE_HIGH: Final = 10.0
MISMATCH_SCORE: Final = 5.7
"""−log₁₀ of the mismatch limits' tail: 1 in 500,000."""
_FAMILIES: Final = {
    "model": "#7b3294",
    "weights": "#c2570c",
    "cache": "#a16207",
    "depth": "#b91c1c",
    "prompt": "#0e7490",
    "tokens": "#1d4ed8",
    "null": "#525252",
}


def render_markdown(report: dict[str, Any]) -> str:
    """Return the tables."""
    honest = report["honest"]
    lines = [
        f"model {report['model_id'][:16]}…, profile {report['profile'][:16]}…",
        "",
        f"- generator `{report['generator_stack']}`",
        f"- verifier `{report['verifier_stack']}`",
        (f"- {report['calibration_jobs']} jobs calibrated on; {honest['jobs']} held-out honest jobs:"
        f" {honest['false_rejects']} rejected (95 % bound {honest['false_reject_bound95']:.2g} of jobs),"
        f" {honest['inconclusive']} inconclusive twice"),
        (f"- one audit: {report['sample_count']} positions at full depth of a job with {report['output_tokens']} output"
        f" tokens after {'a prompt that the model wrote' if report['written_prompts'] else 'uniformly drawn ones'}; {report['elapsed_s']} s in all"),
        "",
        "| cheat | jobs | AUC (95 % at least) | detected at 10⁻³ | at the profile's limits (95 %) | jobs for 99.9 % | ejected after | tokens for AUC > 0.999 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_render_row(one) for one in report["attacks"]]
    lines += [
        "",
        ("*jobs for 99.9 %*: audits that must be added up, by their scores or by their tokens, to find 99.9 % at a false-reject rate"
        " of 10⁻³. *ejected after*: jobs until the tests over a worker's jobs (docs/protocol.md 7.8) eject it. ° small by design."),
    ]
    return "\n".join(lines) + "\n"


def _render_row(one: dict[str, Any]) -> str:
    low, high = one["detected_interval95"]
    cells = [
        one["name"] + ("°" if one["is_small"] else ""),
        str(one["jobs"]),
        f"{one['auc']:.4f} ({one['auc_low95']:.4f})",
        f"{one['detected_at_1e-3']:.3f}",
        f"{one['detected']:.3f} ({low:.3f} … {high:.3f})",
        _render_count(one["jobs_to_999"], "> 100"),
        _render_count(one["jobs_to_eject"], "–"),
        _render_count(one["tokens_to_auc_999"], "> 4,096" if one["token_curve"] else ""),
    ]
    return f"| {' | '.join(cells)} |"


def _render_count(value: int | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:,}"


def render_plot(report: dict[str, Any]) -> str:
    """Return an SVG: a row of strokes for each cheat and for the honest jobs, scores from left to right."""
    rows = [("honest", "#15803d", report["honest"]["scores"])]
    rows += [(one["name"], _FAMILIES.get(one["family"], "#000"), one["scores"]) for one in report["attacks"]]
    height = TOP + ROW_HEIGHT * len(rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="13">Honest jobs and cheats: how rare a job would be among honest ones</text>',
        f'<text x="{LEFT}" y="34" fill="#555">−log₁₀ of the share of honest jobs that look so bad; one stroke is one job</text>',
    ]
    for index, (name, colour, scores) in enumerate(rows):
        parts.append(_draw_row(name, colour, scores, TOP + ROW_HEIGHT * index))
    bottom = TOP + ROW_HEIGHT * len(rows)
    threshold = report["honest"]["threshold_at_1e-3"]
    parts.append(_draw_line(threshold, bottom, "#15803d", "10⁻³, observed"))
    parts.append(_draw_line(MISMATCH_SCORE, bottom, "#000", "mismatch"))
    parts += [
        f'<text x="{_place(score):.1f}" y="{bottom + 14}" text-anchor="middle" fill="#555">{score}</text>'
        for score in range(int(SCORE_LOW), int(SCORE_HIGH) + 1, 2)
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_row(name: str, colour: str, scores: Sequence[float], top: int) -> str:
    strokes = "".join(
        f"M{_place(score):.1f} {top + 2}v{ROW_HEIGHT - 5}" for score in sorted({round(one, 2) for one in scores})
    )
    middle = top + ROW_HEIGHT - 5
    return (
        f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>'
        f'<path d="{strokes}" stroke="{colour}" stroke-opacity="0.55" fill="none"/>'
    )


def _draw_line(score: float, bottom: int, colour: str, label: str) -> str:
    place = _place(score)
    return (
        f'<path d="M{place:.1f} {TOP - 4}V{bottom}" stroke="{colour}" stroke-dasharray="4 3"/>'
        f'<text x="{place:.1f}" y="{TOP - 8}" text-anchor="middle" fill="{colour}">{label}</text>'
    )


def _place(score: float) -> float:
    kept = min(max(score, SCORE_LOW), SCORE_HIGH)
    return LEFT + (kept - SCORE_LOW) / (SCORE_HIGH - SCORE_LOW) * (WIDTH - LEFT - 30)
