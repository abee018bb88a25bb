"""What the commitment store keeps to show a job's whole record to its user: envelopes as they were signed.

``dossier`` has what is about one job, ``exhibits`` what many jobs share: rounds, snapshots, epochs, checkpoints. Rounds
and snapshots that no settled job was drawn from are forgotten; everything else stays.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from pocache_commitments.tables import METADATA

DOSSIER: Final = sa.Table(
    "dossier",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column(
        "sequence", sa.BigInteger, primary_key=True, autoincrement=False, comment="its place in RECORD"
    ),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False, comment="the envelope"),
    comment="The record of each job, in its order.",
)

EXHIBITS: Final = sa.Table(
    "exhibits",
    METADATA,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False, comment="the envelope"),
    sa.Column("is_used", sa.Boolean, nullable=False, default=False),
    sa.CheckConstraint("kind IN ('round', 'snapshot', 'epoch', 'checkpoint')"),
    comment="Envelopes that several jobs' receipts show: by number, a checkpoint by its size.",
)

COSIGNATURES: Final = sa.Table(
    "cosignatures",
    METADATA,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("witness", sa.String(56), primary_key=True),
    sa.Column("line", sa.LargeBinary, nullable=False, comment="the signature line"),
    comment="Witnesses' lines over checkpoints of the log.",
)

RECEIPTS: Final = sa.Table(
    "receipts",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("user", sa.String(56), nullable=False),
    sa.Column("is_over", sa.Boolean, nullable=False, default=False),
    sa.Column("log_size", sa.BigInteger, comment="of the last checkpoint before the job was over"),
    comment="Whose job it is, and whether there is a receipt of it.",
)
