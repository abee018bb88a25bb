"""Which messages of the record belong to a job, opened and sorted by what they say (docs/protocol.md 14.1).

Owns the list of topics that a receipt carries, their order in it, and what may be said once only. Used alike by who
makes a receipt, who verifies one, and who audits the whole record. Refuses envelopes that the wrong participant signed,
other jobs' messages, and the same thing said twice in two ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pocache.protocol.errors import CodecError, EnvelopeError, ReceiptError
from pocache.protocol.ids import EnvelopeId, NetworkId, ParticipantId
from pocache.runtime.network import Genesis
from pocache.wire import topics as t
from pocache.wire.codec import encode_value
from pocache.wire.envelope import ENVELOPE_BYTES_MAX, open_envelope, parse_envelope
from pocache.wire.model import WireModel
from pocache.wire.topics import TOPICS, Role, Stream, Topic

M = TypeVar("M", bound=WireModel)

JOB_TOPICS: Final[tuple[Topic[Any], ...]] = tuple(
    topic
    for topic in TOPICS
    # What a user is told repeats, in words, what the others say; the result in it would be there three times.
    if topic.stream is Stream.RECORD and "{job}" in topic.pattern and topic is not t.JOB_EVENT
)
"""Every topic of the record whose subject names a job, in the order in which a receipt has them."""

_KEYS: Final[dict[Topic[Any], tuple[str, ...]]] = {
    t.JOB_ADMITTED: (),
    t.JOB_ABANDONED: (),
    t.COMMITMENT_RECORDED: (),
    t.COMMITMENT_REBOUND: ("missed_round",),
    t.AUDIT_OPENED: (),
    t.AUDIT_DEEPENED: (),
    t.WINDOW_CLOSED: (),
    t.EQUIVOCATION: (),
    t.EVIDENCE: (),
    t.ATTEMPT_CLOSED: ("attempt",),
    t.ATTEMPT_CHARGED: ("attempt",),
    t.STAGE_BOUND: ("stage",),
    t.VERIFIER_DRAWN: ("stage", "place"),
    t.STAGE_SEALED: ("stage", "retry"),
    t.OPENINGS_CLOSED: ("stage", "retry"),
    t.OUTCOME_DECIDED: (),
    t.PAYOUT_SETTLED: (),
}
"""What may be said once, or once for each value of these fields."""


class NotShownError(ReceiptError):
    """Something that must have been said is not among what is here."""


@dataclass(frozen=True, slots=True)
class Said(Generic[M]):
    """One message of the record: its topic, its body, its envelope."""

    topic: Topic[M]
    body: M
    sender: ParticipantId
    envelope_id: EnvelopeId
    data: bytes


def open_message(
    data: bytes,
    network: NetworkId,
    genesis: Genesis,
    topics: Sequence[Topic[M]],
    *,
    is_canonical: bool = True,
) -> Said[M]:
    """Return a service's message on one of these topics, signature and signer checked.

    With ``is_canonical`` the envelope must be in its one spelling: its four fields in their order, as we write them.
    Raises EnvelopeError, SignatureError, CodecError, LimitError.
    """
    envelope = parse_envelope(data)
    candidates = [topic for topic in topics if topic.model.kind == envelope.kind]
    if not candidates:
        raise EnvelopeError(f"a message of kind {envelope.kind} does not belong here")
    if is_canonical:
        fields = {
            "kind": envelope.kind,
            "payload": envelope.payload,
            "kid": envelope.kid,
            "sig": envelope.sig,
        }
        if encode_value(fields, bytes_max=ENVELOPE_BYTES_MAX) != data:
            raise CodecError(f"the envelope of a {envelope.kind} is not in its one canonical spelling")
    opened = open_envelope(data, network, candidates[0].model)
    for topic in candidates:
        if opened.sender in get_signers(genesis, topic.signer):
            return Said(topic, opened.body, opened.sender, opened.envelope_id, data)
    raise EnvelopeError(
        f"{envelope.kind} must be signed by the {candidates[0].signer.value}, not {opened.sender}"
    )


def get_signers(genesis: Genesis, role: Role) -> frozenset[ParticipantId]:
    """Return who may sign for a service."""
    return genesis.round_signers if role is Role.BEACON else frozenset((genesis.signer(role),))


def get_order(said: Said[Any]) -> tuple[int, bytes]:
    """Return by what a receipt's record ascends: its topic, then the envelope id."""
    return JOB_TOPICS.index(said.topic), said.envelope_id


