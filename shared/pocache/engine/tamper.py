"""What a dishonest operator does to a model in place: fewer bits, other weights, a layer less.

Works on a TransformersEngine and changes neither its model id nor its stack, which is the point of it. For
demonstrations, tests and evaluation alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pocache.engine.port import Engine
from pocache.engine.transformers import TransformersEngine
from pocache.protocol.errors import EngineError

INT4_GROUP_SIZE = 64
INT4_LEVEL_MAX = 7
INT8_LEVEL_MAX = 127
SHUFFLE_SEED = 1


def tamper_engine(kind: str, engine: Engine) -> TransformersEngine:
    """Apply one kind of cheat to the engine's model or cache and return it; EngineError for other kinds."""
    if not isinstance(engine, TransformersEngine):
        raise EngineError(f"{kind!r} needs an engine with a transformers model")
    match kind:
        case "int4":
            quantize_weights(engine.model, INT4_LEVEL_MAX, INT4_GROUP_SIZE)
        case "int8":
            quantize_weights(engine.model, INT8_LEVEL_MAX, None)
        case "kv-fp8":
            engine.storage = round_to_fp8
        case "another-model":
            shuffle_weights(engine.model)
        case "skip-last-layer":
            skip_last_layer(engine.model, engine.capabilities().layer_count)
        case _:
            raise EngineError(f"no way to tamper called {kind!r}")
    return engine


@torch.no_grad()
def quantize_weights(model: nn.Module, level_max: int, group_size: int | None) -> None:
    """Round linear weights to symmetric integers, one scale per group of inputs (None: per output)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(_quantize(module.weight, level_max, group_size))


@torch.no_grad()
def shuffle_weights(model: nn.Module) -> None:
    """Permute the elements of every matrix: another model with the same spread of weights."""
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))


def skip_last_layer(model: nn.Module, layer_count: int) -> None:
    """Let the last layer pass on what it was given; its keys and values are written all the same."""
    stacks = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == layer_count
    ]
    if not stacks:
        raise EngineError("no stack of decoder layers found in this model")

    def pass_through(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    stacks[0][-1].register_forward_hook(pass_through, with_kwargs=True)


def round_to_fp8(states: Tensor) -> Tensor:
    """Store in 8 bits (e4m3) and read back."""
    return states.to(torch.float8_e4m3fn).to(states.dtype)


def _quantize(weight_OI: Tensor, level_max: int, group_size: int | None) -> Tensor:
    input_count = weight_OI.shape[1]
    size = group_size if group_size is not None and input_count % group_size == 0 else input_count
    groups_OGS = weight_OI.float().reshape(weight_OI.shape[0], -1, size)
    scale_OG1 = groups_OGS.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / level_max
    levels_OGS = (groups_OGS / scale_OG1).round().clamp(-level_max, level_max)
    return (levels_OGS * scale_OG1).reshape(weight_OI.shape).to(weight_OI.dtype)
