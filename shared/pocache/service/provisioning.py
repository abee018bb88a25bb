"""What exists on the bus and who may use it, derived from the topics: streams, consumers, NATS users.

The provisioner creates; services only bind. One NATS user per service and per participant, each with its own inbox
prefix and only the subjects that its topics name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pocache.bus.deadletter import ADVISORIES, ADVISORY_CONSUMER, DEADLETTERS
from pocache.bus.permissions import NatsUser, compute_permissions
from pocache.bus.specs import ConsumerSpec, StreamSpec
from pocache.protocol.ids import ModelId, ParticipantId
from pocache.protocol.limits import PAYLOAD_BYTES_MAX
from pocache.runtime.network import Bounds
from pocache.wire import topics as t
from pocache.wire.topics import TOPICS, Role, Stream, Topic

GIB: Final = 1 << 30
ACK_WAIT_S: Final = 5.0
"""How long what a killed process held stays undelivered: shorter than any deadline, longer than the interval of
``in_progress``."""
DELIVER_MAX: Final = 20
"""After this many deliveries a message goes to the dead letters, where the consumer may skip at all."""
TASKS_PER_JOB_MAX: Final = 2
"""A job has one task at a time, and one of an attempt before may still lie there."""
TASK_DELIVER_MAX: Final = 1_000
"""A task waits for a worker that can take it; its job's own expiry ends it."""
ANSWERED: Final[Mapping[Role, tuple[Topic[Any], ...]]] = {
    Role.LEDGER: (t.BALANCE_QUERY, t.STATEMENT_QUERY, t.TOTALS_QUERY),
    Role.COMMITMENTS: (t.RECEIPT_QUERY, t.CONSISTENCY_QUERY),
}
"""Who answers which questions."""

OBSERVED: Final[tuple[Topic[Any], ...]] = (
    t.BEACON_ROUND,
    t.BOND_TAKEN,
    t.CHECKPOINT,
    t.EPOCH,
    t.JOURNAL_CHECKPOINT,
    t.PAYOUT_SETTLED,
    t.SNAPSHOT_TAKEN,
    t.STAKE_POSTED,
    t.WINDOW_CLOSED,
    t.WORKER_EJECTED,
)
"""What an observer may hear: nothing with a prompt, an output or an opened row in it (docs/protocol.md 11.7.3)."""
SERVICES: Final = (Role.ROUTER, Role.COMMITMENTS, Role.VERIFIER, Role.LEDGER)


@dataclass(frozen=True, slots=True)
class Party:
    """Someone on the bus: the name of its keys, its role, its id, the public part of its NATS key."""

    name: str
    role: Role
    participant: ParticipantId
    transport_public: str


def get_stream_specs(bounds: Bounds) -> tuple[StreamSpec, ...]:
    """Return the streams of a network."""

    def subjects(stream: Stream) -> tuple[str, ...]:
        return tuple(dict.fromkeys(topic.filter() for topic in TOPICS if topic.stream is stream))

    queue: dict[str, Any] = {"retention": "workqueue", "discard": "new", "max_msg_bytes": PAYLOAD_BYTES_MAX + 1_024}
    return (
        StreamSpec(
            Stream.SUBMISSIONS.value, subjects(Stream.SUBMISSIONS), max_msgs=bounds.submissions_max, **queue
        ),
        StreamSpec(
            Stream.INTAKE.value, subjects(Stream.INTAKE), max_msgs=100 * bounds.open_jobs_max, max_bytes=2 * GIB, **queue
        ),
        StreamSpec(
            Stream.TASKS.value,
            subjects(Stream.TASKS),
            # By subject: what piles up for a model that nobody serves must not keep verifiers from their tasks, who
            # would be late without knowing of them.
            max_msgs_per_subject=TASKS_PER_JOB_MAX * bounds.open_jobs_max,
            discard_new_per_subject=True,
            max_bytes=GIB,
            **queue,
        ),
        StreamSpec(
            Stream.RECORD.value,
            subjects(Stream.RECORD),
            discard="new",
            deny_delete=True,
            deny_purge=True,
            max_msg_bytes=PAYLOAD_BYTES_MAX + 1_024,
        ),
        StreamSpec(Stream.BEACON.value, subjects(Stream.BEACON), max_msgs=1_000_000),
        StreamSpec(
            Stream.REFUSALS.value, subjects(Stream.REFUSALS), max_age_s=3_600.0, max_msgs=1_000_000, max_bytes=GIB // 4
        ),
        DEADLETTERS,
        ADVISORIES,
    )


