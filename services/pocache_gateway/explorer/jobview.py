"""A job as its page shows it: the way it went, what was measured, who was drawn, who was paid.

Everything is computed from the job's own envelopes. Views of jobs that are over are kept, the latest used first out last;
texts are in a view and go to a page only where its reader may see them.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.beacon import compute_round_at, compute_round_time_ms
from pocache.protocol.encoding import RowKind
from pocache.protocol.errors import PocacheError
from pocache.readmodel import queries
from pocache.readmodel.dossiers import load_case
from pocache.readmodel.matching import Cell, Draw, Heatmap, Margin, Measured, list_running_sums
from pocache.readmodel.model import ReadModel
from pocache.receipt.case import Case
from pocache.receipt.explain import explain_job
from pocache_gateway.explorer.charts import Flow, draw_flow

VIEWS_KEPT: Final = 128
TOKENS_SHOWN_MAX: Final = 4_096
_KIND_NAMES: Final[Mapping[RowKind, str]] = {
    RowKind.K: "K",
    RowKind.V: "V",
    RowKind.HIDDEN: "hidden state",
    RowKind.SCORES: "scores",
}
_HEAT_BELOW: Final = 6
"""Steps of the scale below the limit; above it are three more."""

MILESTONES: Final[Mapping[str, tuple[str, str]]] = {
    "job-admitted.v1": ("admitted", "The router took the job; its id is the hash of the submission."),
    "commitment-recorded.v1": (
        "committed",
        "One root over the KV cache, in the log before its round exists.",
    ),
    "commitment-rebound.v1": ("bound anew", "Its round came too early: a later one decides."),
    "audit-opened.v1": ("audit opened", "The commitment is to be verified."),
    "audit-deepened.v1": ("deepened", "The user challenged during the audit: it goes on at full depth."),
    "stage-bound.v1": ("next stage", "A round to come draws the next verifier."),
    "verifier-drawn.v1": ("verifier drawn", "By stake, from a round that nobody could foresee."),
    "stage-sealed.v1": ("claims sealed", "Everybody has committed; positions may be drawn now."),
    "openings-closed.v1": ("openings in", "The drawn positions were opened, or their time is over."),
    "outcome.v1": ("decided", "A pure function of the record says how it ends."),
    "window-closed.v1": ("window closed", "Nobody challenged, and the lottery passed it by."),
    "equivocation.v1": ("two commitments", "The generator signed two results that contradict each other."),
    "attempt-charged.v1": ("attempt charged", "An attempt ended without a commitment."),
    "job-abandoned.v1": ("abandoned", "The router gave the job up: everything goes back."),
    "payout-settled.v1": ("settled", "The pool is empty."),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened, when, and in which round of the beacon."""

    at_ms: int
    since_ms: int
    round_number: int
    title: str
    detail: str
    is_phase: bool


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One cell of a heatmap as it is drawn."""

    tone: str
    is_over: bool
    text: str


@dataclass(frozen=True, slots=True)
class HeatRow:
    """One row of a heatmap: a layer's K or V, the hidden state, the scores."""

    layer: str
    kind: str
    span: int
    """How many rows share this row's layer heading; 0 where an earlier one has it."""
    cells: tuple[HeatCell | None, ...]


@dataclass(frozen=True, slots=True)
class HeatGrid:
    """A comparison with its grid."""

    heat: Heatmap
    rows: tuple[HeatRow, ...]
    columns: tuple[tuple[int, str], ...]
    """Position, and whether it lies in the prompt or the output."""
    over_count: int
    is_stated: bool


@dataclass(frozen=True, slots=True)
class SortitionRow:
    """One candidate of a draw as it is shown."""

    participant: str
    stake_micro: int
    share: float
    low: int | None
    high: int | None
    place: int | None
    is_drawn: bool
    has_ticket: bool
    why_not: str


@dataclass(frozen=True, slots=True)
class Sortition:
    """A draw with its table."""

    draw: Draw
    rows: tuple[SortitionRow, ...]
    ticket_share: float


