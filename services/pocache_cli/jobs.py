"""``pocache jobs``: which jobs there are and where they stand, or one job and the way it went."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from pocache_cli.failure import exit_on_error
from pocache_cli.receipts import NETWORK_DIR

if TYPE_CHECKING:
    from pocache_cli.observing import Observed

STATES: Final = (
    "open", "escrowing", "queued", "locking", "generating", "lapsing", "committed", "abandoning", "settled", "refunded", "refused",
)  # fmt: skip
ENDINGS: Final = (
    "no_challenge", "agree", "confirm_generator", "confirm_prior", "acquittal", "conviction", "void", "no_opening", "equivocation", "refunded",
)  # fmt: skip
_ONE_Q16: Final = 65_536
_PREFIX_MIN: Final = 4
_TONES: Final[Mapping[str, str]] = {
    "agree": "green", "confirm_generator": "green", "confirm_prior": "red", "acquittal": "green", "conviction": "red", "no_opening": "red", "equivocation": "red",
    "void": "yellow", "refunded": "yellow", "refused": "yellow",
}  # fmt: skip


@click.command(
    epilog="""Examples:

\b
  pocache jobs                          the latest
  pocache jobs --state open             what is going on
  pocache jobs --slashed --limit 5      the latest that cost somebody its stake
  pocache jobs 36b5dd5a                 one job, step by step
  pocache jobs --json | jq -r .job_id   for scripts: one object a line
"""
)
@click.argument("job", required=False)
@click.option(
    "--state", type=click.Choice(STATES), help="Only jobs in this state; open: all that are not over."
)
@click.option("--ending", type=click.Choice(ENDINGS), help="Only jobs that ended so.")
@click.option("--audit", type=click.Choice(["lottery", "challenge"]), help="Only jobs that were audited so.")
@click.option(
    "--by", "party", metavar="NAME", help="Only jobs that NAME, or this participant id, took part in."
)
@click.option("--slashed", is_flag=True, help="Only jobs that cost somebody its stake.")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 1_000),
    help="How many, the latest first.",
)
@NETWORK_DIR
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def jobs(*, job: str | None, as_json: bool, network_dir: str, **filters: Any) -> None:
    """Show jobs, the latest first, or JOB, an id or its first digits."""
    if job is not None and (len(job) < _PREFIX_MIN or len(job) > 64 or set(job) - set("0123456789abcdef")):
        raise click.UsageError("JOB is a job id, or its first four or more hexadecimal digits in lower case")
    with exit_on_error("jobs", as_json=as_json):
        is_found = asyncio.run(_show(job, network_dir, filters, as_json=as_json))
    sys.exit(0 if is_found else 1)


async def _show(job: str | None, network_dir: str, filters: Mapping[str, Any], *, as_json: bool) -> bool:
    from pocache.readmodel import queries
    from pocache_cli.observing import observe

    async with observe(network_dir, report=make_reporter(as_json=as_json)) as network:
        with network.model.reading() as connection:
            if job is not None:
                rows = queries.find_jobs(connection, job)
            else:
                rows = queries.list_jobs(
                    connection,
                    phase=filters["state"],
                    ending=filters["ending"],
                    audit=filters["audit"],
                    slashed=filters["slashed"],
                    participant=find_participant(network, filters["party"]),
                    limit=filters["limit"],
                ).rows
            if job is not None and len(rows) == 1:
                _show_one(network, connection, rows[0], as_json=as_json)
                return True
        if as_json:
            for row in rows:
                click.echo(json.dumps(to_object(network, row)))
        elif rows:
            _print_table(network, rows)
        else:
            click.echo("no job like that in the record", err=True)
        return bool(rows) or job is None


def find_participant(network: Observed, text: str | None) -> str | None:
    """Return the participant that a name or an id stands for. Raises ConfigError where there is none."""
    from pocache.protocol.errors import ConfigError

    if text is None:
        return None
    by_name = {name: participant for participant, name in network.names.items()}
    if text in by_name:
        return by_name[text]
    if text.startswith("U") and len(text) == 56:
        return text
    raise ConfigError(f"nobody here is called {text!r}; known are: {', '.join(sorted(by_name))}")


def make_reporter(*, as_json: bool) -> Any:
    """Return what says how far the record was read, on a terminal that is not asked for JSON."""
    shows = not as_json and sys.stderr.isatty()

    def report(count: int) -> None:
        if shows and count > 1_000:
            click.echo(f"\rreading the record: {count:,} messages", nl=False, err=True)

    return report


def to_object(network: Observed, row: Any) -> dict[str, Any]:
    """Return a job as JSON-safe values."""
    return {
        "job_id": row["job_id"].hex(),
        "phase": row["phase"],
        "ending": row["ending"] or None,
        "attempt": row["attempt"],
        "user": row["user"],
        "user_name": network.names.get(row["user"]),
        "generator": row["generator"],
        "generator_name": network.names.get(row["generator"]),
        "model_id": None if row["model_id"] is None else row["model_id"].hex(),
        "audit": row["audit"] or None,
        "verdict": row["verdict"] or None,
        "peak_q16": row["peak_q16"],
        "limit_q16": row["limit_q16"],
        "prompt_count": row["prompt_count"],
        "output_count": row["output_count"],
        "pool_micro": row["pool_micro"],
        "generation_micro": row["generation_micro"],
        "verification_micro": row["verification_micro"],
        "slashed_count": row["slashed_count"],
        "log_index": row["log_index"],
        "admitted_ms": row["admitted_ms"],
        "recorded_ms": row["recorded_ms"],
        "settled_ms": row["settled_ms"],
    }


def show_time(ms: int | None) -> str:
    """Return a time of day, in UTC."""
    return "" if not ms else datetime.fromtimestamp(ms / 1_000, tz=UTC).strftime("%H:%M:%S")


def make_console() -> Any:
    """Return a console for tables: as wide as the terminal, or wide enough where there is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=140)


