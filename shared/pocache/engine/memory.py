"""What does not fit at once is halved and tried again, so that one job's size or fault does not take the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from pocache.protocol.errors import EngineError

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_split(
    work: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    fail: Callable[[Item, Exception], Result],
) -> list[Result]:
    """Return ``work`` over the items, in their order: together, or in halves as long as it fails.

    ``fail`` decides about an item that fails alone. Out of memory becomes EngineError.
    """
    try:
        return list(work(items))
    except (RuntimeError, MemoryError, EngineError) as error:
        reason: Exception = error
        if is_out_of_memory(error):
            reason = EngineError(f"out of memory: {error}")
            reason.__cause__ = error
    # Outside the handler: the traceback that held the failed pass's tensors is gone by now, but for a last item's.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if len(items) == 1:
        return [fail(items[0], reason)]
    del reason
    middle = len(items) // 2
    return run_split(work, items[:middle], fail) + run_split(work, items[middle:], fail)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a pass that was too large; the CPU's allocator has no error class of its own."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )
