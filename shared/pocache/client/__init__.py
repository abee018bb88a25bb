"""The SDK: submit a job, stream its tokens, cancel or challenge it, follow it to its payout.

Over the bus by :func:`open_client` (no gateway in between, everything that arrives is verified here), over HTTP by
:mod:`pocache.client.http`; without asyncio by :mod:`pocache.client.blocking`.
"""

from __future__ import annotations

from pocache.client.network import PocacheClient, open_client
from pocache.job import Job, Piece, RefusedError

__all__ = ["Job", "Piece", "PocacheClient", "RefusedError", "open_client"]
