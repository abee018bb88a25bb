"""Every message of the network: what it says, who may say it, and what it asks for.

Models are frozen, strict and closed; integers only, so that nothing is ever rounded on the way. Token lists and
position lists travel as packed bytes. The envelope around a message carries its ``kind`` and the signature
(``pocache.wire.envelope``); where it travels is in ``pocache.wire.topics``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pocache.protocol import limits
from pocache.wire.model import WireModel

Bytes32 = Annotated[bytes, Field(min_length=32, max_length=32)]
Salt = Annotated[bytes, Field(min_length=16, max_length=16)]
Participant = Annotated[str, Field(pattern=r"^U[A-Z2-7]{55}$")]
Micro = Annotated[int, Field(ge=0, le=limits.MICRO_MAX)]
PositiveMicro = Annotated[int, Field(ge=1, le=limits.MICRO_MAX)]
TimeMs = Annotated[int, Field(ge=0, le=limits.TIME_MS_MAX)]
RoundNumber = Annotated[int, Field(ge=1, le=limits.ROUND_MAX)]
Attempt = Annotated[int, Field(ge=1, le=limits.ATTEMPT_COUNT_MAX)]
Stage = Annotated[int, Field(ge=1, le=limits.SEAT_COUNT_MAX)]
"""A stage; where one verifier of several is meant, its seat (docs/protocol.md 8)."""
Retry = Annotated[int, Field(ge=0, le=1)]
LeafCount = Annotated[int, Field(ge=1, le=limits.LEAF_COUNT_MAX)]
Count = Annotated[int, Field(ge=0, le=limits.TIME_MS_MAX)]
TestSum = Annotated[int, Field(ge=-(2**62), le=2**62)]
Publication = Annotated[int, Field(ge=1, le=2**31)]
"""Which offer of an attempt this belongs to: a repeated offer is another message, not a repetition of the first."""
Text = Annotated[str, Field(max_length=limits.TEXT_BYTES_MAX)]
Code = Annotated[str, Field(max_length=64)]
PromptTokens = Annotated[bytes, Field(min_length=4, max_length=limits.PROMPT_TOKENS_MAX * limits.TOKEN_BYTES)]
OutputTokens = Annotated[bytes, Field(max_length=limits.OUTPUT_TOKENS_MAX * limits.TOKEN_BYTES)]
AllTokens = Annotated[bytes, Field(min_length=4, max_length=limits.LEAF_COUNT_MAX * limits.TOKEN_BYTES)]
PackedPositions = Annotated[bytes, Field(min_length=4, max_length=limits.SAMPLE_COUNT_MAX * 4)]
NoteBytes = Annotated[bytes, Field(max_length=limits.NOTE_BYTES_MAX)]
EnvelopeBytes = Annotated[bytes, Field(max_length=limits.CARRIED_BYTES_MAX)]


class SamplingV1(WireModel):
    """How tokens are chosen; temperature 0 is greedy, ``top_k`` 0 and ``top_p_micro`` 1,000,000 are off."""

    kind: ClassVar[str] = "sampling.v1"
    temperature_micro: Annotated[int, Field(ge=0, le=limits.TEMPERATURE_MICRO_MAX)] = 0
    top_k: Annotated[int, Field(ge=0, le=limits.TOP_K_MAX)] = 0
    top_p_micro: Annotated[int, Field(ge=1, le=limits.TOP_P_MICRO_ONE)] = limits.TOP_P_MICRO_ONE


class CornerV1(WireModel):
    """The part of the prefill that is looked at: layers 0…layer_max of positions 0…position_max, inclusive."""

    kind: ClassVar[str] = "corner.v1"
    layer_max: Annotated[int, Field(ge=0, lt=limits.LAYER_COUNT_MAX)]
    position_max: Annotated[int, Field(ge=0, lt=limits.LEAF_COUNT_MAX)]
    full_depth: bool


# --- the user ---------------------------------------------------------------------------------------------


class SubmissionV1(WireModel):
    """A user's request. Its envelope id is the job id. Token ids come from the model's own tokenizer."""

    kind: ClassVar[str] = "submission.v1"
    model_id: Bytes32
    prompt: Annotated[bytes, Field(max_length=limits.PROMPT_TOKENS_MAX * limits.TOKEN_BYTES)]
    token_count_max: Annotated[int, Field(ge=1, le=limits.OUTPUT_TOKENS_MAX)]
    sampling: SamplingV1
    seed: Bytes32 | None = None
    eos_stop: bool = True
    salt: Salt
    created_ms: TimeMs
    expires_ms: TimeMs


class ChallengeRequestV1(WireModel):
    """The user asks, inside the window, that the recorded commitment of its job be audited at full depth."""

    kind: ClassVar[str] = "challenge-request.v1"
    job_id: Bytes32
    attempt: Attempt


class CancelRequestV1(WireModel):
    """The user wants no more of its job: whoever generates it may end its output here."""

    kind: ClassVar[str] = "cancel-request.v1"
    job_id: Bytes32


# --- router -----------------------------------------------------------------------------------------------


class JobAdmittedV1(WireModel):
    """The router took a job: its submission, and the costs for ``token_count_max`` at full depth."""

    kind: ClassVar[str] = "job-admitted.v1"
    job_id: Bytes32
    user: Participant
    submission: EnvelopeBytes
    generation_max_micro: Micro
    verification_max_micro: Micro


class GenerateTaskV1(WireModel):
    """Work for any worker of the model: take it by asking for a lease."""

    kind: ClassVar[str] = "generate-task.v1"
    job_id: Bytes32
    attempt: Attempt
    model_id: Bytes32
    publication: Publication = 1


class LeaseRequestV1(WireModel):
    """A worker asks to generate one attempt of a job; granting it locks the worker's stake."""

    kind: ClassVar[str] = "lease-request.v1"
    job_id: Bytes32
    attempt: Attempt
    requested_ms: TimeMs = 0
    """When it was asked for: asking again for an attempt that was offered again is another statement."""
    publication: Publication = 1


