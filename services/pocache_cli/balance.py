"""``pocache balance``: what a participant has, has staked, has locked in jobs, and what of its stake unbonds.

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
    unbonding_micro: int = 0
    """Stake that was asked for and is not paid out yet."""


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
    """Show what NAME has, has staked, has locked in jobs, and what unbonds (default: every participant)."""
    with exit_on_error("balance", as_json=as_json):
        balances = asyncio.run(_ask(name, network_dir))
    if as_json:
        click.echo(json.dumps({"balances": [asdict(one) for one in balances]}))
        return
    width = max(12, *(len(one.name) for one in balances))
    click.echo(f"{'':{width}} {'available':>18} {'staked':>18} {'locked in jobs':>18} {'unbonding':>18}")
    for one in balances:
        amounts = (one.available_micro, one.stake_micro, one.locked_micro, one.unbonding_micro)
        click.echo(f"{one.name:{width}} " + " ".join(f"{amount:>18,}" for amount in amounts))


async def _ask(name: str | None, network_dir: str) -> list[Balance]:
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.client import PocacheClient
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging

    configure_logging("error")
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default="")
    directory = settings.directory
    asker, wanted = plan_questions(directory, name)
    nats = NatsSettings.of(directory, settings.nats_url, asker)
    answers = []
    async with connect_bus(nats) as bus:
        client = PocacheClient(bus, directory.genesis, directory.signing_key(asker))
        for one, participant in wanted.items():
            reply = await client.balance(participant)
            amounts = (reply.available_micro, reply.stake_micro, reply.locked_micro, reply.unbonding_micro)
            answers.append(Balance(one, participant, *amounts))
    return answers


def plan_questions(directory: NetworkDirectory, name: str | None) -> tuple[str, Mapping[str, ParticipantId]]:
    """Return who asks, and about whom. Raises ConfigError where that would not be answered."""
    from pocache.protocol.errors import ConfigError
    from pocache.protocol.ids import ParticipantId
    from pocache.wire.topics import Role
    from pocache_cli.bootstrap import read_roles

    keys = directory.participants()
    has_money = [one for one, role in read_roles(directory).items() if role in (Role.USER, Role.WORKER)]
    operator = Role.OPERATOR.value if Role.OPERATOR.value in keys else None
    if name is None:
        wanted = {one: keys[one] for one in has_money if one in keys}
    elif name in keys:
        wanted = {name: keys[name]}
    elif _PARTICIPANT.fullmatch(name) and operator is not None:
        wanted = {name: ParticipantId(name)}
    else:
        raise ConfigError(f"no participant {name!r} in {directory.path}; there are: {', '.join(has_money)}")
    if not wanted or (operator is None and len(wanted) > 1):
        raise ConfigError(
            f"say whose balance: without the operator's key only its owner may ask ({directory.path})"
        )
    return operator or next(iter(wanted)), wanted
