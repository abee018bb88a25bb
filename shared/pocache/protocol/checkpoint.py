"""Checkpoints of the commitment log as signed notes, in the forms of C2SP (docs/protocol.md 4.10).

Owns the text of a checkpoint (c2sp.org/tlog-checkpoint), the log's signature line (c2sp.org/signed-note, type 0x01) and
a witness's (c2sp.org/tlog-cosignature, ``cosignature/v1``, type 0x04): building, reading, signing, verifying. Refused:
notes beyond the limits, other bytes than UTF-8 without control characters, numbers and base64 in any but their one
spelling, extension lines, and signatures that a known key did not make. Lines of unknown keys are passed over, as the
specification asks: they prove nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pocache.protocol.errors import CodecError, LimitError, SignatureError
from pocache.protocol.ids import Digest, NetworkId, ParticipantId
from pocache.protocol.keys import SIGNATURE_BYTES, SigningKey, decode_participant, verify_signature
from pocache.protocol.limits import NOTE_BYTES_MAX, NOTE_SIGNATURES_MAX, TIME_MS_MAX
from pocache.protocol.merkle import DIGEST_BYTES

TYPE_ED25519: Final = 0x01
TYPE_COSIGNATURE: Final = 0x04
KEY_HASH_BYTES: Final = 4
COSIGNATURE_HEADER: Final = b"cosignature/v1\n"
TIME_S_MAX: Final = 2**63 - 1

_TIME_BYTES: Final = 8
_DASH: Final = "\u2014 "
_TEXT_LINES: Final = 3
_SIZE_DIGITS_MAX: Final = 16
_SIZE_MAX: Final = TIME_MS_MAX


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says: which log, how many entries, their RFC 6962 root."""

    origin: str
    size: int
    root: Digest

    @property
    def text(self) -> bytes:
        """The note's text, which is what is signed: three lines, each with its line feed."""
        return f"{self.origin}\n{self.size}\n{_to_base64(self.root)}\n".encode()


@dataclass(frozen=True, slots=True)
class SignatureLine:
    """One line of signature: who it says that it is by, and the bytes behind the key's hash."""

    name: str
    key_hash: bytes
    signature: bytes

    @property
    def text(self) -> bytes:
        """The line with its line feed: — name base64(key hash ‖ signature)."""
        return f"{_DASH}{self.name} {_to_base64(self.key_hash + self.signature)}\n".encode()


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint with its signature lines, none of them verified yet."""

    checkpoint: Checkpoint
    signatures: tuple[SignatureLine, ...]

    def to_bytes(self) -> bytes:
        """Return the note as it travels: text, blank line, signature lines."""
        return self.checkpoint.text + b"\n" + b"".join(line.text for line in self.signatures)


def compute_origin(network: NetworkId) -> str:
    """Return the origin line of a network's log, which is the name of its key too."""
    return f"pocache/{network.hex()}/commitments"


def compute_witness_name(network: NetworkId, witness: ParticipantId) -> str:
    """Return the name of a witness's key."""
    return f"pocache/{network.hex()}/witness/{witness}"


def compute_key_hash(name: str, signature_type: int, signer: ParticipantId) -> bytes:
    """Return SHA-256(name ‖ 0x0A ‖ type ‖ public key)[:4]: which key it is, and how it signs."""
    key = decode_participant(signer)
    return hashlib.sha256(name.encode() + b"\n" + bytes([signature_type]) + key).digest()[:KEY_HASH_BYTES]


def sign_checkpoint(network: NetworkId, size: int, root: Digest, key: SigningKey) -> bytes:
    """Return the log's own signed note of a size and a root."""
    checkpoint = Checkpoint(compute_origin(network), size, root)
    key_hash = compute_key_hash(checkpoint.origin, TYPE_ED25519, key.participant_id)
    line = SignatureLine(checkpoint.origin, key_hash, key.sign(checkpoint.text))
    return Note(checkpoint, (line,)).to_bytes()


def cosign_checkpoint(
    network: NetworkId, checkpoint: Checkpoint, key: SigningKey, time_s: int
) -> SignatureLine:
    """Return a witness's line: as of this POSIX time, the largest consistent log that it has seen."""
    name = compute_witness_name(network, key.participant_id)
    key_hash = compute_key_hash(name, TYPE_COSIGNATURE, key.participant_id)
    signature = key.sign(_compute_cosigned(checkpoint, time_s))
    return SignatureLine(name, key_hash, time_s.to_bytes(_TIME_BYTES, "big") + signature)


