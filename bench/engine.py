"""The engine on CPU: continuous batching, what committing costs, packed verification, and what depth saves.

Command: ``make bench ARGS=engine``. Recorded figures: bench/RESULTS.md. A Llama-shaped model of 8 layers with random
weights, float32, one thread, whose own computing time is what counts; the library's ``generate`` and padded forward
are the baselines. Jobs of one comparison are the same on both sides.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.measure import Row
from bench.measure import compare as compare_by
from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache.engine.decoding import SlabRunner
from pocache.engine.demo_model import PAD_TOKEN, build_demo_model
from pocache.engine.open_mode import OpenRequest, answer_questions
from pocache.engine.port import Capture, GenerateRequest, VerifyRequest
from pocache.engine.session import BatchSession
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.challenge import Corner, DeterministicStream, compute_full_corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.context import collect_samples
from pocache.protocol.ids import Digest, JobId, NetworkId
from pocache.protocol.merkle import MerkleTree
from pocache.protocol.open_mode import OpenIndex, build_question

LAYERS, HIDDEN, KV_HEADS = 8, 384, 4
JOBS, PROMPT_TOKENS, OUTPUT_TOKENS = 8, (16, 24, 32, 40, 48, 56, 64, 72), 32
RAGGED_TOKENS = (16, 32, 64, 96, 128, 192, 320, 512)
AUDIT_PROMPT, AUDIT_OUTPUT = 64, 64
OPEN_VECTORS = 16
NETWORK = NetworkId(bytes(32))

compare = partial(compare_by, clock=time.thread_time)


def run() -> list[Row]:
    """Return a row per comparison."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        directory = build_demo_model(
            Path(folder), layer_count=LAYERS, hidden_size=HIDDEN, kv_head_count=KV_HEADS
        )
        engine = TransformersEngine(directory)
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        library = load(directory, dtype=torch.float32, attn_implementation="sdpa").eval()
        library.generation_config.eos_token_id = None
        with torch.inference_mode():
            return [
                *_batching(engine, library),
                _commit(engine),
                *_packing(engine, library),
                *(_audit(engine, count) for count in (1, 4, 8)),
                _half_depth(engine),
                *(_open_mode(engine, indexed=indexed) for indexed in (True, False)),
            ]


def _batching(engine: TransformersEngine, library: Any) -> list[Row]:
    jobs = [_make_job(index, count, OUTPUT_TOKENS) for index, count in enumerate(PROMPT_TOKENS)]
    options = {"max_new_tokens": OUTPUT_TOKENS, "do_sample": False, "pad_token_id": PAD_TOKEN}
    width = max(PROMPT_TOKENS)
    padded = torch.tensor([[PAD_TOKEN] * (width - len(job.prompt)) + list(job.prompt) for job in jobs])
    mask = (padded != PAD_TOKEN).long()

    def one_by_one() -> None:
        for job in jobs:
            library.generate(torch.tensor([job.prompt]), **options)

    def static() -> None:
        library.generate(padded, attention_mask=mask, **options)

    name = f"continuous batching with commitments, {JOBS} jobs x {OUTPUT_TOKENS} tokens"
    alone = f"model.generate, {JOBS} times"
    return [
        compare(name, lambda: _generate(engine, jobs), alone, one_by_one),
        compare(name, lambda: _generate(engine, jobs), "model.generate, one padded batch", static),
    ]


def _commit(engine: TransformersEngine) -> Row:
    """Capture, sketch, leaves and Merkle tree, against the same loop without them."""
    jobs = [_make_job(index, 32, 2 * OUTPUT_TOKENS) for index in range(JOBS)]

    def commit() -> None:
        for capture in _generate(engine, jobs):
            tree = MerkleTree()
            for leaf in capture.leaves:
                tree.append(leaf)
            tree.root()

    def bare() -> None:
        _generate(engine, jobs, captures=False)

    return compare(f"{JOBS} jobs with capture, sketches, leaves, tree", commit, "the same loop without", bare)


