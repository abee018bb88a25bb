"""Points of edwards25519 by the textbook's affine formulas: to make keys and signatures that nobody honest would."""

from __future__ import annotations

from typing import Final, TypeAlias

Point: TypeAlias = tuple[int, int]

PRIME: Final = 2**255 - 19
ORDER: Final = 2**252 + 27742317777372353535851937790883648493
D: Final = -121665 * pow(121666, -1, PRIME) % PRIME


def add(one: Point, other: Point) -> Point:
    """Return the sum of two points."""
    (x1, y1), (x2, y2) = one, other
    common = D * x1 * x2 * y1 * y2 % PRIME
    x = (x1 * y2 + x2 * y1) * pow(1 + common, -1, PRIME)
    y = (y1 * y2 + x1 * x2) * pow(1 - common, -1, PRIME)
    return x % PRIME, y % PRIME


def multiply(point: Point, scalar: int) -> Point:
    """Return a multiple of a point."""
    result = (0, 1)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result


def encode(point: Point) -> bytes:
    """Return the 32 bytes of a point."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def decode(data: bytes) -> Point:
    """Return the point of 32 bytes that are one."""
    number = int.from_bytes(data, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
    assert x * x % PRIME == square, "not a point"
    return (PRIME - x if x & 1 != sign else x), y


BASE: Final = decode((4 * pow(5, -1, PRIME) % PRIME).to_bytes(32, "little"))
SMALL_ORDER: Final = decode(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"))
"""A point of order 8."""
