"""Making a network: keys for everybody, a genesis, the operator's signed model entry. Nothing here needs a bus."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pocache.bus.accounts import OperatorConfig
from pocache.bus.deadletter import ADVISORY_CONSUMER
from pocache.bus.permissions import (
    NatsUser,
    compute_collector_permissions,
    compute_provisioner_permissions,
    generate_transport_key,
    get_public_key,
)
from pocache.protocol.errors import ConfigError
from pocache.protocol.ids import ModelId, ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.protocol.payoff import FIXED_FEE_COMMITTEE
from pocache.receipt.trust import make_trust
from pocache.runtime.network import (
    SERVICE_ROLES,
    Genesis,
    Model,
    NetworkDirectory,
    validate_sections,
    write_secret,
)
from pocache.runtime.profiles import verify_profile_fits
from pocache.service.provisioning import Party, compute_observer, compute_reader, compute_user
from pocache.wire.envelope import seal
from pocache.wire.messages import ModelEntryV1
from pocache.wire.topics import Role
from pocache_cli.bootstrap_beacon import BeaconPlan, create_chain
from pocache_cli.trust import Trust

PARTIES_FILE: Final = "parties.json"
TRUST_FILE: Final = "trust.json"
"""Whom this network's users trust, for `pocache verify`: who makes a network knows that it is this one."""
PROVISIONER: Final = "provisioner"
DEADLETTERS: Final = "deadletters"
OBSERVER: Final = "observer"
READER: Final = "reader"
"""NATS users that sign nothing: one creates streams and consumers, one collects dead letters, one only listens to what is
public, one reads all of the record for the explorer and for the operator's commands."""

PROMPT_TOKEN_MICRO: Final = 1_000
OUTPUT_TOKEN_MICRO: Final = 10_000
VERIFY_TOKEN_MICRO: Final = 1_000
"""A token verified costs about what one of the prompt does: both are prefill."""


COMMITTEE_SIZE_DEFAULT: Final = 7
COMMITTEE_SIZE_MIN: Final = 3


