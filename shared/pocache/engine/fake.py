"""A torch-free engine whose rows are hashes of what a real engine's rows depend on.

It keeps every property that the services rely on: rows of position p depend on the model and on tokens 0..p
alone (causality), honest verification reproduces them bit for bit, another model or another prompt moves
every row after the first difference, tokens depend on the seed only when sampled, and a corner holds a prefix
of what full depth holds. It says nothing about numerics: no spread, no dtype, no model quality.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence

from pocache.engine.port import (
    Capabilities,
    Capture,
    GenerateRequest,
    VerifyCapture,
    VerifyRequest,
    restrict_to_corner,
    verify_generate_request,
    verify_verify_request,
)
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import SCORE_WIDTH, FloatFormat, RowKind, RowSchema, encode_leaf
from pocache.protocol.errors import EngineCancelledError
from pocache.protocol.ids import ModelId

VOCAB_SIZE = 259
"""256 bytes, begin, end, padding: the vocabulary of the demo model."""

EOS_TOKEN = 257
STACK = "fake/1"


class FakeEngine:
    """An engine without a model; ``model_name`` is its weights, so another name is another model.

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
        self._weights = _compute_weights(model_name)
        self._wait_step = wait_step
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

    def generate(
        self,
        request: GenerateRequest,
        on_step: Callable[[tuple[int, ...]], None],
        should_stop: Callable[[], bool],
    ) -> Capture:
        """Generate by hashing prefixes; see the port for what the callbacks promise."""
        verify_generate_request(self._capabilities, request)
        schema = self._capabilities.schema
        output: list[int] = []
        leaves: list[bytes] = []
        key = _compute_sketch_key(request)
        states = self._fold_states(request.prompt)
        state = b""
        for position, state in enumerate(states):
            if position < len(request.prompt) - 1:
                leaves.append(_compute_leaf(schema, position, state, key, None))
        while True:
            if should_stop():
                raise EngineCancelledError("the generation was abandoned on request")
            if self._wait_step is not None:
                self._wait_step()
            token = _sample(state, request.sampling, request.seed)
            scores = _compute_scores(state, token, request.sampling, request.seed)
            leaves.append(_compute_leaf(schema, len(leaves), state, key, scores))
            output.append(token)
            on_step((token,))
            is_stop = request.eos_stop and token == EOS_TOKEN
            if is_stop or len(output) == request.max_tokens:
                break
            state = _fold_token(state, token)
        return Capture(schema, len(request.prompt), tuple(output), "stop" if is_stop else "length", leaves)

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
