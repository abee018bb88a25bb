"""The reference engine: transformers behind our own decoding loop, one job at a time.

Runs any causal LM whose every layer writes K and V to a cache; refuses, by name, those that do not, weights
that are not finite, and logits or rows that are not. Rows are captured as the cache is written, never
computed again. A verification is one prefill that ends in the corner's last layer and at its last token.
Dtype and attention kernel are pinned at construction and named in the stack, because either moves rows as
much as a cheat does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

from pocache.engine.capture import CapturingCache, CornerReachedError, LeafRecorder, Storage
from pocache.engine.demo_model import hide_progress_bars
from pocache.engine.manifest import compute_manifest
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
from pocache.numerics.sampler import Sampler
from pocache.numerics.sketch import Sketcher
from pocache.protocol.encoding import FloatFormat, RowSchema
from pocache.protocol.errors import EngineCancelledError, EngineError
from pocache.protocol.limits import LEAF_COUNT_MAX

ENGINE_NAME = "pocache-transformers/1"
COLUMNS_DEFAULT = 16
"""Columns of a sketch: 16 separate every measured cheat that 64 do, at a quarter of the bytes."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TransformersEngine:
    """One model on one device; use it from one thread.

    ``threads`` sets torch's thread count, which belongs to the whole process. ``model`` and ``storage`` are
    public for evaluation alone: what is done to them is a cheat, since the stack and the model id do not
    change with them.
    """

    def __init__(
        self,
        model: Path | str,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "cpu",
        attention: str = "sdpa",
        encoding: Literal["sketch", "raw"] = "sketch",
        columns: int = COLUMNS_DEFAULT,
        threads: int | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise EngineError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        self.storage: Storage | None = None
        self._hidden_TD: Tensor | None = None
        directory = resolve_model_dir(model)
        self.model = _load_model(directory, DTYPES[dtype], attention, self._device)
        if self.model.base_model is self.model:
            raise EngineError(
                f"{self._describe()} has no base model whose final hidden state could be captured"
            )
        self.model.base_model.register_forward_hook(self._keep_hidden)
        widths, vocab_size = self._probe()
        self._capabilities = Capabilities(
            model_id=compute_manifest(directory).model_id,
            stack=_compute_stack(dtype, attention, self._device),
            schema=_compute_schema(encoding, columns, dtype, widths),
            layer_count=len(widths) - 1,
            context_tokens_max=_get_context_tokens_max(self.model.config),
            vocab_size=vocab_size,
            eos_tokens=_get_eos_tokens(self.model),
        )

    def capabilities(self) -> Capabilities:
        """Return the model's manifest id, the stack, the row schema and the bounds."""
        return self._capabilities

    @torch.inference_mode()
    def generate(
        self,
        request: GenerateRequest,
        on_step: Callable[[tuple[int, ...]], None],
        should_stop: Callable[[], bool],
    ) -> Capture:
        """Prefill the prompt, then decode token by token; see the port for what the callbacks promise."""
        capabilities = self._capabilities
        verify_generate_request(capabilities, request)
        recorder = LeafRecorder(self._build_sketcher(request), capabilities.schema)
        sampler = Sampler(request.sampling, request.seed, capabilities.vocab_size, self._device)
        cache = CapturingCache(self.model.config, recorder.visit, storage=self.storage)
        output: list[int] = []
        pending: Sequence[int] = request.prompt
        while True:
            if should_stop():
                raise EngineCancelledError("the generation was abandoned on request")
            hidden_TD, logits_1V = self._forward(pending, cache, logit_count=1)
            position = len(request.prompt) + len(output) - 1
            token, scores_3 = sampler.sample(logits_1V[0], position)
            recorder.finish_pass(hidden_TD, scores_3[None])
            output.append(token)
            on_step((token,))
            is_stop = request.eos_stop and token in capabilities.eos_tokens
            if is_stop or len(output) == request.max_tokens:
                break
            pending = (token,)
        reason: Literal["stop", "length"] = "stop" if is_stop else "length"
        return Capture(capabilities.schema, len(request.prompt), tuple(output), reason, recorder.leaves)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        """Re-run each request as one prefill that ends at its corner."""
        return [self._verify_one(request) for request in requests]

    @torch.inference_mode()
    def _verify_one(self, request: VerifyRequest) -> VerifyCapture:
        verify_verify_request(self._capabilities, request)
        corner = request.corner
        schema = restrict_to_corner(self._capabilities.schema, corner)
        recorder = LeafRecorder(self._build_sketcher(request), schema)
        layer_max = None if corner.full_depth else corner.layer_max
        cache = CapturingCache(self.model.config, recorder.visit, layer_max=layer_max, storage=self.storage)
        positions = range(request.prompt_count - 1, corner.position_max + 1)
        hidden_TD, scores_S3 = None, None
        try:
            hidden_TD, logits_SV = self._forward(
                request.tokens[: corner.position_max + 1], cache, logit_count=max(1, len(positions))
            )
        except CornerReachedError:
            assert layer_max is not None, "only a corner above the last layer ends a pass early"
        else:
            if len(positions) > 0:
                delivered = request.tokens[positions.start + 1 : positions.stop + 1]
                sampler = Sampler(request.sampling, request.seed, self._capabilities.vocab_size, self._device)
                scores_S3 = sampler.score(logits_SV, delivered, positions)
        recorder.finish_pass(hidden_TD, scores_S3)
        return VerifyCapture(schema, recorder.leaves)

    def _forward(
        self, tokens: Sequence[int], cache: CapturingCache, *, logit_count: int
    ) -> tuple[Tensor, Tensor]:
        """Run one pass; return final hidden states [T, hidden] and the last ``logit_count`` logits [S, V]."""
        input_ids = torch.tensor([list(tokens)], device=self._device)
        result = self.model(
            input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=logit_count
        )
        hidden_TD, self._hidden_TD = self._hidden_TD, None
        assert hidden_TD is not None, "the probe saw the hook fire"
        return hidden_TD, result.logits[0, -logit_count:].float()

    def _keep_hidden(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        self._hidden_TD = output[0][0]

    def _build_sketcher(self, request: GenerateRequest | VerifyRequest) -> Sketcher:
        schema = self._capabilities.schema
        return Sketcher(request.network, request.seed, request.job_id, schema, self._device)

    @torch.inference_mode()
    def _probe(self) -> tuple[list[tuple[int, ...]], int]:
        """Run two tokens; return the widths written, (K, V) per layer then (hidden,), and the vocabulary.

        EngineError when the cache is not the plain one row of K and V per layer and position that a schema
        can hold.
        """
        widths: dict[int, tuple[int, ...]] = {}

        def visit(layer: int, key_TD: Tensor, value_TD: Tensor) -> None:
            if layer in widths or key_TD.shape[0] != 2 or value_TD.shape[0] != 2:
                raise EngineError(f"{self._describe()}: layer {layer} does not write one row per position")
            widths[layer] = (key_TD.shape[1], value_TD.shape[1])

        try:
            cache = CapturingCache(self.model.config, visit)
            result = self.model(input_ids=torch.tensor([[0, 1]], device=self._device), past_key_values=cache)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
            raise EngineError(f"{self._describe()} does not run with a plain KV cache: {error}") from error
        layer_count = self.model.config.get_text_config(decoder=True).num_hidden_layers
        missing = sorted(set(range(layer_count)) - set(widths))
        if missing or len(widths) != layer_count:
            raise EngineError(f"{self._describe()} has layers without a K/V cache of their own: {missing}")
        hidden_TD, self._hidden_TD = self._hidden_TD, None
        if hidden_TD is None or hidden_TD.ndim != 2 or hidden_TD.shape[0] != 2:
            raise EngineError(f"{self._describe()} does not show its final hidden state")
        return [*(widths[layer] for layer in range(layer_count)), (hidden_TD.shape[1],)], result.logits.shape[
            -1
        ]

    def _describe(self) -> str:
        return f"{type(self.model).__name__} ({self.model.config.model_type})"


def resolve_model_dir(model: Path | str) -> Path:
    """Return the directory of a model given as such or as a hub id, downloaded once; EngineError."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise EngineError(
            f"{model} is neither a model directory nor a hub id that can be downloaded: {error}"
        ) from error


def _load_model(
    directory: Path, dtype: torch.dtype, attention: str, device: torch.device
) -> transformers.PreTrainedModel:
    try:
        with hide_progress_bars():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, attn_implementation=attention, local_files_only=True
            )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise EngineError(f"{directory} cannot be loaded as a causal language model: {error}") from error
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise EngineError(f"weights that are not finite: {name} of {type(model).__name__}")
    module: torch.nn.Module = model  # the library's own annotation of to() fits no call
    module.to(device).eval()
    return model


def _compute_schema(
    encoding: Literal["sketch", "raw"], columns: int, dtype: str, widths: Sequence[tuple[int, ...]]
) -> RowSchema:
    *layers, (hidden_width,) = widths
    if encoding == "raw" and len(set(layers)) != 1:
        raise EngineError("layers of different widths have no raw encoding: use sketch")
    key_width, value_width = layers[0]
    is_sketch = encoding == "sketch"
    return RowSchema(
        encoding=encoding,
        float_format=FloatFormat.F32 if dtype == "float32" else FloatFormat.F16,
        layer_count=len(layers),
        key_width=columns if is_sketch else key_width,
        value_width=columns if is_sketch else value_width,
        hidden_width=columns if is_sketch else hidden_width,
    )


def _compute_stack(dtype: str, attention: str, device: torch.device) -> str:
    """Name everything that moves numerics; two engines with one stack name share a calibration profile."""
    hardware = f"cpu:{torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        hardware = f"cuda{torch.version.cuda}:{torch.cuda.get_device_name(device)}"
    return (
        f"{ENGINE_NAME} transformers/{transformers.__version__} torch/{torch.__version__} dtype={dtype} "
        f"attention={attention} cache=dynamic batch=1 tp=1 device={hardware}"
    )


def _get_context_tokens_max(config: transformers.PretrainedConfig) -> int:
    """Return the context that the model was made for; unbounded ones take the protocol's bound."""
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return LEAF_COUNT_MAX if limit is None else min(int(limit), LEAF_COUNT_MAX)


def _get_eos_tokens(model: transformers.PreTrainedModel) -> tuple[int, ...]:
    eos: Any = model.config.eos_token_id
    if model.generation_config is not None and model.generation_config.eos_token_id is not None:
        eos = model.generation_config.eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)
