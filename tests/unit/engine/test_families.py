"""Every dense or MoE family that keeps K and V per layer: batched decoding and packed verification agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kit.engines import build_request, build_verification, compute_worst_log2, run_session
from pocache.engine.demo_model import hide_progress_bars
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.commitment import Sampling

SIZE: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
DENSE: dict[str, Any] = {**SIZE, "intermediate_size": 48, "num_key_value_heads": 1}
HONEST_LOG2_MAX = -17.0

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", DENSE),
    "qwen2": ("Qwen2Config", DENSE),
    "qwen2-half-windowed": (
        "Qwen2Config",
        {**DENSE, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**DENSE, "head_dim": 24}),
    "mistral-windowed": ("MistralConfig", {**DENSE, "sliding_window": 5}),
    "mistral": ("MistralConfig", {**DENSE, "sliding_window": None}),
    "gemma": ("GemmaConfig", {**DENSE, "head_dim": 16}),
    "gemma3-windowed": (
        "Gemma3TextConfig",
        {
            **DENSE,
            "head_dim": 16,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi": ("PhiConfig", {**SIZE, "intermediate_size": 48}),
    "phi3": ("Phi3Config", {**DENSE, "sliding_window": None}),
    "gpt2": (
        "GPT2Config",
        {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1},
    ),
    "gpt-neox": ("GPTNeoXConfig", {**SIZE, "intermediate_size": 48}),
    "mixtral": ("MixtralConfig", {**DENSE, "num_local_experts": 4, "sliding_window": None}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {**DENSE, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
}
EAGER_ALONE = {
    "gemma2-softcapped": ("Gemma2Config", {**DENSE, "head_dim": 16, "sliding_window": 4}),
    "gpt-oss-with-sinks": (
        "GptOssConfig",
        {
            **DENSE,
            "head_dim": 16,
            "num_local_experts": 4,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}


def build_engine(directory: Path, name: str, values: dict[str, Any], attention: str) -> TransformersEngine:
    """Return an engine over a random model of the family."""
    torch.manual_seed(0)
    build: Any = transformers.AutoModelForCausalLM.from_config
    model = build(getattr(transformers, name)(**values))
    with hide_progress_bars():
        model.save_pretrained(directory)
    return TransformersEngine(directory, attention=attention)


def compute_worst(engine: TransformersEngine) -> float:
    """Return the largest log2 distance over ragged jobs decoded together and verified in one call."""
    requests = [
        build_request(
            job=str(index),
            seed=str(index),
            prompt=range(2, 4 + 5 * index),
            max_tokens=9 - 2 * index,
            sampling=Sampling(1_000_000 * (index % 2)),
        )
        for index in range(4)
    ]
    captures = run_session(engine, requests, slot_count=3)
    corners = [
        compute_full_corner(2, len(captures[0].leaves)),
        Corner(0, 9, full_depth=False),
        Corner(1, len(captures[2].leaves) - 1, full_depth=False),
        compute_full_corner(2, len(captures[3].leaves)),
    ]
    verifications = [
        build_verification(request, capture.output, corner)
        for request, capture, corner in zip(requests, captures, corners, strict=True)
    ]
    together = engine.verify(verifications)
    alone = [engine.verify([verification])[0] for verification in verifications]
    return max(
        compute_worst_log2(ours, capture, len(request.prompt))
        for answers in (together, alone)
        for ours, capture, request in zip(answers, captures, requests, strict=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_and_packs_agree(family: str, tmp_path: Path) -> None:
    engine = build_engine(tmp_path, *FAMILIES[family], attention="sdpa")
    assert engine.causal.is_packable
    assert "batch=ragged prefill=packed" in engine.capabilities().stack
    assert compute_worst(engine) < HONEST_LOG2_MAX


@pytest.mark.parametrize("family", [*EAGER_ALONE, "mistral-windowed", "gpt2"])
def test_batches_and_packs_agree_under_the_models_own_attention(family: str, tmp_path: Path) -> None:
    """Softcaps and sinks exist nowhere else; masks are additive there."""
    engine = build_engine(tmp_path, *{**FAMILIES, **EAGER_ALONE}[family], attention="eager")
    assert engine.causal.is_packable
    assert compute_worst(engine) < HONEST_LOG2_MAX


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "BloomConfig",
            {
                "n_layer": 2,
                "hidden_size": 32,
                "n_head": 2,
                "vocab_size": 64,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "pad_token_id": 3,
            },
        ),
        (
            "LlamaConfig",
            {
                **DENSE,
                "max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            },
        ),
    ],
)
def test_what_cannot_be_packed_exactly_runs_one_by_one(
    name: str, values: dict[str, Any], tmp_path: Path
) -> None:
    """Positions that live in a mask of the model's own; rotations that follow the longest job of a pass."""
    engine = build_engine(tmp_path, name, values, attention="eager")
    assert not engine.causal.is_packable
    assert "batch=1 prefill=single" in engine.capabilities().stack
    assert compute_worst(engine) < HONEST_LOG2_MAX


def test_a_model_that_packs_wrongly_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that runs over a whole pack, as packing by position ids does under a cache, is measured and not used."""
    from pocache.engine import attention

    monkeypatch.setattr(attention.PackPlan, "__init__", _make_blind(attention.PackPlan.__init__))
    engine = build_engine(tmp_path, *FAMILIES["llama"], attention="sdpa")
    assert not engine.causal.is_packable


def _make_blind(init: Any) -> Any:
    def blind(self: Any, segments: Any, *args: Any, **kwargs: Any) -> None:
        init(self, [(0, segments[-1][1])], *args, **kwargs)

    return blind
