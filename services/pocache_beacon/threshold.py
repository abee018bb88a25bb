"""A member of a threshold beacon: signs its part of each due round, and publishes the rounds that t parts make.

Owns one share. Members say their parts to each other on core NATS, again and again until the round is in the stream, so
a part that nobody heard is no round lost; whoever holds t parts publishes, and as the combined signature is the same
whoever made it, so is its message id (docs/protocol.md 5.6). Losing n - t members loses no round. No state is kept: the
stream says which rounds there are.

Refused: a part whose envelope its member did not sign, one of another chain, one that does not verify against the
member's public share. The last is logged with the member's name, and of that member nothing more is taken for the
round. A round in the stream counts only when its own signature verifies: a false member cannot move the others on.

Not covered: t members who make rounds in advance, and a member that floods the bus.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import structlog

from pocache.bus.port import Bus, CoreMessage, StreamRecord
from pocache.protocol.beacon import compute_round_at, compute_round_time_ms, verify_round
from pocache.protocol.errors import (
    BackpressureError,
    BeaconError,
    BusError,
    ConfigError,
    EnvelopeError,
    PocacheError,
)
from pocache.protocol.ids import ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.protocol.threshold import Committee, combine_partials, sign_partial, verify_partial
from pocache.runtime.network import Genesis, NetworkDirectory
from pocache.service.dispatch import read_clock_ms
from pocache.wire.envelope import open_envelope, seal
from pocache.wire.messages import BeaconPartialV1, BeaconRoundV1
from pocache.wire.topics import BEACON_PARTIAL, BEACON_ROUND, Role
from pocache_beacon.local import read_bls_key
from pocache_beacon.publishing import (
    BEHIND_ROUNDS_MAX,
    CATCH_UP_ROUNDS_MAX,
    RETRY_DELAY_S,
    WAIT_S_MAX,
    compute_first_round,
)

WINDOW_ROUNDS: Final = 32
"""Rounds after the last one that parts are made of and kept for, at once: catching up goes window by window."""
REPEAT_S: Final = 0.5
"""How often parts are said again of a round that is due and not in the stream."""
SCAN_RECORDS_MAX: Final = 256
"""How many of the stream's last messages a member reads at once, at its start or after others were at work."""


def read_share(directory: NetworkDirectory, name: str) -> bytes:
    """Return the share of the member whose keys have this name. Raises ConfigError that says what is wrong."""
    genesis = directory.genesis
    committee = genesis.beacon_committee
    if committee is None:
        raise ConfigError("this network's beacon is not a threshold beacon: its genesis lists no members")
    index = get_member_index(genesis, directory.signing_key(name).participant_id)
    if index is None:
        raise ConfigError(f"{name} is not a member of this network's beacon: set POCACHE_NAME to one that is")
    share_file = f"secrets/{name}-share.hex"
    share, public_share = read_bls_key(directory, share_file)
    if public_share != committee.public_shares[index - 1]:
        raise ConfigError(
            f"{directory.path / share_file} is not the share of member {index}: its public share is another"
        )
    return share


def get_member_index(genesis: Genesis, participant: ParticipantId) -> int | None:
    """Return which share a participant has, counted from 1; None when it is no member."""
    for index, member in enumerate(genesis.chain.members, start=1):
        if member.participant == participant:
            return index
    return None


class PartPool:
    """The parts of the rounds in a window after the last one: verified, one per member and round."""

    def __init__(self, committee: Committee) -> None:
        self._committee = committee
        self._parts: dict[int, dict[int, bytes]] = {}
        self._false: set[tuple[int, int]] = set()
        self.last = 0

    def advance(self, last: int) -> None:
        """Forget what is not after ``last``."""
        self.last = last
        self._parts = {number: parts for number, parts in self._parts.items() if number > last}
        self._false = {(number, index) for number, index in self._false if number > last}

    def add(self, index: int, number: int, part: bytes) -> bool:
        """Keep a member's part; whether its round can now be made. Raises BeaconError, once, on one that is false."""
        if not self.last < number <= self.last + WINDOW_ROUNDS:
            return False
        parts = self._parts.setdefault(number, {})
        if index in parts or (number, index) in self._false:
            return False
        try:
            verify_partial(self._committee, index, number, part)
        except BeaconError:
            self._false.add((number, index))
            raise
        parts[index] = part
        return len(parts) == self._committee.threshold

    def combine(self, number: int) -> bytes | None:
        """Return a round's signature, verified; None while parts are missing."""
        parts = self._parts.get(number, {})
        if len(parts) < self._committee.threshold:
            return None
        return combine_partials(self._committee, number, parts)


