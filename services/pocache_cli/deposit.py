"""``pocache deposit``: credit a participant with money that arrived, or with stake, as the operator.

The same reference twice is one deposit, so a repetition does no harm.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from typing import TYPE_CHECKING

import click

from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from pocache.bus.port import Bus
    from pocache.runtime.network import NetworkDirectory


@click.command()
@click.argument("name")
@click.argument("amount_micro", type=click.IntRange(min=1))
@click.option(
    "--bucket",
    type=click.Choice(["available", "stake"]),
    default="available",
    show_default=True,
    help="Money to spend, or a worker's stake.",
)
@click.option("--reference", required=True, help="What the deposit is for; the same one twice counts once.")
@click.option(
    "--network-dir",
    envvar="POCACHE_NETWORK_DIR",
    default=".pocache/network",
    show_default=True,
    help="The network directory, with the operator's key.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def deposit(
    *, name: str, amount_micro: int, bucket: str, reference: str, network_dir: str, as_json: bool
) -> None:
    """Credit NAME with AMOUNT_MICRO micro-units."""
    with exit_on_error("deposit", as_json=as_json):
        asyncio.run(_deposit(network_dir, name, bucket, amount_micro, reference))
    if as_json:
        click.echo(
            json.dumps({"name": name, "bucket": bucket, "amount_micro": amount_micro, "reference": reference})
        )
    else:
        click.echo(f"{name}: {amount_micro:,} micro-units to {bucket} ({reference})")


async def _deposit(network_dir: str, name: str, bucket: str, amount_micro: int, reference: str) -> None:
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging
    from pocache.wire.topics import Role

    configure_logging("error")
    operator = Role.OPERATOR.value
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default=operator)
    async with connect_bus(NatsSettings.of(settings.directory, settings.nats_url, operator)) as bus:
        await publish_deposit(bus, settings.directory, name, bucket, amount_micro, reference)


async def publish_deposit(
    bus: Bus, directory: NetworkDirectory, name: str, bucket: str, amount_micro: int, reference: str
) -> None:
    """Publish a deposit that the operator signs; returns when it is stored. Raises BusError, ConfigError."""
    from pocache.wire import messages as m
    from pocache.wire import topics as t
    from pocache.wire.envelope import seal
    from pocache.wire.topics import Role

    participant = directory.signing_key(name).participant_id
    body = m.DepositV1.model_validate(
        {"participant": participant, "bucket": bucket, "amount_micro": amount_micro, "reference": reference}
    )
    data = seal(directory.signing_key(Role.OPERATOR.value), directory.genesis.network_id, body)
    subject = t.DEPOSITED.subject(participant=participant)
    await bus.publish(subject, data, message_id=hashlib.sha256(data).hexdigest())
