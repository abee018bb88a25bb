"""The geometry of the drawings: pure functions from numbers to coordinates; the templates write them as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FLOW_WIDTH: Final = 720.0
_FLOW_NODE_WIDTH: Final = 12.0
_FLOW_GAP: Final = 34.0
_FLOW_HEIGHT: Final = 150.0
_FLOW_TOP: Final = 26.0
_FLOW_SIDE: Final = 180.0
BARS_HEIGHT: Final = 100.0
LINE_WIDTH, LINE_HEIGHT = 600.0, 120.0
_LINE_MARGIN: Final = 10.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, in a box of :data:`BARS_HEIGHT` units."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class FlowBand:
    """One account's band between its node and the pool."""

    account: str
    amount_micro: int
    y: float
    height: float
    label_y: float
    path: str
    tone: str


@dataclass(frozen=True, slots=True)
class Flow:
    """A pool's payments: who put in on the left, who took out on the right."""

    width: float
    height: float
    pool_y: float
    pool_height: float
    pool_x: float
    left_x: float
    right_x: float
    node_width: float
    sources: tuple[FlowBand, ...]
    sinks: tuple[FlowBand, ...]


def draw_bars(values: Sequence[tuple[str, int]], top: int) -> list[Bar]:
    """Return bars of equal width, ``top`` being the full height."""
    return [
        Bar(
            x=index * 10 + 1,
            y=BARS_HEIGHT - (height := BARS_HEIGHT * value / top if top else 0.0),
            width=8,
            height=height,
            label=label,
        )
        for index, (label, value) in enumerate(values)
    ]


def draw_flow(payouts: Sequence[tuple[str, int, int, bool]]) -> Flow | None:
    """Return the bands of (account, put in, taken out, slashed), their heights in proportion; None of an empty pool."""
    held = [(account, put, _tone(put, taken, slashed)) for account, put, taken, slashed in payouts if put]
    paid = [(account, taken, _tone(put, taken, slashed)) for account, put, taken, slashed in payouts if taken]
    total = max(sum(one[1] for one in held), sum(one[1] for one in paid))
    if not total:
        return None
    count = max(len(held), len(paid))
    height = _FLOW_TOP + _FLOW_HEIGHT + _FLOW_GAP * count
    pool_y = (height - _FLOW_HEIGHT) / 2 + _FLOW_TOP / 2
    left_x, right_x = _FLOW_SIDE, FLOW_WIDTH - _FLOW_SIDE - _FLOW_NODE_WIDTH
    pool_x = (FLOW_WIDTH - _FLOW_NODE_WIDTH) / 2
    return Flow(
        width=FLOW_WIDTH,
        height=round(height, 1),
        pool_y=round(pool_y, 1),
        pool_height=_FLOW_HEIGHT,
        pool_x=pool_x,
        left_x=left_x,
        right_x=right_x,
        node_width=_FLOW_NODE_WIDTH,
        sources=_stack(held, total, height, pool_y, left_x + _FLOW_NODE_WIDTH, pool_x),
        sinks=_stack(paid, total, height, pool_y, right_x, pool_x + _FLOW_NODE_WIDTH),
    )


def _tone(put: int, taken: int, slashed: bool) -> str:
    if slashed:
        return "bad"
    return "good" if taken > put else "calm"


def _stack(
    amounts: Sequence[tuple[str, int, str]],
    total: int,
    height: float,
    pool_y: float,
    outer_x: float,
    pool_x: float,
) -> tuple[FlowBand, ...]:
    sizes = [max(1.5, _FLOW_HEIGHT * amount / total) for _, amount, _ in amounts]
    used = sum(sizes) + _FLOW_GAP * max(0, len(sizes) - 1)
    y, inner = max(_FLOW_TOP, (height - used) / 2 + _FLOW_TOP / 2), pool_y
    middle = (outer_x + pool_x) / 2
    bands = []
    for (account, amount, tone), size in zip(amounts, sizes, strict=True):
        path = (
            f"M{outer_x:.1f} {y:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {inner:.1f} {pool_x:.1f} {inner:.1f}"
            f"V{inner + size:.1f}C{middle:.1f} {inner + size:.1f} {middle:.1f} {y + size:.1f} {outer_x:.1f} {y + size:.1f}Z"
        )
        bands.append(
            FlowBand(account, amount, round(y, 1), round(size, 1), round(y + size / 2, 1), path, tone)
        )
        y += size + _FLOW_GAP
        inner += size
    return tuple(bands)


def draw_steps(points: Sequence[tuple[int, int]]) -> str:
    """Return a step line through (time, value), from the least value near the bottom to the largest near the top."""
    if len(points) < 2:
        return ""
    first, last = points[0][0], points[-1][0]
    low, high = min(value for _, value in points), max(value for _, value in points)
    parts = []
    y_before = 0.0
    for index, (at, value) in enumerate(points):
        x = LINE_WIDTH * (at - first) / max(1, last - first)
        share = (value - low) / (high - low) if high > low else 0.5
        y = LINE_HEIGHT - _LINE_MARGIN - (LINE_HEIGHT - 2 * _LINE_MARGIN) * share
        parts.append(f"M{x:.1f} {y:.1f}" if index == 0 else f"L{x:.1f} {y_before:.1f}L{x:.1f} {y:.1f}")
        y_before = y
    return "".join(parts)
