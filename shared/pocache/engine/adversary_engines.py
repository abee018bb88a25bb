"""Dishonest engines that leave the model alone: other requests, other tokens, other leaves than the honest ones.

Owns the wrappers around an engine and what they do to a request on its way in and to a capture on its way out. The
rows that an honest prefill would give are computed with the right model wherever a cheat can afford that: a spoof that
could be told by its rows would be a weak one. Torch-free.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

from pocache.engine.forgery import NullForgery, forge_rows
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
    build_full_verification,
)
from pocache.engine.session import ChangedSession, generate_alone
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import (
    FloatFormat,
    RowKey,
    RowKind,
    RowSchema,
    decode_leaf,
    encode_leaf,
    get_row_format,
)
from pocache.protocol.ids import JobId

EDITED_EVERY = 8
"""One output token in so many is edited."""

_SCORES = (RowKind.SCORES, 0)

ChangeRequest = Callable[[GenerateRequest], GenerateRequest]
ChangeCapture = Callable[[GenerateRequest, Capture], Capture]


class ChangedEngine:
    """An engine whose requests or captures are changed on the way; it verifies honestly."""

    def __init__(
        self,
        engine: Engine,
        *,
        writer: Engine | None = None,
        change_request: ChangeRequest = lambda request: request,
        change_capture: ChangeCapture = lambda _request, capture: capture,
        is_output_changed: bool = False,
    ) -> None:
        """``writer`` generates, by default the engine itself; outputs that are changed are delivered at the end."""
        self._engine = engine
        self._writer = writer or engine
        self._change_request = change_request
        self._change_capture = change_capture
        self._is_output_changed = is_output_changed

    def capabilities(self) -> Capabilities:
        """Claim the honest capabilities."""
        return self._engine.capabilities()

    def open_session(self, *, slot_count: int = SLOT_COUNT_DEFAULT) -> GenerationSession:
        """Generate jobs together; each is changed when it ends."""
        return ChangedSession(
            self._writer.open_session(slot_count=slot_count),
            change_request=self._change_request,
            change_capture=self._change_capture,
            is_output_changed=self._is_output_changed,
        )

    def generate(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
    ) -> Capture:
        """Generate one job."""
        return generate_alone(self, request, on_step, should_stop)

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


def swap_prompts(engine: Engine) -> Engine:
    """Generate from a prompt of the same length in which every token differs."""
    vocab_size = engine.capabilities().vocab_size

    def swap(request: GenerateRequest) -> GenerateRequest:
        swapped = tuple(
            (token + 1 + index % (vocab_size - 1)) % vocab_size for index, token in enumerate(request.prompt)
        )
        return replace(request, prompt=swapped)

    return ChangedEngine(engine, change_request=swap)


def change_prompt_token(engine: Engine, *, is_early: bool) -> Engine:
    """Generate from a prompt with one other token: its second (of two or more), or its last."""
    vocab_size = engine.capabilities().vocab_size

    def change(request: GenerateRequest) -> GenerateRequest:
        prompt = list(request.prompt)
        index = min(1, len(prompt) - 1) if is_early else len(prompt) - 1
        prompt[index] = (prompt[index] + 1 + prompt[index] % 7) % vocab_size
        return replace(request, prompt=tuple(prompt))

    return ChangedEngine(engine, change_request=change)


def truncate_prompts(engine: Engine) -> Engine:
    """Generate from the prompt's second half; the first half's rows come from a prefill of it alone."""

    def cut(request: GenerateRequest) -> GenerateRequest:
        return replace(request, prompt=request.prompt[len(request.prompt) // 2 :])

    def restore(request: GenerateRequest, capture: Capture) -> Capture:
        first = len(request.prompt) // 2
        if not first:
            return capture
        head = replace(request, prompt=request.prompt[:first])
        [prefilled] = engine.verify(
            [build_full_verification(head, request.prompt[first : first + 1], engine)]
        )
        schema, kept = capture.schema, []
        for position, leaf in enumerate(prefilled.leaves):  # none is scored in the whole job
            rows = decode_leaf(schema, position, position >= first - 1, leaf)
            kept.append(encode_leaf(schema, position, {key: rows[key] for key in rows if key != _SCORES}))
        for position, leaf in enumerate(capture.leaves):
            is_scored = position >= capture.prompt_count - 1
            kept.append(encode_leaf(schema, first + position, decode_leaf(schema, position, is_scored, leaf)))
        return Capture(schema, len(request.prompt), capture.output, capture.finish_reason, kept)

    return ChangedEngine(engine, change_request=cut, change_capture=restore)


def shift_temperature(engine: Engine, step_micro: int) -> Engine:
    """Draw at another temperature; the score rows are those of the asked one, so that no row tells."""

    def shift(request: GenerateRequest) -> GenerateRequest:
        sampling = request.sampling
        if not sampling.temperature_micro:
            return request
        shifted = max(1, sampling.temperature_micro + step_micro)
        return replace(request, sampling=Sampling(shifted, sampling.top_k, sampling.top_p_micro))

    def dress(request: GenerateRequest, capture: Capture) -> Capture:
        [prefilled] = engine.verify([build_full_verification(request, capture.output, engine)])
        leaves = list(capture.leaves)
        for position in range(capture.prompt_count - 1, len(leaves)):
            rows = decode_leaf(capture.schema, position, True, leaves[position])
            rows[_SCORES] = decode_leaf(capture.schema, position, True, prefilled.leaves[position])[_SCORES]
            leaves[position] = encode_leaf(capture.schema, position, rows)
        return replace(capture, leaves=leaves)

    return ChangedEngine(engine, change_request=shift, change_capture=dress)


def change_seed(engine: Engine) -> Engine:
    """Draw with another seed, then prefill what came out under the asked one."""

    def change(request: GenerateRequest) -> GenerateRequest:
        return replace(request, seed=hashlib.sha256(b"another" + request.seed).digest())

    def prefill(request: GenerateRequest, capture: Capture) -> Capture:
        return _prefill(engine, request, capture)

    return ChangedEngine(engine, change_request=change, change_capture=prefill)


def spoof(engine: Engine, draft: Engine, *, hides_gaps: bool) -> Engine:
    """Deliver a draft's tokens with the rows that the right model computes for them in a prefill.

    ``hides_gaps`` sets each gap of the score rows to zero, as if the token had been the best.
    """

    def dress(request: GenerateRequest, drafted: Capture) -> Capture:
        capture = _prefill(engine, request, drafted)
        if not hides_gaps:
            return capture
        first = len(request.prompt) - 1
        leaves = [
            _clear_gap(capture.schema, position, leaf) if position >= first else leaf
            for position, leaf in enumerate(capture.leaves)
        ]
        return replace(capture, leaves=leaves)

    return ChangedEngine(engine, writer=draft, change_capture=dress)


def edit_outputs(engine: Engine) -> Engine:
    """Replace one output token in EDITED_EVERY, at least one, and prefill the result with the right model."""
    capabilities = engine.capabilities()

    def edit(request: GenerateRequest, capture: Capture) -> Capture:
        output = list(capture.output)
        for index in range(min(EDITED_EVERY, len(output)) // 2, len(output), EDITED_EVERY):
            output[index] = _draw_token(request, index, capabilities)
        return _prefill(engine, request, replace_output(capture, output))

    return ChangedEngine(engine, change_capture=edit, is_output_changed=True)


def truncate_outputs(engine: Engine) -> Engine:
    """Deliver half of the output, and an EOS at its end where the model has one.

    Where the model itself drew one there, nothing would be cut falsely: then a little less of it.
    """
    eos_tokens = engine.capabilities().eos_tokens

    def truncate(request: GenerateRequest, capture: Capture) -> Capture:
        output = list(capture.output[: max(1, len(capture.output) // 2)])
        while len(output) > 1 and output[-1] in eos_tokens:
            output.pop()
        if eos_tokens:
            output[-1] = eos_tokens[0]
        return _prefill(engine, request, replace_output(capture, output, is_stopped=bool(eos_tokens)))

    return ChangedEngine(engine, change_capture=truncate, is_output_changed=True)


def forge_captures(engine: Engine, forgery: NullForgery) -> Engine:
    """Commit a null forgery in the place of the honest rows."""

    def forge(request: GenerateRequest, capture: Capture) -> Capture:
        schema, first = capture.schema, capture.prompt_count - 1
        rows = _decode(capture)
        other = _decode(_generate_other(engine, request, capture)) if forgery is NullForgery.OTHER_JOB else []
        forged = forge_rows(forgery, rows, other, schema.float_format)
        forged += [
            {key: forged[-1].get(key, row) for key, row in leaf.items()} for leaf in rows[len(forged) :]
        ]
        assert all((_SCORES in leaf) == (position >= first) for position, leaf in enumerate(forged))
        leaves = [encode_leaf(schema, position, leaf) for position, leaf in enumerate(forged)]
        return replace(capture, leaves=leaves)

    return ChangedEngine(engine, change_capture=forge)


def replace_output(capture: Capture, output: Sequence[int], *, is_stopped: bool | None = None) -> Capture:
    """Return a capture of another output whose leaves are still to be computed."""
    leaf_count = capture.prompt_count + len(output) - 1
    reason = capture.finish_reason if is_stopped is None else "stop" if is_stopped else "length"
    leaves = (capture.leaves + [b""] * leaf_count)[:leaf_count]
    return Capture(capture.schema, capture.prompt_count, tuple(output), reason, leaves)


def _prefill(engine: Engine, request: GenerateRequest, capture: Capture) -> Capture:
    """Return the capture with the rows that the right model computes for its tokens."""
    [rows] = engine.verify([build_full_verification(request, capture.output, engine)])
    return replace(capture, schema=rows.schema, leaves=rows.leaves)


def _generate_other(engine: Engine, request: GenerateRequest, capture: Capture) -> Capture:
    """Return an honest job of another id and prompt, as long as this one."""
    other = replace(
        request,
        job_id=JobId(hashlib.sha256(b"other" + request.job_id).digest()),
        prompt=tuple(reversed(request.prompt)),
        max_tokens=len(capture.output),
        eos_stop=False,
    )
    return engine.generate(other, lambda _tokens: None, lambda: False)


def _decode(capture: Capture) -> list[dict[RowKey, bytes]]:
    return [
        decode_leaf(capture.schema, position, position >= capture.prompt_count - 1, leaf)
        for position, leaf in enumerate(capture.leaves)
    ]


def _draw_token(request: GenerateRequest, index: int, capabilities: Capabilities) -> int:
    """Return a token that is drawn from nothing but the job and the place; never an EOS, which would end it."""
    word = hashlib.sha256(b"edit" + request.job_id + struct.pack(">I", index)).digest()
    token = int.from_bytes(word[:8], "big") % capabilities.vocab_size
    while token in capabilities.eos_tokens:
        token = (token + 1) % capabilities.vocab_size
    return token


def _clear_gap(schema: RowSchema, position: int, leaf: bytes) -> bytes:
    rows = decode_leaf(schema, position, True, leaf)
    logit, total, _ = struct.unpack("<3f", rows[_SCORES])
    rows[_SCORES] = struct.pack("<3f", logit, total, 0.0)
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
