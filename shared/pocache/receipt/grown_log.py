"""The commitment log as an audit grows it again: entries by index, every checkpoint the root of those before it.

Owns one commitment per attempt, the log's order and its size; raises :class:`LogError` with both values, and goes on. Not
covered: what an entry promises, which is the job's own (docs/protocol.md 14.6).
"""

from __future__ import annotations

from collections.abc import Iterable

from pocache.protocol.errors import ReceiptError
from pocache.protocol.merkle import MerkleTree
from pocache.receipt.dossier import Dossier
from pocache.receipt.format import LogProof
from pocache.receipt.witnessed import Witnessed
from pocache.wire import messages as m
from pocache.wire import topics as t


class LogError(ReceiptError):
    """The commitment log is not what its checkpoints say."""

    def __init__(self, what: str, stated: str, computed: str) -> None:
        self.what, self.stated, self.computed = what, stated, computed
        super().__init__(f"{what}: {stated}, not {computed}")


class GrownLog:
    """The commitment log, grown again from the record."""

    def __init__(self) -> None:
        self._tree = MerkleTree()
        self._ahead: dict[int, tuple[m.CommitmentRecordedV1, bytes]] = {}
        self._unproved: dict[int, m.CheckpointV1] = {}
        self._attempts: set[tuple[bytes, int]] = set()
        self._largest = 0
        self.checkpoints: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        """How many entries the log has."""
        return len(self._tree)

    def take_entry(self, recorded: m.CommitmentRecordedV1, leaf: bytes) -> None:
        """Append an entry at its index; those that came before their turn wait for it."""
        key = (recorded.job_id, recorded.attempt)
        if key in self._attempts:
            raise LogError("commitments of one attempt", "a second one", "one")
        self._attempts.add(key)
        if recorded.log_index < len(self._tree) or recorded.log_index in self._ahead:
            raise LogError(
                "index of the entry in the log", str(recorded.log_index), f"{len(self._tree)}, the next"
            )
        self._ahead[recorded.log_index] = (recorded, leaf)
        while len(self._tree) in self._ahead:
            self._tree.append(self._ahead.pop(len(self._tree))[1])
        for size in [size for size in self._unproved if size <= len(self._tree)]:
            self._compare(self._unproved.pop(size))

    def take_checkpoint(self, checkpoint: m.CheckpointV1, data: bytes) -> None:
        """Hold a checkpoint against the log of its size."""
        known = self.checkpoints.setdefault(checkpoint.size, data)
        if known != data:
            raise LogError("checkpoints of one size", f"another one of {checkpoint.size}", "one")
        if checkpoint.size > len(self._tree):
            self._unproved[checkpoint.size] = checkpoint
        else:
            self._compare(checkpoint)

    def _compare(self, checkpoint: m.CheckpointV1) -> None:
        computed = self._tree.root(checkpoint.size)
        if computed != checkpoint.root:
            raise LogError(
                f"root of the log of size {checkpoint.size}", checkpoint.root.hex(), computed.hex()
            )
        self._largest = max(self._largest, checkpoint.size)

    def prove(self, dossier: Dossier) -> LogProof | None:
        """Return the proof of a job's entry, None where there is none, or no checkpoint of it."""
        recorded = dossier.find(t.COMMITMENT_RECORDED)
        if recorded is None:
            return None
        size = recorded.log_index + 1
        if size not in self.checkpoints or size > len(self._tree):
            return None
        latest = max(size, self._largest)
        return LogProof(
            checkpoint=self.checkpoints[size],
            inclusion=self._tree.inclusion_proof(recorded.log_index, size),
            latest=self.checkpoints[latest],
            consistency=self._tree.consistency_proof(size, latest),
        )

    def find_forks(self, witnessed: Iterable[Witnessed]) -> list[LogError]:
        """Return what was signed for others and is not of this log."""
        found = []
        for one in witnessed:
            size, root = one.checkpoint.size, one.checkpoint.root
            if size > len(self._tree):
                found.append(LogError(one.describe(), root.hex(), f"none: the log has {len(self._tree)}"))
            elif (computed := self._tree.root(size)) != root:
                found.append(LogError(one.describe(), root.hex(), computed.hex()))
        return found

    def find_leftovers(self) -> list[LogError]:
        """Return what the end of the record leaves unexplained: entries beyond a gap, checkpoints beyond the log."""
        found = []
        if self._ahead:
            found.append(
                LogError("the log has a gap", f"an entry {min(self._ahead)}", f"{len(self._tree)}, the next")
            )
        if self._unproved:
            size = max(self._unproved)
            found.append(
                LogError(
                    "size of the log that a checkpoint was made of", str(size), f"at most {len(self._tree)}"
                )
            )
        return found