class LeaseV1(WireModel):
    """The right and duty of one worker to generate one attempt, with all that its commitment must bind."""

    kind: ClassVar[str] = "lease.v1"
    job_id: Bytes32
    attempt: Attempt
    generator: Participant
    user: Participant
    model_id: Bytes32
    prompt_hash: Bytes32
    prompt_count: Annotated[int, Field(ge=1, le=limits.PROMPT_TOKENS_MAX)]
    token_count_max: Annotated[int, Field(ge=1, le=limits.OUTPUT_TOKENS_MAX)]
    sampling: SamplingV1
    eos_stop: bool
    seed: Bytes32
    salt: Salt
    schema_digest: Bytes32
    profile_set: Bytes32
    granted_ms: TimeMs
    deadline_ms: TimeMs


class LeaseGrantedV1(WireModel):
    """The lease (a router-signed :class:`LeaseV1` envelope, shown to others later) with the job's submission."""

    kind: ClassVar[str] = "lease-granted.v1"
    job_id: Bytes32
    attempt: Attempt
    lease: EnvelopeBytes
    submission: EnvelopeBytes


class LeaseDeniedV1(WireModel):
    """Why a worker does not get an attempt; it drops the task."""

    kind: ClassVar[str] = "lease-denied.v1"
    job_id: Bytes32
    attempt: Attempt
    code: Code
    reason: Text
    publication: Publication = 1
    requested_ms: TimeMs = 0
    """That of the request which is answered: each request gets an answer of its own."""


class LeaseCancelledV1(WireModel):
    """The user cancelled a job that is being generated: its holder ends the output and commits to it."""

    kind: ClassVar[str] = "lease-cancelled.v1"
    job_id: Bytes32
    attempt: Attempt
    cancellation: EnvelopeBytes
    """The user's :class:`CancelRequestV1` envelope; the result carries it."""


class LeaseLapsedV1(WireModel):
    """The router saw a lease's deadline pass; the commitment store closes the attempt unless it has it."""

    kind: ClassVar[str] = "lease-lapsed.v1"
    job_id: Bytes32
    attempt: Attempt
    generator: Participant


class AttemptChargedV1(WireModel):
    """An attempt ended without a commitment: its worker pays the lease fee, the rest of its stake is released."""

    kind: ClassVar[str] = "attempt-charged.v1"
    job_id: Bytes32
    attempt: Attempt
    generator: Participant


class JobAbandonedV1(WireModel):
    """The job will not be done: everything that is held for it is returned."""

    kind: ClassVar[str] = "job-abandoned.v1"
    job_id: Bytes32
    reason: Text


class EpochV1(WireModel):
    """The key that sampling seeds of an epoch derive from: its hash before the first seed, itself after the last."""

    kind: ClassVar[str] = "epoch.v1"
    number: Annotated[int, Field(ge=1, le=limits.ROUND_MAX)]
    key_hash: Bytes32
    previous_key: Bytes32 | None
    """The key of the epoch before, which this message ends."""


class JobEventV1(WireModel):
    """What the user of a job is told, in order: its phase, and in words what happened."""

    kind: ClassVar[str] = "job-event.v1"
    job_id: Bytes32
    phase: Code
    attempt: Annotated[int, Field(ge=0, le=limits.ATTEMPT_COUNT_MAX)]
    code: Code
    detail: Text
    at_ms: TimeMs
    result: EnvelopeBytes | None = None
    """The generator's :class:`ResultV1` envelope, once its commitment is recorded."""
    generator: Participant | None = None
    """Who holds the lease, while somebody does: chunks of anybody else are not this job's."""