@dataclass(frozen=True)
class JobView:
    """All that a job's page needs beside its row."""

    moments: tuple[Moment, ...] = ()
    case: Case | None = None
    problem: str = ""
    sentences: tuple[str, ...] = ()
    grids: tuple[HeatGrid, ...] = ()
    margins: tuple[tuple[Margin, str, int], ...] = ()
    """Margin, the token's probability in words, and its bar of 0 … 100."""
    sortitions: tuple[Sortition, ...] = ()
    flow: Flow | None = None
    payouts: tuple[Mapping[str, Any], ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class JobViews:
    """Makes views, and keeps those of jobs that are over."""

    def __init__(
        self,
        model: ReadModel,
        names: Mapping[str, str],
        decode: Callable[[bytes, tuple[int, ...]], str | None],
    ) -> None:
        self._model, self._names, self._decode = model, names, decode
        self._kept: OrderedDict[tuple[bytes, int], JobView] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, connection: sa.Connection, row: queries.Row) -> JobView:
        """Return the view of a job; of one that is over, the one that was made before."""
        key = (row["job_id"], row["changed"])
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
        view = self._make(connection, row)
        if row["ending"]:
            with self._lock:
                self._kept[key] = view
                while len(self._kept) > VIEWS_KEPT:
                    self._kept.popitem(last=False)
        return view

    def _make(self, connection: sa.Connection, row: queries.Row) -> JobView:
        payouts = tuple(queries.list_payouts(connection, row["number"]))
        shown: dict[str, Any] = {
            "moments": self._list_moments(connection, row),
            "payouts": payouts,
            "flow": draw_flow(
                [
                    (one["account"], one["held_micro"], one["amount_micro"], one["is_slashed"])
                    for one in payouts
                ]
            ),
        }
        try:
            case = load_case(self._model, connection, row["job_id"])
        except PocacheError as error:
            return JobView(problem=str(error), **shown)
        problems = []
        measured = Measured(case)
        parts: dict[str, Callable[[], Any]] = {
            "sentences": lambda: tuple(explain_job(case, row["ending"], self._names)),
            "grids": lambda: tuple(make_grid(one) for one in measured.heatmaps),
            "margins": lambda: tuple(_describe_margin(one) for one in measured.margins),
            "sortitions": lambda: tuple(_tabulate(one) for one in measured.draws),
        }
        for name, make in parts.items():
            try:
                shown[name] = make()
            except PocacheError as error:
                problems.append(str(error))
        texts, tokens = self._read_texts(case)
        return JobView(
            case=case, problem="; ".join(dict.fromkeys(problems)), texts=texts, tokens=tokens, **shown
        )

    def _read_texts(self, case: Case) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
        tokens = {"prompt": case.prompt, "output": case.output if case.is_committed else ()}
        tokens = {name: one[:TOKENS_SHOWN_MAX] for name, one in tokens.items()}
        texts = {name: self._decode(case.model.model_id, one) for name, one in tokens.items() if one}
        return {name: text for name, text in texts.items() if text is not None}, tokens

    def _list_moments(self, connection: sa.Connection, row: queries.Row) -> tuple[Moment, ...]:
        chain = self._model.genesis.beacon_chain
        found: list[tuple[int, int, str, str, bool]] = []
        for event in queries.list_events(connection, row["job_id"]):
            detail = " ".join(part for part in (event["code"], event["detail"]) if part)
            found.append((event["sequence"], event["stored_ms"], event["phase"], detail, True))
        for message in queries.list_messages(connection, row["job_id"]):
            if message["kind"] in MILESTONES:
                title, detail = MILESTONES[message["kind"]]
                found.append((message["sequence"], message["stored_ms"], title, detail, False))
        found.sort()
        first_ms = found[0][1] if found else 0
        return tuple(
            Moment(at_ms, at_ms - first_ms, compute_round_at(chain, at_ms), title, detail, is_phase)
            for _, at_ms, title, detail, is_phase in found
        )


def make_grid(heat: Heatmap) -> HeatGrid:
    """Return a comparison as a grid: layers down, positions across."""
    by_place = {(one.kind, one.layer, one.position): one for one in heat.cells}
    keys: list[tuple[RowKind, int]] = []
    for layer in range(heat.layer_count):
        keys += [(RowKind.K, layer), (RowKind.V, layer)]
    keys += [(RowKind.HIDDEN, 0), (RowKind.SCORES, 0)]
    seen = {(one.kind, one.layer) for one in heat.cells}
    rows = []
    for kind, layer in keys:
        if (kind, layer) not in seen:
            continue
        cells = tuple(
            None if (cell := by_place.get((kind, layer, position))) is None else _draw_cell(heat, cell)
            for position in heat.positions
        )
        is_layer = kind in (RowKind.K, RowKind.V)
        span = 1 if not is_layer else (2 if kind is RowKind.K else 0)
        rows.append(HeatRow(str(layer) if is_layer else _KIND_NAMES[kind], kind.name, span, cells))
    columns = tuple((one, "prompt" if one < heat.prompt_count - 1 else "output") for one in heat.positions)
    return HeatGrid(
        heat=heat,
        rows=tuple(rows),
        columns=columns,
        over_count=sum(one.standard_q16 > heat.peak_mismatch_min_q16 for one in heat.cells),
        is_stated=heat.verdict == heat.stated_verdict,
    )


