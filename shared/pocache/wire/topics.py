"""Which message travels on which subject, in which stream, and who may sign it: one place for all three.

A pattern's ``{token}`` is one subject token: ``job``, ``model`` and ``ref`` are 64 lower-case hexadecimal digits,
``user``, ``worker``, ``verifier``, ``signer`` and ``participant`` are NKey text. A message whose signer is a participant must be
signed by the very participant named in its subject (where the subject names one), so a permission to publish on a
subject and the right to sign for it are the same thing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Generic, TypeVar

from pocache.protocol.errors import EnvelopeError
from pocache.wire import messages as m
from pocache.wire.model import WireModel

M = TypeVar("M", bound=WireModel)


class Stream(StrEnum):
    """The streams; their settings are in ``pocache.service.provisioning``."""

    SUBMISSIONS = "SUBMISSIONS"
    """Work queue of users' jobs; when full, publishing is refused."""
    INTAKE = "INTAKE"
    """Work queue of everything else that participants send; each subject has one service that takes it."""
    TASKS = "TASKS"
    """Work queue of generation and verification tasks."""
    RECORD = "RECORD"
    """What the services decided, in one total order, kept."""
    BEACON = "BEACON"
    """Beacon rounds."""
    REFUSALS = "REFUSALS"
    """Why messages were not acted on; kept for an hour."""
    DEADLETTER = "DEADLETTER"
    """Copies of what could not be handled."""


class Role(StrEnum):
    """Who a signer or a NATS user is."""

    ROUTER = "router"
    WORKER = "worker"
    COMMITMENTS = "commitments"
    BEACON = "beacon"
    VERIFIER = "verifier"
    """The verifier pool service. (Those who verify are workers.)"""
    LEDGER = "ledger"
    OPERATOR = "operator"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Topic(Generic[M]):
    """Binds a subject pattern, the model of its messages, its stream (None: core NATS), its signers and its takers."""

    pattern: str
    model: type[M]
    stream: Stream | None
    signer: Role
    takers: tuple[Role, ...] = ()
    """Services and roles that consume it by a durable consumer."""
    named_signer: str | None = None
    """The subject token that must equal the signer's id, for participants."""

    def subject(self, **tokens: str | bytes) -> str:
        """Return the subject with each ``{token}`` filled in; bytes become hexadecimal digits."""
        texts = {name: value.hex() if isinstance(value, bytes) else value for name, value in tokens.items()}
        subject = self.pattern.format(**texts)
        assert not any(sign in subject for sign in "*> "), subject
        return subject

    def filter(self, **tokens: str | bytes) -> str:
        """Return a subject filter: the tokens given, ``*`` for the others."""
        texts = {name: value.hex() if isinstance(value, bytes) else value for name, value in tokens.items()}
        return re.sub(r"\{(\w+)\}", lambda match: texts.get(match.group(1), "*"), self.pattern)

    def parse(self, subject: str) -> dict[str, str]:
        """Return the tokens of ``subject``. Raises EnvelopeError when it is not one of this topic's."""
        found = _compile_pattern(self.pattern).fullmatch(subject)
        if found is None:
            raise EnvelopeError(f"subject {subject!r} is not of the form {self.pattern}")
        return found.groupdict()

    def matches(self, subject: str) -> bool:
        """Whether ``subject`` is one of this topic's."""
        # Most subjects are told apart by how they begin.
        is_like = subject.startswith(_get_start(self.pattern))
        return is_like and _compile_pattern(self.pattern).fullmatch(subject) is not None


@cache
def _compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return what a pattern's subjects look like: each token is anything without a dot."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]*)", re.escape(pattern)), re.DOTALL)


@cache
def _get_start(pattern: str) -> str:
    """Return what all of a pattern's subjects begin with."""
    return pattern.partition("{")[0]


_R = Role
_S = Stream

JOB_SUBMITTED = Topic("jobs.submitted", m.SubmissionV1, _S.SUBMISSIONS, _R.USER, (_R.ROUTER,))

