"""What the verifier pool remembers: members and stakes, snapshots of them, committed jobs, and their disputes.

Beside these the tests over each worker's jobs, which a job adds to when it is decided. Rounds, ticks, times and money are 64-bit; identifiers and digests are 32 bytes. What verifying a job needs, its tokens
above all, is forgotten once the job is settled; who was drawn and how it ended stays, so that whoever comes late is
told why.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

METADATA: Final = sa.MetaData()

MEMBERS: Final = sa.Table(
    "members",
    METADATA,
    sa.Column("participant", sa.String(56), primary_key=True),
    sa.Column("verifies", sa.Boolean, nullable=False),
    sa.Column("model_ids", sa.LargeBinary, nullable=False, comment="those it can verify here, 32 bytes each"),
    sa.Column("announced_ms", sa.BigInteger, nullable=False),
    comment="The latest announcement of each worker.",
)

STAKES: Final = sa.Table(
    "stakes",
    METADATA,
    sa.Column("participant", sa.String(56), primary_key=True),
    sa.Column("stake_micro", sa.BigInteger, nullable=False),
    sa.Column("entry", sa.BigInteger, nullable=False, comment="the ledger's journal entry it is from"),
    sa.CheckConstraint("stake_micro >= 0"),
    comment="The latest whole stake of each participant.",
)

OWNERS: Final = sa.Table(
    "owners",
    METADATA,
    sa.Column("participant", sa.String(56), primary_key=True),
    sa.Column("owner", sa.String(56), nullable=False),
    sa.Column("declared_ms", sa.BigInteger, nullable=False),
    comment="Whose a participant is, by the operator's latest word.",
)

SNAPSHOTS: Final = sa.Table(
    "snapshots",
    METADATA,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("taken_ms", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False, comment="snapshot.v1 as it was announced"),
    sa.Index("snapshots_by_time", "taken_ms"),
)

JOBS: Final = sa.Table(
    "jobs",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("user", sa.String(56), nullable=False),
    sa.Column("prompt", sa.LargeBinary, nullable=False, comment="packed tokens; empty once settled"),
    sa.Column("is_settled", sa.Boolean, nullable=False),
    comment="Admitted jobs.",
)

COMMITMENTS: Final = sa.Table(
    "commitments",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), sa.ForeignKey(JOBS.c.job_id), primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("generator", sa.String(56), nullable=False),
    sa.Column("model_id", sa.LargeBinary(32), nullable=False),
    sa.Column("root", sa.LargeBinary(32), nullable=False),
    sa.Column("leaf_count", sa.Integer, nullable=False),
    sa.Column("binding", sa.LargeBinary(32), nullable=False),
    sa.Column("result_id", sa.LargeBinary(32), nullable=False, comment="envelope id of the recorded result"),
    sa.Column("window_close_round", sa.BigInteger, nullable=False, comment="as first announced"),
    sa.Column("prompt_count", sa.Integer, nullable=False),
    sa.Column("output", sa.LargeBinary, nullable=False, comment="packed tokens; empty once settled"),
    sa.Column("sampling", sa.LargeBinary, nullable=False, comment="sampling.v1"),
    sa.Column("seed", sa.LargeBinary(32), nullable=False),
    sa.CheckConstraint("leaf_count >= prompt_count AND prompt_count >= 1"),
    comment="The recorded commitment of a job.",
)

DISPUTES: Final = sa.Table(
    "disputes",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), sa.ForeignKey(COMMITMENTS.c.job_id), primary_key=True),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("deadline_tick", sa.BigInteger, nullable=True, comment="of the claim, while one is awaited"),
    sa.Column("draw_round", sa.BigInteger, nullable=True, comment="that draws the current stage's verifiers"),
    sa.Column("snapshot", sa.BigInteger, nullable=True, comment="that they were drawn from"),
    sa.Column(
        "held_until", sa.BigInteger, nullable=True, comment="round before which the window may be open"
    ),
    sa.Column(
        "held", sa.LargeBinary, nullable=True, comment="openings-closed.v1 of a match at partial depth"
    ),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.Index("disputes_by_hold", "held_until"),
    sa.Index("disputes_by_deadline", "phase", "deadline_tick"),
    sa.Index("disputes_by_round", "phase", "draw_round"),
    comment="The state of each job's dispute, in the form of its network's procedure.",
)

OPENINGS: Final = sa.Table(
    "openings",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), sa.ForeignKey(DISPUTES.c.job_id), primary_key=True),
    sa.Column("participant", sa.String(56), primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.LargeBinary, nullable=False, comment="opening.v1"),
    comment="Accepted leaves of each dispute's current stage.",
)

CLAIMS: Final = sa.Table(
    "claims",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), sa.ForeignKey(DISPUTES.c.job_id), primary_key=True),
    sa.Column("stage", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column(
        "envelope", sa.LargeBinary, nullable=False, comment="claim-sealed.v1 as its verifier signed it"
    ),
    sa.Column("is_shown", sa.Boolean, nullable=False, comment="a stage-sealed carries it"),
    comment="The latest claim of each seat.",
)

COMPARISONS: Final = sa.Table(
    "comparisons",
    METADATA,
    sa.Column("job_id", sa.LargeBinary(32), sa.ForeignKey(DISPUTES.c.job_id), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.LargeBinary, nullable=False, comment="comparison.v1"),
    comment="What was compared so far in each dispute, in order.",
)

JOB_TESTS: Final = sa.Table(
    "job_tests",
    METADATA,
    sa.Column("participant", sa.String(56), primary_key=True),
    sa.Column("model_id", sa.LargeBinary(32), primary_key=True),
    sa.Column("sum_q16", sa.BigInteger, nullable=False, comment="over grades, since its cycle began"),
    sa.Column("token_sum_q16", sa.BigInteger, nullable=False, comment="over tokens, since its own"),
    sa.Column("cycle_count", sa.BigInteger, nullable=False, comment="cycles that ended in its favour"),
    *(sa.Column(f"grade_{grade}", sa.BigInteger, nullable=False) for grade in range(4)),
    sa.Column("standing", sa.String(16), nullable=False),
    sa.Index("job_tests_by_standing", "standing"),
    comment="The tests over each worker's audited jobs with each model, up to an ejection.",
)
