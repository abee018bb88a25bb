"""``pocache receipt``, ``verify`` and ``explain``: fetch a job's receipt, judge it without trusting anybody, read it.

``verify`` needs neither torch nor a network: a receipt and the trust file that its user keeps are enough. Exit codes: 0 it
holds, 1 it does not, 2 wrong usage or a trust file that is none.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from pocache.receipt.report import Report, StepResult
    from pocache.receipt.trust import TrustRoots

TRUST_FILE: Final = "trust.json"
_JOB_ID: Final = re.compile(r"[0-9a-f]{64}")
_NOT_YOURS: Final = "E209"
_VALUE_CHARS_MAX: Final = 100

NETWORK_DIR = click.option(
    "--network-dir",
    envvar="POCACHE_NETWORK_DIR",
    default=".pocache/network",
    show_default=True,
    help="The network directory.",
)
TRUST = click.option(
    "--trust",
    "trust_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Whom you trust: the file that you keep (default: trust.json of the network directory).",
)


@click.command()
@click.argument("job")
@NETWORK_DIR
@click.option(
    "--as", "name", metavar="NAME", help="Whose job it is (default: whichever user here may see it)."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it here (default: standard output)."
)
@click.option("--binary", is_flag=True, help="The compact form instead of JSON.")
@click.option(
    "--json", "as_json", is_flag=True, help="Say on standard output, as one JSON object, what was written."
)
def receipt(
    *, job: str, network_dir: str, name: str | None, out: Path | None, binary: bool, as_json: bool
) -> None:
    """Fetch the receipt of JOB, an id of 64 hexadecimal digits."""
    if not _JOB_ID.fullmatch(job):
        raise click.UsageError("JOB is 64 hexadecimal digits in lower case, as `pocache submit` shows it")
    if as_json and out is None:
        raise click.UsageError("--json needs --out: the receipt itself would go to standard output")
    with exit_on_error("receipt", as_json=as_json):
        from pocache.receipt.format import decode_receipt, encode_json

        data = asyncio.run(fetch_receipt(bytes.fromhex(job), network_dir, name))
        written = data if binary else encode_json(decode_receipt(data))
    if out is None:
        sys.stdout.buffer.write(written)
        return
    out.write_bytes(written)
    if as_json:
        click.echo(json.dumps({"job_id": job, "file": str(out), "bytes": len(written)}))
    else:
        click.echo(f"{len(written):,} bytes written to {out}", err=True)


async def fetch_receipt(job_id: bytes, network_dir: str, name: str | None) -> bytes:
    """Return a receipt in its binary form, asked for as its user. Raises RefusedError, ConfigError."""
    from pocache.bus.nats_bus import NatsSettings, connect_bus
    from pocache.client import PocacheClient, RefusedError
    from pocache.protocol.ids import JobId
    from pocache.runtime.config import load_settings
    from pocache.runtime.telemetry import configure_logging
    from pocache.wire.topics import Role
    from pocache_cli.bootstrap import pick_user, read_roles

    configure_logging("error")
    settings = load_settings({**os.environ, "POCACHE_NETWORK_DIR": network_dir}, name_default="")
    directory = settings.directory
    users = [one for one, role in read_roles(directory).items() if role is Role.USER]
    candidates = [pick_user(directory, name)] if name is not None or not users else users
    refusal: RefusedError | None = None
    for candidate in candidates:
        nats = NatsSettings.of(directory, settings.nats_url, candidate)
        async with connect_bus(nats) as bus:
            try:
                client = PocacheClient(bus, directory.genesis, directory.signing_key(candidate))
                return await client.get_receipt(JobId(job_id))
            except RefusedError as error:
                refusal = error
                if error.refusal_code != _NOT_YOURS:
                    raise
    assert refusal is not None, "there is a user, or pick_user has said that there is none"
    raise refusal


@click.command()
@click.argument("file", metavar="RECEIPT", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@TRUST
@NETWORK_DIR
@click.option(
    "--recompute",
    is_flag=True,
    help="Also run the prefill and compare it with the opened rows (needs torch).",
)
@click.option(
    "--model", metavar="DIR", help="The model for --recompute: a directory, a cached id, or fake:NAME."
)
@click.option(
    "--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="For --recompute."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    *,
    file: Path,
    trust_file: Path | None,
    network_dir: str,
    recompute: bool,
    model: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Judge RECEIPT step by step: no network, no torch, nobody trusted but whom your trust file names."""
    if recompute != (model is not None):
        raise click.UsageError("--recompute and --model go together: the prefill is run on that model")
    with exit_on_error("verify", as_json=as_json):
        from pocache.receipt.verify import examine_receipt

        trust = read_trust(trust_file, network_dir)
        report, case = examine_receipt(read_receipt(file), trust)
        lines = []
        is_same = True
        if recompute and report.is_valid and case is not None:
            from pocache_cli.recompute import recompute_case

            assert model is not None
            lines = recompute_case(case, model, device=device)
            is_same = all(one["verdict"] != "mismatch" for one in lines if not one["expected_mismatch"])
    if as_json:
        answer = report.to_dict()
        if recompute:
            answer["recomputed"] = lines
        click.echo(json.dumps(answer))
    else:
        print_report(report)
        for one in lines:
            click.echo(f"recomputed  {one['text']}")
    sys.exit(0 if report.is_valid and is_same else 1)