def get_service_consumers(role: Role) -> tuple[ConsumerSpec, ...]:
    """Return the durable consumers of a service: one per stream, filtered to the topics that it takes."""
    by_stream: dict[Stream, list[str]] = {}
    for topic in TOPICS:
        if role in topic.takers and topic.stream is not None:
            by_stream.setdefault(topic.stream, []).append(topic.filter())
    # A consumer on money never gives a message up; it halts its service instead.
    deliver_max = -1 if role is Role.LEDGER else DELIVER_MAX
    return tuple(
        ConsumerSpec(
            stream.value,
            role.value,
            tuple(dict.fromkeys(filters)),
            ack_wait_s=ACK_WAIT_S,
            # A record may wait for another one as long as its service waits: only tasks and intake are given up.
            max_deliver=-1 if stream in (Stream.RECORD, Stream.BEACON) else deliver_max,
        )
        for stream, filters in by_stream.items()
    )


def get_worker_consumers(worker: ParticipantId) -> tuple[ConsumerSpec, ...]:
    """Return one worker's consumers: what is said to it, and the verification tasks that it was drawn for."""
    record = tuple(
        topic.filter(worker=worker) for topic in TOPICS if Role.WORKER in topic.takers and topic.stream is Stream.RECORD
    )
    return (
        ConsumerSpec(Stream.RECORD.value, f"worker-{worker}", record, ack_wait_s=ACK_WAIT_S, deliver_policy="new"),
        ConsumerSpec(
            Stream.TASKS.value,
            f"verify-{worker}",
            (t.VERIFY_TASK.filter(worker=worker),),
            ack_wait_s=ACK_WAIT_S,
            max_deliver=TASK_DELIVER_MAX,
        ),
    )


def get_model_consumer(model_id: ModelId) -> ConsumerSpec:
    """Return the consumer that all workers of a model pull generation tasks from."""
    return ConsumerSpec(
        Stream.TASKS.value,
        f"generate-{model_id.hex()}",
        (t.GENERATE_TASK.filter(model=model_id),),
        ack_wait_s=ACK_WAIT_S,
        max_deliver=TASK_DELIVER_MAX,
    )


def get_consumer_specs(workers: Iterable[ParticipantId], models: Iterable[ModelId]) -> tuple[ConsumerSpec, ...]:
    """Return every consumer of a network with these workers and models."""
    specs = [spec for role in SERVICES for spec in get_service_consumers(role)]
    specs += [get_model_consumer(model) for model in models]
    specs += [spec for worker in workers for spec in get_worker_consumers(worker)]
    specs.append(ADVISORY_CONSUMER)
    return tuple(specs)


def get_consumer_names(role: Role) -> tuple[tuple[str, str], ...]:
    """Return the (stream, durable) pairs that a service binds."""
    return tuple((spec.stream, spec.durable) for spec in get_service_consumers(role))


def compute_user(party: Party, models: Iterable[ModelId]) -> NatsUser:
    """Return a party's NATS user: the least that its role needs."""
    if party.role is Role.WORKER:
        return _compute_worker_user(party, models)
    if party.role is Role.USER:
        return _compute_user_user(party)
    publish = [topic.filter(signer=party.participant) for topic in TOPICS if topic.signer is party.role]
    is_beacon = party.role is Role.BEACON
    queries = [topic.filter() for topic in ANSWERED.get(party.role, ())]
    if party.role is Role.OPERATOR:
        return compute_permissions(
            party.name,
            party.transport_public,
            publish_subjects=(
                *publish,
                t.BALANCE_QUERY.filter(),
                t.STATEMENT_QUERY.filter(),
                t.RECEIPT_QUERY.filter(),
                t.CONSISTENCY_QUERY.filter(),
            ),
            core_subscriptions=tuple(topic.filter() for topic in TOPICS),
            read_streams=tuple(stream.value for stream in Stream),
        )
    return compute_permissions(
        party.name,
        party.transport_public,
        publish_subjects=publish,
        pull_consumers=get_consumer_names(party.role),
        core_subscriptions=(t.BEACON_ROUND.filter(), t.BEACON_PARTIAL.filter()) if is_beacon else queries,
        read_streams=(Stream.BEACON.value,) if is_beacon else (),
        serves_requests=bool(queries),
    )


