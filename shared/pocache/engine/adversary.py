"""Dishonest engines for demonstrations, tests and evaluation: each claims the honest model.

Torch-free; what tampers with weights lives in ``tamper`` and is imported when such a kind is built. An
adversary keeps to the port: well-formed leaves, the right counts, the honest capabilities. Nothing here is a
defence.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum

from pocache.engine.fake import FakeEngine
from pocache.engine.port import (
    SLOT_COUNT_DEFAULT,
    Capabilities,
    Capture,
    Engine,
    GenerateRequest,
    GenerationSession,
    OnStep,
    VerifyCapture,
    VerifyRequest,
)
from pocache.engine.session import ChangedSession
from pocache.protocol.challenge import compute_full_corner
from pocache.protocol.encoding import (
    FloatFormat,
    RowKey,
    RowKind,
    RowSchema,
    decode_leaf,
    encode_leaf,
    get_row_format,
)
from pocache.protocol.errors import EngineError

SPOOF_DRAFT = "another-model"


class AdversaryKind(StrEnum):
    """What a dishonest engine does."""

    INT4 = "int4"
    """Weights in 4 bits, groups of 64."""
    INT8 = "int8"
    """Weights in 8 bits, one scale per output channel."""
    KV_FP8 = "kv-fp8"
    """Keys and values stored as 8-bit floats."""
    SKIP_LAST_LAYER = "skip-last-layer"
    """The last layer writes its cache and is then left out."""
    ANOTHER_MODEL = "another-model"
    """The same architecture with other weights."""
    SWAPPED_PROMPT = "swapped-prompt"
    """A prompt of the same length with other tokens."""
    SPOOF = "spoof"
    """Another model writes the tokens; the right one prefills them, and the score rows are dressed up."""
    GARBAGE = "garbage"
    """A verifier that seals noise instead of computing; it generates honestly."""


FAKE_KINDS = frozenset(
    {AdversaryKind.ANOTHER_MODEL, AdversaryKind.SWAPPED_PROMPT, AdversaryKind.SPOOF, AdversaryKind.GARBAGE}
)
"""What can be built over a FakeEngine."""


def build_adversary(kind: str, engine_factory: Callable[[], Engine]) -> Engine:
    """Return a dishonest engine over fresh honest ones; EngineError for a kind that is not possible there.

    ``engine_factory`` must build a new engine at each call: weights are changed in place.
    """
    try:
        known = AdversaryKind(kind)
    except ValueError:
        raise EngineError(f"no adversary {kind!r}; there are {', '.join(AdversaryKind)}") from None
    engine = engine_factory()
    match known:
        case AdversaryKind.SWAPPED_PROMPT:
            return SwappedPromptEngine(engine)
        case AdversaryKind.GARBAGE:
            return GarbageEngine(engine)
        case AdversaryKind.SPOOF:
            return SpoofEngine(engine, build_adversary(SPOOF_DRAFT, engine_factory))
    if isinstance(engine, FakeEngine):
        if known not in FAKE_KINDS:
            raise EngineError(f"a fake engine cannot do {kind!r}: it has no weights and no cache")
        engine.replace_weights(known)
        return engine
    from pocache.engine.tamper import tamper_engine

    return tamper_engine(known, engine)


class SwappedPromptEngine:
    """Generates from another prompt of the same length and passes the rows off as the asked one's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def capabilities(self) -> Capabilities:
        """Claim the honest capabilities."""
        return self._engine.capabilities()

    def open_session(self, *, slot_count: int = SLOT_COUNT_DEFAULT) -> GenerationSession:
        """Generate from prompts in which every token differs."""
        return ChangedSession(self._engine.open_session(slot_count=slot_count), change_request=self._swap)

    def generate(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
    ) -> Capture:
        """Generate from a prompt in which every token differs."""
        return self._engine.generate(self._swap(request), on_step, should_stop)

    def _swap(self, request: GenerateRequest) -> GenerateRequest:
        vocab_size = self._engine.capabilities().vocab_size
        swapped = tuple(
            (token + 1 + index % (vocab_size - 1)) % vocab_size for index, token in enumerate(request.prompt)
        )
        return replace(request, prompt=swapped)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        """Verify honestly."""
        return self._engine.verify(requests)


