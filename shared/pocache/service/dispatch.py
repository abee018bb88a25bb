"""From bytes on a subject to a handler's effects: decode, verify, apply once, say why not.

All messages of a batch are one transaction, each with a savepoint of its own, or a mark in the service's books where it
is handled in memory: a refused message leaves no trace but its refusal. Decisions say what becomes of each message on the bus. Refused before any handler sees them: envelopes of
another network, wrong signers, signers other than the participant named in the subject, replays.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog

from pocache.protocol.beacon import compute_round_time_ms, verify_round
from pocache.protocol.errors import BeaconError, ConflictError, Disposition, EnvelopeError, PocacheError
from pocache.protocol.ids import NetworkId, ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.protocol.limits import PAYLOAD_BYTES_MAX
from pocache.runtime.metrics import Metrics
from pocache.runtime.network import Genesis
from pocache.runtime.tracing import NO_TRACER, Tracer
from pocache.service.applied import Applied
from pocache.service.outbox import Outbox
from pocache.service.reports import Reporter, ReportView
from pocache.service.unit import BookKeeper, Inbound, RoundView, Service, StateObserver, Unit
from pocache.storage.prepared import Prepared, savepoint
from pocache.storage.store import ROUNDS, Store, get_meta, set_meta
from pocache.wire.envelope import open_envelope, seal
from pocache.wire.messages import BeaconRoundV1, RefusalV1
from pocache.wire.topics import BEACON_ROUND, JOB_SUBMITTED, REFUSALS, Role, Stream, Topic

T = TypeVar("T")

AHEAD_MIN: Final = 4
"""A smaller batch is not worth the second thread."""
REDELIVER_DELAY_S: Final = 0.5
POISON_DELAY_S: Final = 2.0
FRESH_PERIODS_MAX: Final = 2
"""A round that is older when it arrives counts as no tick, and neither does one that comes while messages are late."""
ROUNDS_KEPT: Final = 20_000
"""Verified rounds a service remembers; a stage, window or recheck is over long before."""
_ADD_ROUND: Final = Prepared(
    sa.insert(ROUNDS).values({column: sa.bindparam(column.name) for column in ROUNDS.columns})
)
_FORGET_ROUNDS: Final = Prepared(sa.delete(ROUNDS).where(ROUNDS.c.number <= sa.bindparam("last")))
_Opened = Inbound[Any] | Exception
"""A message whose envelope was verified, or why it was not."""
_PARTICIPANT_ROLES: Final = frozenset({Role.USER, Role.WORKER})
_REASON_CHARS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class Delivery:
    """A stored message as the dispatcher needs it."""

    subject: str
    data: bytes
    stream: str
    sequence: int
    stored_ms: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a message: ``ack``, ``nak`` after a delay, ``term`` with a reason, or ``halt``."""

    action: str
    delay_s: float = 0.0
    reason: str = ""


ACK: Final = Decision("ack")
POISON: Final = Decision("halt", reason="a handler failed on a stream that carries money")


def read_clock_ms() -> int:
    """Return this machine's wall clock in milliseconds."""
    return time.time_ns() // 1_000_000


