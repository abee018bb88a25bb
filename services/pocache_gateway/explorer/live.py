"""What changes, as it changes: server-sent events that a client can take up again where it left off.

Every event's id is a position of the record. Who reconnects with Last-Event-ID gets every job that changed since, as it
is now; who was away for too much of it is told to load the page again. Bounded in connections and in what one event
carries.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Final

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pocache.readmodel.model import ReadModel
from pocache.readmodel.queries import list_changed, read_overview
from pocache.wire.topics import Stream
from pocache_gateway.explorer.formats import show_account

CHANGES_MAX: Final = 200
"""Jobs in one event; who missed more loads the page again."""
PACE_S: Final = 0.25
"""The least time between two events of a connection: a burst of news is one event."""
HEARTBEAT_S: Final = 15.0
_ID_DIGITS_MAX: Final = 19


class Broadcast:
    """Wakes every connection when there is news."""

    def __init__(self, live_max: int) -> None:
        self.live_max = live_max
        self.live_count = 0
        self.is_closed = False
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Say that there is news."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def close(self) -> None:
        """End every connection: the process is on its way out."""
        self.is_closed = True
        self.wake()

    async def wait(self, timeout_s: float) -> None:
        """Wait for news, no longer than this."""
        news = self._news
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await news.wait()


async def answer_live(
    model: ReadModel, broadcast: Broadcast, names: Mapping[str, str], request: Request
) -> Response:
    """Answer with the stream of changes."""
    if broadcast.live_count >= broadcast.live_max:
        reason = "too many live connections: reload the page later"
        return JSONResponse(
            {"error": {"code": "busy", "message": reason}}, 503, headers={"retry-after": "10"}
        )
    after = read_last_id(request.headers.get("last-event-id") or request.query_params.get("after"))
    return EventSourceResponse(
        _stream(model, broadcast, names, after),
        ping=int(HEARTBEAT_S),
        headers={"cache-control": "no-store", "x-content-type-options": "nosniff"},
    )


def read_last_id(text: str | None) -> int | None:
    """Return the position in a Last-Event-ID; None for none, and for what is no position."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > _ID_DIGITS_MAX:
        return None
    return int(text)


async def _stream(
    model: ReadModel, broadcast: Broadcast, names: Mapping[str, str], after: int | None
) -> AsyncIterator[ServerSentEvent]:
    broadcast.live_count += 1
    try:
        shown: dict[str, Any] | None = None
        while not broadcast.is_closed:
            started_s = time.monotonic()
            news = asyncio.ensure_future(broadcast.wait(HEARTBEAT_S))
            try:
                cursor, changes, overview = await asyncio.to_thread(read_news, model, names, after)
                if after is not None and after > cursor:
                    after = None  # the record has begun anew
                if len(changes) > CHANGES_MAX:
                    yield ServerSentEvent("{}", event="reload", id=str(cursor))
                elif changes or overview != shown:
                    body = {"jobs": changes, "overview": overview}
                    yield ServerSentEvent(json.dumps(body), event="news", id=str(cursor))
                after, shown = cursor, overview
                await news
            finally:
                news.cancel()
            await asyncio.sleep(max(0.0, PACE_S - (time.monotonic() - started_s)))  # paces what is sent
    finally:
        broadcast.live_count -= 1


def read_news(
    model: ReadModel, names: Mapping[str, str], after: int | None
) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    """Return the position of the record, the jobs that changed after another one, and the network in numbers."""
    cursor = model.get_cursor(Stream.RECORD.value)
    with model.reading() as connection:
        rows = [] if after is None else list_changed(connection, after, CHANGES_MAX + 1)
        overview = read_overview(connection, now_ms=time.time_ns() // 1_000_000)
    changes = [
        {
            "job": row["job_id"].hex(),
            "phase": row["phase"],
            "ending": row["ending"],
            "audit": row["audit"],
            "verdict": row["verdict"],
            "generator": show_account(row["generator"], names) if row["generator"] else "",
            "slashed": row["slashed_count"],
            "at_ms": row["settled_ms"] or row["recorded_ms"] or row["admitted_ms"],
        }
        for row in rows
    ]
    # Rows may be newer than the cursor that was read before them: they come once more, which changes nothing.
    return cursor, changes, to_numbers(overview)


def to_numbers(overview: Any) -> dict[str, Any]:
    """Return the overview's live numbers by the names that the page marks them with."""
    sums = overview.sums
    minute = overview.minutes[-1] if overview.minutes else (0, 0, 0)
    return {
        "jobs": sums.get("jobs", 0),
        "open": overview.open_count,
        "settled": overview.phases.get("settled", 0),
        "audited": overview.audited_count,
        "slashed": sums.get("slashed_count", 0),
        "round": overview.round_number,
        "log": overview.log_size,
        "minute": minute[1],
        **{f"phase-{name}": count for name, count in overview.phases.items()},
        **{f"ending-{name}": count for name, count in overview.endings.items()},
    }
