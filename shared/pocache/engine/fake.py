"""A torch-free engine whose rows are hashes of what a real engine's rows depend on.

It keeps every property that the services rely on: rows of position p depend on the model and on tokens 0..p
alone (causality), honest verification reproduces them bit for bit, another model or another prompt moves
every row after the first difference, tokens depend on the seed only when sampled, and a corner holds a prefix
of what full depth holds. It says nothing about numerics: no spread, no dtype, no model quality.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pocache.engine.port import (
    SLOT_COUNT_DEFAULT,
    Capabilities,
    Capture,
    FinishReason,
    GenerateRequest,
    GenerationSession,
    OnStep,
    VerifyCapture,
    VerifyRequest,
    restrict_to_corner,
    verify_verify_request,
)
from pocache.engine.session import BatchSession, Delivery, Drawn, Ticket, compute_logprob, generate_alone
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import SCORE_WIDTH, FloatFormat, RowKind, RowSchema, encode_leaf
from pocache.protocol.ids import ModelId

VOCAB_SIZE = 259
"""256 bytes, begin, end, padding: the vocabulary of the demo model."""

EOS_TOKEN = 257
STACK = "fake/1"


class FakeEngine:
    """An engine without a model; ``model_name`` is its weights, so another name is another model.

    ``NAME@MS`` is the model ``NAME`` at a pace: each token takes that many milliseconds, as a real step does.
    ``wait_step`` is called before each token, so that a test can hold a generation where it wants it.
    """

    def __init__(
        self,
        model_name: str = "fake",
        *,
        layer_count: int = 2,
        columns: int = 4,
        context_tokens_max: int = 4096,
        wait_step: Callable[[], None] | None = None,
    ) -> None:
        name, _, pace_ms = model_name.partition("@")
        self._weights = _compute_weights(name)
        pace_s = int(pace_ms) / 1_000 if pace_ms.isdecimal() else 0.0
        self._wait_step = wait_step if wait_step is not None or not pace_s else partial(time.sleep, pace_s)
        self._capabilities = Capabilities(
            model_id=ModelId(self._weights),
            stack=STACK,
            schema=RowSchema(
                encoding="sketch",
                float_format=FloatFormat.F32,
                layer_count=layer_count,
                key_width=columns,
                value_width=columns,
                hidden_width=columns,
            ),
            layer_count=layer_count,
            context_tokens_max=context_tokens_max,
            vocab_size=VOCAB_SIZE,
            eos_tokens=(EOS_TOKEN,),
        )

    def capabilities(self) -> Capabilities:
        """Return what this engine claims to run."""
        return self._capabilities

    def replace_weights(self, model_name: str) -> None:
        """Run another model from now on, while claiming the same; a cheat, for tests and demos."""
        self._weights = _compute_weights(model_name)

    def open_session(self, *, slot_count: int = SLOT_COUNT_DEFAULT) -> GenerationSession:
        """Return a session that hashes one prefix further for each of its jobs at each step."""
        return BatchSession(self._capabilities, _FakeRunner(self._start), slot_count=slot_count)

    def generate(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
    ) -> Capture:
        """Generate one job in a session of its own; see the port for what the callbacks promise."""
        return generate_alone(self, request, on_step, should_stop)

    def _start(self, ticket: Ticket) -> _FakeJob:
        """Return a job whose prompt is folded, but for the leaf that its first token scores."""
        request = ticket.request
        schema, key = self._capabilities.schema, _compute_sketch_key(request)
        *states, state = self._fold_states(request.prompt)
        leaves = [_compute_leaf(schema, position, one, key, None) for position, one in enumerate(states)]
        return _FakeJob(schema, request, key, state, leaves, self._wait_step)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        """Recompute the rows of each corner from the tokens."""
        return [self._verify_one(request) for request in requests]

    def _verify_one(self, request: VerifyRequest) -> VerifyCapture:
        verify_verify_request(self._capabilities, request)
        schema = restrict_to_corner(self._capabilities.schema, request.corner)
        key = _compute_sketch_key(request)
        leaves = []
        for position, state in enumerate(
            self._fold_states(request.tokens[: request.corner.position_max + 1])
        ):
            scores = None
            if position >= request.prompt_count - 1:
                scores = _compute_scores(state, request.tokens[position + 1], request.sampling, request.seed)
            leaves.append(_compute_leaf(schema, position, state, key, scores))
        return VerifyCapture(schema, leaves)

    def _fold_states(self, tokens: Sequence[int]) -> Iterator[bytes]:
        state = self._weights
        for token in tokens:
            state = _fold_token(state, token)
            yield state


@dataclass(slots=True)
class _FakeJob:
    """One job between two of its tokens."""

    schema: RowSchema
    request: GenerateRequest
    key: bytes
    state: bytes
    leaves: list[bytes]
    wait_step: Callable[[], None] | None
    token: int | None = None

    def step(self) -> Drawn:
        """Fold the last token, draw the next, and add the leaf that it scores."""
        if self.wait_step is not None:
            self.wait_step()
        if self.token is not None:
            self.state = _fold_token(self.state, self.token)
        sampling, seed = self.request.sampling, self.request.seed
        self.token = _sample(self.state, sampling, seed)
        scores = _compute_scores(self.state, self.token, sampling, seed)
        self.leaves.append(_compute_leaf(self.schema, len(self.leaves), self.state, self.key, scores))
        logit, total, _ = struct.unpack(f"<{SCORE_WIDTH}f", scores)
        return Drawn(self.token, compute_logprob(logit, total))


class _FakeRunner:
    """Steps each job in turn; there is no memory to be short of."""

    def __init__(self, start: Callable[[Ticket], _FakeJob]) -> None:
        self._start = start
        self._jobs: dict[Ticket, _FakeJob] = {}

    def verify_fits(self, request: GenerateRequest) -> None:
        """Accept every job."""

    def count_admissible(self, waiting: Sequence[Ticket]) -> int:
        """Admit every job."""
        return len(waiting)

    def start(self, tickets: Sequence[Ticket]) -> list[Delivery]:
        """Fold the prompts and draw the first tokens."""
        self._jobs |= {ticket: self._start(ticket) for ticket in tickets}
        return [self._step(ticket) for ticket in tickets]

    def advance(self) -> list[Delivery]:
        """Draw the next token of each job."""
        return [self._step(ticket) for ticket in list(self._jobs)]

    def finish(self, ticket: Ticket, finish_reason: FinishReason) -> Capture:
        """Return the job's leaves."""
        job, output = self._jobs[ticket], tuple(ticket.output)
        return Capture(job.schema, len(ticket.request.prompt), output, finish_reason, job.leaves)

    def drop(self, ticket: Ticket) -> None:
        """Forget a job."""
        self._jobs.pop(ticket, None)

    def _step(self, ticket: Ticket) -> Delivery:
        try:
            return ticket, self._jobs[ticket].step()
        except Exception as error:  # noqa: BLE001 - what a test put into wait_step ends this job, as any failure
            return ticket, error


