"""What a participant has locked is found without reading every hold that it ever had."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Replace the index; the rows stay as they are."""
    op.drop_index("ix_holds_party", "holds")
    op.create_index("holds_of_party", "holds", ["party", "is_held"])
