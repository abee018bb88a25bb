"""Attention over many jobs in one pass: packed prefill and ragged decoding, through the model's own kernel.

Owns one registered attention function per kernel, and the mask function of the same name. While a plan is active
they cut a pass into jobs: a packed prefill attends segment by segment, a decoding step masks each slot at its own
position; masks come from the model's own mask functions, so windows and chunks are the model's. Without a plan
both are the library's. Refuses nothing: whether a model comes out right is measured when it is loaded
(``model.py``), since one that keeps its masks elsewhere would be silently wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "pocache_"
EAGER = "eager"

Visitor = Callable[[int, Tensor, Tensor], bool]
"""Called as visitor(layer, key_TD, value_TD) with a layer's new rows, KV heads x head width; False ends the pass."""

Storage = Callable[[Tensor], Tensor]
"""What a cache's own format makes of a tensor before it is stored; an honest engine has none."""


class CornerReachedError(Exception):
    """Ends the model's pass once its visitor has seen enough; never leaves the engine."""


@dataclass(slots=True)
class PackPlan:
    """A padding-free prefill: the segments [start, end) of one row of tokens, and who sees each layer's K and V."""

    segments: Sequence[tuple[int, int]]
    visitor: Callable[[int, Tensor, Tensor], bool]
    storage: Storage | None = None
    layer_next: int = 0


@dataclass(slots=True)
class DecodePlan:
    """One step of many slots: the position of each slot's new token, and the width of the cache's view."""

    positions: Tensor
    is_level: bool
    """All slots stand at the view's last position, so that nothing is masked but by windows."""

    kept: tuple[int, int] | None = None
    """An evicted cache: how many first and latest positions are still seen. A cheat; None in an honest engine."""


_ACTIVE: ContextVar[PackPlan | DecodePlan | None] = ContextVar("attention_plan", default=None)


@contextmanager
def activate(plan: PackPlan | DecodePlan) -> Generator[None, None, None]:
    """Run the passes inside under ``plan``."""
    token = _ACTIVE.set(plan)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def install_attention(model: PreTrainedModel, kernel: str) -> None:
    """Let a model attend through the plan's function over ``kernel``. Raises ValueError where it cannot."""
    name = PREFIX + kernel
    AttentionInterface.register(name, _make_attention(kernel))
    AttentionMaskInterface.register(name, _make_mask(kernel))
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:  # noqa: SLF001 - the library shows it nowhere else
        raise ValueError(f"{type(model).__name__} does not take another attention function")


def _make_attention(kernel: str) -> Callable[..., tuple[Tensor, Any]]:
    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        native = _get_kernel(kernel, module)
        plan = _ACTIVE.get()
        if not isinstance(plan, PackPlan):
            result: tuple[Tensor, Any] = native(module, query, key, value, attention_mask, *args, **kwargs)
            return result
        return _attend_packed(plan, native, module, query, key, value, attention_mask, *args, **kwargs), None

    return attend


def _attend_packed(
    plan: PackPlan,
    native: Callable[..., tuple[Tensor, Any]],
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: Sequence[Tensor | None] | None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    if plan.storage is not None:
        key, value = plan.storage(key), plan.storage(value)
    layer, plan.layer_next = plan.layer_next, plan.layer_next + 1
    if not plan.visitor(layer, flatten_heads(key), flatten_heads(value)):
        raise CornerReachedError
    outputs = []
    for index, (start, end) in enumerate(plan.segments):
        window = slice(start, end)
        mask = None if masks is None else masks[index]
        output, _ = native(
            module, query[:, :, window], key[:, :, window], value[:, :, window], mask, *args, **kwargs
        )
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _make_mask(kernel: str) -> Callable[..., Any]:
    native = ALL_MASK_ATTENTION_FUNCTIONS[kernel]

    def mask(*args: Any, **kwargs: Any) -> Any:
        plan = _ACTIVE.get()
        if plan is None or args:  # the library names every argument; what does not is not under a plan
            return native(*args, **kwargs)
        if isinstance(plan, PackPlan):
            return _mask_packed(plan, kernel, native, kwargs)
        return _mask_decoding(plan, kernel, kwargs)

    return mask


def _mask_packed(
    plan: PackPlan, kernel: str, native: Callable[..., Any], kwargs: dict[str, Any]
) -> list[Tensor | None] | None:
    """Return each segment's own mask, None where plain causality is all there is and the kernel knows it."""
    masks: list[Tensor | None] = []
    for start, end in plan.segments:
        count = end - start
        if kernel != EAGER and _is_plain(kwargs, count):
            masks.append(None)
            continue
        window = {"q_length": count, "kv_length": count, "q_offset": start, "kv_offset": start}
        masks.append(native(**{**kwargs, **window, "allow_is_causal_skip": False}))
    return None if all(mask is None for mask in masks) else masks


def _mask_decoding(plan: DecodePlan, kernel: str, kwargs: dict[str, Any]) -> Tensor | None:
    """Return the mask [B, 1, 1, T]: each slot's query stands at its own position, its keys begin at zero."""
    kv_length = kwargs["kv_length"]
    if plan.is_level and plan.kept is None and _is_plain(kwargs, kv_length):
        return None
    positions_B = plan.positions
    device = positions_B.device
    index_B = torch.arange(len(positions_B), device=device)
    seen = kwargs["mask_function"](
        index_B[:, None, None, None],
        torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device),
        positions_B[:, None, None, None],
        torch.arange(kv_length, device=device)[None, None, None, :],
    )
    seen_B11T: Tensor = seen.expand(len(positions_B), 1, 1, kv_length)
    if plan.kept is not None:
        first, latest = plan.kept
        index_T = torch.arange(kv_length, device=device)
        kept_BT = (index_T < first) | (index_T > positions_B[:, None] - latest)
        seen_B11T = seen_B11T & kept_BT[:, None, None]
    if kernel != EAGER:
        return seen_B11T
    dtype = kwargs["dtype"]
    return torch.zeros_like(seen_B11T, dtype=dtype).masked_fill(~seen_B11T, torch.finfo(dtype).min)


def _is_plain(kwargs: dict[str, Any], count: int) -> bool:
    """Whether ``count`` keys are masked by causality alone: no window shorter than that, no mask of the model's."""
    local_size = kwargs.get("local_size")
    return not kwargs.get("use_vmap", False) and (local_size is None or count <= local_size)


def _get_kernel(kernel: str, module: torch.nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    if kernel == EAGER:  # the one kernel that each model's own module defines
        eager: Callable[..., tuple[Tensor, Any]] = sys.modules[
            type(module).__module__
        ].eager_attention_forward
        return eager
    found: Callable[..., tuple[Tensor, Any]] = ALL_ATTENTION_FUNCTIONS[kernel]
    return found


def flatten_heads(states_BHTD: Tensor) -> Tensor:
    """Return batch row 0 as [T, heads x head width]."""
    return states_BHTD[0].transpose(0, 1).flatten(1)