def _compute_weights(model_name: str) -> bytes:
    return hashlib.sha256(b"pocache/fake-model/v1" + model_name.encode()).digest()


def _fold_token(state: bytes, token: int) -> bytes:
    return hashlib.sha256(state + struct.pack(">I", token)).digest()


def _compute_sketch_key(request: GenerateRequest | VerifyRequest) -> bytes:
    return hashlib.sha256(request.network + request.seed + request.job_id).digest()


def _compute_leaf(schema: RowSchema, position: int, state: bytes, key: bytes, scores: bytes | None) -> bytes:
    """Cut one hash stream into rows, layer by layer: a corner's rows are a prefix of the full leaf's."""
    names = [(kind, layer) for layer in range(schema.layer_count) for kind in (RowKind.K, RowKind.V)]
    if schema.has_hidden:
        names.append((RowKind.HIDDEN, 0))
    width = schema.key_width
    words = struct.unpack(
        f"<{len(names) * width}h", hashlib.shake_256(key + state).digest(2 * len(names) * width)
    )
    rows = {
        name: struct.pack(
            f"<{width}f", *(word / 2**14 for word in words[index * width : (index + 1) * width])
        )
        for index, name in enumerate(names)
    }
    if scores is not None and schema.has_scores:
        rows[RowKind.SCORES, 0] = scores
    return encode_leaf(schema, position, rows)


def _sample(state: bytes, sampling: Sampling, seed: bytes) -> int:
    """Draw the token that this state predicts: by the state alone when greedy, else by the seed as well."""
    noise = seed if sampling.temperature_micro else b""
    return int.from_bytes(hashlib.sha256(b"token" + state + noise).digest()[:8], "big") % VOCAB_SIZE


def _compute_scores(state: bytes, token: int, sampling: Sampling, seed: bytes) -> bytes:
    """Return logit, logsumexp and gap to the best; the gap is zero exactly for the sampled token."""
    stream = hashlib.sha256(b"scores" + state + struct.pack(">I", token)).digest()
    logit, rest, gap = (word / 2**12 for word in struct.unpack("<3H", stream[: 2 * SCORE_WIDTH]))
    is_best = token == _sample(state, sampling, seed)
    return struct.pack(f"<{SCORE_WIDTH}f", logit, logit + rest, 0.0 if is_best else gap + 1.0)
