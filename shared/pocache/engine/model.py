"""A causal language model and the three passes over it: one job as the library runs it, a pack, a decoding step.

Owns loading, the probe that finds what each layer writes, and the self-test that decides whether packs and batches
come out as one job alone does. Refuses, by name, models without K and V for every layer, without a final hidden
state, and with weights that are not finite. What cannot be packed exactly runs one job at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from pocache.engine.attention import (
    CornerReachedError,
    DecodePlan,
    PackPlan,
    Storage,
    Visitor,
    activate,
    install_attention,
)
from pocache.engine.capture import CapturingCache
from pocache.engine.demo_model import hide_progress_bars
from pocache.engine.slab import KvShape, KvSlab, SlabCache
from pocache.protocol.errors import EngineError

PROBE_ERRORS = (
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    KeyError,
    IndexError,
    NotImplementedError,
)

PACKING_ERROR_MAX = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Median relative distance that a packed pass may have: rounding is far below, a wrong mask far above (0.6)."""

SELF_TEST_TOKENS = (3, 7)
"""Two segments; the second shows whether it saw the first."""

SHARED_ROPE_TYPES = frozenset({"dynamic", "longrope"})
"""Rotary embeddings whose frequencies follow the longest job of a pass: others would turn with it."""


class CausalModel:
    """A loaded model; ``storage`` is applied to what any pass stores, ``kept`` is what decoding still sees of its cache.

    Both are None in an honest engine.
    """

    def __init__(self, directory: Path, dtype: torch.dtype, attention: str, device: torch.device) -> None:
        self.device = device
        self.dtype = dtype
        self.storage: Storage | None = None
        self.kept: tuple[int, int] | None = None
        self.module = _load(directory, dtype, attention, device)
        self._hidden_BTD: Tensor | None = None
        if self.module.base_model is self.module:
            raise EngineError(
                f"{self.describe()} has no base model whose final hidden state could be captured"
            )
        self.module.base_model.register_forward_hook(self._keep_hidden)
        self.kv_shape, self.hidden_width, self.vocab_size = self._probe()
        self.is_packable = self._self_test(attention)

    @property
    def layer_count(self) -> int:
        """Return the decoder layers, each with K and V of its own."""
        return len(self.kv_shape.layers)

    def describe(self) -> str:
        """Name the model's class and type."""
        return f"{type(self.module).__name__} ({self.module.config.model_type})"

    def run_single(
        self, tokens: Sequence[int], cache: CapturingCache, logit_count: int
    ) -> tuple[Tensor, Tensor]:
        """Continue one job; return final hidden states [T, hidden] and the last logits [S, V].

        CornerReachedError when the cache's visitor ended the pass.
        """
        input_ids = torch.tensor([list(tokens)], device=self.device)
        result = self.module(
            input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=logit_count
        )
        return self._take_hidden()[0], result.logits[0, -logit_count:]

    def run_pack(
        self, tokens: Sequence[Sequence[int]], visitor: Visitor, logit_positions: Sequence[int]
    ) -> tuple[Tensor, Tensor] | None:
        """Prefill many jobs without padding; None when the visitor ended the pass.

        Returns final hidden states [T, hidden] over all jobs and the logits [S, V] at ``logit_positions`` of the
        pack. No cache is in use: with one, position ids would not keep the jobs apart.
        """
        ends = torch.tensor([len(one) for one in tokens]).cumsum(0).tolist()
        plan = PackPlan(list(zip([0, *ends[:-1]], ends, strict=True)), visitor, self.storage)
        input_ids = torch.tensor([[token for one in tokens for token in one]], device=self.device)
        position_ids = torch.cat([torch.arange(len(one)) for one in tokens])[None].to(self.device)
        keep = torch.tensor(list(logit_positions), dtype=torch.int64, device=self.device)
        with activate(plan):
            try:
                result = self.module(
                    input_ids=input_ids, position_ids=position_ids, use_cache=False, logits_to_keep=keep
                )
            except CornerReachedError:
                self._hidden_BTD = None
                return None
        return self._take_hidden()[0], result.logits[0]

    def run_decode(
        self, slab: KvSlab, first: int, tokens_B: Tensor, positions_B: Tensor, positions: Sequence[int]
    ) -> tuple[SlabCache, Tensor, Tensor]:
        """Advance slots from ``first`` on by one token.

        Returns the cache with what was written, final hidden states [B, hidden] and logits [B, V]. ``positions`` are the numbers of ``positions_B``, known here without asking the device.
        """
        kv_count = max(positions) + 1
        plan = DecodePlan(positions_B, is_level=min(positions) + 1 == kv_count, kept=self.kept)
        cache = SlabCache(slab, first, positions_B, kv_count, self.storage)
        with activate(plan):
            result = self.module(
                input_ids=tokens_B[:, None],
                position_ids=positions_B[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return cache, self._take_hidden()[:, -1], result.logits[:, -1]

    def _keep_hidden(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        self._hidden_BTD = output[0]

    def _take_hidden(self) -> Tensor:
        hidden_BTD, self._hidden_BTD = self._hidden_BTD, None
        if hidden_BTD is None or hidden_BTD.ndim != 3:
            raise EngineError(f"{self.describe()} does not show its final hidden state")
        return hidden_BTD

    @torch.inference_mode()
    def _probe(self) -> tuple[KvShape, int, int]:
        """Run two tokens; return what each layer writes, the hidden width and the vocabulary.

        EngineError when the cache is not the plain one row of K and V per layer and position that a schema can hold.
        """
        widths: dict[int, tuple[int, int]] = {}

        def visit(layer: int, key_TD: Tensor, value_TD: Tensor) -> bool:
            if layer in widths or key_TD.shape[0] != 2 or value_TD.shape[0] != 2:
                raise EngineError(f"{self.describe()}: layer {layer} does not write one row per position")
            widths[layer] = (key_TD.shape[1], value_TD.shape[1])
            return True

        try:
            cache = CapturingCache(self.module.config, visit)
            hidden_TD, logits_1V = self.run_single((0, 1), cache, 1)
            layers: list[Any] = [cache.layers[layer] for layer in sorted(widths)]
            shapes = tuple((_get_heads(one.keys), _get_heads(one.values)) for one in layers)
        except PROBE_ERRORS as error:
            raise EngineError(f"{self.describe()} does not run with a plain KV cache: {error}") from error
        layer_count = self.module.config.get_text_config(decoder=True).num_hidden_layers
        missing = sorted(set(range(layer_count)) - set(widths))
        if missing or len(widths) != layer_count:
            raise EngineError(f"{self.describe()} has layers without a K/V cache of their own: {missing}")
        if hidden_TD.shape[0] != 2:
            raise EngineError(f"{self.describe()} does not show its final hidden state")
        return KvShape(shapes), hidden_TD.shape[1], logits_1V.shape[-1]

    @torch.inference_mode()
    def _self_test(self, attention: str) -> bool:
        """Whether a pack and a batch of two jobs give what each gives alone; measured, as a wrong mask is silent."""
        if _get_rope_types(self.module.config) & SHARED_ROPE_TYPES:
            return False
        before = self.module.config._attn_implementation  # noqa: SLF001 - the library shows it nowhere else
        jobs = [[1 + index % (self.vocab_size - 1) for index in range(count)] for count in SELF_TEST_TOKENS]
        alone = [self._run_alone(job) for job in jobs]
        try:
            install_attention(self.module, attention)
            packed = self._run_packed(jobs)
            stepped = self._run_stepped(jobs)
        except (*PROBE_ERRORS, EngineError):
            is_exact = False
        else:
            bound = PACKING_ERROR_MAX[self.dtype]
            is_exact = all(
                ours.keys() == theirs.keys()
                and all(_compute_median_error(ours[key], theirs[key]) <= bound for key in theirs)
                for found in (packed, stepped)
                for ours, theirs in zip(found, alone, strict=True)
            )
        self._hidden_BTD = None
        if not is_exact:
            self.module.set_attn_implementation(before)
        return is_exact

    def _run_alone(self, tokens: Sequence[int]) -> dict[int, Tensor]:
        """Return K and V [T, width of both] by layer, and at -1 the hidden states, of one job as the library runs it."""
        rows: dict[int, Tensor] = {}

        def visit(layer: int, key_TD: Tensor, value_TD: Tensor) -> bool:
            rows[layer] = torch.cat((key_TD, value_TD), dim=1).clone()
            return True

        rows[-1], _ = self.run_single(tokens, CapturingCache(self.module.config, visit), 1)
        return rows

    def _run_packed(self, jobs: Sequence[Sequence[int]]) -> list[dict[int, Tensor]]:
        rows: dict[int, Tensor] = {}

        def visit(layer: int, key_TD: Tensor, value_TD: Tensor) -> bool:
            rows[layer] = torch.cat((key_TD, value_TD), dim=1).clone()
            return True

        found = self.run_pack(jobs, visit, [0])
        assert found is not None, "this visitor ends no pass"
        rows[-1] = found[0]
        first = len(jobs[0])
        return [
            {key: states[:first] for key, states in rows.items()},
            {key: states[first:] for key, states in rows.items()},
        ]

    def _run_stepped(self, jobs: Sequence[Sequence[int]]) -> list[dict[int, Tensor]]:
        """Feed both jobs token by token; the shorter one goes on with its last token once it is at its end."""
        slab = KvSlab(self.kv_shape, len(jobs), max(map(len, jobs)), self.dtype, self.device)
        rows: list[dict[int, list[Tensor]]] = [{} for _ in jobs]
        for step in range(slab.token_count):
            positions = [min(step, len(job) - 1) for job in jobs]
            tokens_B = torch.tensor(
                [job[at] for job, at in zip(jobs, positions, strict=True)], device=self.device
            )
            positions_B = torch.tensor(positions, device=self.device)
            _, hidden_BD, _ = self.run_decode(slab, 0, tokens_B, positions_B, positions)
            for index, job in enumerate(jobs):
                if step >= len(job):
                    continue
                for layer in range(self.layer_count):
                    both = [states[index, :, step].flatten() for states in slab.get(layer)]
                    rows[index].setdefault(layer, []).append(torch.cat(both))
                rows[index].setdefault(-1, []).append(hidden_BD[index])
        return [{key: torch.stack(states) for key, states in found.items()} for found in rows]


def _compute_median_error(ours_TD: Tensor, theirs_TD: Tensor) -> float:
    """Return the median relative L2 distance over positions: a routing flip of one is not a wrong mask of all."""
    ours_TD, theirs_TD = ours_TD.float(), theirs_TD.float()
    if ours_TD.shape != theirs_TD.shape:
        return float("inf")
    errors_T = (ours_TD - theirs_TD).norm(dim=1) / theirs_TD.norm(dim=1).clamp(min=1e-12)
    return float(errors_T.nan_to_num(nan=float("inf")).sort().values[len(errors_T) // 2])


def _get_rope_types(config: transformers.PretrainedConfig) -> set[str]:
    """Return the kinds of rotary embedding that a configuration names, for all layers or by type of layer."""
    parameters = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    nested = [parameters, *(one for one in parameters.values() if isinstance(one, dict))]
    return {str(one["rope_type"]) for one in nested if "rope_type" in one}


def _get_heads(states_BHTD: Tensor) -> tuple[int, int]:
    return states_BHTD.shape[1], states_BHTD.shape[3]


def _load(
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
