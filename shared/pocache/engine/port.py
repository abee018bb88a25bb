"""The engine port: what a worker asks of whatever runs the model, and what every engine refuses.

An engine is synchronous and belongs to one thread. It generates, one job or many in a session, while the rows of
its KV cache are captured as they are written; and it verifies: a prefill over known tokens, many jobs packed
together, no deeper and no further than their corners.
It knows nothing of money, keys, rounds or the bus. No rows, no commitment: a generation that ends without
rows raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import RowSchema
from pocache.protocol.errors import EngineError, PromptError
from pocache.protocol.ids import JobId, ModelId, NetworkId
from pocache.protocol.limits import OUTPUT_TOKENS_MAX, PROMPT_TOKENS_MAX

SEED_BYTES = 32
"""The sampling seed issued with the lease; it keys the sampler and the sketch."""


FinishReason = Literal["stop", "length", "cancelled"]
"""Why an output ends: at an end of sequence, at the length asked for, or because whoever listens wants no more."""
OnStep = Callable[[tuple[int, ...]], bool | None]
"""Receives newly delivered tokens; True ends the output with them."""
OnScores = Callable[[tuple[float, ...]], None]
"""Receives the log-probabilities of the tokens that ``on_step`` receives next, natural and at most 0."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine runs and how its rows look; ``stack`` names everything that moves numerics."""

    model_id: ModelId
    stack: str
    schema: RowSchema
    layer_count: int
    context_tokens_max: int
    vocab_size: int
    eos_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One job to generate: the prompt's tokens, and all that sampling and sketching depend on."""

    job_id: JobId
    attempt: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: bytes
    network: NetworkId
    eos_stop: bool = True


@dataclass(frozen=True, slots=True)
class Capture:
    """A finished generation: the output tokens and the N = |prompt| + |output| - 1 encoded leaves."""

    schema: RowSchema
    prompt_count: int
    output: tuple[int, ...]
    finish_reason: FinishReason
    leaves: list[bytes]

    def __post_init__(self) -> None:
        assert len(self.leaves) == self.prompt_count + len(self.output) - 1, (
            "an engine lost or invented leaves"
        )


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """One job to re-run as a prefill: prompt and output tokens, and the corner that bounds the work."""

    job_id: JobId
    tokens: tuple[int, ...]
    prompt_count: int
    corner: Corner
    sampling: Sampling
    seed: bytes
    network: NetworkId


@dataclass(frozen=True, slots=True)
class VerifyCapture:
    """The verifier's own rows in the corner: leaves 0 to position_max in the schema restricted to it."""

    schema: RowSchema
    leaves: list[bytes]


SLOT_COUNT_DEFAULT = 8
"""Jobs that a session decodes at once, unless told otherwise."""


class GenerationHandle:
    """One submitted job: open until its session says in ``step`` that it is done; then a capture or an error."""

    __slots__ = ("_capture", "_error", "request")

    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self._capture: Capture | None = None
        self._error: Exception | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is a result, good or bad."""
        return self._capture is not None or self._error is not None

    def result(self) -> Capture:
        """Return the capture, or raise what ended the job."""
        if self._error is not None:
            raise self._error
        assert self._capture is not None, "this job is not done"
        return self._capture

    def resolve(self, outcome: Capture | Exception) -> None:
        """Settle the job, once; the session's business."""
        assert not self.is_done, "a job is settled once"
        if isinstance(outcome, Exception):
            self._error = outcome
        else:
            self._capture = outcome


class GenerationSession(Protocol):
    """Jobs decoded together: they join and leave between steps, and none waits for another to end."""

    @property
    def is_idle(self) -> bool:
        """Whether no submitted job is open."""
        ...

    def submit(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
        on_scores: OnScores | None = None,
    ) -> GenerationHandle:
        """Queue a job; it joins at a step with a free slot and memory for it, in the order of submission.

        The callbacks promise what ``Engine.generate`` does. ``on_scores`` is called before each ``on_step`` of an engine
        that has the scores by then, and never by one that has not. PromptError, or EngineError for a job that can
        never fit.
        """
        ...

    def step(self) -> list[GenerationHandle]:
        """Advance every open job that has a slot by one token; return the jobs that are done with it.

        One job's failure ends that job alone.
        """
        ...

    def close(self) -> None:
        """Abandon all open jobs with EngineCancelledError and free their memory."""
        ...


