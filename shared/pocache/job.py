"""A job as its user sees it: what was submitted, what arrived since, and whether the two belong together.

Owns what a user can check alone: the running hash over streamed tokens, that a lease asks for exactly what was
submitted, that the committed output begins with what was streamed. Refuses streams with gaps, of too many
claimants, or of too many tokens. Nothing here talks to a bus (``pocache.client`` does).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from pocache.protocol.commitment import (
    CHUNK_HASH_START,
    compute_chunk_hash,
    compute_sampling_seed,
    compute_token_hash,
)
from pocache.protocol.encoding import unpack_logprobs, unpack_tokens
from pocache.protocol.errors import AdmissionError, CommitmentError
from pocache.protocol.ids import Digest, JobId, ModelId
from pocache.protocol.lifecycle import TERMINAL_PHASES
from pocache.protocol.limits import TOKEN_BYTES
from pocache.wire import messages as m

STREAMS_KEPT_MAX: Final = 32
"""Token streams of one job, by attempt and signer: until the router names the holder, anyone may claim to be it."""
_TERMINAL: Final = frozenset(phase.value for phase in TERMINAL_PHASES)


class RefusedError(AdmissionError):
    """The network refused the job; ``refusal_code`` and the message say why."""

    def __init__(self, refusal_code: str, reason: str) -> None:
        super().__init__(f"{refusal_code}: {reason}")
        self.refusal_code = refusal_code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Piece:
    """Output tokens of one attempt, from an index on. Another attempt starts again at 0."""

    attempt: int
    first_index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    """The natural log-probability of each, as its generator says; None where none were asked for, or heard of all."""


@dataclass
class ScoreStream:
    """What one signer said of its tokens' log-probabilities: only what follows without a gap."""

    logprobs: list[float] = field(default_factory=list)

    def take(self, scores: m.TokenScoresV1, token_count_max: int) -> None:
        """Append scores. Raises CommitmentError when they do not follow, EncodingError when they are none."""
        fresh = unpack_logprobs(scores.logprobs)
        if scores.first_index != len(self.logprobs):
            raise CommitmentError("the stream of scores has a gap, or repeats itself")
        if len(self.logprobs) + len(fresh) > token_count_max:
            raise CommitmentError(f"scores of more than the {token_count_max} tokens that were asked for")
        self.logprobs += fresh


@dataclass
class TokenStream:
    """What one signer streamed for one attempt: only what follows without a gap, under the running hash."""

    tokens: bytes = b""
    running_hash: Digest = CHUNK_HASH_START

    def take(self, chunk: m.TokenChunkV1, token_count_max: int) -> None:
        """Append a chunk. Raises CommitmentError when it does not follow, or its hash is another's."""
        if chunk.first_index * TOKEN_BYTES != len(self.tokens):
            raise CommitmentError("the stream of tokens has a gap, or repeats itself")
        if len(self.tokens) + len(chunk.tokens) > token_count_max * TOKEN_BYTES:
            raise CommitmentError(f"more than the {token_count_max} tokens that were asked for")
        running_hash = compute_chunk_hash(self.running_hash, chunk.tokens)
        if running_hash != chunk.running_hash:
            raise CommitmentError("a chunk's running hash is not that of its tokens")
        self.tokens += chunk.tokens
        self.running_hash = running_hash


@dataclass
class Job:
    """A submitted job as its user sees it."""

    job_id: JobId
    submission: m.SubmissionV1
    message_hash: bytes
    """SHA-256 of the submission's envelope: what a refusal of it names."""
    events: list[m.JobEventV1] = field(default_factory=list)
    result: m.ResultV1 | None = None
    payout: m.PayoutSettledV1 | None = None
    holder: tuple[int, str] | None = None
    """The attempt that runs or ran last, and its generator."""
    streams: dict[tuple[int, str], TokenStream] = field(default_factory=dict)
    is_scored: bool = False
    """Whether the tokens' log-probabilities were asked for."""
    scores: dict[tuple[int, str], ScoreStream] = field(default_factory=dict)
    """What was heard of the tokens' log-probabilities, by the same; nothing unless they were asked for."""
    challenge_hash: bytes | None = None
    challenge_refusal: RefusedError | None = None
    """Why the network did not act on this user's challenge."""
    fault: CommitmentError | None = None
    """What the router announced as the result is none for this submission."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition, repr=False)
    """Notified whenever something of the job became known."""

    @property
    def model_id(self) -> ModelId:
        """The model that was asked."""
        return ModelId(self.submission.model_id)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's tokens."""
        return unpack_tokens(self.submission.prompt)

    @property
    def phase(self) -> str:
        """The phase at the end of its life, or the latest heard of, or ``submitted``."""
        if self.end is not None:
            return self.end.phase
        return self.events[-1].phase if self.events else "submitted"

    @property
    def end(self) -> m.JobEventV1 | None:
        """The event that ended it: events may arrive in another order than they were said in."""
        return next((event for event in self.events if event.phase in _TERMINAL), None)

    @property
    def is_over(self) -> bool:
        """Whether the job is settled, refunded or refused."""
        return self.end is not None

    @property
    def output(self) -> tuple[int, ...]:
        """The committed output tokens; empty until the commitment is recorded."""
        return unpack_tokens(self.result.output) if self.result is not None else ()

    def get_piece(self, attempt: int, index: int) -> Piece | None:
        """Return the tokens that follow those already taken, of the attempt that counts now."""
        if self.holder is None:
            return None
        current = self.holder[0]
        stream = self.streams.get(self.holder, TokenStream())
        known = self.result.output if self.result is not None else stream.tokens
        first = index if attempt == current else 0
        tokens = unpack_tokens(known[first * TOKEN_BYTES :])
        if not tokens:
            return None
        scores = self.scores.get(self.holder, ScoreStream()).logprobs[first : first + len(tokens)]
        return Piece(current, first, tokens, tuple(scores) if len(scores) == len(tokens) else None)


def verify_lease(job: Job, lease: m.LeaseV1) -> None:
    """Check that a lease asks for exactly what the user submitted. Raises CommitmentError naming what differs."""
    asked = job.submission
    wanted: dict[str, object] = {
        "job_id": job.job_id,
        "model_id": asked.model_id,
        "prompt_hash": compute_token_hash(asked.salt, asked.prompt),
        "token_count_max": asked.token_count_max,
        "sampling": asked.sampling,
        "eos_stop": asked.eos_stop,
    }
    if asked.seed is not None:
        wanted["seed"] = compute_sampling_seed(asked.seed, b"", job.job_id)
    for name, value in wanted.items():
        if getattr(lease, name) != value:
            raise CommitmentError(f"the lease has another {name} than the submission")


def verify_stream(job: Job) -> None:
    """Check that what the generator streamed is how its committed output begins. Raises CommitmentError.

    Says nothing before there is a commitment, or where nothing was heard.
    """
    if job.result is None or job.holder is None:
        return
    stream = job.streams.get(job.holder)
    if stream is not None and not job.result.output.startswith(stream.tokens):
        raise CommitmentError("the tokens that were streamed are not those that were committed")
