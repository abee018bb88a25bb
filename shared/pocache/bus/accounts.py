"""NATS accounts: one for the core services, and one for each party that nobody has to trust (docs/protocol.md 11.9).

An account is a name space of its own: nothing crosses but what the core's account exports and a guest's imports. Both
follow from the permission sets of ``pocache.bus.permissions``: what a guest may publish it imports as services, what
it may hear as streams. The server delivers an answer into the account that asked, so the reply subject that a guest
chooses names something of its own account, where nobody else listens. That is why guests do not share an account: in a
shared one, a chosen reply reaches the inboxes of the others.

What a guest says to another (tokens) passes the core as a service of the listening guest's account, because the server
does not re-export a service's messages as a stream. Permissions are templates of scoped signing keys in the account's JWT: a
role's permissions change there, and the users' own JWTs stay as they are.

Not covered: whoever holds the operator's or an account's seed; how often a guest may ask (limits of connections and
subscriptions only).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pocache.bus.jwt import sign_claims
from pocache.bus.permissions import NatsUser
from pocache.protocol.errors import ConfigError

CORE: Final = "core"
SYSTEM: Final = "SYS"
GUEST_CONNECTIONS_MAX: Final = 64
GUEST_SUBSCRIPTIONS_MAX: Final = 4_096
_NO_LIMIT: Final = -1
_NS_PER_S: Final = 1_000_000_000
_PULL: Final = "$JS.API.CONSUMER.MSG.NEXT."
_NAMED: Final = re.compile(r"(?:[a-z]+-)?U[A-Z2-7]{55}")
"""A token that names a participant, or a consumer of one."""


@dataclass(frozen=True, slots=True)
class AccountKeys:
    """An account's own key, and the scoped signing key of each of its users; the seeds stay with the operator."""

    public: str
    signers: Mapping[str, str] = field(default_factory=dict)
    """User name -> public signing key."""
    revoked: Mapping[str, int] = field(default_factory=dict)
    """Public user key -> the second up to which its JWTs count no more."""


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """What a server trusts: the operator, the system account, and every account by its public key."""

    operator_jwt: str
    system_account: str
    accounts: Mapping[str, str]


def compute_operator_config(
    operator_seed: str,
    operator_jwt: str,
    system_account: str,
    accounts: Mapping[str, AccountKeys],
    users: Sequence[NatsUser],
    *,
    issued_s: int,
) -> OperatorConfig:
    """Return the signed accounts of these users: all but guests in ``core``, each guest in one of its own name.

    Raises ConfigError when an account, or a user's signing key, is missing.
    """
    guests = [user for user in users if user.is_guest]
    core_users = [user for user in users if not user.is_guest]
    missing = [name for name in (CORE, *(user.name for user in guests)) if name not in accounts]
    if missing:
        raise ConfigError(f"no account for {', '.join(missing)}: run `pocache keys issue`")
    core = accounts[CORE].public
    claims = [
        {
            "sub": system_account,
            "name": SYSTEM,
            "nats": {"type": "account", "version": 2, "limits": _compute_limits()},
        },
        _compute_core_claims(accounts, core_users, guests),
        *(_compute_guest_claims(accounts[guest.name], guest, core) for guest in guests),
    ]
    return OperatorConfig(
        operator_jwt=operator_jwt,
        system_account=system_account,
        accounts={str(one["sub"]): sign_claims(operator_seed, one, issued_s=issued_s) for one in claims},
    )


def compute_operator_claims(operator_public: str, system_account: str) -> dict[str, Any]:
    """Return the claims of the operator about itself; signed once, because no server reloads another."""
    return {
        "sub": operator_public,
        "name": "pocache",
        "nats": {"type": "operator", "version": 2, "system_account": system_account},
    }


def compute_user_claims(
    name: str, user_public: str, account_public: str, *, expires_s: int | None
) -> dict[str, Any]:
    """Return the claims of a user's JWT, for its account's scoped signing key: who it is, and until when."""
    return {
        "sub": user_public,
        "name": name,
        **({} if expires_s is None else {"exp": expires_s}),
        "nats": {"type": "user", "version": 2, "issuer_account": account_public},
    }


