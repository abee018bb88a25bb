"""The engine of this process: which one, whether it is the network's model, and the one thread that runs it.

All identities of one engine decode together, in one session; each step of it is one piece of work in the thread's
queue, so a verification waits for a step and not for a generation. torch loads here, in that thread, and only when the
model needs it. Refused: an engine whose model id, stack or row
schema is not that of the network's entry. A job that the engine cannot do is that job's failure; two failures in a row
that the engine itself did not foresee are taken for a broken engine and end the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final, Literal, TypeVar

import structlog

from pocache.engine.fake import FakeEngine
from pocache.engine.manifest import compute_manifest
from pocache.engine.port import (
    Capture,
    Engine,
    GenerateRequest,
    GenerationHandle,
    GenerationSession,
    OnScores,
    OnStep,
    VerifyCapture,
    VerifyRequest,
)
from pocache.protocol.errors import ConfigError, EngineCancelledError, EngineError, PocacheError
from pocache.protocol.ids import ModelId
from pocache.runtime.metrics import Metrics
from pocache.runtime.network import Model
from pocache_worker.cheats import Cheat, build_engine

FAKE_PREFIX: Final = "fake:"
UNEXPECTED_IN_A_ROW_MAX: Final = 2

T = TypeVar("T")


class BrokenEngineError(PocacheError):
    """The engine fails in ways that no job explains; the process must not go on with it."""

    code = "E704"


class EngineHost:
    """Owns the engines of all identities and the thread in which they live."""

    def __init__(
        self,
        build: Callable[[], Engine],
        models: Mapping[ModelId, Model],
        cheats: Mapping[str, Cheat],
        metrics: Metrics | None = None,
        *,
        jobs_max: int = 1,
    ) -> None:
        """``build`` makes one honest engine at each call, in the engine thread; an identity has ``jobs_max`` at once."""
        self._jobs_max = jobs_max
        self._build = build
        self._models = models
        self._cheats = cheats
        self._metrics = metrics
        self._engines: dict[str, Engine] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._aborted = threading.Event()
        self._sessions: dict[str, GenerationSession] = {}
        self._futures: dict[GenerationHandle, Future[Capture]] = {}
        self._is_stepping = False
        self._unexpected_count = 0
        self._log = structlog.get_logger()
        self.is_loaded = False

    async def load(self) -> Model:
        """Build the engines and return the network's entry of their model. Raises ConfigError, EngineError."""
        model = await self._in_thread(self._build_all)
        self.is_loaded = True
        self._log.info("engine_loaded", model=model.model_id, stack=model.entry.stack)
        return model

    async def generate(
        self,
        identity: str,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
        on_scores: OnScores | None = None,
    ) -> Capture:
        """Generate with an identity's engine; ``on_step`` and the others are called in the engine thread.

        Raises PocacheError for a job that cannot be done, BrokenEngineError when the process must end.
        """
        future: Future[Capture] = Future()
        with self._timed("generate"):
            await self._in_thread(
                lambda: self._join(identity, request, on_step, should_stop, future, on_scores)
            )
            capture = await self._classify(asyncio.wrap_future(future))
        if self._metrics is not None:
            self._metrics.tokens.labels("generate").inc(len(capture.output))
        return capture

    async def verify(self, identity: str, requests: Sequence[VerifyRequest]) -> list[VerifyCapture]:
        """Verify with an identity's engine; errors as :meth:`generate`.

        A batch's failure does not count towards a broken engine: its caller tries each job by itself.
        """
        engine = self._engines[identity]
        done = self._in_thread(lambda: engine.verify(requests))
        with self._timed("verify"):
            captures = await self._classify(done, is_counted=len(requests) == 1)
        if self._metrics is not None:
            self._metrics.engine_jobs.labels("verify").observe(len(requests))
            self._metrics.tokens.labels("verify").inc(
                sum(request.corner.position_max + 1 for request in requests)
            )
        return captures

    def _timed(self, work: str) -> AbstractContextManager[object]:
        return nullcontext() if self._metrics is None else self._metrics.engine_s.labels(work).time()

    @property
    def is_aborted(self) -> bool:
        """Whether the process is going down without finishing what it has in hand."""
        return self._aborted.is_set()

    def close(self) -> None:
        """Abandon what is running after its next token, and end the thread."""
        if not self._aborted.is_set():
            self._aborted.set()
            self._thread.submit(self._abandon)
        self._thread.shutdown(wait=False)

    def _join(
        self,
        identity: str,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
        future: Future[Capture],
        on_scores: OnScores | None,
    ) -> None:
        """Submit a job to its engine's session; in the engine thread, as all below."""
        session = self._sessions[identity]
        try:
            handle = session.submit(
                request,
                on_step,
                lambda: self._aborted.is_set() or future.cancelled() or should_stop(),
                on_scores,
            )
        except Exception as error:  # noqa: BLE001 - told to the caller, like the end of any job
            _end(future, error)
            return
        self._futures[handle] = future
        if not self._is_stepping:
            self._is_stepping = True
            self._thread.submit(self._step)

    def _step(self) -> None:
        """Advance every session by one token; go on, behind whatever else waits, as long as jobs are open."""
        sessions = list(dict.fromkeys(self._sessions.values()))
        if self._metrics is not None:
            self._metrics.engine_jobs.labels("generate").observe(len(self._futures))
        try:
            for session in sessions:
                if not session.is_idle:
                    self._settle(session.step())
        except Exception as error:  # noqa: BLE001 - nothing waits for a step: those who wait for its jobs must hear
            for future in self._futures.values():
                _end(future, error)
            self._futures.clear()
            self._is_stepping = False
            return
        self._is_stepping = any(not session.is_idle for session in sessions)
        if self._is_stepping and not self._aborted.is_set():
            self._thread.submit(self._step)

    def _settle(self, handles: Sequence[GenerationHandle]) -> None:
        for handle in handles:
            future = self._futures.pop(handle)
            try:
                result: Capture | Exception = handle.result()
            except Exception as error:  # noqa: BLE001 - told to the caller, like the end of any job
                result = error
            _end(future, result)

    def _abandon(self) -> None:
        for session in dict.fromkeys(self._sessions.values()):
            session.close()
        self._settle([handle for handle in self._futures if handle.is_done])

    async def _classify(self, work: Awaitable[T], *, is_counted: bool = True) -> T:
        """Wait for one job's work, telling a failure of the job from a failure of the engine."""
        try:
            result = await work
        except PocacheError:
            raise
        except Exception as error:
            # A task's boundary: whatever a model library raises must not end the process at once, nor be a result.
            if _is_out_of_memory(error):
                raise EngineError(f"out of memory: {error}") from error
            self._unexpected_count += is_counted
            self._log.exception("engine_failed", in_a_row=self._unexpected_count)
            if self._unexpected_count >= UNEXPECTED_IN_A_ROW_MAX:
                raise BrokenEngineError(f"{self._unexpected_count} unexpected failures in a row") from error
            raise EngineError(f"the engine failed: {type(error).__name__}: {error}") from error
        self._unexpected_count = 0
        return result

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run a piece of work in the engine thread. Raises EngineCancelledError when the process is going down."""

        def run() -> T:
            if self._aborted.is_set():
                raise EngineCancelledError("the engine is closed")
            return work()

        if self._aborted.is_set():
            raise EngineCancelledError("the engine is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _build_all(self) -> Model:
        honest = self._build()
        model = verify_engine(honest, self._models)
        by_kind: dict[str | None, Engine] = {}
        sessions: dict[str | None, GenerationSession] = {}
        slot_count = max(1, len(self._cheats)) * self._jobs_max
        for cheat in self._cheats.values():
            if cheat.engine not in by_kind:
                by_kind[cheat.engine] = engine = build_engine(cheat.engine, honest, self._build)
                sessions[cheat.engine] = engine.open_session(slot_count=slot_count)
        self._engines = {name: by_kind[cheat.engine] for name, cheat in self._cheats.items()}
        self._sessions = {name: sessions[cheat.engine] for name, cheat in self._cheats.items()}
        return model


def verify_engine(engine: Engine, models: Mapping[ModelId, Model]) -> Model:
    """Return the network's entry of what an engine runs; raises ConfigError naming what differs."""
    found = engine.capabilities()
    model = models.get(found.model_id)
    if model is None:
        served = ", ".join(f"{one.entry.name} ({one.model_id.hex()})" for one in models.values())
        raise ConfigError(
            f"POCACHE_WORKER_MODEL is model {found.model_id.hex()}; this network serves {served or 'none'}"
        )
    pairs = (
        ("stack", found.stack, model.entry.stack),
        ("row schema", found.schema, model.schema),
        ("vocabulary", found.vocab_size, model.entry.vocab_size),
        ("end of sequence", sorted(found.eos_tokens), sorted(model.entry.eos_tokens)),
    )
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise ConfigError(
                f"model {model.entry.name}: this engine's {name} is {ours}, the network's entry says {theirs}; "
                "calibrate this combination and add it, or run the one that the entry names"
            )
    if found.context_tokens_max < model.entry.context_tokens_max:
        raise ConfigError(
            f"model {model.entry.name}: this engine takes {found.context_tokens_max} tokens, the network's entry promises"
            f" {model.entry.context_tokens_max}: its leases could not be served"
        )
    return model