class Engine(Protocol):
    """What runs the model. Every method is called from one dedicated thread."""

    def capabilities(self) -> Capabilities:
        """Return what this engine runs; constant over its life."""
        ...

    def generate(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
    ) -> Capture:
        """Generate one job; ``on_step`` receives newly delivered tokens, in order, each exactly once.

        When it answers True the output ends with these tokens (``cancelled``), and has its rows like any other.

        ``should_stop`` is asked before every token; when it answers True the generation is abandoned with
        EngineCancelledError and has no rows. An error out of ``on_step`` ends the generation and is passed
        on.
        """
        ...

    def open_session(self, *, slot_count: int = SLOT_COUNT_DEFAULT) -> GenerationSession:
        """Return a session of up to ``slot_count`` jobs at once; ``verify`` may be called between its steps."""
        ...

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        """Re-run each request as one prefill up to its corner; answers in the order of the requests.

        Requests may share a pass: an answer differs from that of the request alone by rounding, and no more.
        """
        ...


def build_full_verification(request: GenerateRequest, output: Sequence[int], engine: Engine) -> VerifyRequest:
    """Return the verification of all that a request delivered, through all layers."""
    tokens = request.prompt + tuple(output)
    return VerifyRequest(
        job_id=request.job_id,
        tokens=tokens,
        prompt_count=len(request.prompt),
        corner=compute_full_corner(engine.capabilities().layer_count, len(tokens) - 1),
        sampling=request.sampling,
        seed=request.seed,
        network=request.network,
    )


def restrict_to_corner(schema: RowSchema, corner: Corner) -> RowSchema:
    """Return the schema of a verifier's rows: layers 0..layer_max; hidden and scores at full depth alone."""
    return schema.restrict(corner.layer_max, full_depth=corner.full_depth)


def verify_generate_request(capabilities: Capabilities, request: GenerateRequest) -> None:
    """Refuse a request that this engine cannot run: PromptError, or EngineError for our own fields."""
    verify_tokens(capabilities, request.prompt)
    if not 1 <= request.max_tokens <= OUTPUT_TOKENS_MAX:
        raise PromptError(f"max_tokens is {request.max_tokens}; it must be 1 to {OUTPUT_TOKENS_MAX}")
    if len(request.prompt) > PROMPT_TOKENS_MAX:
        raise PromptError(f"the prompt has {len(request.prompt)} tokens, more than {PROMPT_TOKENS_MAX}")
    if len(request.prompt) + request.max_tokens > capabilities.context_tokens_max:
        raise PromptError(
            f"prompt and max_tokens are {len(request.prompt) + request.max_tokens} tokens, "
            f"more than this model's context of {capabilities.context_tokens_max}"
        )
    _verify_seed(request.seed)


def verify_verify_request(capabilities: Capabilities, request: VerifyRequest) -> None:
    """Refuse tokens, or a corner, that do not lie inside this model and this job."""
    verify_tokens(capabilities, request.tokens)
    if len(request.tokens) > capabilities.context_tokens_max:
        raise PromptError(
            f"the job has {len(request.tokens)} tokens, "
            f"more than this model's context of {capabilities.context_tokens_max}"
        )
    if not 1 <= request.prompt_count < len(request.tokens):
        raise PromptError(
            f"prompt of {request.prompt_count} in {len(request.tokens)} tokens: prompt or output is empty"
        )
    corner, leaf_count = request.corner, len(request.tokens) - 1
    if not (0 <= corner.layer_max < capabilities.layer_count and 0 <= corner.position_max < leaf_count):
        raise EngineError(
            f"corner (layer {corner.layer_max}, position {corner.position_max}) lies outside "
            f"{capabilities.layer_count} layers and {leaf_count} leaves"
        )
    if corner.full_depth and corner.layer_max != capabilities.layer_count - 1:
        raise EngineError("a corner of full depth must end in the last layer")
    _verify_seed(request.seed)


def verify_tokens(capabilities: Capabilities, tokens: Sequence[int]) -> None:
    """Refuse an empty sequence and tokens outside the vocabulary: PromptError."""
    if not tokens:
        raise PromptError("the prompt is empty")
    if min(tokens) < 0 or max(tokens) >= capabilities.vocab_size:
        raise PromptError(f"a token lies outside the vocabulary of {capabilities.vocab_size}")


def _verify_seed(seed: bytes) -> None:
    if len(seed) != SEED_BYTES:
        raise EngineError(f"a sampling seed has {SEED_BYTES} bytes, not {len(seed)}")