LEASE_REQUESTED = Topic(
    "leases.requested.{worker}", m.LeaseRequestV1, _S.INTAKE, _R.WORKER, (_R.ROUTER,), "worker"
)
RESULT_COMPLETED = Topic(
    "results.completed.{worker}.{job}", m.ResultV1, _S.INTAKE, _R.WORKER, (_R.COMMITMENTS,), "worker"
)
LEASE_LAPSED = Topic("leases.lapsed.{job}", m.LeaseLapsedV1, _S.INTAKE, _R.ROUTER, (_R.COMMITMENTS,))
CHALLENGE_REQUESTED = Topic(
    "challenges.requested.{user}.{job}",
    m.ChallengeRequestV1,
    _S.INTAKE,
    _R.USER,
    (_R.COMMITMENTS,),
    "user",
)
CANCEL_REQUESTED = Topic(
    "cancellations.requested.{user}.{job}", m.CancelRequestV1, _S.INTAKE, _R.USER, (_R.ROUTER,), "user"
)
CHECKPOINT_COSIGNED = Topic(
    "checkpoints.cosigned.{user}", m.CheckpointCosignedV1, _S.INTAKE, _R.USER, (_R.COMMITMENTS,), "user"
)
OPENING_SUBMITTED = Topic(
    "openings.submitted.{worker}.{job}", m.OpeningV1, _S.INTAKE, _R.WORKER, (_R.COMMITMENTS,), "worker"
)
CLAIM_SEALED = Topic(
    "claims.sealed.{worker}.{job}", m.ClaimSealedV1, _S.INTAKE, _R.WORKER, (_R.VERIFIER,), "worker"
)
MEMBER_ANNOUNCED = Topic(
    "members.announced.{worker}", m.MemberV1, _S.INTAKE, _R.WORKER, (_R.VERIFIER,), "worker"
)

USER_WITHDRAWAL_REQUESTED = Topic(
    "withdrawals.requested.user.{user}", m.WithdrawalRequestV1, _S.INTAKE, _R.USER, (_R.LEDGER,), "user"
)
WORKER_WITHDRAWAL_REQUESTED = Topic(
    "withdrawals.requested.worker.{worker}",
    m.WithdrawalRequestV1,
    _S.INTAKE,
    _R.WORKER,
    (_R.LEDGER,),
    "worker",
)

GENERATE_TASK = Topic("tasks.generate.{model}", m.GenerateTaskV1, _S.TASKS, _R.ROUTER, (_R.WORKER,))
VERIFY_TASK = Topic("tasks.verify.{worker}", m.VerifyTaskV1, _S.TASKS, _R.VERIFIER, (_R.WORKER,))

JOB_ADMITTED = Topic(
    "jobs.admitted.{job}", m.JobAdmittedV1, _S.RECORD, _R.ROUTER, (_R.VERIFIER, _R.LEDGER, _R.COMMITMENTS)
)
JOB_EVENT = Topic("jobs.events.{user}.{job}", m.JobEventV1, _S.RECORD, _R.ROUTER)
JOB_ABANDONED = Topic(
    "jobs.abandoned.{job}", m.JobAbandonedV1, _S.RECORD, _R.ROUTER, (_R.LEDGER, _R.COMMITMENTS)
)
EPOCH = Topic("seeds.epochs", m.EpochV1, _S.RECORD, _R.ROUTER, (_R.COMMITMENTS,))
LEASE_GRANTED = Topic("leases.granted.{worker}", m.LeaseGrantedV1, _S.RECORD, _R.ROUTER, (_R.WORKER,))
LEASE_DENIED = Topic("leases.denied.{worker}", m.LeaseDeniedV1, _S.RECORD, _R.ROUTER, (_R.WORKER,))
LEASE_CANCELLED = Topic("leases.cancelled.{worker}", m.LeaseCancelledV1, _S.RECORD, _R.ROUTER, (_R.WORKER,))
ATTEMPT_CHARGED = Topic(
    "attempts.charged.{job}", m.AttemptChargedV1, _S.RECORD, _R.ROUTER, (_R.LEDGER, _R.COMMITMENTS)
)
ROUTER_HOLD_REQUESTED = Topic(
    "holds.requested.router.{job}", m.HoldRequestV1, _S.RECORD, _R.ROUTER, (_R.LEDGER, _R.COMMITMENTS)
)
VERIFIER_HOLD_REQUESTED = Topic(
    "holds.requested.verifier.{job}", m.HoldRequestV1, _S.RECORD, _R.VERIFIER, (_R.LEDGER, _R.COMMITMENTS)
)

