"""The runner behind a session: many jobs decode in one slab of KV memory, a token each at a step.

Owns slots, their memory and its bound, the prefill of what joins, the step of all that decode, and the rows on their
way to the host. A step on CUDA is launched before the tokens of the one before it are read, so the device never waits
for the host; a job that had ended then computed one token too many, which is dropped. Rows are joined into leaves
when a job ends, off the decoding path. Refuses jobs beyond the bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocache.engine.capture import SCORE_BYTES, LeafRows, PackedJob, PackRecorder, build_sketcher
from pocache.engine.memory import is_out_of_memory, run_split
from pocache.engine.model import CausalModel
from pocache.engine.packing import PACK_TOKENS_MAX, PackItem, compute_packs
from pocache.engine.port import (
    Capture,
    FinishReason,
    GenerateRequest,
)
from pocache.engine.session import Delivery, Drawn, Ticket, compute_logprob
from pocache.engine.slab import KV_TOKENS_MAX, KvSlab, compute_capacity, verify_kv_tokens
from pocache.numerics.slots import SlotSampler, SlotSketcher
from pocache.protocol.encoding import RowSchema
from pocache.protocol.errors import EngineError

BLOCK_STEPS = 32
"""Steps whose rows are handed to their jobs together."""

LAG_CUDA = 1
"""Steps launched ahead of the one whose tokens are read."""


@dataclass(slots=True, eq=False)
class _Slot:
    """What the slab runner keeps of one job."""

    ticket: Ticket
    rows: LeafRows
    launched_count: int = 0
    """Tokens drawn, or being drawn."""
    is_dropped: bool = False

    @property
    def position(self) -> int:
        """Return the position of the last drawn token, the next to be fed."""
        return len(self.ticket.request.prompt) + self.launched_count - 1

    @property
    def token_count(self) -> int:
        """Return the positions that may be written."""
        return len(self.ticket.request.prompt) + self.ticket.request.max_tokens


@dataclass(slots=True)
class _Launch:
    """One launched step: its bytes on their way to the host, [B, rows ‖ scores ‖ token ‖ flag]."""

    slots: list[_Slot]
    data: Tensor
    event: torch.cuda.Event | None


@dataclass(slots=True)
class _Block:
    """Consecutive steps of the same jobs, not yet handed out."""

    slots: list[_Slot] = field(default_factory=list)
    steps: list[np.ndarray[Any, Any]] = field(default_factory=list)


class SlabRunner:
    """Decodes all jobs in one pass a step; active jobs hold slots 0 to B-1."""

    def __init__(
        self,
        model: CausalModel,
        schema: RowSchema,
        *,
        slot_count: int,
        kv_tokens_max: int = KV_TOKENS_MAX,
        lag: int | None = None,
        captures: bool = True,
    ) -> None:
        """``captures=False`` leaves out rows and leaves: for measuring what they cost, nothing else."""
        self._model = model
        self._schema = schema
        self._slots_max = slot_count
        self._kv_tokens_max = kv_tokens_max
        self._lag = lag if lag is not None else LAG_CUDA * (model.device.type == "cuda")
        self._captures = captures
        self._slots: list[_Slot] = []
        self._slab: KvSlab | None = None
        self._sampler = SlotSampler(slot_count, model.vocab_size, model.device)
        groups = [(heads * width, rows) for (heads, width), rows in model.kv_shape.groups()]
        self._sketcher = SlotSketcher(
            schema, [*groups, (model.hidden_width, (2 * model.layer_count,))], slot_count, model.device
        )
        self._tokens_S = torch.zeros(slot_count, dtype=torch.int64, device=model.device)
        self._positions_S = torch.zeros(slot_count, dtype=torch.int64, device=model.device)
        self._launches: deque[_Launch] = deque()
        self._block = _Block()
        is_cuda = model.device.type == "cuda"
        self._side = torch.cuda.Stream(model.device) if is_cuda else None  # type: ignore[no-untyped-call]

    def verify_fits(self, request: GenerateRequest) -> None:
        """Refuse a job that is larger than the KV memory of a session."""
        verify_kv_tokens(request, self._kv_tokens_max)

    def count_admissible(self, waiting: Sequence[Ticket]) -> int:
        """Return how many of the first waiting jobs fit beside the active ones; memory grows for them here."""
        held = [slot.token_count for slot in self._slots]
        for count in range(len(waiting), 0, -1):
            wanted = [len(one.request.prompt) + one.request.max_tokens for one in waiting[:count]]
            capacity = compute_capacity([*held, *wanted], self._slots_max, self._kv_tokens_max)
            if capacity is not None and self._grow(*capacity, len(held) + count, max(wanted)):
                return count
        return 0

    def start(self, tickets: Sequence[Ticket]) -> list[Delivery]:
        """Prefill jobs in packs, write their keys and values into slots, and draw their first tokens."""
        for ticket in tickets:
            ticket.state = _Slot(ticket, LeafRows(self._schema))
        items = [PackItem(len(ticket.request.prompt), self._model.layer_count, 1) for ticket in tickets]
        deliveries: list[Delivery] = []
        for pack in compute_packs(items, tokens_max=PACK_TOKENS_MAX, logits_max=len(items)):
            chosen = [tickets[index] for index in pack]
            deliveries += run_split(self._prefill, chosen, lambda ticket, error: (ticket, error))
        return deliveries

    def advance(self) -> list[Delivery]:
        """Launch one step for all jobs that want more tokens, and read the launches that are due."""
        wanting = [slot for slot in self._slots if slot.launched_count < slot.ticket.request.max_tokens]
        failed: list[Delivery] = []
        if len(wanting) == len(self._slots):
            failed = self._launch_all(wanting)
        elif wanting:  # with a lag some have drawn all and wait to be read; slots go in runs without gaps
            for run in _find_runs(wanting, self._slots):
                failed += self._launch_all(run)
        lag = self._lag if wanting else 0
        deliveries: list[Delivery] = []
        while len(self._launches) > lag:
            deliveries += self._read(self._launches.popleft())
        return failed + deliveries

    def finish(self, ticket: Ticket, finish_reason: FinishReason) -> Capture:
        """Join a job's rows into leaves."""
        self._hand_out()
        slot: _Slot = ticket.state
        prompt_count, output = len(ticket.request.prompt), tuple(ticket.output)
        leaf_count = prompt_count + len(output) - 1
        leaves = slot.rows.encode(leaf_count, prompt_count - 1) if self._captures else [b""] * leaf_count
        return Capture(self._schema, prompt_count, output, finish_reason, leaves)

    @torch.inference_mode()
    def drop(self, ticket: Ticket) -> None:
        """Give a job's slot to the last one."""
        slot: _Slot | None = ticket.state
        if slot is None:
            return
        slot.is_dropped = True
        ticket.state = None
        if slot not in self._slots:
            return
        self._hand_out()
        index, last = self._slots.index(slot), len(self._slots) - 1
        if index != last:
            assert self._slab is not None
            self._slab.move(last, index)
            self._sampler.move(last, index)
            self._sketcher.move(last, index)
            self._tokens_S[index] = self._tokens_S[last]
            self._positions_S[index] = self._positions_S[last]
            self._slots[index] = self._slots[last]
        self._slots.pop()

    @torch.inference_mode()
    def _grow(self, slot_count: int, token_count: int, needed_slots: int, needed_tokens: int) -> bool:
        """Make the slab hold so much; False when the machine has no memory for it and others must end first."""
        slab = self._slab
        if slab is not None and slab.slot_count >= needed_slots and slab.token_count >= needed_tokens:
            return True
        if not self._slots:
            self._slab = slab = None  # nothing to keep: free it before the next one is made
        try:
            grown = KvSlab(
                self._model.kv_shape, slot_count, token_count, self._model.dtype, self._model.device
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        if slab is not None:
            kept = max((slot.position for slot in self._slots), default=0)
            grown.take_over(slab, len(self._slots), min(kept, slab.token_count))
        self._slab = grown
        return True

    @torch.inference_mode()
    def _prefill(self, tickets: Sequence[Ticket]) -> list[Delivery]:
        """Run one pack; on failure nothing has joined."""
        assert self._slab is not None
        slab, model, first = self._slab, self._model, len(self._slots)
        requests = [ticket.request for ticket in tickets]
        sketchers = [build_sketcher(request, self._schema, model.device) for request in requests]
        recorder = PackRecorder(
            [
                PackedJob(sketcher, len(request.prompt), self._schema)
                for sketcher, request in zip(sketchers, requests, strict=True)
            ],
            model.device,
        )
        segments = recorder.segments

        def visit(layer: int, key_TD: Tensor, value_TD: Tensor) -> bool:
            for index, (start, end) in enumerate(segments):
                slab.write(layer, first + index, key_TD[start:end], value_TD[start:end])
            return not self._captures or recorder.visit(layer, key_TD, value_TD)

        last_positions = [end - 1 for _, end in segments]
        found = model.run_pack([request.prompt for request in requests], visit, last_positions)
        assert found is not None, "this visitor ends no pass"
        hidden_TD, logits_BV = found
        bodies = recorder.finish(hidden_TD) if self._captures else [None] * len(requests)
        positions = [len(request.prompt) - 1 for request in requests]
        for index, (ticket, sketcher) in enumerate(zip(tickets, sketchers, strict=True)):
            self._sampler.join(first + index, ticket.request.sampling, ticket.request.seed)
            self._sketcher.join(first + index, sketcher)
            if (body := bodies[index]) is not None:
                # The last position of a prompt has its score row; those before it have none.
                ticket.state.rows.bodies = [body]
        positions_B = torch.tensor(positions, device=model.device)
        tokens_B, scores_B3, ok_B = self._sampler.sample(first, logits_BV, positions_B, positions)
        data = torch.cat(
            (_as_bytes(scores_B3), _as_bytes(tokens_B[:, None]), _as_bytes(ok_B[:, None])), dim=1
        )
        host = data.cpu().numpy()
        self._tokens_S[first : first + len(tickets)] = tokens_B
        self._positions_S[first : first + len(tickets)] = positions_B + 1
        deliveries: list[Delivery] = []
        self._hand_out()
        for index, (ticket, drawn) in enumerate(zip(tickets, _read_drawn(host), strict=True)):
            slot: _Slot = ticket.state
            slot.rows.scores = [host[index : index + 1, :SCORE_BYTES]]
            slot.launched_count = 1
            deliveries.append((ticket, drawn))
        self._slots += [ticket.state for ticket in tickets]
        return deliveries

    def _launch_all(self, slots: Sequence[_Slot]) -> list[Delivery]:
        """Launch one step for neighbouring slots; those that fail alone are reported."""

        def report(slot: _Slot, error: Exception) -> Delivery | None:
            return slot.ticket, error

        return [one for one in run_split(self._launch, slots, report) if one is not None]

    @torch.inference_mode()
    def _launch(self, slots: Sequence[_Slot]) -> list[Delivery | None]:
        assert self._slab is not None
        first = self._slots.index(slots[0])
        window = slice(first, first + len(slots))
        positions = [slot.position for slot in slots]
        positions_B = self._positions_S[window]
        cache, hidden_BD, logits_BV = self._model.run_decode(
            self._slab, first, self._tokens_S[window], positions_B, positions
        )
        tokens_B, scores_B3, ok_B = self._sampler.sample(first, logits_BV, positions_B, positions)
        parts = [_as_bytes(scores_B3), _as_bytes(tokens_B[:, None]), _as_bytes(ok_B[:, None])]
        if self._captures:
            vectors = [*cache.get_written(), hidden_BD[:, None]]
            parts.insert(0, _as_bytes(self._sketcher.sketch(first, vectors)))
        launch = self._send(list(slots), torch.cat(parts, dim=1))
        # From here on nothing fails: what was launched is counted, and a retry would draw it twice.
        self._tokens_S[window] = tokens_B
        self._positions_S[window] += 1
        for slot in slots:
            slot.launched_count += 1
        self._launches.append(launch)
        return [None] * len(slots)

    def _send(self, slots: list[_Slot], data: Tensor) -> _Launch:
        """Begin to copy a step's bytes to the host, beside the next step's computation."""
        if self._side is None:
            return _Launch(slots, data, None)
        pinned = torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
        self._side.wait_stream(torch.cuda.current_stream(self._model.device))
        with torch.cuda.stream(self._side):
            pinned.copy_(data, non_blocking=True)
            data.record_stream(self._side)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._side)
        return _Launch(slots, pinned, event)

    def _read(self, launch: _Launch) -> list[Delivery]:
        """Wait for a launch's bytes; keep its rows and return its tokens."""
        if launch.event is not None:
            launch.event.synchronize()
        host = launch.data.numpy()
        if self._block.slots != launch.slots or len(self._block.steps) >= BLOCK_STEPS:
            self._hand_out()
            self._block.slots = launch.slots
        self._block.steps.append(host)
        return [
            (slot.ticket, drawn)
            for slot, drawn in zip(launch.slots, _read_drawn(host), strict=True)
            if not slot.is_dropped
        ]

    def _hand_out(self) -> None:
        """Give the rows of the steps read so far to their jobs."""
        if not self._block.steps:
            return
        steps = np.stack(self._block.steps)
        body_bytes = steps.shape[2] - SCORE_BYTES - 9
        for index, slot in enumerate(self._block.slots):
            slot.rows.bodies.append(steps[:, index, :body_bytes])
            slot.rows.scores.append(steps[:, index, body_bytes : body_bytes + SCORE_BYTES])
        self._block = _Block()


def _find_runs(chosen: Sequence[_Slot], slots: Sequence[_Slot]) -> list[list[_Slot]]:
    """Return the chosen slots in runs of neighbours."""
    runs: list[list[_Slot]] = []
    last = -2
    for index, slot in enumerate(slots):
        if slot not in chosen:
            continue
        if index == last + 1:
            runs[-1].append(slot)
        else:
            runs.append([slot])
        last = index
    return runs


def _as_bytes(values_BX: Tensor) -> Tensor:
    return values_BX.contiguous().view(torch.uint8)


def _read_drawn(host: np.ndarray[Any, Any]) -> list[Drawn | EngineError]:
    """Return what was drawn at the end of a step's bytes, or why there is nothing."""
    tokens = np.ascontiguousarray(host[:, -9:-1]).view(np.int64)[:, 0].tolist()
    scores_B3 = np.ascontiguousarray(host[:, -9 - SCORE_BYTES : -9]).view(np.float32)
    return [
        Drawn(token, compute_logprob(logit, total))
        if is_finite
        else EngineError("logits are not finite: no token can be drawn from them")
        for token, (logit, total, _), is_finite in zip(
            tokens, scores_B3.tolist(), host[:, -1].tolist(), strict=True
        )
    ]
