"""The provisioner: the only part that creates streams and consumers.

Creating is idempotent; what exists with other settings is refused by name and never changed, because the server
would rewrite an existing consumer silently and a stream's bounds are promises to those who publish. A change of
settings is an operator's decision, not a side effect of a start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import nats.errors
from nats.js import api
from nats.js.errors import NotFoundError

from pocache.bus.specs import ConsumerSpec, StreamSpec
from pocache.protocol.errors import BusError

if TYPE_CHECKING:
    from nats.js import JetStreamContext

PATIENCE_S: Final = 60.0
"""How long a server may leave one question unanswered."""
_NANOSECONDS: Final = 1_000_000_000


class DriftError(BusError):
    """A stream or consumer exists with other settings than those that are wanted."""


async def provision(
    js: JetStreamContext, streams: Sequence[StreamSpec], consumers: Sequence[ConsumerSpec]
) -> None:
    """Create what is missing. Raises DriftError naming every setting that differs from what exists."""
    try:
        for stream in streams:
            await _ask_until_answered(lambda wanted=stream: _provision_stream(js, wanted))  # type: ignore[misc]
        for consumer in consumers:
            await _ask_until_answered(lambda wanted=consumer: _provision_consumer(js, wanted))  # type: ignore[misc]
    except nats.errors.Error as error:
        raise BusError(f"provisioning: {error}") from error


async def find_drift(
    js: JetStreamContext, streams: Sequence[StreamSpec], consumers: Sequence[ConsumerSpec]
) -> list[str]:
    """Return a sentence for each that is missing or has other settings; nothing is created. Raises BusError."""
    found: list[str] = []
    try:
        for stream in streams:
            wanted = _get_stream_settings(compute_stream_config(stream))
            try:
                settings = _get_stream_settings((await js.stream_info(stream.name)).config)
            except NotFoundError:
                found.append(f"stream {stream.name} is missing")
                continue
            found += _describe_drift(f"stream {stream.name}", wanted, settings)
        for consumer in consumers:
            name = f"consumer {consumer.stream}.{consumer.durable}"
            wanted = _get_consumer_settings(compute_consumer_config(consumer))
            try:
                settings = _get_consumer_settings(
                    (await js.consumer_info(consumer.stream, consumer.durable)).config
                )
            except NotFoundError:
                found.append(f"{name} is missing")
                continue
            found += _describe_drift(name, wanted, settings)
    except nats.errors.Error as error:
        raise BusError(f"looking at streams and consumers: {error}") from error
    return found


async def _ask_until_answered(ask: Callable[[], Awaitable[None]]) -> None:
    """Ask again while nobody answers: a cluster that has no leader yet answers nothing, and forgets what it was asked."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        try:
            return await ask()
        except nats.errors.TimeoutError:
            if loop.time() >= deadline:
                raise


async def _provision_stream(js: JetStreamContext, spec: StreamSpec) -> None:
    wanted = compute_stream_config(spec)
    try:
        found = (await js.stream_info(spec.name)).config
    except NotFoundError:
        found = (await js.add_stream(wanted)).config
    _refuse_drift(f"stream {spec.name}", _get_stream_settings(wanted), _get_stream_settings(found))


async def _provision_consumer(js: JetStreamContext, spec: ConsumerSpec) -> None:
    wanted = compute_consumer_config(spec)
    try:
        found = (await js.consumer_info(spec.stream, spec.durable)).config
    except NotFoundError:
        found = (await js.add_consumer(spec.stream, wanted)).config
    name = f"consumer {spec.stream}.{spec.durable}"
    _refuse_drift(name, _get_consumer_settings(wanted), _get_consumer_settings(found))


