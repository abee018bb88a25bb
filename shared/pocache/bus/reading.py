"""Reading a stream by position through the server's direct get: no consumer, nothing to settle.

Only what is stored at the moment of reading is returned; a stream must allow direct access.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final

import nats.errors

from pocache.bus.port import StreamRecord
from pocache.bus.replies import NoResponderError, Replies, UnansweredError
from pocache.protocol.errors import BusError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

_BATCH: Final = 256
_OWN_HEADERS: Final = frozenset(
    {
        "Nats-Stream",
        "Nats-Subject",
        "Nats-Sequence",
        "Nats-Time-Stamp",
        "Nats-Num-Pending",
        "Nats-Last-Sequence",
        "Nats-UpTo-Sequence",
    }
)


async def get_last_record(
    replies: Replies, stream: str, subject: str, *, timeout_s: float
) -> StreamRecord | None:
    """Return the last message on ``subject``, None when there is none. Raises BusError.

    One subject is asked for by name, which a permission can be limited to; wildcards need the right to read it all.
    """
    api = f"$JS.API.DIRECT.GET.{stream}"
    if "*" in subject or ">" in subject:
        request = json.dumps({"last_by_subj": subject}).encode()
        message = await replies.request(api, request, timeout_s=timeout_s)
    else:
        message = await replies.request(f"{api}.{subject}", b"", timeout_s=timeout_s)
    status = _get_status(message)
    if status == "404":
        return None
    if status is not None:
        raise BusError(f"{stream}: reading answered {status}")
    return parse_record(message.headers or {}, message.data)


async def read_records(
    client: Client,
    stream: str,
    *,
    subject: str,
    start_sequence: int,
    timeout_s: float,
) -> AsyncIterator[StreamRecord]:
    """Iterate over what the stream holds on ``subject`` from a sequence on. Raises BusError."""
    inbox = client.new_inbox()
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await client.subscribe(inbox, cb=arrived.put)
    sequence = max(1, start_sequence)
    try:
        while True:
            request = {"seq": sequence, "batch": _BATCH, "next_by_subj": subject}
            await client.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
            while True:
                message = await _get_next(arrived, stream, timeout_s)
                status = _get_status(message)
                if status is not None:
                    break
                record = parse_record(message.headers or {}, message.data)
                if record.sequence < sequence:
                    raise BusError(f"{stream}: read out of order")
                sequence = record.sequence + 1
                yield record
            if status != "204" or (message.headers or {}).get("Nats-Num-Pending") == "0":
                break
        if status == "503":
            raise NoResponderError(f"{stream}: no such stream, or it allows no direct access")
        if status not in ("204", "404"):
            raise BusError(f"{stream}: reading answered {status}")
    except nats.errors.Error as error:
        raise BusError(f"{stream}: {error}") from error
    finally:
        if not client.is_closed:
            await subscription.unsubscribe()


def parse_record(headers: Mapping[str, str], data: bytes) -> StreamRecord:
    """Return the record that a direct get's answer carries in its headers. Raises BusError."""
    try:
        return StreamRecord(
            subject=headers["Nats-Subject"],
            data=data,
            headers={key: value for key, value in headers.items() if key not in _OWN_HEADERS},
            stream=headers["Nats-Stream"],
            sequence=int(headers["Nats-Sequence"]),
            stored_ms=parse_time_ms(headers["Nats-Time-Stamp"]),
        )
    except (KeyError, ValueError):
        raise BusError("a record's position was not understood") from None


def parse_time_ms(text: str) -> int:
    """Return the milliseconds since 1970 of an RFC 3339 time in UTC; finer digits are cut."""
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() is None:
        raise ValueError("a time without a zone")
    return int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000


def _get_status(message: Msg) -> str | None:
    """Return the status of an answer that carries no record; a record names its stream, a status never does."""
    headers = message.headers or {}
    return None if "Nats-Stream" in headers else headers.get("Status", "unknown")


async def _get_next(arrived: asyncio.Queue[Msg], stream: str, timeout_s: float) -> Msg:
    try:
        async with asyncio.timeout(timeout_s):
            return await arrived.get()
    except TimeoutError:
        raise UnansweredError(f"{stream}: no answer in {timeout_s:.1f} s") from None
