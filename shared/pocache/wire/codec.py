"""Bytes to wire models and back: msgpack, bounded before and while it is read.

A body is one map of the model's fields. Refused: anything over its size, depth or item bound, floats, extension
types, keys that are not text, a key given twice, invalid UTF-8, bytes after the end, and whatever the model
itself refuses. The size is checked before a byte is decoded; nothing that was decoded is ever encoded again to
be checked, so several encodings of one value may exist and only the exact bytes are signed.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgpack  # type: ignore[import-untyped]
from pydantic import ValidationError

from pocache.protocol.errors import CodecError, LimitError
from pocache.protocol.limits import CODEC_DEPTH_MAX, CODEC_ITEMS_MAX, PAYLOAD_BYTES_MAX
from pocache.wire.model import WireModel

M = TypeVar("M", bound=WireModel)

_ERRORS_SHOWN_MAX: Final = 3
_UINT64_MAX: Final = 2**64 - 1
_INT64_MIN: Final = -(2**63)
_CONTAINERS: Final = frozenset((dict, tuple, list))
_SCALARS: Final = frozenset((str, bytes, bool, type(None)))


def encode(model: WireModel) -> bytes:
    """Return the model's fields as one msgpack map, in the order in which the model declares them.

    Raises LimitError when the result, or something in it, is beyond what ``decode`` would read.
    """
    return encode_value(model.model_dump(mode="python"))


def decode(model_type: type[M], data: bytes) -> M:
    """Return the model that exactly these bytes say; CodecError or LimitError otherwise."""
    value = decode_value(data)
    if not isinstance(value, dict):
        raise CodecError(f"{model_type.kind or model_type.__name__}: expected a map of fields")
    try:
        return model_type.model_validate(value)
    except ValidationError as error:
        raise CodecError(_describe(model_type, error)) from None


def encode_value(value: object, *, bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
    """Return msgpack of plain maps, tuples, ints, text, bytes, bools and None (sizes in bytes)."""
    _check_shape(value)
    data: bytes = msgpack.packb(value, use_bin_type=True)
    if len(data) > bytes_max:
        raise LimitError(f"message of {len(data)} bytes exceeds {bytes_max}")
    return data


def decode_value(data: bytes, *, bytes_max: int = PAYLOAD_BYTES_MAX) -> Any:
    """Return the plain value in ``data``; arrays become tuples. CodecError or LimitError otherwise."""
    if len(data) > bytes_max:
        raise LimitError(f"message of {len(data)} bytes exceeds {bytes_max}")
    pairs_hook = _PairsHook()
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            object_pairs_hook=pairs_hook,
            ext_hook=_refuse_extension,
            max_str_len=bytes_max,
            max_bin_len=bytes_max,
            max_array_len=CODEC_ITEMS_MAX,
            max_map_len=CODEC_ITEMS_MAX,
            max_ext_len=0,
        )
    except CodecError:
        raise
    except LimitError:
        raise
    except msgpack.exceptions.StackError:
        raise LimitError(f"nested deeper than {CODEC_DEPTH_MAX}") from None
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        msgpack.exceptions.UnpackException,
    ) as error:
        # msgpack names every malformation by a ValueError of its own; its text quotes no input.
        raise CodecError(f"malformed msgpack: {type(error).__name__}") from None
    _check_shape(value)
    return value


class _PairsHook:
    """Builds each map, refusing repeated or non-text keys, and counts maps: one costs far more than its byte."""

    def __init__(self) -> None:
        self._item_count = 0

    def __call__(self, pairs: Any) -> dict[str, Any]:
        items = list(pairs)
        self._item_count += 1 + len(items)
        if self._item_count > CODEC_ITEMS_MAX:
            raise LimitError(f"more than {CODEC_ITEMS_MAX} map entries")
        result: dict[str, Any] = {}
        for key, value in items:
            if not isinstance(key, str):
                raise CodecError("map key is not text")
            if key in result:
                raise CodecError("map key given twice")
            result[key] = value
        return result


def _refuse_extension(code: int, _data: bytes) -> object:
    raise CodecError(f"extension type {code} is not allowed")


def _check_shape(value: object) -> None:
    """Refuse depth, counts and types outside the wire's subset. Iterative: depth is the sender's choice."""
    pending: list[tuple[Any, int]] = [((value,), 0)]
    while pending:
        container, depth = pending.pop()
        if depth > CODEC_DEPTH_MAX:
            raise LimitError(f"nested deeper than {CODEC_DEPTH_MAX}")
        if len(container) > CODEC_ITEMS_MAX:
            raise LimitError(f"{len(container)} items exceed {CODEC_ITEMS_MAX}; pack them as bytes")
        for item in container.values() if isinstance(container, dict) else container:
            kind = type(item)
            if kind in _SCALARS:  # most are: looked up by the exact type, which costs least
                continue
            if kind is int:
                if not _INT64_MIN <= item <= _UINT64_MAX:
                    raise LimitError("integer outside 64 bits")
            elif kind in _CONTAINERS or isinstance(item, (dict, tuple, list)):
                pending.append((item, depth + 1))
            elif isinstance(item, int):
                if not (isinstance(item, bool) or _INT64_MIN <= item <= _UINT64_MAX):
                    raise LimitError("integer outside 64 bits")
            elif not isinstance(item, (str, bytes)):
                raise CodecError(f"{kind.__name__} is not allowed on the wire")


def _describe(model_type: type[WireModel], error: ValidationError) -> str:
    """Say which fields are wrong and how, without quoting the sender's data."""
    details = error.errors(include_input=False, include_url=False, include_context=False)
    shown = "; ".join(
        f"{'.'.join(str(part) for part in detail['loc'])[:80] or 'body'}: {detail['msg'][:120]}"
        for detail in details[:_ERRORS_SHOWN_MAX]
    )
    more = len(details) - _ERRORS_SHOWN_MAX
    return f"{model_type.kind or model_type.__name__}: {shown}" + (f"; and {more} more" if more > 0 else "")
