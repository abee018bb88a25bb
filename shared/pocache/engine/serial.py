"""The runner for models whose packs would not be exact: each job decodes by itself, with a cache of its own.

Jobs still join and leave between steps and share the bound on KV memory; only their passes are apart. Refuses jobs
beyond the bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pocache.engine.capture import CapturingCache, LeafRows, PackedJob, PackRecorder, build_sketcher, to_bytes
from pocache.engine.memory import run_split
from pocache.engine.model import CausalModel
from pocache.engine.port import (
    Capture,
    FinishReason,
    GenerateRequest,
)
from pocache.engine.session import Delivery, Drawn, Ticket, compute_logprob
from pocache.engine.slab import verify_kv_tokens
from pocache.numerics.sampler import Sampler
from pocache.protocol.encoding import RowSchema


class SerialRunner:
    """Decodes each job by itself, with a cache of its own: for models whose packs would not be exact."""

    def __init__(self, model: CausalModel, schema: RowSchema, *, kv_tokens_max: int) -> None:
        self._model = model
        self._schema = schema
        self._kv_tokens_max = kv_tokens_max
        self._held: dict[Ticket, _SerialJob] = {}

    def verify_fits(self, request: GenerateRequest) -> None:
        """Refuse a job that is larger than the KV memory of a session."""
        verify_kv_tokens(request, self._kv_tokens_max)

    def count_admissible(self, waiting: Sequence[Ticket]) -> int:
        """Return how many fit within the bound."""
        left = self._kv_tokens_max - sum(
            len(one.request.prompt) + one.request.max_tokens for one in self._held
        )
        for count, ticket in enumerate(waiting):
            left -= len(ticket.request.prompt) + ticket.request.max_tokens
            if left < 0:
                return count
        return len(waiting)

    def start(self, tickets: Sequence[Ticket]) -> list[Delivery]:
        """Prefill each job and draw its first token."""
        for ticket in tickets:
            self._held[ticket] = _SerialJob(ticket, self._model, self._schema)
        return [self._step(ticket) for ticket in tickets]

    def advance(self) -> list[Delivery]:
        """Feed each job its last token and draw the next."""
        return [self._step(ticket) for ticket in list(self._held)]

    def finish(self, ticket: Ticket, finish_reason: FinishReason) -> Capture:
        """Join a job's rows into leaves."""
        prompt_count, output = len(ticket.request.prompt), tuple(ticket.output)
        leaves = self._held[ticket].rows.encode(prompt_count + len(output) - 1, prompt_count - 1)
        return Capture(self._schema, prompt_count, output, finish_reason, leaves)

    def drop(self, ticket: Ticket) -> None:
        """Free a job's cache."""
        self._held.pop(ticket, None)

    def _step(self, ticket: Ticket) -> Delivery:
        def work(tickets: Sequence[Ticket]) -> list[Delivery]:
            return [(one, self._held[one].step()) for one in tickets]

        def report(one: Ticket, error: Exception) -> Delivery:
            return one, error

        return run_split(work, [ticket], report)[0]


class _SerialJob:
    """One job's cache, sampler and rows."""

    def __init__(self, ticket: Ticket, model: CausalModel, schema: RowSchema) -> None:
        request = ticket.request
        self.rows = LeafRows(schema)
        self._ticket = ticket
        self._model = model
        self._schema = schema
        self._sketcher = build_sketcher(request, schema, model.device)
        self._sampler = Sampler(request.sampling, request.seed, model.vocab_size, model.device)
        self._cache = CapturingCache(model.module.config, storage=model.storage)

    @torch.inference_mode()
    def step(self) -> Drawn:
        """Feed the prompt, or the last token, and return the next."""
        request, output = self._ticket.request, self._ticket.output
        tokens: Sequence[int] = (output[-1],) if output else request.prompt
        recorder = PackRecorder([PackedJob(self._sketcher, len(tokens), self._schema)], self._model.device)
        self._cache.visitor = recorder.visit
        hidden_TD, logits_1V = self._model.run_single(tokens, self._cache, 1)
        position = len(request.prompt) + len(output) - 1
        token, scores_3 = self._sampler.sample(logits_1V[0].float(), position)
        self.rows.bodies += recorder.finish(hidden_TD)
        self.rows.scores.append(to_bytes(scores_3[None]))
        logit, total, _ = scores_3.tolist()
        return Drawn(token, compute_logprob(logit, total))
