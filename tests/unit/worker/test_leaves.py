"""Leaf files: what is read is what was written, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocache.protocol.merkle import MerkleTree, hash_leaf, verify_multiproof
from pocache_worker.leaves import (
    MAGIC,
    LeafStore,
    LeavesError,
    compute_claim_name,
    compute_commitment_name,
)

LEAVES = [bytes([index]) * (3 + index) for index in range(9)]
NAME = compute_commitment_name(bytes(32), 1)
LEAF_START = len(MAGIC) + 4 + 32 + 4
"""Where the first leaf's first byte lies."""


def test_leaves_come_back_with_their_tree(tmp_path: Path) -> None:
    store = LeafStore(tmp_path)
    sealed = store.write(NAME, LEAVES)
    stored = LeafStore(tmp_path).read(NAME, (2, 7))
    assert sealed.leaf_count == len(LEAVES)
    assert stored.leaves == {2: LEAVES[2], 7: LEAVES[7]}
    proof = stored.tree.multiproof((2, 7))
    verify_multiproof({index: hash_leaf(LEAVES[index]) for index in (2, 7)}, 9, proof, sealed.root)


def test_the_root_is_that_of_the_merkle_tree(tmp_path: Path) -> None:
    tree = MerkleTree()
    for leaf in LEAVES:
        tree.append(leaf)
    assert LeafStore(tmp_path).write(NAME, LEAVES).root == tree.root()


@pytest.mark.parametrize("size", [0, 10, LEAF_START, LEAF_START + 1, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    store = LeafStore(tmp_path)
    store.write(NAME, LEAVES)
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(LeavesError, match="ends early"):
        store.read(NAME, (0,))


def test_a_flipped_bit_is_refused_even_in_a_leaf_not_asked_for(tmp_path: Path) -> None:
    store = LeafStore(tmp_path)
    store.write(NAME, LEAVES)
    data = bytearray((tmp_path / NAME).read_bytes())
    data[LEAF_START] ^= 1
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(LeavesError, match="do not lead to the root"):
        store.read(NAME, (5,))


def test_appended_bytes_and_foreign_files_are_refused(tmp_path: Path) -> None:
    store = LeafStore(tmp_path)
    store.write(NAME, LEAVES)
    data = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(data + b"\x00")
    with pytest.raises(LeavesError, match="follow the last leaf"):
        store.read(NAME, (0,))
    (tmp_path / NAME).write_bytes(b"X" + data[1:])
    with pytest.raises(LeavesError, match="not a file of leaves"):
        store.read(NAME, (0,))


def test_an_absurd_leaf_length_is_refused_before_it_is_read(tmp_path: Path) -> None:
    store = LeafStore(tmp_path)
    store.write(NAME, LEAVES)
    data = bytearray((tmp_path / NAME).read_bytes())
    data[LEAF_START - 4 : LEAF_START] = b"\xff\xff\xff\xff"
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(LeavesError, match="exceeds"):
        store.read(NAME, (0,))


def test_positions_outside_and_missing_files_are_refused(tmp_path: Path) -> None:
    store = LeafStore(tmp_path)
    store.write(NAME, LEAVES)
    with pytest.raises(LeavesError, match="outside 9 leaves"):
        store.read(NAME, (9,))
    with pytest.raises(LeavesError, match="No such file"):
        store.read(compute_claim_name(bytes(32), 1, 1, 0), (0,))


def test_no_leaves_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(LeavesError, match="cannot be kept"):
        LeafStore(tmp_path).write(NAME, [])
    assert not (tmp_path / NAME).exists()


def test_the_final_name_appears_only_after_the_bytes_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash before the flush leaves no file under the final name, and the next start removes the rest."""
    store = LeafStore(tmp_path)

    def fail(_descriptor: int) -> None:
        assert not (tmp_path / NAME).exists()
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LeavesError, match="disk full"):
        store.write(NAME, LEAVES)
    assert list(tmp_path.iterdir()) == []


def test_a_partial_file_of_a_crash_is_removed_at_start(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.partial").write_bytes(b"half")
    LeafStore(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_removing_twice_is_no_error(tmp_path: Path) -> None:
    store = LeafStore(tmp_path)
    store.write(NAME, LEAVES)
    store.remove(NAME)
    store.remove(NAME)
    assert list(tmp_path.iterdir()) == []
