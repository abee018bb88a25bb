"""A witness of the commitment log: cosigns only what grew out of what it cosigned before (docs/protocol.md 4.10).

Owns the one thing that a witness must never forget: the last checkpoint that it put its name to, in a file that is
replaced whole and before the cosignature leaves. The first checkpoint is taken as it is. Refused, with both signed
notes as evidence: another root of a size that it cosigned, a log that does not contain the one it cosigned, and one
that has become shorter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pocache.protocol.checkpoint import (
    Note,
    cosign_checkpoint,
    merge_cosignatures,
    verify_checkpoint,
)
from pocache.protocol.errors import ConfigError, MerkleError, PocacheError
from pocache.protocol.ids import Digest, NetworkId, ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.protocol.limits import NOTE_BYTES_MAX
from pocache.protocol.merkle import verify_consistency
from pocache.wire.messages import CheckpointCosignedV1, ConsistencyReplyV1

_PRIVATE: Final = 0o600


class ForkError(MerkleError):
    """The log is not the one that was cosigned: two notes, both signed by it, that cannot both be true."""

    def __init__(self, reason: str, seen: bytes, shown: bytes, proof: Sequence[bytes]) -> None:
        self.seen, self.shown, self.proof = seen, shown, tuple(proof)
        super().__init__(reason)

    def to_dict(self) -> dict[str, Any]:
        """Return the evidence as JSON-safe values: whoever has the log's key can check both notes."""
        return {
            "reason": str(self),
            "seen": self.seen.decode("utf-8"),
            "shown": self.shown.decode("utf-8"),
            "proof": [one.hex() for one in self.proof],
        }


class Witness:
    """One witness with its key and its memory."""

    def __init__(self, network: NetworkId, log_key: ParticipantId, key: SigningKey, state: Path) -> None:
        """Open the memory. Raises ConfigError where it is there and is none: forgetting would be a fork unseen."""
        self._network, self._log_key, self._key, self._state = network, log_key, key, state
        self._seen: tuple[bytes, Note] | None = self._load()

    @property
    def seen_size(self) -> int:
        """The size of the last checkpoint that was cosigned, 0 before the first."""
        return 0 if self._seen is None else self._seen[1].checkpoint.size

    def cosign(self, reply: ConsistencyReplyV1, time_s: int) -> CheckpointCosignedV1:
        """Return the log's note with this witness's line, once it is remembered.

        Raises ForkError with the evidence; CodecError, SignatureError, LimitError for a note that is not the log's.
        """
        note = verify_checkpoint(reply.note, self._network, self._log_key)
        if self._seen is not None:
            self._compare(*self._seen, note, reply)
        self._remember(reply.note)
        self._seen = (reply.note, note)
        line = cosign_checkpoint(self._network, note.checkpoint, self._key, time_s)
        return CheckpointCosignedV1(size=note.checkpoint.size, note=merge_cosignatures(reply.note, [line]))

    def _compare(self, seen_data: bytes, seen: Note, shown: Note, reply: ConsistencyReplyV1) -> None:
        old, new = seen.checkpoint, shown.checkpoint
        proof = tuple(map(Digest, reply.proof))
        if new.size < old.size:
            reason = f"the log has {new.size} entries; {old.size} were cosigned"
            raise ForkError(reason, seen_data, reply.note, proof)
        try:
            verify_consistency(old.size, new.size, old.root, new.root, proof)
        except MerkleError as error:
            reason = f"the log of {new.size} entries does not contain the one of {old.size} that was cosigned: {error}"
            raise ForkError(reason, seen_data, reply.note, proof) from error

    def _load(self) -> tuple[bytes, Note] | None:
        try:
            with self._state.open("rb") as stream:
                data = stream.read(NOTE_BYTES_MAX + 1)
            return data, verify_checkpoint(data, self._network, self._log_key)
        except FileNotFoundError:
            return None
        except (OSError, PocacheError) as error:
            raise ConfigError(f"{self._state} is not the last checkpoint of this log: {error}") from error

    def _remember(self, data: bytes) -> None:
        """Replace the memory whole, on the disk before anybody sees the cosignature."""
        try:
            self._state.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._state.with_name(self._state.name + ".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            fresh.replace(self._state)
            folder = os.open(self._state.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ConfigError(f"cannot write {self._state}: {error}") from error
