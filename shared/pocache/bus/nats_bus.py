"""The bus port over nats-py: one connection with its own user, inbox prefix and strict manners.

It reconnects without end, but to a server that refuses its user; a connection that is closed all the same ends the
service through ``wait_closed``, which says why.
Permission violations, which the server reports only on the side, end the calls that they concern and stay visible
in ``denied``. A publish is repeated only where a repetition cannot be stored twice.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

import nats.errors
import structlog
from nats.aio.client import RawCredentials

from pocache.bus.barrier import pass_barrier
from pocache.bus.client import TolerantClient
from pocache.bus.core import CoreSubscription, serve
from pocache.bus.deadletter import compute_dead_letter
from pocache.bus.jwt import parse_credentials, verify_unexpired
from pocache.bus.permissions import get_inbox_prefix
from pocache.bus.port import CoreMessage, Outgoing, RequestHandler, StoredMessage, StreamRecord
from pocache.bus.puller import ContinuousPuller, PullSettings
from pocache.bus.reading import get_last_record, read_records
from pocache.bus.replies import DeniedError, NoResponderError, Replies, UnansweredError
from pocache.bus.tls import make_client_context
from pocache.protocol.errors import BackpressureError, BusError, ConflictError, PocacheError
from pocache.runtime.network import NetworkDirectory, TlsFiles

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_LOG = structlog.get_logger(__name__)

_DENIED_KEPT_MAX: Final = 100
_IN_FLIGHT_MAX: Final = 256
_CLOSE_S: Final = 5.0
_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')
_DUPLICATE_IN_PROCESS: Final = 10158
_WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
_FULL: Final = re.compile(r"maximum .* exceeded|resource limits exceeded|insufficient .*resources")
_STORED: Final = re.compile(rb'\{"stream":"[A-Z_]+", ?"seq":(\d{1,19})[,}]')
"""How a stream says that it has stored a message: read without the cost of reading JSON, which all else is."""
_HANDLER_FAILED_HEADER: Final = "Pocache-Error"


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """How to reach the bus. ``name`` is the role: it names the connection and its inbox prefix.

    ``nkey_seed`` is the NKey seed, or a credentials text with the user JWT before it.

    ``publish_s`` bounds a publish with all its repetitions, ``attempt_s`` one of them; ``unprovisioned_s`` is how
    long "no stream takes this subject" is taken for a server that is starting, or a cluster that elects. Seconds.
    """

    url: str
    name: str
    nkey_seed: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None
    connect_s: float = 15.0
    publish_s: float = 30.0
    attempt_s: float = 5.0
    unprovisioned_s: float = 12.0
    reconnect_wait_s: float = 0.25
    ping_s: float = 10.0
    pull_expires_s: float = 30.0
    pull_heartbeat_s: float = 5.0

    @classmethod
    def of(cls, directory: NetworkDirectory, url: str, name: str) -> NatsSettings:
        """Return how a participant of this directory reaches the bus. Raises ConfigError on what is missing for it."""
        return cls(
            url=url, name=name, nkey_seed=directory.transport_seed(name), tls=directory.tls_files(name)
        )


@asynccontextmanager
async def connect_bus(settings: NatsSettings) -> AsyncIterator[NatsBus]:
    """Connect while the context lasts.

    Raises BusError when no server answers in time or it refuses the user, ConfigError on credentials that are over.
    """
    bus = NatsBus(settings)
    try:
        await bus.connect()
        yield bus
    finally:
        await bus.close()


class NatsBus:
    """The adapter of ``pocache.bus.port.Bus``; made by ``connect_bus``."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._proof = _prove(settings)
        self._client = TolerantClient()
        self._replies = Replies(self._client)
        self._pullers: set[ContinuousPuller] = set()
        self._subscriptions: set[CoreSubscription] = set()
        self._denied: deque[str] = deque(maxlen=_DENIED_KEPT_MAX)
        self._denied_subscriptions: deque[str] = deque(maxlen=_DENIED_KEPT_MAX)
        self._is_established = False
        self._dismissed = ""
        self._ending: asyncio.Future[None] | None = None
        self._connected = asyncio.Event()
        self._closed = asyncio.Event()

    @property
    def client(self) -> TolerantClient:
        """Return the client below, for the provisioner and the dead-letter collector."""
        return self._client

    @property
    def is_connected(self) -> bool:
        return self._is_established and self._connected.is_set() and self._client.is_connected

    @property
    def denied(self) -> tuple[str, ...]:
        return tuple(self._denied)

    async def wait_closed(self) -> NoReturn:
        await self._closed.wait()
        ended = f"the connection of {self._settings.name} to the bus is closed"
        error = self._client.last_error
        raise BusError(self._dismissed or (ended if error is None else f"{ended}: {error}"))

    async def connect(self) -> None:
        """Open the connection; ``connect_bus`` does it."""
        settings = self._settings
        options: dict[str, Any] = {
            "name": settings.name,
            "inbox_prefix": get_inbox_prefix(settings.name),
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": settings.reconnect_wait_s,
            "ping_interval": settings.ping_s,
            "max_outstanding_pings": 2,
            "connect_timeout": settings.connect_s,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
            "closed_cb": self._on_closed,
            **self._proof,
        }
        try:
            async with asyncio.timeout(settings.connect_s):
                await self._client.connect(settings.url, **options)
                await self._replies.open()
                await pass_barrier(self._client)
        except TimeoutError:
            raise BusError(
                f"{settings.url}: no connection in {settings.connect_s} s ({self._client.last_error})"
            ) from self._client.last_error
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"{settings.url}: {error}") from error
        self._is_established = True
        self._connected.set()

    async def close(self) -> None:
        """Send what is buffered and close; nothing can be settled or published afterwards."""
        self._is_established = False
        if self._client.is_connected:
            try:
                await pass_barrier(self._client)
            except (nats.errors.Error, OSError) as error:
                _LOG.info("not flushed at close", error=repr(error))
        if self._ending is not None:
            await self._ending
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._client.close()
        except TimeoutError:  # a peer that ends TLS without a word is waited for by nobody else
            self._client.abort()
        self._closed.set()

    # streams

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str | None = None,
        expected_last_sequence: int | None = None,
        expected_last_subject_sequence: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:
        sent = _with_id(headers, message_id)
        if expected_last_sequence is not None:
            sent["Nats-Expected-Last-Sequence"] = str(expected_last_sequence)
        if expected_last_subject_sequence is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expected_last_subject_sequence)
        answer = await self._request_storing(subject, data, sent, is_repeatable=message_id is not None)
        return _parse_publish_answer(subject, answer)

    async def publish_many(self, messages: Sequence[Outgoing]) -> list[int | PocacheError]:
        outcomes: list[int | PocacheError] = []
        for start in range(0, len(messages), _IN_FLIGHT_MAX):
            outcomes += await self._publish_together(messages[start : start + _IN_FLIGHT_MAX])
        return outcomes

    async def _publish_together(self, messages: Sequence[Outgoing]) -> list[int | PocacheError]:
        """Send messages at once and wait for all; what got no answer, and may be repeated, is sent again by itself."""
        requests = [(one.subject, one.data, _with_id(one.headers, one.message_id)) for one in messages]
        try:
            await self._wait_connected(asyncio.get_running_loop().time() + self._settings.publish_s)
        except BusError as error:
            return [error for _ in messages]
        answers = await self._replies.request_many(requests, timeout_s=self._settings.attempt_s)
        return await asyncio.gather(
            *(self._conclude(one, answer) for one, answer in zip(messages, answers, strict=True))
        )

    async def _conclude(self, message: Outgoing, answer: Msg | PocacheError) -> int | PocacheError:
        try:
            if isinstance(answer, NoResponderError) or (
                message.message_id is not None
                and (isinstance(answer, UnansweredError) or _is_in_process(answer))
            ):
                return await self.publish(
                    message.subject,
                    message.data,
                    message_id=message.message_id,
                    headers=dict(message.headers or {}),
                )
            if isinstance(answer, PocacheError):
                return answer
            return _parse_publish_answer(message.subject, answer.data)
        except PocacheError as error:
            return error

    @asynccontextmanager
    async def pull(
        self,
        stream: str,
        consumer: str,
        *,
        credit: int,
        batch_max: int = 1,
        progress_s: float | None = None,
    ) -> AsyncIterator[AsyncIterator[list[StoredMessage]]]:
        settings = PullSettings(
            credit=credit,
            batch_max=batch_max,
            progress_s=progress_s,
            expires_s=self._settings.pull_expires_s,
            heartbeat_s=self._settings.pull_heartbeat_s,
        )
        puller = ContinuousPuller(self._client, stream, consumer, settings, self._bury)
        self._pullers.add(puller)
        try:
            async with puller:
                yield puller
        except nats.errors.Error as error:
            raise BusError(f"{stream}.{consumer}: {error}") from error
        finally:
            self._pullers.discard(puller)

    async def get_last(self, stream: str, subject: str) -> StreamRecord | None:
        return await get_last_record(self._replies, stream, subject, timeout_s=self._settings.attempt_s)

    def read(
        self, stream: str, *, subject: str = ">", start_sequence: int = 1
    ) -> AsyncIterator[StreamRecord]:
        return read_records(
            self._client,
            stream,
            subject=subject,
            start_sequence=start_sequence,
            timeout_s=self._settings.attempt_s,
        )

    # core

    async def publish_core(self, subject: str, data: bytes) -> None:
        try:
            await self._client.publish(subject, data)
        except nats.errors.Error as error:
            raise BusError(f"{subject}: {error}") from error

    @asynccontextmanager
    async def subscribe_core(
        self, subject: str, *, pending_max: int = 65_536
    ) -> AsyncIterator[AsyncIterator[CoreMessage]]:
        subscription = CoreSubscription(self._client, subject, pending_max)
        self._subscriptions.add(subscription)
        try:
            await subscription.open()
            self._refuse_denied(subject)
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.close()

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        answer = await self._replies.request(subject, data, timeout_s=timeout_s)
        failure = (answer.headers or {}).get(_HANDLER_FAILED_HEADER)
        if failure is not None:
            raise BusError(f"{subject}: {failure}")
        return answer.data

    @asynccontextmanager
    async def serve_requests(
        self, subject: str, handler: RequestHandler, *, concurrency: int = 64
    ) -> AsyncIterator[None]:
        async with serve(self._client, subject, handler, concurrency, _HANDLER_FAILED_HEADER):
            self._refuse_denied(subject)
            yield

    # within

    async def _request_storing(
        self, subject: str, data: bytes, headers: dict[str, str], *, is_repeatable: bool
    ) -> bytes:
        """Return a stream's answer, asking again while it is safe and time is left.

        Safe means: nobody was there to store it, or the stream drops a repetition of its message id.
        """
        settings, loop = self._settings, asyncio.get_running_loop()
        started = loop.time()
        while True:
            try:
                await self._wait_connected(started + settings.publish_s)
                answer = await self._replies.request(
                    subject, data, headers=headers, timeout_s=settings.attempt_s
                )
            except NoResponderError:
                if loop.time() >= started + settings.unprovisioned_s:
                    raise BusError(f"no stream takes {subject}") from None
                await asyncio.sleep(
                    settings.reconnect_wait_s
                )  # paces the repetition; nothing announces a stream
            except UnansweredError:
                if not is_repeatable or loop.time() >= started + settings.publish_s:
                    raise
            else:
                if not _is_in_process(answer) or loop.time() >= started + settings.publish_s:
                    return answer.data
                await asyncio.sleep(settings.reconnect_wait_s)  # the first one's fate is known in a moment

    async def _wait_connected(self, deadline: float) -> None:
        if self._connected.is_set() and not self._closed.is_set():
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._connected.wait()
        except TimeoutError:
            raise UnansweredError("the bus is not reachable") from None
        if self._closed.is_set():
            raise BusError("the connection to the bus is closed")

    async def _bury(self, message: StoredMessage, consumer: str, reason: str) -> None:
        letter = compute_dead_letter(
            subject=message.subject,
            stream=message.stream,
            consumer=consumer,
            sequence=message.sequence,
            delivered_count=message.delivered_count,
            reason=reason,
        )
        await self.publish(letter.subject, message.data, message_id=letter.message_id, headers=letter.headers)

    def _refuse_denied(self, subject: str) -> None:
        if subject.lower() in self._denied_subscriptions:
            raise DeniedError(f"denied: subscription to {subject}")

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        violation = _VIOLATION.search(text.lower())
        if violation is not None:
            self._on_violation(violation.group(1), violation.group(2))
        elif refusal := _explain_refusal(text, self._settings.name):
            if not self._is_established:
                raise BusError(refusal) from error
            self._dismissed = refusal  # asking again would change nothing: whoever runs this has to know
            self._ending = self._ending or asyncio.ensure_future(self._client.close())
        elif isinstance(error, OSError):
            _LOG.debug("bus not reachable", error=repr(error))
        else:
            _LOG.warning("bus error", error=repr(error))

    def _on_violation(self, operation: str, subject: str) -> None:
        _LOG.error("denied by the bus", operation=operation, subject=subject, user=self._settings.name)
        self._denied.append(f"{operation} to {subject}")
        if operation == "publish":
            self._replies.fail(DeniedError(f"denied: publish to {subject}"), subject)
        else:
            self._denied_subscriptions.append(subject)
        for puller in tuple(self._pullers):
            puller.handle_denied(subject)

    async def _on_disconnected(self) -> None:
        if self._is_established:
            _LOG.warning("bus disconnected", user=self._settings.name)
        self._connected.clear()
        self._replies.fail(UnansweredError("the connection was lost before an answer came"))

    async def _on_reconnected(self) -> None:
        _LOG.info("bus reconnected", user=self._settings.name)
        self._connected.set()
        for puller in tuple(self._pullers):
            puller.handle_reconnected()

    async def _on_closed(self) -> None:
        self._dismissed = self._dismissed or _explain_refusal(
            str(self._client.last_error), self._settings.name
        )
        if self._is_established:
            _LOG.error("bus connection closed", user=self._settings.name, error=repr(self._client.last_error))
        self._closed.set()
        self._connected.set()  # whoever waits for a connection must see that none will come
        self._replies.fail(BusError("the connection to the bus is closed"))
        for puller in tuple(self._pullers):
            puller.handle_closed()
        for subscription in tuple(self._subscriptions):
            subscription.handle_closed()


