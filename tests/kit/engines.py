"""Engines and requests for tests: small enough for seconds, real enough to have numerics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pocache.engine.demo_model import build_demo_model
from pocache.engine.port import Capture, Engine, GenerateRequest, VerifyCapture, VerifyRequest
from pocache.protocol.challenge import Corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import RowKey, decode_leaf, get_row_format
from pocache.protocol.ids import JobId, NetworkId
from pocache.protocol.matching import compute_log2_distance_q16

NETWORK = NetworkId(hashlib.sha256(b"network").digest())
PLAIN = Sampling(temperature_micro=1_000_000)

LayerRows = dict[RowKey, bytes]


def build_small_model(directory: Path, *, seed: int = 0) -> Path:
    """Write a model of two layers; the whole engine suite runs on it in seconds."""
    return build_demo_model(directory, seed=seed, layer_count=2, hidden_size=64, kv_head_count=2)


def build_request(
    *,
    job: str = "job",
    seed: str = "seed",
    prompt: Sequence[int] = (72, 105, 33, 10, 7, 9),
    max_tokens: int = 12,
    sampling: Sampling = PLAIN,
    eos_stop: bool = False,
) -> GenerateRequest:
    """Return a request whose digests are made of the given names."""
    return GenerateRequest(
        job_id=JobId(hashlib.sha256(job.encode()).digest()),
        attempt=1,
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        sampling=sampling,
        seed=hashlib.sha256(seed.encode()).digest(),
        network=NETWORK,
        eos_stop=eos_stop,
    )


def run_request(engine: Engine, request: GenerateRequest) -> Capture:
    """Generate without listening."""
    return engine.generate(request, lambda _tokens: None, lambda: False)


def build_verification(request: GenerateRequest, output: Sequence[int], corner: Corner) -> VerifyRequest:
    """Return the verification of what a request delivered."""
    return VerifyRequest(
        job_id=request.job_id,
        tokens=request.prompt + tuple(output),
        prompt_count=len(request.prompt),
        corner=corner,
        sampling=request.sampling,
        seed=request.seed,
        network=request.network,
    )


def decode_rows(capture: Capture | VerifyCapture, prompt_count: int) -> dict[int, LayerRows]:
    """Return the rows by position."""
    return {
        position: decode_leaf(capture.schema, position, position >= prompt_count - 1, leaf)
        for position, leaf in enumerate(capture.leaves)
    }


def compute_worst_log2(ours: VerifyCapture, theirs: Capture, prompt_count: int) -> float:
    """Return the largest log2 distance over the rows that the verifier computed."""
    mine, committed = decode_rows(ours, prompt_count), decode_rows(theirs, prompt_count)
    return max(
        compute_log2_distance_q16(
            row, committed[position][key], get_row_format(key[0], theirs.schema.float_format)
        )
        / 65_536
        for position, rows in mine.items()
        for key, row in rows.items()
    )


def run_session(engine: Engine, requests: Sequence[GenerateRequest], *, slot_count: int = 8) -> list[Capture]:
    """Generate all requests in one session."""
    session = engine.open_session(slot_count=slot_count)
    handles = [session.submit(request, lambda _tokens: None, lambda: False) for request in requests]
    while not session.is_idle:
        session.step()
    return [handle.result() for handle in handles]