# --- worker as generator ------------------------------------------------------------------------------------


class TokenChunkV1(WireModel):
    """Tokens as they are generated; the running hash over all tokens so far makes two streams comparable."""

    kind: ClassVar[str] = "token-chunk.v1"
    job_id: Bytes32
    attempt: Attempt
    first_index: Annotated[int, Field(ge=0, le=limits.OUTPUT_TOKENS_MAX)]
    tokens: OutputTokens
    running_hash: Bytes32
    is_last: bool


class ResultV1(WireModel):
    """The generator's output and commitment (docs/protocol.md 4), with the lease that it fulfils."""

    kind: ClassVar[str] = "result.v1"
    job_id: Bytes32
    attempt: Attempt
    lease: EnvelopeBytes
    output: Annotated[bytes, Field(min_length=4, max_length=limits.OUTPUT_TOKENS_MAX * limits.TOKEN_BYTES)]
    finish_reason: Literal["stop", "length", "cancelled"]
    leaf_count: LeafCount
    root: Bytes32
    binding: Bytes32
    stack: Text
    latest_round: Annotated[int, Field(ge=0, le=limits.ROUND_MAX)]
    cancellation: EnvelopeBytes | None = None
    """The user's :class:`CancelRequestV1` envelope where that is why the output ends: nothing else excuses it."""


class OpeningV1(WireModel):
    """Leaves of a committed or sealed root, with one multiproof for all of this part's positions.

    Parts cover disjoint positions in ascending order; together they are exactly what the challenge names.
    """

    kind: ClassVar[str] = "opening.v1"
    job_id: Bytes32
    attempt: Attempt
    stage: Stage
    retry: Retry
    part: Annotated[int, Field(ge=0, lt=limits.OPENING_PARTS_MAX)]
    part_count: Annotated[int, Field(ge=1, le=limits.OPENING_PARTS_MAX)]
    positions: PackedPositions
    leaves: Annotated[tuple[bytes, ...], Field(min_length=1, max_length=limits.SAMPLE_COUNT_MAX)]
    proof: Annotated[bytes, Field(max_length=32 * limits.MULTIPROOF_DIGESTS_MAX)]
    """The multiproof's digests, 32 bytes each, in the canonical order of ``pocache.protocol.merkle``."""


class MemberV1(WireModel):
    """A worker announces what it can do; stake, not this message, gives it a chance to be drawn."""

    kind: ClassVar[str] = "member.v1"
    generates: bool
    verifies: bool
    model_ids: Annotated[tuple[Bytes32, ...], Field(max_length=limits.MODELS_PER_MEMBER_MAX)]
    stack: Text
    announced_ms: TimeMs


# --- commitments --------------------------------------------------------------------------------------------


class CommitmentRecordedV1(WireModel):
    """The one commitment of an attempt: where it stands in the log, and the round that decides on its audit."""

    kind: ClassVar[str] = "commitment-recorded.v1"
    job_id: Bytes32
    attempt: Attempt
    generator: Participant
    result: EnvelopeBytes
    log_index: Count
    received_ms: TimeMs
    recorded_ms: TimeMs
    audit_round: RoundNumber
    window_close_round: RoundNumber


class CheckpointV1(WireModel):
    """The size and root of the commitment log at a time."""

    kind: ClassVar[str] = "checkpoint.v1"
    size: Count
    root: Bytes32
    at_ms: TimeMs
    note: NoteBytes
    """The same size and root as a signed note, for tools that read transparency logs."""


class AttemptClosedV1(WireModel):
    """No commitment came in time: none will be accepted for this attempt any more."""

    kind: ClassVar[str] = "attempt-closed.v1"
    job_id: Bytes32
    attempt: Attempt


class AuditOpenedV1(WireModel):
    """A recorded commitment is to be verified: why, by the randomness of which round, and which corner of it."""

    kind: ClassVar[str] = "audit-opened.v1"
    job_id: Bytes32
    attempt: Attempt
    reason: Literal["lottery", "challenge"]
    round_number: RoundNumber
    randomness: Bytes32
    corner: CornerV1
    challenge: EnvelopeBytes | None = None
    """The user's :class:`ChallengeRequestV1` envelope, where the reason is a challenge."""


class CommitmentReboundV1(WireModel):
    """The audit round came before the commitment was known to be in the record: another round decides on its audit."""

    kind: ClassVar[str] = "commitment-rebound.v1"
    job_id: Bytes32
    attempt: Attempt
    missed_round: RoundNumber
    rebound_ms: TimeMs
    audit_round: RoundNumber
    window_close_round: RoundNumber


