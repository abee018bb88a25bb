"""``pocache workers``: who generates and verifies, with what stake, how often, who was slashed for what, and who ejected."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from pocache_cli.failure import exit_on_error
from pocache_cli.jobs import find_participant, make_console, make_reporter, show_time, to_object
from pocache_cli.receipts import NETWORK_DIR

if TYPE_CHECKING:
    from pocache_cli.observing import Observed

_HISTORY: Final = 15
_EJECTION_FIELDS: Final = (
    "test",
    "job_count",
    "sum_q16",
    "token_sum_q16",
    "bond_micro",
    "taken_micro",
    "open_micro",
    "stored_ms",
)
_FIELDS: Final = (
    "participant", "is_verifier", "stake_micro", "free_micro", "generated", "verified", "slashed", "net_micro", "lost_micro", "seen_ms",
)  # fmt: skip


@click.command(
    epilog="""Examples:

\b
  pocache workers                     everybody who has staked, generated or may be drawn
  pocache workers worker-int4         one of them: its latest jobs, and why it was slashed
  pocache workers --json | jq -c 'select(.slashed > 0)'
  pocache workers --json | jq -c 'select(.ejected != [])'
"""
)
@click.argument("name", required=False)
@NETWORK_DIR
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def workers(*, name: str | None, network_dir: str, as_json: bool) -> None:
    """Show workers and verifiers, or NAME, a name or a participant id, with its history."""
    with exit_on_error("workers", as_json=as_json):
        is_found = asyncio.run(_show(name, network_dir, as_json=as_json))
    sys.exit(0 if is_found else 1)


async def _show(name: str | None, network_dir: str, *, as_json: bool) -> bool:
    from pocache.readmodel import queries
    from pocache_cli.observing import observe

    async with observe(network_dir, report=make_reporter(as_json=as_json)) as network:
        participant = find_participant(network, name)
        with network.model.reading() as connection:
            if participant is not None:
                return _show_one(network, connection, participant, as_json=as_json)
            rows = queries.list_participants(connection, "worker")
            ejected = _group_ejections(network, queries.list_ejections(connection))
        if as_json:
            for row in rows:
                found = _to_object(network, row)
                click.echo(json.dumps({**found, "ejected": ejected.get(row["participant"], [])}))
        elif rows:
            _print_table(network, rows, ejected)
        else:
            click.echo("no worker is in the record yet", err=True)
        return True


def _to_object(network: Observed, row: Any) -> dict[str, Any]:
    return {"name": network.names.get(row["participant"]), **{field: row[field] for field in _FIELDS}}


def _group_ejections(network: Observed, rows: Any) -> dict[str, list[dict[str, Any]]]:
    """Return by participant what it was ejected from, and what that has cost."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        model = network.model.models.get(row["model_id"])
        one = {
            "model": None if model is None else model.entry.name,
            "model_id": row["model_id"].hex(),
            "job_id": row["job_id"].hex(),
            **{name: row[name] for name in _EJECTION_FIELDS},
        }
        found.setdefault(row["participant"], []).append(one)
    return found


def _print_table(network: Observed, rows: Any, ejected: dict[str, list[dict[str, Any]]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    table.add_column("worker", no_wrap=True)
    table.add_column("part", no_wrap=True)
    for heading in (
        "stake",
        "free",
        "generated",
        "verified",
        "earned, net",
        "slashed",
        "ejected",
        "heard of",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        part = [
            word
            for word, is_so in (("generates", row["generated"]), ("verifies", row["is_verifier"]))
            if is_so
        ]
        table.add_row(
            Text(network.name(row["participant"])),
            ", ".join(part),
            f"{row['stake_micro'] / 1e6:,.2f}",
            f"{row['free_micro'] / 1e6:,.2f}",
            f"{row['generated']:,}",
            f"{row['verified']:,}",
            Text(f"{row['net_micro'] / 1e6:+.6f}", style="red" if row["net_micro"] < 0 else "green"),
            Text(str(row["slashed"] or ""), style="red"),
            Text(
                ", ".join(one["model"] or one["model_id"][:8] for one in ejected.get(row["participant"], [])),
                style="red",
            ),
            show_time(row["seen_ms"]),
        )
    make_console().print(table)


def _show_one(network: Observed, connection: Any, participant: str, *, as_json: bool) -> bool:
    from pocache.readmodel import queries

    row = queries.get_participant(connection, participant)
    if row is None:
        click.echo(f"{network.name(participant)} is not in the record", err=True)
        return False
    involved = queries.list_involvements(connection, participant, limit=_HISTORY).rows
    slashes = queries.list_slashes(connection, participant)
    ejected = _group_ejections(network, queries.list_ejections(connection, participant)).get(participant, [])
    if as_json:
        found = _to_object(network, row)
        found["slashes"] = [to_object(network, one) for one in slashes]
        found["ejected"] = ejected
        found["latest"] = [
            {"role": one["role"], "stage": one["stage"], **to_object(network, one)} for one in involved
        ]
        click.echo(json.dumps(found))
        return True
    click.echo(f"{network.name(participant)}  {participant}")
    click.echo(
        f"  stake {row['stake_micro']:,} ({row['free_micro']:,} free), net from jobs {row['net_micro']:+,}"
    )
    click.echo(
        f"  generated {row['generated']:,}, drawn to verify {row['verified']:,}, slashed {row['slashed']:,}"
    )
    for one in slashes:
        lost = one["held_micro"] - one["amount_micro"]
        click.echo(f"  slashed {lost:,} in job {one['job_id'].hex()[:12]}: {one['ending']}")
    for out in ejected:
        click.echo(
            f"  ejected from {out['model'] or out['model_id'][:12]} by its {out['test']} after {out['job_count']:,} audited jobs, the last"
            f" {out['job_id'][:12]}; bond {out['taken_micro']:,} of {out['bond_micro']:,}"
            + (f", {out['open_micro']:,} open" if out["open_micro"] else "")
        )
    for one in involved:
        state = one["ending"] or one["phase"]
        click.echo(f"  {show_time(one['admitted_ms'])}  {one['job_id'].hex()[:12]}  {one['role']:10} {state}")
    return True