COMMITMENT_RECORDED = Topic(
    "commitments.recorded.{job}",
    m.CommitmentRecordedV1,
    _S.RECORD,
    _R.COMMITMENTS,
    (_R.ROUTER, _R.VERIFIER, _R.LEDGER, _R.COMMITMENTS),
)
CHECKPOINT = Topic("commitments.checkpoints", m.CheckpointV1, _S.RECORD, _R.COMMITMENTS, (_R.COMMITMENTS,))
ATTEMPT_CLOSED = Topic(
    "attempts.closed.{job}", m.AttemptClosedV1, _S.RECORD, _R.COMMITMENTS, (_R.ROUTER, _R.COMMITMENTS)
)
COMMITMENT_REBOUND = Topic(
    "commitments.rebound.{job}", m.CommitmentReboundV1, _S.RECORD, _R.COMMITMENTS, (_R.COMMITMENTS,)
)
AUDIT_OPENED = Topic(
    "audits.opened.{job}", m.AuditOpenedV1, _S.RECORD, _R.COMMITMENTS, (_R.VERIFIER, _R.COMMITMENTS)
)
AUDIT_DEEPENED = Topic(
    "audits.deepened.{job}", m.AuditDeepenedV1, _S.RECORD, _R.COMMITMENTS, (_R.VERIFIER, _R.COMMITMENTS)
)
WINDOW_CLOSED = Topic(
    "windows.closed.{job}", m.WindowClosedV1, _S.RECORD, _R.COMMITMENTS, (_R.LEDGER, _R.COMMITMENTS)
)
EQUIVOCATION = Topic(
    "equivocations.found.{job}", m.EquivocationV1, _S.RECORD, _R.COMMITMENTS, (_R.COMMITMENTS,)
)
EVIDENCE = Topic(
    "equivocations.evidence.{job}", m.EvidenceV1, _S.RECORD, _R.COMMITMENTS, (_R.VERIFIER, _R.COMMITMENTS)
)
CHALLENGE_ISSUED = Topic(
    "challenges.issued.{worker}", m.ChallengeIssuedV1, _S.RECORD, _R.COMMITMENTS, (_R.WORKER,)
)
OPENING_ACCEPTED = Topic(
    "openings.accepted.{job}", m.OpeningAcceptedV1, _S.RECORD, _R.COMMITMENTS, (_R.VERIFIER, _R.COMMITMENTS)
)
OPENINGS_CLOSED = Topic(
    "openings.closed.{job}", m.OpeningsClosedV1, _S.RECORD, _R.COMMITMENTS, (_R.VERIFIER, _R.COMMITMENTS)
)

SNAPSHOT_TAKEN = Topic("snapshots.taken", m.SnapshotV1, _S.RECORD, _R.VERIFIER, (_R.COMMITMENTS,))
STAGE_BOUND = Topic("stages.bound.{job}", m.StageBoundV1, _S.RECORD, _R.VERIFIER, (_R.COMMITMENTS,))
VERIFIER_DRAWN = Topic("verifiers.drawn.{job}", m.VerifierDrawnV1, _S.RECORD, _R.VERIFIER, (_R.COMMITMENTS,))
STAGE_SEALED = Topic("stages.sealed.{job}", m.StageSealedV1, _S.RECORD, _R.VERIFIER, (_R.COMMITMENTS,))
OUTCOME_DECIDED = Topic(
    "outcomes.decided.{job}", m.OutcomeV1, _S.RECORD, _R.VERIFIER, (_R.LEDGER, _R.COMMITMENTS)
)

