"""Publishing a chain's rounds in order: owns the position in the stream, the clock, and how far back to catch up.

What makes a round, or where it comes from, is the subclass's (`pocache_beacon.local`, `pocache_beacon.relay`). No state is
kept: after a restart the stream itself says which round was the last. Refused: a stream whose last round another
signer wrote, and publishing a round before its time or out of order.

When more than ``CATCH_UP_ROUNDS_MAX`` rounds were missed the older ones are given up: no service remembers that many.
Rounds due before the network was created are nobody's, and are not published.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import structlog

from pocache.bus.port import Bus
from pocache.protocol.beacon import compute_round_at, compute_round_time_ms
from pocache.protocol.errors import BackpressureError, BeaconError, BusError
from pocache.protocol.keys import SigningKey
from pocache.runtime.network import Genesis
from pocache.service.dispatch import ROUNDS_KEPT, read_clock_ms
from pocache.wire.envelope import open_envelope, seal
from pocache.wire.messages import BeaconRoundV1
from pocache.wire.topics import BEACON_ROUND, Role

CATCH_UP_ROUNDS_MAX: Final = ROUNDS_KEPT
RETRY_DELAY_S: Final = 0.5
WAIT_S_MAX: Final = 5.0
"""Longest wait before the wall clock is read again: it may be set, and a machine may sleep."""
BEHIND_ROUNDS_MAX: Final = 2
"""A beacon that is this far behind its chain, or less, is ready."""

Wait = Callable[[asyncio.Event, float], Awaitable[None]]


async def wait_until_set(stop: asyncio.Event, timeout_s: float) -> None:
    """Return when ``stop`` is set, at the latest after ``timeout_s``."""
    try:
        await asyncio.wait_for(stop.wait(), timeout_s)
    except TimeoutError:
        return


@dataclass(frozen=True, slots=True)
class SignedRound:
    """A round and its proof; ``previous_signature`` is empty unless the scheme is chained."""

    number: int
    signature: bytes
    previous_signature: bytes = b""


def compute_first_round(genesis: Genesis) -> int:
    """Return the first round that a network needs: the one that was current when it was created."""
    return max(1, compute_round_at(genesis.beacon_chain, genesis.created_ms))


class RoundPublisher(ABC):
    """Publishes every due round once, in order."""

    batch_rounds: ClassVar[int] = 1
    """How many rounds are asked for at once while catching up."""

    def __init__(
        self,
        genesis: Genesis,
        *,
        key: SigningKey,
        bus: Bus,
        clock_ms: Callable[[], int] = read_clock_ms,
        wait: Wait = wait_until_set,
    ) -> None:
        self._genesis = genesis
        self._chain = genesis.beacon_chain
        self._key = key
        self._bus = bus
        self._clock_ms = clock_ms
        self._wait = wait
        self._log = structlog.get_logger().bind(service=Role.BEACON.value)
        self.is_ready = False

    @abstractmethod
    async def get_rounds(self, first: int, last: int) -> Sequence[SignedRound]:
        """Return the due rounds ``first`` … ``last`` (at most ``batch_rounds``), or as many of the first as there are.

        Each is verified, or made, by whoever implements this.
        """

    def compute_delay_s(self, failure_count: int) -> float:
        """Return how long to wait after so many attempts in a row, at least one, that got nothing."""
        return RETRY_DELAY_S

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
            opened.sender not in self._genesis.round_signers
            or opened.body.chain_hash != self._chain.chain_hash
        ):
            raise BeaconError(
                f"round {opened.body.round_number} in the stream is not of this network's beacon"
            )
        return opened.body.round_number

    async def _publish_rounds(self, stop: asyncio.Event) -> None:
        last: int | None = None
        failure_count = 0
        while not stop.is_set():
            try:
                if last is None:
                    last = await self.get_last_round()
                due = compute_round_at(self._chain, self._clock_ms())
                last = self._skip_too_old(last, due)
                reached = await self._publish_due(last, due, stop)
            except (BusError, BackpressureError) as error:
                self._log.warning("publish_delayed", code=error.code, reason=str(error))
                # Unknown whether it was stored: the stream knows, and drops a repetition.
                last = None
                await self._wait(stop, RETRY_DELAY_S)
                continue
            self.is_ready = reached >= due - BEHIND_ROUNDS_MAX
            failure_count = failure_count + 1 if reached == last else 0
            last = reached
            if last < due and not stop.is_set():
                await self._wait(stop, self.compute_delay_s(max(1, failure_count)))
                continue
            failure_count = 0
            await self._wait_for_round(last + 1, stop)

    def _skip_too_old(self, last: int, due: int) -> int:
        """Return the round to go on after: not before the network's first, nor further back than anybody remembers."""
        last = max(last, compute_first_round(self._genesis) - 1)
        if due - last > CATCH_UP_ROUNDS_MAX:
            first = due - CATCH_UP_ROUNDS_MAX + 1
            self._log.error("rounds_given_up", first_round=last + 1, last_round=first - 1)
            last = first - 1
        return last

    async def _publish_due(self, last: int, due: int, stop: asyncio.Event) -> int:
        """Publish, in order, the rounds after ``last`` up to ``due`` that there are; return the last one published."""
        if due - last > 1:
            self._log.warning("catching_up", first_round=last + 1, last_round=due)
        while last < due and not stop.is_set():
            until = min(due, last + self.batch_rounds)
            rounds = await self.get_rounds(last + 1, until)
            for one in rounds:
                assert one.number == last + 1, "rounds are published in order"
                await self._publish(one)
                last = one.number
            if last < until:
                break
        return last

    async def _publish(self, signed: SignedRound) -> None:
        body = BeaconRoundV1(
            chain_hash=self._chain.chain_hash,
            round_number=signed.number,
            signature=signed.signature,
            previous_signature=signed.previous_signature,
        )
        data = seal(self._key, self._genesis.network_id, body)
        # The same round is the same bytes, so a repetition after a lost answer is dropped by the stream.
        message_id = hashlib.sha256(data).hexdigest()
        await self._bus.publish(BEACON_ROUND.subject(), data, message_id=message_id)
        self._log.debug("round_published", round=signed.number)

    async def _wait_for_round(self, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            left_ms = compute_round_time_ms(self._chain, number) - self._clock_ms()
            if left_ms <= 0:
                return
            await self._wait(stop, min(left_ms / 1_000, WAIT_S_MAX))
