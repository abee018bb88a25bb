"""A network's directory, divided for a deployment: what everybody may read, and for each process its own keys.

Owns the names that a deployment's manifests refer to: the Secrets, their keys, and where a process finds both in its own
network directory. The operator's keys are never part of it, and a user's only where a gateway is to sign for it, by name.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pocache.bus.accounts import render_operator
from pocache.bus.permissions import render_authorization
from pocache.protocol.errors import ConfigError
from pocache.protocol.ids import ParticipantId
from pocache.runtime.network import NetworkDirectory, read_secret, write_secret
from pocache.service.provisioning import Party
from pocache.wire.topics import Role
from pocache_cli.bootstrap import (
    DEADLETTERS,
    PROVISIONER,
    READER,
    compute_operator,
    compute_users,
    load_parties,
    read_roles,
)
from pocache_cli.trust import Trust

PARTICIPANTS_FILE: Final = "participants.json"
"""Who takes part, in public: the provisioner makes consumers for workers whose keys it never sees."""
GENESIS_FILE: Final = "genesis.json"
NATS_FILE: Final = "nats.json"
"""What the account of the streams is called: monitoring and scalers ask for it by that name."""
AUTHORITY_FILE: Final = "ca.pem"
"""Whose certificates the bus and its clients trust; a network without it has no TLS."""
NAME_START: Final = "pocache-"
NETWORK_FOLDER, MODELS_FOLDER, SECRETS_FOLDER, KEYS_FOLDER = "network", "models", "secrets", "keys"
AUTH_FILE: Final = "auth.conf"
GATEWAY: Final = "gateway"
"""No participant: it has the keys of the accounts that it signs for, and the reader's for the explorer."""

_SUFFIXES: Final[Mapping[str, str]] = {
    "signing.seed": "keys/{name}.seed",
    "transport.seed": "transport/{name}.seed",
    "transport.jwt": "transport/{name}.jwt",
    "tls.pem": "tls/{name}.pem",
    "tls.key": "tls/{name}.key",
    "bls.hex": "secrets/beacon-bls.hex",
    "share.hex": "secrets/{name}-share.hex",
}
"""How a key is called in a Secret, behind the name of its owner, and where it lies in the network directory."""
_NUMBERED: Final = re.compile(r"-[1-9][0-9]*$")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written where."""

    folder: Path
    secrets: Mapping[str, tuple[str, ...]]


def load_participants(directory: NetworkDirectory) -> tuple[Party, ...]:
    """Return everybody of a network, from its public list where there is one, else from the keys. Raises ConfigError."""
    file = directory.path / PARTICIPANTS_FILE
    if not file.exists():
        return load_parties(directory)
    try:
        return tuple(
            Party(name, Role(one["role"]), ParticipantId(one["participant"]), str(one["transport"]))
            for name, one in json.loads(file.read_bytes()).items()
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not a list of participants: {error}") from error


def plan_secrets(directory: NetworkDirectory, accounts: Sequence[str] = ()) -> dict[str, dict[str, Path]]:
    """Return the Secrets of a deployment: for each its keys, and the file that each is read from.

    One for each process; workers that are numbered share the one of their name, because one set of Pods runs them. With
    ``accounts`` there is one for the gateways that sign for these users. Raises ConfigError for an account that is no user.
    """
    plan: dict[str, dict[str, Path]] = {}
    roles = read_roles(directory)
    for name, role in roles.items():
        if role in (Role.OPERATOR, Role.USER):
            continue
        group = _NUMBERED.sub("", name) if role is Role.WORKER else name
        plan.setdefault(NAME_START + group, {}).update(_list_keys(directory, name, role))
    for name in (PROVISIONER, DEADLETTERS):
        plan[NAME_START + name] = _list_keys(directory, name, None)
    for account in accounts:
        if roles.get(account) is not Role.USER:
            users = ", ".join(name for name, role in roles.items() if role is Role.USER)
            raise ConfigError(
                f"a gateway cannot sign for {account}, which is no user here; there are: {users}"
            )
        plan.setdefault(NAME_START + GATEWAY, {}).update(_list_keys(directory, account, Role.USER))
    if accounts and (directory.path / "transport" / f"{READER}.seed").exists():
        plan[NAME_START + GATEWAY].update(_list_keys(directory, READER, None))
    return plan


def export_network(directory: NetworkDirectory, out: Path, accounts: Sequence[str] = ()) -> Exported:
    """Write a deployment's files into an empty folder: ``network``, ``models``, and ``secrets`` with one folder each.

    ``accounts`` are the users that a gateway signs for. Raises ConfigError when the folder has something in it.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: keys are not written over others")
    secrets = plan_secrets(directory, accounts)
    models = directory.load_models()
    parties = load_parties(directory)
    for name in (NETWORK_FOLDER, MODELS_FOLDER):
        (out / name).mkdir(parents=True)
    (out / NETWORK_FOLDER / GENESIS_FILE).write_bytes(directory.genesis.canonical_json())
    if (directory.path / AUTHORITY_FILE).exists():
        shutil.copyfile(directory.path / AUTHORITY_FILE, out / NETWORK_FOLDER / AUTHORITY_FILE)
    listed = {
        party.name: {
            "role": party.role.value,
            "participant": party.participant,
            "transport": party.transport_public,
        }
        for party in parties
    }
    (out / NETWORK_FOLDER / PARTICIPANTS_FILE).write_text(
        json.dumps(listed, indent=1) + "\n", encoding="ascii"
    )
    trust = Trust(directory)
    if trust.exists:
        (out / NETWORK_FOLDER / NATS_FILE).write_text(
            json.dumps({"core_account": trust.get_account()}) + "\n", encoding="ascii"
        )
    for model_id, model in models.items():
        (out / MODELS_FOLDER / f"{model_id.hex()}.entry").write_bytes(model.envelope)
    for secret, keys in secrets.items():
        for key, file in keys.items():
            is_public = file.suffix == ".pem"
            text = file.read_text(encoding="ascii").strip() if is_public else read_secret(file)
            write_secret(out / SECRETS_FOLDER / secret / key, text)
    return Exported(out, {secret: tuple(keys) for secret, keys in secrets.items()})


