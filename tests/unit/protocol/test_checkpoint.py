"""Checkpoints as signed notes: the published example, every field forged, every bound."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import Any

import pytest

from pocache.protocol.checkpoint import (
    TYPE_COSIGNATURE,
    TYPE_ED25519,
    Checkpoint,
    Note,
    SignatureLine,
    compute_key_hash,
    compute_origin,
    compute_witness_name,
    cosign_checkpoint,
    find_cosigners,
    merge_cosignatures,
    parse_note,
    sign_checkpoint,
    verify_checkpoint,
    verify_cosignature,
    verify_note,
)
from pocache.protocol.errors import CodecError, LimitError, SignatureError
from pocache.protocol.ids import Digest, NetworkId
from pocache.protocol.keys import SigningKey, encode_participant, verify_signature
from pocache.protocol.limits import NOTE_BYTES_MAX, NOTE_SIGNATURES_MAX

NETWORK = NetworkId(bytes(range(32)))
ROOT = Digest(hashlib.sha256(b"root").digest())
LOG = SigningKey(hashlib.sha256(b"log").digest())
WITNESS = SigningKey(hashlib.sha256(b"witness").digest())
OTHER = SigningKey(hashlib.sha256(b"other").digest())
SIGNED = sign_checkpoint(NETWORK, 7, ROOT, LOG)

PUBLISHED = """\
example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
""".encode()
"""The example of c2sp.org/tlog-cosignature; the keys of it are not published with it."""


def test_the_published_example_is_read_and_written_back() -> None:
    note = parse_note(PUBLISHED)
    assert note.checkpoint.origin == "example.com/behind-the-sofa"
    assert note.checkpoint.size == 20852163
    assert note.to_bytes() == PUBLISHED
    log, witness = note.signatures
    assert (log.key_hash.hex(), len(log.signature)) == ("033de0ae", 64)
    # The time of the specification's own signed message.
    assert int.from_bytes(witness.signature[:8], "big") == 1679315147
    assert len(witness.signature) == 72


def test_a_published_key_and_note_verify() -> None:
    """The example of golang.org/x/mod/sumdb/note: verifier key, text and signature by another implementation."""
    name, key_hash, encoded = ["PeterNeumann", "c74f20a3", "ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"]
    key = base64.b64decode(encoded)
    signer = encode_participant(key[1:])
    assert key[0] == TYPE_ED25519
    assert compute_key_hash(name, TYPE_ED25519, signer).hex() == key_hash
    text = (
        b"If you think cryptography is the answer to your problem,\n"
        b"then you don't know what your problem is.\n"
    )
    line = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert line[:4].hex() == key_hash
    verify_signature(signer, text, line[4:])


def test_a_checkpoint_is_signed_over_exactly_its_text() -> None:
    note = verify_checkpoint(SIGNED, NETWORK, LOG.participant_id)
    assert note.checkpoint == Checkpoint(compute_origin(NETWORK), 7, ROOT)
    expected = f"pocache/{NETWORK.hex()}/commitments\n7\n{base64.b64encode(ROOT).decode()}\n".encode()
    assert note.checkpoint.text == expected
    verify_signature(LOG.participant_id, expected, note.signatures[0].signature)


@pytest.mark.parametrize(
    "change",
    [
        {"origin": compute_origin(NetworkId(bytes(32)))},
        {"size": 8},
        {"root": Digest(bytes(32))},
    ],
    ids=["origin", "size", "root"],
)
def test_no_field_of_a_checkpoint_can_be_changed(change: dict[str, object]) -> None:
    note = parse_note(SIGNED)
    forged = replace(note, checkpoint=replace(note.checkpoint, **change))  # type: ignore[arg-type]
    with pytest.raises(SignatureError):
        verify_checkpoint(forged.to_bytes(), NETWORK, LOG.participant_id)


@pytest.mark.parametrize("field", ["name", "key_hash", "signature"])
def test_no_field_of_a_signature_can_be_changed(field: str) -> None:
    note = parse_note(SIGNED)
    (line,) = note.signatures
    value = getattr(line, field)
    other = "another" if isinstance(value, str) else bytes([value[0] ^ 1]) + value[1:]
    changes: dict[str, Any] = {field: other}
    forged = replace(note, signatures=(replace(line, **changes),))
    with pytest.raises(SignatureError):
        verify_checkpoint(forged.to_bytes(), NETWORK, LOG.participant_id)


def test_another_key_or_another_log_is_refused() -> None:
    with pytest.raises(SignatureError):
        verify_checkpoint(SIGNED, NETWORK, OTHER.participant_id)
    with pytest.raises(SignatureError):
        verify_checkpoint(SIGNED, NetworkId(bytes(32)), LOG.participant_id)
    # The key of this log under its own name, and the text of another log.
    text = Checkpoint("another", 7, ROOT)
    name = compute_origin(NETWORK)
    line = SignatureLine(name, compute_key_hash(name, TYPE_ED25519, LOG.participant_id), LOG.sign(text.text))
    with pytest.raises(CodecError, match="another log"):
        verify_checkpoint(Note(text, (line,)).to_bytes(), NETWORK, LOG.participant_id)


def test_lines_of_unknown_keys_are_passed_over_and_prove_nothing() -> None:
    note = parse_note(SIGNED)
    stranger = SignatureLine("stranger", b"abcd", bytes(64))
    data = replace(note, signatures=(stranger, *note.signatures)).to_bytes()
    assert len(verify_note(data, compute_origin(NETWORK), LOG.participant_id).signatures) == 2
    with pytest.raises(SignatureError, match="not signed by"):
        verify_checkpoint(replace(note, signatures=(stranger,)).to_bytes(), NETWORK, LOG.participant_id)


def test_a_second_line_of_the_known_key_must_hold_too() -> None:
    note = parse_note(SIGNED)
    (line,) = note.signatures
    data = replace(note, signatures=(line, replace(line, signature=bytes(64)))).to_bytes()
    with pytest.raises(SignatureError):
        verify_checkpoint(data, NETWORK, LOG.participant_id)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n7\n", b"\n07\n"),
        (b"\n7\n", b"\n+7\n"),
        (b"\n7\n", b"\n-7\n"),
        (b"\n7\n", b"\n7 \n"),
        (b"\n7\n", b"\n99999999999999999\n"),
        (b"\n7\n", b"\n9007199254740993\n"),
        (b"\n7\n", "\n٧\n".encode()),
        (b"\n7\n", b"\n7\r\n"),
        (b"\n7\n", b"\n7\n\n"),
        (b"=\n\n", b"=\nextension\n\n"),
        (b"=\n\n", b"\n\n"),
        (b"=\n\n", b"=\n"),
        ("— ".encode(), b"- "),
        ("— ".encode(), "—  ".encode()),
        (b"/commitments ", b"/commit+ments "),
        (b"/commitments ", "/commit\u00a0ments ".encode()),
        (b"pocache", b"\xff"),
        (b"pocache", b"\x00"),
    ],
)
def test_every_other_spelling_is_refused(old: bytes, new: bytes) -> None:
    assert old in SIGNED
    with pytest.raises(CodecError):
        parse_note(SIGNED.replace(old, new))


def test_loose_bits_short_roots_and_missing_ends_are_refused() -> None:
    root = base64.b64encode(ROOT)
    for other in (base64.b64encode(ROOT[:31]), root[:-2] + bytes([root[-2] + 1]) + b"="):
        with pytest.raises(CodecError):
            parse_note(SIGNED.replace(root, other))
    for data in (b"", b"\n", SIGNED[:-1], SIGNED.split(b"\n\n")[0] + b"\n\n"):
        with pytest.raises(CodecError):
            parse_note(data)


def test_notes_are_bounded() -> None:
    with pytest.raises(LimitError):
        parse_note(SIGNED + b"x" * NOTE_BYTES_MAX)
    line = SIGNED.split(b"\n\n")[1]
    head = SIGNED.split(b"\n\n")[0] + b"\n\n"
    short = "— a YWJjZGU=\n".encode()
    assert len(parse_note(head + line + short * (NOTE_SIGNATURES_MAX - 1)).signatures) == NOTE_SIGNATURES_MAX
    with pytest.raises(LimitError):
        parse_note(head + line + short * NOTE_SIGNATURES_MAX)


def test_a_cosignature_is_over_header_time_and_text() -> None:
    checkpoint = parse_note(SIGNED).checkpoint
    line = cosign_checkpoint(NETWORK, checkpoint, WITNESS, 1679315147)
    assert verify_cosignature(NETWORK, checkpoint, line, WITNESS.participant_id) == 1679315147
    message = b"cosignature/v1\ntime 1679315147\n" + checkpoint.text
    verify_signature(WITNESS.participant_id, message, line.signature[8:])
    name = compute_witness_name(NETWORK, WITNESS.participant_id)
    assert line.key_hash == compute_key_hash(name, TYPE_COSIGNATURE, WITNESS.participant_id)


@pytest.mark.parametrize(
    "field", ["name", "key_hash", "time", "signature", "size", "root", "origin", "length"]
)
def test_no_field_of_a_cosignature_can_be_changed(field: str) -> None:
    checkpoint = parse_note(SIGNED).checkpoint
    line = cosign_checkpoint(NETWORK, checkpoint, WITNESS, 1_000)
    forged = {
        "name": replace(line, name="another"),
        "key_hash": replace(line, key_hash=bytes(4)),
        "time": replace(line, signature=(1_001).to_bytes(8, "big") + line.signature[8:]),
        "signature": replace(line, signature=line.signature[:-1] + bytes([line.signature[-1] ^ 1])),
        "length": replace(line, signature=line.signature + b"\x00"),
    }.get(field, line)
    changed = {
        "size": replace(checkpoint, size=8),
        "root": replace(checkpoint, root=Digest(bytes(32))),
        "origin": replace(checkpoint, origin="another"),
    }.get(field, checkpoint)
    with pytest.raises(SignatureError):
        verify_cosignature(NETWORK, changed, forged, WITNESS.participant_id)


def test_a_cosignature_of_a_time_beyond_its_range_is_refused() -> None:
    checkpoint = parse_note(SIGNED).checkpoint
    line = cosign_checkpoint(NETWORK, checkpoint, WITNESS, 2**63)
    with pytest.raises(SignatureError, match="2\\^63"):
        verify_cosignature(NETWORK, checkpoint, line, WITNESS.participant_id)


def test_cosigners_are_those_asked_for_and_one_that_lies_ends_it() -> None:
    checkpoint = parse_note(SIGNED).checkpoint
    lines = [cosign_checkpoint(NETWORK, checkpoint, key, 5) for key in (WITNESS, OTHER)]
    data = merge_cosignatures(SIGNED, lines)
    assert data == merge_cosignatures(SIGNED, lines[::-1])
    note = verify_checkpoint(data, NETWORK, LOG.participant_id)
    assert set(find_cosigners(NETWORK, note, [WITNESS.participant_id])) == {WITNESS.participant_id}
    bad = replace(lines[0], signature=bytes(72))
    note = parse_note(merge_cosignatures(SIGNED, [bad]))
    with pytest.raises(SignatureError):
        find_cosigners(NETWORK, note, [WITNESS.participant_id])
    assert find_cosigners(NETWORK, note, [OTHER.participant_id]) == {}
