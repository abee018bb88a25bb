"""Dead letters: what could not be handled is copied with its reason before it is lost.

A message that a service terminates is copied by the service itself, because a work queue deletes it at that moment.
A message that was delivered too often, and one terminated by somebody else, is found by the server's advisories:
those are captured in a stream of their own, so that the collector may be away; it copies the message by its sequence,
deletes it from a work queue, where it would be an orphan, and acknowledges the advisory.

Not covered: an advisory is at most once between the consumer and the capturing stream, so an orphan can remain in a
work queue after a power cut.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from pocache.bus.permissions import DEAD_LETTER_PREFIX
from pocache.bus.replies import NoResponderError, Replies
from pocache.bus.specs import ConsumerSpec, StreamSpec
from pocache.protocol.errors import BusError

if TYPE_CHECKING:
    from pocache.bus.nats_bus import NatsBus
    from pocache.bus.port import StoredMessage

_LOG = structlog.get_logger(__name__)

_MAX_DELIVERIES: Final = "io.nats.jetstream.advisory.v1.max_deliver"
_TERMINATED: Final = "io.nats.jetstream.advisory.v1.terminated"
_NOT_FOUND: Final = frozenset({10037, 10043, 10057})
_RETRY_S: Final = 2.0
_DAY_S: Final = 86_400.0

ADVISORIES: Final = StreamSpec(
    name="ADVISORIES",
    subjects=(
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",
        "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>",
    ),
    retention="workqueue",
    max_msgs=100_000,
    max_bytes=64 * 2**20,
    max_age_s=7 * _DAY_S,
)
ADVISORY_CONSUMER: Final = ConsumerSpec(stream="ADVISORIES", durable="deadletters", ack_wait_s=30.0)

DEADLETTERS: Final = StreamSpec(
    name="DEADLETTER",
    subjects=(f"{DEAD_LETTER_PREFIX}.>",),
    retention="limits",
    max_msgs=100_000,
    max_bytes=2 * 2**30,
    max_age_s=30 * _DAY_S,
)
"""Discards the oldest when it is full: a full dead-letter stream must not stop the services."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Where the copy of a message goes, under which id, with which headers."""

    subject: str
    message_id: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Advisory:
    """What the server said about a message that will not be delivered again."""

    stream: str
    consumer: str
    sequence: int
    delivered_count: int
    reason: str


def compute_dead_letter(
    *, subject: str, stream: str, consumer: str, sequence: int, delivered_count: int, reason: str
) -> DeadLetter:
    """Return the address of a dead letter: ``dead.<stream>.<consumer>``, once per message and consumer."""
    return DeadLetter(
        subject=f"{DEAD_LETTER_PREFIX}.{stream}.{consumer}",
        message_id=f"{DEAD_LETTER_PREFIX}.{stream}.{consumer}.{sequence}",
        headers={
            "Pocache-Dead-Reason": reason,
            "Pocache-Dead-Subject": subject,
            "Pocache-Dead-Sequence": str(sequence),
            "Pocache-Dead-Deliveries": str(delivered_count),
        },
    )


class DeadLetterCollector:
    """Follows the advisories and keeps copies of what they name. One instance per network is enough."""

    def __init__(self, bus: NatsBus, *, work_queues: frozenset[str], timeout_s: float = 5.0) -> None:
        """``work_queues`` are the streams from which a copied message is deleted."""
        self._bus = bus
        self._work_queues = work_queues
        self._timeout_s = timeout_s
        self._replies = Replies(bus.client)

    async def run(self) -> None:
        """Collect until cancelled. Raises BusError when the advisory stream is gone or denied."""
        await self.open()
        async with self._bus.pull(ADVISORY_CONSUMER.stream, ADVISORY_CONSUMER.durable, credit=32) as batches:
            async for batch in batches:
                for message in batch:
                    await self.handle(message)

    async def open(self) -> None:
        """Prepare for ``handle``; ``run`` does it."""
        await self._replies.open()

    async def handle(self, message: StoredMessage) -> None:
        """Act on one advisory and settle it: given back for later when the copy cannot be made now."""
        try:
            advisory = parse_advisory(message.data)
            if advisory is None:
                _LOG.error("advisory not understood", subject=message.subject)
            elif advisory.stream != ADVISORY_CONSUMER.stream:
                await self._collect(advisory)
            await message.ack()
        except BusError as error:
            _LOG.warning("dead letter not copied yet", subject=message.subject, error=str(error))
            await message.nak(_RETRY_S)

    async def _collect(self, advisory: Advisory) -> None:
        stored = await self._get_message(advisory.stream, advisory.sequence)
        if stored is None:
            return  # terminated on a work queue: whoever terminated it has stored the copy
        subject, data = stored
        letter = compute_dead_letter(
            subject=subject,
            stream=advisory.stream,
            consumer=advisory.consumer,
            sequence=advisory.sequence,
            delivered_count=advisory.delivered_count,
            reason=advisory.reason,
        )
        await self._bus.publish(letter.subject, data, message_id=letter.message_id, headers=letter.headers)
        _LOG.warning(
            "dead letter", stream=advisory.stream, consumer=advisory.consumer, reason=advisory.reason
        )
        if advisory.stream in self._work_queues:
            await self._ask(f"$JS.API.STREAM.MSG.DELETE.{advisory.stream}", {"seq": advisory.sequence})

    async def _get_message(self, stream: str, sequence: int) -> tuple[str, bytes] | None:
        answer = await self._ask(f"$JS.API.STREAM.MSG.GET.{stream}", {"seq": sequence})
        if answer is None:
            return None
        found = answer.get("message", {})
        try:
            return str(found["subject"]), base64.b64decode(found.get("data", ""), validate=True)
        except (KeyError, TypeError, ValueError):
            raise BusError(f"{stream}: message {sequence} was not understood") from None

    async def _ask(self, subject: str, body: Mapping[str, object]) -> dict[str, Any] | None:
        """Return an API answer, None when the message is not there (any more)."""
        try:
            reply = await self._replies.request(subject, json.dumps(body).encode(), timeout_s=self._timeout_s)
        except NoResponderError:
            return None  # the stream itself is gone
        answer: dict[str, Any] = json.loads(reply.data)
        error = answer.get("error")
        if error is None:
            return answer
        if error.get("err_code") in _NOT_FOUND or error.get("code") == 404:
            return None
        raise BusError(f"{subject}: {error.get('description')}")


def parse_advisory(data: bytes) -> Advisory | None:
    """Return what an advisory says, None when it is not one of the two kinds that we follow."""
    try:
        body = json.loads(data)
        kind = body["type"]
        if kind not in (_MAX_DELIVERIES, _TERMINATED):
            return None
        deliveries = int(body["deliveries"])
        default = f"delivered {deliveries} times without success" if kind == _MAX_DELIVERIES else "terminated"
        return Advisory(
            stream=str(body["stream"]),
            consumer=str(body["consumer"]),
            sequence=int(body["stream_seq"]),
            delivered_count=deliveries,
            reason=str(body.get("reason") or default),
        )
    except (ValueError, KeyError, TypeError):
        return None
