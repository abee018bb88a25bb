"""Leaves on disk: what a commitment or a sealed claim promised, kept until its job is settled.

One file for each root, written whole: beside its final name, flushed to the disk, then renamed, so that a name never
stands for half a file. ``MAGIC ‖ u32be leaf count ‖ root ‖ for each leaf: u32be length ‖ leaf``. Reading recomputes the
root; a file that was cut, damaged or exchanged is refused and never opened as if it were what was promised.

Not covered: a disk that loses what it said it had flushed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pocache.protocol.errors import EngineError
from pocache.protocol.ids import Digest, JobId
from pocache.protocol.limits import LEAF_BYTES_MAX, LEAF_COUNT_MAX
from pocache.protocol.merkle import DIGEST_BYTES, MerkleTree

MAGIC: Final = b"pocache/leaves/v1\n"
FILE_BYTES_MAX: Final = 16 << 30
"""A job whose leaves exceed this is not kept, and so not committed."""

_HEADER: Final = struct.Struct(f">{len(MAGIC)}sI{DIGEST_BYTES}s")
_LENGTH: Final = struct.Struct(">I")
_PARTIAL_SUFFIX: Final = ".partial"


class LeavesError(EngineError):
    """Leaves that cannot be kept, or a file of them that is not what was written."""

    code = "E703"


@dataclass(frozen=True, slots=True)
class SealedLeaves:
    """What is promised about leaves that are durable."""

    root: Digest
    leaf_count: int


@dataclass(frozen=True, slots=True)
class StoredLeaves:
    """A checked file: the tree over all leaves, and those leaves that were asked for."""

    tree: MerkleTree
    leaves: Mapping[int, bytes]


class LeafStore:
    """One identity's leaf files, in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for partial in directory.glob(f"*{_PARTIAL_SUFFIX}"):
            partial.unlink()

    def write(self, name: str, leaves: Sequence[bytes]) -> SealedLeaves:
        """Store leaves under ``name`` and return their root, once both are durable. Raises LeavesError."""
        size = _HEADER.size + sum(_LENGTH.size + len(leaf) for leaf in leaves)
        if not 1 <= len(leaves) <= LEAF_COUNT_MAX or size > FILE_BYTES_MAX:
            raise LeavesError(f"{len(leaves)} leaves of {size} bytes together cannot be kept")
        tree = MerkleTree()
        for leaf in leaves:
            tree.append(leaf)
        root = tree.root()
        path = self._path(name)
        partial = path.with_name(path.name + _PARTIAL_SUFFIX)
        try:
            with partial.open("wb") as stream:
                stream.write(_HEADER.pack(MAGIC, len(leaves), root))
                for leaf in leaves:
                    stream.write(_LENGTH.pack(len(leaf)))
                    stream.write(leaf)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
            _sync_directory(self._directory)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise LeavesError(f"{path} cannot be written: {error}") from error
        return SealedLeaves(root, len(leaves))

    def read(self, name: str, wanted: Iterable[int]) -> StoredLeaves:
        """Return the tree of a file and its leaves at the ``wanted`` indices. Raises LeavesError."""
        path = self._path(name)
        indices = frozenset(wanted)
        try:
            with path.open("rb") as stream:
                return _read_leaves(stream, indices)
        except (OSError, LeavesError) as error:
            raise LeavesError(f"{path}: {error}") from error

    def remove(self, name: str) -> None:
        """Forget a file; one that is not there is no error."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert Path(name).name == name, name
        return self._directory / name


def compute_commitment_name(job_id: bytes, attempt: int) -> str:
    """Return the file name of a generator's leaves."""
    return f"{job_id.hex()}-{attempt}.leaves"


def compute_claim_name(job_id: JobId | bytes, attempt: int, stage: int, retry: int) -> str:
    """Return the file name of a verifier's leaves."""
    return f"{job_id.hex()}-{attempt}-s{stage}-r{retry}.claim"


def _read_leaves(stream: BinaryIO, wanted: frozenset[int]) -> StoredLeaves:
    magic, leaf_count, root = _HEADER.unpack(_read_exactly(stream, _HEADER.size))
    if magic != MAGIC or not 1 <= leaf_count <= LEAF_COUNT_MAX:
        raise LeavesError("not a file of leaves")
    tree, leaves = MerkleTree(), {}
    for index in range(leaf_count):
        (length,) = _LENGTH.unpack(_read_exactly(stream, _LENGTH.size))
        if length > LEAF_BYTES_MAX:
            raise LeavesError(f"leaf {index} of {length} bytes exceeds {LEAF_BYTES_MAX}")
        leaf = _read_exactly(stream, length)
        tree.append(leaf)
        if index in wanted:
            leaves[index] = leaf
    if stream.read(1):
        raise LeavesError("bytes follow the last leaf")
    if tree.root() != root:
        raise LeavesError("the leaves do not lead to the root that was stored with them")
    if len(leaves) != len(wanted):
        raise LeavesError(f"positions outside {leaf_count} leaves were asked for")
    return StoredLeaves(tree, leaves)


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise LeavesError("the file ends early")
    return data


def _sync_directory(directory: Path) -> None:
    """Make a rename durable, where the system allows to flush a directory."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
