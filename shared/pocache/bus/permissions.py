"""Who may say and hear what on the bus: one NATS user per service, with the least that its part needs.

A pulling service publishes the pull itself, its acknowledgements, its own subjects and its dead letters; it
subscribes to nothing but its own inbox prefix and the core subjects that it was given. Not covered: the reply subject
of a request is not checked by the server, so whoever may pull can make the server publish a stored message or an API
answer to a subject of its choice. Untrusted parties therefore have an account of their own (``pocache.bus.accounts``); within
one account every effect is authorised by its envelope, never by having arrived.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pocache.bus.jwt import KeyKind, KeyPair, make_key_pair, parse_credentials, read_public
from pocache.protocol.errors import ConfigError

DEAD_LETTER_PREFIX: Final = "dead"
_USER_NKEY: Final = re.compile(r"U[A-Z2-7]{55}")
_SUBJECT: Final = re.compile(r"[^\s\x00-\x1f\x7f]+")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class NatsUser:
    """A transport identity and its permission set; an empty tuple allows nothing.

    ``allow_responses`` lets it answer the requests that it receives, once each and within ``response_ttl_s``.
    """

    name: str
    nkey_public: str
    publish_allow: tuple[str, ...] = ()
    subscribe_allow: tuple[str, ...] = ()
    allow_responses: bool = False
    response_ttl_s: int = 60
    is_guest: bool = False
    """Whether nobody has to trust it: it gets an account of its own."""
    relayed: tuple[str, ...] = ()
    """Of what it may hear, what other guests say."""


def generate_transport_key(entropy: bytes) -> KeyPair:
    """Return the NKey user pair of 32 bytes of entropy, apart from any participant's signing key."""
    return make_key_pair(KeyKind.USER, entropy)


def get_public_key(secret: str) -> str:
    """Return the public NKey of a user's seed, or of credentials. Raises ConfigError when it is neither."""
    return read_public(parse_credentials(secret).seed, KeyKind.USER)


def get_inbox_prefix(role_name: str) -> str:
    """Return the inbox prefix of a role: what its replies and deliveries arrive under, and nobody else's."""
    if not _NAME.fullmatch(role_name):
        raise ConfigError(f"{role_name!r} cannot be part of a subject")
    return f"_INBOX.{role_name}"


def compute_permissions(
    role_name: str,
    nkey_public: str,
    *,
    publish_subjects: Sequence[str] = (),
    pull_consumers: Sequence[tuple[str, str]] = (),
    core_subscriptions: Sequence[str] = (),
    read_streams: Sequence[str] = (),
    serves_requests: bool = False,
    inbox_prefix: str | None = None,
    is_guest: bool = False,
    relayed: Sequence[str] = (),
) -> NatsUser:
    """Return the least-privilege user of one role.

    ``publish_subjects`` are what it stores, sends or requests; ``pull_consumers`` are (stream, durable) pairs;
    ``read_streams`` are streams that it may read from by position.
    """
    publish = list(publish_subjects)
    for stream, durable in pull_consumers:
        publish += [
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
            f"$JS.ACK.{stream}.{durable}.>",
            f"$JS.ACK.*.*.{stream}.{durable}.>",
            f"{DEAD_LETTER_PREFIX}.{stream}.{durable}",
        ]
    for stream in read_streams:
        publish += [f"$JS.API.DIRECT.GET.{stream}", f"$JS.API.DIRECT.GET.{stream}.>"]
    prefix = get_inbox_prefix(role_name) if inbox_prefix is None else inbox_prefix
    return NatsUser(
        name=role_name,
        nkey_public=nkey_public,
        publish_allow=_unique(publish),
        subscribe_allow=_unique([f"{prefix}.>", *core_subscriptions]),
        allow_responses=serves_requests,
        is_guest=is_guest,
        relayed=tuple(relayed),
    )


def compute_provisioner_permissions(nkey_public: str, *, name: str = "provisioner") -> NatsUser:
    """Return the user that creates streams and consumers, and nothing else: it reads and writes no message."""
    return NatsUser(
        name=name,
        nkey_public=nkey_public,
        publish_allow=(
            "$JS.API.INFO",
            "$JS.API.STREAM.CREATE.*",
            "$JS.API.STREAM.INFO.*",
            "$JS.API.CONSUMER.CREATE.>",
            "$JS.API.CONSUMER.DURABLE.CREATE.*.*",
            "$JS.API.CONSUMER.INFO.*.*",
        ),
        subscribe_allow=(f"{get_inbox_prefix(name)}.>",),
    )


def compute_collector_permissions(
    nkey_public: str, advisory_consumer: tuple[str, str], *, name: str = "deadletters"
) -> NatsUser:
    """Return the user of the dead-letter collector: it copies from any stream and deletes what it copied."""
    base = compute_permissions(
        name,
        nkey_public,
        publish_subjects=(
            f"{DEAD_LETTER_PREFIX}.>",
            "$JS.API.STREAM.MSG.GET.*",
            "$JS.API.STREAM.MSG.DELETE.*",
            "$JS.API.STREAM.INFO.*",
        ),
        pull_consumers=(advisory_consumer,),
    )
    return base


def render_authorization(users: Sequence[NatsUser]) -> str:
    """Return the ``authorization`` block of the server's configuration. Raises ConfigError on an unusable user."""
    keys = [user.nkey_public for user in users]
    if len(set(keys)) != len(keys):
        raise ConfigError("two NATS users have the same transport key")
    body = "\n".join(_render_user(user) for user in users)
    return f"authorization {{\n  users: [\n{body}\n  ]\n}}\n"


def _render_user(user: NatsUser) -> str:
    if not _USER_NKEY.fullmatch(user.nkey_public):
        raise ConfigError(f"NATS user {user.name}: not a public user NKey")
    permissions = [
        f"publish: {_render_side(user.publish_allow)}",
        f"subscribe: {_render_side(user.subscribe_allow)}",
    ]
    if user.allow_responses:
        permissions.append(f'allow_responses: {{ max: 1, expires: "{user.response_ttl_s}s" }}')
    return f"    {{ nkey: {user.nkey_public}, permissions: {{ {', '.join(permissions)} }} }}"


def _render_side(subjects: Sequence[str]) -> str:
    for subject in subjects:
        if not _SUBJECT.fullmatch(subject):
            raise ConfigError(f"{subject!r} is not a subject")
    if not subjects:
        return '{ deny: [">"] }'
    return f"{{ allow: [{', '.join(json.dumps(subject) for subject in subjects)}] }}"


def _unique(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subjects))
