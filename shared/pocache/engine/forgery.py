"""Null forgeries: leaves that cost nothing to make. Torch-free.

Each is measured beside every threshold, since a threshold that lets one of them through protects nothing. They keep
to the schema: right rows, right sizes, finite floats. Refuses nothing; a forgery is always possible.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import StrEnum

from pocache.protocol.encoding import FloatFormat, RowKey, RowKind, get_row_format

LeafRows = dict[RowKey, bytes]


class NullForgery(StrEnum):
    """What costs nothing to commit."""

    ZEROS = "zeros"
    CONSTANT = "constant"
    NEGATED = "negated"
    OTHER_JOB = "other_job"
    PERMUTED = "permuted"
    """The job's own rows at other positions."""


def forge_rows(
    forgery: NullForgery,
    leaves: Sequence[LeafRows],
    other: Sequence[LeafRows],
    float_format: FloatFormat,
) -> list[LeafRows]:
    """Return forged leaves with the honest ones' row keys; of another job, as many leaves as both have."""
    if forgery is NullForgery.OTHER_JOB:
        count = min(len(leaves), len(other))
        return [
            {key: other[position].get(key, other[-1][key]) for key in leaves[position]}
            for position in range(count)
        ]
    if forgery is NullForgery.PERMUTED:
        return _rotate(leaves)
    return [
        {key: _forge_row(forgery, key, row, float_format) for key, row in leaf.items()} for leaf in leaves
    ]


def _rotate(leaves: Sequence[LeafRows]) -> list[LeafRows]:
    """Return each leaf with the rows of the one before it; scores go round among the leaves that have them."""
    scored = [position for position, leaf in enumerate(leaves) if (RowKind.SCORES, 0) in leaf]
    sources = dict(zip(scored, [scored[-1], *scored[:-1]], strict=True)) if scored else {}
    return [
        {key: leaves[sources[position] if key[0] is RowKind.SCORES else position - 1][key] for key in leaf}
        for position, leaf in enumerate(leaves)
    ]


def _forge_row(forgery: NullForgery, key: RowKey, row: bytes, float_format: FloatFormat) -> bytes:
    row_format = get_row_format(key[0], float_format)
    letter = "e" if row_format is FloatFormat.F16 else "f"
    layout = f"<{len(row) // row_format.size}{letter}"
    values = struct.unpack(layout, row)
    if forgery is NullForgery.NEGATED:
        return struct.pack(layout, *(-value for value in values))
    return struct.pack(layout, *(float(forgery is NullForgery.CONSTANT) for _ in values))
