"""The protocol's own work, each against the bare primitive that it is made of.

Command: ``make bench ARGS=protocol``. Recorded figures: bench/RESULTS.md.
"""

from __future__ import annotations

import hashlib

import numpy as np
from nacl.signing import SigningKey as BareKey

from bench.measure import Row, compare
from pocache.protocol.beacon import (
    Chain,
    Scheme,
    compute_public_key,
    compute_secret,
    sign_round,
    verify_round,
)
from pocache.protocol.encoding import FloatFormat
from pocache.protocol.ids import NetworkId
from pocache.protocol.keys import SigningKey
from pocache.protocol.matching import compute_log2_distance_q16
from pocache.protocol.merkle import MerkleTree, hash_leaf, verify_multiproof
from pocache.wire.envelope import open_envelope, seal
from pocache.wire.messages import LeaseRequestV1

COLUMNS, ROWS, WIDTH = 16, 33, 64
LEAVES, LEAF_BYTES = 4_096, 4_096


def run() -> list[Row]:
    """Return a row per piece of protocol."""
    return [
        _matching("e", FloatFormat.F16),
        _matching("f", FloatFormat.F32),
        _tree(),
        _multiproof(),
        _envelope(),
        _round(),
    ]


def _matching(letter: str, float_format: FloatFormat) -> Row:
    draw = np.random.default_rng(0)
    theirs = draw.standard_normal((COLUMNS * ROWS, WIDTH)).astype(letter)
    ours = (theirs * (1 + 1e-3 * draw.standard_normal(theirs.shape))).astype(letter)
    pairs = [(a.tobytes(), b.tobytes()) for a, b in zip(ours, theirs, strict=True)]

    def exact() -> None:
        for a, b in pairs:
            compute_log2_distance_q16(a, b, float_format)

    def floats() -> None:
        for a, b in pairs:
            one, other = np.frombuffer(a, letter).astype("d"), np.frombuffer(b, letter).astype("d")
            np.log2(np.linalg.norm(one - other) / np.linalg.norm(other))

    return compare(
        f"exact distance, {COLUMNS} positions x {ROWS} rows x {WIDTH} {float_format.value}",
        exact,
        "the same in numpy float64, row by row",
        floats,
    )


def _tree() -> Row:
    leaves = [index.to_bytes(4, "big") * (LEAF_BYTES // 4) for index in range(LEAVES)]

    def grow() -> bytes:
        tree = MerkleTree()
        for leaf in leaves:
            tree.append(leaf)
        return tree.root()

    def bare() -> None:
        for leaf in leaves:
            hashlib.sha256(leaf).digest()

    return compare(
        f"Merkle tree over {LEAVES} leaves of {LEAF_BYTES} B", grow, "SHA-256 of the leaves alone", bare
    )


def _multiproof() -> Row:
    tree = MerkleTree()
    leaves = [index.to_bytes(4, "big") * 64 for index in range(LEAVES)]
    for leaf in leaves:
        tree.append(leaf)
    positions = range(7, LEAVES, LEAVES // 16)
    proof, root = tree.multiproof(tuple(positions)), tree.root()
    hashes = {position: hash_leaf(leaves[position]) for position in positions}

    def bare() -> None:
        for digest in proof:
            hashlib.sha256(digest + digest).digest()

    return compare(
        f"verify a multiproof of {len(hashes)} in {LEAVES}",
        lambda: verify_multiproof(hashes, LEAVES, proof, root),
        f"SHA-256 of its {len(proof)} digests",
        bare,
    )


def _envelope() -> Row:
    key, bare_key = SigningKey.generate(bytes(32)), BareKey(bytes(32))
    network = NetworkId(bytes(32))
    body = LeaseRequestV1(job_id=bytes(32), attempt=1)
    data = seal(key, network, body)
    signed = bare_key.sign(data[:200])

    return compare(
        "open an envelope (decode, verify, validate)",
        lambda: open_envelope(data, network, LeaseRequestV1),
        "Ed25519 verification by PyNaCl",
        lambda: bare_key.verify_key.verify(signed),
    )


def _round() -> Row:
    secret = compute_secret(bytes(48))
    chain = Chain(Scheme.BLS_UNCHAINED_G1_RFC9380, compute_public_key(secret), 0, 3, bytes(32))
    signature = sign_round(secret, 7)
    return compare(
        "verify a beacon round",
        lambda: verify_round(chain, 7, signature),
        "sign one",
        lambda: sign_round(secret, 7),
    )
