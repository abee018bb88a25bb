"""Vectors of JSON and msgpack: what each reader accepts, and what it makes of it (docs/protocol.md 2.4, 14.1)."""

from __future__ import annotations

import random
from typing import Any, Final

from kit.vectors.words import Vector, flip, judge_value
from pocache.receipt.strict_json import read_json
from pocache.wire.codec import decode_value, encode_value

JSON_TEXTS: Final = r"""
{} | [] | null | true | false | 0 | -0 | 1 | 01 | -1 | +1 | 1.0 | 1e3 | .5 | 1. | NaN | Infinity
-Infinity | 9007199254740993 | 18446744073709551615 | 18446744073709551616 | -9223372036854775808
-9223372036854775809 | {"a":1,"a":1} | {"a":1,"\u0061":2} | {"a":{"b":1},"b":{"b":1}} | {a:1}
{'a':1} | {"a":1,} | [1,] | [,1] | [1 2] | "\ud83d\ude00" | "\n\/\"\\\b\f\r\t" | "\x41" | "\u12"
"\u00zz" | "abc | 1 1 | {"a"} | {"a":} | {1:2} | [[[[[[[[]]]]]]]] | [[[[[[[[[]]]]]]]]]
{"a":[[[[[[[1]]]]]]]} | {"a":[[[[[[[[1]]]]]]]]} | nul | nulll | True | [true,false,null] | {"":""}
{"__proto__":1} | {"constructor":{"prototype":1}} | // | /**/1
"""
"""Texts between bars."""

ODD_TEXTS: Final = (
    '{"a" :\t1\r\n}',
    '"\x01"',
    '"\n"',
    '"\x7f"',
    '"é"',
    '"\u2028"',
    " 1 ",
    "\xa01",
    "\ufeff1",
    "",
    " ",
    "9" * 5_000,
)
"""Texts with spaces, control characters, others than ASCII, and many digits."""


def list_json() -> list[Vector]:
    """Texts, and what they say where they say one thing only."""
    data = [text.encode() for text in (*JSON_TEXTS.strip().replace("\n", " | ").split(" | "), *ODD_TEXTS)] + [
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b"\x80",
        b'{"a":"\xf0\x9f\x98\x80"}',
    ]
    return [{"data": one.hex(), **judge_value(lambda: read_json(one, bytes_max=10_000))} for one in data]


def list_msgpack() -> list[Vector]:
    """Encodings in every form, cut, extended and with bits turned over."""
    source = random.Random("msgpack")
    values: list[Any] = [
        {"a": 1, "b": (b"\x00\x01", "text", None, True, False)},
        {
            "n": (
                0,
                127,
                128,
                255,
                256,
                65_535,
                65_536,
                2**32 - 1,
                2**32,
                2**64 - 1,
                -1,
                -32,
                -33,
                -128,
                -129,
                -(2**15),
                -(2**31),
                -(2**63),
            )
        },
        {"é\U0001f600": {"x": {"y": ({"z": ()},)}}},
        tuple(range(20)),
        {"k" * 40: b"v" * 300, "l": "w" * 300},
    ]
    encoded = [encode_value(one) for one in values]
    wide = [
        "c400",
        "c50001ff",
        "c60000000100",
        "d90161",
        "da000161",
        "db0000000161",
        "dc000101",
        "dd0000000101",
        "de0001a16101",
        "df00000001a16101",
        "cc05",
        "cd0005",
        "ce00000005",
        "cf0000000000000005",
        "d0ff",
        "d1ffff",
        "d2ffffffff",
        "d3ffffffffffffffff",
    ]
    bad = [
        "",
        "c1",
        "ca00000000",
        "cb0000000000000000",
        "d40000",
        "c70000",
        "c70001",
        "c8000001",
        "d5000000",
        "82a16101a16102",
        "8101c0",
        "81c40161c0",
        "81c0c0",
        "a1ff",
        "a2c080",
        "a3eda080",
        "91",
        "9101ff",
        "dd00010001",
        "df00010001",
        "dcffff",
        "9191919191919191c0",
        "919191919191919191c0",
        "81a16181a16181a16181a16181a16181a16181a16181a16181a161c0",
        "c403ff",
        "d903",
    ]
    cases = [*encoded, *map(bytes.fromhex, wide + bad)]
    for data in encoded:
        cases += [flip(data, source.randrange(8 * len(data))) for _ in range(60)]
        cases += [data[: source.randrange(len(data))] for _ in range(6)] + [data + b"\xc0"]
    cases += [source.randbytes(source.randrange(1, 12)) for _ in range(120)]
    return [{"data": one.hex(), **judge_value(lambda: decode_value(one))} for one in cases]
