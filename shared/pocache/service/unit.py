"""What a handler works with: one verified message, and one transaction in which all its effects happen.

A handler is a synchronous function of (unit, inbound): it reads and writes tables and emits messages, and nothing
else. What it emits lies in the outbox of the same transaction, so effects and announcements exist together or not at
all. Time and randomness are in the unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import sqlalchemy as sa

from pocache.protocol.checkpoint import sign_checkpoint
from pocache.protocol.errors import LimitError
from pocache.protocol.ids import Digest, EnvelopeId, NetworkId, ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.protocol.limits import PAYLOAD_BYTES_MAX
from pocache.runtime.metrics import Metrics
from pocache.runtime.tracing import NO_TRACER, Tracer
from pocache.service.outbox import Outbox, OutboxRow, OutboxTransaction
from pocache.storage.prepared import Prepared
from pocache.storage.store import ROUNDS
from pocache.wire.envelope import UnsignedEnvelope, prepare_envelope, seal_identified
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Topic

M = TypeVar("M", bound=WireModel)

_GET_RANDOMNESS: Final = Prepared(
    sa.select(ROUNDS.c.randomness).where(ROUNDS.c.number == sa.bindparam("number"))
)
_GET_LATEST_ROUND: Final = Prepared(sa.select(sa.func.max(ROUNDS.c.number).label("number")))
ASIDE_MIN: Final = 4
"""Fewer signatures are not worth another thread."""


@dataclass(frozen=True, slots=True)
class Inbound(Generic[M]):
    """A message whose envelope, signer and body have been checked."""

    topic: Topic[M]
    tokens: Mapping[str, str]
    body: M
    sender: ParticipantId
    envelope: bytes
    envelope_id: EnvelopeId
    stream: str
    sequence: int
    stored_ms: int
    """The server's clock when the message was stored."""


@dataclass(frozen=True, slots=True)
class RoundView:
    """A beacon round that this service has verified."""

    number: int
    randomness: bytes
    is_fresh: bool
    """Whether it came when it was due; only fresh rounds count as ticks."""
    envelope: bytes = b""
    """As it came: for who has to show it to others."""


@dataclass(frozen=True, slots=True)
class _SignedEnvelope:
    """An envelope whose signature was needed before its transaction ended."""

    envelope_id: EnvelopeId
    data: bytes

    def sign(self, _key: SigningKey) -> bytes:
        return self.data


class _Ready(NamedTuple):
    """A message that needs a signature and nothing else."""

    message: UnsignedEnvelope | _SignedEnvelope
    message_id: str


class _Said(NamedTuple):
    """What a unit says at its end: prepared already, or made then. ``number`` is that of its row in the outbox."""

    number: int
    subject: str
    message: _Ready | Callable[[], _Ready]


