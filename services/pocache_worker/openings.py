"""Opening what was promised: leaves from the disk with multiproofs, in parts that fit a message.

What is due is in a table, so an opening that a crash interrupted is made again, the same bytes. Refused: leaves whose
file does not lead to the root that was challenged; then nothing is opened, and it is logged loudly.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
import structlog

from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.errors import EncodingError, MerkleError
from pocache.protocol.limits import LEAF_BYTES_MAX, MULTIPROOF_DIGESTS_MAX, PAYLOAD_BYTES_MAX
from pocache.service.unit import Unit
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_worker.leaves import LeafStore, LeavesError, StoredLeaves
from pocache_worker.state import Bell, News, WorkerState, send
from pocache_worker.tables import OPENINGS, OpeningPhase

PART_LEAVES_BYTES_MAX: Final = 500_000
"""Leaves in one part together, beyond the first: with the proof they stay below one message."""
_KEY: Final = ("job_id", "attempt", "stage", "retry")

assert PART_LEAVES_BYTES_MAX + 32 * MULTIPROOF_DIGESTS_MAX < PAYLOAD_BYTES_MAX
assert LEAF_BYTES_MAX < PAYLOAD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class DueOpening:
    """A challenge that has not been answered."""

    job_id: bytes
    attempt: int
    stage: int
    retry: int
    file_name: str
    root: bytes
    leaf_count: int
    positions: bytes


class Opener:
    """Answers one identity's challenges."""

    def __init__(self, state: WorkerState, bell: Bell, store: LeafStore) -> None:
        self._state = state
        self._bell = bell
        self._store = store
        self._log = structlog.get_logger().bind(worker=state.participant)

    async def run(self, stop: asyncio.Event) -> None:
        """Open what is due until ``stop`` is set and nothing is due any more."""
        with self._bell.listen(News.OPENINGS) as rung:
            while True:
                rung.clear()
                due = await self._state.transact(read_due)
                if due is not None:
                    await self._open(due)
                elif stop.is_set():
                    return
                else:
                    await rung.wait()

    async def _open(self, due: DueOpening) -> None:
        log = self._log.bind(job=due.job_id, attempt=due.attempt, stage=due.stage, retry=due.retry)
        parts: tuple[m.OpeningV1, ...] = ()
        phase = OpeningPhase.SENT
        try:
            positions = unpack_tokens(due.positions)
            stored = await asyncio.to_thread(self._store.read, due.file_name, positions)
            parts = compute_parts(due, stored)
        except (LeavesError, EncodingError, MerkleError) as error:
            log.error("opening_failed", code=error.code, reason=str(error))
            phase = OpeningPhase.FAILED
        await self._state.transact(
            lambda unit: send_opening(unit, due, parts, phase, worker=self._state.participant)
        )
        if parts:
            log.info("opened", parts=len(parts))


def read_due(unit: Unit) -> DueOpening | None:
    """Return a challenge that is due, None when there is none."""
    columns = [OPENINGS.c[name] for name in DueOpening.__dataclass_fields__]
    query = sa.select(*columns).where(OPENINGS.c.phase == OpeningPhase.DUE.value).limit(1)
    row = unit.connection.execute(query).mappings().one_or_none()
    return None if row is None else DueOpening(**row)


def send_opening(
    unit: Unit, due: DueOpening, parts: tuple[m.OpeningV1, ...], phase: OpeningPhase, *, worker: str
) -> None:
    """Say the parts of an opening, and that it is done; nothing when the job was settled meanwhile."""
    where = [OPENINGS.c[name] == getattr(due, name) for name in _KEY]
    done = unit.connection.execute(sa.update(OPENINGS).where(*where).values(phase=phase.value))
    if not done.rowcount:
        return
    for part in parts:
        send(
            unit,
            t.OPENING_SUBMITTED,
            part,
            job_id=due.job_id,
            attempt=due.attempt,
            worker=worker,
            job=due.job_id,
        )


def compute_parts(due: DueOpening, stored: StoredLeaves) -> tuple[m.OpeningV1, ...]:
    """Return the parts of an opening: runs of the challenged positions, each with its own multiproof.

    Raises LeavesError when the file is not of the challenged root, MerkleError for positions that no tree has.
    """
    tree = stored.tree
    if (tree.root(), len(tree)) != (due.root, due.leaf_count):
        raise LeavesError("the file's root is not the challenged one")
    runs = _split_runs(unpack_tokens(due.positions), stored)
    return tuple(
        m.OpeningV1(
            job_id=due.job_id,
            attempt=due.attempt,
            stage=due.stage,
            retry=due.retry,
            part=number,
            part_count=len(runs),
            positions=pack_tokens(run),
            leaves=tuple(stored.leaves[position] for position in run),
            proof=b"".join(tree.multiproof(run)),
        )
        for number, run in enumerate(runs)
    )


def _split_runs(positions: tuple[int, ...], stored: StoredLeaves) -> list[list[int]]:
    """Cut positions, in their order, into runs whose leaves are small enough together; no run is empty."""
    runs: list[list[int]] = []
    size = 0
    for position in positions:
        leaf_bytes = len(stored.leaves[position])
        if not runs or size + leaf_bytes > PART_LEAVES_BYTES_MAX:
            runs.append([])
            size = 0
        runs[-1].append(position)
        size += leaf_bytes
    return runs
