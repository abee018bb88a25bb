"""Trees of every small size, and proofs that are short, long, misplaced or of another tree."""

from __future__ import annotations

from hashlib import sha256

import pytest

from pocache.protocol.errors import MerkleError
from pocache.protocol.ids import Digest
from pocache.protocol.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    hash_leaf,
    hash_node,
    verify_consistency,
    verify_inclusion,
    verify_multiproof,
)

SIZE = 21
LEAVES = [bytes([number]) * 3 for number in range(SIZE)]
OTHER = hash_leaf(b"other")


def make_tree(size: int = SIZE) -> MerkleTree:
    tree = MerkleTree()
    for number, leaf in enumerate(LEAVES[:size]):
        assert tree.append(leaf) == number
    return tree


def compute_root(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962 2.1, recursively, with nothing shared with the tree."""
    if len(leaves) <= 1:
        return sha256(b"\x00" + leaves[0]).digest() if leaves else sha256(b"").digest()
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return sha256(b"\x01" + compute_root(leaves[:middle]) + compute_root(leaves[middle:])).digest()


TREE = make_tree()


def test_leaves_and_nodes_are_hashed_in_different_domains() -> None:
    left, right = hash_leaf(b"l"), hash_leaf(b"r")
    assert left == sha256(b"\x00l").digest()
    assert hash_node(left, right) == sha256(b"\x01" + left + right).digest()
    assert hash_leaf(left + right) != hash_node(left, right)


@pytest.mark.parametrize("size", range(SIZE + 1))
def test_root_of_every_prefix_is_the_recursive_definition(size: int) -> None:
    assert TREE.root(size) == compute_root(LEAVES[:size]) == make_tree(size).root()


def test_append_hash_is_append() -> None:
    tree = MerkleTree()
    for leaf in LEAVES:
        tree.append_hash(hash_leaf(leaf))
    assert (len(tree), tree.root(), tree.leaf_hash(3)) == (SIZE, TREE.root(), hash_leaf(LEAVES[3]))


@pytest.mark.parametrize("size", range(1, SIZE + 1))
def test_every_leaf_of_every_prefix_is_proven(size: int) -> None:
    for index in range(size):
        proof = TREE.inclusion_proof(index, size)
        verify_inclusion(hash_leaf(LEAVES[index]), index, size, proof, TREE.root(size))


@pytest.mark.parametrize("new_size", range(SIZE + 1))
def test_growth_between_all_sizes_is_proven(new_size: int) -> None:
    for old_size in range(new_size + 1):
        proof = TREE.consistency_proof(old_size, new_size)
        verify_consistency(old_size, new_size, TREE.root(old_size), TREE.root(new_size), proof)


@pytest.mark.parametrize("size", range(1, SIZE + 1))
def test_multiproofs_of_one_some_and_all_leaves(size: int) -> None:
    for indices in ([0], [size - 1], range(size), range(0, size, 3), range(size // 2, size)):
        proof = TREE.multiproof(indices, size)
        verify_multiproof({i: hash_leaf(LEAVES[i]) for i in indices}, size, proof, TREE.root(size))
    assert TREE.multiproof(range(size), size) == ()


def test_multiproof_order_is_left_before_right() -> None:
    """Eight leaves, the fourth and fifth asked: [0,2), leaf 2, leaf 5, [6,8)."""
    left = hash_node(hash_leaf(LEAVES[0]), hash_leaf(LEAVES[1]))
    right = hash_node(hash_leaf(LEAVES[6]), hash_leaf(LEAVES[7]))
    assert TREE.multiproof([4, 3], 8) == (left, hash_leaf(LEAVES[2]), hash_leaf(LEAVES[5]), right)


def wrong_proofs(proof: tuple[Digest, ...]) -> list[tuple[Digest, ...]]:
    """Every way to drop, repeat, replace or exchange one digest."""
    wrong = [(*proof, OTHER), (OTHER, *proof)]
    for place in range(len(proof)):
        before, after = proof[:place], proof[place + 1 :]
        wrong += [(*before, *after), (*before, proof[place], proof[place], *after), (*before, OTHER, *after)]
        if after:
            wrong.append((*before, after[0], proof[place], *after[1:]))
    return wrong


def test_inclusion_refuses_every_wrong_proof() -> None:
    for index in (0, 6, 15, 16, 20):
        proof, leaf = TREE.inclusion_proof(index), hash_leaf(LEAVES[index])
        for wrong in wrong_proofs(proof):
            with pytest.raises(MerkleError):
                verify_inclusion(leaf, index, SIZE, wrong, TREE.root())
        for case in ((OTHER, index, SIZE, TREE.root()), (leaf, index, SIZE, OTHER)):
            with pytest.raises(MerkleError, match="another root"):
                verify_inclusion(case[0], case[1], case[2], proof, case[3])
        with pytest.raises(MerkleError):
            verify_inclusion(leaf, index ^ 1 if index != SIZE - 1 else index - 1, SIZE, proof, TREE.root())


def test_consistency_refuses_every_wrong_proof() -> None:
    for old_size in (1, 6, 8, 16, 20):
        proof, old_root = TREE.consistency_proof(old_size), TREE.root(old_size)
        for wrong in wrong_proofs(proof):
            with pytest.raises(MerkleError):
                verify_consistency(old_size, SIZE, old_root, TREE.root(), wrong)
        for roots in ((OTHER, TREE.root()), (old_root, OTHER), (TREE.root(), old_root)):
            with pytest.raises(MerkleError):
                verify_consistency(old_size, SIZE, *roots, proof)


def test_a_proof_of_another_height_does_not_pass_under_a_root_of_its_own() -> None:
    """Whoever chooses the root too could otherwise give a tree any size."""
    proof, leaf = TREE.inclusion_proof(6), hash_leaf(LEAVES[6])
    with pytest.raises(MerkleError, match="too long"):
        verify_inclusion(leaf, 6, SIZE, (*proof, OTHER), hash_node(OTHER, TREE.root()))
    with pytest.raises(MerkleError, match="too short"):
        verify_inclusion(leaf, 6, SIZE, TREE.inclusion_proof(6, 8), TREE.root(8))
    growth, roots = TREE.consistency_proof(6), (TREE.root(6), TREE.root())
    raised = [hash_node(OTHER, root) for root in roots]
    with pytest.raises(MerkleError, match="too long"):
        verify_consistency(6, SIZE, raised[0], raised[1], (*growth, OTHER))
    with pytest.raises(MerkleError, match="too short"):
        verify_consistency(6, SIZE, TREE.root(6), TREE.root(8), TREE.consistency_proof(6, 8))


def test_consistency_of_equal_and_empty_trees_is_checked_too() -> None:
    root = TREE.root()
    verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, ())
    for old_size, new_size, old_root, new_root, proof in (
        (SIZE, SIZE, root, OTHER, ()),
        (SIZE, SIZE, root, root, (OTHER,)),
        (0, SIZE, OTHER, root, ()),
        (0, SIZE, EMPTY_ROOT, root, (OTHER,)),
        (0, 0, EMPTY_ROOT, OTHER, ()),
        (5, SIZE, TREE.root(5), root, ()),
    ):
        with pytest.raises(MerkleError):
            verify_consistency(old_size, new_size, old_root, new_root, proof)


def test_a_history_rewritten_in_place_has_no_consistency() -> None:
    rewritten = MerkleTree()
    for number, leaf in enumerate(LEAVES):
        rewritten.append(b"rewritten" if number == 2 else leaf)
    with pytest.raises(MerkleError, match="size 6"):
        verify_consistency(6, SIZE, TREE.root(6), rewritten.root(), rewritten.consistency_proof(6))


def test_multiproof_refuses_every_wrong_proof() -> None:
    for indices in ([0], [20], [3, 4, 17], [1, 2, 3, 19, 20]):
        proof = TREE.multiproof(indices)
        leaves = {index: hash_leaf(LEAVES[index]) for index in indices}
        for wrong in wrong_proofs(proof):
            with pytest.raises(MerkleError):
                verify_multiproof(leaves, SIZE, wrong, TREE.root())
        for index in indices:
            with pytest.raises(MerkleError, match="another root"):
                verify_multiproof({**leaves, index: OTHER}, SIZE, proof, TREE.root())
        with pytest.raises(MerkleError, match="another root"):
            verify_multiproof(leaves, SIZE, proof, OTHER)


def test_multiproof_refuses_exchanged_missing_and_extra_leaves() -> None:
    proof = TREE.multiproof([3, 9])
    three, nine = hash_leaf(LEAVES[3]), hash_leaf(LEAVES[9])
    for leaves in ({3: nine, 9: three}, {3: three}, {3: three, 9: nine, 10: hash_leaf(LEAVES[10])}):
        with pytest.raises(MerkleError):
            verify_multiproof(leaves, SIZE, proof, TREE.root())


def test_an_inner_node_does_not_pass_for_a_leaf() -> None:
    """Without the two domains, a tree of two leaves that are node texts would have the root of four."""
    inner = MerkleTree()
    inner.append(hash_leaf(LEAVES[0]) + hash_leaf(LEAVES[1]))
    inner.append(hash_leaf(LEAVES[2]) + hash_leaf(LEAVES[3]))
    assert inner.root() != TREE.root(4)


@pytest.mark.parametrize("index", [-1, SIZE, 1.0, True])
def test_indices_outside_the_tree_are_refused(index: int) -> None:
    with pytest.raises(MerkleError, match="leaf index"):
        TREE.inclusion_proof(index)
    with pytest.raises(MerkleError, match="leaf index"):
        TREE.multiproof([index])
    with pytest.raises(MerkleError, match="leaf index"):
        TREE.leaf_hash(index)
    with pytest.raises(MerkleError, match="leaf index"):
        verify_inclusion(OTHER, index, SIZE, (), TREE.root())
    with pytest.raises(MerkleError, match="leaf index"):
        verify_multiproof({index: OTHER}, SIZE, (), TREE.root())


@pytest.mark.parametrize("size", [-1, SIZE + 1])
def test_sizes_that_the_tree_never_had_are_refused(size: int) -> None:
    for ask in (
        lambda: TREE.root(size),
        lambda: TREE.inclusion_proof(0, size),
        lambda: TREE.multiproof([0], size),
        lambda: TREE.consistency_proof(1, size),
        lambda: TREE.consistency_proof(size, SIZE),
    ):
        with pytest.raises(MerkleError, match="size"):
            ask()


@pytest.mark.parametrize("size", [0, -1, 2**63])
def test_absurd_sizes_are_refused_by_the_checks(size: int) -> None:
    with pytest.raises(MerkleError, match="size"):
        verify_inclusion(OTHER, 0, size, (), OTHER)
    with pytest.raises(MerkleError, match="size"):
        verify_multiproof({0: OTHER}, size, (), OTHER)
    with pytest.raises(MerkleError, match="size"):
        verify_consistency(5, size, OTHER, OTHER, ())


def test_a_huge_tree_is_checked_without_being_built() -> None:
    """A size from outside costs its logarithm: 62 levels are folded, not 2⁶² leaves."""
    size = 2**62
    node, proof = hash_leaf(b"first"), tuple(hash_leaf(bytes([level])) for level in range(62))
    root = node
    for sibling in proof:
        root = hash_node(root, sibling)
    verify_inclusion(node, 0, size, proof, root)
    verify_multiproof({0: node}, size, proof, root)


def test_no_leaves_and_repeated_leaves_prove_nothing() -> None:
    with pytest.raises(MerkleError, match="no leaves"):
        verify_multiproof({}, SIZE, (TREE.root(),), TREE.root())
    with pytest.raises(MerkleError, match="no leaves"):
        TREE.multiproof([])
    with pytest.raises(MerkleError, match="repeated"):
        TREE.multiproof([2, 5, 2])


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33), bytearray(32), "0" * 32])
def test_digests_of_another_size_or_type_are_refused(digest: Digest) -> None:
    root = TREE.root(2)
    first, second = hash_leaf(LEAVES[0]), hash_leaf(LEAVES[1])
    for check in (
        lambda: verify_inclusion(first, 0, 2, (digest,), root),
        lambda: verify_inclusion(digest, 0, 2, (second,), root),
        lambda: verify_multiproof({0: first}, 2, (digest,), root),
        lambda: verify_multiproof({0: digest}, 2, (second,), root),
        lambda: verify_consistency(1, 2, digest, root, (second,)),
        lambda: verify_consistency(1, 2, first, root, (digest,)),
        lambda: MerkleTree().append_hash(digest),
    ):
        with pytest.raises(MerkleError, match="32 bytes"):
            check()
