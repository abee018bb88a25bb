"""The committed record of a real network (``tests/vectors/receipts``), as the bus would give it, and a read model of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pocache.bus.port import StreamRecord
from pocache.protocol.ids import ModelId
from pocache.protocol.limits import ENTRY_TEXT_BYTES_MAX
from pocache.readmodel import queries
from pocache.readmodel.model import ReadModel
from pocache.readmodel.projection import Bounds
from pocache.receipt.audit import open_models
from pocache.receipt.export import open_export, read_entries, read_header
from pocache.receipt.verify import read_genesis
from pocache.runtime.network import Genesis, Model
from pocache.wire.topics import Stream

VECTORS = Path(__file__).parents[1] / "vectors"
STORED_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Recorded:
    """A network's genesis, its models, and every message of its streams."""

    genesis: Genesis
    models: dict[ModelId, Model]
    records: tuple[StreamRecord, ...]

    @contextmanager
    def open_model(
        self, file: Path | None = None, *, bounds: Bounds | None = None, is_filled: bool = True
    ) -> Iterator[ReadModel]:
        """Yield a read model of it."""
        model = ReadModel(self.genesis, self.models, file=file, bounds=bounds)
        try:
            if is_filled:
                model.apply(self.records)
            yield model
        finally:
            model.close()


@cache
def load_recorded(folder: str = "receipts") -> Recorded:
    """Read a committed record: of the unified pool, or that of ``receipts-committee``."""
    with open_export(VECTORS / folder / "record.jsonl.gz", "rb") as stream:
        header = read_header(stream.readline(ENTRY_TEXT_BYTES_MAX + 1))
        entries = list(read_entries(stream))
    genesis = read_genesis(header.genesis)
    models = open_models(header.models, genesis.network_id, genesis)
    records = tuple(
        StreamRecord(one.subject, one.data, {}, one.stream, one.sequence, STORED_MS + 100 * index)
        for index, one in enumerate(entries)
    )
    return Recorded(genesis, models, records)


def get_jobs(model: ReadModel) -> dict[str, bytes]:
    """Return a job of each ending, or phase where it has none."""
    with model.reading() as connection:
        return {
            row["ending"] or row["phase"]: row["job_id"]
            for row in queries.list_jobs(connection, limit=1_000).rows
        }


class RecordedBus:
    """What the read model asks of a bus, answered from the record up to a message."""

    def __init__(self, records: Sequence[StreamRecord]) -> None:
        self.records = list(records)
        self.reads: list[tuple[str, int]] = []

    async def get_last(self, stream: str, _subject: str) -> StreamRecord | None:
        return next((one for one in reversed(self.records) if one.stream == stream), None)

    async def read(
        self, stream: str, *, subject: str = ">", start_sequence: int = 1
    ) -> AsyncIterator[StreamRecord]:
        assert subject == ">"
        assert stream in set(Stream)
        self.reads.append((stream, start_sequence))
        for one in list(self.records):
            if one.stream == stream and one.sequence >= start_sequence:
                yield one
