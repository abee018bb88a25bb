"""``pocache keys``: making a network's keys, and handing each process of a deployment its own.

What is secret is written to files that only their owner can read, and never printed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pocache.protocol.payoff import RULES_DEFAULT
from pocache_cli.failure import exit_on_error
from pocache_cli.rules_option import RULES

if TYPE_CHECKING:
    from pocache.runtime.network import Genesis
    from pocache_cli.trust import Issued, Trust

_TELL: Final = (
    "give the server what `pocache keys nats-config` prints now: until then nothing has changed for it"
)

_NETWORK_DIR = click.option(
    "--network-dir",
    envvar="POCACHE_NETWORK_DIR",
    default=".pocache/network",
    show_default=True,
    help="The network directory.",
)
_DAYS = click.option(
    "--days", type=click.IntRange(1, 3_650), help="How long the JWT counts (default: until it is revoked)."
)
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def keys() -> None:
    """Make a network's keys, and divide them for a deployment."""


@keys.command()
@_NETWORK_DIR
@click.option("--name", required=True, help="What the network is called.")
@click.option("--user", "users", multiple=True, required=True, help="A user's name; repeat for more.")
@click.option("--worker", "workers", multiple=True, required=True, help="A worker's name; repeat for more.")
@click.option(
    "--witness", "witnesses", multiple=True, help="The name of a witness of the log; repeat for more."
)
@click.option(
    "--period-s", type=click.IntRange(1, 86_400), default=3, show_default=True, help="Seconds between rounds."
)
@click.option(
    "--rules",
    type=click.Choice(RULES),
    help=f"The rules of payment (default: what the sections say, else {RULES_DEFAULT}).",
)
@click.option(
    "--sections",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A JSON file of genesis sections that differ from the defaults: rules, audit, deadlines, bounds; and ejection, which has to be"
    " asked for (docs/economics.md 6.6).",
)
@_AS_JSON
def create(
    *,
    network_dir: str,
    name: str,
    users: tuple[str, ...],
    workers: tuple[str, ...],
    witnesses: tuple[str, ...],
    period_s: int,
    rules: str | None,
    sections: Path | None,
    as_json: bool,
) -> None:
    """Make a new network: its genesis and everybody's keys, in an empty directory."""
    with exit_on_error("keys create", as_json=as_json):
        from pocache.protocol.errors import ConfigError
        from pocache_cli.bootstrap import NetworkPlan, create_network, read_roles

        path = Path(network_dir).absolute()
        if (path / "genesis.json").exists():
            raise ConfigError(f"{path} has a network already: choose another directory")
        try:
            plan = NetworkPlan(
                name,
                users,
                workers,
                sections=_choose_rules(_read_sections(sections), rules),
                period_s=period_s,
                witnesses=witnesses,
            )
            directory = create_network(path, plan)
        except ValueError as error:
            raise ConfigError(f"not a genesis: {error}") from error
        roles = {one: role.value for one, role in read_roles(directory).items()}
        network_id = directory.genesis.network_id.hex()
        needed = get_committee_size(directory.genesis) + 1
        if len(workers) < needed:
            click.echo(
                f"note: a dispute takes {needed} workers that verify, this network has {len(workers)} in all; with fewer"
                " it ends void. Set rules.committee_size, or add workers.",
                err=True,
            )
    if as_json:
        click.echo(json.dumps({"network_dir": str(path), "network_id": network_id, "participants": roles}))
    else:
        click.echo(f"network  {network_id}\nkeys     {path}\nmembers  {', '.join(roles)}")


