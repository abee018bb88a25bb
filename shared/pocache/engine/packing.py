"""Which jobs share a prefill: packs of bounded size whose jobs end at similar depth.

Pure arithmetic. A pass runs as deep as its deepest job, so a job that ends early wastes the layers above its
corner; and a pass over few tokens wastes the reading of the weights. A job larger than the bound has a pack of its
own: it cannot be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PACK_TOKENS_MAX = 8_192
"""Tokens in one pass, unless one job alone has more."""

LOGIT_CELLS_MAX = 1 << 28
"""Logits of one pass, unless one job alone has more: 1 GB in float32."""

PACK_TOKENS_FULL = 1_024
"""Tokens from which on a pass is bound by arithmetic, so that jobs of other depths are better left out."""


@dataclass(frozen=True, slots=True)
class PackItem:
    """What one job asks of a pass: tokens, decoder layers, positions whose logits are needed."""

    token_count: int
    layer_count: int
    logit_count: int = 0


def compute_packs(
    items: Sequence[PackItem],
    *,
    tokens_max: int = PACK_TOKENS_MAX,
    logits_max: int,
) -> list[list[int]]:
    """Return the indices of the jobs of each pass, deepest first; every job is in exactly one.

    A job opens a new pack when it does not fit, or when the pack is full enough to pay for itself and twice as
    deep as the job.
    """
    order = sorted(range(len(items)), key=lambda index: (-items[index].layer_count, index))
    packs: list[list[int]] = []
    tokens = logits = 0
    for index in order:
        item = items[index]
        if packs:
            fits = tokens + item.token_count <= tokens_max and logits + item.logit_count <= logits_max
            is_shallow = 2 * item.layer_count <= items[packs[-1][0]].layer_count
            if fits and not (is_shallow and tokens >= PACK_TOKENS_FULL):
                packs[-1].append(index)
                tokens, logits = tokens + item.token_count, logits + item.logit_count
                continue
        packs.append([index])
        tokens, logits = item.token_count, item.logit_count
    return packs
