"""``pocache api-keys``: who may ask the gateway, for which account, and how much.

Works on the gateway's own table, wherever that is; a key is shown once, when it is issued, and never kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from pocache.runtime.network import NetworkDirectory
    from pocache.storage.api_keys import ApiKey, ApiKeyStore

DATABASE = "gateway"

_NETWORK_DIR = click.option(
    "--network-dir",
    envvar="POCACHE_NETWORK_DIR",
    default=".pocache/network",
    show_default=True,
    help="The network directory; POCACHE_STATE_DIR and POCACHE_DATABASE_URL count as for the gateway.",
)
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group("api-keys")
def api_keys() -> None:
    """Issue, list and revoke the gateway's API keys."""


@api_keys.command()
@click.argument("account")
@_NETWORK_DIR
@click.option("--label", default="", help="What the key is for.")
@click.option(
    "--requests-per-minute",
    default=600,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Its rate.",
)
@click.option(
    "--concurrent", default=64, show_default=True, type=click.IntRange(1, 100_000), help="Its jobs at once."
)
@click.option(
    "--body-bytes",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(1_000, 16_000_000),
    help="Its largest request.",
)
@_AS_JSON
def issue(
    *,
    account: str,
    network_dir: str,
    label: str,
    requests_per_minute: int,
    concurrent: int,
    body_bytes: int,
    as_json: bool,
) -> None:
    """Make a key for ACCOUNT, a user of the network, and print it; it is not shown again."""
    with exit_on_error("api-keys issue", as_json=as_json):
        from pocache.storage.api_keys import KeyLimits

        with _open(network_dir) as (directory, store):
            _verify_account(directory, account)
            limits = KeyLimits(requests_per_minute, concurrent, body_bytes)
            secret, entry = store.issue(account, label=label, limits=limits)
    if as_json:
        click.echo(json.dumps({"key": secret, **_describe(entry)}))
    else:
        click.echo(secret)
        click.echo(f"key {entry.key_id} of {account}: shown this once, revoked by its id", err=True)


@api_keys.command("list")
@_NETWORK_DIR
@_AS_JSON
def list_keys(*, network_dir: str, as_json: bool) -> None:
    """List every key there ever was, without its secret."""
    with exit_on_error("api-keys list", as_json=as_json):
        with _open(network_dir) as (_, store):
            entries = store.list()
    if as_json:
        click.echo(json.dumps({"keys": [_describe(one) for one in entries]}))
        return
    for one in entries:
        made = datetime.fromtimestamp(one.created_ms / 1_000, UTC).isoformat(timespec="seconds")
        state = "revoked" if one.is_revoked else "good"
        click.echo(f"{one.key_id}  {state:8}{one.account:16}{made}  {one.label}")


@api_keys.command()
@click.argument("key_id")
@_NETWORK_DIR
@_AS_JSON
def revoke(*, key_id: str, network_dir: str, as_json: bool) -> None:
    """Take back the key KEY_ID; gateways refuse it within a second."""
    with exit_on_error("api-keys revoke", as_json=as_json):
        from pocache.protocol.errors import ConfigError

        with _open(network_dir) as (_, store):
            if not store.revoke(key_id):
                raise ConfigError(f"no key {key_id} that is still good: see `pocache api-keys list`")
    click.echo(json.dumps({"key_id": key_id, "revoked": True}) if as_json else f"revoked {key_id}")


@contextmanager
def _open(network_dir: str) -> Iterator[tuple[NetworkDirectory, ApiKeyStore]]:
    from pocache.runtime.config import load_settings
    from pocache.storage.api_keys import open_api_keys

    # No bus is needed for this; a network that is down has keys as well.
    environ = {"POCACHE_NATS_URL": "-", **os.environ, "POCACHE_NETWORK_DIR": network_dir}
    settings = load_settings(environ, name_default="gateway")
    with open_api_keys(settings.database(DATABASE)) as store:
        yield settings.directory, store


def _verify_account(directory: NetworkDirectory, account: str) -> None:
    """Refuse an account whose keys are not here, or that is no user's. Raises ConfigError."""
    from pocache.protocol.errors import ConfigError
    from pocache.runtime.network import SERVICE_ROLES

    if account in {role.value for role in SERVICE_ROLES}:
        raise ConfigError(f"{account} is a service, and no account that asks for jobs")
    try:
        directory.signing_key(account)
    except ConfigError as error:
        raise ConfigError(f"the gateway cannot sign for {account}: {error}") from error


def _describe(entry: ApiKey) -> dict[str, Any]:
    return {**asdict(entry), "limits": asdict(entry.limits)}
