"""Vectors of Merkle proofs (docs/protocol.md 4.6)."""

from __future__ import annotations

import hashlib
import random
from itertools import product

from kit.vectors.words import Sections, Vector, is_accepted, to_hex
from pocache.protocol.ids import Digest
from pocache.protocol.merkle import (
    MerkleTree,
    hash_leaf,
    verify_consistency,
    verify_inclusion,
    verify_multiproof,
)


def make_merkle() -> Sections:
    """Proofs over trees of every shape, and each with something wrong."""
    trees: dict[int, MerkleTree] = {}
    for size in (1, 2, 3, 5, 7, 8, 11, 21):
        trees[size] = MerkleTree()
        for index in range(size):
            trees[size].append(bytes([index]))
    source = random.Random("merkle")
    return {
        "inclusions": list_inclusions(trees),
        "consistencies": list_consistencies(trees[21]),
        "multiproofs": list_multiproofs(trees, source),
    }


def vary_proof(proof: tuple[Digest, ...]) -> list[tuple[Digest, ...]]:
    """Return a proof, and it too long, too short, in another order, with another digest."""
    other = Digest(hashlib.sha256(b"other").digest())
    varied = [proof, (*proof, other), (other, *proof)]
    if proof:
        varied += [proof[:-1], proof[1:], (*proof[:-1], other)]
    if len(proof) > 1:
        varied.append(tuple(reversed(proof)))
    return varied


def list_inclusions(trees: dict[int, MerkleTree]) -> list[Vector]:
    """Audit paths."""
    result: list[Vector] = []
    for size in (1, 2, 3, 7, 8, 21):
        tree = trees[size]
        for index in dict.fromkeys((0, size // 2, size - 1)):
            genuine = tree.inclusion_proof(index)
            for proof in vary_proof(genuine):
                elsewhere = ((index + 1, size), (index, size + 1)) if proof is genuine else ()
                for at, total in ((index, size), *elsewhere):
                    leaf, root = hash_leaf(bytes([index])), tree.root()
                    valid = is_accepted(lambda: verify_inclusion(leaf, at, total, proof, root))
                    case = {
                        "leaf": leaf.hex(),
                        "index": at,
                        "size": total,
                        "proof": to_hex(proof),
                        "root": root.hex(),
                    }
                    result.append({**case, "valid": valid})
    return result


def list_consistencies(tree: MerkleTree) -> list[Vector]:
    """Proofs of growth, true and changed; and true ones against other roots."""
    result: list[Vector] = []
    for old, new in product((0, 1, 3, 4, 7, 8, 12, 20, 21), (0, 1, 7, 8, 21)):
        roots, other = (tree.root(old), tree.root(new)), tree.root(5)
        genuine = tree.consistency_proof(old, new) if old <= new else ()
        cases = [(roots, proof) for proof in vary_proof(genuine)]
        cases += [((other, roots[1]), genuine), ((roots[0], other), genuine)]
        for (old_root, new_root), proof in cases:
            valid = is_accepted(lambda: verify_consistency(old, new, old_root, new_root, proof))
            case = {"old_size": old, "new_size": new, "old_root": old_root.hex(), "new_root": new_root.hex()}
            result.append({**case, "proof": to_hex(proof), "valid": valid})
    return result


def list_multiproofs(trees: dict[int, MerkleTree], source: random.Random) -> list[Vector]:
    """Multiproofs of a few leaves."""
    result: list[Vector] = []
    for size, tree in trees.items():
        for count in dict.fromkeys((1, (size + 1) // 2, size)):
            indices = sorted(source.sample(range(size), count))
            genuine = tree.multiproof(indices)
            for proof in vary_proof(genuine):
                elsewhere = ((1, size), (0, size + 1)) if proof is genuine else ()
                for shift, total in ((0, size), *elsewhere):
                    leaves = {index + shift: hash_leaf(bytes([index])) for index in indices}
                    valid = is_accepted(lambda: verify_multiproof(leaves, total, proof, tree.root()))
                    pairs = [[index, leaf.hex()] for index, leaf in leaves.items()]
                    case = {"leaves": pairs, "size": total, "proof": to_hex(proof), "root": tree.root().hex()}
                    result.append({**case, "valid": valid})
    result.append(
        {
            "leaves": [],
            "size": 5,
            "proof": [trees[5].root().hex()],
            "root": trees[5].root().hex(),
            "valid": False,
        }
    )
    return result