def _prove(settings: NatsSettings) -> dict[str, Any]:
    """Return how the client shows who it is. Raises ConfigError on credentials that are none, or are over."""
    proof: dict[str, Any] = {} if settings.tls is None else {"tls": make_client_context(settings.tls)}
    if settings.nkey_seed is None:
        return proof
    credentials = parse_credentials(settings.nkey_seed)
    verify_unexpired(credentials, settings.name, time.time())
    if credentials.jwt is None:
        return {**proof, "nkeys_seed_str": credentials.seed}
    return {**proof, "user_credentials": RawCredentials(settings.nkey_seed)}


def _explain_refusal(text: str, name: str) -> str:
    """Return what the server's refusal of a user means and what to do; nothing when the error is another."""
    lowered = text.lower()
    if "authentication expired" in lowered:
        return f"the user JWT of {name} has expired: have it issued again by `pocache keys issue {name}`"
    if "authentication revoked" in lowered:
        return f"the operator has revoked the user {name}: ask for new credentials"
    if "authorization violation" in lowered or "authorization failed" in lowered:
        return f"the server refuses the user of {name}"
    return ""


def _with_id(headers: Mapping[str, str] | None, message_id: str | None) -> dict[str, str]:
    return {**(headers or {}), **({} if message_id is None else {"Nats-Msg-Id": message_id})}


def _is_in_process(answer: Msg | PocacheError) -> bool:
    """Whether a cluster's stream says that it is still storing an earlier publish of this message id."""
    if isinstance(answer, PocacheError) or b"error" not in answer.data:
        return False
    try:
        return bool(json.loads(answer.data)["error"]["err_code"] == _DUPLICATE_IN_PROCESS)
    except (ValueError, KeyError, TypeError):
        return False


def _parse_publish_answer(subject: str, data: bytes) -> int:
    """Return the sequence in a stream's answer, or raise what its error means."""
    stored = _STORED.match(data)
    if stored is not None:
        return int(stored.group(1))
    try:
        answer = json.loads(data)
        error = answer.get("error")
        if error is None:
            return int(answer["seq"])
        code, text = int(error.get("err_code", 0)), str(error.get("description", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BusError(f"{subject}: a stream's answer was not understood") from None
    if code in _WRONG_LAST_SEQUENCE:
        raise ConflictError(f"{subject}: {text}")
    if _FULL.search(text):
        raise BackpressureError(f"{subject}: {text}; nothing was stored, try again later")
    raise BusError(f"{subject}: {text} ({code})")
