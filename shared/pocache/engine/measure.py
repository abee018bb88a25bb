"""Honest runs, measured: a batch of jobs through a generator and a verifier, and how far apart their rows come out.

Owns the requests of a calibration and of an evaluation, which follow from their numbers alone, and the runs over them.
Torch-free: whatever the engines need, they bring. Refuses nothing that the engines do not.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pocache.engine.forgery import LeafRows
from pocache.engine.port import (
    Capabilities,
    Capture,
    Engine,
    GenerateRequest,
    VerifyCapture,
    VerifyRequest,
    build_full_verification,
)
from pocache.numerics.calibration import HonestRun
from pocache.protocol.challenge import Corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import FloatFormat, RowKey, RowKind, decode_leaf, get_row_format
from pocache.protocol.ids import JobId, NetworkId
from pocache.protocol.matching import Row, compute_log2_distance_q16
from pocache.protocol.token_check import compute_margin_q16

SAMPLINGS = (
    Sampling(),
    Sampling(temperature_micro=1_000_000),
    Sampling(700_000, top_k=40, top_p_micro=900_000),
)
"""Greedy, plain, and everything at once: the sampler's own distances depend on how it draws."""

BATCH_SIZES = (1, 2, 4, 8)
"""Jobs decoded together, batch after batch: what decodes beside a job moves its rows by rounding."""

_DOMAIN = b"pocache/calibration/v1"

CALIBRATION_NETWORK = NetworkId(hashlib.sha256(_DOMAIN).digest())
"""Distances do not depend on the network; a network that calibrates for itself names its own."""

SCORES: RowKey = (RowKind.SCORES, 0)


@dataclass(frozen=True, slots=True)
class MeasuredJob:
    """One job's committed rows, and the verifier's: packed at full depth, packed in a corner, and alone."""

    request: GenerateRequest
    capture: Capture
    committed: list[LeafRows]
    verified: tuple[list[LeafRows], ...]


def draw_prompts(
    capabilities: Capabilities,
    *,
    count: int,
    token_count_max: int = 48,
    token_count_min: int = 1,
    start: int = 0,
) -> list[tuple[int, ...]]:
    """Return ``count`` fixed prompts of uniformly drawn tokens, of lengths from ``token_count_min`` to ``token_count_max``.

    Prompts from another ``start`` are others: what was not calibrated on.
    """
    prompts = []
    for index in range(count):
        length = token_count_min + (token_count_max - token_count_min) * index // max(1, count - 1)
        prompts.append(draw_prompt(capabilities, start + index, length))
    return prompts


def draw_prompt(capabilities: Capabilities, number: int, length: int) -> tuple[int, ...]:
    """Return the prompt of this number: ``length`` uniformly drawn tokens."""
    label = _DOMAIN + b"prompt" + number.to_bytes(4, "big")
    words = hashlib.shake_256(label).digest(4 * length)
    return tuple(word % capabilities.vocab_size for word in struct.unpack(f">{length}I", words))


def build_request(
    index: int,
    prompt: tuple[int, ...],
    max_tokens: int,
    network: NetworkId = CALIBRATION_NETWORK,
    samplings: Sequence[Sampling] = SAMPLINGS,
) -> GenerateRequest:
    """Return the job of this number: its id, seed and way of sampling follow from it."""
    return GenerateRequest(
        job_id=JobId(hashlib.sha256(_DOMAIN + b"job" + index.to_bytes(4, "big")).digest()),
        attempt=1,
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=samplings[index % len(samplings)],
        seed=hashlib.sha256(_DOMAIN + b"seed" + index.to_bytes(4, "big")).digest(),
        network=network,
        eos_stop=False,
    )


def cut_batches(count: int, sizes: Sequence[int] = BATCH_SIZES) -> list[range]:
    """Return consecutive batches of ``sizes``, again and again; the last takes what is left."""
    batches: list[range] = []
    while not batches or batches[-1].stop < count:
        start = batches[-1].stop if batches else 0
        batches.append(range(start, min(count, start + sizes[len(batches) % len(sizes)])))
    return batches


def measure_batch(
    generator: Engine, verifier: Engine, requests: Sequence[GenerateRequest], *, first: int = 0
) -> list[MeasuredJob]:
    """Decode a batch together; verify it packed, at full depth and in corners, and each job once more by itself.

    ``first`` is the first job's number: the corners follow from it.
    """
    captures = generate_together(generator, requests)
    layer_count = generator.capabilities().layer_count
    asked: list[VerifyRequest] = []
    for index, (request, capture) in enumerate(zip(requests, captures, strict=True), first):
        full = build_full_verification(request, capture.output, verifier)
        shallow = Corner(
            layer_max=index % layer_count,
            position_max=full.prompt_count - 1 + (7 * index) % len(capture.output),
            full_depth=False,
        )
        asked += (full, _restrict(full, shallow))
    packed = verifier.verify(asked)
    found = []
    for offset, (request, capture) in enumerate(zip(requests, captures, strict=True)):
        [alone] = verifier.verify([asked[2 * offset]])
        verified = [*packed[2 * offset : 2 * offset + 2], alone]
        rows = tuple(decode_rows(one, capture.prompt_count) for one in verified)
        found.append(MeasuredJob(request, capture, decode_rows(capture, capture.prompt_count), rows))
    return found


def generate_together(generator: Engine, requests: Sequence[GenerateRequest]) -> list[Capture]:
    """Return the captures of jobs that decode in one batch."""
    session = generator.open_session(slot_count=len(requests))
    handles = [session.submit(request, lambda _tokens: None, lambda: False) for request in requests]
    while not session.is_idle:
        session.step()
    return [handle.result() for handle in handles]


def decode_rows(capture: Capture | VerifyCapture, prompt_count: int) -> list[LeafRows]:
    """Return the rows of a capture by position."""
    return [
        decode_leaf(capture.schema, position, position >= prompt_count - 1, leaf)
        for position, leaf in enumerate(capture.leaves)
    ]


def compute_run(
    ours: Sequence[LeafRows], theirs: Sequence[LeafRows], prompt_count: int, float_format: FloatFormat
) -> HonestRun:
    """Return the distances of the rows that the verifier computed, and the margins of the score rows."""
    distances = tuple(
        {
            key: compute_log2_distance_q16(row, committed[key], get_row_format(key[0], float_format))
            for key, row in verified.items()
        }
        for verified, committed in zip(ours, theirs, strict=False)  # a corner ends early
    )
    margins = tuple(
        compute_margin_q16(verified[SCORES], committed[SCORES])
        for verified, committed in zip(ours, theirs, strict=False)
        if SCORES in verified
    )
    return HonestRun(distances, prompt_count, margins)


def list_rows(distances: Sequence[Mapping[RowKey, int]]) -> Iterator[Row]:
    """Yield the rows of a run as a comparison has them."""
    for position, leaf in enumerate(distances):
        for (kind, layer), log2_q16 in leaf.items():
            yield position, kind, layer, log2_q16


def _restrict(full: VerifyRequest, corner: Corner) -> VerifyRequest:
    return VerifyRequest(
        full.job_id, full.tokens, full.prompt_count, corner, full.sampling, full.seed, full.network
    )
