"""Whether an opening shows what was promised: its leaves, strictly decoded, and the multiproof that leads to the root.

A pure function of one signed part and of the party's promise (docs/protocol.md 8.4), so the commitment store, the
verifier pool and whoever reads the record come to the same answer. Refuses a missing, extra, repeated or malformed
leaf, and a proof that is not exactly the one there is. Does not know which positions were asked for, nor whether the
rows are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pocache.protocol.encoding import RowSchema, decode_leaf
from pocache.protocol.errors import EncodingError, OpeningError
from pocache.protocol.ids import Digest
from pocache.protocol.merkle import DIGEST_BYTES, hash_leaf, verify_multiproof


def verify_opening(
    positions: Sequence[int],
    leaves: Sequence[bytes],
    proof: bytes,
    *,
    schema: RowSchema,
    prompt_count: int,
    leaf_count: int,
    root: Digest,
) -> None:
    """Check each leaf against its position and the party's schema, then all of them against its root.

    ``schema`` is the model's for the generator, restricted to the corner for a verifier; ``proof`` is the multiproof's
    digests, one after the other. Raises OpeningError for the leaves, MerkleError for the proof.
    """
    if len(leaves) != len(positions):
        raise OpeningError(f"{len(leaves)} leaves for {len(positions)} positions")
    if any(after <= before for before, after in pairwise(positions)):
        raise OpeningError("the positions do not ascend")
    for position, leaf in zip(positions, leaves, strict=True):
        try:
            decode_leaf(schema, position, position >= prompt_count - 1, leaf)
        except EncodingError as error:
            raise OpeningError(f"the leaf of position {position}: {error}") from error
    digests = [Digest(proof[start : start + DIGEST_BYTES]) for start in range(0, len(proof), DIGEST_BYTES)]
    hashes = {position: hash_leaf(leaf) for position, leaf in zip(positions, leaves, strict=True)}
    verify_multiproof(hashes, leaf_count, digests, root)