def compute_stream_config(spec: StreamSpec) -> api.StreamConfig:
    """Return a spec as the server's configuration."""
    window_s = min(spec.duplicate_window_s, spec.max_age_s) if spec.max_age_s > 0 else spec.duplicate_window_s
    return api.StreamConfig(
        name=spec.name,
        subjects=list(spec.subjects),
        retention=api.RetentionPolicy(spec.retention),
        max_msgs=_get_bound(spec.max_msgs),
        max_bytes=_get_bound(spec.max_bytes),
        max_age=spec.max_age_s,
        max_msgs_per_subject=_get_bound(spec.max_msgs_per_subject),
        max_msg_size=_get_bound(spec.max_msg_bytes),
        discard=api.DiscardPolicy(spec.discard),
        discard_new_per_subject=spec.discard_new_per_subject,
        deny_delete=spec.deny_delete,
        deny_purge=spec.deny_purge,
        duplicate_window=window_s,
        storage=api.StorageType(spec.storage),
        num_replicas=spec.replicas,
        allow_direct=spec.allow_direct,
    )


def compute_consumer_config(spec: ConsumerSpec) -> api.ConsumerConfig:
    """Return a spec as the server's configuration: durable, pulled, acknowledged one by one."""
    return api.ConsumerConfig(
        durable_name=spec.durable,
        name=spec.durable,
        filter_subjects=list(spec.filter_subjects) if len(spec.filter_subjects) > 1 else None,
        filter_subject=spec.filter_subjects[0] if len(spec.filter_subjects) == 1 else None,
        deliver_policy=api.DeliverPolicy(spec.deliver_policy),
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=spec.backoff_s[0] if spec.backoff_s else spec.ack_wait_s,
        max_deliver=spec.max_deliver,
        max_ack_pending=spec.max_ack_pending,
        backoff=list(spec.backoff_s) or None,
    )


def _refuse_drift(name: str, wanted: Mapping[str, object], found: Mapping[str, object]) -> None:
    for sentence in _describe_drift(name, wanted, found):
        raise DriftError(sentence)


def _describe_drift(name: str, wanted: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    drift = [
        f"{key} is {found[key]!r}, wanted {value!r}" for key, value in wanted.items() if found[key] != value
    ]
    return [f"{name} exists with other settings: {'; '.join(drift)}"] if drift else []


def _get_stream_settings(config: api.StreamConfig) -> dict[str, object]:
    return {
        "subjects": sorted(config.subjects or []),
        "retention": str(config.retention and api.RetentionPolicy(config.retention).value),
        "max_msgs": _get_bound(config.max_msgs),
        "max_bytes": _get_bound(config.max_bytes),
        "max_age_ns": _get_ns(config.max_age),
        "max_msgs_per_subject": _get_bound(config.max_msgs_per_subject),
        "max_msg_bytes": _get_bound(config.max_msg_size),
        "discard": str(config.discard and api.DiscardPolicy(config.discard).value),
        "discard_new_per_subject": bool(config.discard_new_per_subject),
        "deny_delete": bool(config.deny_delete),
        "deny_purge": bool(config.deny_purge),
        "duplicate_window_ns": _get_ns(config.duplicate_window),
        "storage": str(config.storage and api.StorageType(config.storage).value),
        "replicas": config.num_replicas or 1,
        "allow_direct": bool(config.allow_direct),
    }


def _get_consumer_settings(config: api.ConsumerConfig) -> dict[str, object]:
    filters = list(config.filter_subjects or [])
    if config.filter_subject:
        filters.append(config.filter_subject)
    return {
        "filter_subjects": sorted(filters),
        "deliver_policy": str(config.deliver_policy and api.DeliverPolicy(config.deliver_policy).value),
        "ack_policy": str(config.ack_policy and api.AckPolicy(config.ack_policy).value),
        "ack_wait_ns": _get_ns(config.ack_wait),
        "max_deliver": _get_bound(config.max_deliver),
        "max_ack_pending": config.max_ack_pending,
        "backoff_ns": [_get_ns(wait_s) for wait_s in config.backoff or []],
        "deliver_subject": config.deliver_subject or "",
    }


def _get_bound(value: int | None) -> int:
    """Zero and -1 both mean unbounded; the server answers with either."""
    return value if value is not None and value > 0 else -1


def _get_ns(value_s: float | None) -> int:
    return round((value_s or 0) * _NANOSECONDS)
