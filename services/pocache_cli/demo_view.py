"""The demo on a terminal: live counts while it runs, a table of every job at the end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pocache.bus.nats_bus import NatsBus
from pocache.bus.port import CoreMessage
from pocache.protocol.errors import PocacheError
from pocache.runtime.network import Genesis
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.model import WireModel
from pocache_cli.pictures import draw_gain, draw_phases
from pocache_cli.scenario import JobLine, Report
from pocache_cli.submit import CONTROLS

EVENTS_SHOWN: Final = 10
TEXTS_SHOWN: Final = 4
REFRESH_PER_S: Final = 4
_WATCHED: Final = (
    t.BEACON_ROUND,
    t.JOB_EVENT,
    t.AUDIT_OPENED,
    t.EQUIVOCATION,
    t.OUTCOME_DECIDED,
    t.PAYOUT_SETTLED,
)


class DemoView:
    """What is seen while the demo runs; on something that is no terminal, plain lines on standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._phases: dict[bytes, str] = {}
        self._earned: Counter[str] = Counter()
        self._round = 0
        self._started_s = time.monotonic()
        self.names: Mapping[str, str] = {}

    def say(self, text: str) -> None:
        """Add a line."""
        elapsed_s = time.monotonic() - self._started_s
        if self._console.is_terminal:
            self._events.append(f"{elapsed_s:5.1f}s  {text}")
        else:
            self._console.print(f"{elapsed_s:6.1f}s  {text}", highlight=False, markup=False, soft_wrap=True)

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Draw while the context lasts, where there is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._draw, console=self._console, refresh_per_second=REFRESH_PER_S):
            yield

    @asynccontextmanager
    async def watching(self, operator: NatsBus, genesis: Genesis) -> AsyncIterator[None]:
        """Follow the record while the context lasts."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            tasks = []
            for topic in _WATCHED:
                messages = await stack.enter_async_context(operator.subscribe_core(topic.filter()))
                tasks.append(group.create_task(self._follow(messages, topic, genesis)))
            yield
            for task in tasks:
                task.cancel()

    async def _follow(
        self, messages: AsyncIterator[CoreMessage], topic: t.Topic[Any], genesis: Genesis
    ) -> None:
        async for message in messages:
            try:
                self._note(open_envelope(message.data, genesis.network_id, topic.model).body)
            except PocacheError as error:
                self.say(f"{message.subject}: {error}")

    def _note(self, body: WireModel) -> None:
        match body:
            case m.BeaconRoundV1():
                self._round = body.round_number
            case m.JobEventV1():
                self._phases[body.job_id] = body.phase
                if body.phase in {"refused", "lapsing", "abandoning"}:
                    self.say(f"job {body.job_id.hex()[:8]} {body.phase}: {body.code} {body.detail}")
            case m.AuditOpenedV1():
                depth = "full depth" if body.corner.full_depth else f"layers 0-{body.corner.layer_max}"
                self.say(
                    f"job {body.job_id.hex()[:8]} audited by {body.reason}, round {body.round_number}, {depth}"
                )
            case m.EquivocationV1():
                self.say(f"job {body.job_id.hex()[:8]}: {self._name(body.generator)} signed two commitments")
            case m.OutcomeV1():
                self.say(f"job {body.job_id.hex()[:8]} decided: {body.case} at stage {body.stage}")
            case m.PayoutSettledV1():
                for line in body.lines:
                    self._earned[self._name(line.account)] += line.amount_micro - line.held_micro
                if body.slashed:
                    self.say(
                        f"job {body.job_id.hex()[:8]} slashed: {', '.join(map(self._name, body.slashed))}"
                    )

    def _name(self, account: str) -> str:
        return self.names.get(account, account[:12])

    def _draw(self) -> Group:
        counts = Counter(self._phases.values())
        money = Table.grid(padding=(0, 2))
        for name, earned in sorted(self._earned.items(), key=lambda item: -item[1]):
            money.add_row(name, draw_gain(earned))
        elapsed_s = time.monotonic() - self._started_s
        return Group(
            Panel(
                draw_phases(counts),
                title=f"jobs · beacon round {self._round} · {elapsed_s:.0f} s",
                title_align="left",
            ),
            Panel("\n".join(self._events) or "…", title="what happened", title_align="left"),
            Panel(money, title="earned and lost", title_align="left"),
        )


def print_report(console: Console, report: Report, seconds: float) -> None:
    """Print a row per job, then what everybody earned or lost, then the sums."""
    console.print(_draw_jobs(report))
    console.print(
        "distance: how many doublings the worst row lies above the honest centre; at most the limit is a match\n",
        style="dim",
    )
    console.print(_draw_money(report))
    shown = _choose_texts(report)
    if shown:
        console.print("What honest generators wrote\n")
    for line in shown:
        console.print(
            Text(line.prompt, style="dim"),
            Text(line.text.translate(CONTROLS)),
            sep="",
            end="\n\n",
            highlight=False,
        )
    for name, value in report.to_dict().items():
        console.print(f"{name:20} {value}", highlight=False)
    console.print(f"{'seconds':20} {seconds:.0f}", highlight=False)
    for problem in report.problems:
        console.print(Text(f"problem: {problem}", style="bold red"))


def _draw_jobs(report: Report) -> Table:
    table = Table(title="Every job, from the record", title_justify="left", box=SIMPLE_HEAD)
    for heading, is_number in (
        ("job", False),
        ("generator", False),
        ("cheat", False),
        ("audit", False),
        ("distance", True),
        ("limit", True),
        ("outcome", False),
        ("generator gets", True),
        ("slashed", False),
    ):
        table.add_column(
            heading, justify="right" if is_number else "left", no_wrap=heading != "slashed", overflow="fold"
        )
    for line in report.lines:
        earned = dict(line.paid).get(line.generator)
        table.add_row(
            line.job_id.hex()[:8],
            line.generator,
            line.cheat,
            line.audit,
            "" if line.distance_log2 is None else f"{line.distance_log2:.1f}",
            "" if line.threshold_log2 is None else f"{line.threshold_log2:.1f}",
            line.case or line.phase,
            "" if earned is None else draw_gain(earned),
            ", ".join(line.slashed),
        )
    return table


def _choose_texts(report: Report) -> list[JobLine]:
    """Return the first honest outputs, each of another prompt."""
    chosen: dict[str, JobLine] = {}
    for line in report.lines:
        if line.text and not line.cheat and len(chosen) < TEXTS_SHOWN:
            chosen.setdefault(line.prompt, line)
    return list(chosen.values())


def _draw_money(report: Report) -> Table:
    earned: Counter[str] = Counter()
    for line in report.lines:
        for name, amount_micro in line.paid:
            earned[name] += amount_micro
    table = Table(title="Earned and lost", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("who")
    table.add_column("units", justify="right")
    for name, amount_micro in sorted(earned.items(), key=lambda item: -item[1]):
        table.add_row(name, draw_gain(amount_micro))
    return table
