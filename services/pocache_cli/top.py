"""``pocache top``: the network as it runs, drawn again as it changes; with ``--json`` one object for each drawing."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from pocache_cli.failure import exit_on_error
from pocache_cli.jobs import make_reporter, show_time
from pocache_cli.pictures import PHASES, draw_counts, draw_gain, draw_phases
from pocache_cli.receipts import NETWORK_DIR

if TYPE_CHECKING:
    from pocache.readmodel.queries import Overview
    from pocache_cli.observing import Observed

RATE_WINDOW_S: Final = 30.0
_ENDINGS: Final = (
    "no_challenge",
    "agree",
    "confirm_generator",
    "confirm_prior",
    "acquittal",
    "conviction",
    "no_opening",
    "equivocation",
    "void",
)
_WORKERS_SHOWN: Final = 12


@click.command(
    epilog="""Examples:

\b
  pocache top                      until Ctrl-C
  pocache top --once               one picture
  pocache top --json --every 5     one object every five seconds, for a script
"""
)
@click.option(
    "--every",
    "pace_s",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.1, 3_600),
    help="Seconds from one picture to the next.",
)
@click.option("--once", is_flag=True, help="Show one picture and end.")
@NETWORK_DIR
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each picture.")
def top(*, pace_s: float, once: bool, network_dir: str, as_json: bool) -> None:
    """Watch the network: jobs by state, workers, verifiers, rounds, rates."""
    with exit_on_error("top", as_json=as_json), suppress(KeyboardInterrupt):
        asyncio.run(_watch(network_dir, pace_s, once=once, as_json=as_json))


async def _watch(network_dir: str, pace_s: float, *, once: bool, as_json: bool) -> None:
    from pocache.readmodel.follow import catch_up
    from pocache_cli.observing import observe

    async with observe(network_dir, report=make_reporter(as_json=as_json)) as network:
        rates = Rates()
        is_live = not once and not as_json and sys.stdout.isatty()
        with _open_screen() if is_live else nullcontext() as screen:
            while True:
                picture = await asyncio.to_thread(take_picture, network, rates)
                if as_json:
                    click.echo(json.dumps(picture))
                    sys.stdout.flush()
                elif screen is not None:
                    screen.update(draw(picture), refresh=True)
                else:
                    from pocache_cli.jobs import make_console

                    make_console().print(draw(picture))
                if once:
                    return
                await asyncio.sleep(pace_s)  # paces the pictures
                await catch_up(network.model, network.bus)


class Rates:
    """What came and went in the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int, int]] = deque()

    def add(self, now_s: float, jobs: int, settled: int, tokens: int) -> dict[str, float]:
        """Take the sums of a moment, and return what was added a second since the window's begin."""
        self._seen.append((now_s, jobs, settled, tokens))
        while len(self._seen) > 1 and self._seen[0][0] < now_s - RATE_WINDOW_S:
            self._seen.popleft()
        first = self._seen[0]
        passed_s = now_s - first[0]
        names = ("jobs_per_s", "settled_per_s", "tokens_per_s")
        deltas = (jobs - first[1], settled - first[2], tokens - first[3])
        return {
            name: round(delta / passed_s, 3) if passed_s > 0 else 0.0
            for name, delta in zip(names, deltas, strict=True)
        }