class StreamTail:
    """Which rounds the stream has, by their own signatures: the last one before which none is missing.

    A false member may store anything on the rounds' subject, also true rounds out of order.
    """

    def __init__(self, genesis: Genesis, bus: Bus, log: Any) -> None:
        self._genesis = genesis
        self._chain = genesis.beacon_chain
        self._bus = bus
        self._log = log
        self._sequence = 0
        self._last = 0
        self._ahead: set[int] = set()

    async def get_last(self, first: int) -> int:
        """Read what is new; return the last round before which none is missing from ``first`` on, or first - 1."""
        assert BEACON_ROUND.stream is not None
        stream, subject = BEACON_ROUND.stream.value, BEACON_ROUND.subject()
        record = await self._bus.get_last(stream, subject)
        if record is not None and record.sequence > self._sequence:
            start = max(self._sequence, record.sequence - SCAN_RECORDS_MAX) + 1
            records = [record]
            if start < record.sequence:
                records = [one async for one in self._bus.read(stream, subject=subject, start_sequence=start)]
            self._ahead |= {number for one in records if (number := self._read(one)) is not None}
            self._sequence = max(one.sequence for one in records)
        self._last = max(self._last, first - 1)
        self._advance()
        if self._ahead and max(self._ahead) > self._last + WINDOW_ROUNDS:
            # The others are far on, so this member began late or slept: it joins them where they are.
            recent = {number for number in self._ahead if number > max(self._ahead) - WINDOW_ROUNDS}
            self._last = min(recent)
            self._advance()
        return self._last

    def _advance(self) -> None:
        while self._last + 1 in self._ahead:
            self._last += 1
        self._ahead = {number for number in self._ahead if number > self._last}

    def _read(self, record: StreamRecord) -> int | None:
        """Return a stored round's number when it verifies; name its sender when it does not."""
        sender = ""
        try:
            opened = open_envelope(record.data, self._genesis.network_id, BeaconRoundV1)
            sender = opened.sender
            body = opened.body
            if sender not in self._genesis.round_signers or body.chain_hash != self._chain.chain_hash:
                raise BeaconError("a round that no member of this network's beacon announced")
            if body.round_number <= self._last:
                return None  # again
            verify_round(self._chain, body.round_number, body.signature, body.previous_signature or None)
        except PocacheError as error:
            self._log.error(
                "false_round",
                participant=sender,
                sequence=record.sequence,
                code=error.code,
                reason=str(error),
            )
            return None
        return body.round_number


