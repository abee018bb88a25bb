"""One trace per job, from its submission to its payout, across processes by the NATS header ``traceparent`` (W3C).

The trace id is the first half of the job id, so that everybody who knows a job knows its trace, and a lost header costs a
trace its shape and not its place. Without ``POCACHE_TRACES`` nothing is traced and OpenTelemetry is not imported; with it
the extra ``otel`` must be installed. Refused: an exporter nobody knows. Not traced: what belongs to no job, rounds above all.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from pocache.protocol.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.trace import SpanContext

HEADER: Final = "traceparent"
VARIABLE: Final = "POCACHE_TRACES"
JOBS_KEPT_MAX: Final = 10_000
MESSAGES_KEPT_MAX: Final = 100_000
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")

K = TypeVar("K")
V = TypeVar("V")


class Tracer(Protocol):
    """What a service tells of its work on jobs."""

    def working(
        self, name: str, job_id: bytes | None, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[None]:
        """Return the context of one piece of work; ``headers`` are those of the message that caused it."""
        ...

    def carry(self, message_id: str, job_id: bytes | None) -> None:
        """Remember that a message comes of the latest work on its job here, for when it is published."""
        ...

    def take_headers(self, message_id: str) -> dict[str, str] | None:
        """Return the headers that a message is published with; None when there is nothing to say."""
        ...

    def close(self) -> None:
        """Export what is left."""
        ...


class NoTracer:
    """Traces nothing."""

    def working(
        self, name: str, job_id: bytes | None, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def carry(self, message_id: str, job_id: bytes | None) -> None:
        """Forget it."""

    def take_headers(self, message_id: str) -> dict[str, str] | None:
        return None

    def close(self) -> None:
        """Nothing is left."""


NO_TRACER: Final = NoTracer()


def open_tracer(service: str, variables: Mapping[str, str]) -> Tracer:
    """Return the tracer that ``POCACHE_TRACES`` asks for: ``otlp=URL``, or ``file=FOLDER`` for a file of JSON lines.

    Raises ConfigError on another value, and where the packages for it are not installed.
    """
    text = variables.get(VARIABLE)
    if not text:
        return NO_TRACER
    kind, _, where = text.partition("=")
    if kind not in ("otlp", "file") or not where:
        raise ConfigError(f"{VARIABLE} is {text!r}; it may be otlp=URL or file=FOLDER")
    try:
        provider = _make_provider(service, kind, where)
    except ImportError as error:
        raise ConfigError(
            f"{VARIABLE} needs OpenTelemetry: pip install 'proof-of-cache[otel]' ({error})"
        ) from error
    return JobTracer(provider)


class JobTracer:
    """The tracer over an OpenTelemetry provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("pocache")
        self._latest: _Bounded[bytes, SpanContext] = _Bounded(JOBS_KEPT_MAX)
        self._carried: _Bounded[str, str] = _Bounded(MESSAGES_KEPT_MAX)

    @contextmanager
    def _open(self, name: str, job_id: bytes, headers: Mapping[str, str] | None) -> Iterator[None]:
        from opentelemetry import trace

        parent = self._find_parent(job_id, headers)
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        with self._tracer.start_as_current_span(
            name, context=context, attributes={"pocache.job": job_id.hex()}
        ) as span:
            self._latest.put(job_id, span.get_span_context())
            yield

    def working(
        self, name: str, job_id: bytes | None, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[None]:
        return nullcontext() if job_id is None else self._open(name, job_id, headers)

    def carry(self, message_id: str, job_id: bytes | None) -> None:
        if job_id is None:
            return
        context = self._latest.get(job_id)
        if context is not None:
            self._carried.put(message_id, f"00-{context.trace_id:032x}-{context.span_id:016x}-01")

    def take_headers(self, message_id: str) -> dict[str, str] | None:
        # Kept, not taken away: a message that the bus refused is published again.
        found = self._carried.get(message_id)
        return None if found is None else {HEADER: found}

    def close(self) -> None:
        self._provider.shutdown()

    def _find_parent(self, job_id: bytes, headers: Mapping[str, str] | None) -> SpanContext:
        """Return what the work follows: the sender's work, the latest here, or the root that the job id names.

        A header of another trace than the job's own is a stranger's, and not believed.
        """
        from opentelemetry.trace import SpanContext, TraceFlags

        trace_id = int.from_bytes(job_id[:16], "big")
        found = _TRACEPARENT.fullmatch((headers or {}).get(HEADER, ""))
        if found is not None and int(found[1], 16) == trace_id and int(found[2], 16):
            span_id = int(found[2], 16)
            return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(1))
        latest = self._latest.get(job_id)
        if latest is not None:
            return latest
        return SpanContext(
            trace_id, int.from_bytes(job_id[16:24], "big"), is_remote=True, trace_flags=TraceFlags(1)
        )


class _Bounded(OrderedDict[K, V]):
    """A mapping that forgets its oldest entries; used from the event loop and the state thread."""

    def __init__(self, size_max: int) -> None:
        super().__init__()
        self._size_max = size_max
        self._lock = threading.Lock()

    def put(self, key: K, value: V) -> None:
        """Remember ``value`` as the newest."""
        with self._lock:
            self[key] = value
            self.move_to_end(key)
            if len(self) > self._size_max:
                self.popitem(last=False)


def _make_provider(service: str, kind: str, where: str) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        SimpleSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class FileExporter(SpanExporter):
        """A JSON line for each span, in a file of this process."""

        def __init__(self, file: Path) -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = file.open("a", encoding="ascii", buffering=1)

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            for span in spans:
                self._stream.write(json.dumps(describe_span(service, span)) + "\n")
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            self._stream.close()

    provider = TracerProvider(
        resource=Resource({"service.name": f"pocache-{service}"}), shutdown_on_exit=False
    )
    if kind == "file":
        provider.add_span_processor(SimpleSpanProcessor(FileExporter(Path(where) / f"{service}.jsonl")))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=where)))
    return provider


def describe_span(service: str, span: ReadableSpan) -> dict[str, object]:
    """Return a span as a line of the file exporter has it."""
    context = span.get_span_context()
    assert context is not None
    return {
        "service": service,
        "name": span.name,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": None if span.parent is None else f"{span.parent.span_id:016x}",
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        **dict(span.attributes or {}),
    }
