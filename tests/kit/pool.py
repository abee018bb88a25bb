"""A verifier pool with one committed job, played stage by stage: the test says at first what each party computed.

Rows are a fixed vector times the party's factor: equal factors match, factors that differ by 2⁻¹² relative are
inconclusive under the kit's profile, others are a mismatch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias, TypeVar

from kit.jobs import Job
from kit.network import STACK, Emission, Harness, Network, make_key, make_network
from pocache.protocol.commitment import compute_token_hash
from pocache.protocol.encoding import RowKind, RowSchema, encode_leaf, pack_tokens, unpack_tokens
from pocache.protocol.keys import SigningKey
from pocache.protocol.merkle import MerkleTree
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
Rows: TypeAlias = float | Callable[[RowKind, int], float]
"""A factor, or one for each kind and layer."""


@dataclass(frozen=True)
class LeasedJob(Job):
    """A job whose result carries its lease, and the root of the rows that its generator computed."""

    rows: Rows = HONEST

    @cached_property
    def leaves(self) -> list[bytes]:
        """The generator's leaves."""
        return make_leaves(self.network.model.schema, self.leaf_count, self.prompt_count, self.rows)

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

    def result(self, root: bytes | None = None) -> bytes:
        """The generator's sealed result."""
        promised = make_tree(self.leaves).root() if root is None else root
        body = self.network.open(super().result(promised), m.ResultV1)
        return self.network.seal(self.generator, body.model_copy(update={"lease": self.lease}))


def make_row(kind: RowKind, layer: int, position: int, width: int, factor: float) -> bytes:
    """Return a float32 row: a fixed vector of that place, times the factor; of scores with the gap of a best token."""
    seed = hashlib.sha256(struct.pack(">BII", kind, layer, position)).digest()
    values = [(1.0 + byte / 256.0) * factor for byte in seed[:width]]
    if kind is RowKind.SCORES:
        values[-1] = 0.0
    return struct.pack(f"<{width}f", *values)


def make_leaves(schema: RowSchema, leaf_count: int, prompt_count: int, rows: Rows) -> list[bytes]:
    """Return encoded leaves of :func:`make_row` rows."""

    def factor(kind: RowKind, layer: int) -> float:
        return rows(kind, layer) if callable(rows) else rows

    return [
        encode_leaf(
            schema,
            position,
            {
                (kind, layer): make_row(
                    kind, layer, position, schema.row_bytes(kind) // 4, factor(kind, layer)
                )
                for kind, layer in schema.row_keys(scored=position >= prompt_count - 1)
            },
        )
        for position in range(leaf_count)
    ]


def make_tree(leaves: list[bytes]) -> MerkleTree:
    """Return the tree over leaves."""
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


