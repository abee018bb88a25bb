"""What a worker identity does with the record: leases granted and denied, challenges, settlements.

Handlers write tables and ring the bell; the tasks of ``generation`` and ``openings`` act on what they wrote. Refused
here: a lease that is not exactly what the user signed and what this worker runs, and a challenge of a root that this
identity never promised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog

from pocache.protocol.errors import (
    EjectedError,
    FundsError,
    InputError,
    NotAuthorizedError,
    PocacheError,
    UnknownJobError,
)
from pocache.protocol.ids import ParticipantId
from pocache.runtime.network import Genesis
from pocache.service.unit import Handler, Inbound, Query, RoundView, Unit
from pocache.storage.rows import upsert
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import encode
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role, Topic
from pocache_worker.grants import GrantVerifier
from pocache_worker.leaves import compute_claim_name, compute_commitment_name
from pocache_worker.state import News
from pocache_worker.tables import (
    CANCELLATIONS,
    CLAIMS,
    LEASES,
    METADATA,
    OPENINGS,
    REMOVALS,
    SENT,
    LeasePhase,
    OpeningPhase,
)

_ANSWERABLE = frozenset({LeasePhase.REQUESTED, LeasePhase.DENIED})


class WorkerService:
    """One identity's side of the record."""

    role = Role.WORKER
    metadata = METADATA
    halts_on_poison = False

    def __init__(
        self,
        participant: ParticipantId,
        grants: GrantVerifier,
        *,
        notify: Callable[[News], None],
        opens: bool = True,
    ) -> None:
        """``notify`` is called, in the state thread, when a task may have something to do with such news."""
        self._participant = participant
        self._grants = grants
        self._notify = notify
        self._opens = opens
        self._log = structlog.get_logger().bind(worker=participant)

    def handlers(self) -> Mapping[Topic[Any], Handler]:
        """Return what is done with each topic."""
        return {
            t.LEASE_GRANTED: self.on_granted,
            t.LEASE_DENIED: self.on_denied,
            t.LEASE_CANCELLED: self.on_cancelled,
            t.CHALLENGE_ISSUED: self.on_challenge,
            t.PAYOUT_SETTLED: self.on_payout,
        }

    def queries(self) -> Mapping[Topic[Any], Query]:
        """Return nothing: a worker answers no questions."""
        return {}

    def on_round(self, unit: Unit, view: RoundView) -> None:
        """Do nothing: a worker's deadlines are times that its leases name."""

    def on_granted(self, unit: Unit, inbound: Inbound[m.LeaseGrantedV1]) -> None:
        """Keep a lease that is what it should be; it is generated from here, after a restart too."""
        self._verify_addressee(inbound)
        body = inbound.body
        if _get_phase(unit, body.job_id, body.attempt) not in (None, *_ANSWERABLE):
            return
        key = {"job_id": body.job_id, "attempt": body.attempt}
        try:
            grant = self._grants.verify(body)
        except PocacheError as error:
            # Kept as refused rather than raised: whoever waits for this answer must not wait for ever.
            self._log.error("lease_refused", job=body.job_id, code=error.code, reason=str(error))
            denied = {"phase": LeasePhase.DENIED.value, "code": error.code, "reason": str(error)}
            upsert(unit.connection, LEASES, key, denied)
        else:
            granted = {
                "phase": LeasePhase.GRANTED.value,
                "granted": encode(body),
                "deadline_ms": grant.lease.deadline_ms,
                "code": "",
                "reason": "",
            }
            upsert(unit.connection, LEASES, key, granted)
            self._log.info("leased", job=body.job_id, attempt=body.attempt)
        self._notify(News.LEASES)

    def on_denied(self, unit: Unit, inbound: Inbound[m.LeaseDeniedV1]) -> None:
        """Note why the router gives us no lease."""
        self._verify_addressee(inbound)
        body = inbound.body
        if _get_phase(unit, body.job_id, body.attempt) != LeasePhase.REQUESTED:
            return
        deny_lease(unit, body.job_id, body.attempt, body.code, body.reason)
        is_idling = body.code in (FundsError.code, EjectedError.code)
        level = self._log.warning if is_idling else self._log.info
        level("lease_denied", job=body.job_id, attempt=body.attempt, code=body.code, reason=body.reason)
        self._notify(News.LEASES)

    def on_cancelled(self, unit: Unit, inbound: Inbound[m.LeaseCancelledV1]) -> None:
        """Keep the user's cancellation; whether it is the user's is checked by whoever ends an output by it."""
        self._verify_addressee(inbound)
        body = inbound.body
        key = {"job_id": body.job_id, "attempt": body.attempt}
        upsert(unit.connection, CANCELLATIONS, key, {"cancellation": body.cancellation})
        self._log.info("cancelled", job=body.job_id, attempt=body.attempt)
        self._notify(News.CANCELLATIONS)

    def on_challenge(self, unit: Unit, inbound: Inbound[m.ChallengeIssuedV1]) -> None:
        """Note what must be opened, of a commitment or a claim of ours."""
        self._verify_addressee(inbound)
        body = inbound.body
        key = {name: getattr(body, name) for name in ("job_id", "attempt", "stage", "retry")}
        where = [OPENINGS.c[name] == value for name, value in key.items()]
        if unit.connection.execute(sa.select(OPENINGS.c.phase).where(*where)).first() is not None:
            return
        file_name = _find_leaves(unit, body)
        if file_name is None:
            self._log.error("unknown_root_challenged", job=body.job_id, root=body.root)
            raise UnknownJobError("this worker promised no such root for this job")
        phase = OpeningPhase.DUE if self._opens else OpeningPhase.WITHHELD
        unit.connection.execute(
            sa.insert(OPENINGS).values(
                **key,
                file_name=file_name,
                root=body.root,
                leaf_count=body.leaf_count,
                positions=body.positions,
                phase=phase.value,
            )
        )
        self._log.info(
            "challenged", job=body.job_id, attempt=body.attempt, stage=body.stage, retry=body.retry
        )
        self._notify(News.OPENINGS)

    def on_payout(self, unit: Unit, inbound: Inbound[m.PayoutSettledV1]) -> None:
        """Forget a job: nothing of it will be asked for any more."""
        job_id = inbound.body.job_id
        leases = unit.connection.execute(sa.select(LEASES.c.attempt).where(LEASES.c.job_id == job_id)).all()
        claims = unit.connection.execute(sa.select(CLAIMS).where(CLAIMS.c.job_id == job_id)).all()
        names = [compute_commitment_name(job_id, row.attempt) for row in leases]
        names += [compute_claim_name(job_id, row.attempt, row.stage, row.retry) for row in claims]
        for name in names:
            upsert(unit.connection, REMOVALS, {"file_name": name}, {})
        for table in (LEASES, CANCELLATIONS, CLAIMS, OPENINGS, SENT):
            unit.connection.execute(sa.delete(table).where(table.c.job_id == job_id))
        if names:
            self._log.info("settled", job=job_id, case=inbound.body.case)
            self._notify(News.REMOVALS)

    def _verify_addressee(self, inbound: Inbound[Any]) -> None:
        if inbound.tokens["worker"] != self._participant:
            raise NotAuthorizedError("this is said to another worker")


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message of ours, as far as a refusal of it matters."""

    kind: str
    job_id: bytes
    attempt: int


def handle_refusal(unit: Unit, body: m.RefusalV1) -> SentMessage | None:
    """Return which of our messages a service refused, None when it is none of ours, or not about a job.

    A refused lease request is an answer to it: the attempt counts as denied.
    """
    query = sa.select(SENT.c.kind, SENT.c.job_id, SENT.c.attempt)
    found = unit.connection.execute(query.where(SENT.c.message_hash == body.message_hash)).one_or_none()
    if found is None:
        return None
    sent = SentMessage(found.kind, found.job_id, found.attempt)
    is_request = sent.kind == m.LeaseRequestV1.kind
    if is_request and _get_phase(unit, sent.job_id, sent.attempt) == LeasePhase.REQUESTED:
        deny_lease(unit, sent.job_id, sent.attempt, body.code, body.reason)
    return sent


def verify_refusal(data: bytes, subject: str, genesis: Genesis) -> m.RefusalV1:
    """Return a refusal that the service named in its subject has signed, about the message named there."""
    for role, topic in t.REFUSALS.items():
        if topic.matches(subject):
            opened = open_envelope(data, genesis.network_id, m.RefusalV1)
            if opened.sender != genesis.signer(role):
                raise InputError(f"a refusal of the {role.value} that it did not sign")
            if topic.parse(subject)["ref"] != opened.body.message_hash.hex():
                raise InputError("a refusal on another message's subject")
            return opened.body
    raise InputError(f"{subject!r} is not the subject of a refusal")


def deny_lease(unit: Unit, job_id: bytes, attempt: int, code: str, reason: str) -> None:
    """Mark an attempt as refused by the router."""
    unit.connection.execute(
        sa.update(LEASES)
        .where(LEASES.c.job_id == job_id, LEASES.c.attempt == attempt)
        .values(phase=LeasePhase.DENIED.value, code=code, reason=reason)
    )


def _get_phase(unit: Unit, job_id: bytes, attempt: int) -> LeasePhase | None:
    phase = unit.connection.execute(
        sa.select(LEASES.c.phase).where(LEASES.c.job_id == job_id, LEASES.c.attempt == attempt)
    ).scalar_one_or_none()
    return None if phase is None else LeasePhase(phase)


def _find_leaves(unit: Unit, body: m.ChallengeIssuedV1) -> str | None:
    """Return the file of the challenged root: our commitment's, or one of our claims'."""
    lease = unit.connection.execute(
        sa.select(LEASES.c.attempt).where(LEASES.c.job_id == body.job_id, LEASES.c.root == body.root)
    ).first()
    if lease is not None:
        return compute_commitment_name(body.job_id, lease.attempt)
    claim = unit.connection.execute(
        sa.select(CLAIMS).where(CLAIMS.c.job_id == body.job_id, CLAIMS.c.root == body.root)
    ).first()
    if claim is not None:
        return compute_claim_name(body.job_id, claim.attempt, claim.stage, claim.retry)
    return None
