"""What ledgers wrote before there were migrations: accounts, journal, jobs, holds, and every service's own tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything."""
    _create_service_tables()
    _create_journal()
    _create_jobs()


def _create_service_tables() -> None:
    op.create_table(
        "applied",
        sa.Column("envelope_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("stream", sa.String(32), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        comment="Envelopes that have had their effect, and the stream position that carried them.",
    )
    op.create_table(
        "outbox",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("message_id", sa.String(64), nullable=False),
        sqlite_autoincrement=True,
        comment="What was decided and must still be published, in order.",
    )
    op.create_table(
        "meta",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        comment="Counters and settings of the service itself.",
    )
    op.create_table(
        "rounds",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("randomness", sa.LargeBinary(32), nullable=False),
        comment="Beacon rounds that this service has verified itself.",
    )


def _create_journal() -> None:
    op.create_table(
        "accounts",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("balance_micro", sa.BigInteger, nullable=False),
        sa.Column("is_closed", sa.Boolean, nullable=False),
        sa.CheckConstraint("balance_micro >= 0 OR name = 'world'", name="accounts_never_negative"),
        sa.CheckConstraint("NOT is_closed OR balance_micro = 0", name="accounts_closed_empty"),
        comment="Money by account; a balance is the sum of the account's postings.",
    )
    op.create_table(
        "operations",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("operation_id", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("subject", sa.LargeBinary, nullable=False),
        sa.Column("cause", sa.LargeBinary(32), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("entry_hash", sa.LargeBinary(32), nullable=False),
        sa.CheckConstraint("number >= 1", name="operations_numbered"),
        comment="The journal: each entry's hash covers the one before it.",
    )
    op.create_table(
        "postings",
        sa.Column(
            "number", sa.BigInteger, sa.ForeignKey("operations.number"), primary_key=True, autoincrement=False
        ),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("account", sa.String(80), sa.ForeignKey("accounts.name"), nullable=False),
        sa.Column("amount_micro", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount_micro <> 0", name="postings_not_zero"),
        comment="The lines of an operation; they sum to zero.",
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
        sa.Column("user", sa.String(56), nullable=False),
        sa.Column("model_id", sa.LargeBinary(32), nullable=False),
        sa.Column("prompt_count", sa.Integer, nullable=False),
        sa.Column("generation_max_micro", sa.BigInteger, nullable=False),
        sa.Column("verification_max_micro", sa.BigInteger, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("generator", sa.String(56)),
        sa.Column("leaf_count", sa.Integer),
        sa.Column("generation_micro", sa.BigInteger),
        sa.Column("verification_micro", sa.BigInteger),
        sa.Column("settled_as", sa.String(32)),
        sa.CheckConstraint("phase IN ('open', 'committed', 'settled')", name="jobs_phase"),
        sa.CheckConstraint(
            "phase <> 'committed' OR generator IS NOT NULL", name="jobs_committed_by_somebody"
        ),
        sa.CheckConstraint("(phase = 'settled') = (settled_as IS NOT NULL)", name="jobs_settled_by_a_case"),
        comment="What the ledger must know of a job to hold and settle its money.",
    )
    op.create_table(
        "holds",
        sa.Column("job_id", sa.LargeBinary(32), sa.ForeignKey("jobs.job_id"), primary_key=True),
        sa.Column("purpose", sa.String(16), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stage", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("party", sa.String(56), nullable=False, index=True),
        sa.Column("amount_micro", sa.BigInteger, nullable=False),
        sa.Column("is_held", sa.Boolean, nullable=False),
        sa.CheckConstraint(
            "purpose IN ('escrow', 'generator_stake', 'verifier_stake')", name="holds_purpose"
        ),
        sa.CheckConstraint("amount_micro >= 0", name="holds_never_negative"),
        sa.CheckConstraint("is_held OR amount_micro = 0", name="holds_ended_empty"),
        comment="Whose money lies in a job's pool; the held amounts of a job are its pool's balance.",
    )