class GarbageEngine:
    """Verifies without computing: finite, well-formed noise in every row. Generates honestly."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def capabilities(self) -> Capabilities:
        """Claim the honest capabilities."""
        return self._engine.capabilities()

    def open_session(self, *, slot_count: int = SLOT_COUNT_DEFAULT) -> GenerationSession:
        """Generate honestly."""
        return self._engine.open_session(slot_count=slot_count)

    def generate(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
    ) -> Capture:
        """Generate honestly."""
        return self._engine.generate(request, on_step, should_stop)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        """Return noise of the right shape."""
        captures = []
        for request in requests:
            schema = self._engine.capabilities().schema.restrict(
                request.corner.layer_max, full_depth=request.corner.full_depth
            )
            leaves = [
                encode_leaf(
                    schema, position, _draw_rows(schema, request.job_id, position, request.prompt_count)
                )
                for position in range(request.corner.position_max + 1)
            ]
            captures.append(VerifyCapture(schema, leaves))
        return captures


class SpoofEngine:
    """Delivers a draft model's tokens with the rows that the right model computes for them in a prefill."""

    def __init__(self, engine: Engine, draft: Engine) -> None:
        self._engine = engine
        self._draft = draft

    def capabilities(self) -> Capabilities:
        """Claim the honest capabilities."""
        return self._engine.capabilities()

    def open_session(self, *, slot_count: int = SLOT_COUNT_DEFAULT) -> GenerationSession:
        """Draft jobs together; each is dressed up when it ends."""
        return ChangedSession(self._draft.open_session(slot_count=slot_count), change_capture=self._dress)

    def generate(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
    ) -> Capture:
        """Draft one job and dress it up."""
        return self._dress(request, self._draft.generate(request, on_step, should_stop))

    def _dress(self, request: GenerateRequest, drafted: Capture) -> Capture:
        """Prefill with the right model, and set each gap to zero as if the token had been its best."""
        corner = compute_full_corner(self.capabilities().layer_count, len(drafted.leaves))
        tokens = request.prompt + drafted.output
        [rows] = self._engine.verify(
            [
                VerifyRequest(
                    job_id=request.job_id,
                    tokens=tokens,
                    prompt_count=len(request.prompt),
                    corner=corner,
                    sampling=request.sampling,
                    seed=request.seed,
                    network=request.network,
                )
            ]
        )
        leaves = [
            _clear_gap(rows.schema, position, leaf) if position >= len(request.prompt) - 1 else leaf
            for position, leaf in enumerate(rows.leaves)
        ]
        return Capture(rows.schema, len(request.prompt), drafted.output, drafted.finish_reason, leaves)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        """Verify honestly."""
        return self._engine.verify(requests)


def _clear_gap(schema: RowSchema, position: int, leaf: bytes) -> bytes:
    rows = decode_leaf(schema, position, True, leaf)
    logit, total, _ = struct.unpack("<3f", rows[RowKind.SCORES, 0])
    rows[RowKind.SCORES, 0] = struct.pack("<3f", logit, total, 0.0)
    return encode_leaf(schema, position, rows)


def _draw_rows(schema: RowSchema, job_id: bytes, position: int, prompt_count: int) -> dict[RowKey, bytes]:
    """Return rows of 16-bit noise around zero, by hashing: finite in either float format."""
    rows = {}
    for kind, layer in schema.row_keys(scored=position >= prompt_count - 1):
        float_format = get_row_format(kind, schema.float_format)
        count = schema.row_bytes(kind) // float_format.size
        stream = hashlib.shake_256(job_id + struct.pack(">IBH", position, kind, layer)).digest(2 * count)
        words = struct.unpack(f"<{count}h", stream)
        letter = "e" if float_format is FloatFormat.F16 else "f"
        rows[kind, layer] = struct.pack(f"<{count}{letter}", *(word / 2**13 for word in words))
    return rows
