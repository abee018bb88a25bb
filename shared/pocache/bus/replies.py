"""Requests and their answers over one inbox, each ending with an answer or with the reason why there is none.

The client library's own request waits out its whole timeout when a connection breaks or a permission is missing;
here both end the wait at once.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final

import nats.errors

from pocache.protocol.errors import BusError, Disposition, LimitError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

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

    def __init__(self, client: Client) -> None:
        self._client = client
        self._tokens = itertools.count(1)
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        self._prefix = ""

    async def open(self) -> None:
        """Listen for answers. Once per connection; the client library listens again after a reconnect."""
        self._prefix = f"{self._client.new_inbox()}."
        await self._client.subscribe(f"{self._prefix}*", cb=self._on_reply)

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
        except nats.errors.MaxPayloadError:
            raise LimitError(f"{subject}: {len(data)} bytes exceed the server's largest message") from None
        except nats.errors.OutboundBufferLimitError:
            raise UnansweredError(f"{subject}: not connected") from None
        except nats.errors.Error as error:
            raise BusError(f"{subject}: {error}") from error
        finally:
            del self._waiting[token]
        if (message.headers or {}).get("Status") == _NO_RESPONDERS:
            raise NoResponderError(f"{subject}: nobody serves it")
        return message

    def fail(self, error: BusError, subject: str | None = None) -> None:
        """End the waits for ``subject`` (compared without case, as the server reports it), or all of them."""
        for waiting_subject, future in self._waiting.values():
            if not future.done() and (subject is None or waiting_subject.lower() == subject.lower()):
                future.set_exception(error)

    async def _on_reply(self, message: Msg) -> None:
        _, future = self._waiting.get(message.subject[len(self._prefix) :], ("", None))
        if future is not None and not future.done():
            future.set_result(message)