def parse_note(data: bytes) -> Note:
    """Return the checkpoint in these bytes, no signature verified. Raises LimitError, CodecError."""
    if len(data) > NOTE_BYTES_MAX:
        raise LimitError(f"a note of {len(data)} bytes exceeds {NOTE_BYTES_MAX}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise CodecError("a note is UTF-8") from None
    if any(character < " " and character != "\n" for character in text) or not text.endswith("\n"):
        raise CodecError("a note has no control characters, and ends with a line feed")
    lines = text[:-1].split("\n")
    if len(lines) < _TEXT_LINES + 2 or lines[_TEXT_LINES] or not all(lines[:_TEXT_LINES]):
        raise CodecError("a checkpoint is three lines, a blank one, and at least one signature")
    signed = lines[_TEXT_LINES + 1 :]
    if len(signed) > NOTE_SIGNATURES_MAX:
        raise LimitError(f"a note of {len(signed)} signatures exceeds {NOTE_SIGNATURES_MAX}")
    origin, size, root = lines[:_TEXT_LINES]
    checkpoint = Checkpoint(origin, _read_size(size), Digest(_from_base64(root)))
    if len(checkpoint.root) != DIGEST_BYTES:
        raise CodecError(f"the root of a checkpoint has {DIGEST_BYTES} bytes")
    return Note(checkpoint, tuple(map(_read_signature, signed)))


def verify_note(data: bytes, name: str, signer: ParticipantId) -> Note:
    """Return a note that this key signed under this name. Raises LimitError, CodecError, SignatureError."""
    note = parse_note(data)
    key_hash = compute_key_hash(name, TYPE_ED25519, signer)
    lines = [line for line in note.signatures if (line.name, line.key_hash) == (name, key_hash)]
    if not lines:
        raise SignatureError(f"the note is not signed by {name}")
    for line in lines:
        verify_signature(signer, note.checkpoint.text, line.signature)
    return note


def verify_checkpoint(data: bytes, network: NetworkId, log_key: ParticipantId) -> Note:
    """Return a checkpoint of this network's log, signed by it. Raises LimitError, CodecError, SignatureError."""
    note = verify_note(data, compute_origin(network), log_key)
    if note.checkpoint.origin != compute_origin(network):
        raise CodecError(f"the checkpoint is of another log, {note.checkpoint.origin[:128]}")
    return note


def verify_cosignature(
    network: NetworkId, checkpoint: Checkpoint, line: SignatureLine, witness: ParticipantId
) -> int:
    """Return the POSIX time of a witness's cosignature over a checkpoint. Raises SignatureError."""
    name = compute_witness_name(network, witness)
    if (line.name, line.key_hash) != (name, compute_key_hash(name, TYPE_COSIGNATURE, witness)):
        raise SignatureError(f"the line is not of the witness {witness}")
    if len(line.signature) != _TIME_BYTES + SIGNATURE_BYTES:
        raise SignatureError(
            f"a cosignature has {_TIME_BYTES + SIGNATURE_BYTES} bytes, not {len(line.signature)}"
        )
    time_s = int.from_bytes(line.signature[:_TIME_BYTES], "big")
    if time_s > TIME_S_MAX:
        raise SignatureError("the time of a cosignature is below 2^63")
    verify_signature(witness, _compute_cosigned(checkpoint, time_s), line.signature[_TIME_BYTES:])
    return time_s


def find_cosigners(
    network: NetworkId, note: Note, witnesses: Iterable[ParticipantId]
) -> dict[ParticipantId, SignatureLine]:
    """Return the lines of these witnesses in a note, each verified. Raises SignatureError for one that does not hold."""
    found: dict[ParticipantId, SignatureLine] = {}
    for witness in witnesses:
        name = compute_witness_name(network, witness)
        key_hash = compute_key_hash(name, TYPE_COSIGNATURE, witness)
        for line in note.signatures:
            if (line.name, line.key_hash) == (name, key_hash):
                verify_cosignature(network, note.checkpoint, line, witness)
                found[witness] = line
    return found


def merge_cosignatures(data: bytes, lines: Sequence[SignatureLine]) -> bytes:
    """Return the log's note with witnesses' lines behind its own, ascending by name: the one spelling."""
    note = parse_note(data)
    return Note(note.checkpoint, (note.signatures[0], *sorted(lines, key=lambda line: line.name))).to_bytes()


def _compute_cosigned(checkpoint: Checkpoint, time_s: int) -> bytes:
    return COSIGNATURE_HEADER + f"time {time_s}\n".encode("ascii") + checkpoint.text


def _read_size(text: str) -> int:
    is_plain = text.isascii() and text.isdigit() and len(text) <= _SIZE_DIGITS_MAX
    if not is_plain or str(int(text)) != text or int(text) > _SIZE_MAX:
        raise CodecError("the size of a log is a decimal number without leading zeroes")
    return int(text)


def _read_signature(text: str) -> SignatureLine:
    if not text.startswith(_DASH):
        raise CodecError("a signature line begins with an em dash and a space")
    name, _, encoded = text[len(_DASH) :].partition(" ")
    if not name or "+" in name or any(character.isspace() for character in name):
        raise CodecError("a key's name is not empty, and has neither spaces nor a plus")
    data = _from_base64(encoded)
    if len(data) <= KEY_HASH_BYTES:
        raise CodecError("a signature is more than the hash of its key")
    return SignatureLine(name, data[:KEY_HASH_BYTES], data[KEY_HASH_BYTES:])


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CodecError("base64 is expected in a note") from None
    if _to_base64(data) != text:
        raise CodecError("base64 with loose bits in a note")
    return data