def choose_engine(
    spec: str, models: Mapping[ModelId, Model], *, device: str | None, threads: int | None
) -> Callable[[], Engine]:
    """Return what builds the engine of ``fake:NAME``, a model directory or a model id, shaped as the network's entry.

    The choice is made when it is called, so that torch loads in the thread that will use it.
    """
    if spec.startswith(FAKE_PREFIX):
        return lambda: _build_fake(spec.removeprefix(FAKE_PREFIX), models)
    return lambda: _build_transformers(spec, models, device, threads)


def _build_fake(name: str, models: Mapping[ModelId, Model]) -> Engine:
    engine = FakeEngine(name)
    model = models.get(engine.capabilities().model_id)
    if model is None:
        return engine
    return FakeEngine(
        name,
        layer_count=model.schema.layer_count,
        columns=model.schema.key_width,
        context_tokens_max=model.entry.context_tokens_max,
    )


def _build_transformers(
    spec: str, models: Mapping[ModelId, Model], device: str | None, threads: int | None
) -> Engine:
    import torch

    from pocache.engine.transformers import COLUMNS_DEFAULT, TransformersEngine, resolve_model_dir

    directory = resolve_model_dir(spec)
    encoding, columns = _choose_shape(directory, models)
    chosen = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    return TransformersEngine(
        directory,
        dtype="bfloat16" if chosen == "cuda" else "float32",
        device=chosen,
        encoding=encoding,
        columns=COLUMNS_DEFAULT if columns is None else columns,
        threads=threads,
    )


def _choose_shape(
    directory: Path, models: Mapping[ModelId, Model]
) -> tuple[Literal["sketch", "raw"], int | None]:
    """Return encoding and columns of this model's entry; hashing the model is needed only to tell several apart."""
    shapes = {model_id: _get_shape(model) for model_id, model in models.items()}
    distinct = set(shapes.values())
    if len(distinct) == 1:
        return distinct.pop()
    return shapes.get(compute_manifest(directory).model_id, ("sketch", None))


def _get_shape(model: Model) -> tuple[Literal["sketch", "raw"], int | None]:
    schema = model.schema
    return schema.encoding, schema.key_width if schema.encoding == "sketch" else None


def _end(future: Future[Capture], outcome: Capture | Exception) -> None:
    """Settle what a caller waits for, unless the caller is gone."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _is_out_of_memory(error: Exception) -> bool:
    """Tell a job that is too large from a broken engine; torch's own error is known by name, without torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