@keys.command("register-model")
@click.argument("description", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@_NETWORK_DIR
@_AS_JSON
def register(*, description: Path, network_dir: str, as_json: bool) -> None:
    """Sign a model's entry with the operator's key, from what `pocache calibrate --out` has written."""
    with exit_on_error("keys register-model", as_json=as_json):
        from pocache.protocol.errors import ConfigError
        from pocache.runtime.network import NetworkDirectory
        from pocache_cli.bootstrap import register_model

        try:
            entry = register_model(
                NetworkDirectory(Path(network_dir).absolute()), json.loads(description.read_bytes())
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{description} does not describe a model: {error!r}") from error
    consumer = f"generate-{entry.model_id.hex()}"
    if as_json:
        click.echo(json.dumps({"model_id": entry.model_id.hex(), "name": entry.name, "consumer": consumer}))
    else:
        click.echo(f"model     {entry.name}  {entry.model_id.hex()}\nconsumer  {consumer}")


@keys.command()
@_NETWORK_DIR
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="An empty folder."
)
@click.option(
    "--gateway-account",
    "accounts",
    multiple=True,
    metavar="USER",
    help="A user that the deployment's gateways sign for: its keys go into their Secret; repeat for more.",
)
@_AS_JSON
def export(*, network_dir: str, out: Path, accounts: tuple[str, ...], as_json: bool) -> None:
    """Divide a network for a deployment: public files, and one folder of keys for each Secret.

    The operator's keys stay here, and those of users that no gateway signs for.
    """
    with exit_on_error("keys export", as_json=as_json):
        from pocache.runtime.network import NetworkDirectory
        from pocache_cli.deployment import export_network

        done = export_network(NetworkDirectory(Path(network_dir).absolute()), out, accounts)
    if as_json:
        click.echo(json.dumps({"folder": str(done.folder), "secrets": done.secrets}))
        return
    click.echo(f"written to {done.folder}")
    for secret, names in done.secrets.items():
        click.echo(f"  secrets/{secret}: {', '.join(names)}")


@keys.command()
@click.argument("given", type=click.Path(path_type=Path, file_okay=False, exists=True))
@_NETWORK_DIR
@click.option("--name", envvar="POCACHE_NAME", help="Whose keys (also POCACHE_NAME).")
@click.option(
    "--accounts", is_flag=True, help="A gateway's: the keys of every account there, whatever its name."
)
@_AS_JSON
def install(*, given: Path, network_dir: str, name: str | None, accounts: bool, as_json: bool) -> None:
    """Make a process's network directory of the files mounted under GIVEN: network, models and keys."""
    with exit_on_error("keys install", as_json=as_json):
        from pocache.protocol.errors import ConfigError
        from pocache.runtime.network import NetworkDirectory
        from pocache_cli.deployment import install_accounts, install_network

        directory = NetworkDirectory(Path(network_dir).absolute())
        if accounts:
            files = install_accounts(given, directory)
        elif name is None:
            raise ConfigError("say whose keys: --name, or POCACHE_NAME")
        else:
            files = install_network(given, directory, name)
    click.echo(json.dumps({"keys": files}) if as_json else "\n".join(files))


@keys.command("nats-config")
@_NETWORK_DIR
@click.option(
    "--format",
    "form",
    type=click.Choice(["conf", "helm"]),
    default="conf",
    show_default=True,
    help="The server's own configuration, or values for the NATS chart (JSON, which is YAML).",
)
@_AS_JSON
def nats_config(*, network_dir: str, form: str, as_json: bool) -> None:
    """Print what the NATS server must know: the operator, every account, and what each may say and hear."""
    with exit_on_error("keys nats-config", as_json=as_json):
        from pocache.runtime.network import NetworkDirectory
        from pocache_cli.bootstrap import compute_users, load_parties
        from pocache_cli.deployment import render_helm_values, render_users
        from pocache_cli.trust import Trust

        directory = NetworkDirectory(Path(network_dir).absolute())
        text = render_users(directory)
        values = render_helm_values(text)
        users = compute_users(directory, load_parties(directory), directory.load_models())
        trust = Trust(directory)
        core = trust.get_account() if trust.exists else None
    if as_json:
        names = [user.name for user in users]
        report = {"users": names, "core_account": core, "authorization": text, "helm_values": values}
        click.echo(json.dumps(report))
    else:
        click.echo(text if form == "conf" else json.dumps(values, indent=1), nl=form == "helm")


@keys.command()
@click.argument("name")
@_NETWORK_DIR
@_DAYS
@_AS_JSON
def issue(*, name: str, network_dir: str, days: int | None, as_json: bool) -> None:
    """Sign a new NATS JWT for the key that NAME has; the server needs nothing new."""
    with exit_on_error("keys issue", as_json=as_json):
        issued = _get_trust(network_dir).issue(name, days=days)
    _show_issued([issued], as_json=as_json, is_server_to_know=False)


@keys.command()
@click.argument("name")
@_NETWORK_DIR
@_DAYS
@click.option(
    "--signer", is_flag=True, help="Replace the key that signs NAME's JWTs too: none issued so far counts."
)
@_AS_JSON
def rotate(*, name: str, network_dir: str, days: int | None, signer: bool, as_json: bool) -> None:
    """Give NAME a new NATS key and JWT, and revoke the old ones.

    They count until the server has what `pocache keys nats-config` prints.
    """
    with exit_on_error("keys rotate", as_json=as_json):
        trust = _get_trust(network_dir)
        issued = trust.rotate(name, days=days)
        if signer:
            (issued,) = trust.rotate_signers([name], days=days)
    _show_issued([issued], as_json=as_json, is_server_to_know=True)


@keys.command("rotate-operator")
@_NETWORK_DIR
@_AS_JSON
def rotate_operator(*, network_dir: str, as_json: bool) -> None:
    """Replace the NATS operator's key, and sign every account anew; nobody's credentials change.

    Servers take it by a restart with what `pocache keys nats-config` prints then, one after the other.
    """
    with exit_on_error("keys rotate-operator", as_json=as_json):
        old, new = _get_trust(network_dir).rotate_operator()
    if as_json:
        click.echo(json.dumps({"operator": new, "replaced": old}))
        return
    click.echo(f"operator  {new}\nreplaced  {old}")
    click.echo(
        "restart each nats-server with what `pocache keys nats-config` prints now: a reload is refused"
    )


@keys.command()
@click.argument("name")
@_NETWORK_DIR
@_AS_JSON
def revoke(*, name: str, network_dir: str, as_json: bool) -> None:
    """Lock NAME out: its NATS key counts no more once the server has what `pocache keys nats-config` prints."""
    with exit_on_error("keys revoke", as_json=as_json):
        public = _get_trust(network_dir).revoke(name)
    click.echo(
        json.dumps({"name": name, "revoked": public}) if as_json else f"revoked  {name}  {public}\n{_TELL}"
    )


@keys.command()
@_NETWORK_DIR
@_AS_JSON
def accounts(*, network_dir: str, as_json: bool) -> None:
    """Make accounts and JWTs for a network that was created without them."""
    with exit_on_error("keys accounts", as_json=as_json):
        from pocache.runtime.network import NetworkDirectory
        from pocache_cli.bootstrap import create_accounts

        trust = create_accounts(NetworkDirectory(Path(network_dir).absolute()))
        core = trust.get_account()
    click.echo(json.dumps({"core_account": core}) if as_json else f"core account  {core}\n{_TELL}")


def _get_trust(network_dir: str) -> Trust:
    from pocache.runtime.network import NetworkDirectory
    from pocache_cli.trust import Trust

    return Trust(NetworkDirectory(Path(network_dir).absolute()))


def _show_issued(issued: Sequence[Issued], *, as_json: bool, is_server_to_know: bool) -> None:
    if as_json:
        click.echo(json.dumps({"issued": [asdict(one) for one in issued]}))
        return
    for one in issued:
        click.echo(f"{one.name}  {one.public}")
        for file in one.files:
            click.echo(f"  {file}")
    if is_server_to_know:
        click.echo(_TELL)


def _choose_rules(sections: dict[str, Any], rules: str | None) -> dict[str, Any]:
    """Return the sections with the rules that were asked for; ConfigError where they say others."""
    from pocache.protocol.errors import ConfigError

    if rules is None:
        return sections
    stated = sections.get("rules", {})
    if stated.get("name", rules) != rules:
        raise ConfigError(f"--rules says {rules}, the sections say {stated['name']}: leave one out")
    return {**sections, "rules": {**stated, "name": rules}}


def get_committee_size(genesis: Genesis) -> int:
    """Return how many verifiers a committee takes; 0 under rules without one."""
    from pocache.runtime.rules import CommitteeRules

    return genesis.rules.committee_size if isinstance(genesis.rules, CommitteeRules) else 0


def _read_sections(file: Path | None) -> dict[str, Any]:
    from pocache.protocol.errors import ConfigError

    if file is None:
        return {}
    try:
        sections = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error
    allowed = ("rules", "audit", "deadlines", "bounds", "ejection")
    if not isinstance(sections, dict) or not set(sections) <= set(allowed):
        raise ConfigError(f"{file} may have the sections {', '.join(allowed)}, and nothing else")
    return sections
