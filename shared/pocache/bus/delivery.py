"""What a delivery from a pull consumer says about itself, and the one answer that it gets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, Protocol

from pocache.bus.port import StoredMessage

_ACK_TOKENS_V1: Final = 9
_ACK_TOKENS_V2_MIN: Final = 11
_REASON_CHARS_MAX: Final = 256
_NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """What an acknowledgement subject says about the message that carries it."""

    stream: str
    consumer: str
    delivered_count: int
    sequence: int
    stored_ms: int


class SettlementSource(Protocol):
    """Where a settled message came from."""

    async def say(self, reply: str, data: bytes) -> None: ...
    async def bury(self, message: StoredMessage, reason: str) -> None: ...
    def forget(self, settler: PullSettler) -> None: ...


class PullSettler:
    """The one answer to one delivery."""

    __slots__ = ("_is_settled", "_reply", "_source", "delivery", "is_superseded", "message")

    def __init__(self, source: SettlementSource, reply: str, delivery: Delivery) -> None:
        self._source = source
        self._reply = reply
        self._is_settled = False
        self.delivery = delivery
        self.is_superseded = False
        self.message: StoredMessage | None = None

    async def ack(self, *, keeps_credit: bool = False) -> None:
        await self._settle(b"+ACK", keeps_credit=keeps_credit)

    def release(self) -> None:
        if self._is_settled:
            self._source.forget(self)

    async def nak(self, delay_s: float) -> None:
        delay = b" " + json.dumps({"delay": round(delay_s * _NS_PER_S)}).encode() if delay_s > 0 else b""
        await self._settle(b"-NAK" + delay)

    async def term(self, reason: str) -> None:
        if self._is_settled:
            return
        assert self.message is not None
        text = compute_reason_text(reason)
        await self._source.bury(self.message, text)
        await self._settle(b"+TERM " + text.encode())

    async def in_progress(self) -> None:
        if not self._is_settled:
            await self._source.say(self._reply, b"+WPI")

    async def _settle(self, data: bytes, *, keeps_credit: bool = False) -> None:
        if self._is_settled:
            return
        await self._source.say(self._reply, data)
        self._is_settled = True
        if not keeps_credit:
            self._source.forget(self)


def compute_reason_text(reason: str) -> str:
    """Return a reason as it may stand in a header or an acknowledgement: one line of ASCII, bounded."""
    text = " ".join(reason.split()).encode("ascii", "backslashreplace").decode()
    return (
        "".join(char if char.isprintable() else "?" for char in text)[:_REASON_CHARS_MAX] or "no reason given"
    )


def parse_delivery(reply: str) -> Delivery | None:
    """Return what an acknowledgement subject says, None when it is not one.

    ``$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time ns>.<pending>``, or the same after
    ``$JS.ACK.<domain>.<account hash>``.
    """
    tokens = reply.split(".")
    if len(tokens) >= _ACK_TOKENS_V2_MIN:
        tokens = tokens[:2] + tokens[4:]
    if len(tokens) < _ACK_TOKENS_V1 or tokens[:2] != ["$JS", "ACK"]:
        return None
    numbers = tokens[4:8]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        return None
    delivered, sequence, _, time_ns = (int(number) for number in numbers)
    return Delivery(tokens[2], tokens[3], delivered, sequence, time_ns // 1_000_000)
