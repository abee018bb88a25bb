"""A verifier pool with one committed job, played stage by stage: the test says what each party computed.

Rows are a fixed vector times the party's factor: equal factors match, factors that differ by 2⁻¹² relative are
inconclusive under the kit's profile, others are a mismatch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeVar

from kit.jobs import Job
from kit.network import STACK, Emission, Harness, Network, make_key, make_network
from pocache.protocol.commitment import compute_token_hash
from pocache.protocol.encoding import RowKind, encode_leaf, pack_tokens, unpack_tokens
from pocache.protocol.keys import SigningKey
from pocache.service.dispatch import Decision
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Topic
from pocache_verifier.service import VerifierService

HONEST: Final = 1.0
NEARLY: Final = 1.0 + 2.0**-20
"""Another honest machine."""
DOUBTFUL: Final = 1.0 + 2.0**-12
CHEAT: Final = 3.0
GARBAGE: Final = -2.0
STAKE: Final = 1_000_000_000

M = TypeVar("M", bound=WireModel)


@dataclass(frozen=True)
class LeasedJob(Job):
    """A job whose result carries its lease."""

    @cached_property
    def lease(self) -> bytes:
        """The router's sealed lease."""
        submission = self.network.open(self.submission, m.SubmissionV1)
        model = self.network.model
        body = m.LeaseV1(
            job_id=self.job_id,
            attempt=self.attempt,
            generator=self.generator.participant_id,
            user=self.user.participant_id,
            model_id=model.model_id,
            prompt_hash=compute_token_hash(submission.salt, submission.prompt),
            prompt_count=self.prompt_count,
            token_count_max=self.token_count_max,
            sampling=submission.sampling,
            eos_stop=True,
            seed=hashlib.sha256(b"seed").digest(),
            salt=submission.salt,
            schema_digest=model.schema.digest(),
            profile_set=model.profile_set,
            granted_ms=submission.created_ms,
            deadline_ms=submission.expires_ms,
        )
        return self.network.seal(self.network.keys[Role.ROUTER], body)

    def result(self, root: bytes = b"\x01" * 32) -> bytes:
        """The generator's sealed result."""
        body = self.network.open(super().result(root), m.ResultV1)
        return self.network.seal(self.generator, body.model_copy(update={"lease": self.lease}))


def make_row(kind: RowKind, layer: int, position: int, width: int, factor: float) -> bytes:
    """Return a float32 row: a fixed vector of that place, times the factor."""
    seed = hashlib.sha256(struct.pack(">BII", kind, layer, position)).digest()
    return struct.pack(f"<{width}f", *((1.0 + byte / 256.0) * factor for byte in seed[:width]))


