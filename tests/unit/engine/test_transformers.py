"""What the transformers engine captures, for which models, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kit.engines import PLAIN, build_request, build_verification, compute_worst_log2, decode_rows, run_request
from pocache.engine.demo_model import hide_progress_bars
from pocache.engine.transformers import TransformersEngine
from pocache.numerics.sketch import Sketcher
from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.encoding import FloatFormat, RowKind
from pocache.protocol.errors import EngineError

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
HONEST_LOG2_MAX = -17.0


def build_random_model(config: Any) -> Any:
    build: Any = transformers.AutoModelForCausalLM.from_config  # not annotated
    return build(config)


def save_model(directory: Path, model: Any) -> Path:
    with hide_progress_bars():
        model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def engine(model_dir: Path) -> TransformersEngine:
    return TransformersEngine(model_dir)


@pytest.fixture(scope="module")
def raw_engine(model_dir: Path) -> TransformersEngine:
    return TransformersEngine(model_dir, encoding="raw")


def test_rows_are_what_the_cache_holds_after_decoding(raw_engine: TransformersEngine) -> None:
    """The library's own decoding of the same tokens leaves the same keys and values, bit for bit."""
    request = build_request(max_tokens=6)
    capture = run_request(raw_engine, request)
    cache: Any = transformers.DynamicCache(config=raw_engine.model.config)
    with torch.inference_mode():
        for piece in (request.prompt, *((token,) for token in capture.output[:-1])):
            raw_engine.model(input_ids=torch.tensor([piece]), past_key_values=cache, logits_to_keep=1)
    rows = decode_rows(capture, len(request.prompt))
    for layer, slot in enumerate(cache.layers):
        for kind, states in ((RowKind.K, slot.keys), (RowKind.V, slot.values)):
            for position in range(len(capture.leaves)):
                expected = states[0, :, position].reshape(-1).numpy().tobytes()
                assert rows[position][kind, layer] == expected, (kind, layer, position)


def test_sketch_rows_are_sketches_of_the_raw_rows(
    engine: TransformersEngine, raw_engine: TransformersEngine
) -> None:
    request = build_request(max_tokens=4)
    sketched, raw = (run_request(each, request) for each in (engine, raw_engine))
    assert sketched.output == raw.output
    sketcher = Sketcher(request.network, request.seed, request.job_id, sketched.schema)
    rows, vectors = (decode_rows(capture, len(request.prompt)) for capture in (sketched, raw))
    for key in ((RowKind.K, 1), (RowKind.V, 0), (RowKind.HIDDEN, 0)):
        vector = torch.frombuffer(bytearray(vectors[8][key]), dtype=torch.float32)
        assert sketcher.encode(*key, vector[None]) == [rows[8][key]]
    assert rows[8][RowKind.SCORES, 0] == vectors[8][RowKind.SCORES, 0]


def test_the_hidden_row_is_what_the_head_reads(raw_engine: TransformersEngine) -> None:
    request = build_request(max_tokens=3)
    capture = run_request(raw_engine, request)
    last = decode_rows(capture, len(request.prompt))[len(capture.leaves) - 1]
    hidden = torch.frombuffer(bytearray(last[RowKind.HIDDEN, 0]), dtype=torch.float32)
    model: Any = raw_engine.model
    with torch.inference_mode():
        logits = model.get_output_embeddings()(hidden)
    logit, total, gap = torch.frombuffer(bytearray(last[RowKind.SCORES, 0]), dtype=torch.float32).tolist()
    assert logit == pytest.approx(float(logits[capture.output[-1]]), abs=1e-4)
    assert total == pytest.approx(float(logits.logsumexp(dim=0)), abs=1e-4)
    assert gap == 0.0


def test_nothing_above_the_corner_runs(engine: TransformersEngine) -> None:
    request = build_request()
    output = run_request(engine, request).output
    ran: list[str] = []
    model: Any = engine.model
    layers = model.base_model.layers
    handles = [
        layers[1].register_forward_pre_hook(lambda *_: ran.append("layer 1")),
        layers[0].mlp.register_forward_pre_hook(lambda *_: ran.append("mlp 0")),
    ]
    try:
        engine.verify([build_verification(request, output, Corner(0, 9, full_depth=False))])
        assert ran == []
        engine.verify([build_verification(request, output, Corner(1, 9, full_depth=False))])
        assert ran == ["mlp 0", "layer 1"]
    finally:
        for handle in handles:
            handle.remove()


