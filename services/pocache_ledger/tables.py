"""The ledger's tables: accounts, the journal with its postings and checkpoints, jobs, holds, unbonding stake, bonds.

The rules that money lives by stand in the database: no account but the outside world is ever negative, a
closed one is empty, an operation happens once, a hold exists once per job, purpose, attempt and stage. A change here
needs a migration (``pocache_ledger.migrations``); a test holds both against each other on both databases.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

METADATA: Final = sa.MetaData()

WORLD: Final = "world"
"""The outside: what it lacks is what was deposited. The only account that may be negative."""

ACCOUNTS: Final = sa.Table(
    "accounts",
    METADATA,
    sa.Column("name", sa.String(80), primary_key=True),
    sa.Column("balance_micro", sa.BigInteger, nullable=False),
    sa.Column("is_closed", sa.Boolean, nullable=False, default=False),
    sa.CheckConstraint(f"balance_micro >= 0 OR name = '{WORLD}'", name="accounts_never_negative"),
    sa.CheckConstraint("NOT is_closed OR balance_micro = 0", name="accounts_closed_empty"),
    comment="Money by account; a balance is the sum of the account's postings.",
)

OPERATIONS: Final = sa.Table(
    "operations",
    METADATA,
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

POSTINGS: Final = sa.Table(
    "postings",
    METADATA,
    sa.Column(
        "number", sa.BigInteger, sa.ForeignKey("operations.number"), primary_key=True, autoincrement=False
    ),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("account", sa.String(80), sa.ForeignKey("accounts.name"), nullable=False),
    sa.Column("amount_micro", sa.BigInteger, nullable=False),
    sa.CheckConstraint("amount_micro <> 0", name="postings_not_zero"),
    sa.Index("postings_of_account", "account", "number"),
    comment="The lines of an operation; they sum to zero.",
)

JOURNAL_CHECKPOINTS: Final = sa.Table(
    "journal_checkpoints",
    METADATA,
    sa.Column("entries", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("head", sa.LargeBinary(32), nullable=False),
    # Empty until the ledger has signed and published it.
    sa.Column("envelope", sa.LargeBinary),
    comment="The journal's hash after every so many entries, as the ledger signed it.",
)

UNBONDINGS: Final = sa.Table(
    "unbondings",
    METADATA,
    sa.Column("participant", sa.String(56), primary_key=True),
    sa.Column("nonce", sa.LargeBinary(16), primary_key=True),
    sa.Column("requested_micro", sa.BigInteger, nullable=False),
    sa.Column("amount_micro", sa.BigInteger, nullable=False),
    sa.Column("matures_tick", sa.BigInteger, nullable=False),
    sa.Column("is_paid", sa.Boolean, nullable=False, default=False),
    sa.CheckConstraint("amount_micro >= 0", name="unbondings_never_negative"),
    sa.CheckConstraint("amount_micro <= requested_micro", name="unbondings_only_shrink"),
    sa.CheckConstraint("NOT is_paid OR amount_micro = 0", name="unbondings_paid_empty"),
    sa.Index("unbondings_due", "is_paid", "matures_tick"),
    comment="Stake on its way out, what slashes left of it; a participant's sum to its unbonding account.",
)

BONDS: Final = sa.Table(
    "bonds",
    METADATA,
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

JOBS: Final = sa.Table(
    "jobs",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("user", sa.String(56), nullable=False),
    sa.Column("model_id", sa.LargeBinary(32), nullable=False),
    sa.Column("prompt_count", sa.Integer, nullable=False),
    sa.Column("generation_max_micro", sa.BigInteger, nullable=False),
    sa.Column("verification_max_micro", sa.BigInteger, nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),
    # What the recorded commitment fixed; empty until there is one.
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("generator", sa.String(56)),
    sa.Column("leaf_count", sa.Integer),
    sa.Column("generation_micro", sa.BigInteger),
    sa.Column("verification_micro", sa.BigInteger),
    sa.Column("settled_as", sa.String(32)),
    sa.CheckConstraint("phase IN ('open', 'committed', 'settled')", name="jobs_phase"),
    sa.CheckConstraint("phase <> 'committed' OR generator IS NOT NULL", name="jobs_committed_by_somebody"),
    sa.CheckConstraint("(phase = 'settled') = (settled_as IS NOT NULL)", name="jobs_settled_by_a_case"),
    comment="What the ledger must know of a job to hold and settle its money.",
)

HOLDS: Final = sa.Table(
    "holds",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), sa.ForeignKey("jobs.job_id"), primary_key=True),
    sa.Column("purpose", sa.String(16), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stage", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("party", sa.String(56), nullable=False),
    sa.Column("amount_micro", sa.BigInteger, nullable=False),
    sa.Column("is_held", sa.Boolean, nullable=False, default=True),
    sa.CheckConstraint("purpose IN ('escrow', 'generator_stake', 'verifier_stake')", name="holds_purpose"),
    sa.CheckConstraint("amount_micro >= 0", name="holds_never_negative"),
    sa.CheckConstraint("is_held OR amount_micro = 0", name="holds_ended_empty"),
    # What somebody has at stake now is not to take longer the more jobs it ever had.
    sa.Index("holds_of_party", "party", "is_held"),
    comment="Whose money lies in a job's pool; the held amounts of a job are its pool's balance.",
)