def read_receipt(file: Path) -> bytes:
    """Return a receipt's bytes, no more of them than any receipt has. Raises ConfigError."""
    from pocache.protocol.errors import ConfigError
    from pocache.protocol.limits import RECEIPT_TEXT_BYTES_MAX

    try:
        with file.open("rb") as stream:
            return stream.read(RECEIPT_TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error


def read_trust(file: Path | None, network_dir: str) -> TrustRoots:
    """Return whom the user trusts: by the file given, else by the one in the network directory. Raises ConfigError."""
    from pocache.protocol.errors import ConfigError
    from pocache.receipt.trust import load_trust

    chosen = file or Path(network_dir) / TRUST_FILE
    if file is None and not chosen.exists():
        raise ConfigError(f"say whom you trust with --trust FILE: there is no {chosen}")
    return load_trust(chosen)


def print_report(report: Report) -> None:
    """Print each step with what it compared, and the conclusion."""
    for step in report.steps:
        click.echo(f"{step.step.value:4} {step.status.value:15} {step.step.subject}")
        for one in step.compared:
            value = one.value if len(one.value) <= _VALUE_CHARS_MAX else one.value[:_VALUE_CHARS_MAX] + "…"
            click.echo(f"       {one.what}: {value}")
        if step.reason:
            click.echo(f"     → {step.reason}")
    click.echo(conclude(report))


def conclude(report: Report) -> str:
    """Return the one line that matters."""
    failure: StepResult | None = report.failure
    if failure is not None:
        return f"INVALID at {failure.step.value}, {failure.step.subject}: {failure.code}: {failure.reason}"
    open_steps = [one.step.value for one in report.steps if one.status.value == "unchecked"]
    rest = f"; left open: {', '.join(open_steps)}" if open_steps else ""
    return f"VALID: {report.case}{rest}"


@click.command()
@click.argument("what", metavar="JOB|RECEIPT")
@TRUST
@NETWORK_DIR
@click.option("--as", "name", metavar="NAME", help="Whose job it is, where JOB is an id.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(*, what: str, trust_file: Path | None, network_dir: str, name: str | None, as_json: bool) -> None:
    """Say in plain words what became of a job: why challenged or not, what matched, who was paid and slashed."""
    with exit_on_error("explain", as_json=as_json):
        from pocache.protocol.errors import ConfigError, ReceiptError
        from pocache.receipt.explain import explain_job
        from pocache.receipt.verify import examine_receipt

        if _JOB_ID.fullmatch(what):
            data = asyncio.run(fetch_receipt(bytes.fromhex(what), network_dir, name))
        elif Path(what).is_file():
            data = read_receipt(Path(what))
        else:
            raise ConfigError(f"{what!r} is neither a job id of 64 hexadecimal digits nor a receipt's file")
        report, case = examine_receipt(data, read_trust(trust_file, network_dir))
        if case is None or not report.is_valid:
            failure = report.failure
            raise ReceiptError(
                f"the receipt does not hold, so there is nothing to explain: {failure and failure.reason}"
            )
        lines = explain_job(case, report.case, read_names(network_dir))
    if as_json:
        click.echo(json.dumps({"job_id": case.job_id.hex(), "case": report.case, "sentences": lines}))
        return
    for line in lines:
        click.echo(line)
    click.echo(f"All of it was verified: {conclude(report)}.")


def read_names(network_dir: str) -> Mapping[str, str]:
    """Return the names of those whose keys lie in the network directory, where there is one."""
    from pocache.protocol.errors import PocacheError
    from pocache.runtime.network import NetworkDirectory

    try:
        names = NetworkDirectory(Path(network_dir)).participants()
    except PocacheError:
        return {}
    return {participant: one for one, participant in names.items()}