def compute_exports(guests: Iterable[NatsUser]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what the core account offers: services, and streams.

    A token that names a participant becomes ``*``: whose it is, is in the guest's import, which the operator has signed.
    """
    services: set[str] = set()
    streams: set[str] = set()
    for guest in guests:
        services.update(_generalise(subject) for subject in guest.publish_allow)
        streams.update(_generalise(subject) for subject in _list_streams(guest))
    return _drop_covered(services), _drop_covered(streams)


def render_operator(config: OperatorConfig) -> str:
    """Return the server's configuration of its operator, with every account in it: no resolver to be asked."""
    preload = "\n".join(f"  {public}: {token}" for public, token in config.accounts.items())
    return (
        f"operator: {config.operator_jwt}\nsystem_account: {config.system_account}\n"
        f"resolver: MEMORY\nresolver_preload {{\n{preload}\n}}\n"
    )


def is_covered(subject: str, by: str) -> bool:
    """Answer whether every subject that ``subject`` matches is matched by the pattern ``by``."""
    narrow, wide = subject.split("."), by.split(".")
    for index, part in enumerate(wide):
        if part == ">":
            return len(narrow) > index
        if index >= len(narrow) or narrow[index] == ">" or part not in ("*", narrow[index]):
            return False
    return len(narrow) == len(wide)


def _compute_core_claims(
    accounts: Mapping[str, AccountKeys], users: Sequence[NatsUser], guests: Sequence[NatsUser]
) -> dict[str, Any]:
    services, streams = compute_exports(guests)
    exports = [
        {
            "name": subject,
            "subject": subject,
            "type": "service",
            "response_type": "Stream" if subject.startswith(_PULL) else "Singleton",
        }
        for subject in services
    ]
    exports += [{"name": subject, "subject": subject, "type": "stream"} for subject in streams]
    relayed = [
        {"name": guest.name, "subject": subject, "account": accounts[guest.name].public, "type": "service"}
        for guest in guests
        for subject in guest.relayed
    ]
    keys = accounts[CORE]
    return {
        "sub": keys.public,
        "name": CORE,
        "nats": {
            "type": "account",
            "version": 2,
            "limits": {
                **_compute_limits(),
                **dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), _NO_LIMIT),
            },
            "exports": exports,
            "imports": relayed,
            "signing_keys": [_compute_scope(keys, user) for user in users],
            "revocations": dict(keys.revoked),
        },
    }


def _compute_guest_claims(keys: AccountKeys, guest: NatsUser, core: str) -> dict[str, Any]:
    imports = [
        {"name": subject, "subject": subject, "account": core, "type": "service"}
        for subject in guest.publish_allow
    ]
    imports += [
        {"name": subject, "subject": subject, "account": core, "type": "stream"}
        for subject in _list_streams(guest)
    ]
    exports = [
        {"name": subject, "subject": subject, "type": "service", "response_type": "Singleton"}
        for subject in guest.relayed
    ]
    limits = {**_compute_limits(), "conn": GUEST_CONNECTIONS_MAX, "subs": GUEST_SUBSCRIPTIONS_MAX, "leaf": 0}
    return {
        "sub": keys.public,
        "name": guest.name,
        "nats": {
            "type": "account",
            "version": 2,
            "limits": limits,
            "exports": exports,
            "imports": imports,
            "signing_keys": [_compute_scope(keys, guest)],
            "revocations": dict(keys.revoked),
        },
    }


def _compute_scope(keys: AccountKeys, user: NatsUser) -> dict[str, Any]:
    """Return a signing key that can make users of this one permission set and no other."""
    if user.name not in keys.signers:
        raise ConfigError(f"no signing key for {user.name}: run `pocache keys issue {user.name}`")
    template: dict[str, Any] = {
        "pub": _compute_side(user.publish_allow),
        "sub": _compute_side(user.subscribe_allow),
        **dict.fromkeys(("subs", "data", "payload"), _NO_LIMIT),
    }
    if user.allow_responses:
        template["resp"] = {"max": 1, "ttl": user.response_ttl_s * _NS_PER_S}
    return {"kind": "user_scope", "key": keys.signers[user.name], "role": user.name, "template": template}


def _compute_side(subjects: Sequence[str]) -> dict[str, list[str]]:
    return {"allow": list(subjects)} if subjects else {"deny": [">"]}


def _compute_limits() -> dict[str, Any]:
    numbers = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
    return {**dict.fromkeys(numbers, _NO_LIMIT), "wildcards": True}


def _list_streams(guest: NatsUser) -> tuple[str, ...]:
    return tuple(
        subject
        for subject in guest.subscribe_allow
        if subject not in guest.relayed and not subject.startswith("_INBOX.")
    )


def _generalise(subject: str) -> str:
    return ".".join("*" if _NAMED.fullmatch(token) else token for token in subject.split("."))


def _drop_covered(subjects: Iterable[str]) -> tuple[str, ...]:
    """Return the subjects without those that another one covers: a server refuses exports that overlap."""
    unique = sorted(set(subjects))
    return tuple(
        one for one in unique if not any(other != one and is_covered(one, other) for other in unique)
    )