def _compute_worker_user(party: Party, models: Iterable[ModelId]) -> NatsUser:
    worker = party.participant
    pulls = [(spec.stream, spec.durable) for spec in get_worker_consumers(worker)]
    pulls += [(spec.stream, spec.durable) for spec in map(get_model_consumer, models)]
    return compute_permissions(
        party.name,
        party.transport_public,
        publish_subjects=[
            *(_own(topic, worker=worker) for topic in TOPICS if topic.signer is Role.WORKER),
            *(_own(topic, participant=worker) for topic in (t.BALANCE_QUERY, t.STATEMENT_QUERY)),
            *_withdrawal_answers(worker),
        ],
        pull_consumers=pulls,
        core_subscriptions=(
            t.BEACON_ROUND.pattern,
            *(_own(topic, participant=worker) for topic in (t.WITHDRAWAL_ACCEPTED, t.WITHDRAWAL_PAID)),
            *(topic.filter() for topic in t.REFUSALS.values()),
        ),
        is_guest=True,
    )


def _compute_user_user(party: Party) -> NatsUser:
    user = party.participant
    own: Mapping[str, str] = {"user": user, "participant": user}
    events = _own(t.JOB_EVENT, **own)
    return compute_permissions(
        party.name,
        party.transport_public,
        publish_subjects=[
            *(_own(topic, **own) for topic in TOPICS if topic.signer is Role.USER),
            f"$JS.API.DIRECT.GET.{Stream.RECORD.value}.{events}",
            f"$JS.API.DIRECT.GET.{Stream.RECORD.value}.{t.PAYOUT_SETTLED.filter()}",
            f"$JS.API.DIRECT.GET.{Stream.REFUSALS.value}.{t.REFUSALS[Role.ROUTER].filter()}",
            *_withdrawal_answers(user),
        ],
        core_subscriptions=(
            events,
            _own(t.TOKENS, **own),
            t.PAYOUT_SETTLED.filter(),
            *(_own(topic, **own) for topic in (t.WITHDRAWAL_ACCEPTED, t.WITHDRAWAL_PAID)),
            *(topic.filter() for topic in t.REFUSALS.values()),
        ),
        is_guest=True,
        relayed=(_own(t.TOKENS, **own),),
    )


def compute_reader(name: str, transport_public: str) -> NatsUser:
    """Return the operator's own reader: it reads and hears all of RECORD and BEACON, texts included, and says nothing."""
    streams = (Stream.RECORD, Stream.BEACON)
    heard = (topic.filter() for topic in TOPICS if topic.stream in streams)
    return compute_permissions(
        name,
        transport_public,
        core_subscriptions=tuple(dict.fromkeys(heard)),
        read_streams=tuple(stream.value for stream in streams),
    )


def compute_observer(name: str, transport_public: str) -> NatsUser:
    """Return a guest that hears and reads what is public on the record, and says nothing."""
    return compute_permissions(
        name,
        transport_public,
        publish_subjects=tuple(f"$JS.API.DIRECT.GET.{topic.stream}.{topic.filter()}" for topic in OBSERVED),
        core_subscriptions=tuple(topic.filter() for topic in OBSERVED),
        is_guest=True,
    )


def _withdrawal_answers(participant: str) -> tuple[str, str]:
    """Return where a participant asks again for what the ledger said to its withdrawal."""
    accepted = _own(t.WITHDRAWAL_ACCEPTED, participant=participant)
    refused = t.REFUSALS[Role.LEDGER].filter()
    return (
        f"$JS.API.DIRECT.GET.{Stream.RECORD.value}.{accepted}",
        f"$JS.API.DIRECT.GET.{Stream.REFUSALS.value}.{refused}",
    )


def _own(topic: Topic[Any], **tokens: str) -> str:
    return topic.filter(**tokens)
