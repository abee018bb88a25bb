"""The accounts that this gateway signs for: each with its own keys, its own connection, its own rights on the bus.

A connection is opened when an account first asks and kept. The gateway holds the signing keys of these accounts: whoever
wants to hold his own uses the bus or the SDK. Refused: accounts whose keys are not in the network directory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.client import PocacheClient, open_client
from pocache.protocol.errors import BusError, ConfigError, PocacheError
from pocache.runtime.network import NetworkDirectory

OPEN_S: Final = 10.0


class Accounts(Protocol):
    """Where a client of an account comes from."""

    async def get(self, account: str) -> PocacheClient:
        """Return the open client of an account. Raises BusError, ConfigError."""
        ...


@dataclass
class _Opened:
    client: asyncio.Future[PocacheClient]
    task: asyncio.Task[None]


@dataclass
class NetworkAccounts:
    """Accounts on a network's bus; made by :func:`open_accounts`."""

    directory: NetworkDirectory
    nats_url: str
    _opened: dict[str, _Opened] = field(default_factory=dict)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def get(self, account: str) -> PocacheClient:
        """Return the open client of an account, connecting it when it is not."""
        opened = self._opened.get(account)
        if opened is None or opened.task.done():
            future: asyncio.Future[PocacheClient] = asyncio.get_running_loop().create_future()
            opened = _Opened(future, asyncio.create_task(self._serve(account, future)))
            self._opened[account] = opened
        try:
            async with asyncio.timeout(OPEN_S):
                return await asyncio.shield(opened.client)
        except TimeoutError:
            raise BusError(f"the bus did not answer within {OPEN_S:g} s") from None

    async def _serve(self, account: str, ready: asyncio.Future[PocacheClient]) -> None:
        """Keep one account connected until the gateway stops or the connection is gone for good."""
        try:
            settings = NatsSettings.of(self.directory, self.nats_url, account)
            key = self.directory.signing_key(account)
            async with connect_bus(settings) as bus, open_client(bus, self.directory.genesis, key) as client:
                ready.set_result(client)
                closed = asyncio.ensure_future(bus.wait_closed())
                stopped = asyncio.ensure_future(self._stop.wait())
                await asyncio.wait({closed, stopped}, return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                closed.cancel()
                await asyncio.gather(closed, stopped, return_exceptions=True)
        except Exception as error:  # noqa: BLE001 - a task's boundary: told to who waits, and logged
            structlog.get_logger().error("account_closed", account=account, error=repr(error))
            if not ready.done():
                known = isinstance(error, PocacheError)
                ready.set_exception(error if known else BusError(f"cannot connect: {error!r}"))
                ready.exception()  # whoever waited may be gone
        finally:
            if not ready.done():
                ready.cancel()

    async def close(self) -> None:
        """Close every connection."""
        self._stop.set()
        await asyncio.gather(*(one.task for one in self._opened.values()), return_exceptions=True)


@asynccontextmanager
async def open_accounts(directory: NetworkDirectory, nats_url: str) -> AsyncIterator[NetworkAccounts]:
    """Yield the accounts of a network while the context lasts."""
    accounts = NetworkAccounts(directory, nats_url)
    try:
        yield accounts
    finally:
        await accounts.close()


def verify_account(directory: NetworkDirectory, account: str) -> None:
    """Check that this directory holds the keys of an account. Raises ConfigError."""
    try:
        directory.signing_key(account)
        directory.transport_seed(account)
    except ConfigError as error:
        raise ConfigError(f"this gateway cannot sign for {account}: {error}") from error
