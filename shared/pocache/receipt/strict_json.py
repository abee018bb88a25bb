"""JSON from outside, read one way only: bounded before it is parsed, and nothing in it means two things.

Refused: more bytes than the caller allows, nesting beyond the codec's depth, a key given twice, floats, NaN, integers
outside 64 bits, and whatever else is no JSON. Integers stay exact, also beyond 2^53.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from pocache.protocol.errors import CodecError, LimitError
from pocache.protocol.limits import CODEC_DEPTH_MAX

_INTEGER_CHARS_MAX: Final = 20
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1


def read_json(data: bytes, *, bytes_max: int) -> Any:
    """Return the value that these bytes say. Raises LimitError, CodecError."""
    if len(data) > bytes_max:
        raise LimitError(f"{len(data)} bytes of JSON exceed {bytes_max}")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_read_object,
            parse_float=_refuse_float,
            parse_constant=_refuse_float,
            parse_int=_read_integer,
        )
    except RecursionError:
        raise LimitError(f"nested deeper than {CODEC_DEPTH_MAX}") from None
    except UnicodeDecodeError:
        raise CodecError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise CodecError(f"not JSON: {error.msg} at character {error.pos}") from None
    _verify_depth(value)
    return value


def write_json(value: object) -> bytes:
    """Return the one spelling: keys ascending, no spaces, ASCII, one line feed at the end."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CodecError("a key is given twice")
    return result


def _read_integer(text: str) -> int:
    # Before it is converted: a million digits take seconds.
    number = int(text) if len(text) <= _INTEGER_CHARS_MAX else _UINT64_MAX + 1
    if not _INT64_MIN <= number <= _UINT64_MAX:
        raise LimitError("an integer outside 64 bits")
    return number


def _refuse_float(_text: str) -> NoReturn:
    raise CodecError("a number that is not an integer")


def _verify_depth(value: object) -> None:
    pending: list[tuple[object, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, (dict, list)):
            if depth > CODEC_DEPTH_MAX:
                raise LimitError(f"nested deeper than {CODEC_DEPTH_MAX}")
            pending.extend(
                (child, depth + 1) for child in (item.values() if isinstance(item, dict) else item)
            )
