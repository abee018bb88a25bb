"""RFC 6962 Merkle tree over SHA-256: proofs for one leaf, for many, and of growth (docs/protocol.md 4.6).

Owns the hashing rule (0x00 before a leaf, 0x01 before a node; a tree splits at the largest power of two below
its size) and the order of every proof. Refuses proofs that are too short, too long, or lead to another root.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Final

from pocache.protocol.errors import MerkleError
from pocache.protocol.ids import Digest

DIGEST_BYTES: Final = 32

EMPTY_ROOT: Final = Digest(sha256(b"").digest())
"""Root of the tree without leaves."""

_SIZE_MAX: Final = 2**63 - 1


def hash_leaf(data: bytes) -> Digest:
    """Return SHA256(0x00 ‖ data) (RFC 6962 2.1)."""
    return Digest(sha256(b"\x00" + data).digest())


def hash_node(left: Digest, right: Digest) -> Digest:
    """Return SHA256(0x01 ‖ left ‖ right) (RFC 6962 2.1)."""
    return Digest(sha256(b"\x01" + left + right).digest())


class MerkleTree:
    """An append-only tree that answers for each size it ever had.

    ``_levels[h][i]`` is the root of the complete subtree over leaves i·2ʰ … (i+1)·2ʰ−1. Those never change,
    so an append costs one node hash on average and everything else is folded from them.
    """

    def __init__(self) -> None:
        self._levels: list[list[Digest]] = [[]]

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, data: bytes) -> int:
        """Append a leaf and return its index."""
        return self.append_hash(hash_leaf(data))

    def append_hash(self, leaf_hash: Digest) -> int:
        """Append a leaf whose ``hash_leaf`` is known and return its index. Raises MerkleError."""
        _check_digest(leaf_hash)
        index = len(self)
        node, height, place = leaf_hash, 0, index
        self._levels[0].append(node)
        while place & 1:
            node = hash_node(self._levels[height][place - 1], node)
            height, place = height + 1, place >> 1
            if height == len(self._levels):
                self._levels.append([])
            self._levels[height].append(node)
        return index

    def leaf_hash(self, index: int) -> Digest:
        """Return the hash of one leaf. Raises MerkleError outside the tree."""
        _check_index(index, len(self))
        return self._levels[0][index]

    def root(self, size: int | None = None) -> Digest:
        """Return the root over the first ``size`` leaves, by default all. Raises MerkleError beyond them."""
        size = self._check_size(size)
        return self._hash_range(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int | None = None) -> tuple[Digest, ...]:
        """Return the audit path of one leaf, from the leaf upwards (RFC 6962 2.1.1). Raises MerkleError."""
        size = self._check_size(size)
        _check_index(index, size)
        proof: list[Digest] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                proof.append(self._hash_range(middle, end))
                end = middle
            else:
                proof.append(self._hash_range(start, middle))
                start = middle
        return tuple(reversed(proof))

    def consistency_proof(self, old_size: int, new_size: int | None = None) -> tuple[Digest, ...]:
        """Return the proof that the tree of ``old_size`` is a prefix of ``new_size``'s (RFC 6962 2.1.2).

        Empty when the sizes are equal and when the old tree is empty. Raises MerkleError.
        """
        new_size = self._check_size(new_size)
        _check_range("old size", old_size, 0, new_size)
        if old_size in (0, new_size):
            return ()
        proof: list[Digest] = []
        start, end = 0, new_size
        while old_size != end:
            middle = start + _split(end - start)
            if old_size <= middle:
                proof.append(self._hash_range(middle, end))
                end = middle
            else:
                proof.append(self._hash_range(start, middle))
                start = middle
        if start:  # the old root itself is known to whoever checks, unless it starts further right
            proof.append(self._hash_range(start, end))
        return tuple(reversed(proof))

    def multiproof(self, indices: Sequence[int], size: int | None = None) -> tuple[Digest, ...]:
        """Return the digests that, with the leaves at ``indices``, give the root.

        Canonical order: walk the tree from the root, left before right; a subtree without any of the leaves
        contributes its root and is not entered. Raises MerkleError for no, repeated or outside indices.
        """
        size = self._check_size(size)
        ordered = _check_indices(indices, size)
        return tuple(self._hash_range(start, end) for start, end in _walk_missing(ordered, size))

    def _hash_range(self, start: int, end: int) -> Digest:
        """Return the root of leaves start … end−1; start is a multiple of some power of two ≥ end−start."""
        peaks: list[Digest] = []
        while start < end:
            height = (end - start).bit_length() - 1
            peaks.append(self._levels[height][start >> height])
            start += 1 << height
        node = peaks.pop()
        while peaks:
            node = hash_node(peaks.pop(), node)
        return node

    def _check_size(self, size: int | None) -> int:
        if size is None:
            return len(self)
        _check_range("size", size, 0, len(self))
        return size


def verify_inclusion(leaf_hash: Digest, index: int, size: int, proof: Sequence[Digest], root: Digest) -> None:
    """Check that the leaf is the one at ``index`` of the tree (RFC 9162 2.1.3.2). Raises MerkleError."""
    _check_index(index, size)
    _check_digest(leaf_hash)
    _check_digests(proof)
    place, last, node = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            raise MerkleError("inclusion proof is too long")
        if place & 1 or place == last:
            node = hash_node(sibling, node)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            node = hash_node(node, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise MerkleError("inclusion proof is too short")
    if node != root:
        raise MerkleError(f"inclusion proof of leaf {index} leads to another root")


def verify_consistency(
    old_size: int, new_size: int, old_root: Digest, new_root: Digest, proof: Sequence[Digest]
) -> None:
    """Check that the new tree only appended to the old one (RFC 9162 2.1.4.2). Raises MerkleError.

    Every tree extends the empty one, whose root is then checked and whose proof is empty.
    """
    _check_range("new size", new_size, 0, _SIZE_MAX)
    _check_range("old size", old_size, 0, new_size)
    _check_digests((old_root, new_root, *proof))
    if old_size in (0, new_size):
        _verify_trivial_growth(old_size, new_size, old_root, new_root, proof)
        return
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)  # a complete old tree is its own first node
    if not path:
        raise MerkleError("consistency proof is too short")
    place, last = old_size - 1, new_size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old_node = new_node = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise MerkleError("consistency proof is too long")
        if place & 1 or place == last:
            old_node = hash_node(sibling, old_node)
            new_node = hash_node(sibling, new_node)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            new_node = hash_node(new_node, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise MerkleError("consistency proof is too short")
    if old_node != old_root:
        raise MerkleError(f"consistency proof does not lead to the root of size {old_size}")
    if new_node != new_root:
        raise MerkleError(f"consistency proof does not lead to the root of size {new_size}")


def verify_multiproof(
    leaf_hashes: Mapping[int, Digest], size: int, proof: Sequence[Digest], root: Digest
) -> None:
    """Check that exactly these leaves are in the tree; the proof's order is ``MerkleTree.multiproof``'s.

    The proof's length is fixed by the indices and the size, so a digest too many or too few is refused before
    anything is hashed. Raises MerkleError.
    """
    ordered = _check_indices(list(leaf_hashes), size)
    _check_digests(tuple(leaf_hashes.values()))
    _check_digests(proof)
    missing = list(_walk_missing(ordered, size))
    if len(proof) != len(missing):
        raise MerkleError(f"multiproof has {len(proof)} digests where {len(missing)} are due")
    known = {(index, index + 1): leaf_hashes[index] for index in ordered}
    known.update(zip(missing, proof, strict=True))
    if _fold(known, 0, size) != root:
        raise MerkleError("multiproof leads to another root")


def _verify_trivial_growth(
    old_size: int, new_size: int, old_root: Digest, new_root: Digest, proof: Sequence[Digest]
) -> None:
    if proof:
        raise MerkleError("consistency proof between equal or from empty trees is not empty")
    if old_size == 0 and old_root != EMPTY_ROOT:
        raise MerkleError("the old tree is empty, its root is not the empty root")
    if old_size == new_size and old_root != new_root:
        raise MerkleError(f"two roots of one size {new_size}")


def _split(size: int) -> int:
    """Return the largest power of two below ``size`` (≥ 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def _walk_missing(ordered: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield, left to right, the largest subtrees [start, end) that hold none of the ascending indices."""
    stack = [(0, size)]
    while stack:
        start, end = stack.pop()
        first = bisect_left(ordered, start)
        if first == len(ordered) or ordered[first] >= end:
            yield start, end
        elif end - start > 1:
            middle = start + _split(end - start)
            stack += ((middle, end), (start, middle))


def _fold(known: Mapping[tuple[int, int], Digest], start: int, end: int) -> Digest:
    """Return the root of [start, end) from the subtrees that cover it; as deep as the tree is high."""
    node = known.get((start, end))
    if node is not None:
        return node
    middle = start + _split(end - start)
    return hash_node(_fold(known, start, middle), _fold(known, middle, end))


def _check_indices(indices: Sequence[int], size: int) -> list[int]:
    if not indices:
        raise MerkleError("a multiproof of no leaves proves nothing")
    for index in indices:
        _check_index(index, size)
    ordered = sorted(indices)
    if any(left == right for left, right in pairwise(ordered)):
        raise MerkleError("a leaf index is repeated")
    return ordered


def _check_index(index: int, size: int) -> None:
    _check_range("size", size, 1, _SIZE_MAX)
    _check_range("leaf index", index, 0, size - 1)


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise MerkleError(f"{name} is {value!r}, outside {least} … {most}")


def _check_digest(digest: Digest) -> None:
    if type(digest) is not bytes or len(digest) != DIGEST_BYTES:
        raise MerkleError(f"a digest has {DIGEST_BYTES} bytes")


def _check_digests(digests: Sequence[Digest]) -> None:
    for digest in digests:
        _check_digest(digest)