class AuditDeepenedV1(WireModel):
    """The user challenged while an audit was open: it goes on at full depth."""

    kind: ClassVar[str] = "audit-deepened.v1"
    job_id: Bytes32
    attempt: Attempt
    challenge: EnvelopeBytes
    """The user's :class:`ChallengeRequestV1` envelope."""


class WindowClosedV1(WireModel):
    """The window closed, the lottery passed the job by, nobody challenged: it may be settled."""

    kind: ClassVar[str] = "window-closed.v1"
    job_id: Bytes32
    attempt: Attempt


class EquivocationV1(WireModel):
    """Two results of one attempt, both signed by its generator, that commit to different things."""

    kind: ClassVar[str] = "equivocation.v1"
    job_id: Bytes32
    attempt: Attempt
    generator: Participant
    first_envelope_id: Bytes32
    second_envelope_id: Bytes32


class EvidenceV1(WireModel):
    """The second of two contradicting results, whole; the first is in the job's ``commitment-recorded``."""

    kind: ClassVar[str] = "evidence.v1"
    job_id: Bytes32
    attempt: Attempt
    result: EnvelopeBytes


class ChallengeIssuedV1(WireModel):
    """Open these positions of the root that you committed or sealed."""

    kind: ClassVar[str] = "challenge-issued.v1"
    job_id: Bytes32
    attempt: Attempt
    stage: Stage
    retry: Retry
    round_number: RoundNumber
    positions: PackedPositions
    root: Bytes32
    leaf_count: LeafCount


class OpeningAcceptedV1(WireModel):
    """An opening whose multiproof leads to the committed root (one message per part), as its party signed it."""

    kind: ClassVar[str] = "opening-accepted.v1"
    job_id: Bytes32
    attempt: Attempt
    stage: Stage
    retry: Retry
    participant: Participant
    opening: EnvelopeBytes
    """The party's :class:`OpeningV1` envelope: positions, leaves and multiproof."""


class OpeningsClosedV1(WireModel):
    """A stage's openings are in, or their deadline has passed."""

    kind: ClassVar[str] = "openings-closed.v1"
    job_id: Bytes32
    attempt: Attempt
    stage: Stage
    retry: Retry
    round_number: RoundNumber
    positions: PackedPositions
    opened: Annotated[tuple[Participant, ...], Field(max_length=limits.SEAT_COUNT_MAX + 1)]
    missing: Annotated[tuple[Participant, ...], Field(max_length=limits.SEAT_COUNT_MAX + 1)]


class CheckpointCosignedV1(WireModel):
    """A witness has seen the log only grow up to this checkpoint: the log's note with the witness's line."""

    kind: ClassVar[str] = "checkpoint-cosigned.v1"
    size: Annotated[int, Field(ge=1, le=limits.TIME_MS_MAX)]
    note: NoteBytes


class ConsistencyQueryV1(WireModel):
    """Ask for a checkpoint of the log and for the proof that it only grew since another size."""

    kind: ClassVar[str] = "consistency-query.v1"
    old_size: Count
    """0: no proof is asked for."""
    new_size: Count = 0
    """0: of the latest checkpoint."""


class ConsistencyReplyV1(WireModel):
    """The log's signed note of ``new_size``, and RFC 6962's proof that the log of ``old_size`` is a prefix of it."""

    kind: ClassVar[str] = "consistency-reply.v1"
    old_size: Count
    new_size: Annotated[int, Field(ge=1, le=limits.TIME_MS_MAX)]
    note: NoteBytes
    proof: Annotated[tuple[Bytes32, ...], Field(max_length=128)]


class ReceiptQueryV1(WireModel):
    """Ask for one part of a job's receipt; answered only to the job's user or the operator."""

    kind: ClassVar[str] = "receipt-query.v1"
    job_id: Bytes32
    part: Annotated[int, Field(ge=0, lt=limits.RECEIPT_PARTS_MAX)] = 0


class ReceiptPartV1(WireModel):
    """One part of a receipt in its binary form; the hash is of the whole, so that parts of two are never joined."""

    kind: ClassVar[str] = "receipt-part.v1"
    job_id: Bytes32
    part: Annotated[int, Field(ge=0, lt=limits.RECEIPT_PARTS_MAX)]
    part_count: Annotated[int, Field(ge=1, le=limits.RECEIPT_PARTS_MAX)]
    data: Annotated[bytes, Field(min_length=1, max_length=limits.RECEIPT_PART_BYTES_MAX)]
    receipt_hash: Bytes32


# --- verifier pool ------------------------------------------------------------------------------------------


