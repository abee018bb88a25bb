"""Server-sent events as a client reads them, and waiting for what comes when it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx


async def read_events(response: httpx.Response) -> list[tuple[str, str]]:
    """Return the id and data of each event of an answer, to its end."""
    return [one async for one in iterate_events(response)]


async def iterate_events(response: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """Yield the id and data of each event of an answer."""
    event_id, data = "", ""
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("data: "):
            data = line[6:]
        elif not line and data:
            yield event_id, data
            event_id, data = "", ""


async def wait_until(is_met: Any, *, timeout_s: float = 60.0) -> None:
    """Wait until ``is_met()``, which may be asynchronous, answers yes."""
    async with asyncio.timeout(timeout_s):
        while True:
            answer = is_met()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            await asyncio.sleep(0.05)
