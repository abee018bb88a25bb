"""The commitment log: an RFC 6962 tree whose nodes lie in the database and grow with its transactions.

Owns what a log entry is and the nodes of complete subtrees, which never change: an append costs one node
on average, a root one per level. A rolled-back append leaves nothing. Refuses nothing: what may be
appended is decided before.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from pocache.protocol.encoding import lp
from pocache.protocol.ids import Digest, EnvelopeId, JobId
from pocache.protocol.merkle import EMPTY_ROOT, hash_leaf, hash_node
from pocache_commitments.tables import LOG_NODES

LOG_LEAF_DOMAIN: Final = b"pocache/v1/log-leaf"


def compute_log_leaf(
    *, job_id: JobId, attempt: int, root: Digest, leaf_count: int, binding: Digest, result_id: EnvelopeId
) -> bytes:
    """Return the bytes of a log entry (docs/protocol.md 4.8).

    lp(domain) ‖ lp(job) ‖ lp(u32be attempt) ‖ lp(root) ‖ lp(u64be N) ‖ lp(binding) ‖ lp(result's envelope
    id)
    """
    return lp(
        LOG_LEAF_DOMAIN,
        job_id,
        attempt.to_bytes(4, "big"),
        root,
        leaf_count.to_bytes(8, "big"),
        binding,
        result_id,
    )


def append_entry(connection: sa.Connection, entry: bytes) -> int:
    """Append an entry and return its index."""
    index = get_size(connection)
    node, height, place = hash_leaf(entry), 0, index
    _write(connection, height, place, node)
    while place & 1:
        node = hash_node(_read(connection, height, place - 1), node)
        height, place = height + 1, place >> 1
        _write(connection, height, place, node)
    return index


def get_size(connection: sa.Connection) -> int:
    """Return the number of entries."""
    last = connection.execute(
        sa.select(sa.func.max(LOG_NODES.c.place)).where(LOG_NODES.c.level == 0)
    ).scalar_one()
    return 0 if last is None else int(last) + 1


def get_root(connection: sa.Connection, size: int) -> Digest:
    """Return the root over the first ``size`` entries."""
    if size == 0:
        return EMPTY_ROOT
    start = size
    root: Digest | None = None
    # Complete subtrees from right to left: one for each bit of the size, the lowest first.
    for height in range(size.bit_length()):
        if size >> height & 1:
            start -= 1 << height
            peak = _read(connection, height, start >> height)
            root = peak if root is None else hash_node(peak, root)
    assert root is not None
    return root


def _read(connection: sa.Connection, level: int, place: int) -> Digest:
    where = (LOG_NODES.c.level == level, LOG_NODES.c.place == place)
    return Digest(connection.execute(sa.select(LOG_NODES.c.digest).where(*where)).scalar_one())


def _write(connection: sa.Connection, level: int, place: int, digest: Digest) -> None:
    connection.execute(sa.insert(LOG_NODES).values(level=level, place=place, digest=digest))
