"""The explorer in a process: its own connection to the bus, its read model, and the task that keeps that filled.

It connects as the reader, who can read the record and publish nothing, so pages and API share a process and no rights.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.protocol.errors import ConfigError, PocacheError
from pocache.readmodel.follow import follow
from pocache.readmodel.model import ReadModel
from pocache.runtime.config import Settings
from pocache.runtime.network import NetworkDirectory
from pocache_gateway.catalogue import Catalogue
from pocache_gateway.explorer.app import Explorer, ExplorerSettings

READER: Final = "reader"
"""The NATS user that the explorer connects as."""
DATABASE_FILE: Final = "explorer.sqlite"
_PARTICIPANTS_FILE: Final = "participants.json"

Decode = Callable[[bytes, tuple[int, ...]], str | None]


@asynccontextmanager
async def open_explorer(
    settings: Settings, *, decode: Decode = lambda _model_id, _tokens: None
) -> AsyncIterator[Explorer | None]:
    """Yield an explorer that follows the record while the context lasts; None where it is off.

    Raises ConfigError when it is asked for and there is no reader's key.
    """
    wanted = _read_choice(settings, "POCACHE_GATEWAY_EXPLORER", ("on", "off"), "")
    texts = _read_choice(settings, "POCACHE_GATEWAY_EXPLORER_TEXTS", ("shown", "hidden"), "hidden")
    seed_file = settings.directory.path / "transport" / f"{READER}.seed"
    if wanted == "off" or (not wanted and not seed_file.exists()):
        yield None
        return
    nats = NatsSettings.of(settings.directory, settings.nats_url, READER)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    directory = settings.directory
    model = ReadModel(directory.genesis, directory.load_models(), file=settings.state_dir / DATABASE_FILE)
    try:
        explorer = Explorer(
            model,
            settings=ExplorerSettings(shows_texts=texts == "shown"),
            names=read_names(directory),
            decode=decode,
        )
        async with connect_bus(nats) as bus:
            following = asyncio.create_task(follow(model, bus, changed=explorer.changed))
            following.add_done_callback(_report_end)
            try:
                yield explorer
            finally:
                explorer.broadcast.close()
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
    finally:
        model.close()


def read_names(directory: NetworkDirectory) -> dict[str, str]:
    """Return names of participants: of the public list where there is one, else of the keys that lie here."""
    file: Path = directory.path / _PARTICIPANTS_FILE
    if file.exists():
        try:
            return {str(one["participant"]): str(name) for name, one in json.loads(file.read_bytes()).items()}
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is not a list of participants: {error}") from error
    try:
        return {str(participant): name for name, participant in directory.participants().items()}
    except PocacheError:
        return {}


def make_decoder(catalogue: Catalogue) -> Decode:
    """Return what writes a model's tokens as text, by the tokenizers that the gateway has loaded."""
    codecs = {bytes(one.model.model_id): one.codec for one in catalogue.served}

    def decode(model_id: bytes, tokens: tuple[int, ...]) -> str | None:
        codec = codecs.get(model_id)
        return None if codec is None else codec.decode(tokens)

    return decode


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        structlog.get_logger().error("the explorer follows no more", error=repr(task.exception()))


def _read_choice(settings: Settings, name: str, choices: tuple[str, ...], default: str) -> str:
    value = settings.variables.get(name, default)
    if value not in (*choices, default):
        raise ConfigError(f"{name} is {value!r}; it may be {' or '.join(choices)}")
    return value
