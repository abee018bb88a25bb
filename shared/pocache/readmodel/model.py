"""The read model: an open database that is filled from the bus and asked by pages and commands.

One thread writes, several read. Owns the commitment log's tree, rebuilt from its entries, for the proofs of receipts.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sqlalchemy as sa

from pocache.bus.port import StreamRecord
from pocache.protocol.ids import Digest, ModelId
from pocache.protocol.merkle import MerkleTree
from pocache.readmodel import tables as tb
from pocache.readmodel.projection import Bounds, Projection, get_cursor
from pocache.runtime.network import Genesis, Model


class ReadModel:
    """The record of one network, indexed. Without a file it lives in a temporary one and ends with this object."""

    def __init__(
        self,
        genesis: Genesis,
        models: Mapping[ModelId, Model],
        *,
        file: Path | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """Open the database. Raises ConfigError when another process writes to it."""
        self.genesis, self.models = genesis, models
        self.network = genesis.network_id
        self._projection = Projection(self.network, genesis, models, bounds or Bounds())
        self._writing = threading.Lock()
        self.tree = MerkleTree()
        with ExitStack() as stack:
            if file is None:
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pocache-readmodel-"))
                file = Path(scratch) / "readmodel.sqlite"
            self._engine, lock = tb.open_database(file, network_id=self.network)
            stack.callback(lock.close)
            stack.callback(self._engine.dispose)
            with self.reading() as connection:
                self._grow_tree(connection)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close every connection, and let the next writer in."""
        self._stack.close()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view of everything."""
        with self._engine.connect() as connection:
            yield connection

    def apply(self, records: Sequence[StreamRecord]) -> int:
        """Take messages in, all of them or none, and return how many were new."""
        with self._writing:
            with self._engine.begin() as connection:
                count = self._projection.apply(connection, records)
            with self.reading() as connection:
                self._grow_tree(connection)
        return count

    def get_cursor(self, stream: str) -> int:
        """Return how far a stream was read."""
        with self.reading() as connection:
            return get_cursor(connection, stream)

    def empty(self) -> None:
        """Forget everything: the stream has begun anew."""
        with self._writing:
            with self._engine.begin() as connection:
                tag = connection.execute(
                    sa.select(tb.META.c.value).where(tb.META.c.name == "tag")
                ).scalar_one()
                tb.empty(connection, tag)
            self.tree = MerkleTree()

    def _grow_tree(self, connection: sa.Connection) -> None:
        """Append the entries that follow on those that are there; one behind a gap waits for what is missing."""
        entries = tb.ENTRIES.c
        rows = connection.execute(
            sa.select(entries.log_index, entries.leaf_hash)
            .where(entries.log_index >= len(self.tree))
            .order_by(entries.log_index)
        )
        for row in rows:
            if row.log_index != len(self.tree):
                break
            self.tree.append_hash(Digest(row.leaf_hash))