def plan_rules(rules: str, verifier_count: int, **changes: Any) -> dict[str, Any]:
    """Return the genesis' rules for a network with so many verifiers; ``changes`` are for `fixed-fee-committee`.

    A committee is drawn from whoever does not sit in the job yet: it is the largest odd number, up to the default, that
    leaves one verifier for the audit.
    """
    if rules != FIXED_FEE_COMMITTEE:
        return {"name": rules}
    size = min(COMMITTEE_SIZE_DEFAULT, max(COMMITTEE_SIZE_MIN, (verifier_count - 2) // 2 * 2 + 1))
    return {"name": rules, "committee_size": size, **changes}


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """Who takes part in a new network, and what its genesis says beside the defaults."""

    name: str
    users: tuple[str, ...]
    workers: tuple[str, ...]
    is_demo: bool = False
    sections: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    """By name; None, or none of this name, is the default, which for ``ejection`` is that there is none."""
    period_s: int = 3
    beacon: BeaconPlan = field(default_factory=BeaconPlan)
    witnesses: tuple[str, ...] = ()
    """Who cosigns the log; on the bus they are users that ask and say no more than that."""
    has_accounts: bool = True
    """Whether nobody shares a NATS account with those it need not trust; else all are keys in one account."""


def create_network(path: Path, plan: NetworkPlan) -> NetworkDirectory:
    """Write keys and genesis into an empty directory; an existing network there is opened instead.

    Raises PayoffError, before anything is written, for rules under which a cheat would pay.
    """
    directory = NetworkDirectory(path)
    if (path / "genesis.json").exists():
        return directory
    if (path / "keys").exists():
        raise ConfigError(
            f"{path} has keys but no genesis, as after an interrupted start: remove it, or choose another"
        )
    sections = {name: dict(section) for name, section in plan.sections.items() if section is not None}
    validate_sections(sections)
    members = plan.beacon.member_names
    parties = {role.value: role for role in SERVICE_ROLES if not (members and role is Role.BEACON)}
    parties.update(dict.fromkeys(members, Role.BEACON))
    parties.update(dict.fromkeys(plan.users, Role.USER))
    parties.update(dict.fromkeys(plan.workers, Role.WORKER))
    parties.update(dict.fromkeys(plan.witnesses, Role.USER))
    keys = {name: _create_keys(path, name) for name in parties}
    for name in (PROVISIONER, DEADLETTERS, OBSERVER, READER):
        _create_transport_key(path, name)
    ids = {name: key.participant_id for name, key in keys.items()}
    if members:
        ids[Role.BEACON.value] = ids[
            members[0]
        ]  # the genesis names one for each service; rounds may be any member's
    now_s = int(time.time())
    chain = create_chain(path, plan.beacon, ids, genesis_s=now_s, period_s=plan.period_s)
    genesis = Genesis.model_validate(
        {
            "name": plan.name,
            "created_ms": now_s * 1_000,
            "signers": {role.value: ids[role.value] for role in SERVICE_ROLES},
            "chain": chain,
            "demo": plan.is_demo,
            **({"witnesses": tuple(ids[name] for name in plan.witnesses)} if plan.witnesses else {}),
            **sections,
        }
    )
    (path / PARTIES_FILE).write_text(
        json.dumps({name: role.value for name, role in parties.items()}, indent=1), encoding="ascii"
    )
    directory.write_genesis(genesis)
    (path / TRUST_FILE).write_text(make_trust(genesis).to_json(), encoding="ascii")
    if plan.has_accounts:
        create_accounts(directory)
    return directory


def create_accounts(directory: NetworkDirectory) -> Trust:
    """Make the NATS operator, an account for the services and one for each guest, and everybody's JWT.

    Raises ConfigError on a network that has accounts.
    """
    trust = Trust(directory)
    if trust.exists:
        raise ConfigError(f"{directory.path} has accounts already")
    for name in (OBSERVER, READER):
        if not (directory.path / "transport" / f"{name}.seed").exists():
            _create_transport_key(directory.path, name)
    roles = read_roles(directory)
    guests = [name for name, role in roles.items() if role in (Role.USER, Role.WORKER)]
    trust.create(
        (*(name for name in roles if name not in guests), PROVISIONER, DEADLETTERS, READER),
        (*guests, OBSERVER),
    )
    return trust


def load_parties(directory: NetworkDirectory) -> tuple[Party, ...]:
    """Return everybody whose keys lie in this directory."""
    return tuple(
        Party(
            name=name,
            role=role,
            participant=directory.signing_key(name).participant_id,
            transport_public=get_public_key(directory.transport_seed(name)),
        )
        for name, role in read_roles(directory).items()
    )


def read_roles(directory: NetworkDirectory) -> dict[str, Role]:
    """Return the names and roles of a network that was created here. Raises ConfigError."""
    file = directory.path / PARTIES_FILE
    try:
        return {name: Role(role) for name, role in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error


def pick_user(directory: NetworkDirectory, name: str | None) -> str:
    """Return the user of this name, or the first there is; ConfigError that lists them where there is none."""
    users = [one for one, role in read_roles(directory).items() if role is Role.USER]
    if name is None and users:
        return users[0]
    if name not in users or name is None:
        raise ConfigError(
            f"no user {name or ''} in {directory.path}; there are: {', '.join(users) or 'none'}"
        )
    return name


def get_workers(parties: Iterable[Party]) -> tuple[ParticipantId, ...]:
    """Return the workers' ids."""
    return tuple(party.participant for party in parties if party.role is Role.WORKER)


def compute_users(
    directory: NetworkDirectory, parties: Sequence[Party], models: Iterable[ModelId]
) -> tuple[NatsUser, ...]:
    """Return the NATS user of each party, of the provisioner, and of the dead-letter collector."""
    model_ids = tuple(models)
    return (
        *(compute_user(party, model_ids) for party in parties),
        compute_provisioner_permissions(
            get_public_key(directory.transport_seed(PROVISIONER)), name=PROVISIONER
        ),
        compute_collector_permissions(
            get_public_key(directory.transport_seed(DEADLETTERS)),
            (ADVISORY_CONSUMER.stream, ADVISORY_CONSUMER.durable),
            name=DEADLETTERS,
        ),
        *_compute_observers(directory),
    )


def compute_operator(directory: NetworkDirectory, users: Sequence[NatsUser]) -> OperatorConfig | None:
    """Return the accounts of these users as the server has to know them; None on a network without accounts."""
    trust = Trust(directory)
    return trust.compute_operator(users) if trust.exists else None


def _compute_observers(directory: NetworkDirectory) -> tuple[NatsUser, ...]:
    """Return those that only read; a network that was made before there were any has no keys of theirs."""
    return tuple(
        compute(name, get_public_key(directory.transport_seed(name)))
        for name, compute in ((OBSERVER, compute_observer), (READER, compute_reader))
        if (directory.path / "transport" / f"{name}.seed").exists()
    )


def register_model(directory: NetworkDirectory, description: Mapping[str, Any]) -> ModelEntryV1:
    """Sign and store the entry of a calibrated model, as ``pocache calibrate`` describes it.

    Raises ConfigError for a profile that was measured for something else than it describes.
    """
    entry = ModelEntryV1(
        model_id=bytes.fromhex(description["model_id"]),
        name=description["name"],
        vocab_size=description["vocab_size"],
        context_tokens_max=description["context_tokens_max"],
        eos_tokens=tuple(description["eos_tokens"]),
        layer_count=description["layer_count"],
        stack=description["stack"],
        row_schema=_canonical_json(description["row_schema"]),
        profile=_canonical_json(description["profile"]),
        prompt_token_micro=PROMPT_TOKEN_MICRO,
        output_token_micro=OUTPUT_TOKEN_MICRO,
        verify_token_micro=VERIFY_TOKEN_MICRO,
    )
    verify_profile_fits(Model(entry), is_demo=directory.genesis.demo)
    operator = directory.signing_key(Role.OPERATOR.value)
    directory.write_model(entry.model_id.hex(), seal(operator, directory.genesis.network_id, entry))
    return entry


def _create_keys(path: Path, name: str) -> SigningKey:
    key = SigningKey.generate(secrets.token_bytes(32))
    write_secret(path / "keys" / f"{name}.seed", key.seed_text)
    _create_transport_key(path, name)
    return key


def _create_transport_key(path: Path, name: str) -> None:
    write_secret(path / "transport" / f"{name}.seed", generate_transport_key(secrets.token_bytes(32)).seed)


def _canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