def install_network(given: Path, directory: NetworkDirectory, name: str) -> tuple[str, ...]:
    """Make one process's network directory of what was mounted for it, and return the files of its own keys.

    ``given`` holds ``network``, ``models`` and ``keys``. Mounted Secrets are readable by a group, and a key that others
    can read is refused: so each is copied to a file of the process's own. Raises ConfigError naming what is missing.
    """
    if not (given / KEYS_FOLDER / f"{name}.transport.seed").is_file():
        raise ConfigError(
            f"no {name}.transport.seed in {given / KEYS_FOLDER}: the Secret lacks it, or POCACHE_NAME is wrong"
        )
    _install_public(given, directory)
    return _install_keys(given, directory, (name, READER))  # who shows the record reads it as the reader


def install_accounts(given: Path, directory: NetworkDirectory) -> tuple[str, ...]:
    """Make a gateway's network directory: as :func:`install_network`, with the keys of every account that is mounted.

    Raises ConfigError where there is no account, or one that lacks a key.
    """
    keys = given / KEYS_FOLDER
    signing, transport = ".signing.seed", ".transport.seed"
    accounts = sorted(file.name.removesuffix(signing) for file in keys.glob(f"*{signing}"))
    if not accounts:
        raise ConfigError(
            f"no account's signing key in {keys}: make the Secret by `pocache keys export --gateway-account NAME`"
        )
    missing = [f"{name}{transport}" for name in accounts if not (keys / f"{name}{transport}").is_file()]
    if missing:
        raise ConfigError(
            f"no {', '.join(missing)} in {keys}: the Secret lacks what its accounts connect with"
        )
    _install_public(given, directory)
    return _install_keys(given, directory, (*accounts, READER))


def render_users(directory: NetworkDirectory) -> str:
    """Return what the server must know of a network's users: its accounts, or a list of keys where it has none."""
    users = compute_users(directory, load_parties(directory), directory.load_models())
    operator = compute_operator(directory, users)
    return render_authorization(users) if operator is None else render_operator(operator)


def render_helm_values(users: str) -> dict[str, object]:
    """Return values for the NATS chart that let in what :func:`render_users` wrote: a file beside ``nats.conf``."""
    return {
        "config": {"merge": {"pocache$include": f"./{AUTH_FILE}"}},
        "configMap": {"merge": {"data": {AUTH_FILE: users}}},
    }


def _list_keys(directory: NetworkDirectory, name: str, role: Role | None) -> dict[str, Path]:
    found = {}
    for suffix, target in _SUFFIXES.items():
        file = directory.path / target.format(name=name)
        is_wanted = suffix == "transport.seed" or (suffix == "signing.seed" and role is not None)
        is_beacon_key = role is Role.BEACON and suffix in ("bls.hex", "share.hex")
        is_optional = is_beacon_key or suffix in ("transport.jwt", "tls.pem", "tls.key")
        if is_wanted or (is_optional and file.exists()):
            found[f"{name}.{suffix}"] = file
    return found


def _install_public(given: Path, directory: NetworkDirectory) -> None:
    for source, target in ((NETWORK_FOLDER, ""), (MODELS_FOLDER, "models")):
        folder = directory.path / target
        folder.mkdir(parents=True, exist_ok=True)
        if not (given / source).is_dir():
            raise ConfigError(f"{given / source} is not there: mount the network's {source} files")
        for file in sorted(one for one in (given / source).iterdir() if one.is_file()):
            shutil.copyfile(file, folder / file.name)


def _install_keys(given: Path, directory: NetworkDirectory, owners: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        _install_key(file, directory.path / target.format(name=owner))
        for owner in owners
        for suffix, target in _SUFFIXES.items()
        if (file := given / KEYS_FOLDER / f"{owner}.{suffix}").is_file()
    )


def _install_key(source: Path, target: Path) -> str:
    try:
        text = source.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the key {source}: {error}") from error
    target.unlink(missing_ok=True)  # of the start before
    write_secret(target, text)
    return str(target)
