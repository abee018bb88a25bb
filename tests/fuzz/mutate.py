"""Changes of honest bytes from a seed, where no fuzzer that sees the code's branches is installed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from pocache.protocol.errors import PocacheError
from pocache.wire.codec import decode_value, encode_value

_NUMBERS: Final = (0, 1, -1, 255, 2**16, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1, -(2**63))
_MAGIC: Final = (
    b"\x00", b"\xff", b"\xc0", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\x81", b"\x91" * 64, b"[" * 200, b'{"a":' * 100, b"1e999", b"NaN", b"\\ud800", b"\xed\xa0\x80", b"9" * 400,
    b"\r\n", b"\r\n\r\n", b"%00", b"..", b"last-event-id: ", b"content-length: 99999999999999999999", b'"stop":', b"1e400",
)  # fmt: skip


def mutate(draw: random.Random, corpus: Sequence[bytes], bytes_max: int) -> bytes:
    """Return a changed member of the corpus: bytes, splices, or values inside its msgpack."""
    data = draw.choice(corpus)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        data = draw.choice(_CHANGES)(draw, data, corpus)[
            : 2 * bytes_max
        ]  # or what is repeated grows without end
    return data[:bytes_max]


def _flip(draw: random.Random, data: bytes, _corpus: Sequence[bytes]) -> bytes:
    if not data:
        return b"\x00"
    changed = bytearray(data)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _insert(draw: random.Random, data: bytes, _corpus: Sequence[bytes]) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.choice((draw.randbytes(draw.randint(1, 8)), *_MAGIC)) + data[at:]


def _cut(draw: random.Random, data: bytes, _corpus: Sequence[bytes]) -> bytes:
    start, end = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    return data[:start] + data[end:]


def _repeat(draw: random.Random, data: bytes, _corpus: Sequence[bytes]) -> bytes:
    start, end = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    return data[:end] + data[start:end] * draw.choice((1, 2, 16)) + data[end:]


def _splice(draw: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    other = draw.choice(corpus)
    return data[: draw.randint(0, len(data))] + other[draw.randint(0, len(other)) :]


def _change_value(draw: random.Random, data: bytes, _corpus: Sequence[bytes]) -> bytes:
    """Change one value of a msgpack map, behind a leading byte where there is one."""
    for skip in (0, 1):
        try:
            value = decode_value(data[skip:])
            if isinstance(value, dict) and value:
                name = draw.choice(sorted(value))
                return data[:skip] + encode_value({**value, name: _draw_value(draw, value[name])})
        except PocacheError:
            continue
    return _flip(draw, data, _corpus)


def _draw_value(draw: random.Random, value: object) -> object:
    if isinstance(value, bytes) and value and draw.random() < 0.7:
        return _flip(draw, value, ()) if draw.random() < 0.6 else _cut(draw, value, ())
    if isinstance(value, tuple) and value and draw.random() < 0.7:
        return draw.choice((value[1:], value * 2, (*value, value[0]), value[:1]))
    return draw.choice(
        (draw.choice(_NUMBERS), draw.randbytes(32), b"", "", "text" * 20, None, True, (), {}, value)
    )


_CHANGES: Final[tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...]] = (
    _flip,
    _flip,
    _insert,
    _cut,
    _repeat,
    _splice,
    _change_value,
    _change_value,
    _change_value,
)