class SnapshotMemberV1(WireModel):
    """One verifier's chance in sortition."""

    kind: ClassVar[str] = "snapshot-member.v1"
    participant: Participant
    stake_micro: PositiveMicro
    model_ids: Annotated[tuple[Bytes32, ...], Field(max_length=limits.MODELS_PER_MEMBER_MAX)]


class OwnerV1(WireModel):
    """The operator attests whose a participant is: nobody verifies for its owner, nor for another of its owner's."""

    kind: ClassVar[str] = "owner.v1"
    participant: Participant
    owner: Participant
    """The participant itself takes back what was said before."""
    declared_ms: TimeMs


class OwnedV1(WireModel):
    """Whose a participant is."""

    kind: ClassVar[str] = "owned.v1"
    participant: Participant
    owner: Participant


class SnapshotV1(WireModel):
    """The stakes that sortition draws from in every round that begins after ``taken_ms``, until the next one."""

    kind: ClassVar[str] = "snapshot.v1"
    number: Count
    members: Annotated[tuple[SnapshotMemberV1, ...], Field(max_length=limits.MEMBERS_MAX)]
    owners: Annotated[tuple[OwnedV1, ...], Field(max_length=limits.OWNERS_MAX)]
    """Ascending by participant: everybody, verifier or not, who is attested to be another's."""
    taken_ms: TimeMs


class StageBoundV1(WireModel):
    """A stage ended without a verdict: the round to come that draws the next one's verifiers."""

    kind: ClassVar[str] = "stage-bound.v1"
    job_id: Bytes32
    attempt: Attempt
    stage: Stage
    ended_ms: TimeMs
    """When the stage before ended."""
    round_number: RoundNumber


class VerifierDrawnV1(WireModel):
    """Whom a round drew for a stage: who stands at this place of the order that the snapshot and the round give."""

    kind: ClassVar[str] = "verifier-drawn.v1"
    job_id: Bytes32
    attempt: Attempt
    stage: Stage
    round_number: RoundNumber
    snapshot: Count
    """The snapshot's number."""
    place: Annotated[int, Field(ge=0, lt=limits.MEMBERS_MAX)]
    """0 is the first; who comes later is drawn when the stakes of all before could not be locked."""
    participant: Participant


class VerifyTaskV1(WireModel):
    """Re-run the known tokens up to the corner and seal what you computed. Nothing of the generator's is in it."""

    kind: ClassVar[str] = "verify-task.v1"
    job_id: Bytes32
    attempt: Attempt
    stage: Stage
    """As the verifier is told of it: a recheck's is that of an audit."""
    retry: Retry
    model_id: Bytes32
    tokens: AllTokens
    prompt_count: Annotated[int, Field(ge=1, le=limits.PROMPT_TOKENS_MAX)]
    corner: CornerV1
    sampling: SamplingV1
    seed: Bytes32


class ClaimSealedV1(WireModel):
    """A verifier's root over its own rows in the corner, sealed before it knows which positions will be compared."""

    kind: ClassVar[str] = "claim-sealed.v1"
    job_id: Bytes32
    attempt: Attempt
    stage: Stage
    retry: Retry
    corner: CornerV1
    leaf_count: LeafCount
    root: Bytes32
    stack: Text


class StagePartyV1(WireModel):
    """One who must open in a stage: the generator (stage 0) or the verifier of a stage."""

    kind: ClassVar[str] = "stage-party.v1"
    participant: Participant
    stage: Annotated[int, Field(ge=0, le=limits.SEAT_COUNT_MAX)]
    """The number of its seat."""
    root: Bytes32
    leaf_count: LeafCount
    corner: CornerV1
    """What its leaves cover. A generator's cover everything."""
    claim: EnvelopeBytes | None = None
    """A verifier's :class:`ClaimSealedV1` envelope; the generator's promise is in ``commitment-recorded``."""


class StageSealedV1(WireModel):
    """All claims of a stage are sealed: draw the positions and have everybody open them."""

    kind: ClassVar[str] = "stage-sealed.v1"
    job_id: Bytes32
    attempt: Attempt
    stage: Stage
    retry: Retry
    corner: CornerV1
    parties: Annotated[tuple[StagePartyV1, ...], Field(min_length=2, max_length=limits.SEAT_COUNT_MAX + 1)]
    sample_count: Annotated[int, Field(ge=1, le=limits.SAMPLE_COUNT_MAX)]
    sealed_ms: TimeMs


class VerifierStandingV1(WireModel):
    """What became of one drawn verifier."""

    kind: ClassVar[str] = "verifier-standing.v1"
    participant: Participant
    stage: Stage
    """The number of its seat."""
    opened: bool
    upheld: bool
    """The outcome bears out its claim; never under ``unified-pool``, which asks for no such thing."""


