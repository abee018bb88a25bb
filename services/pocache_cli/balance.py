"""``pocache balance``: what a participant has, has staked, and has locked in jobs.

With the operator's key in the network directory anybody's balance is told, without it only one's own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import click

from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pocache.protocol.ids import ParticipantId
    from pocache.runtime.network import NetworkDirectory

_PARTICIPANT: Final = re.compile(r"U[A-Z2-7]{55}")


@dataclass(frozen=True, slots=True)
class Balance:
    """One line of the answer; amounts in micro-units."""

    name: str
    participant: str
    available_micro: int
    stake_micro: int
    locked_micro: int


@click.command()
@click.argument("name", required=False)
@click.option(
    "--network-dir",
    envvar="POCACHE_NETWORK_DIR",
    default=".pocache/network",
    show_default=True,
    help="The network directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def balance(*, name: str | None, network_dir: str, as_json: bool) -> None:
    """Show what NAME has, has staked, and has locked in jobs (default: every participant)."""
    with exit_on_error("balance", as_json=as_json):
        balances = asyncio.run(_ask(name, network_dir))
    if as_json:
        click.echo(json.dumps({"balances": [asdict(one) for one in balances]}))
        return
    width = max(12, *(len(one.name) for one in balances))
    click.echo(f"{'':{width}} {'available':>18} {'staked':>18} {'locked in jobs':>18}")
    for one in balances:
        amounts = (one.available_micro, one.stake_micro, one.locked_micro)
        click.echo(f"{one.name:{width}} " + " ".join(f"{amount:>18,}" for amount in amounts))


async def _ask(name: str | None, network_dir: str) -> list[Balance]:
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.client import PocacheClient
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging
    from pocache.wire.topics import Role
    from pocache_cli.bootstrap import read_roles

    configure_logging("error")
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default="")
    directory = settings.directory
    known = directory.participants()
    roles = read_roles(directory)
    wanted = choose_participants(name, known, [one for one, role in roles.items() if role in _WITH_MONEY])
    asker = Role.OPERATOR.value if Role.OPERATOR.value in known else next(iter(wanted))
    nats = NatsSettings(url=settings.nats_url, name=asker, nkey_seed=directory.transport_seed(asker))
    async with connect_bus(nats) as bus:
        client = PocacheClient(bus, directory.genesis, directory.signing_key(asker))
        return [await _ask_one(client, one, participant) for one, participant in wanted.items()]
