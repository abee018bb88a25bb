"""What others were shown of the commitment log, held against the record (docs/protocol.md 14.6.4).

Owns the reading of such evidence: a note that a witness kept or cosigned, or a receipt that carries one. It counts only
with the log's own signature; that witnesses cosigned it says who was shown it. Refused: notes of another log, notes
without its signature, and lines of this network's witnesses that do not hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocache.protocol.checkpoint import Checkpoint, find_cosigners, verify_checkpoint
from pocache.protocol.errors import LimitError, ReceiptError
from pocache.protocol.ids import NetworkId, ParticipantId
from pocache.protocol.limits import NOTE_BYTES_MAX, RECEIPT_TEXT_BYTES_MAX
from pocache.receipt.format import decode_receipt
from pocache.receipt.trust import TrustRoots
from pocache.runtime.network import Genesis
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import CheckpointV1
from pocache.wire.topics import Role

WITNESSED_BYTES_MAX = RECEIPT_TEXT_BYTES_MAX
"""The largest file of evidence: a receipt."""


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A checkpoint that the log signed for somebody's eyes."""

    checkpoint: Checkpoint
    cosigners: tuple[ParticipantId, ...]
    """The witnesses, pinned or named by the genesis, whose cosignatures it carries."""

    def describe(self) -> str:
        """Say whose it is."""
        size = self.checkpoint.size
        if self.cosigners:
            return f"root of the log of size {size}, cosigned by {', '.join(sorted(self.cosigners))}"
        return f"root of the log of size {size}, as it was shown to somebody else"


def read_witnessed(
    data: bytes, network: NetworkId, genesis: Genesis, trust: TrustRoots
) -> tuple[Witnessed, ...]:
    """Return the checkpoints that a note or a receipt shows.

    Raises CodecError, LimitError, SignatureError, ReceiptError for what is no evidence.
    """
    witnesses = {*map(ParticipantId, trust.witnesses), *map(ParticipantId, genesis.witnesses)}
    notes = [data] if data[: len(_NOTE_START)] == _NOTE_START else _read_receipt(data, network)
    found = []
    for note in notes:
        if len(note) > NOTE_BYTES_MAX:
            raise LimitError(f"a note of {len(note)} bytes exceeds {NOTE_BYTES_MAX}")
        opened = verify_checkpoint(note, network, genesis.signer(Role.COMMITMENTS))
        found.append(Witnessed(opened.checkpoint, tuple(find_cosigners(network, opened, sorted(witnesses)))))
    return tuple(found)


_NOTE_START = b"pocache/"
"""Of the origin line; no receipt begins so."""


def _read_receipt(data: bytes, network: NetworkId) -> list[bytes]:
    """Return the notes in a receipt: of the checkpoint of its entry, of the latest one, and the cosigned one."""
    log = decode_receipt(data).log
    if log is None:
        raise ReceiptError("the receipt is of a job without a commitment: it shows no checkpoint")
    bodies = [open_envelope(one, network, CheckpointV1).body for one in (log.checkpoint, log.latest)]
    return [note for note in (*(body.note for body in bodies), log.cosigned) if note]
