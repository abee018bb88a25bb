"""What the makers of vectors share: whether something is refused, and how values are written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import Digest

Vector = dict[str, Any]
Sections = dict[str, list[Vector]]


def is_accepted(check: Callable[[], object]) -> bool:
    """Return whether a check does not refuse; anything but a refusal is a bug and comes through."""
    try:
        check()
    except PocacheError:
        return False
    return True


def judge_value(read: Callable[[], object]) -> Vector:
    """Return what a reader says: a value, or that it refuses."""
    try:
        return {"valid": True, "value": tag(read())}
    except PocacheError:
        return {"valid": False}


def tag(value: object) -> object:
    """Return a decoded value so that JSON can hold it: integers and bytes as marked texts, maps as pairs."""
    match value:
        case bool() | None:
            return value
        case int():
            return f"i{value}"
        case bytes():
            return f"b{value.hex()}"
        case str():
            return f"s{value}"
        case dict():
            return {"map": [[tag(key), tag(one)] for key, one in value.items()]}
        case _:
            assert isinstance(value, (list, tuple))
            return [tag(one) for one in value]


def to_hex(digests: tuple[Digest, ...]) -> list[str]:
    """Return digests as texts."""
    return [one.hex() for one in digests]


def flip(data: bytes, bit: int) -> bytes:
    """Return bytes with one bit turned over."""
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
