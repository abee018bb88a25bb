"""What an ejection costs a worker, and how much of it was taken."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the table; what is there stays as it is."""
    op.create_table(
        "bonds",
        sa.Column("participant", sa.String(56), primary_key=True),
        sa.Column("model_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("ejection", sa.LargeBinary(32), nullable=False),
        sa.Column("stake_micro", sa.BigInteger, nullable=False),
        sa.Column("bond_micro", sa.BigInteger, nullable=False),
        sa.Column("taken_micro", sa.BigInteger, nullable=False),
        sa.Column("part_count", sa.Integer, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.CheckConstraint("bond_micro >= 0 AND bond_micro <= stake_micro", name="bonds_of_the_stake"),
        sa.CheckConstraint("taken_micro >= 0 AND taken_micro <= bond_micro", name="bonds_taken_once"),
        sa.Index("bonds_open", "is_open"),
        comment="What ejections cost, and how much of it was taken.",
    )
