"""``pocache witness``: cosign the commitment log as long as it only grows.

Remembers the last checkpoint that it put its name to, asks the store for the proof that the log has only grown since,
and sends its line. Exit codes: 0 cosigned, 1 the log is not the one that it cosigned (the evidence is written and
shown), or it was refused; 2 wrong usage, or no witness of this network.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pocache_cli.failure import exit_on_error
from pocache_cli.receipts import NETWORK_DIR

if TYPE_CHECKING:
    from pocache.bus.nats_bus import NatsBus
    from pocache.protocol.keys import SigningKey
    from pocache.receipt.witness import Witness
    from pocache.runtime.network import Genesis, NetworkDirectory

STATE_FOLDER: Final = "witness"
_ANSWER_S: Final = 10.0


@click.command()
@click.argument("name")
@NETWORK_DIR
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the last cosigned checkpoint is remembered (default: witness/NAME.note of the network directory).",
)
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Go on, asking this often (default: once).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each checkpoint.")
def witness(*, name: str, network_dir: str, state: Path | None, every_s: float | None, as_json: bool) -> None:
    """Cosign the commitment log with the key NAME, as long as it only grows."""
    memory = state or Path(network_dir) / STATE_FOLDER / f"{name}.note"
    with exit_on_error("witness", as_json=as_json):
        from pocache.receipt.witness import ForkError

        try:
            asyncio.run(_watch(name, network_dir, memory, every_s, as_json=as_json))
        except ForkError as error:
            report_fork(error, memory, as_json=as_json)
            sys.exit(1)
        except KeyboardInterrupt:
            return


def report_fork(error: Exception, memory: Path, *, as_json: bool) -> Path:
    """Write the evidence beside the memory, say so, and return the file."""
    from pocache.receipt.witness import ForkError

    assert isinstance(error, ForkError)
    evidence = memory.with_name(memory.name + ".fork.json")
    evidence.write_text(json.dumps(error.to_dict(), indent=1) + "\n", encoding="utf-8")
    if as_json:
        fields = {"event": "fork", "code": error.code, "evidence": str(evidence), **error.to_dict()}
        click.echo(json.dumps(fields))
    click.echo(
        f"pocache witness: FORK: {error}: nothing was cosigned; both signed notes are in {evidence}", err=True
    )
    return evidence


async def _watch(name: str, network_dir: str, memory: Path, every_s: float | None, *, as_json: bool) -> None:
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.client import RefusedError
    from pocache.protocol.errors import NotYetError
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging

    configure_logging("error")
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default="")
    directory, genesis = settings.directory, settings.directory.genesis
    key, watcher = open_witness(directory, name, memory)
    nats = NatsSettings.of(directory, settings.nats_url, name)
    async with connect_bus(nats) as bus:
        while True:
            before = watcher.seen_size
            try:
                await cosign_once(bus, genesis, key, watcher)
                _say(before, watcher.seen_size, as_json=as_json)
            except RefusedError as error:
                # Before its first entry there is no log to cosign: who watches waits for it.
                if every_s is None or error.refusal_code != NotYetError.code:
                    raise
            if every_s is None:
                return
            await asyncio.sleep(every_s)


def open_witness(directory: NetworkDirectory, name: str, memory: Path) -> tuple[SigningKey, Witness]:
    """Return a witness's key and the witness with its memory. Raises ConfigError for who is none of this network."""
    from pocache.protocol.errors import ConfigError
    from pocache.receipt.witness import Witness
    from pocache.wire.topics import Role

    genesis, key = directory.genesis, directory.signing_key(name)
    if key.participant_id not in genesis.witnesses:
        raise ConfigError(
            f"{name} is no witness of this network: the genesis does not name {key.participant_id}"
        )
    return key, Witness(genesis.network_id, genesis.signer(Role.COMMITMENTS), key, memory)


async def cosign_once(bus: NatsBus, genesis: Genesis, key: SigningKey, watcher: Witness) -> None:
    """Ask, compare, remember, and send the line. Raises ForkError, RefusedError, BusError."""
    from pocache.client import RefusedError
    from pocache.protocol.errors import EnvelopeError
    from pocache.wire import messages as m
    from pocache.wire import topics as t
    from pocache.wire.envelope import open_envelope, parse_envelope, seal

    network = genesis.network_id
    query = seal(key, network, m.ConsistencyQueryV1(old_size=watcher.seen_size))
    answer = await bus.request(t.CONSISTENCY_QUERY.subject(), query, timeout_s=_ANSWER_S)
    store = genesis.signer(t.Role.COMMITMENTS)
    if parse_envelope(answer).kind == m.RefusalV1.kind:
        refusal = open_envelope(answer, network, m.RefusalV1)
        if refusal.sender != store:
            raise EnvelopeError("the refusal is not signed by the commitment store")
        raise RefusedError(refusal.body.code, refusal.body.reason)
    reply = open_envelope(answer, network, m.ConsistencyReplyV1)
    if reply.sender != store:
        raise EnvelopeError("the answer is not signed by the commitment store")
    cosigned = watcher.cosign(reply.body, int(time.time()))
    data = seal(key, network, cosigned)
    subject = t.CHECKPOINT_COSIGNED.subject(user=key.participant_id)
    await bus.publish(subject, data, message_id=hashlib.sha256(data).hexdigest())


def _say(before: int, size: int, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "cosigned", "size": size, "before": before}))
    else:
        click.echo(f"cosigned the log of {size:,} entries, {size - before:,} more than before")
