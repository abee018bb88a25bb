"""Trees, sizes and sets of leaves at random: honest proofs open, nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pocache.protocol.errors import MerkleError
from pocache.protocol.ids import Digest
from pocache.protocol.merkle import (
    MerkleTree,
    hash_leaf,
    verify_consistency,
    verify_inclusion,
    verify_multiproof,
)

relaxed = settings(deadline=None, max_examples=60)
leaf_lists = st.lists(st.binary(max_size=8), min_size=1, max_size=70)


def make_tree(leaves: list[bytes]) -> MerkleTree:
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


def flip_one_bit(data: st.DataObject, digest: Digest) -> Digest:
    bit = data.draw(st.integers(0, 255), label="bit")
    return Digest((int.from_bytes(digest, "big") ^ 1 << bit).to_bytes(32, "big"))


def draw_indices(data: st.DataObject, size: int) -> list[int]:
    return sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1), label="indices"))


@relaxed
@given(leaves=leaf_lists, data=st.data())
def test_one_flipped_bit_never_opens_one_leaf(leaves: list[bytes], data: st.DataObject) -> None:
    tree, size = make_tree(leaves), len(leaves)
    index = data.draw(st.integers(0, size - 1))
    parts = [hash_leaf(leaves[index]), tree.root(), *tree.inclusion_proof(index)]
    verify_inclusion(parts[0], index, size, parts[2:], parts[1])
    place = data.draw(st.integers(0, len(parts) - 1), label="part")
    parts[place] = flip_one_bit(data, parts[place])
    with pytest.raises(MerkleError):
        verify_inclusion(parts[0], index, size, parts[2:], parts[1])


@relaxed
@given(leaves=leaf_lists, data=st.data())
def test_one_flipped_bit_never_opens_many_leaves(leaves: list[bytes], data: st.DataObject) -> None:
    tree, size = make_tree(leaves), len(leaves)
    indices = draw_indices(data, size)
    hashes = {index: hash_leaf(leaves[index]) for index in indices}
    proof, root = list(tree.multiproof(indices)), tree.root()
    verify_multiproof(hashes, size, proof, root)
    place = data.draw(st.integers(0, len(indices) + len(proof)), label="part")
    if place < len(indices):
        hashes[indices[place]] = flip_one_bit(data, hashes[indices[place]])
    elif place < len(indices) + len(proof):
        proof[place - len(indices)] = flip_one_bit(data, proof[place - len(indices)])
    else:
        root = flip_one_bit(data, root)
    with pytest.raises(MerkleError):
        verify_multiproof(hashes, size, proof, root)


@relaxed
@given(leaves=leaf_lists, data=st.data())
def test_one_flipped_bit_never_proves_growth(leaves: list[bytes], data: st.DataObject) -> None:
    tree, size = make_tree(leaves), len(leaves)
    old_size = data.draw(st.integers(1, size))
    parts = [tree.root(old_size), tree.root(), *tree.consistency_proof(old_size)]
    verify_consistency(old_size, size, parts[0], parts[1], parts[2:])
    place = data.draw(st.integers(0, len(parts) - 1), label="part")
    parts[place] = flip_one_bit(data, parts[place])
    with pytest.raises(MerkleError):
        verify_consistency(old_size, size, parts[0], parts[1], parts[2:])


@relaxed
@given(leaves=leaf_lists, data=st.data())
def test_multiproof_with_digests_dropped_repeated_or_exchanged_is_refused(
    leaves: list[bytes], data: st.DataObject
) -> None:
    tree, size = make_tree(leaves), len(leaves)
    indices = draw_indices(data, size)
    hashes = {index: hash_leaf(leaves[index]) for index in indices}
    proof = tree.multiproof(indices)
    assume(proof)
    place = data.draw(st.integers(0, len(proof) - 1), label="place")
    other = data.draw(st.integers(0, len(proof) - 1), label="other")
    wrong = [
        (*proof[:place], *proof[place + 1 :]),
        (*proof[: place + 1], *proof[place:]),
        (*proof, proof[place]),
    ]
    if proof[place] != proof[other]:
        exchanged = list(proof)
        exchanged[place], exchanged[other] = proof[other], proof[place]
        wrong.append(tuple(exchanged))
    for candidate in wrong:
        with pytest.raises(MerkleError):
            verify_multiproof(hashes, size, candidate, tree.root())


@relaxed
@given(leaves=leaf_lists, data=st.data())
def test_multiproof_is_bound_to_its_indices_and_size(leaves: list[bytes], data: st.DataObject) -> None:
    """Distinct leaves never open when they are moved along, nor in a tree of twice the size."""
    leaves = [bytes([place]) + leaf for place, leaf in enumerate([*leaves, b""])]
    tree, size = make_tree(leaves), len(leaves)
    indices, shift = draw_indices(data, size), data.draw(st.integers(1, size - 1), label="shift")
    proof = tree.multiproof(indices)
    moved = {(index + shift) % size: hash_leaf(leaves[index]) for index in indices}
    with pytest.raises(MerkleError):
        verify_multiproof(moved, size, proof, tree.root())
    hashes = {index: hash_leaf(leaves[index]) for index in indices}
    with pytest.raises(MerkleError):
        verify_multiproof(hashes, 2 * size, proof, tree.root())


@relaxed
@given(leaves=leaf_lists, data=st.data())
def test_old_sizes_of_a_grown_tree_answer_as_they_did(leaves: list[bytes], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(leaves)))
    grown, old = make_tree(leaves), make_tree(leaves[:size])
    indices = draw_indices(data, size)
    assert grown.root(size) == old.root()
    assert grown.multiproof(indices, size) == old.multiproof(indices)
    assert grown.inclusion_proof(indices[0], size) == old.inclusion_proof(indices[0])


@relaxed
@given(
    leaf_hash=st.binary(min_size=32, max_size=32),
    root=st.binary(min_size=32, max_size=32),
    index=st.integers(-2, 80),
    size=st.integers(-2, 70),
    proof=st.lists(st.binary(min_size=31, max_size=33), max_size=9),
)
def test_arbitrary_proofs_fail_with_one_kind_of_error(
    leaf_hash: Digest, root: Digest, index: int, size: int, proof: list[Digest]
) -> None:
    assume(leaf_hash != root)  # which a tree of one leaf rightly opens
    with pytest.raises(MerkleError):
        verify_inclusion(leaf_hash, index, size, proof, root)
    with pytest.raises(MerkleError):
        verify_multiproof({index: leaf_hash}, size, proof, root)
    with pytest.raises(MerkleError):
        verify_consistency(index, size, leaf_hash, root, proof)
