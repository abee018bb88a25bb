"""Calibration: run honest jobs through a generator and a verifier, and measure what honest looks like.

Owns the runs: prompts of several lengths, sampled and greedy, decoded in batches of several sizes, verified at full
depth and at shallower corners, packed and alone, and beside them the null forgeries that no threshold may let through. Refuses engines of different
models or schemas, and thresholds under which a null forgery would pass. Torch-free: whatever the engines
need, they bring.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence

from pocache.engine.forgery import LeafRows, NullForgery, forge_rows
from pocache.engine.port import Capabilities, Capture, Engine, GenerateRequest, VerifyCapture, VerifyRequest
from pocache.numerics.calibration import MARGIN_MIN_Q16, LeafDistances, compute_profile
from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import FloatFormat, RowKey, decode_leaf, get_row_format
from pocache.protocol.errors import EngineError, MatchingError
from pocache.protocol.ids import JobId, NetworkId
from pocache.protocol.matching import MatchingProfile, Verdict, compare, compute_log2_distance_q16

SAMPLINGS = (
    Sampling(),
    Sampling(temperature_micro=1_000_000),
    Sampling(700_000, top_k=40, top_p_micro=900_000),
)
"""Greedy, plain, and everything at once: the sampler's own distances depend on how it draws."""

BATCH_SIZES = (1, 2, 4, 8)
"""Jobs decoded together, batch after batch: what decodes beside a job moves its rows by rounding."""

Progress = Callable[[int, int], None]
"""Called as progress(done, total) after each run."""

_DOMAIN = b"pocache/calibration/v1"

CALIBRATION_NETWORK = NetworkId(hashlib.sha256(_DOMAIN).digest())
"""Distances do not depend on the network; a network that calibrates for itself names its own."""


def run_calibration(
    generator: Engine,
    verifier: Engine,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_tokens: int = 64,
    network: NetworkId = CALIBRATION_NETWORK,
    margin_q16: int = MARGIN_MIN_Q16,
    progress: Progress | None = None,
) -> MatchingProfile:
    """Generate from each prompt, verify, and return the profile of this pair of stacks.

    Jobs are decoded in batches of BATCH_SIZES. Each is verified at full depth and at one shallower corner that ends
    inside its output, packed with its batch, and once more by itself. MatchingError when a null forgery would not be a
    mismatch; EngineError when the engines do not run the same model.
    """
    claims, others = generator.capabilities(), verifier.capabilities()
    if (claims.model_id, claims.schema) != (others.model_id, others.schema):
        raise EngineError("generator and verifier must run the same model with the same row schema")
    if len(prompts) < len(SAMPLINGS):
        raise EngineError(
            f"calibration needs at least {len(SAMPLINGS)} prompts: one for each way of sampling"
        )
    float_format = claims.schema.float_format
    requests = [_build_request(index, prompt, max_tokens, network) for index, prompt in enumerate(prompts)]
    leaves: list[LeafDistances] = []
    pairs: list[tuple[list[LeafRows], list[LeafRows]]] = []
    for batch in _cut_batches(len(requests)):
        for committed, verified in _run_batch(generator, verifier, requests, batch):
            for rows in verified:
                leaves += _measure_leaves(rows, committed, float_format)
            pairs.append((verified[0], committed))
            if progress is not None:
                progress(len(pairs), len(prompts))
    about = _describe(claims, others, len(prompts), sum(len(committed) for _, committed in pairs))
    profile = compute_profile(leaves, float_format=float_format, margin_q16=margin_q16, about=about)
    nulls = _measure_null_forgeries(profile, pairs, float_format)
    return compute_profile(leaves, float_format=float_format, margin_q16=margin_q16, about={**about, **nulls})


def draw_prompts(
    capabilities: Capabilities, *, count: int, token_count_max: int = 48
) -> list[tuple[int, ...]]:
    """Return ``count`` fixed prompts of uniformly drawn tokens, of lengths from 1 to ``token_count_max``."""
    prompts = []
    for index in range(count):
        length = 1 + (token_count_max - 1) * index // max(1, count - 1)
        words = hashlib.shake_256(_DOMAIN + b"prompt" + index.to_bytes(4, "big")).digest(4 * length)
        prompts.append(tuple(word % capabilities.vocab_size for word in struct.unpack(f">{length}I", words)))
    return prompts


def _build_request(
    index: int, prompt: tuple[int, ...], max_tokens: int, network: NetworkId
) -> GenerateRequest:
    return GenerateRequest(
        job_id=JobId(hashlib.sha256(_DOMAIN + b"job" + index.to_bytes(4, "big")).digest()),
        attempt=1,
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=SAMPLINGS[index % len(SAMPLINGS)],
        seed=hashlib.sha256(_DOMAIN + b"seed" + index.to_bytes(4, "big")).digest(),
        network=network,
        eos_stop=False,
    )


