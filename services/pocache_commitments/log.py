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
from pocache.storage.prepared import Prepared
from pocache_commitments.tables import LOG_NODES

LOG_LEAF_DOMAIN: Final = b"pocache/v1/log-leaf"

_GET_LAST: Final = Prepared(
    sa.select(sa.func.max(LOG_NODES.c.place).label("place")).where(LOG_NODES.c.level == 0)
)
_GET_NODE: Final = Prepared(
    sa.select(LOG_NODES.c.digest).where(
        LOG_NODES.c.level == sa.bindparam("level"), LOG_NODES.c.place == sa.bindparam("place")
    )
)
_ADD_NODE: Final = Prepared(
    sa.insert(LOG_NODES).values({column: sa.bindparam(column.name) for column in LOG_NODES.columns})
)


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
    nodes = [{"level": height, "place": place, "digest": node}]
    while place & 1:
        node = hash_node(read_node(connection, height, place - 1), node)
        height, place = height + 1, place >> 1
        nodes.append({"level": height, "place": place, "digest": node})
    _ADD_NODE.run_many(connection, nodes)
    return index


def get_size(connection: sa.Connection) -> int:
    """Return the number of entries."""
    last: int | None = _GET_LAST.scalar(connection)
    return 0 if last is None else last + 1


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
            peak = read_node(connection, height, start >> height)
            root = peak if root is None else hash_node(peak, root)
    assert root is not None
    return root


def read_node(connection: sa.Connection, level: int, place: int) -> Digest:
    """Return the root of a complete subtree."""
    digest = _GET_NODE.scalar(connection, level=level, place=place)
    assert digest is not None, (level, place)
    return Digest(digest)
