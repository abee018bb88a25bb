"""The reference engine: transformers behind our own batching, any causal LM that keeps K and V for every layer.

Rows are captured as the cache is written, never computed again. A verification is a packed prefill that ends in the
deepest corner's last layer and, for each job, at its last token. Models whose packs would not be exact run one job at
a time, and say so in the stack. Dtype and attention kernel are pinned at construction and named in the stack, because
either moves rows as much as a cheat does. Refuses what ``model.py`` refuses, and rows that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from pocache.engine.attention import CornerReachedError, Storage, Visitor
from pocache.engine.capture import CapturingCache, LeafRows, PackedJob, PackRecorder, build_sketcher, to_bytes
from pocache.engine.decoding import SlabRunner
from pocache.engine.manifest import compute_manifest
from pocache.engine.memory import run_split
from pocache.engine.model import CausalModel
from pocache.engine.packing import LOGIT_CELLS_MAX, PACK_TOKENS_MAX, PackItem, compute_packs
from pocache.engine.port import (
    SLOT_COUNT_DEFAULT,
    Capabilities,
    Capture,
    GenerateRequest,
    GenerationSession,
    OnStep,
    VerifyCapture,
    VerifyRequest,
    restrict_to_corner,
    verify_verify_request,
)
from pocache.engine.reference import REFERENCE_NAME, get_reference_dir
from pocache.engine.serial import SerialRunner
from pocache.engine.session import BatchSession, generate_alone
from pocache.engine.slab import KV_TOKENS_MAX
from pocache.numerics.sampler import Sampler
from pocache.protocol.encoding import FloatFormat, RowSchema
from pocache.protocol.errors import EngineError
from pocache.protocol.limits import LEAF_COUNT_MAX

ENGINE_NAME = "pocache-transformers/3"
COLUMNS_DEFAULT = 16
"""Columns of a sketch: 16 separate every measured cheat that 64 do, at a quarter of the bytes."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLOAT_FORMATS = {"float32": FloatFormat.F32, "bfloat16": FloatFormat.F16}


