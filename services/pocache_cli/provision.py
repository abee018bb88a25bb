"""``pocache provision``: create the streams and consumers of a network, and say where they differ from what is wanted.

Runs once before the services, as the NATS user ``provisioner``, and as often as one likes: what exists is compared and
never changed. It needs the genesis, the models and the public list of the participants, and nobody else's key.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from pocache.bus.nats_bus import NatsBus
    from pocache.bus.specs import ConsumerSpec, StreamSpec
    from pocache.runtime.network import NetworkDirectory


ANSWER_S = 30.0
"""How long the server may take for one stream: a cluster's must elect a leader for it first."""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What exists now as it is wanted, and what exists otherwise, one sentence for each."""

    streams: tuple[str, ...]
    consumers: tuple[str, ...]
    drift: tuple[str, ...]


@click.command()
@click.option(
    "--network-dir",
    envvar="POCACHE_NETWORK_DIR",
    default=".pocache/network",
    show_default=True,
    help="The network directory.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 5),
    default=1,
    show_default=True,
    help="How many servers of the NATS cluster keep each stream.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def provision(*, network_dir: str, replicas: int, as_json: bool) -> None:
    """Create a network's streams and consumers; exit with 1 when one exists with other settings."""
    with exit_on_error("provision", as_json=as_json):
        done = asyncio.run(_provision(network_dir, replicas))
    if as_json:
        click.echo(json.dumps({"event": "provisioned", **asdict(done)}))
    else:
        click.echo(f"{len(done.streams)} streams and {len(done.consumers)} consumers are as wanted")
    for sentence in done.drift:
        click.echo(f"pocache provision: {sentence}", err=True)
    sys.exit(1 if done.drift else 0)


async def _provision(network_dir: str, replicas: int) -> Provisioned:
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging
    from pocache_cli.bootstrap import PROVISIONER

    configure_logging("error")
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default=PROVISIONER)
    streams, consumers = plan_objects(settings.directory, replicas=replicas)
    async with connect_bus(NatsSettings.of(settings.directory, settings.nats_url, settings.name)) as bus:
        return await provision_objects(bus, streams, consumers)


def plan_objects(
    directory: NetworkDirectory, *, replicas: int = 1
) -> tuple[tuple[StreamSpec, ...], tuple[ConsumerSpec, ...]]:
    """Return the streams and consumers of a network, from its public files alone. Raises ConfigError."""
    from dataclasses import replace

    from pocache.service.provisioning import get_consumer_specs, get_stream_specs
    from pocache_cli.bootstrap import get_workers
    from pocache_cli.deployment import load_participants

    workers = get_workers(load_participants(directory))
    streams = (replace(spec, replicas=replicas) for spec in get_stream_specs(directory.genesis.bounds))
    return tuple(streams), get_consumer_specs(workers, directory.load_models())


async def provision_objects(
    bus: NatsBus, streams: tuple[StreamSpec, ...], consumers: tuple[ConsumerSpec, ...]
) -> Provisioned:
    """Create what is missing, and go on past what differs, so that all of it is told at once. Raises BusError."""
    from pocache.bus.provision import DriftError
    from pocache.bus.provision import provision as create

    js = bus.client.jetstream(timeout=ANSWER_S)
    drift: list[str] = []
    made: dict[str, list[str]] = {"streams": [], "consumers": []}
    for stream in streams:
        try:
            await create(js, [stream], [])
            made["streams"].append(stream.name)
        except DriftError as error:
            drift.append(str(error))
    for consumer in consumers:
        try:
            await create(js, [], [consumer])
            made["consumers"].append(f"{consumer.stream}.{consumer.durable}")
        except DriftError as error:
            drift.append(str(error))
    return Provisioned(tuple(made["streams"]), tuple(made["consumers"]), tuple(drift))
