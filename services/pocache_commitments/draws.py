"""What public randomness decides about a commitment, as pure functions of the record (docs/protocol.md 6.7).

Each takes the round's number and randomness and what was committed, so anybody can draw again what this
service drew.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocache.protocol.challenge import (
    Corner,
    DeterministicStream,
    Tag,
    compute_seed,
    draw_corner,
    draw_positions,
    is_drawn,
)
from pocache.protocol.ids import Digest, JobId
from pocache.runtime.network import Genesis, Model

RETRY_SHIFT = 16
"""A retry's positions come from another seed: the seed's stage is (retry << 16) | stage."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What every draw about a commitment depends on."""

    job_id: JobId
    root: Digest
    leaf_count: int
    prompt_count: int


@dataclass(frozen=True, slots=True)
class Draw:
    """The round that a draw is made from."""

    round_number: int
    randomness: bytes


def is_audited(genesis: Genesis, committed: Committed, draw: Draw) -> bool:
    """Return whether the lottery of this round takes the commitment: below(den) < num of its share."""
    stream = _open_stream(genesis, Tag.AUDIT, committed, draw, 0)
    return is_drawn(stream, *genesis.share(genesis.audit.lottery_share))


def draw_audit_corner(genesis: Genesis, model: Model, committed: Committed, draw: Draw) -> Corner:
    """Return the corner of a lottery's audit."""
    return draw_corner(
        _open_stream(genesis, Tag.CORNER, committed, draw, 0),
        layer_count=model.schema.layer_count,
        leaf_count=committed.leaf_count,
        prompt_count=committed.prompt_count,
        full_share=genesis.share(genesis.audit.full_depth_share),
    )


def draw_stage_positions(
    genesis: Genesis,
    committed: Committed,
    draw: Draw,
    *,
    corner: Corner,
    stage: int,
    retry: int,
    sample_count: int,
) -> tuple[int, ...]:
    """Return the positions that a stage compares, ascending."""
    return draw_positions(
        _open_stream(genesis, Tag.POSITIONS, committed, draw, retry << RETRY_SHIFT | stage),
        corner,
        prompt_count=committed.prompt_count,
        sample_count=sample_count,
    )


def _open_stream(
    genesis: Genesis, tag: Tag, committed: Committed, draw: Draw, stage: int
) -> DeterministicStream:
    return DeterministicStream(
        compute_seed(
            tag,
            network=genesis.network_id,
            chain_hash=genesis.beacon_chain.chain_hash,
            round_number=draw.round_number,
            randomness=draw.randomness,
            root=committed.root,
            leaf_count=committed.leaf_count,
            job_id=committed.job_id,
            stage=stage,
        )
    )