class Unit:
    """One transaction: its connection, its clocks, and what it says to others.

    What it says lies in memory, in order, until :meth:`flush` writes all of it into the outbox.
    """

    def __init__(
        self,
        transaction: OutboxTransaction,
        outbox: Outbox,
        *,
        key: SigningKey,
        network: NetworkId,
        now_ms: int,
        tick: int,
        tracer: Tracer = NO_TRACER,
        books: TransactionBooks | None = None,
        aside: Executor | None = None,
    ) -> None:
        self.connection = transaction.connection
        self._transaction = transaction
        self._outbox = outbox
        self._aside = aside
        self.books = books
        """The service's own tables in memory, where it keeps them so."""
        self.now_ms = now_ms
        self.tick = tick
        self._key = key
        self._network = network
        self._gathered: list[_Said] = []
        self._tracer = tracer
        self.said: list[WireModel] = []
        """What was emitted, for who counts it once it is durable."""

    def sign(self, body: WireModel) -> tuple[bytes, EnvelopeId]:
        """Return ``body`` in an envelope of this service, and the envelope's id."""
        return seal_identified(self._key, self._network, body)

    def sign_checkpoint(self, size: int, root: Digest) -> bytes:
        """Return the log's note of a size and a root, signed by this service (docs/protocol.md 4.10)."""
        return sign_checkpoint(self._network, size, root, self._key)

    def emit(self, topic: Topic[M], body: M, **tokens: str | bytes) -> EnvelopeId:
        """Publish ``body`` once this transaction is durable. Raises LimitError when it is too large to travel."""
        subject = topic.subject(**tokens)
        message = self._prepare(topic, subject, body)
        self._say(subject, message)
        return message.message.envelope_id

    def emit_signed(self, topic: Topic[M], body: M, **tokens: str | bytes) -> bytes:
        """Publish ``body`` as :meth:`emit` does, and return its envelope: for who must know a refusal of it."""
        subject = topic.subject(**tokens)
        message, message_id = self._prepare(topic, subject, body)
        data = message.sign(self._key)
        self._say(subject, _Ready(_SignedEnvelope(message.envelope_id, data), message_id))
        return data

    def emit_last(self, topic: Topic[M], make: Callable[[], M], **tokens: str | bytes) -> None:
        """Publish what ``make`` returns at the end of this transaction, and of several on one subject the last alone.

        For what tells a state: nobody can see one that was over before the transaction was durable.
        """
        subject = topic.subject(**tokens)
        self._say(subject, lambda: self._prepare(topic, subject, make()))

    def mark(self) -> tuple[int, int, Any]:
        """Return how much was said and changed in memory so far, for :meth:`rewind`."""
        return len(self._gathered), len(self.said), None if self.books is None else self.books.mark()

    def rewind(self, mark: tuple[int, int, Any]) -> None:
        """Forget what was said and changed since ``mark``: its message was refused."""
        del self._gathered[mark[0] :], self.said[mark[1] :]
        if self.books is not None:
            self.books.rewind(mark[2])

    def forget(self, mark: tuple[int, int, Any]) -> None:
        """Forget what was said since ``mark``, and what was read: the database has gone back to where it was then."""
        del self._gathered[mark[0] :], self.said[mark[1] :]
        if self.books is not None:
            self.books.forget()

    def flush(self) -> None:
        """Write what lies in memory: the service's tables, then what was said, signed, into the outbox."""
        signing = self._sign_aside()
        if self.books is not None:
            self.books.flush()
        self._flush_said({} if signing is None else signing.result())

    def _sign_aside(self) -> Future[dict[EnvelopeId, bytes]] | None:
        """Have another thread sign while this one writes: both let go of the interpreter for most of it."""
        ready = [said.message.message for said in self._gathered if isinstance(said.message, _Ready)]
        if self._aside is None or self.books is None or len(ready) < ASIDE_MIN:
            return None
        return self._aside.submit(lambda: {one.envelope_id: one.sign(self._key) for one in ready})

    def _flush_said(self, signed: Mapping[EnvelopeId, bytes]) -> None:
        latest = {said.subject: said.number for said in self._gathered if callable(said.message)}
        rows: list[OutboxRow] = []
        for number, subject, said in self._gathered:
            if not callable(said):
                message, message_id = said
            elif latest[subject] == number:
                message, message_id = said()
            else:
                continue
            data = signed.get(message.envelope_id) or message.sign(self._key)
            rows.append(OutboxRow(number, subject, data, message_id))
        self._gathered.clear()
        self._transaction.put(rows)

    def is_unpublished(self, number: int) -> bool:
        """Whether the message of this number, ours now or earlier, still waits to be stored by the bus."""
        return number in self._outbox or any(said.number == number for said in self._gathered)

    @property
    def last_number(self) -> int:
        """The number of the last message that was emitted here."""
        return self._gathered[-1].number

    def _say(self, subject: str, message: _Ready | Callable[[], _Ready]) -> None:
        self._gathered.append(_Said(self._outbox.allocate(), subject, message))

    def _prepare(self, topic: Topic[M], subject: str, body: M) -> _Ready:
        message = prepare_envelope(self._key.participant_id, self._network, body)
        if len(message) > PAYLOAD_BYTES_MAX:
            raise LimitError(f"{topic.model.kind} of {len(message)} bytes exceeds {PAYLOAD_BYTES_MAX}")
        message_id = _compute_message_id(subject, message.envelope_id)
        self._tracer.carry(message_id, getattr(body, "job_id", None))
        self.said.append(body)
        return _Ready(message, message_id)

    def get_randomness(self, round_number: int) -> bytes | None:
        """Return a verified round's randomness, None while it has not come."""
        randomness: bytes | None = _GET_RANDOMNESS.scalar(self.connection, number=round_number)
        return randomness

    def get_latest_round(self) -> int:
        """Return the number of the latest verified round, 0 before the first."""
        return _GET_LATEST_ROUND.scalar(self.connection) or 0


def _compute_message_id(subject: str, envelope_id: EnvelopeId) -> str:
    return hashlib.sha256(subject.encode() + b"\x00" + envelope_id).hexdigest()


Handler = Callable[[Unit, Inbound[Any]], None]
Query = Callable[[Unit, Inbound[Any]], WireModel]


class Service(Protocol):
    """A service as its process runs it: its tables, and what it does with each message, round and question."""

    role: Role
    metadata: sa.MetaData
    halts_on_poison: bool
    """Money: stop rather than skip a message that cannot be handled."""

    def handlers(self) -> Mapping[Topic[Any], Handler]:
        """Return what is done with each topic it takes."""
        ...

    def queries(self) -> Mapping[Topic[Any], Query]:
        """Return what it answers, by core NATS request."""
        ...

    def on_round(self, unit: Unit, view: RoundView) -> None:
        """Do what is due in this round. Called once per round, in order of arrival."""
        ...


class TransactionBooks(Protocol):
    """A service's tables as one transaction works on them: changed in memory, written together."""

    def mark(self) -> Any:
        """Return how much was changed so far."""

    def rewind(self, mark: Any) -> None:
        """Take back what was changed since ``mark``."""

    def flush(self) -> None:
        """Write what was changed. IntegrityError where it breaks a rule of the database's."""

    def forget(self) -> None:
        """Know nothing any more: the database went back to where it was."""


@runtime_checkable
class BookKeeper(Protocol):
    """A service that handles messages in memory; those of other topics work on the database as anywhere else."""

    kept_in_books: frozenset[Topic[Any]]
    """Topics whose handlers use the unit's books and never its connection."""

    def open_books(self, connection: sa.Connection) -> TransactionBooks:
        """Return the books of one transaction."""

    def look_up(self, books: TransactionBooks, inbounds: Sequence[Inbound[Any]]) -> None:
        """Read at once what these messages will need; what is missed is read when it is needed."""


@runtime_checkable
class StateObserver(Protocol):
    """A service with something to count in its database, besides what it says."""

    def observe_state(self, connection: sa.Connection, metrics: Metrics) -> None:
        """Set the gauges that the database's state is shown by; called now and then, in the state thread."""
        ...