WORKER_EJECTED = Topic(
    "workers.ejected.{participant}", m.EjectionV1, _S.RECORD, _R.VERIFIER, (_R.ROUTER, _R.LEDGER)
)

OWNER_DECLARED = Topic("owners.declared.{participant}", m.OwnerV1, _S.RECORD, _R.OPERATOR, (_R.VERIFIER,))
DEPOSITED = Topic("accounts.deposited.{participant}", m.DepositV1, _S.RECORD, _R.OPERATOR, (_R.LEDGER,))
HOLD_PLACED = Topic(
    "holds.placed.{job}", m.HoldPlacedV1, _S.RECORD, _R.LEDGER, (_R.ROUTER, _R.VERIFIER, _R.COMMITMENTS)
)
HOLD_REFUSED = Topic(
    "holds.refused.{job}", m.HoldRefusedV1, _S.RECORD, _R.LEDGER, (_R.ROUTER, _R.VERIFIER, _R.COMMITMENTS)
)
STAKE_POSTED = Topic("stakes.posted.{participant}", m.StakePostedV1, _S.RECORD, _R.LEDGER, (_R.VERIFIER,))
BOND_TAKEN = Topic("bonds.taken.{participant}", m.BondTakenV1, _S.RECORD, _R.LEDGER)
WITHDRAWAL_ACCEPTED = Topic(
    "withdrawals.accepted.{participant}", m.WithdrawalAcceptedV1, _S.RECORD, _R.LEDGER
)
WITHDRAWAL_PAID = Topic("withdrawals.paid.{participant}", m.WithdrawalPaidV1, _S.RECORD, _R.LEDGER)
JOURNAL_CHECKPOINT = Topic("journal.checkpoints", m.JournalCheckpointV1, _S.RECORD, _R.LEDGER)
PAYOUT_SETTLED = Topic(
    "payouts.settled.{job}",
    m.PayoutSettledV1,
    _S.RECORD,
    _R.LEDGER,
    (_R.ROUTER, _R.VERIFIER, _R.COMMITMENTS, _R.WORKER),
)

BEACON_ROUND = Topic(
    "beacon.rounds",
    m.BeaconRoundV1,
    _S.BEACON,
    _R.BEACON,
    (_R.ROUTER, _R.COMMITMENTS, _R.VERIFIER, _R.LEDGER),
)
BEACON_PARTIAL = Topic("beacon.partials.{signer}", m.BeaconPartialV1, None, _R.BEACON, (), "signer")

TOKENS = Topic("tokens.{user}.{job}.{worker}", m.TokenChunkV1, None, _R.WORKER, (), "worker")
CONSISTENCY_QUERY = Topic("queries.consistency", m.ConsistencyQueryV1, None, _R.USER)
BALANCE_QUERY = Topic("queries.balance.{participant}", m.BalanceQueryV1, None, _R.USER, (), None)
STATEMENT_QUERY = Topic("queries.statement.{participant}", m.StatementQueryV1, None, _R.USER, (), None)
RECEIPT_QUERY = Topic("queries.receipt.{user}.{job}", m.ReceiptQueryV1, None, _R.USER, (), None)
TOTALS_QUERY = Topic("queries.totals", m.TotalsQueryV1, None, _R.OPERATOR)

REFUSALS = {
    role: Topic(f"refusals.{role.value}.{{ref}}", m.RefusalV1, _S.REFUSALS, role)
    for role in (_R.ROUTER, _R.COMMITMENTS, _R.VERIFIER, _R.LEDGER)
}

TOPICS: tuple[Topic[WireModel], ...] = tuple(
    value for value in globals().values() if isinstance(value, Topic)
) + tuple(REFUSALS.values())
"""Every topic; permissions, streams and consumers are derived from it."""


def get_topic(subject: str) -> Topic[WireModel]:
    """Return the topic of ``subject``. Raises EnvelopeError when there is none."""
    for topic in TOPICS:
        if topic.matches(subject):
            return topic
    raise EnvelopeError(f"no topic has the subject {subject!r}")
