"""One identity's tables: its leases, its claims, what it must open, what it sent, and files to be removed."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import sqlalchemy as sa

METADATA: Final = sa.MetaData()


class LeasePhase(StrEnum):
    """Where an attempt is that this identity asked for."""

    REQUESTED = "requested"
    """The router was asked, its answer is awaited."""
    GRANTED = "granted"
    """Ours to generate until the deadline; a restart begins again from here."""
    COMMITTED = "committed"
    """The leaves are durable, the result is said."""
    DENIED = "denied"
    """The router refused it; a new task may be asked for again."""
    EXPIRED = "expired"
    """The deadline passed before there was a result."""
    FAILED = "failed"
    """The engine could not do it; the lease lapses."""


class OpeningPhase(StrEnum):
    """What became of a challenge."""

    DUE = "due"
    SENT = "sent"
    WITHHELD = "withheld"
    """Not opened on purpose: a demonstration of silence."""
    FAILED = "failed"
    """The leaves are not there, or not what was promised."""


LEASES: Final = sa.Table(
    "leases",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("code", sa.String(64), nullable=False, default="", comment="why it was denied or failed"),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("granted", sa.LargeBinary, nullable=True, comment="lease-granted.v1, checked when it came"),
    sa.Column("deadline_ms", sa.BigInteger, nullable=True),
    sa.Column("root", sa.LargeBinary(32), nullable=True),
    sa.Column("result", sa.LargeBinary, nullable=True, comment="result.v1 as it was said last"),
    sa.Column("announced_round", sa.BigInteger, nullable=False, default=0),
    sa.Column("announce_count", sa.Integer, nullable=False, default=0),
    sa.CheckConstraint("phase NOT IN ('granted', 'committed') OR granted IS NOT NULL"),
    sa.CheckConstraint("phase <> 'committed' OR (root IS NOT NULL AND result IS NOT NULL)"),
    sa.Index("leases_by_phase", "phase"),
)

CANCELLATIONS: Final = sa.Table(
    "cancellations",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column(
        "cancellation", sa.LargeBinary, nullable=False, comment="cancel-request.v1, as the user signed it"
    ),
)

CLAIMS: Final = sa.Table(
    "claims",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("stage", sa.Integer, primary_key=True),
    sa.Column("retry", sa.Integer, primary_key=True),
    sa.Column("root", sa.LargeBinary(32), nullable=False),
    comment="Seals that were said; their leaves are on disk.",
)

OPENINGS: Final = sa.Table(
    "openings",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("stage", sa.Integer, primary_key=True),
    sa.Column("retry", sa.Integer, primary_key=True),
    sa.Column("file_name", sa.Text, nullable=False),
    sa.Column("root", sa.LargeBinary(32), nullable=False),
    sa.Column("leaf_count", sa.Integer, nullable=False),
    sa.Column("positions", sa.LargeBinary, nullable=False, comment="u32 little-endian each"),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Index("openings_by_phase", "phase"),
)

SENT: Final = sa.Table(
    "sent",
    METADATA,
    sa.Column("message_hash", sa.LargeBinary(32), primary_key=True, comment="SHA-256 of the sealed envelope"),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("job_id", sa.LargeBinary(32), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Index("sent_by_job", "job_id"),
    comment="What was said about a job, to understand a refusal by.",
)

REMOVALS: Final = sa.Table(
    "removals",
    METADATA,
    sa.Column("file_name", sa.Text, primary_key=True),
    comment="Leaf files of settled jobs; a row goes when its file is gone.",
)
