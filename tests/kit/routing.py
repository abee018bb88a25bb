"""A router without a bus: what users, workers, the ledger and the commitment store say to it.

The other services' answers are said by the test; the router's lifecycle, tables and envelopes are the real ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from kit.network import GENESIS_S, Emission, Harness, Network, make_key
from pocache.protocol.encoding import pack_tokens
from pocache.protocol.ids import JobId
from pocache.protocol.keys import SigningKey
from pocache.service.dispatch import Decision
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Topic
from pocache_router.service import RouterService

USER: Final = make_key("user")
PROMPT: Final = (3, 4, 5)


def make_entropy() -> Any:
    """Return an entropy source that gives other, but always the same, keys."""
    count = 0

    def read(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.sha256(f"kit entropy {count}".encode()).digest()[:size]

    return read


def make_submission(network: Network, **changes: Any) -> m.SubmissionV1:
    """Return a submission that the network accepts, with some fields changed; nothing is validated."""
    fields: dict[str, Any] = {
        "model_id": network.model.model_id,
        "prompt": pack_tokens(PROMPT),
        "token_count_max": 8,
        "sampling": m.SamplingV1(),
        "seed": None,
        "eos_stop": True,
        "salt": b"salt of 16 bytes",
        "created_ms": GENESIS_S * 1_000,
        "expires_ms": GENESIS_S * 1_000 + 600_000,
    }
    return m.SubmissionV1.model_construct(**{**fields, **changes})


@dataclass
class RouterHarness(Harness):
    """A router, and the words of everybody around it."""

    sent: dict[JobId, m.SubmissionV1] = field(default_factory=dict)

    def submit(self, signer: SigningKey = USER, **changes: Any) -> JobId:
        """Have a job admitted and return its id; what was emitted stays in the outbox."""
        body = make_submission(self.network, **changes)
        data = self.network.seal(signer, body)
        decision = self.deliver_data(t.JOB_SUBMITTED, data)
        assert decision.action == "ack", decision
        job_id = JobId(self.network.envelope_id(data))
        self.sent[job_id] = body
        return job_id

    def place_escrow(self, job_id: JobId, signer: SigningKey = USER) -> None:
        """The ledger holds the deposit."""
        self.tell(t.HOLD_PLACED, self.placed("escrow", job_id, 1, signer, 1))

    def request_lease(
        self, job_id: JobId, worker: SigningKey, attempt: int = 1, requested_ms: int = 0
    ) -> Decision:
        """A worker asks for the lease."""
        body = m.LeaseRequestV1(job_id=job_id, attempt=attempt, requested_ms=requested_ms)
        return self.deliver(t.LEASE_REQUESTED, body, signer=worker)

    def place_stake(self, job_id: JobId, worker: SigningKey, attempt: int = 1) -> None:
        """The ledger locked the worker's stake."""
        self.tell(t.HOLD_PLACED, self.placed("generator_stake", job_id, attempt, worker, 1))

    def refuse_hold(self, request: m.HoldRequestV1, code: str = "E204", reason: str = "too short") -> None:
        """The ledger answers a request with a refusal."""
        echoed = request.model_dump(exclude={"amount_micro"})
        self.tell(t.HOLD_REFUSED, m.HoldRefusedV1(**echoed, code=code, reason=reason))

    def record(self, job_id: JobId, worker: SigningKey, attempt: int = 1, result: bytes = b"result") -> None:
        """The commitment store recorded the attempt's result."""
        body = m.CommitmentRecordedV1(
            job_id=job_id,
            attempt=attempt,
            generator=worker.participant_id,
            result=result,
            log_index=0,
            received_ms=self.clock_ms,
            recorded_ms=self.clock_ms,
            audit_round=10,
            window_close_round=20,
        )
        self.tell(t.COMMITMENT_RECORDED, body)

    def settle(self, job_id: JobId, case: Any, attempt: int = 1) -> None:
        """The ledger emptied the job's pool."""
        body = m.PayoutSettledV1(
            job_id=job_id,
            attempt=attempt,
            case=case,
            stage=0,
            pool_micro=0,
            generation_micro=0,
            verification_micro=0,
            reserve_micro=0,
            lines=(),
            slashed=(),
        )
        self.tell(t.PAYOUT_SETTLED, body)

    def tell(self, topic: Topic[Any], body: Any) -> None:
        """A service says something that is acted on."""
        decision = self.deliver(topic, body)
        assert decision.action == "ack", decision

    def start(self, worker: SigningKey, **changes: Any) -> tuple[JobId, m.LeaseV1]:
        """Take a job as far as its lease; the outbox is empty then."""
        job_id = self.submit(**changes)
        self.place_escrow(job_id)
        self.drain()
        self.request_lease(job_id, worker)
        self.place_stake(job_id, worker)
        (granted,) = self.outbox_of(t.LEASE_GRANTED)
        return job_id, self.network.open(granted.lease, m.LeaseV1)

    def phases(self, emissions: list[Emission]) -> list[str]:
        """Return the phases that the user is told of, in order."""
        return [one.body.phase for one in emissions if isinstance(one.body, m.JobEventV1)]

    @staticmethod
    def placed(
        purpose: Any, job_id: JobId, attempt: int, party: SigningKey, amount_micro: int
    ) -> m.HoldPlacedV1:
        """Return the ledger's word that money is locked."""
        return m.HoldPlacedV1(
            purpose=purpose,
            job_id=job_id,
            attempt=attempt,
            stage=0,
            party=party.participant_id,
            amount_micro=amount_micro,
        )


def make_router(network: Network, url: str = "sqlite://") -> RouterHarness:
    """Return a router that has seen its first round; its outbox is empty."""
    service = RouterService(network.genesis, network.models, entropy=make_entropy())
    harness = RouterHarness(service, network, url)
    harness.pass_rounds()
    harness.drain()
    return harness