class Dossier:
    """The messages of one job, by topic."""

    def __init__(self, said: Iterable[Said[Any]], *, is_strict: bool = True) -> None:
        """Sort the messages. Raises ReceiptError where one job is not what all are about, or one thing is said twice.

        Who only collects is not strict: what contradicts itself is shown to whoever judges.
        """
        self._by_topic: dict[Topic[Any], list[Said[Any]]] = {}
        ids: set[EnvelopeId] = set()
        self.job_id: bytes | None = None
        for one in sorted(said, key=get_order):
            if self.job_id is None:
                self.job_id = one.body.job_id
            if one.body.job_id != self.job_id:
                raise ReceiptError(f"a {one.body.kind} of another job, {one.body.job_id.hex()}")
            if one.envelope_id in ids and is_strict:
                raise ReceiptError(f"the same {one.body.kind} twice")
            ids.add(one.envelope_id)
            self._by_topic.setdefault(one.topic, []).append(one)
        for topic, fields in _KEYS.items() if is_strict else ():
            keys = [
                tuple(getattr(one.body, name) for name in fields) for one in self._by_topic.get(topic, ())
            ]
            if len(set(keys)) != len(keys):
                raise ReceiptError(f"two different {topic.model.kind} where there can be one")

    def __len__(self) -> int:
        return sum(map(len, self._by_topic.values()))

    def said(self, topic: Topic[M]) -> tuple[Said[M], ...]:
        """Return all that was said on a topic, with envelopes."""
        return tuple(self._by_topic.get(topic, ()))

    def all(self, topic: Topic[M]) -> tuple[M, ...]:
        """Return the bodies of all that was said on a topic."""
        return tuple(one.body for one in self._by_topic.get(topic, ()))

    def find(self, topic: Topic[M], **fields: object) -> M | None:
        """Return the one message of a topic with these values, None when there is none."""
        return next(
            (
                one
                for one in self.all(topic)
                if all(getattr(one, name) == value for name, value in fields.items())
            ),
            None,
        )

    def get(self, topic: Topic[M], **fields: object) -> M:
        """Return the one message of a topic with these values. Raises NotShownError when there is none."""
        found = self.find(topic, **fields)
        if found is None:
            which = ", ".join(f"{name} {value}" for name, value in fields.items())
            raise NotShownError(f"no {topic.model.kind}{' with ' + which if which else ''} is shown")
        return found

    @property
    def is_refused(self) -> bool:
        """Whether the job ended before it began: the user's deposit could not be held."""
        return self.find(t.HOLD_REFUSED, purpose="escrow") is not None and not self.all(t.PAYOUT_SETTLED)

    @property
    def is_over(self) -> bool:
        """Whether the job has come to its end."""
        return bool(self.all(t.PAYOUT_SETTLED)) or self.is_refused

    @property
    def is_cut_short(self) -> bool:
        """Whether an equivocation ended the dispute, so that a draw that was bound may never have come."""
        outcomes = self.all(t.OUTCOME_DECIDED)
        return bool(self.all(t.EQUIVOCATION)) and all(one.case == "equivocation" for one in outcomes)

    def get_audit_round(self) -> int | None:
        """Return the round that the lottery is drawn from: the last that the commitment was bound to."""
        rounds = [one.audit_round for one in self.all(t.COMMITMENT_RECORDED)]
        rounds += [one.audit_round for one in self.all(t.COMMITMENT_REBOUND)]
        return max(rounds, default=None)

    def get_stage_rounds(self) -> dict[int, int]:
        """Return the round that draws the verifiers of each stage that was drawn or waits for its draw."""
        rounds = {one.stage: one.round_number for one in self.all(t.STAGE_BOUND)}
        for audit in self.all(t.AUDIT_OPENED):
            rounds[1] = audit.round_number
        return rounds

    def get_needed_rounds(self) -> tuple[int, ...]:
        """Return the rounds that something about the job was drawn from, ascending.

        A stage that nobody was drawn for needs its round to show that there was nobody, unless it is the last and an
        equivocation ended the dispute before the round came.
        """
        needed = {one.round_number for one in self.all(t.OPENINGS_CLOSED)}
        needed |= {one.round_number for one in self.all(t.AUDIT_OPENED)}
        audit_round = self.get_audit_round()
        if self.all(t.WINDOW_CLOSED) and audit_round is not None:
            needed.add(audit_round)
        drawn = {one.stage for one in self.all(t.VERIFIER_DRAWN)}
        is_cut_short = self.is_cut_short
        rounds = self.get_stage_rounds()
        last = max(rounds, default=0)
        needed |= {
            number for stage, number in rounds.items() if stage in drawn or not is_cut_short or stage != last
        }
        return tuple(sorted(needed))

    def get_needed_snapshots(self) -> tuple[int, ...]:
        """Return the numbers of the snapshots that verifiers were drawn from, ascending."""
        return tuple(sorted({one.snapshot for one in self.all(t.VERIFIER_DRAWN)}))


def open_party(data: bytes, network: NetworkId, model: type[M]) -> Said[M]:
    """Return a participant's own envelope that a service's message carries, its signature checked."""
    opened = open_envelope(data, network, model)
    topic: Topic[M] = Topic(model.kind, model, None, Role.USER)
    return Said(topic, opened.body, opened.sender, opened.envelope_id, data)
