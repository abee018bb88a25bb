"""Philox4x32-10, integer-exact in torch on every device, and the Gumbel noise drawn from it.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (2011); known answers from Random123
are in tests/vectors. Noise is a function of (seed, position, vocabulary index) alone: no state, so a verifier
draws exactly what the generator drew. Refuses nothing: its inputs are ours.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

ROUND_COUNT = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD_MASK = 0xFFFFFFFF
WORDS_PER_BLOCK = 4

_KEY_DOMAIN = b"pocache/philox/v1"


Key = tuple[int, int] | tuple[Tensor, Tensor]
"""Two unsigned 32-bit words: of all blocks, or as int64 tensors that broadcast against the counters."""


def compute_philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> Tensor:
    """Return the blocks [..., 4] of counters given as four int64 tensors that hold unsigned 32-bit words.

    A product of two such words wraps in int64 exactly as in uint64, and the mask after the shift removes the
    copies of the sign bit, so its two halves are exact.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUND_COUNT):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & WORD_MASK) ^ c1 ^ k0,
            product1 & WORD_MASK,
            ((product0 >> 32) & WORD_MASK) ^ c3 ^ k1,
            product0 & WORD_MASK,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD_MASK, (k1 + KEY_STEPS[1]) & WORD_MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def compute_key(seed: bytes) -> tuple[int, int]:
    """Return a seed's key: the first two big-endian words of SHA256("pocache/philox/v1" ‖ seed)."""
    digest = hashlib.sha256(_KEY_DOMAIN + seed).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def compute_gumbel(seed: bytes, positions_B: Tensor, vocab_size: int) -> Tensor:
    """Return float32 noise [B, V] of one seed; see :func:`compute_gumbel_rows`."""
    return compute_gumbel_rows(compute_key(seed), positions_B, vocab_size)


def compute_gumbel_rows(key: Key, positions_B: Tensor, vocab_size: int) -> Tensor:
    """Return float32 noise [B, V]: -ln(-ln u), u = (2w + 1) / 2^33 in float64, rounded once.

    ``key`` is one for all rows, or two tensors [B]. Token v of position p reads word v mod 4 of the block at counter
    (v div 4, p mod 2^32, p div 2^32, 0). The logarithms are float64, so a difference of one unit in their last place
    between libraries vanishes in the rounding but for about one word in 2^28.
    """
    device = positions_B.device
    blocks = torch.arange(
        (vocab_size + WORDS_PER_BLOCK - 1) // WORDS_PER_BLOCK, dtype=torch.int64, device=device
    )
    position_B1 = positions_B.to(torch.int64)[:, None]
    low = (position_B1 & WORD_MASK).expand(-1, len(blocks))
    high = (position_B1 >> 32).expand(-1, len(blocks))
    index = blocks[None, :].expand(len(positions_B), -1)
    if isinstance(key[0], Tensor) and isinstance(key[1], Tensor):
        key = (key[0][:, None], key[1][:, None])
    words = compute_philox((index, low, high, torch.zeros_like(index)), key)
    words_BV = words.reshape(len(positions_B), -1)[:, :vocab_size]
    uniform_BV = (2 * words_BV + 1).to(torch.float64) * 2.0**-33
    return (-torch.log(-torch.log(uniform_BV))).to(torch.float32)
