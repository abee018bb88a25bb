"""The local chain: signs each round when it is due and publishes it, also those that were missed.

Owns the chain's secret and the rule that no round leaves before its time. It keeps no state: after a
restart the stream itself says which round was the last. Refuses a chain of another scheme, a secret that
is not the chain's, and a stream whose last round another signer wrote.

Not covered: its operator, who holds the secret, knows every round to come (docs/protocol.md 5.3). When more
than ``CATCH_UP_ROUNDS_MAX`` rounds were missed the older ones are given up: no service remembers that
many.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from pocache.bus.port import Bus
from pocache.protocol.beacon import (
    Scheme,
    compute_public_key,
    compute_round_at,
    compute_round_time_ms,
    sign_round,
)
from pocache.protocol.errors import BackpressureError, BeaconError, BusError, ConfigError
from pocache.protocol.keys import SigningKey
from pocache.runtime.network import Genesis, NetworkDirectory, read_secret
from pocache.service.dispatch import ROUNDS_KEPT, read_clock_ms
from pocache.wire.envelope import open_envelope, seal
from pocache.wire.messages import BeaconRoundV1
from pocache.wire.topics import BEACON_ROUND, Role

SECRET_FILE: Final = "secrets/beacon-bls.hex"
"""In the network directory: the BLS secret, 64 hexadecimal digits."""

CATCH_UP_ROUNDS_MAX: Final = ROUNDS_KEPT
RETRY_DELAY_S: Final = 0.5
WAIT_S_MAX: Final = 5.0
"""Longest wait before the wall clock is read again: it may be set, and a machine may sleep."""

Wait = Callable[[asyncio.Event, float], Awaitable[None]]


async def wait_until_set(stop: asyncio.Event, timeout_s: float) -> None:
    """Return when ``stop`` is set, at the latest after ``timeout_s``."""
    try:
        await asyncio.wait_for(stop.wait(), timeout_s)
    except TimeoutError:
        return


def read_bls_secret(directory: NetworkDirectory) -> bytes:
    """Return a network's chain secret from its directory. Raises ConfigError that says what is wrong."""
    file = directory.path / SECRET_FILE
    text = read_secret(file)
    try:
        secret = bytes.fromhex(text)
        public_key = compute_public_key(secret)
    except (ValueError, BeaconError) as error:
        # The text itself stays out of the message.
        raise ConfigError(f"{file} is not a BLS secret in hexadecimal digits") from error
    chain = directory.genesis.beacon_chain
    if chain.scheme is not Scheme.BLS_UNCHAINED_G1_RFC9380:
        raise ConfigError(
            f"this network's chain is {chain.scheme}: the local beacon signs no other than "
            f"{Scheme.BLS_UNCHAINED_G1_RFC9380}"
        )
    if public_key != chain.public_key:
        raise ConfigError(f"{file} is not the secret of this network's chain: its public key is another")
    return secret


class LocalBeacon:
    """Publishes a local chain's rounds on a bus."""

    def __init__(
        self,
        genesis: Genesis,
        *,
        key: SigningKey,
        bls_secret: bytes,
        bus: Bus,
        clock_ms: Callable[[], int] = read_clock_ms,
        wait: Wait = wait_until_set,
    ) -> None:
        self._genesis = genesis
        self._chain = genesis.beacon_chain
        self._key = key
        self._bls_secret = bls_secret
        self._bus = bus
        self._clock_ms = clock_ms
        self._wait = wait
        self._log = structlog.get_logger().bind(service=Role.BEACON.value)
        self.is_ready = False

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until ``stop`` is set.

        Raises BusError when the bus is gone for good, BeaconError when the stream's last round is
        another's.
        """
        try:
            async with asyncio.TaskGroup() as group:
                closed = group.create_task(self._bus.wait_closed())
                await self._publish_rounds(stop)
                closed.cancel()
        finally:
            self.is_ready = False

    async def get_last_round(self) -> int:
        """Return the number of the last round in the stream, 0 when there is none."""
        assert BEACON_ROUND.stream is not None
        record = await self._bus.get_last(BEACON_ROUND.stream.value, BEACON_ROUND.subject())
        if record is None:
            return 0
        opened = open_envelope(record.data, self._genesis.network_id, BeaconRoundV1)
        if (
            opened.sender != self._genesis.signer(Role.BEACON)
            or opened.body.chain_hash != self._chain.chain_hash
        ):
            raise BeaconError(
                f"round {opened.body.round_number} in the stream is not of this network's beacon"
            )
        return opened.body.round_number

    async def _publish_rounds(self, stop: asyncio.Event) -> None:
        last: int | None = None
        while not stop.is_set():
            try:
                if last is None:
                    last = await self.get_last_round()
                last = await self._publish_due(last, stop)
            except (BusError, BackpressureError) as error:
                self._log.warning("publish_delayed", code=error.code, reason=str(error))
                # Unknown whether it was stored: the stream knows, and drops a repetition.
                last = None
                await self._wait(stop, RETRY_DELAY_S)
                continue
            self.is_ready = True
            await self._wait_for_round(last + 1, stop)

    async def _publish_due(self, last: int, stop: asyncio.Event) -> int:
        """Publish, in order, every round after ``last`` that is due; return the last one published."""
        due = compute_round_at(self._chain, self._clock_ms())
        if due - last > CATCH_UP_ROUNDS_MAX:
            first = due - CATCH_UP_ROUNDS_MAX + 1
            self._log.error("rounds_given_up", first_round=last + 1, last_round=first - 1)
            last = first - 1
        if due - last > 1:
            self._log.warning("catching_up", first_round=last + 1, last_round=due)
        for number in range(last + 1, due + 1):
            if stop.is_set():
                break
            await self._publish(number)
            last = number
        return last

    async def _publish(self, number: int) -> None:
        body = BeaconRoundV1(
            chain_hash=self._chain.chain_hash,
            round_number=number,
            signature=sign_round(self._bls_secret, number),
        )
        data = seal(self._key, self._genesis.network_id, body)
        # The same round is the same bytes, so a repetition after a lost answer is dropped by the stream.
        message_id = hashlib.sha256(data).hexdigest()
        await self._bus.publish(BEACON_ROUND.subject(), data, message_id=message_id)
        self._log.debug("round_published", round=number)

    async def _wait_for_round(self, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            left_ms = compute_round_time_ms(self._chain, number) - self._clock_ms()
            if left_ms <= 0:
                return
            await self._wait(stop, min(left_ms / 1_000, WAIT_S_MAX))
