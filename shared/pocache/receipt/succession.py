"""What the services number or count through, as an audit follows it: snapshots, epochs of seeds, journal checkpoints.

Owns that none is left out, said twice or taken back, and that an epoch's key is the one whose hash was announced. Refuses
nothing: each ``take`` returns what is not as it must be, and the first of a number stays the one that counts. The same
statement stored again, as after a crash, says nothing new (11.4.3). Times are not followed: a clock may be set back.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from pocache.protocol.commitment import compute_sampling_seed
from pocache.protocol.ids import Digest, JobId
from pocache.wire import messages as m


class Found(NamedTuple):
    """What diverges, what the record says, and what it had to say."""

    what: str
    stated: str
    computed: str


class Succession:
    """What was numbered so far; made anew for each record."""

    def __init__(self) -> None:
        self.snapshots: dict[int, m.SnapshotV1] = {}
        self.epochs: list[m.EpochV1] = []
        self._journal: dict[int, m.JournalCheckpointV1] = {}

    def take_snapshot(self, snapshot: m.SnapshotV1) -> list[Found]:
        """Follow the snapshots: none is replaced once somebody was drawn from it (6.6.3)."""
        if self.snapshots.get(snapshot.number) == snapshot:
            return []
        wanted = max(self.snapshots, default=0) + 1
        self.snapshots.setdefault(snapshot.number, snapshot)
        if snapshot.number == wanted:
            return []
        return [Found("the number of a snapshot", str(snapshot.number), str(wanted))]

    def take_epoch(self, epoch: m.EpochV1) -> list[Found]:
        """Follow the epochs, each of which publishes the key whose hash the one before it announced (4.3.3)."""
        if epoch in self.epochs:
            return []
        last = self.epochs[-1] if self.epochs else None
        wanted = (0 if last is None else last.number) + 1
        found = []
        if epoch.number != wanted:
            found.append(Found("the number of an epoch", str(epoch.number), str(wanted)))
        shown = b"" if epoch.previous_key is None else hashlib.sha256(epoch.previous_key).digest()
        announced = b"" if last is None else last.key_hash
        if shown != announced:
            what = f"the hash of the key of the epoch before epoch {epoch.number}"
            found.append(Found(what, shown.hex() or "none", announced.hex() or "none"))
        self.epochs.append(epoch)
        return found

    def take_journal(self, checkpoint: m.JournalCheckpointV1) -> list[Found]:
        """Follow the heads of the ledger's journal: it only grows, and no head is said again (9.9.1)."""
        if self._journal.get(checkpoint.entries) == checkpoint:
            return []
        last = max(self._journal, default=0)
        self._journal.setdefault(checkpoint.entries, checkpoint)
        if checkpoint.entries > last:
            return []
        return [Found("entries of the journal at a checkpoint", str(checkpoint.entries), f"more than {last}")]

    def compute_seeds(self, job_id: JobId) -> set[Digest]:
        """Return the seeds that a job can have by the keys published so far (4.3.2)."""
        keys = [one.previous_key for one in self.epochs if one.previous_key is not None]
        return {compute_sampling_seed(None, key, job_id) for key in keys}
