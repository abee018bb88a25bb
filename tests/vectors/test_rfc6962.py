"""Known answers of Certificate Transparency's reference tree: eight leaves, their roots and proofs."""

from __future__ import annotations

import pytest

from pocache.protocol.ids import Digest
from pocache.protocol.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    hash_leaf,
    verify_consistency,
    verify_inclusion,
    verify_multiproof,
)

LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAF_0 = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
LEAF_1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
LEAF_2 = "0298d122906dcfc10892cb53a73992fc5b9f493ea4c9badb27b791b4127a7fe7"
LEAF_4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
NODE_0_1 = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
NODE_2_3 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
NODE_4_5 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
NODE_6_7 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
NODE_0_3 = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
NODE_4_7 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"


def digests(*texts: str) -> tuple[Digest, ...]:
    return tuple(Digest(bytes.fromhex(text)) for text in texts)


def make_tree() -> MerkleTree:
    tree = MerkleTree()
    for leaf in LEAVES:
        tree.append(leaf)
    return tree


def test_roots_of_the_first_leaves() -> None:
    tree = make_tree()
    assert [tree.root(size).hex() for size in range(9)] == ROOTS
    assert EMPTY_ROOT.hex() == ROOTS[0]


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [
        (0, 1, ()),
        (0, 2, (LEAF_1,)),
        (1, 2, (LEAF_0,)),
        (0, 8, (LEAF_1, NODE_2_3, NODE_4_7)),
        (5, 8, (LEAF_4, NODE_6_7, NODE_0_3)),
        (2, 3, (NODE_0_1,)),
        (1, 5, (LEAF_0, NODE_2_3, LEAF_4)),
    ],
)
def test_inclusion_proofs(index: int, size: int, proof: tuple[str, ...]) -> None:
    assert make_tree().inclusion_proof(index, size) == digests(*proof)
    verify_inclusion(hash_leaf(LEAVES[index]), index, size, digests(*proof), *digests(ROOTS[size]))


@pytest.mark.parametrize(
    ("old_size", "new_size", "proof"),
    [
        (1, 1, ()),
        (1, 8, (LEAF_1, NODE_2_3, NODE_4_7)),
        (2, 5, (NODE_2_3, LEAF_4)),
        (2, 8, (NODE_2_3, NODE_4_7)),
        (6, 8, (NODE_4_5, NODE_6_7, NODE_0_3)),
    ],
)
def test_consistency_proofs(old_size: int, new_size: int, proof: tuple[str, ...]) -> None:
    assert make_tree().consistency_proof(old_size, new_size) == digests(*proof)
    old_root, new_root = digests(ROOTS[old_size], ROOTS[new_size])
    verify_consistency(old_size, new_size, old_root, new_root, digests(*proof))


def test_multiproof_of_known_nodes() -> None:
    """Ours, not the RFC's: leaves 3 and 5 of 8 need [0,2), leaf 2, leaf 4, [6,8), left before right."""
    proof = digests(NODE_0_1, LEAF_2, LEAF_4, NODE_6_7)
    assert make_tree().multiproof([3, 5]) == proof
    leaves = {3: hash_leaf(LEAVES[3]), 5: hash_leaf(LEAVES[5])}
    verify_multiproof(leaves, 8, proof, *digests(ROOTS[8]))
