"""``pocache serve NAME``: one service as this process, found through the entry points."""

from __future__ import annotations

import json
import os
from importlib.metadata import entry_points
from typing import Final

import click

GROUP: Final = "pocache.services"


@click.command()
@click.argument("name", required=False)
@click.option("--network-dir", help="The network directory (also POCACHE_NETWORK_DIR).")
@click.option("--json", "as_json", is_flag=True, help="With no NAME: list the services as JSON.")
def serve(name: str | None, network_dir: str | None, as_json: bool) -> None:
    """Run one service: router, worker, commitments, beacon, verifier, ledger, gateway or deadletters.

    Settings come from POCACHE_* variables. Logs are JSON lines on standard error.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name is None:
        names = sorted(found)
        click.echo(json.dumps({"services": names}) if as_json else "\n".join(names))
        return
    if name not in found:
        raise click.UsageError(f"no service {name!r}; there are {', '.join(sorted(found))}")
    if network_dir is not None:
        os.environ["POCACHE_NETWORK_DIR"] = network_dir
    found[name].load()()
