"""Stake that unbonds, signed checkpoints of the journal, and an index for statements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what is new; what is there stays as it is."""
    op.create_index("postings_of_account", "postings", ["account", "number"])
    op.create_table(
        "journal_checkpoints",
        sa.Column("entries", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("head", sa.LargeBinary(32), nullable=False),
        sa.Column("envelope", sa.LargeBinary),
        comment="The journal's hash after every so many entries, as the ledger signed it.",
    )
    op.create_table(
        "unbondings",
        sa.Column("participant", sa.String(56), primary_key=True),
        sa.Column("nonce", sa.LargeBinary(16), primary_key=True),
        sa.Column("requested_micro", sa.BigInteger, nullable=False),
        sa.Column("amount_micro", sa.BigInteger, nullable=False),
        sa.Column("matures_tick", sa.BigInteger, nullable=False),
        sa.Column("is_paid", sa.Boolean, nullable=False),
        sa.CheckConstraint("amount_micro >= 0", name="unbondings_never_negative"),
        sa.CheckConstraint("amount_micro <= requested_micro", name="unbondings_only_shrink"),
        sa.CheckConstraint("NOT is_paid OR amount_micro = 0", name="unbondings_paid_empty"),
        sa.Index("unbondings_due", "is_paid", "matures_tick"),
        comment="Stake on its way out, what slashes left of it; a participant's sum to its unbonding account.",
    )
