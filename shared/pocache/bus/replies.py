"""Requests and their answers over one inbox, each ending with an answer or with the reason why there is none.

The client library's own request waits out its whole timeout when a connection breaks or a permission is missing;
here both end the wait at once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import nats.errors

from pocache.protocol.errors import BusError, Disposition, LimitError, PocacheError

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from pocache.bus.client import TolerantClient

_NO_RESPONDERS: Final = "503"


class NoResponderError(BusError):
    """Nobody serves the subject; nothing was done."""


class UnansweredError(BusError):
    """No answer came; whether the request was acted on is unknown."""


class DeniedError(BusError):
    """The server denies this user the subject: the deployment's fault, no redelivery repairs it."""

    disposition = Disposition.HALT


class Replies:
    """One wildcard inbox for all requests of a connection."""

    def __init__(self, client: TolerantClient) -> None:
        self._client = client
        self._tokens = itertools.count(1)
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        self._prefix = ""

    async def open(self) -> None:
        """Listen for answers. Once per connection; the client library listens again after a reconnect."""
        self._prefix = f"{self._client.new_inbox()}."
        await self._client.subscribe_direct(f"{self._prefix}*", self._on_reply)

    async def request(
        self, subject: str, data: bytes, *, headers: dict[str, str] | None = None, timeout_s: float
    ) -> Msg:
        """Return the answer. Raises NoResponderError, UnansweredError, DeniedError, LimitError or BusError."""
        token = str(next(self._tokens))
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (subject, future)
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.publish(
                    subject, data, reply=f"{self._prefix}{token}", headers=headers or None
                )
                message = await future
        except TimeoutError:
            raise UnansweredError(f"{subject}: no answer in {timeout_s:.1f} s") from None
        except nats.errors.Error as error:
            raise _explain(error, subject, data) from error
        finally:
            del self._waiting[token]
        if (message.headers or {}).get("Status") == _NO_RESPONDERS:
            raise NoResponderError(f"{subject}: nobody serves it")
        return message

    async def request_many(
        self, requests: Sequence[tuple[str, bytes, dict[str, str] | None]], *, timeout_s: float
    ) -> list[Msg | PocacheError]:
        """Return the answer to each (subject, data, headers), or why there is none, in order.

        One wait for all of them; the reasons are those that :meth:`request` raises.
        """
        loop = asyncio.get_running_loop()
        sent: list[tuple[str, asyncio.Future[Msg]]] = []
        try:
            for subject, data, headers in requests:
                token, future = str(next(self._tokens)), loop.create_future()
                self._waiting[token] = (subject, future)
                sent.append((token, future))
                try:
                    await self._client.publish(
                        subject, data, reply=f"{self._prefix}{token}", headers=headers or None
                    )
                except nats.errors.Error as error:
                    future.set_exception(_explain(error, subject, data))
            await asyncio.wait([future for _, future in sent], timeout=timeout_s)
            return [
                _conclude(subject, future, timeout_s)
                for (subject, _, _), (_, future) in zip(requests, sent, strict=True)
            ]
        finally:
            for token, future in sent:
                del self._waiting[token]
                future.cancel()

    def fail(self, error: BusError, subject: str | None = None) -> None:
        """End the waits for ``subject`` (compared without case, as the server reports it), or all of them."""
        for waiting_subject, future in self._waiting.values():
            if not future.done() and (subject is None or waiting_subject.lower() == subject.lower()):
                future.set_exception(error)

    def _on_reply(self, message: Msg) -> None:
        _, future = self._waiting.get(message.subject[len(self._prefix) :], ("", None))
        if future is not None and not future.done():
            future.set_result(message)


def _explain(error: nats.errors.Error, subject: str, data: bytes) -> PocacheError:
    if isinstance(error, nats.errors.MaxPayloadError):
        return LimitError(f"{subject}: {len(data)} bytes exceed the server's largest message")
    if isinstance(error, nats.errors.OutboundBufferLimitError):
        return UnansweredError(f"{subject}: not connected")
    return BusError(f"{subject}: {error}")


def _conclude(subject: str, future: asyncio.Future[Msg], timeout_s: float) -> Msg | PocacheError:
    if not future.done():
        return UnansweredError(f"{subject}: no answer in {timeout_s:.1f} s")
    error = future.exception()
    if error is not None:
        assert isinstance(error, PocacheError), error
        return error
    message = future.result()
    if (message.headers or {}).get("Status") == _NO_RESPONDERS:
        return NoResponderError(f"{subject}: nobody serves it")
    return message