@dataclass
class Pool:
    """The pool service, enrolled verifiers, and one job.

    ``rows`` says what each party computes, by its stage (0: the generator); honest rows unless told.
    """

    verifier_count: int = 4
    sections: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, Rows] = field(default_factory=dict)
    network: Network = field(init=False)
    harness: Harness = field(init=False)
    job: LeasedJob = field(init=False)
    said: list[Emission] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = make_network(**self.sections)
        self.harness = Harness(VerifierService(self.network.genesis, self.network.models), self.network)
        self.job = LeasedJob(self.network, rows=self.rows.get(0, HONEST))
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

    def close_window(self) -> None:
        """Let rounds pass until the one after the window's."""
        self.harness.pass_rounds_to(self.job.committed().window_close_round + 1)

    def deepen(self) -> None:
        """The user challenges."""
        self.tell(t.AUDIT_DEEPENED, self.make_deepening())

    def make_deepening(self, **changes: Any) -> m.AuditDeepenedV1:
        """Return the store's word on the user's challenge."""
        fields = {"job_id": self.job.job_id, "attempt": 1, "challenge": self.make_challenge()}
        return m.AuditDeepenedV1(**{**fields, **changes})

    def make_challenge(self, signer: SigningKey | None = None, **changes: Any) -> bytes:
        """Return the user's sealed challenge; ``changes`` replaces its fields, ``signer`` the user."""
        body = m.ChallengeRequestV1(**{"job_id": self.job.job_id, "attempt": 1, **changes})
        return self.network.seal(signer or self.job.user, body)

    def equivocate(self) -> None:
        """The generator signed two results."""
        self.tell(t.EVIDENCE, self.make_evidence())

    def make_evidence(self, signer: SigningKey | None = None, **changes: Any) -> m.EvidenceV1:
        """Return the store's word on a second result, by default of another root.

        ``changes`` replaces that result's fields, ``signer`` its generator.
        """
        result = self.network.open(self.job.result(), m.ResultV1)
        second = result.model_copy(update=changes or {"root": b"\x0b" * 32})
        envelope = self.network.seal(signer or self.job.generator, second)
        return m.EvidenceV1(job_id=self.job.job_id, attempt=1, result=envelope)

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
        open_work: tuple[Topic[Any], ...] = (
            t.STAGE_BOUND,
            t.VERIFIER_HOLD_REQUESTED,
            t.VERIFY_TASK,
            t.STAGE_SEALED,
        )
        assert not any(self.listen(topic) for topic in open_work)
        return body

    # --- a stage -----------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Let rounds pass until the one that a later stage waits for, if one does."""
        for bound in self.listen(t.STAGE_BOUND):
            self.harness.pass_rounds_to(bound.round_number)

    def hold(self) -> m.HoldRequestV1:
        """The ledger locks what was asked for."""
        self.draw()
        request = self.hear(t.VERIFIER_HOLD_REQUESTED)
        self.tell(t.HOLD_PLACED, m.HoldPlacedV1(**request.model_dump()))
        return request

    def refuse_hold(self) -> m.HoldRequestV1:
        """The ledger does not lock it."""
        self.draw()
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
            root=make_tree(self.get_leaves(task.stage, task.corner)).root(),
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

    def get_leaves(self, stage: int, corner: m.CornerV1) -> list[bytes]:
        """Return what the party of a stage computed within a corner; the generator's corner is the whole job."""
        if stage == 0:
            return self.job.leaves
        schema = self.network.model.schema.restrict(corner.layer_max, full_depth=corner.full_depth)
        rows = self.rows.get(stage, HONEST)
        return make_leaves(schema, corner.position_max + 1, self.job.prompt_count, rows)

    def make_opening(
        self, stage: m.StageSealedV1, party: m.StagePartyV1, positions: tuple[int, ...], **changes: Any
    ) -> m.OpeningV1:
        """Return a party's opening at those positions that it sealed; ``changes`` replaces its fields."""
        leaves = self.get_leaves(party.stage, party.corner)
        within = [position for position in positions if position < party.leaf_count]
        fields = {
            "job_id": stage.job_id,
            "attempt": stage.attempt,
            "stage": stage.stage,
            "retry": stage.retry,
            "part": 0,
            "part_count": 1,
            "positions": pack_tokens(within),
            "leaves": tuple(leaves[position] for position in within),
            "proof": b"".join(make_tree(leaves).multiproof(within)),
        }
        return m.OpeningV1(**{**fields, **changes})

    def make_accepted(
        self, opening: m.OpeningV1, party: m.StagePartyV1, signer: SigningKey | None = None
    ) -> m.OpeningAcceptedV1:
        """Return the store's word on a part that the party signed, or another ``signer``."""
        return m.OpeningAcceptedV1(
            job_id=opening.job_id,
            attempt=opening.attempt,
            stage=opening.stage,
            retry=opening.retry,
            participant=party.participant,
            opening=self.network.seal(signer or self.get_key(party), opening),
        )

    def get_key(self, party: m.StagePartyV1) -> SigningKey:
        """Return a party's key."""
        return next(key for name, key in self.keys.items() if name == party.participant)

    def accept(
        self, stage: m.StageSealedV1, party: m.StagePartyV1, positions: tuple[int, ...], **changes: Any
    ) -> None:
        """The store accepts a part of a party's opening."""
        opening = self.make_opening(stage, party, positions, **changes)
        self.tell(t.OPENING_ACCEPTED, self.make_accepted(opening, party))

    def open(
        self, *, missing: Collection[int] = (), positions: tuple[int, ...] | None = None
    ) -> m.StageSealedV1:
        """Everybody of the stage opens what it committed to, but those of the missing stages."""
        stage = self.hear(t.STAGE_SEALED)
        drawn = positions or (1, stage.corner.position_max)
        opened, silent = [], []
        for party in stage.parties:
            if party.stage in missing:
                silent.append(party.participant)
                continue
            opened.append(party.participant)
            if min(drawn) < party.leaf_count:
                self.accept(stage, party, drawn)
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

    def play(self, *, missing: Collection[int] = ()) -> str:
        """Play a whole stage, everybody but the missing opening; returns its verifier."""
        self.hold()
        key = self.seal()
        self.open(missing=missing)
        return key.participant_id


def read_tokens(task: m.VerifyTaskV1) -> tuple[int, ...]:
    """Return a task's token ids."""
    return unpack_tokens(task.tokens)