def _packing(engine: TransformersEngine, library: Any) -> list[Row]:
    requests = [_make_audit(index, count // 2, count) for index, count in enumerate(RAGGED_TOKENS)]
    width = max(RAGGED_TOKENS)
    rows = [list(request.tokens[:-1]) for request in requests]
    padded = torch.tensor([row + [PAD_TOKEN] * (width - len(row)) for row in rows])
    mask = (padded != PAD_TOKEN).long()
    length = f"{len(rows)} jobs of {min(RAGGED_TOKENS)} to {width} tokens"
    visitor = lambda _layer, _key, _value: True  # noqa: E731

    def forward_padded() -> None:
        library(padded, attention_mask=mask, use_cache=False)

    def forward_packed() -> None:
        engine.causal.run_pack(rows, visitor, range(sum(map(len, rows))))

    def verify_padded() -> None:
        """The same engine's sketches and leaves over as many padded tokens: what padding would cost it."""
        engine.verify(_pad(requests, width))

    return [
        compare(f"packed pass, {length}", forward_packed, "padded pass", forward_padded),
        compare(
            f"verify, packed, {length}",
            lambda: engine.verify(requests),
            "verify, all as long as the longest",
            verify_padded,
        ),
    ]


def _audit(engine: TransformersEngine, count: int) -> Row:
    jobs = [_make_job(index, AUDIT_PROMPT, AUDIT_OUTPUT) for index in range(count)]
    captures = _generate(engine, jobs)
    requests = [_make_verification(job, capture) for job, capture in zip(jobs, captures, strict=True)]
    return compare(
        f"verify {count} at full depth, packed",
        lambda: engine.verify(requests),
        f"generate them at decode batch {count}",
        lambda: _generate(engine, jobs),
    )


def _half_depth(engine: TransformersEngine) -> Row:
    jobs = [_make_job(index, AUDIT_PROMPT, AUDIT_OUTPUT) for index in range(JOBS)]
    captures = _generate(engine, jobs)
    full = [_make_verification(job, capture) for job, capture in zip(jobs, captures, strict=True)]
    half = [
        _make_verification(job, capture, Corner(LAYERS // 2 - 1, len(capture.leaves) - 1, full_depth=False))
        for job, capture in zip(jobs, captures, strict=True)
    ]
    return compare(
        f"verify {JOBS} to half depth",
        lambda: engine.verify(half),
        "to full depth",
        lambda: engine.verify(full),
    )


def _open_mode(engine: TransformersEngine, *, indexed: bool) -> Row:
    """Questions whose vectors lie in the lower half of the layers, against such whose last one lies in the last."""
    profile = run_calibration(engine, engine, draw_prompts(engine.capabilities(), count=4), max_tokens=12)
    jobs = [_make_job(index, AUDIT_PROMPT, AUDIT_OUTPUT) for index in range(JOBS)]
    captures = _generate(engine, jobs)

    def ask(depth: int) -> list[OpenRequest]:
        last = AUDIT_PROMPT + AUDIT_OUTPUT - 2
        due = [OpenIndex(last - 2 * number, number % depth) for number in range(OPEN_VECTORS)]
        return [
            OpenRequest(
                job.job_id,
                job.prompt + capture.output,
                AUDIT_PROMPT,
                job.seed,
                job.network,
                build_question(
                    collect_samples(capture.schema, capture.leaves, AUDIT_PROMPT, due),
                    indexed=indexed,
                    decoy_pairs=0,
                    stream=DeterministicStream(Digest(bytes(32))),
                )[0],
            )
            for job, capture in zip(jobs, captures, strict=True)
        ]

    half, full = ask(LAYERS // 2), ask(LAYERS)
    for requests, depth in ((half, LAYERS // 2), (full, LAYERS)):
        for answer in answer_questions(engine, requests, profile):
            assert (len(answer.matches), answer.layers_run) == (OPEN_VECTORS, depth), (
                "an honest job did not match"
            )
    form = "with indices" if indexed else "without indices"
    return compare(
        f"open mode {form}, {JOBS} jobs x {OPEN_VECTORS} vectors in the lower half",
        lambda: answer_questions(engine, half, profile),
        "the same up to the last layer",
        lambda: answer_questions(engine, full, profile),
    )


def _generate(
    engine: TransformersEngine, jobs: Sequence[GenerateRequest], *, captures: bool = True
) -> list[Capture]:
    capabilities = engine.capabilities()
    runner = SlabRunner(engine.causal, capabilities.schema, slot_count=len(jobs), captures=captures)
    session = BatchSession(capabilities, runner, slot_count=len(jobs))
    handles = [session.submit(job, lambda _tokens: None, lambda: False) for job in jobs]
    while not session.is_idle:
        session.step()
    return [handle.result() for handle in handles]


def _make_job(index: int, prompt_count: int, max_tokens: int) -> GenerateRequest:
    seed = hashlib.sha256(bytes([index])).digest()
    return GenerateRequest(
        job_id=JobId(seed),
        attempt=1,
        prompt=tuple((7 * index + 3 * position) % 256 for position in range(prompt_count)),
        max_tokens=max_tokens,
        sampling=Sampling(),
        seed=seed,
        network=NETWORK,
        eos_stop=False,
    )


def _make_audit(index: int, prompt_count: int, token_count: int) -> VerifyRequest:
    job = _make_job(index, prompt_count, 1)
    tokens = tuple((5 * index + 11 * position) % 256 for position in range(token_count))
    corner = compute_full_corner(LAYERS, token_count - 1)
    return VerifyRequest(job.job_id, tokens, prompt_count, corner, job.sampling, job.seed, job.network)


def _pad(requests: Sequence[VerifyRequest], width: int) -> list[VerifyRequest]:
    return [_make_audit(index, one.prompt_count, width) for index, one in enumerate(requests)]


def _make_verification(job: GenerateRequest, capture: Capture, corner: Corner | None = None) -> VerifyRequest:
    return VerifyRequest(
        job_id=job.job_id,
        tokens=job.prompt + capture.output,
        prompt_count=len(job.prompt),
        corner=corner or compute_full_corner(LAYERS, len(capture.leaves)),
        sampling=job.sampling,
        seed=job.seed,
        network=job.network,
    )
