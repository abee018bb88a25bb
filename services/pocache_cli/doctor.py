"""``pocache doctor``: everything that has to be right before a job can be, checked one by one, with what to do about it.

Looks and changes nothing. What needs a key or a tool that is not here is skipped and says so; it is never counted as
right. Exit codes: 0 nothing is wrong, 1 something is, 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from pocache_cli.failure import exit_on_error
from pocache_cli.receipts import NETWORK_DIR, TRUST_FILE

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"
_TONES: Final = {OK: "green", WARN: "yellow", FAIL: "red", SKIP: "bright_black"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    status: str
    detail: str
    remedy: str = ""


@click.command(
    epilog="""Examples:

\b
  pocache doctor                                   the network in .pocache/network
  pocache doctor --network-dir /etc/pocache        a deployment's directory
  pocache doctor --no-engine                       without loading a model
  pocache doctor --json | jq -c 'select(.status == "fail")'
"""
)
@NETWORK_DIR
@click.option(
    "--engine/--no-engine",
    "with_engine",
    default=True,
    help="Whether to load the model and generate a few tokens with it.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    type=click.Choice(["cpu", "cuda"]),
    help="For the engine's self-test.",
)
@click.option("--offline", is_flag=True, help="Look at the directory alone, not at the bus.")
@click.option(
    "--replicas",
    type=click.IntRange(1, 5),
    default=1,
    show_default=True,
    help="How many servers are to keep each stream.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def doctor(
    *, network_dir: str, with_engine: bool, device: str, offline: bool, replicas: int, as_json: bool
) -> None:
    """Check clock, keys and their modes, genesis, streams and consumers, beacon, model digest, and the engine itself."""
    counts = dict.fromkeys((OK, WARN, FAIL, SKIP), 0)
    with exit_on_error("doctor", as_json=as_json):
        for finding in examine(
            network_dir, with_engine=with_engine, device=device, offline=offline, replicas=replicas
        ):
            counts[finding.status] += 1
            _print(finding, as_json=as_json)
    if not as_json:
        click.echo(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    sys.exit(1 if counts[FAIL] else 0)


def examine(
    network_dir: str, *, with_engine: bool, device: str, offline: bool, replicas: int = 1
) -> Iterator[Finding]:
    """Yield what is found, in the order in which one thing rests on another."""
    from pocache.runtime.network import NetworkDirectory
    from pocache_cli.doctor_bus import examine_bus
    from pocache_cli.doctor_directory import examine_directory

    directory = NetworkDirectory(Path(network_dir).absolute())
    yield examine_python()
    is_network = True
    for finding in examine_directory(directory):
        is_network = is_network and not (finding.check == "genesis" and finding.status == FAIL)
        yield finding
    if not is_network:
        return
    if offline:
        yield Finding("bus", SKIP, "not looked at: --offline")
    else:
        yield from asyncio.run(examine_bus(directory, os.environ.get("POCACHE_NATS_URL"), replicas=replicas))
    from pocache_cli.doctor_engine import examine_models

    yield from examine_models(directory, with_engine=with_engine, device=device)


def examine_python() -> Finding:
    """Return whether this Python and this machine can run the services."""
    version = ".".join(map(str, sys.version_info[:3]))
    cores = os.cpu_count() or 1
    return Finding("machine", OK, f"Python {version}, {cores} core{'s' if cores > 1 else ''}")


def run_check(name: str, check: Callable[[], str], remedy: str = "") -> Finding:
    """Return what a check says, or what it raises as a failure."""
    from pocache.protocol.errors import PocacheError

    try:
        return Finding(name, OK, check())
    except PocacheError as error:
        return Finding(name, FAIL, f"{error.code}: {error}", remedy)


def _print(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(finding)))
        return
    mark = click.style(f"{finding.status:4}", fg=_TONES[finding.status])
    click.echo(f"{mark}  {finding.check:20} {finding.detail}")
    if finding.remedy:
        click.echo(f"{'':6}{'':20} → {finding.remedy}")


def get_trust_file(path: Path) -> Path:
    """Return where a network directory keeps whom its users trust."""
    return path / TRUST_FILE
