"""Who asks, and how much of it: keys, rates, requests at once, sizes of bodies.

A key's entry is remembered for a second, so a revoked key is refused within that time. Refuses before a body is read
whatever can be refused by then.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import ClientDisconnect, Request

from pocache.storage.api_keys import ApiKey, ApiKeyStore
from pocache_gateway.errors import ApiError, overloaded

REMEMBERED_S: Final = 1.0
"""How long an entry is used without asking for it again, and so the longest that a revoked key is still good."""
_REMEMBERED_MAX: Final = 10_000
_BODY_S: Final = 30.0
"""How long a client may take to send its body."""


@dataclass
class _Usage:
    """What one key takes at this moment."""

    tokens: float
    at_s: float
    concurrent: int = 0


@dataclass
class Access:
    """Checks keys and counts what their holders take."""

    store: ApiKeyStore
    clock_s: Callable[[], float] = time.monotonic
    _known: OrderedDict[bytes, tuple[float, ApiKey | None]] = field(default_factory=OrderedDict)
    _usage: OrderedDict[str, _Usage] = field(default_factory=OrderedDict)

    async def authenticate(self, request: Request) -> ApiKey:
        """Return the key of a request. Raises ApiError 401 that does not say what was wrong with it."""
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise ApiError(
                401,
                "You didn't provide an API key: send it as `Authorization: Bearer KEY`.",
                code="missing_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        entry = await self._find(secret.strip())
        if entry is None:
            raise ApiError(
                401,
                "Incorrect API key provided: it is unknown, or it was revoked.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return entry

    def count_request(self, key: ApiKey) -> None:
        """Count one request against the key's rate. Raises ApiError 429 that says when to come again."""
        limit = key.limits.requests_per_minute_max
        usage, now_s = self._get_usage(key), self.clock_s()
        usage.tokens = min(float(limit), usage.tokens + (now_s - usage.at_s) * limit / 60.0)
        usage.at_s = now_s
        if usage.tokens < 1.0:
            wait_s = (1.0 - usage.tokens) * 60.0 / limit
            raise overloaded(f"this key may ask {limit} times a minute", wait_s)
        usage.tokens -= 1.0

    @contextmanager
    def hold(self, key: ApiKey) -> Iterator[None]:
        """Count one job of this key while the context lasts. Raises ApiError 429 when there are too many."""
        usage, limit = self._get_usage(key), key.limits.concurrent_max
        if usage.concurrent >= limit:
            raise overloaded(
                f"this key may have {limit} jobs in hand at once", code="concurrent_limit_exceeded"
            )
        usage.concurrent += 1
        try:
            yield
        finally:
            usage.concurrent -= 1

    async def _find(self, secret: str) -> ApiKey | None:
        now_s = self.clock_s()
        name = hashlib.sha256(secret.encode()).digest()
        known = self._known.get(name)
        if known is not None and now_s - known[0] < REMEMBERED_S:
            return known[1]
        entry = await asyncio.to_thread(self.store.find, secret)
        self._known[name] = (now_s, entry)
        self._known.move_to_end(name)
        while len(self._known) > _REMEMBERED_MAX:
            self._known.popitem(last=False)
        return entry

    def _get_usage(self, key: ApiKey) -> _Usage:
        usage = self._usage.get(key.key_id)
        if usage is None:
            usage = _Usage(float(key.limits.requests_per_minute_max), self.clock_s())
            self._usage[key.key_id] = usage
            idle = [name for name, one in self._usage.items() if not one.concurrent]
            for name in idle[: max(0, len(self._usage) - _REMEMBERED_MAX)]:
                del self._usage[name]
        return usage


async def read_body(request: Request, bytes_max: int) -> bytes:
    """Return a request's body. Raises ApiError 413 beyond ``bytes_max``, 408 when it takes too long to come."""
    too_large = ApiError(
        413,
        f"the body is larger than {bytes_max} bytes",
        code="body_too_large",
        headers={"connection": "close"},
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > bytes_max:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > bytes_max:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        message = f"the body did not come within {_BODY_S:g} s"
        raise ApiError(408, message, code="body_timeout", headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise ApiError(499, "the client went away", code="client_gone") from None
    return b"".join(parts)
