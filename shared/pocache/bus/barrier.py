"""A round trip that the server answers after everything sent before it.

The client library writes its PING past the commands that still wait in its buffer, so one ``flush`` may return before a
subscription is known to the server. Only when the buffer is empty is the next round trip a barrier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nats.aio.client import Client

_ROUNDS_MAX: Final = 8


async def pass_barrier(client: Client) -> None:
    """Return when the server has handled what this task sent before. Raises nats.errors.Error.

    Others may keep the buffer filled, so the number of rounds is bounded; each writes what was there when it began.
    """
    for _ in range(_ROUNDS_MAX):
        was_empty = client.pending_data_size == 0
        await client.flush()
        if was_empty:
            return