@dataclass
class Pool:
    """The pool service, enrolled verifiers, and one job."""

    verifier_count: int = 4
    sections: dict[str, Any] = field(default_factory=dict)
    network: Network = field(init=False)
    harness: Harness = field(init=False)
    job: LeasedJob = field(init=False)
    said: list[Emission] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = make_network(**self.sections)
        self.harness = Harness(VerifierService(self.network.genesis, self.network.models), self.network)
        self.job = LeasedJob(self.network)
        self.keys = {key.participant_id: key for key in map(make_key, self.names)}
        self.keys[self.job.generator.participant_id] = self.job.generator
        self.keys[self.job.user.participant_id] = self.job.user

    @property
    def names(self) -> list[str]:
        """The names of the verifiers."""
        return [f"verifier-{number}" for number in range(1, self.verifier_count + 1)]

    # --- what others say ---------------------------------------------------------------------------------------

    def tell(
        self, topic: Topic[Any], body: WireModel, signer: SigningKey | None = None, action: str = "ack"
    ) -> Decision:
        """Deliver a message and check what becomes of it."""
        decision = self.harness.deliver(topic, body, signer)
        assert decision.action == action, decision
        return decision

    def enroll(self, key: SigningKey, stake_micro: int = STAKE, **changes: Any) -> None:
        """Announce a member and post its stake."""
        body = m.MemberV1(
            generates=True,
            verifies=True,
            model_ids=(self.network.model.model_id,),
            stack=STACK,
            announced_ms=self.harness.clock_ms,
        )
        self.tell(t.MEMBER_ANNOUNCED, body.model_copy(update=changes), key)
        self.stake(key, stake_micro)

    def stake(self, key: SigningKey, stake_micro: int, entry: int = 1) -> None:
        """Post a participant's stake."""
        body = m.StakePostedV1(
            participant=key.participant_id, stake_micro=stake_micro, free_micro=stake_micro, entry=entry
        )
        self.tell(t.STAKE_POSTED, body)

    def commit(self) -> None:
        """Enroll the verifiers, the generator and the user, let a round pass, and record the job's commitment."""
        for key in self.keys.values():
            self.enroll(key)
        self.harness.pass_rounds()
        self.tell(t.JOB_ADMITTED, self.job.admitted())
        self.tell(t.COMMITMENT_RECORDED, self.job.committed())

    def audit(self, corner: m.CornerV1 | None = None) -> m.AuditOpenedV1:
        """Let a round pass and open an audit by it, at full depth unless told."""
        number = self.harness.pass_rounds()
        body = m.AuditOpenedV1(
            job_id=self.job.job_id,
            attempt=1,
            reason="lottery",
            round_number=number,
            randomness=hashlib.sha256(self.network.make_round(number).signature).digest(),
            corner=corner or self.job.corner(),
        )
        self.tell(t.AUDIT_OPENED, body)
        return body

    def start(self, corner: m.CornerV1 | None = None) -> Pool:
        """Commit and audit."""
        self.commit()
        self.audit(corner)
        return self

    def deepen(self) -> None:
        """The user challenges."""
        self.tell(t.AUDIT_DEEPENED, m.AuditDeepenedV1(job_id=self.job.job_id, attempt=1))

    def equivocate(self) -> None:
        """The generator signed two results."""
        body = m.EquivocationV1(
            job_id=self.job.job_id,
            attempt=1,
            generator=self.job.generator.participant_id,
            first_envelope_id=b"\x0a" * 32,
            second_envelope_id=b"\x0b" * 32,
        )
        self.tell(t.EQUIVOCATION, body)

    # --- what the pool says ------------------------------------------------------------------------------------

    def listen(self, topic: Topic[M]) -> list[M]:
        """Return and forget what was said on a topic; all else is kept for later."""
        self.said += self.harness.drain()
        found = [one.body for one in self.said if one.topic is topic]
        self.said = [one for one in self.said if one.topic is not topic]
        return found  # type: ignore[return-value]

    def hear(self, topic: Topic[M]) -> M:
        """Return the one thing that was said on a topic."""
        (body,) = self.listen(topic)
        return body

    @property
    def outcome(self) -> m.OutcomeV1:
        """The outcome that was announced, with nothing else left to be done."""
        body = self.hear(t.OUTCOME_DECIDED)
        open_work: tuple[Topic[Any], ...] = (t.VERIFIER_HOLD_REQUESTED, t.VERIFY_TASK, t.STAGE_SEALED)
        assert not any(self.listen(topic) for topic in open_work)
        return body

    # --- a stage -----------------------------------------------------------------------------------------------

    def hold(self) -> m.HoldRequestV1:
        """The ledger locks what was asked for."""
        request = self.hear(t.VERIFIER_HOLD_REQUESTED)
        self.tell(t.HOLD_PLACED, m.HoldPlacedV1(**request.model_dump()))
        return request

    def refuse_hold(self) -> m.HoldRequestV1:
        """The ledger does not lock it."""
        request = self.hear(t.VERIFIER_HOLD_REQUESTED)
        fields = request.model_dump(exclude={"amount_micro"})
        self.tell(t.HOLD_REFUSED, m.HoldRefusedV1(**fields, code="E204", reason="stake too short"))
        return request

    def make_claim(self, task: m.VerifyTaskV1) -> m.ClaimSealedV1:
        """Return the claim that a task asks for."""
        return m.ClaimSealedV1(
            job_id=task.job_id,
            attempt=task.attempt,
            stage=task.stage,
            retry=task.retry,
            corner=task.corner,
            leaf_count=task.corner.position_max + 1,
            root=hashlib.sha256(b"root %d %d" % (task.stage, task.retry)).digest(),
            stack=STACK,
        )

    def take_task(self) -> tuple[m.VerifyTaskV1, SigningKey]:
        """Return the task that was given out, and the key of the verifier that it was given to."""
        self.said += self.harness.drain()
        (emission,) = [one for one in self.said if one.topic is t.VERIFY_TASK]
        self.said.remove(emission)
        assert isinstance(emission.body, m.VerifyTaskV1)
        return emission.body, next(key for name, key in self.keys.items() if name in emission.subject)

    def seal(self) -> SigningKey:
        """The verifier seals its claim; returns who it is."""
        task, key = self.take_task()
        self.tell(t.CLAIM_SEALED, self.make_claim(task), key)
        return key

    def make_opening(
        self, stage: m.StageSealedV1, party: m.StagePartyV1, positions: tuple[int, ...], factor: float
    ) -> m.OpeningAcceptedV1:
        """Return a party's accepted leaves at those positions that it sealed."""
        schema = self.network.model.schema
        if party.stage:
            schema = schema.restrict(party.corner.layer_max, full_depth=party.corner.full_depth)
        within = [position for position in positions if position < party.leaf_count]
        leaves = [
            encode_leaf(
                schema,
                position,
                {
                    (kind, layer): make_row(kind, layer, position, schema.row_bytes(kind) // 4, factor)
                    for kind, layer in schema.row_keys(scored=position >= self.job.prompt_count - 1)
                },
            )
            for position in within
        ]
        return m.OpeningAcceptedV1(
            job_id=stage.job_id,
            participant=party.participant,
            stage=stage.stage,
            retry=stage.retry,
            part=0,
            part_count=1,
            positions=pack_tokens(within),
            leaves=tuple(leaves),
            opening_id=hashlib.sha256(party.participant.encode()).digest(),
        )

    def open(
        self,
        factors: Mapping[int, float],
        *,
        missing: Collection[int] = (),
        positions: tuple[int, ...] | None = None,
    ) -> m.StageSealedV1:
        """Everybody of the stage opens rows of the factor given by its own stage (0: the generator)."""
        stage = self.hear(t.STAGE_SEALED)
        drawn = positions or (1, stage.corner.position_max)
        opened, silent = [], []
        for party in stage.parties:
            if party.stage in missing:
                silent.append(party.participant)
                continue
            opened.append(party.participant)
            opening = self.make_opening(stage, party, drawn, factors.get(party.stage, HONEST))
            if opening.positions:
                self.tell(t.OPENING_ACCEPTED, opening)
        self.tell(t.OPENINGS_CLOSED, self.make_closing(stage, drawn, tuple(opened), tuple(silent)))
        return stage

    def make_closing(
        self,
        stage: m.StageSealedV1,
        positions: tuple[int, ...],
        opened: tuple[str, ...],
        missing: tuple[str, ...],
    ) -> m.OpeningsClosedV1:
        """Return the end of a stage's openings."""
        return m.OpeningsClosedV1(
            job_id=stage.job_id,
            attempt=stage.attempt,
            stage=stage.stage,
            retry=stage.retry,
            round_number=self.harness.latest_round,
            positions=pack_tokens(positions),
            opened=opened,
            missing=missing,
        )

    def play(self, factors: Mapping[int, float], *, missing: Collection[int] = ()) -> str:
        """Play a whole stage, everybody but the missing opening; returns its verifier."""
        self.hold()
        key = self.seal()
        self.open(factors, missing=missing)
        return key.participant_id


def read_tokens(task: m.VerifyTaskV1) -> tuple[int, ...]:
    """Return a task's token ids."""
    return unpack_tokens(task.tokens)
