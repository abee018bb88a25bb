"""The simulated gains as one SVG file: a bar for each rule set, side by side, attack by attack.

Owns the drawing and nothing else. Bars are what was simulated, whiskers two standard errors; everything right of the
line at zero gains. Refuses to draw nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from html import escape
from math import floor, log10
from typing import TYPE_CHECKING, Final

from pocache.protocol.payoff import FIXED_FEE_COMMITTEE, UNIFIED_POOL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pocache_cli.economics_simulation import Result

_COLOURS: Final = {UNIFIED_POOL: "#b45309", FIXED_FEE_COMMITTEE: "#1d4ed8"}
_WIDTH: Final = 960
_LEFT: Final = 330
_RIGHT: Final = 30
_TOP: Final = 84
_ROW: Final = 34
_BAR: Final = 12
_FONT: Final = "font-family='system-ui, sans-serif' font-size='12'"
_TICKS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    step: float

    def x(self, gain: float) -> float:
        """Return where a gain is drawn."""
        return _LEFT + (gain - self.low) / (self.high - self.low) * (_WIDTH - _LEFT - _RIGHT)

    @property
    def ticks(self) -> list[float]:
        """Return the values on the axis."""
        count = round((self.high - self.low) / self.step)
        return [round(self.low + index * self.step, 10) for index in range(count + 1)]


def draw_plot(results: Sequence[Result], *, jobs: int, seed: int) -> str:
    """Return the SVG of a simulation, all of whose attacks were played under every rule set shown."""
    assert results, "nothing to draw"
    rows: dict[tuple[str, Fraction], dict[str, Result]] = {}
    for result in results:
        rows.setdefault((result.attack, result.share), {})[result.rules] = result
    ordered = sorted(
        rows.items(), key=lambda row: (row[0][1] in _get_ring_shares(rows), row[0][0], row[0][1])
    )
    scale = _compute_scale(results)
    height = _TOP + len(ordered) * _ROW + 40
    opening = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}'"
        f" viewBox='0 0 {_WIDTH} {height}' role='img' aria-labelledby='title'>"
    )
    note = f"{jobs:,} jobs, seed {seed}; whiskers are two standard errors; right of zero the attack pays"
    parts = [
        opening,
        "<title id='title'>Gain of each attack over honesty, per job, in Cg</title>",
        f"<rect width='{_WIDTH}' height='{height}' fill='#ffffff'/>",
        f"<text x='20' y='28' {_FONT} font-weight='bold'>Gain over honesty per job, in Cg</text>",
        f"<text x='20' y='46' {_FONT} fill='#555555'>{note}</text>",
        *_draw_legend(),
        *_draw_axis(scale, _TOP, _TOP + len(ordered) * _ROW),
    ]
    for index, ((attack, share), by_rules) in enumerate(ordered):
        parts += _draw_row(_TOP + index * _ROW, attack, share, by_rules, scale)
    return "\n".join([*parts, "</svg>", ""])


def _get_ring_shares(rows: Mapping[tuple[str, Fraction], object]) -> set[Fraction]:
    """Return the shares of attacks that were played at more than one: these come last, each in a block."""
    attacks = [attack for attack, _ in rows]
    return {share for attack, share in rows if attacks.count(attack) > 1}


def _compute_scale(results: Sequence[Result]) -> _Scale:
    """Return an axis from a round number to a round number, zero among its ticks."""
    ends = [
        result.simulated_gain + side * 2 * result.standard_error for result in results for side in (-1, 1)
    ]
    low, high = min(0.0, *ends), max(0.0, *ends)
    span = (high - low) or 1.0
    step = 10.0 ** floor(log10(span))
    while span / step > _TICKS_MAX:
        step *= 2
    while span / step < _TICKS_MAX / 2:
        step /= 2
    first, last = floor(low / step), -floor(-high / step)
    return _Scale(first * step, max(last, first + 1) * step, step)


def _draw_legend() -> Iterator[str]:
    for index, (rules, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + index * 190
        yield f"<rect x='{x}' y='58' width='12' height='12' fill='{colour}'/>"
        yield f"<text x='{x + 18}' y='68' {_FONT}>{escape(rules)}</text>"


def _draw_axis(scale: _Scale, top: int, bottom: int) -> Iterator[str]:
    for tick in scale.ticks:
        x, is_zero = scale.x(tick), tick == 0
        yield (
            f"<line x1='{x:.1f}' y1='{top}' x2='{x:.1f}' y2='{bottom}'"
            f" stroke='{'#111111' if is_zero else '#dddddd'}' stroke-width='1'/>"
        )
        yield f"<text x='{x:.1f}' y='{bottom + 18}' {_FONT} text-anchor='middle' fill='#555555'>{f'{tick:+g}' if tick else '0'}</text>"


def _draw_row(
    y: int, attack: str, share: Fraction, by_rules: Mapping[str, Result], scale: _Scale
) -> Iterator[str]:
    label = attack if share == 0 else f"{attack}, {float(share):.0%} of stake"
    yield f"<text x='{_LEFT - 10}' y='{y + 20}' {_FONT} text-anchor='end'>{escape(label)}</text>"
    for offset, (rules, colour) in enumerate(_COLOURS.items()):
        result = by_rules.get(rules)
        if result is None:
            continue
        ends = sorted((scale.x(0.0), scale.x(result.simulated_gain)))
        top = y + 3 + offset * (_BAR + 2)
        yield (
            f"<rect x='{ends[0]:.1f}' y='{top}' width='{ends[1] - ends[0]:.1f}' height='{_BAR}' fill='{colour}'>"
            f"<title>{escape(rules)}: {escape(label)}: {result.simulated_gain:+.4f}</title></rect>"
        )
        whisker = [scale.x(result.simulated_gain + side * 2 * result.standard_error) for side in (-1, 1)]
        middle = top + _BAR / 2
        yield (
            f"<line x1='{whisker[0]:.1f}' y1='{middle}' x2='{whisker[1]:.1f}' y2='{middle}'"
            " stroke='#111111' stroke-width='1'/>"
        )
