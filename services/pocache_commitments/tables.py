"""What the commitment store remembers: the log's nodes, a row per commitment, the stages being opened.

Rounds, ticks and times are 64-bit; identifiers and digests are 32 bytes. A stage and what belongs to it is
deleted once its job's outcome is known; a commitment and the log never are.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import sqlalchemy as sa

METADATA: Final = sa.MetaData()


class Phase(StrEnum):
    """Where a recorded commitment stands."""

    WINDOW = "window"
    """Waiting for its lottery and for its user, until the window closes."""
    AUDIT = "audit"
    """Being verified, until the pool decides."""
    EQUIVOCATED = "equivocated"
    """Contradicted by its own generator; the pool convicts without verifiers."""
    CLOSED = "closed"
    """Decided, or its window closed: nothing changes it any more."""


class StagePhase(StrEnum):
    """Where a stage's openings stand."""

    SEALED = "sealed"
    """Waiting for the round that draws its positions."""
    CHALLENGED = "challenged"
    """Its parties were asked to open."""
    CLOSED = "closed"
    """Everybody opened, or the deadline passed."""


def _one_of(column: str, values: type[StrEnum]) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(repr(value.value) for value in values)})")


LOG_NODES: Final = sa.Table(
    "log_nodes",
    METADATA,
    sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    comment="Roots of the log's complete subtrees: level h, place i covers 2^h leaves from i*2^h on.",
)

COMMITMENTS: Final = sa.Table(
    "commitments",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("generator", sa.String(56), nullable=False),
    sa.Column("user", sa.String(56), nullable=False),
    sa.Column("model_id", sa.LargeBinary(32), nullable=False),
    sa.Column("prompt_count", sa.Integer, nullable=False),
    sa.Column("leaf_count", sa.Integer, nullable=False),
    sa.Column("root", sa.LargeBinary(32), nullable=False),
    sa.Column("binding", sa.LargeBinary(32), nullable=False),
    sa.Column("result_id", sa.LargeBinary(32), nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=False, unique=True),
    sa.Column("recorded_ms", sa.BigInteger, nullable=False),
    sa.Column("audit_round", sa.BigInteger, nullable=False),
    sa.Column("window_close_round", sa.BigInteger, nullable=False),
    sa.Column("window_close_tick", sa.BigInteger, nullable=False),
    sa.Column("outbox_number", sa.BigInteger, nullable=False, comment="of what announced the audit round"),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("is_lottery_drawn", sa.Boolean, nullable=False, default=False),
    sa.Column("is_challenged", sa.Boolean, nullable=False, default=False),
    sa.Column("challenge_round", sa.BigInteger),
    sa.Column("challenge", sa.LargeBinary, comment="the user's envelope, until the audit is opened"),
    sa.CheckConstraint("attempt >= 1"),
    sa.CheckConstraint("prompt_count >= 1 AND leaf_count >= prompt_count"),
    sa.CheckConstraint("window_close_round > audit_round"),
    sa.CheckConstraint("challenge_round IS NULL OR is_challenged"),
    _one_of("phase", Phase),
    sa.Index("commitments_phase", "phase", "window_close_round"),
    sa.Index("commitments_due", "phase", "is_challenged", "is_lottery_drawn", "audit_round"),
    comment="The one commitment of each attempt.",
)

CLOSED_ATTEMPTS: Final = sa.Table(
    "closed_attempts",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    comment="Attempts whose lease lapsed before a commitment came: none is accepted any more.",
)


def _stage_key() -> tuple[sa.Column[bytes], sa.Column[int], sa.Column[int], sa.Column[int]]:
    return (
        sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stage", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("retry", sa.Integer, primary_key=True, autoincrement=False),
    )


STAGE_KEY: Final = ("job_id", "attempt", "stage", "retry")

STAGES: Final = sa.Table(
    "stages",
    METADATA,
    *_stage_key(),
    sa.Column("layer_max", sa.Integer, nullable=False),
    sa.Column("position_max", sa.Integer, nullable=False),
    sa.Column("full_depth", sa.Boolean, nullable=False),
    sa.Column("sample_count", sa.Integer, nullable=False),
    sa.Column("due_round", sa.BigInteger, nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("positions", sa.LargeBinary),
    sa.Column("deadline_tick", sa.BigInteger),
    sa.ForeignKeyConstraint(["job_id", "attempt"], ["commitments.job_id", "commitments.attempt"]),
    sa.CheckConstraint("phase = 'sealed' OR (positions IS NOT NULL AND deadline_tick IS NOT NULL)"),
    _one_of("phase", StagePhase),
    sa.Index("stages_phase", "phase"),
    comment="Stages whose claims are sealed; positions are packed u32, drawn at due_round.",
)

PARTIES: Final = sa.Table(
    "parties",
    METADATA,
    *_stage_key(),
    sa.Column("participant", sa.String(56), primary_key=True),
    sa.Column("party_stage", sa.Integer, nullable=False),
    sa.Column("root", sa.LargeBinary(32), nullable=False),
    sa.Column("leaf_count", sa.Integer, nullable=False),
    sa.Column("layer_max", sa.Integer, nullable=False),
    sa.Column("full_depth", sa.Boolean, nullable=False),
    sa.Column("positions", sa.LargeBinary, nullable=False, default=b""),
    sa.Column("has_opened", sa.Boolean, nullable=False, default=False),
    sa.ForeignKeyConstraint(STAGE_KEY, [f"stages.{name}" for name in STAGE_KEY]),
    sa.UniqueConstraint(*STAGE_KEY, "party_stage"),
    comment="Who must open in a stage, and where: the generator (party_stage 0) and each sealed verifier.",
)

PARTS: Final = sa.Table(
    "parts",
    METADATA,
    *_stage_key(),
    sa.Column("participant", sa.String(56), primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("part_count", sa.Integer, nullable=False),
    sa.Column("first_index", sa.Integer, nullable=False),
    sa.Column("end_index", sa.Integer, nullable=False),
    sa.Column("opening_id", sa.LargeBinary(32), nullable=False),
    sa.ForeignKeyConstraint(
        (*STAGE_KEY, "participant"), [f"parties.{name}" for name in (*STAGE_KEY, "participant")]
    ),
    sa.CheckConstraint("part >= 0 AND part < part_count AND first_index >= 0 AND first_index < end_index"),
    comment="Accepted parts: the half-open range of the party's positions that each covers.",
)
