"""What commands look at the network with: the read model, filled from the bus as far as it goes.

Connects as the reader, who can say nothing, or as the operator where a network has no reader's key. What was read is
kept in the network directory for the next command; where that cannot be written, or another command is at it, it is read
anew.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.protocol.errors import ConfigError
from pocache.readmodel.follow import catch_up
from pocache.readmodel.model import ReadModel
from pocache.runtime.config import load_settings
from pocache.runtime.network import NetworkDirectory
from pocache.runtime.telemetry import configure_logging
from pocache.wire.topics import Role
from pocache_cli.bootstrap import READER
from pocache_cli.deployment import load_participants

DATABASE_FILE: Final = "cli.sqlite"


@dataclass(frozen=True, slots=True)
class Observed:
    """A network under observation."""

    directory: NetworkDirectory
    bus: NatsBus
    model: ReadModel
    names: Mapping[str, str]

    def name(self, account: str | None) -> str:
        """Return somebody's name, or the two ends of the key."""
        if not account:
            return ""
        return self.names.get(account, account if len(account) < 16 else f"{account[:6]}…{account[-4:]}")


@asynccontextmanager
async def observe(
    network_dir: str, *, report: Callable[[int], None] = lambda _count: None
) -> AsyncIterator[Observed]:
    """Yield the network, read as far as it goes; ``report`` hears how many messages were. Raises ConfigError, BusError."""
    configure_logging("error")
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default=READER)
    directory = settings.directory
    name = pick_reader(directory)
    nats = NatsSettings.of(directory, settings.nats_url, name)
    model = _open_model(directory)
    try:
        async with connect_bus(nats) as bus:
            await catch_up(model, bus, report=report)
            yield Observed(directory, bus, model, read_names(directory))
    finally:
        model.close()


def pick_reader(directory: NetworkDirectory) -> str:
    """Return the NATS user that may read the record here. Raises ConfigError where there is no such key."""
    for name in (READER, Role.OPERATOR.value):
        if (directory.path / "transport" / f"{name}.seed").exists():
            return name
    raise ConfigError(
        f"no key in {directory.path}/transport may read the record: it takes {READER}.seed or operator.seed"
    )


def read_names(directory: NetworkDirectory) -> dict[str, str]:
    """Return the names of those who take part, as far as this directory knows them."""
    try:
        found = {str(party.participant): party.name for party in load_participants(directory)}
    except ConfigError:
        found = {}
    return {**found, "treasury": "treasury"}


def _open_model(directory: NetworkDirectory) -> ReadModel:
    models = directory.load_models()
    try:
        return ReadModel(directory.genesis, models, file=directory.path / "state" / DATABASE_FILE)
    except ConfigError:
        return ReadModel(directory.genesis, models)