class TransformersEngine:
    """One model on one device; use it from one thread.

    ``threads`` sets torch's thread count, which belongs to the whole process. ``kv_tokens_max`` bounds the KV memory
    of each session, ``pack_tokens_max`` a verification pass. ``model`` and ``storage`` are public for evaluation
    alone: what is done to them is a cheat, since the stack and the model id do not change with them.
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
        kv_tokens_max: int = KV_TOKENS_MAX,
        pack_tokens_max: int = PACK_TOKENS_MAX,
        float_format: FloatFormat | None = None,
    ) -> None:
        """``float_format`` is that of the rows, by default the one that goes with the dtype."""
        if dtype not in DTYPES:
            raise EngineError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._kv_tokens_max = kv_tokens_max
        self._pack_tokens_max = pack_tokens_max
        directory = resolve_model_dir(model)
        self.causal = CausalModel(directory, DTYPES[dtype], attention, self._device)
        self._capabilities = Capabilities(
            model_id=compute_manifest(directory).model_id,
            stack=_compute_stack(dtype, attention, self._device, is_packed=self.causal.is_packable),
            schema=_compute_schema(encoding, columns, float_format or FLOAT_FORMATS[dtype], self.causal),
            layer_count=self.causal.layer_count,
            context_tokens_max=_get_context_tokens_max(self.model.config),
            vocab_size=self.causal.vocab_size,
            eos_tokens=_get_eos_tokens(self.model),
        )

    @property
    def model(self) -> transformers.PreTrainedModel:
        """Return the library's model."""
        return self.causal.module

    @property
    def is_routed(self) -> bool:
        """Whether tokens are routed among experts: rounding then flips a choice now and then, far beyond its size."""
        config = self.model.config.get_text_config(decoder=True)
        names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
        return any((getattr(config, name, None) or 0) > 1 for name in names)

    @property
    def storage(self) -> Storage | None:
        """Return what is done to keys and values before they are stored: nothing, in an honest engine."""
        return self.causal.storage

    @storage.setter
    def storage(self, storage: Storage | None) -> None:
        self.causal.storage = storage

    def capabilities(self) -> Capabilities:
        """Return the model's manifest id, the stack, the row schema and the bounds."""
        return self._capabilities

    def open_session(self, *, slot_count: int = SLOT_COUNT_DEFAULT) -> GenerationSession:
        """Return a session that decodes its jobs together, or in turn where batches would not be exact."""
        schema = self._capabilities.schema
        runner = (
            SlabRunner(self.causal, schema, slot_count=slot_count, kv_tokens_max=self._kv_tokens_max)
            if self.causal.is_packable
            else SerialRunner(self.causal, schema, kv_tokens_max=self._kv_tokens_max)
        )
        return BatchSession(self._capabilities, runner, slot_count=slot_count)

    def generate(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
    ) -> Capture:
        """Generate one job in a session of its own; see the port."""
        return generate_alone(self, request, on_step, should_stop)

    def verify(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        """Re-run the requests in as few passes as their sizes and depths allow; see the port."""
        for request in requests:
            verify_verify_request(self._capabilities, request)
        packs = [[index] for index in range(len(requests))]
        if self.causal.is_packable:
            packs = compute_packs(
                [self._measure(request) for request in requests],
                tokens_max=self._pack_tokens_max,
                logits_max=max(1, LOGIT_CELLS_MAX // self._capabilities.vocab_size),
            )
        captures: dict[int, VerifyCapture] = {}
        for pack in packs:
            found = run_split(self._verify_pack, [requests[index] for index in pack], _raise)
            captures |= dict(zip(pack, found, strict=True))
        return [captures[index] for index in range(len(requests))]

    @torch.inference_mode()
    def visit(self, tokens: Sequence[Sequence[int]], visitor: Visitor) -> None:
        """Run one pass over known tokens of several jobs, side by side without padding; a visitor sees each layer.

        The visitor has the K and V of all jobs, one after the other, and ends the pass by returning False. EngineError
        for more than one job where packs would not be exact: see ``causal.is_packable``.
        """
        if len(tokens) > 1 and not self.causal.is_packable:
            raise EngineError("this model runs one job at a time")
        self._run(tokens, visitor, ())

    def _measure(self, request: VerifyRequest) -> PackItem:
        """Return what a request asks of a pass; full depth lies beyond the last layer's K and V."""
        corner = request.corner
        return PackItem(
            token_count=corner.position_max + 1,
            layer_count=corner.layer_max + 1 + corner.full_depth,
            logit_count=len(_get_scored(request)),
        )

    @torch.inference_mode()
    def _verify_pack(self, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        """Run one pass over requests sorted by depth, deepest first."""
        schema = self._capabilities.schema
        jobs = [
            PackedJob(
                build_sketcher(request, schema, self._device),
                request.corner.position_max + 1,
                restrict_to_corner(schema, request.corner),
            )
            for request in requests
        ]
        recorder = PackRecorder(jobs, self._device)
        starts = [start for start, _ in recorder.segments]
        rows = [
            start + position
            for start, request in zip(starts, requests, strict=True)
            for position in _get_scored(request)
        ]
        tokens = [request.tokens[: request.corner.position_max + 1] for request in requests]
        hidden_TD, logits_SV = self._run(tokens, recorder.visit, rows)
        bodies = recorder.finish(hidden_TD)
        captures, taken = [], 0
        for request, job, body in zip(requests, jobs, bodies, strict=True):
            scored = _get_scored(request)
            leaf_rows = LeafRows(job.schema, [body])
            if len(scored) > 0:
                assert logits_SV is not None, "a full-depth job is never stopped early"
                delivered = request.tokens[scored.start + 1 : scored.stop + 1]
                sampler = Sampler(request.sampling, request.seed, self._capabilities.vocab_size, self._device)
                scores_S3 = sampler.score(logits_SV[taken : taken + len(scored)], delivered, scored)
                leaf_rows.scores = [to_bytes(scores_S3)]
                taken += len(scored)
            leaves = leaf_rows.encode(job.token_count, request.prompt_count - 1)
            captures.append(VerifyCapture(job.schema, leaves))
        return captures

    def _run(
        self, tokens: Sequence[Sequence[int]], visitor: Visitor, rows: Sequence[int]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return hidden states and the logits at ``rows`` of one pass, or neither when the visitor ended it."""
        if self.causal.is_packable:
            found = self.causal.run_pack(tokens, visitor, rows or [0])
            return (None, None) if found is None else found
        [alone] = tokens
        cache = CapturingCache(self.model.config, visitor, storage=self.storage)
        try:
            return self.causal.run_single(alone, cache, max(1, len(rows)))
        except CornerReachedError:
            return None, None


def resolve_model_dir(model: Path | str) -> Path:
    """Return the directory of a model given by name, as such, or as a hub id that is downloaded once; EngineError."""
    if str(model) == REFERENCE_NAME:
        return get_reference_dir()
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


def _get_scored(request: VerifyRequest) -> range:
    """Return the positions whose logits the token check needs."""
    corner = request.corner
    if not corner.full_depth:
        return range(0)
    return range(request.prompt_count - 1, max(request.prompt_count - 1, corner.position_max + 1))


def _raise(_request: VerifyRequest, error: Exception) -> VerifyCapture:
    raise error


def _compute_schema(
    encoding: Literal["sketch", "raw"], columns: int, float_format: FloatFormat, model: CausalModel
) -> RowSchema:
    widths = [tuple(heads * width for heads, width in pair) for pair in model.kv_shape.layers]
    if encoding == "raw" and len(set(widths)) != 1:
        raise EngineError("layers of different widths have no raw encoding: use sketch")
    key_width, value_width = widths[0]
    is_sketch = encoding == "sketch"
    return RowSchema(
        encoding=encoding,
        float_format=float_format,
        layer_count=len(widths),
        key_width=columns if is_sketch else key_width,
        value_width=columns if is_sketch else value_width,
        hidden_width=columns if is_sketch else model.hidden_width,
    )


def _compute_stack(dtype: str, attention: str, device: torch.device, *, is_packed: bool) -> str:
    """Name everything that moves numerics; two engines with one stack name share a calibration profile."""
    hardware = f"cpu:{torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        hardware = f"cuda{torch.version.cuda}:{torch.cuda.get_device_name(device)}"
    batching = (
        "cache=slab batch=ragged prefill=packed" if is_packed else "cache=dynamic batch=1 prefill=single"
    )
    return (
        f"{ENGINE_NAME} transformers/{transformers.__version__} torch/{torch.__version__} dtype={dtype} "
        f"attention={attention} {batching} tp=1 device={hardware}"
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