class ThresholdBeacon:
    """One member of a threshold beacon, on a bus."""

    def __init__(
        self,
        genesis: Genesis,
        *,
        key: SigningKey,
        share: bytes,
        bus: Bus,
        clock_ms: Callable[[], int] = read_clock_ms,
    ) -> None:
        committee, index = genesis.beacon_committee, get_member_index(genesis, key.participant_id)
        if committee is None or index is None:
            raise ConfigError("this key is no member's of a threshold beacon")
        self._log = structlog.get_logger().bind(service=Role.BEACON.value, member=index)
        self._genesis = genesis
        self._chain = genesis.beacon_chain
        self._key = key
        self._share = share
        self._index = index
        self._bus = bus
        self._clock_ms = clock_ms
        self._pool = PartPool(committee)
        self._said_s: dict[int, float] = {}
        self._tail = StreamTail(genesis, bus, self._log)
        self._announced = 0
        self._wake = asyncio.Event()
        self.is_ready = False

    async def run(self, stop: asyncio.Event) -> None:
        """Take part until ``stop`` is set. Raises BusError when the bus is gone for good."""
        try:
            async with (
                self._bus.subscribe_core(BEACON_PARTIAL.filter()) as parts,
                self._bus.subscribe_core(BEACON_ROUND.subject()) as rounds,
                asyncio.TaskGroup() as group,
            ):
                listening = [
                    group.create_task(self._bus.wait_closed()),
                    group.create_task(_for_each(parts, self.take)),
                    group.create_task(_for_each(rounds, lambda _message: self._wake.set())),
                    group.create_task(self._wake_when_set(stop)),
                ]
                await self._make_rounds(stop)
                for task in listening:
                    task.cancel()
        finally:
            self.is_ready = False

    def take(self, message: CoreMessage) -> None:
        """Take one member's part as it came from the bus; what is refused is logged and changes nothing."""
        try:
            opened = open_envelope(message.data, self._genesis.network_id, BeaconPartialV1)
            index = get_member_index(self._genesis, opened.sender)
            if index is None or BEACON_PARTIAL.parse(message.subject)["signer"] != opened.sender:
                raise EnvelopeError("a part must be signed by the member that its subject names")
            body = opened.body
            if body.chain_hash != self._chain.chain_hash:
                raise BeaconError("a part of another chain's round")
        except PocacheError as error:
            self._log.warning("part_refused", subject=message.subject, code=error.code, reason=str(error))
            return
        try:
            if self._pool.add(index, body.round_number, body.signature):
                self._wake.set()
        except BeaconError as error:
            # The envelope is its member's own signature under a false part: whoever kept it can show it.
            self._log.error(
                "false_part",
                false_member=index,
                participant=opened.sender,
                round=body.round_number,
                envelope_id=opened.envelope_id.hex(),
                reason=str(error),
            )

    async def _make_rounds(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._wake.clear()
            try:
                wait_s = await self._make_due()
            except (BusError, BackpressureError) as error:
                self._log.warning("publish_delayed", code=error.code, reason=str(error))
                wait_s = RETRY_DELAY_S
            try:
                await asyncio.wait_for(self._wake.wait(), wait_s)
            except TimeoutError:
                continue

    async def _make_due(self) -> float:
        """Do what can be done now; return after how long to look again, unless woken before."""
        due = compute_round_at(self._chain, self._clock_ms())
        first = max(compute_first_round(self._genesis), due - CATCH_UP_ROUNDS_MAX + 1)
        last = await self._tail.get_last(first)
        self._pool.advance(last)
        self._said_s = {number: at_s for number, at_s in self._said_s.items() if number > last}
        self.is_ready = last >= due - BEHIND_ROUNDS_MAX
        await self._say_parts(last + 1, min(due, last + WINDOW_ROUNDS))
        if await self._publish_made(last + 1):
            return 0.0
        if last < due:
            return REPEAT_S
        left_ms = compute_round_time_ms(self._chain, due + 1) - self._clock_ms()
        return min(max(0, left_ms) / 1_000, WAIT_S_MAX)

    async def _say_parts(self, first: int, last: int) -> None:
        """Sign and say the parts of due rounds that were not said for a while; never of one that is not due."""
        now_s = asyncio.get_running_loop().time()
        for number in range(first, last + 1):
            if now_s - self._said_s.get(number, -REPEAT_S) < REPEAT_S:
                continue
            part = sign_partial(self._share, number)
            self._pool.add(self._index, number, part)
            body = BeaconPartialV1(chain_hash=self._chain.chain_hash, round_number=number, signature=part)
            data = seal(self._key, self._genesis.network_id, body)
            await self._bus.publish_core(BEACON_PARTIAL.subject(signer=self._key.participant_id), data)
            self._said_s[number] = now_s

    async def _publish_made(self, first: int) -> bool:
        """Publish, in order from ``first``, the rounds that have their parts; whether there was one."""
        number = first
        while (signature := self._pool.combine(number)) is not None:
            body = BeaconRoundV1(chain_hash=self._chain.chain_hash, round_number=number, signature=signature)
            data = seal(self._key, self._genesis.network_id, body)
            # Members' envelopes differ and the round does not: its id is of what is the same. Whoever took that
            # id for something else hid the round; then it is said again under an id that nobody else can take.
            shared = hashlib.sha256(self._chain.chain_hash + number.to_bytes(8, "big") + signature)
            own = hashlib.sha256(data)
            message_id = (own if number <= self._announced else shared).hexdigest()
            await self._bus.publish(BEACON_ROUND.subject(), data, message_id=message_id)
            self._announced = max(self._announced, number)
            self._log.debug("round_published", round=number)
            number += 1
        return number > first

    async def _wake_when_set(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()


async def _for_each(messages: AsyncIterator[CoreMessage], take: Callable[[CoreMessage], None]) -> None:
    async for message in messages:
        take(message)