def test_no_token_beyond_the_corner_runs(engine: TransformersEngine) -> None:
    request = build_request()
    output = run_request(engine, request).output
    counts: list[int] = []
    handle = engine.model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, args: counts.append(args[0].shape[1])
    )
    try:
        engine.verify([build_verification(request, output, Corner(1, 7, full_depth=True))])
    finally:
        handle.remove()
    assert counts == [8]


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(
            n_layer=2, n_embd=32, n_head=2, vocab_size=64, bos_token_id=0, eos_token_id=0
        ),
        transformers.MistralConfig(**SMALL, intermediate_size=48, num_key_value_heads=1, sliding_window=5),
        transformers.Qwen3Config(**SMALL, intermediate_size=48, num_key_value_heads=1, head_dim=24),
    ],
    ids=lambda config: config.model_type,
)
def test_other_architectures_verify(config: Any, tmp_path: Path) -> None:
    """Learned positions, a sliding window shorter than the prompt, keys that are normalised."""
    torch.manual_seed(0)
    engine = TransformersEngine(save_model(tmp_path, build_random_model(config)))
    request = build_request(prompt=range(1, 12), max_tokens=9)
    capture = run_request(engine, request)
    corners = (compute_full_corner(2, len(capture.leaves)), Corner(1, 13, full_depth=False))
    for verified in engine.verify(
        [build_verification(request, capture.output, corner) for corner in corners]
    ):
        assert compute_worst_log2(verified, capture, len(request.prompt)) < HONEST_LOG2_MAX


def test_bfloat16_is_stored_as_float16(model_dir: Path) -> None:
    engine = TransformersEngine(model_dir, dtype="bfloat16")
    assert engine.capabilities().schema.float_format is FloatFormat.F16
    request = build_request()
    capture = run_request(engine, request)
    corner = compute_full_corner(2, len(capture.leaves))
    [verified] = engine.verify([build_verification(request, capture.output, corner)])
    assert compute_worst_log2(verified, capture, len(request.prompt)) < -2.0


def test_the_stack_names_what_moves_numerics(model_dir: Path, engine: TransformersEngine) -> None:
    stacks = {
        engine.capabilities().stack,
        TransformersEngine(model_dir, dtype="bfloat16").capabilities().stack,
        TransformersEngine(model_dir, attention="eager").capabilities().stack,
    }
    assert len(stacks) == 3
    assert all(torch.__version__ in stack and transformers.__version__ in stack for stack in stacks)


def test_capabilities_come_from_the_model(engine: TransformersEngine) -> None:
    capabilities = engine.capabilities()
    assert capabilities.vocab_size == 259
    assert capabilities.eos_tokens == (257,)
    assert capabilities.context_tokens_max == 2_048
    assert capabilities.layer_count == capabilities.schema.layer_count == 2


def test_a_model_without_a_kv_cache_is_refused_by_name(tmp_path: Path) -> None:
    config = transformers.MambaConfig(num_hidden_layers=2, hidden_size=16, vocab_size=32, state_size=4)
    save_model(tmp_path, build_random_model(config))
    with pytest.raises(EngineError, match="Mamba"):
        TransformersEngine(tmp_path)


def test_a_model_with_one_layer_without_a_kv_cache_is_refused(tmp_path: Path) -> None:
    """Rows of the other layers alone would leave a layer that nobody looks at."""
    config = transformers.Lfm2Config(
        **SMALL, intermediate_size=48, num_key_value_heads=1, layer_types=["full_attention", "conv"]
    )
    with pytest.raises(EngineError, match=r"Lfm2.*\[1\]"):
        TransformersEngine(save_model(tmp_path, build_random_model(config)))


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SMALL, intermediate_size=48)
    model = build_random_model(config)
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    with pytest.raises(EngineError, match=r"layers\.1\.mlp\.up_proj"):
        TransformersEngine(save_model(tmp_path, model))


def test_rows_that_become_infinite_end_the_generation(tmp_path: Path) -> None:
    """No rows, no commitment: weights may be finite and what they compute not."""
    config = transformers.LlamaConfig(**SMALL, intermediate_size=48)
    model = build_random_model(config)
    model.model.layers[1].self_attn.v_proj.weight.data.fill_(3e38)
    engine = TransformersEngine(save_model(tmp_path, model))
    with pytest.raises(EngineError, match="not finite"):
        run_request(engine, build_request(prompt=(1, 2, 3)))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be loaded"):
        TransformersEngine(tmp_path)
    with pytest.raises(EngineError, match="neither a model directory"):
        TransformersEngine("../no such/hub id")


def test_dtypes_without_a_profile_are_refused(model_dir: Path) -> None:
    with pytest.raises(EngineError, match="dtype"):
        TransformersEngine(model_dir, dtype="float64")  # type: ignore[arg-type]


def test_an_interrupted_generation_leaves_the_engine_clean(engine: TransformersEngine) -> None:
    expected = run_request(engine, build_request(sampling=PLAIN))
    with pytest.raises(EngineError):
        engine.generate(build_request(), lambda _tokens: None, iter([False, False, True]).__next__)
    assert run_request(engine, build_request(sampling=PLAIN)) == expected