def _cut_batches(count: int) -> list[range]:
    """Return consecutive batches of BATCH_SIZES, again and again; the last takes what is left."""
    batches: list[range] = []
    while not batches or batches[-1].stop < count:
        start = batches[-1].stop if batches else 0
        batches.append(range(start, min(count, start + BATCH_SIZES[len(batches) % len(BATCH_SIZES)])))
    return batches


def _run_batch(
    generator: Engine, verifier: Engine, requests: Sequence[GenerateRequest], batch: range
) -> list[tuple[list[LeafRows], list[list[LeafRows]]]]:
    """Return each job's rows by position: committed, then verified, at full depth first."""
    captures = _generate_together(generator, [requests[index] for index in batch])
    layer_count = generator.capabilities().layer_count
    asked: list[VerifyRequest] = []
    for index, capture in zip(batch, captures, strict=True):
        request, leaf_count = requests[index], len(capture.leaves)
        shallow = Corner(
            layer_max=index % layer_count,
            position_max=len(request.prompt) - 1 + (7 * index) % len(capture.output),
            full_depth=False,
        )
        asked += (
            _build_verification(request, capture, corner)
            for corner in (compute_full_corner(layer_count, leaf_count), shallow)
        )
    packed = verifier.verify(asked)
    found = []
    for offset, capture in enumerate(captures):
        [alone] = verifier.verify([asked[2 * offset]])
        verified = [*packed[2 * offset : 2 * offset + 2], alone]
        prompt_count = capture.prompt_count
        found.append((_decode(capture, prompt_count), [_decode(one, prompt_count) for one in verified]))
    return found


def _generate_together(generator: Engine, requests: Sequence[GenerateRequest]) -> list[Capture]:
    session = generator.open_session(slot_count=len(requests))
    handles = [session.submit(request, lambda _tokens: None, lambda: False) for request in requests]
    while not session.is_idle:
        session.step()
    return [handle.result() for handle in handles]


def _build_verification(request: GenerateRequest, capture: Capture, corner: Corner) -> VerifyRequest:
    return VerifyRequest(
        job_id=request.job_id,
        tokens=request.prompt + capture.output,
        prompt_count=len(request.prompt),
        corner=corner,
        sampling=request.sampling,
        seed=request.seed,
        network=request.network,
    )


def _decode(capture: Capture | VerifyCapture, prompt_count: int) -> list[LeafRows]:
    return [
        decode_leaf(capture.schema, position, position >= prompt_count - 1, leaf)
        for position, leaf in enumerate(capture.leaves)
    ]


def _measure_leaves(
    ours: Sequence[LeafRows], theirs: Sequence[LeafRows], float_format: FloatFormat
) -> list[LeafDistances]:
    """Return the distances of the rows that the verifier computed, position by position."""
    return [
        {key: _compute_distance(key, row, committed[key], float_format) for key, row in verified.items()}
        for verified, committed in zip(ours, theirs, strict=False)  # a corner ends early
    ]


def _compute_distance(key: RowKey, ours: bytes, theirs: bytes, float_format: FloatFormat) -> int:
    return compute_log2_distance_q16(ours, theirs, get_row_format(key[0], float_format))


def _measure_null_forgeries(
    profile: MatchingProfile,
    pairs: Sequence[tuple[list[LeafRows], list[LeafRows]]],
    float_format: FloatFormat,
) -> dict[str, str | int]:
    """Return each null forgery's smallest mean over whole jobs; MatchingError when one is no mismatch."""
    found: dict[str, str | int] = {}
    for forgery in NullForgery:
        means = []
        for index, (ours, theirs) in enumerate(pairs):
            forged = forge_rows(forgery, theirs, pairs[index - 1][1], float_format)
            count = len(forged)
            comparison = compare(
                profile, dict(enumerate(ours[:count])), dict(enumerate(forged)), float_format
            )
            if comparison.verdict is not Verdict.MISMATCH:
                raise MatchingError(
                    f"the null forgery {forgery!r} is a {comparison.verdict}: no usable thresholds"
                )
            means.append(comparison.mean_q16)
        found[f"null_{forgery}_mean_min_q16"] = min(means)
    return found


def _describe(
    generator: Capabilities, verifier: Capabilities, job_count: int, leaf_count: int
) -> dict[str, str | int]:
    return {
        "model_id": generator.model_id.hex(),
        "generator_stack": generator.stack,
        "verifier_stack": verifier.stack,
        "schema_digest": generator.schema.digest().hex(),
        "job_count": job_count,
        "decoding_batches": ",".join(str(len(batch)) for batch in _cut_batches(job_count)),
        "verification": "packed with the batch, and alone",
        "committed_leaf_count": leaf_count,
    }
