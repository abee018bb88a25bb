"""What a dishonest operator does to a model in place: fewer bits, other weights, a layer less, a cheaper cache.

Works on a TransformersEngine and changes neither its model id nor its stack, which is the point of it. For
demonstrations, tests and evaluation alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from pocache.engine.port import Engine
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.errors import EngineError

INT4_GROUP_SIZE = 64
INT4_LEVEL_MAX = 7
INT8_LEVEL_MAX = 127
FP8_MAX = 448.0
"""Largest finite e4m3 float."""

SHUFFLE_SEED = 1
NOISE_SEED = 2
FINE_TUNE_SEED = 3
FINE_TUNE_STEPS = 15
FINE_TUNE_RATE = 1e-5
FINE_TUNE_BATCH = (4, 64)
"""Sequences and tokens of one training step."""

EVICTION_KEPT = (4, 8)
"""First and latest positions that an evicted cache still has."""


def tamper_engine(kind: str, engine: Engine) -> TransformersEngine:
    """Apply one kind of cheat to the engine's model or cache and return it; EngineError for other kinds."""
    if not isinstance(engine, TransformersEngine):
        raise EngineError(f"{kind!r} needs an engine with a transformers model")
    try:
        tamper = _TAMPERS[kind]
    except KeyError:
        raise EngineError(f"no way to tamper called {kind!r}") from None
    tamper(engine)
    return engine


def skip_layer(engine: Engine, layer: int) -> TransformersEngine:
    """Let one layer pass on what it was given; its keys and values are written all the same. EngineError."""
    if not isinstance(engine, TransformersEngine):
        raise EngineError("a skipped layer needs an engine with a transformers model")
    skip_layers(engine.model, engine.capabilities().layer_count, layer, layer + 1)
    return engine


@torch.no_grad()
def quantize_weights(
    model: nn.Module, level_max: int, group_size: int | None, *, mlp_only: bool = False
) -> None:
    """Round linear weights to symmetric integers, one scale per group of inputs (None: per output)."""
    for name, weight in _list_matrices(model):
        if not mlp_only or "mlp" in name:
            weight.copy_(_quantize(weight, level_max, group_size))


@torch.no_grad()
def round_weights_to_fp8(model: nn.Module) -> None:
    """Round linear weights to e4m3, scaled per output so that the largest is the largest float."""
    for _, weight_OI in _list_matrices(model):
        scale_O1 = weight_OI.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
        rounded_OI = (weight_OI.float() / scale_O1).to(torch.float8_e4m3fn).float() * scale_O1
        weight_OI.copy_(rounded_OI.to(weight_OI.dtype))