class Dispatcher:
    """Applies messages to one service's state, in one thread; :meth:`report` reads it in another."""

    def __init__(
        self,
        service: Service,
        store: Store,
        *,
        key: SigningKey,
        genesis: Genesis,
        clock_ms: Callable[[], int] = read_clock_ms,
        metrics: Metrics | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.metrics = metrics
        self.tracer = tracer
        self.outbox = Outbox(store)
        self._service = service
        self._keeper = service if isinstance(service, BookKeeper) else None
        self._kept = frozenset[Topic[Any]]() if self._keeper is None else self._keeper.kept_in_books
        self._store = store
        self._key = key
        self._genesis = genesis
        self._network: NetworkId = genesis.network_id
        self._chain = genesis.beacon_chain
        self._clock_ms = clock_ms
        self._handlers = service.handlers()
        self._queries = service.queries()
        self._reports = service.reports() if isinstance(service, Reporter) else {}
        role = service.role.value
        self._names = {topic.pattern: f"{role} {topic.model.kind}" for topic in self._handlers}
        self._late_until_ms = 0
        self._helper: ThreadPoolExecutor | None = None
        self._log = structlog.get_logger().bind(service=service.role.value)

    def apply(self, deliveries: Sequence[Delivery]) -> list[Decision]:
        """Apply a batch in one durable transaction and return each message's decision, in order."""
        try:
            return self._apply(deliveries)
        except sa.exc.IntegrityError:
            if self._keeper is None:
                raise
            if len(deliveries) == 1:
                self._log.exception("handler_failed", subject=deliveries[0].subject)
                return [POISON]
        # What was written together broke a rule of the database's: by itself each message shows which it was.
        decisions: list[Decision] = []
        for delivery in deliveries:
            is_halted = bool(decisions) and decisions[-1].action == "halt"
            decisions += [decisions[-1]] if is_halted else self.apply([delivery])
        return decisions

    def _apply(self, deliveries: Sequence[Delivery]) -> list[Decision]:
        with self._begin() as unit:
            applied = Applied(unit.connection)
            decisions: list[Decision] = []
            for delivery, opened in zip(deliveries, self._open_all(unit, applied, deliveries), strict=True):
                is_halted = bool(decisions) and decisions[-1].action == "halt"
                # What follows a message that halts the service waits for it: nothing is applied past it.
                decisions.append(
                    decisions[-1] if is_halted else self._apply_one(unit, applied, delivery, opened)
                )
            applied.flush()
        self._count(deliveries, decisions, unit)
        return decisions

    def observe_state(self) -> None:
        """Count what lies in the database, where the service has something to count there."""
        if self.metrics is not None and isinstance(self._service, StateObserver):
            with self._store.begin() as connection:
                self._service.observe_state(connection, self.metrics)

    def _count(self, deliveries: Sequence[Delivery], decisions: Sequence[Decision], unit: Unit) -> None:
        if self.metrics is None:
            return
        metrics, now_ms = self.metrics, self._clock_ms()
        metrics.batch_messages.observe(len(deliveries))
        for delivery, decision in zip(deliveries, decisions, strict=True):
            metrics.messages.labels(delivery.stream, decision.action).inc()
            metrics.message_age_s.labels(delivery.stream).observe(max(0, now_ms - delivery.stored_ms) / 1_000)
        metrics.observe_said(unit.said)

    def answer(self, subject: str, data: bytes) -> bytes:
        """Answer a query in a signed envelope: the reply, or a refusal."""
        with self._begin() as unit:
            try:
                inbound = self._open(Delivery(subject, data, "", 0, unit.now_ms), tuple(self._queries))
                return unit.sign(self._queries[inbound.topic](unit, inbound))[0]
            except PocacheError as error:
                return unit.sign(_refusal(subject, data, error))[0]

    def report(self, subject: str, data: bytes, check: Callable[[], None]) -> bytes:
        """Answer a question from a snapshot, beside the state thread, in a signed envelope: the report, or a refusal."""
        try:
            check()
            now_ms = self._clock_ms()
            inbound = self._open(Delivery(subject, data, "", 0, now_ms), tuple(self._reports))
            with self._store.snapshot() as connection:
                body = self._reports[inbound.topic](ReportView(connection, now_ms, check), inbound)
            return seal(self._key, self._network, body)
        except PocacheError as error:
            return self.refuse(subject, data, error)

    def refuse(self, subject: str, data: bytes, error: PocacheError) -> bytes:
        """Return a refusal of a question in a signed envelope."""
        return seal(self._key, self._network, _refusal(subject, data, error))

    def transact(self, work: Callable[[Unit], T]) -> T:
        """Run ``work`` in one durable transaction; what it says is published after it."""
        with self._begin() as unit:
            result = work(unit)
        if self.metrics is not None:
            self.metrics.observe_said(unit.said)
        return result

    @contextmanager
    def _begin(self) -> Iterator[Unit]:
        with self.outbox.begin() as transaction:
            connection = transaction.connection
            unit = Unit(
                transaction,
                self.outbox,
                key=self._key,
                network=self._network,
                now_ms=self._clock_ms(),
                tick=int(get_meta(connection, "tick") or "0"),
                tracer=self.tracer,
                books=None if self._keeper is None else self._keeper.open_books(connection),
                aside=self._helper,
            )
            yield unit
            unit.flush()

    def _open_all(self, unit: Unit, applied: Applied, deliveries: Sequence[Delivery]) -> list[_Opened]:
        """Return each message opened, in order, after what all of them need was read together."""
        opened = self._open_each(deliveries)
        inbounds = [one for one in opened if not isinstance(one, Exception)]
        applied.look_up(inbound.envelope_id for inbound in inbounds)
        if self._keeper is not None and unit.books is not None:
            self._keeper.look_up(unit.books, inbounds)
        return opened

    def _open_each(self, deliveries: Sequence[Delivery]) -> list[_Opened]:
        """Return each message opened, in order.

        Of a batch a second thread opens every other one: the check of a signature lets go of the interpreter, so that
        two go on at once.
        """
        topics = (*self._handlers, BEACON_ROUND)

        def open_part(part: Sequence[Delivery]) -> list[_Opened]:
            return [self._try_open(delivery, topics) for delivery in part]

        if len(deliveries) < AHEAD_MIN:
            return open_part(deliveries)
        if self._helper is None:
            self._helper = ThreadPoolExecutor(1, thread_name_prefix="envelopes")
        others = self._helper.submit(open_part, deliveries[1::2])
        mine = open_part(deliveries[::2])
        pairs = zip_longest(mine, others.result())
        return [one for pair in pairs for one in pair if one is not None]

    def _try_open(self, delivery: Delivery, topics: Sequence[Topic[Any]]) -> _Opened:
        try:
            return self._open(delivery, topics)
        except Exception as error:  # noqa: BLE001 - it is raised where the message is handled
            return error

    def _apply_one(self, unit: Unit, applied: Applied, delivery: Delivery, opened: _Opened) -> Decision:
        # Read again for each: a batch takes time, and what is decided in it must not count as older than it is.
        unit.now_ms = self._clock_ms()
        decision = self._decide_one(unit, applied, delivery, opened)
        if decision.action in {"ack", "term"}:
            self._note_lateness(unit.now_ms, delivery)
        return decision

    def _decide_one(self, unit: Unit, applied: Applied, delivery: Delivery, opened: _Opened) -> Decision:
        is_kept = isinstance(opened, Exception) or opened.topic in self._kept
        if not is_kept and unit.books is not None:
            unit.books.flush()  # its handler works on the database, and has to find there what came before
        mark, tick = unit.mark(), unit.tick
        try:
            if isinstance(opened, Exception):
                raise opened
            if is_kept:
                self._handle(unit, applied, delivery, opened)
            else:
                with savepoint(unit.connection):
                    self._handle(unit, applied, delivery, opened)
                    if unit.books is not None:
                        unit.books.flush()
        except sa.exc.OperationalError:
            raise  # the database is away or full: nothing is acknowledged, and the process ends rather than skip
        except Exception as error:  # noqa: BLE001
            unit.tick = tick
            (unit.rewind if is_kept else unit.forget)(mark)
            if isinstance(error, PocacheError):
                return self._decide(unit, delivery, error)
            # A task's boundary: our own bug must neither pass for success nor take the process down unseen.
            self._log.exception("handler_failed", subject=delivery.subject, sequence=delivery.sequence)
            return POISON if self._service.halts_on_poison else Decision("nak", delay_s=POISON_DELAY_S)
        return ACK

    def _handle(self, unit: Unit, applied: Applied, delivery: Delivery, inbound: Inbound[Any]) -> None:
        position = (delivery.stream, delivery.sequence)
        seen = applied.get(inbound.envelope_id)
        if seen is not None:
            if seen != position and inbound.topic.signer in _PARTICIPANT_ROLES:
                raise ConflictError("this envelope was handled before; nothing was done a second time")
            return
        if inbound.topic is BEACON_ROUND:
            self._handle_round(unit, inbound)
        else:
            job_id = getattr(inbound.body, "job_id", None)
            if inbound.topic is JOB_SUBMITTED:
                job_id = inbound.envelope_id
            what = self._names[inbound.topic.pattern]
            with self.tracer.working(what, job_id, delivery.headers):
                self._handlers[inbound.topic](unit, inbound)
        applied.add(inbound.envelope_id, position)

    def _open(self, delivery: Delivery, topics: Sequence[Topic[Any]]) -> Inbound[Any]:
        """Return the message of ``delivery``, its topic, envelope and signer checked."""
        topic = next((topic for topic in topics if topic.matches(delivery.subject)), None)
        if topic is None:
            raise EnvelopeError(f"this service takes nothing from {delivery.subject!r}")
        tokens = topic.parse(delivery.subject)
        opened = open_envelope(delivery.data, self._network, topic.model)
        if topic.signer not in _PARTICIPANT_ROLES and opened.sender not in self._get_signers(topic.signer):
            raise EnvelopeError(f"{topic.model.kind} must be signed by the {topic.signer.value}")
        if topic.named_signer is not None and tokens[topic.named_signer] != opened.sender:
            raise EnvelopeError(
                f"the subject {delivery.subject!r} names another {topic.named_signer} than the signer"
            )
        job_id = getattr(opened.body, "job_id", None)
        if "job" in tokens and job_id is not None and tokens["job"] != job_id.hex():
            raise EnvelopeError("the subject names another job than the message")
        return Inbound(
            topic=topic,
            tokens=tokens,
            body=opened.body,
            sender=opened.sender,
            envelope=delivery.data,
            envelope_id=opened.envelope_id,
            stream=delivery.stream,
            sequence=delivery.sequence,
            stored_ms=delivery.stored_ms,
        )

    def _get_signers(self, role: Role) -> frozenset[ParticipantId]:
        if role is Role.BEACON:
            return self._genesis.round_signers
        return frozenset((self._genesis.signer(role),))

    @property
    def _late_after_ms(self) -> int:
        return FRESH_PERIODS_MAX * self._chain.period_s * 1_000

    def _note_lateness(self, now_ms: int, delivery: Delivery) -> None:
        """Count no tick for a period after a message that waited long: others wait behind it, and nobody is late then.

        Without this, whoever floods a queue would make the deadlines of those behind the flood pass. A message that is
        to come again says nothing of the queue.
        """
        is_round = delivery.stream == Stream.BEACON.value
        if not is_round and now_ms - delivery.stored_ms > self._late_after_ms:
            self._late_until_ms = now_ms + self._chain.period_s * 1_000

    def _handle_round(self, unit: Unit, inbound: Inbound[BeaconRoundV1]) -> None:
        body = inbound.body
        if body.chain_hash != self._chain.chain_hash:
            raise BeaconError("a round of another chain")
        randomness = verify_round(
            self._chain, body.round_number, body.signature, body.previous_signature or None
        )
        if unit.get_randomness(body.round_number) is not None:
            return
        _ADD_ROUND.run(unit.connection, number=body.round_number, randomness=randomness)
        _FORGET_ROUNDS.run(unit.connection, last=body.round_number - ROUNDS_KEPT)
        age_ms = unit.now_ms - compute_round_time_ms(self._chain, body.round_number)
        if self.metrics is not None:
            self.metrics.round.set(body.round_number)
            self.metrics.round_age_s.observe(max(0, age_ms) / 1_000)
        is_fresh = age_ms <= self._late_after_ms and unit.now_ms >= self._late_until_ms
        if is_fresh:
            unit.tick += 1
            set_meta(unit.connection, "tick", str(unit.tick))
        self._service.on_round(unit, RoundView(body.round_number, randomness, is_fresh, inbound.envelope))

    def _decide(self, unit: Unit, delivery: Delivery, error: PocacheError) -> Decision:
        fields = {"subject": delivery.subject, "code": error.code, "reason": str(error)[:_REASON_CHARS_MAX]}
        if error.disposition is Disposition.REDELIVER:
            self._log.debug("not_yet", **fields)
            return Decision("nak", delay_s=REDELIVER_DELAY_S)
        if error.disposition is Disposition.HALT:
            self._log.critical("halted", **fields)
            return Decision("halt", reason=f"{error.code}: {error}")
        self._log.info("refused", **fields)
        if self.metrics is not None:
            self.metrics.refusals.labels(error.code).inc()
        topic = REFUSALS.get(self._service.role)
        if topic is not None:  # what a worker refuses came from a service, which listens to no refusals
            unit.emit(
                topic,
                _refusal(delivery.subject, delivery.data, error),
                ref=hashlib.sha256(delivery.data).digest(),
            )
        return Decision("term", reason=f"{error.code}: {error}"[:_REASON_CHARS_MAX])


def _refusal(subject: str, data: bytes, error: PocacheError) -> RefusalV1:
    return RefusalV1(
        message_hash=hashlib.sha256(data).digest(),
        subject=subject[:_REASON_CHARS_MAX],
        code=error.code,
        reason=str(error)[:_REASON_CHARS_MAX] or type(error).__name__,
    )


assert PAYLOAD_BYTES_MAX > 8 * _REASON_CHARS_MAX
