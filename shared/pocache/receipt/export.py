"""The record as a file: one JSON object a line, so that it can be kept, sent and audited anywhere (docs/protocol.md 14.6).

The first line has the genesis and the models' entries, each following one a stored message with its place in its
stream. Nothing here is judged. Refused: lines beyond the bus's own limits, and whatever is no such line.
"""

from __future__ import annotations

import base64
import binascii
import gzip
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from pocache.protocol.errors import CodecError, LimitError
from pocache.protocol.limits import ENTRY_TEXT_BYTES_MAX
from pocache.receipt.strict_json import read_json, write_json

KIND: Final = "record-export.v1"
_HEADER_FIELDS: Final = {"kind", "genesis", "models"}
_ENTRY_FIELDS: Final = {"stream", "sequence", "subject", "data"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored message."""

    stream: str
    sequence: int
    subject: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What the record is of."""

    genesis: bytes
    models: tuple[bytes, ...]


def write_header(header: Header) -> bytes:
    """Return the first line."""
    models = [_to_base64(one) for one in header.models]
    return write_json({"kind": KIND, "genesis": header.genesis.decode("ascii"), "models": models})


def write_entry(entry: Entry) -> bytes:
    """Return the line of a message."""
    return write_json(
        {
            "stream": entry.stream,
            "sequence": entry.sequence,
            "subject": entry.subject,
            "data": _to_base64(entry.data),
        }
    )


def write_export(file: Path, header: Header, entries: Iterable[Entry]) -> int:
    """Write a record and return how many messages it has; ``.gz`` is compressed."""
    count = 0
    with open_export(file, "wb") as stream:
        stream.write(write_header(header))
        for entry in entries:
            stream.write(write_entry(entry))
            count += 1
    return count


@contextmanager
def open_export(file: Path, mode: str) -> Iterator[IO[bytes]]:
    """Open an export for reading or writing bytes; a name that ends in ``.gz`` is compressed."""
    if file.suffix == ".gz":
        with gzip.open(file, mode) as packed:
            yield packed  # type: ignore[misc]
    else:
        with file.open(mode) as plain:
            yield plain


def read_header(line: bytes) -> Header:
    """Return what the first line says. Raises CodecError, LimitError."""
    value = _read_line(line, _HEADER_FIELDS)
    genesis, models = value["genesis"], value["models"]
    if (
        value["kind"] != KIND
        or not isinstance(genesis, str)
        or not genesis.isascii()
        or not isinstance(models, list)
    ):
        raise CodecError(f"the first line of an export is of kind {KIND}, with genesis and models")
    return Header(genesis.encode("ascii"), tuple(_from_base64(one) for one in models))


def read_entries(stream: IO[bytes]) -> Iterator[Entry]:
    """Yield the messages of the lines that follow. Raises CodecError, LimitError."""
    while line := stream.readline(ENTRY_TEXT_BYTES_MAX + 1):
        value = _read_line(line, _ENTRY_FIELDS)
        name, sequence, subject = value["stream"], value["sequence"], value["subject"]
        if not isinstance(name, str) or not isinstance(subject, str) or type(sequence) is not int:
            raise CodecError("a line of an export has stream and subject as text, sequence as a number")
        yield Entry(name, sequence, subject, _from_base64(value["data"]))


def _read_line(line: bytes, fields: set[str]) -> Mapping[str, Any]:
    if len(line) > ENTRY_TEXT_BYTES_MAX:
        raise LimitError(f"a line of more than {ENTRY_TEXT_BYTES_MAX} bytes")
    value = read_json(line, bytes_max=ENTRY_TEXT_BYTES_MAX)
    if not isinstance(value, dict) or set(value) != fields:
        raise CodecError(f"a line of an export has exactly the fields {', '.join(sorted(fields))}")
    return value


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "?", validate=True)
    except (binascii.Error, ValueError):
        raise CodecError("a line of an export has its data in base64") from None