class TokenCheckV1(WireModel):
    """What the score rows say about the tokens (docs/protocol.md 7.7); margins in 1/65536, the sum in clipped tokens."""

    kind: ClassVar[str] = "token-check.v1"
    token_count: Count
    mismatch_count: Count
    mismatch_match_max: Count
    mismatch_mismatch_min: Count
    margin_sum_q16: Count
    margin_sum_match_max_q16: Count
    margin_sum_mismatch_min_q16: Count
    margin_peak_q16: Count
    margin_peak_match_max_q16: Count
    margin_peak_mismatch_min_q16: Count


class ComparisonV1(WireModel):
    """The numbers of one comparison: base-2 logarithms of distances, in 1/65536, relative to honest centres."""

    kind: ClassVar[str] = "comparison.v1"
    stage: Stage
    retry: Retry
    left: Participant
    right: Participant
    verdict: Literal["match", "mismatch", "inconclusive"]
    mean_q16: int
    peak_q16: int
    mean_match_max_q16: int
    peak_match_max_q16: int
    mean_mismatch_min_q16: int
    peak_mismatch_min_q16: int
    distance_peak_q16: int
    """Largest raw log2 relative distance among the rows, without centring: what a person reads."""
    row_count: Count
    position_count: Count = 0
    outlier_count: Count = 0
    """Positions above the cut of a model with routed experts."""
    is_too_exact: bool = False
    """A signal, never part of the verdict."""
    grade: Annotated[int, Field(ge=0, le=3)] = 0
    """How rare the numbers are among honest jobs."""
    tokens: TokenCheckV1 | None = None
    """None at partial depth, and between verifiers."""


OutcomeCase = Literal[
    "agree",
    "confirm_generator",
    "confirm_prior",
    "acquittal",
    "conviction",
    "void",
    "no_opening",
    "equivocation",
]


class OutcomeV1(WireModel):
    """How a dispute ended: a pure function of the record (docs/protocol.md 8) that anyone can run again."""

    kind: ClassVar[str] = "outcome.v1"
    job_id: Bytes32
    attempt: Attempt
    case: OutcomeCase
    stage: Annotated[int, Field(ge=0, le=limits.SEAT_COUNT_MAX)]
    corner: CornerV1
    verifiers: Annotated[tuple[VerifierStandingV1, ...], Field(max_length=limits.SEAT_COUNT_MAX)]
    deciding: Participant | None
    prior: Participant | None
    is_challenged: bool
    """The user asked for the audit, so that it pays for it; under ``unified-pool`` that makes no difference."""
    claims: Annotated[tuple[EnvelopeBytes, ...], Field(max_length=limits.SEAT_COUNT_MAX)]
    """:class:`ClaimSealedV1` envelopes that no ``stage-sealed`` shows: a committee's that was not enough, by seats."""
    comparisons: Annotated[tuple[ComparisonV1, ...], Field(max_length=limits.COMPARISONS_MAX)]
    reason: Text


class EjectionV1(WireModel):
    """A worker's audited jobs with a model add up against it: it gets no further lease of it (docs/protocol.md 7.8)."""

    kind: ClassVar[str] = "ejection.v1"
    participant: Participant
    model_id: Bytes32
    test: Literal["grades", "tokens"]
    """The test that crossed; where both did, the one over grades."""
    job_id: Bytes32
    """The job whose outcome crossed."""
    outcome: Bytes32
    """The envelope of that outcome."""
    job_count: Annotated[int, Field(ge=1, le=limits.TIME_MS_MAX)]
    """Audited jobs with the model up to that one, from the record's beginning: what it is computed from."""
    grade_sum_q16: TestSum
    token_sum_q16: TestSum


# --- ledger -------------------------------------------------------------------------------------------------


class DepositV1(WireModel):
    """The operator credits money that arrived from outside, once per reference."""

    kind: ClassVar[str] = "deposit.v1"
    participant: Participant
    bucket: Literal["available", "stake"]
    amount_micro: PositiveMicro
    reference: Annotated[str, Field(min_length=1, max_length=128)]


class WithdrawalRequestV1(WireModel):
    """A participant asks for its money: what is available at once, stake once it is unbonded. Once per nonce."""

    kind: ClassVar[str] = "withdrawal-request.v1"
    bucket: Literal["available", "stake"]
    amount_micro: PositiveMicro
    nonce: Salt


class WithdrawalAcceptedV1(WireModel):
    """The money has left its account: it is paid out from this tick of the ledger on."""

    kind: ClassVar[str] = "withdrawal-accepted.v1"
    participant: Participant
    request: EnvelopeBytes
    """The participant's :class:`WithdrawalRequestV1` envelope."""
    matures_tick: Count
    entry: Count