@torch.no_grad()
def add_noise(model: nn.Module, share: float) -> None:
    """Add Gaussian noise to linear weights, ``share`` of each matrix's own standard deviation."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    for _, weight in _list_matrices(model):
        noise = torch.randn(weight.shape, generator=generator).to(weight.device)
        weight.copy_((weight.float() + share * weight.float().std() * noise).to(weight.dtype))


@torch.no_grad()
def shuffle_weights(model: nn.Module) -> None:
    """Permute the elements of every matrix: another model with the same spread of weights."""
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))


def fine_tune(engine: TransformersEngine) -> None:
    """Train a few small steps on tokens drawn at random, in float32, and round back to the engine's dtype.

    AdamW moves each weight by about the rate a step: the mildest change that still is another model.
    """
    model, vocab_size = engine.model, engine.capabilities().vocab_size
    parameters = list(model.parameters())
    dtypes = [parameter.dtype for parameter in parameters]
    generator = torch.Generator().manual_seed(FINE_TUNE_SEED)
    with torch.enable_grad():
        for parameter in parameters:
            parameter.data = parameter.data.float()
            parameter.requires_grad = True
        optimizer = torch.optim.AdamW(parameters, lr=FINE_TUNE_RATE, weight_decay=0.0)
        for _ in range(FINE_TUNE_STEPS):
            tokens_BT = torch.randint(vocab_size, FINE_TUNE_BATCH, generator=generator).to(model.device)
            loss = model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
    for parameter, dtype in zip(parameters, dtypes, strict=True):
        parameter.requires_grad = False
        parameter.data = parameter.data.to(dtype)


def skip_layers(model: nn.Module, layer_count: int, first: int, end: int) -> None:
    """Let layers first … end − 1 pass on what they were given; they write their caches. EngineError."""
    stacks = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == layer_count
    ]
    if not stacks:
        raise EngineError("no stack of decoder layers found in this model")
    if not 0 <= first < end <= layer_count:
        raise EngineError(f"layers {first} to {end - 1} are not all among {layer_count}")

    def pass_through(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    for layer in stacks[0][first:end]:
        layer.register_forward_hook(pass_through, with_kwargs=True)


def round_to_fp8(states: Tensor) -> Tensor:
    """Store in 8 bits (e4m3) and read back."""
    return states.to(torch.float8_e4m3fn).to(states.dtype)


def round_to_levels(states: Tensor, level_max: int) -> Tensor:
    """Store as symmetric integers, one scale for each head and token, and read back."""
    scale = states.float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / level_max
    return ((states.float() / scale).round() * scale).to(states.dtype)


def evict_cache(engine: TransformersEngine) -> None:
    """Let decoding see the first and the latest positions alone. EngineError where batches are not exact."""
    if not engine.causal.is_packable:
        raise EngineError("this model decodes one job at a time: its cache cannot be evicted here")
    engine.causal.kept = EVICTION_KEPT


def _set_storage(storage: Callable[[Tensor], Tensor]) -> Callable[[TransformersEngine], None]:
    def tamper(engine: TransformersEngine) -> None:
        engine.storage = storage

    return tamper


def _skip(first: Callable[[int], int], end: Callable[[int], int]) -> Callable[[TransformersEngine], None]:
    def tamper(engine: TransformersEngine) -> None:
        count = engine.capabilities().layer_count
        skip_layers(engine.model, count, first(count), end(count))

    return tamper


_TAMPERS: Final[dict[str, Callable[[TransformersEngine], None]]] = {
    "int4": lambda engine: quantize_weights(engine.model, INT4_LEVEL_MAX, INT4_GROUP_SIZE),
    "int8": lambda engine: quantize_weights(engine.model, INT8_LEVEL_MAX, None),
    "int8-mlp": lambda engine: quantize_weights(engine.model, INT8_LEVEL_MAX, None, mlp_only=True),
    "fp8": lambda engine: round_weights_to_fp8(engine.model),
    "noise-1-percent": lambda engine: add_noise(engine.model, 0.01),
    "noise-0.1-percent": lambda engine: add_noise(engine.model, 0.001),
    "fine-tuned": fine_tune,
    "kv-fp8": _set_storage(round_to_fp8),
    "kv-int8": _set_storage(lambda states: round_to_levels(states, INT8_LEVEL_MAX)),
    "kv-int4": _set_storage(lambda states: round_to_levels(states, INT4_LEVEL_MAX)),
    "kv-evicted": evict_cache,
    "another-model": lambda engine: shuffle_weights(engine.model),
    "skip-first-layer": _skip(lambda _count: 0, lambda _count: 1),
    "skip-middle-layer": _skip(lambda count: count // 2, lambda count: count // 2 + 1),
    "skip-last-layer": _skip(lambda count: count - 1, lambda count: count),
    "early-exit": _skip(lambda count: count // 2, lambda count: count),
}


def _list_matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the weights of every linear map by name, output rows first."""
    found: list[tuple[str, Tensor]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found.append((name, module.weight))
        elif type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):  # GPT-2: inputs first
            found.append((name, module.weight.T))
    return found


def _quantize(weight_OI: Tensor, level_max: int, group_size: int | None) -> Tensor:
    input_count = weight_OI.shape[1]
    size = group_size if group_size is not None and input_count % group_size == 0 else input_count
    groups_OGS = weight_OI.float().reshape(weight_OI.shape[0], -1, size)
    scale_OG1 = groups_OGS.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / level_max
    levels_OGS = (groups_OGS / scale_OG1).round().clamp(-level_max, level_max)
    return (levels_OGS * scale_OG1).reshape(weight_OI.shape).to(weight_OI.dtype)
