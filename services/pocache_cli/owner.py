"""``pocache owner``: attest whose a participant is, as the operator.

Whoever credits stakes knows where they came from. Nobody is drawn to verify for its owner or for another of its owner's,
and what one owner has staked counts only up to the network's share (docs/protocol.md 6.6).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from typing import TYPE_CHECKING, Final

import click

from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from pocache.bus.port import Bus
    from pocache.protocol.ids import ParticipantId
    from pocache.runtime.network import NetworkDirectory


@click.command()
@click.argument("name")
@click.argument("owner_name", metavar="OWNER")
@click.option(
    "--network-dir",
    envvar="POCACHE_NETWORK_DIR",
    default=".pocache/network",
    show_default=True,
    help="The network directory, with the operator's key.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def owner(*, name: str, owner_name: str, network_dir: str, as_json: bool) -> None:
    """Attest that NAME belongs to OWNER: names of the network directory, or participants' keys.

    It holds for every draw from the next snapshot on. NAME as its own OWNER takes back what was said before.
    """
    with exit_on_error("owner", as_json=as_json):
        participant, whose = asyncio.run(_declare(network_dir, name, owner_name))
    if as_json:
        click.echo(json.dumps({"participant": participant, "owner": whose}))
    else:
        click.echo(f"{name} belongs to {owner_name}")


async def _declare(network_dir: str, name: str, owner_name: str) -> tuple[ParticipantId, ParticipantId]:
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging
    from pocache.wire.topics import Role

    configure_logging("error")
    operator = Role.OPERATOR.value
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default=operator)
    found = [find_participant(settings.directory, one) for one in (name, owner_name)]
    seed = settings.directory.transport_seed(operator)
    async with connect_bus(NatsSettings(url=settings.nats_url, name=operator, nkey_seed=seed)) as bus:
        await publish_owner(bus, settings.directory, found[0], found[1])
    return found[0], found[1]


def find_participant(directory: NetworkDirectory, name: str) -> ParticipantId:
    """Return the participant of this name, or the one whose key it is. Raises ConfigError, SignatureError."""
    from pocache.protocol.ids import ParticipantId
    from pocache.protocol.keys import decode_participant

    if len(name) != _KEY_CHARACTERS:
        return directory.signing_key(name).participant_id
    decode_participant(name)
    return ParticipantId(name)


_KEY_CHARACTERS: Final = 56


async def publish_owner(
    bus: Bus, directory: NetworkDirectory, participant: ParticipantId, whose: ParticipantId
) -> None:
    """Publish whose a participant is, signed by the operator; returns when it is stored. Raises BusError, ConfigError."""
    from pocache.service.dispatch import read_clock_ms
    from pocache.wire import messages as m
    from pocache.wire import topics as t
    from pocache.wire.envelope import seal
    from pocache.wire.topics import Role

    body = m.OwnerV1(participant=participant, owner=whose, declared_ms=read_clock_ms())
    data = seal(directory.signing_key(Role.OPERATOR.value), directory.genesis.network_id, body)
    await bus.publish(
        t.OWNER_DECLARED.subject(participant=participant), data, message_id=hashlib.sha256(data).hexdigest()
    )