def _print_table(network: Observed, rows: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for heading in ("job", "state", "generator", "audit"):
        table.add_column(heading, no_wrap=True)
    for heading in ("peak / limit", "tokens", "pool", "slashed", "since"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        state = row["ending"] or row["phase"]
        peak = ""
        if row["peak_q16"] is not None:
            peak = f"{row['peak_q16'] / _ONE_Q16:.1f} / {row['limit_q16'] / _ONE_Q16:.1f}"
        table.add_row(
            row["job_id"].hex()[:12],
            Text(state, style=_TONES.get(state, "")),
            Text(network.name(row["generator"])),
            row["audit"],
            peak,
            str(row["output_count"] or ""),
            f"{row['pool_micro'] / 1e6:.6f}" if row["pool_micro"] else "",
            Text(str(row["slashed_count"] or ""), style="red"),
            show_time(row["admitted_ms"]),
        )
    make_console().print(table)


def _show_one(network: Observed, connection: Any, row: Any, *, as_json: bool) -> None:
    from pocache.readmodel import queries

    events = queries.list_events(connection, row["job_id"])
    payouts = queries.list_payouts(connection, row["number"])
    parts = queries.list_parts(connection, row["number"])
    if as_json:
        found = to_object(network, row)
        found["events"] = [
            {name: one[name] for name in ("stored_ms", "phase", "attempt", "code", "detail")}
            for one in events
        ]
        found["parts"] = [{name: one[name] for name in ("participant", "role", "stage")} for one in parts]
        found["payouts"] = [
            {name: one[name] for name in ("account", "held_micro", "amount_micro", "is_slashed")}
            for one in payouts
        ]
        click.echo(json.dumps(found))
        return
    click.echo(f"job {row['job_id'].hex()}: {row['ending'] or row['phase']}")
    for one in parts:
        stage = f" of stage {one['stage']}" if one["stage"] else ""
        click.echo(f"  {one['role'] + stage:20} {network.name(one['participant'])}")
    for one in events:
        about = " ".join(part for part in (one["code"], one["detail"]) if part)
        click.echo(f"  {show_time(one['stored_ms'])}  {one['phase']:12} {about}")
    for one in payouts:
        net = one["amount_micro"] - one["held_micro"]
        slashed = "  slashed" if one["is_slashed"] else ""
        click.echo(
            f"  {network.name(one['account']):24} {one['held_micro']:>16,} in {one['amount_micro']:>16,} out {net:>+16,}{slashed}"
        )
