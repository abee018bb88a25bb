"""Which envelopes have had their effect, for the messages of one batch: asked for and written down together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa

from pocache.protocol.ids import EnvelopeId
from pocache.storage.mirror import Mirror
from pocache.storage.prepared import Prepared, PreparedIn
from pocache.storage.store import APPLIED

Position = tuple[str, int]
"""The stream and the sequence that carried an envelope."""

_GET: Final = PreparedIn(lambda keys: sa.select(APPLIED).where(APPLIED.c.envelope_id.in_(keys)))
_NAMES: Final = tuple(column.name for column in APPLIED.columns)
_ADD: Final = Prepared(sa.insert(APPLIED).values({name: sa.bindparam(name) for name in _NAMES}), *_NAMES)


class Applied:
    """The table ``applied`` within one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._positions: Mirror[EnvelopeId, Position] = Mirror(self._load)

    def look_up(self, ids: Iterable[EnvelopeId]) -> None:
        """Ask for all of these at once."""
        self._positions.look_up(ids)

    def get(self, envelope_id: EnvelopeId) -> Position | None:
        """Return where an envelope came from that had its effect, in this transaction too."""
        return self._positions.get(envelope_id)

    def add(self, envelope_id: EnvelopeId, position: Position) -> None:
        """Note that an envelope had its effect; called when nothing of it can fail any more."""
        self._positions.put(envelope_id, position)

    def flush(self) -> None:
        """Write down what was noted."""
        added = [(key, *position) for key, _, position in self._positions.take_changes() if position]
        _ADD.run_rows(self._connection, added)

    def _load(self, ids: Iterable[EnvelopeId]) -> Iterable[tuple[EnvelopeId, Position]]:
        rows = _GET.rows(self._connection, tuple(ids))
        return [(key, (stream, sequence)) for key, stream, sequence in rows]
