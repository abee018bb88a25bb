"""``pocache withdraw`` and ``pocache statement``: a participant asks for its money, and what moved it.

A withdrawal is signed by its owner, so it needs the owner's key; a statement is told to its owner and to the operator.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from pocache.protocol.limits import MICRO_MAX
from pocache_cli.balance import plan_questions
from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pocache.money import Purse
    from pocache.runtime.network import NetworkDirectory
    from pocache.wire.messages import StatementLineV1, WithdrawalAcceptedV1

_NONCE: Final = re.compile(r"[0-9a-f]{32}")
_JOB_OPERATIONS: Final = frozenset({"hold", "surplus", "charge", "settle"})
"""Operations whose subject begins with a job's id, behind its length."""
_LENGTH_BYTES: Final = 4
_JOB_BYTES: Final = 32

_network_option = click.option(
    "--network-dir",
    envvar="POCACHE_NETWORK_DIR",
    default=".pocache/network",
    show_default=True,
    help="The network directory, with the keys of whoever asks.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _parse_nonce(_ctx: click.Context, _param: click.Parameter, value: str | None) -> bytes | None:
    """Return 16 bytes, None where none was given."""
    if value is None:
        return None
    if not _NONCE.fullmatch(value):
        raise click.BadParameter("a nonce is 32 hexadecimal digits in lower case")
    return bytes.fromhex(value)


@click.command()
@click.argument("name")
@click.argument("amount_micro", type=click.IntRange(min=1, max=MICRO_MAX))
@click.option(
    "--bucket",
    type=click.Choice(["available", "stake"]),
    default="available",
    show_default=True,
    help="What was earned or deposited to spend, or free stake: that is paid when it has unbonded.",
)
@click.option(
    "--nonce",
    callback=_parse_nonce,
    metavar="HEX",
    help="Names this withdrawal: the same one twice counts once. Drawn and printed unless given.",
)
@_network_option
@_json_option
def withdraw(
    *, name: str, amount_micro: int, bucket: str, nonce: bytes | None, network_dir: str, as_json: bool
) -> None:
    """Ask for AMOUNT_MICRO micro-units of NAME's back.

    Exits 0 when the ledger has accepted it and 1 when it refused: more than is free (E204; what jobs hold is not), or a
    nonce that named another withdrawal (E208). Without an answer repeat it with the nonce that is printed.
    """
    nonce = nonce or secrets.token_bytes(16)
    with exit_on_error("withdraw", as_json=as_json):
        accepted = asyncio.run(_withdraw(network_dir, name, bucket, amount_micro, nonce))
    answer = {
        "name": name,
        "participant": accepted.participant,
        "bucket": bucket,
        "amount_micro": amount_micro,
        "nonce": nonce.hex(),
        "entry": accepted.entry,
        "matures_tick": accepted.matures_tick,
    }
    if as_json:
        click.echo(json.dumps(answer))
        return
    when = (
        "paid out"
        if bucket == "available"
        else f"unbonding until the ledger's round {accepted.matures_tick:,}"
    )
    click.echo(
        f"{name}: {amount_micro:,} micro-units of {bucket}, {when} (entry {accepted.entry}, nonce {nonce.hex()})"
    )


@click.command()
@click.argument("name", required=False)
@click.option(
    "--after",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Begin after this journal entry.",
)
@_network_option
@_json_option
def statement(*, name: str | None, after: int, network_dir: str, as_json: bool) -> None:
    """Show every line of the ledger's journal on NAME's accounts, oldest first.

    With the operator's key anybody's, without it one's own. The lines of an account sum to its balance.
    """
    with exit_on_error("statement", as_json=as_json):
        shown, participant, lines = asyncio.run(_read_statement(network_dir, name, after))
    described = [describe_line(line, participant) for line in lines]
    if as_json:
        click.echo(
            json.dumps({"name": shown, "participant": participant, "after": after, "lines": described})
        )
        return
    click.echo(f"{'entry':>8}  {'time (UTC)':19}  {'operation':15} {'account':10} {'micro-units':>22}  about")
    for one in described:
        click.echo(
            f"{one['entry']:>8}  {one['at'][:19].replace('T', ' ')}  {one['operation']:15} {one['account']:10} "
            f"{one['amount_micro']:>+22,}  {(one['job'] or one['subject'])[:16]}"
        )


def describe_line(line: StatementLineV1, participant: str) -> dict[str, Any]:
    """Return a line for people: which of the participant's accounts, when, and the job where it is about one."""
    account = line.account.removesuffix(participant).removesuffix(":") or "available"
    job = None
    if line.operation in _JOB_OPERATIONS and len(line.subject) >= _LENGTH_BYTES + _JOB_BYTES:
        job = line.subject[_LENGTH_BYTES : _LENGTH_BYTES + _JOB_BYTES].hex()
    return {
        "entry": line.entry,
        "at_ms": line.at_ms,
        "at": datetime.fromtimestamp(line.at_ms / 1_000, UTC).isoformat(timespec="milliseconds"),
        "operation": line.operation,
        "account": account,
        "amount_micro": line.amount_micro,
        "job": job,
        "subject": line.subject.hex(),
        "cause": line.cause.hex(),
    }


async def _withdraw(
    network_dir: str, name: str, bucket: str, amount_micro: int, nonce: bytes
) -> WithdrawalAcceptedV1:
    directory = _load_directory(network_dir)
    verify_owner(directory, name)
    async with _open_purse(network_dir, name) as purse:
        return await purse.withdraw(amount_micro, bucket=bucket, nonce=nonce)  # type: ignore[arg-type]


async def _read_statement(
    network_dir: str, name: str | None, after: int
) -> tuple[str, str, list[StatementLineV1]]:
    directory = _load_directory(network_dir)
    asker, wanted = plan_questions(directory, name or _name_only_owner(directory))
    shown, participant = next(iter(wanted.items()))
    async with _open_purse(network_dir, asker) as purse:
        return shown, participant, [line async for line in purse.statement(participant, after_entry=after)]


def verify_owner(directory: NetworkDirectory, name: str) -> None:
    """Raise ConfigError when ``name`` is nobody of this network who can have money, or its key is not here."""
    from pocache.protocol.errors import ConfigError
    from pocache.wire.topics import Role
    from pocache_cli.bootstrap import read_roles

    owners = [one for one, role in read_roles(directory).items() if role in (Role.USER, Role.WORKER)]
    if name not in owners:
        raise ConfigError(f"no participant {name!r} in {directory.path}; there are: {', '.join(owners)}")
    if name not in directory.participants():
        raise ConfigError(f"only its owner withdraws: the key of {name} is not in {directory.path}")


def _name_only_owner(directory: NetworkDirectory) -> str:
    from pocache.protocol.errors import ConfigError
    from pocache.wire.topics import Role
    from pocache_cli.bootstrap import read_roles

    keys = directory.participants()
    owners = [
        one for one, role in read_roles(directory).items() if role in (Role.USER, Role.WORKER) and one in keys
    ]
    if len(owners) != 1:
        raise ConfigError(f"say whose statement; there are: {', '.join(owners)}")
    return owners[0]


def _load_directory(network_dir: str) -> NetworkDirectory:
    from pocache.runtime.config import load_settings

    return load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default="").directory


@asynccontextmanager
async def _open_purse(network_dir: str, asker: str) -> AsyncIterator[Purse]:
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.money import Purse
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging
    from pocache.wire.topics import Role
    from pocache_cli.bootstrap import read_roles

    configure_logging("error")
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default="")
    directory = settings.directory
    role = read_roles(directory).get(asker, Role.USER)
    nats = NatsSettings.of(directory, settings.nats_url, asker)
    async with connect_bus(nats) as bus:
        yield Purse(bus, directory.genesis, directory.signing_key(asker), role)