class WithdrawalPaidV1(WireModel):
    """Money has left the network: whoever runs it owes the participant this much outside."""

    kind: ClassVar[str] = "withdrawal-paid.v1"
    participant: Participant
    bucket: Literal["available", "stake"]
    nonce: Salt
    amount_micro: Micro
    slashed_micro: Micro
    """What was asked for and lost while it unbonded."""
    entry: Count


class JournalCheckpointV1(WireModel):
    """The hash of the journal's entry of this number: whoever keeps it can tell when what led to it is rewritten."""

    kind: ClassVar[str] = "journal-checkpoint.v1"
    entries: Annotated[int, Field(ge=1, le=limits.TIME_MS_MAX)]
    head: Bytes32
    at_ms: TimeMs


class HoldRequestV1(WireModel):
    """Lock a party's money for a job: a user's deposit, a generator's stake, a verifier's stake."""

    kind: ClassVar[str] = "hold-request.v1"
    purpose: Literal["escrow", "generator_stake", "verifier_stake"]
    job_id: Bytes32
    attempt: Attempt
    stage: Annotated[int, Field(ge=0, le=limits.SEAT_COUNT_MAX)] = 0
    party: Participant
    amount_micro: Micro
    publication: Publication = 1


class HoldPlacedV1(WireModel):
    """The money is locked in the job's pool."""

    kind: ClassVar[str] = "hold-placed.v1"
    purpose: Literal["escrow", "generator_stake", "verifier_stake"]
    job_id: Bytes32
    attempt: Attempt
    stage: Annotated[int, Field(ge=0, le=limits.SEAT_COUNT_MAX)]
    party: Participant
    amount_micro: Micro
    publication: Publication = 1


class HoldRefusedV1(WireModel):
    """The money is not locked, and why."""

    kind: ClassVar[str] = "hold-refused.v1"
    purpose: Literal["escrow", "generator_stake", "verifier_stake"]
    job_id: Bytes32
    attempt: Attempt
    stage: Annotated[int, Field(ge=0, le=limits.SEAT_COUNT_MAX)]
    party: Participant
    code: Code
    reason: Text
    publication: Publication = 1


class StakePostedV1(WireModel):
    """A participant's whole stake after a change, and how much of it is free to be locked."""

    kind: ClassVar[str] = "stake-posted.v1"
    participant: Participant
    stake_micro: Micro
    free_micro: Micro
    entry: Count = 0
    """The ledger's journal entry that changed it: the highest is the latest, and no two postings are alike."""


class BondTakenV1(WireModel):
    """What an ejection has cost so far: said at the ejection, and again whenever more of the bond is taken or it is over."""

    kind: ClassVar[str] = "bond-taken.v1"
    participant: Participant
    model_id: Bytes32
    ejection: Bytes32
    """The envelope of the ejection."""
    stake_micro: Micro
    """The whole stake at the ejection: free, locked and unbonding."""
    bond_micro: Micro
    """What is due: the network's share of that."""
    taken_micro: Micro
    """What was taken now, to the treasury."""
    open_micro: Micro
    """What is still due from stake that is locked in jobs."""
    entry: Count
    """The journal entry that took it; 0 where nothing was taken."""


class PayoutLineV1(WireModel):
    """What one account received from the pool of a job."""

    kind: ClassVar[str] = "payout-line.v1"
    account: Annotated[str, Field(max_length=64)]
    amount_micro: Micro
    held_micro: Micro
    """What the same account had put into the pool."""


PayoutCase = Literal[
    "no_challenge",
    "agree",
    "confirm_generator",
    "confirm_prior",
    "acquittal",
    "conviction",
    "void",
    "no_opening",
    "equivocation",
    "refunded",
]


class PayoutSettledV1(WireModel):
    """A job's pool was emptied: to whom, how much, by which row of the rules."""

    kind: ClassVar[str] = "payout-settled.v1"
    job_id: Bytes32
    attempt: Annotated[int, Field(ge=0, le=limits.ATTEMPT_COUNT_MAX)]
    case: PayoutCase
    stage: Annotated[int, Field(ge=0, le=limits.SEAT_COUNT_MAX)]
    pool_micro: Micro
    generation_micro: Micro
    verification_micro: Micro
    reserve_micro: Micro
    """What the reserve held before: under ``fixed-fee-committee`` no settlement draws more from it."""
    lines: Annotated[tuple[PayoutLineV1, ...], Field(max_length=4 + 2 * limits.SEAT_COUNT_MAX)]
    slashed: Annotated[tuple[Participant, ...], Field(max_length=1 + limits.SEAT_COUNT_MAX)]


