"""``pocache audit``: replay the whole record and check all that can be computed, trusting nobody.

The record is read from the bus with the operator's key, or from a file that ``--export`` wrote. Exit codes: 0 nothing
diverges, 1 something does, 2 wrong usage, or a trust file that is none.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pocache_cli.failure import exit_on_error
from pocache_cli.receipts import NETWORK_DIR, TRUST, read_trust
from pocache_cli.witness import STATE_FOLDER

if TYPE_CHECKING:
    from pocache.receipt.audit import AuditReport
    from pocache.receipt.export import Entry, Header
    from pocache.receipt.trust import TrustRoots

_SHOWN_MAX: Final = 20


@click.command()
@NETWORK_DIR
@TRUST
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Audit this export instead of the bus; .gz is read too.",
)
@click.option(
    "--export",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the record from the bus to this file as well; .gz is compressed.",
)
@click.option(
    "--witnessed",
    "shown",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="A note that a witness kept or cosigned, or a receipt: the log must contain what it shows. May be repeated; "
    "those in witness/ of the network directory are looked at always.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(
    *,
    network_dir: str,
    trust_file: Path | None,
    source: Path | None,
    target: Path | None,
    shown: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check every envelope, lease, commitment, round, draw, opening, comparison, decision and payout of a network."""
    if source is not None and target is not None:
        raise click.UsageError("--from reads an export, --export writes one: give one of them")
    with exit_on_error("audit", as_json=as_json):
        trust = read_trust(trust_file, network_dir)
        kept = sorted((Path(network_dir) / STATE_FOLDER).glob("*.note"))
        notes = {str(file): _read_note(file) for file in (*shown, *kept)}
        if source is not None:
            report = audit_file(source, trust, notes)
        else:
            header, entries = asyncio.run(_read_bus(network_dir))
            if target is not None:
                from pocache.receipt.export import write_export

                write_export(target, header, entries)
            report = audit_entries(header, entries, trust, notes)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    else:
        _print(report)
    sys.exit(0 if report.is_sound else 1)


def audit_file(file: Path, trust: TrustRoots, notes: Mapping[str, bytes] | None = None) -> AuditReport:
    """Audit an export. Raises CodecError, LimitError, ConfigError."""
    from pocache.protocol.errors import CodecError
    from pocache.protocol.limits import ENTRY_TEXT_BYTES_MAX
    from pocache.receipt.export import open_export, read_entries, read_header

    try:
        with open_export(file, "rb") as stream:
            header = read_header(stream.readline(ENTRY_TEXT_BYTES_MAX + 1))
            return audit_entries(header, read_entries(stream), trust, notes)
    except (OSError, EOFError) as error:
        raise CodecError(f"cannot read {file}: {error}") from error


def audit_entries(
    header: Header, entries: Iterable[Entry], trust: TrustRoots, notes: Mapping[str, bytes] | None = None
) -> AuditReport:
    """Audit a record whose rounds come among its messages, against the notes and receipts of others, by their names.

    Raises ReceiptError for a network that is not the pinned one, ConfigError for a note that shows nothing of its log.
    """
    from pocache.protocol.errors import ConfigError, PocacheError
    from pocache.receipt.audit import Auditor, open_models
    from pocache.receipt.format import Receipt
    from pocache.receipt.report import Findings
    from pocache.receipt.verify import check_trust
    from pocache.receipt.witnessed import read_witnessed

    network, genesis = check_trust(Receipt(header.genesis, b"", ()), trust, Findings())
    models = open_models(header.models, network, genesis)
    rounds: dict[int, bytes] = {}
    auditor = Auditor(network, genesis, models, trust, rounds.get)
    for name, data in (notes or {}).items():
        try:
            auditor.hold_against(read_witnessed(data, network, genesis, trust))
        except PocacheError as error:
            raise ConfigError(f"{name} shows nothing of this network's log: {error}") from error
    for entry in _split_rounds(entries, rounds):
        auditor.take(entry)
    return auditor.finish()


def _read_note(file: Path) -> bytes:
    from pocache.protocol.errors import ConfigError
    from pocache.receipt.witnessed import WITNESSED_BYTES_MAX

    with file.open("rb") as stream:
        data = stream.read(WITNESSED_BYTES_MAX + 1)
    if len(data) > WITNESSED_BYTES_MAX:
        raise ConfigError(f"{file} is longer than {WITNESSED_BYTES_MAX} bytes: neither a note nor a receipt")
    return data


def _split_rounds(entries: Iterable[Entry], rounds: dict[int, bytes]) -> Iterator[Entry]:
    """Put rounds aside by their number, and yield the rest; an export has the rounds before the record."""
    from pocache.protocol.errors import PocacheError
    from pocache.wire.codec import decode
    from pocache.wire.envelope import parse_envelope
    from pocache.wire.messages import BeaconRoundV1
    from pocache.wire.topics import Stream

    for entry in entries:
        if entry.stream != Stream.BEACON.value:
            yield entry
            continue
        try:
            number = decode(BeaconRoundV1, parse_envelope(entry.data).payload).round_number
        except PocacheError:
            continue  # what is no round decides nothing: a step that needs one will miss it
        rounds.setdefault(number, entry.data)


async def _read_bus(network_dir: str) -> tuple[Header, list[Entry]]:
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.receipt.export import Entry, Header
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging
    from pocache.wire.topics import Role, Stream

    configure_logging("error")
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default="")
    directory = settings.directory
    operator = Role.OPERATOR.value
    header = Header(
        directory.genesis.canonical_json(),
        tuple(model.envelope for model in directory.load_models().values()),
    )
    entries: list[Entry] = []
    nats = NatsSettings.of(directory, settings.nats_url, operator)
    async with connect_bus(nats) as bus:
        # The record first: every round that it needs was there before it.
        record = [
            Entry(one.stream, one.sequence, one.subject, one.data)
            async for one in bus.read(Stream.RECORD.value)
        ]
        entries = [
            Entry(one.stream, one.sequence, one.subject, one.data)
            async for one in bus.read(Stream.BEACON.value)
        ]
    return header, [*entries, *record]


def _print(report: AuditReport) -> None:
    click.echo(
        f"{report.messages:,} messages, {report.jobs:,} jobs ({report.jobs_open:,} still open),"
        f" {report.commitments:,} commitments under {report.checkpoints:,} checkpoints,"
        f" {report.rounds_verified:,} rounds verified, {report.deposited_micro:,} micro-units deposited"
    )
    if report.witnessed:
        click.echo(f"held against {report.witnessed:,} checkpoints that others were shown")
    if report.ejections:
        click.echo(f"{report.ejections:,} ejections, computed again from the outcomes before them")
    if report.seeds_open:
        click.echo(f"{report.seeds_open:,} sampling seeds wait for the key of their epoch")
    for one in report.divergences[:_SHOWN_MAX]:
        where = f"job {one.job_id.hex()}, " if one.job_id is not None else ""
        where += f"message {one.sequence}, " if one.sequence is not None else ""
        both = f": it says {one.stated}; it must be {one.computed}" if one.stated or one.computed else ""
        click.echo(f"DIVERGES: {where}step {one.step}: {one.what}{both}")
    if len(report.divergences) > _SHOWN_MAX:
        click.echo(f"and {len(report.divergences) - _SHOWN_MAX:,} more")
    click.echo("SOUND: all that can be computed again comes out the same" if report.is_sound else "NOT SOUND")