def take_picture(network: Observed, rates: Rates) -> dict[str, Any]:
    """Return the network in numbers, JSON-safe."""
    from pocache.protocol.beacon import compute_round_at
    from pocache.readmodel import queries

    now_ms = time.time_ns() // 1_000_000
    with network.model.reading() as connection:
        overview = queries.read_overview(connection, now_ms=now_ms)
        people = queries.list_participants(connection, "worker")
        ejected = {row["participant"] for row in queries.list_ejections(connection)}
    sums = overview.sums
    due = compute_round_at(network.model.genesis.beacon_chain, now_ms)
    return {
        "at_ms": now_ms,
        "network": network.model.genesis.name,
        "jobs": sums.get("jobs", 0),
        "open": overview.open_count,
        "phases": {name: overview.phases.get(name, 0) for name in PHASES},
        "endings": {name: overview.endings.get(name, 0) for name in _ENDINGS},
        "audits": overview.audited_count,
        "ejections": sums.get("ejections", 0),
        "commitments": overview.log_size,
        "round": overview.round_number,
        "rounds_behind": max(0, due - overview.round_number),
        "rates": rates.add(
            time.monotonic(), sums.get("jobs", 0), _count_over(overview), sums.get("output_count", 0)
        ),
        "verification_share": _divide(sums.get("verification_micro", 0), sums.get("generation_micro", 0)),
        "workers": [
            {
                "name": network.name(row["participant"]),
                "participant": row["participant"],
                "stake_micro": row["stake_micro"],
                "locked_micro": max(0, row["stake_micro"] - row["free_micro"]),
                "generated": row["generated"],
                "verified": row["verified"],
                "slashed": row["slashed"],
                "is_ejected": row["participant"] in ejected,
                "net_micro": row["net_micro"],
            }
            for row in people
        ],
        "latest": [
            {
                "job_id": row["job_id"].hex(),
                "state": row["ending"] or row["phase"],
                "generator": network.name(row["generator"]),
                "admitted_ms": row["admitted_ms"],
            }
            for row in overview.latest[:8]
        ],
    }


def _count_over(overview: Overview) -> int:
    return sum(overview.endings.values())


def _divide(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _open_screen() -> Any:
    from rich.live import Live

    return Live(screen=True, auto_refresh=False)


def draw(picture: dict[str, Any]) -> Any:
    """Return a picture for a terminal."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    rates = picture["rates"]
    behind = picture["rounds_behind"]
    title = f"{picture['network']} · {show_time(picture['at_ms'])} UTC · round {picture['round']:,}" + (
        f" ({behind} behind)" if behind > 1 else ""
    )
    share = picture["verification_share"]
    line = Text.assemble(
        (f"{rates['jobs_per_s']:.2f}", "bold"), " jobs/s in  ",
        (f"{rates['settled_per_s']:.2f}", "bold"), " settled/s  ",
        (f"{rates['tokens_per_s']:.1f}", "bold"), " tokens/s  ",
        (f"{picture['audits']:,}", "bold"), f" audits of {picture['commitments']:,}  verification ",
        (f"{100 * share:.1f} %" if share is not None else "–", "bold"), " of generation",
    )  # fmt: skip
    bad = dict.fromkeys(("confirm_prior", "conviction", "no_opening", "equivocation"), "red")
    people = Table.grid(padding=(0, 2))
    people.add_row(
        *(
            Text(name, style="dim")
            for name in ("worker", "stake", "locked", "generated", "verified", "net", "slashed", "")
        )
    )
    for one in picture["workers"][:_WORKERS_SHOWN]:
        people.add_row(
            Text(one["name"]),
            f"{one['stake_micro'] / 1e6:,.2f}",
            f"{one['locked_micro'] / 1e6:,.2f}",
            f"{one['generated']:,}",
            f"{one['verified']:,}",
            draw_gain(one["net_micro"], 4),
            Text(str(one["slashed"] or ""), style="red"),
            Text("ejected" if one["is_ejected"] else "", style="red"),
        )
    latest = Table.grid(padding=(0, 2))
    for one in picture["latest"]:
        latest.add_row(
            show_time(one["admitted_ms"]), one["job_id"][:12], one["state"], Text(one["generator"])
        )
    return Group(
        Panel(Group(draw_phases(picture["phases"]), Text(), line), title=title, title_align="left"),
        Panel(draw_counts(picture["endings"], bad), title="how jobs ended", title_align="left"),
        Panel(people, title="workers and verifiers", title_align="left"),
        Panel(latest, title="latest jobs", title_align="left"),
    )