class BalanceQueryV1(WireModel):
    """Ask the ledger for a participant's balances; answered only to that participant or the operator."""

    kind: ClassVar[str] = "balance-query.v1"
    participant: Participant


class BalanceReplyV1(WireModel):
    """A participant's money: free, staked and free, locked in pools."""

    kind: ClassVar[str] = "balance-reply.v1"
    participant: Participant
    available_micro: Micro
    stake_micro: Micro
    locked_micro: Micro
    unbonding_micro: Micro = 0
    """Stake that was asked for and is not paid out yet."""


class StatementQueryV1(WireModel):
    """Ask for what moved a participant's money, after a journal entry, oldest first."""

    kind: ClassVar[str] = "statement-query.v1"
    participant: Participant
    after_entry: Count = 0
    entries_max: Annotated[int, Field(ge=1, le=limits.STATEMENT_ENTRIES_MAX)] = limits.STATEMENT_ENTRIES_MAX


class StatementLineV1(WireModel):
    """One line of the journal on one of the participant's accounts."""

    kind: ClassVar[str] = "statement-line.v1"
    entry: Count
    at_ms: TimeMs
    operation: Code
    subject: Annotated[bytes, Field(max_length=1024)]
    cause: Bytes32
    """The envelope that asked for it."""
    account: Annotated[str, Field(max_length=80)]
    amount_micro: Annotated[int, Field(ge=-limits.MICRO_MAX, le=limits.MICRO_MAX)]
    """What the account gained, negative for what it lost."""


class StatementReplyV1(WireModel):
    """One page of a participant's statement; ask again after ``last_entry`` while there is more."""

    kind: ClassVar[str] = "statement-reply.v1"
    participant: Participant
    lines: Annotated[tuple[StatementLineV1, ...], Field(max_length=64 * limits.STATEMENT_ENTRIES_MAX)]
    last_entry: Count
    has_more: bool
    journal_entries: Count


class TotalsQueryV1(WireModel):
    """The operator asks whether the money adds up."""

    kind: ClassVar[str] = "totals-query.v1"


class TotalsReplyV1(WireModel):
    """Sum over all accounts, what lies in closed pools (always zero), and whether the journal's chain holds."""

    kind: ClassVar[str] = "totals-reply.v1"
    deposited_micro: Micro
    held_micro: Micro
    """All accounts but the outside world; equal to ``deposited_micro`` when money is conserved."""
    open_pools_micro: Micro
    closed_pools_micro: Micro
    open_pool_count: Count
    treasury_micro: Micro
    reserve_micro: Micro
    journal_entries: Count
    journal_intact: bool


# --- beacon and everybody -------------------------------------------------------------------------------------


class BeaconRoundV1(WireModel):
    """One round of the chain. The BLS signature proves itself; each consumer verifies it."""

    kind: ClassVar[str] = "beacon-round.v1"
    chain_hash: Bytes32
    round_number: RoundNumber
    signature: Annotated[bytes, Field(min_length=48, max_length=96)]
    previous_signature: Annotated[bytes, Field(max_length=96)] = b""


class BeaconPartialV1(WireModel):
    """A member's part of a round, for the other members; any t of them make the round."""

    kind: ClassVar[str] = "beacon-partial.v1"
    chain_hash: Bytes32
    round_number: RoundNumber
    signature: Annotated[bytes, Field(min_length=48, max_length=48)]


class RefusalV1(WireModel):
    """Why a service did not act on a message: to whoever sent bytes with this SHA-256."""

    kind: ClassVar[str] = "refusal.v1"
    message_hash: Bytes32
    subject: Text
    code: Code
    reason: Text


class ModelEntryV1(WireModel):
    """A model that the network serves, signed by the operator: its manifest, row schema and calibration."""

    kind: ClassVar[str] = "model-entry.v1"
    model_id: Bytes32
    name: Annotated[str, Field(min_length=1, max_length=128)]
    vocab_size: Annotated[int, Field(ge=2, le=2**31)]
    context_tokens_max: Annotated[int, Field(ge=2, le=limits.LEAF_COUNT_MAX)]
    eos_tokens: Annotated[tuple[int, ...], Field(max_length=64)]
    layer_count: Annotated[int, Field(ge=1, le=limits.LAYER_COUNT_MAX)]
    stack: Text
    row_schema: Annotated[bytes, Field(max_length=4096)]
    """Canonical JSON of the :class:`pocache.protocol.encoding.RowSchema`."""
    profile: Annotated[bytes, Field(max_length=400_000)]
    """Canonical JSON of the :class:`pocache.protocol.matching.MatchingProfile`; see
    :func:`pocache.protocol.matching.compute_profile_set_digest` for what a job binds."""
    prompt_token_micro: Micro
    output_token_micro: Micro
    verify_token_micro: Micro
