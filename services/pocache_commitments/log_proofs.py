"""Proofs from the commitment log: that an entry is in it, and that it only grew (docs/protocol.md 4.6).

Reads the nodes that the log keeps of its complete subtrees; nothing is computed over leaves. Refuses nothing: sizes and
indices are the store's own.
"""

from __future__ import annotations

import sqlalchemy as sa

from pocache.protocol.ids import Digest
from pocache.protocol.merkle import hash_node
from pocache_commitments.log import read_node


def compute_inclusion_proof(connection: sa.Connection, index: int, size: int) -> tuple[Digest, ...]:
    """Return the audit path of an entry in the log of a size, from the leaf upwards (RFC 6962 2.1.1)."""
    assert 0 <= index < size, (index, size)
    proof: list[Digest] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_hash_range(connection, middle, end))
            end = middle
        else:
            proof.append(_hash_range(connection, start, middle))
            start = middle
    return tuple(reversed(proof))


def compute_consistency_proof(connection: sa.Connection, old_size: int, new_size: int) -> tuple[Digest, ...]:
    """Return the proof that the log of a size is a prefix of a later one's (RFC 6962 2.1.2)."""
    assert 0 < old_size <= new_size, (old_size, new_size)
    proof: list[Digest] = []
    start, end = 0, new_size
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            proof.append(_hash_range(connection, middle, end))
            end = middle
        else:
            proof.append(_hash_range(connection, start, middle))
            start = middle
    if start:  # the old root itself is known to whoever checks, unless it starts further right
        proof.append(_hash_range(connection, start, end))
    return tuple(reversed(proof))


def _hash_range(connection: sa.Connection, start: int, end: int) -> Digest:
    """Return the root of entries start … end−1, from the complete subtrees that they are made of."""
    peaks: list[Digest] = []
    while start < end:
        height = (end - start).bit_length() - 1
        peaks.append(read_node(connection, height, start >> height))
        start += 1 << height
    node = peaks.pop()
    while peaks:
        node = hash_node(peaks.pop(), node)
    return node


def _split(size: int) -> int:
    """Return the largest power of two below a size (≥ 2)."""
    return 1 << ((size - 1).bit_length() - 1)