def compute_tone(standard_q16: int, limit_q16: int) -> str:
    """Return the step of the scale, h0 … h5 up to the limit, h6 to twice, h7 to four times, h8 beyond."""
    if standard_q16 > limit_q16:
        factor = standard_q16 / limit_q16 if limit_q16 > 0 else math.inf
        return "h6" if factor <= 2 else "h7" if factor <= 4 else "h8"
    if standard_q16 <= 0 or limit_q16 <= 0:
        return "h0"
    return f"h{min(_HEAT_BELOW - 1, standard_q16 * _HEAT_BELOW // limit_q16)}"


def _draw_cell(heat: Heatmap, cell: Cell) -> HeatCell:
    is_over = cell.standard_q16 > heat.peak_mismatch_min_q16
    where = (
        f"layer {cell.layer}, {_KIND_NAMES[cell.kind]}"
        if cell.kind in (RowKind.K, RowKind.V)
        else _KIND_NAMES[cell.kind]
    )
    distance = (
        "equal bit for bit" if cell.log2_q16 <= -40 * 65_536 else f"distance 2^{cell.log2_q16 / 65_536:.1f}"
    )
    text = (
        f"position {cell.position}, {where}: {distance}, {cell.standard_q16 / 65_536:.2f} spreads above the honest centre,"
        f" limit {heat.peak_mismatch_min_q16 / 65_536:.2f}{': over' if is_over else ''}"
    )
    return HeatCell(compute_tone(cell.standard_q16, heat.peak_mismatch_min_q16), is_over, text)


def _describe_margin(one: Margin) -> tuple[Margin, str, int]:
    share = math.exp(min(0.0, max(-700.0, one.logit - one.logsumexp)))
    return one, f"{100 * share:.2f} %", round(100 * share)


def _tabulate(draw: Draw) -> Sortition:
    sums = {one.participant: (low, high) for one, low, high in list_running_sums(draw.candidates)}
    rows = []
    for one in draw.candidates:
        low, high = sums.get(one.participant, (None, None))
        rows.append(
            SortitionRow(
                participant=one.participant,
                stake_micro=one.stake_micro,
                share=one.weight / draw.stake_micro if low is not None and draw.stake_micro else 0.0,
                low=low,
                high=high,
                place=one.place,
                is_drawn=one.participant in draw.drawn,
                has_ticket=draw.ticket is not None
                and low is not None
                and high is not None
                and low <= draw.ticket < high,
                why_not=one.why_not,
            )
        )
    share = draw.ticket / draw.stake_micro if draw.ticket is not None and draw.stake_micro else 0.0
    return Sortition(draw, tuple(rows), share)


def list_rail(row: queries.Row) -> Sequence[tuple[str, str]]:
    """Return the steps of a job's way with their state: done, here, bad, or open."""
    if row["phase"] == "refused":
        return (("submitted", "done"), ("refused", "bad"))
    is_over = bool(row["ending"])
    is_committed = row["recorded_ms"] is not None
    is_bad = row["slashed_count"] > 0
    steps = [("submitted", True), ("generating", row["generator"] is not None), ("committed", is_committed)]
    steps.append(("audited" if row["audit"] or not is_over else "not audited", bool(row["audit"]) or is_over))
    steps.append(("settled" if row["phase"] != "refunded" else "refunded", is_over))
    done = sum(1 for _, is_done in steps if is_done)
    found = []
    for index, (name, is_done) in enumerate(steps):
        state = "done" if is_done else "here" if index == done else "open"
        if is_done and name == "audited" and is_bad:
            state = "bad"
        found.append((name, state))
    return found


def get_due_ms(model: ReadModel, number: int) -> int:
    """Return when a round is due."""
    return compute_round_time_ms(model.genesis.beacon_chain, number)
