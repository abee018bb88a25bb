"""A network without a bus: everybody's keys, a genesis with a local beacon chain, a model, one service.

``make_network`` is deterministic: the same arguments give the same keys, rounds and ids. ``Harness`` seals
what a test wants said, applies it to one service by the real dispatcher on a real database, and shows what
was emitted.
The clock stands still until the test moves it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa

from pocache.protocol.beacon import (
    Chain,
    Scheme,
    compute_public_key,
    compute_round_at,
    compute_round_time_ms,
    compute_secret,
    sign_round,
)
from pocache.protocol.encoding import FloatFormat, RowKind, RowSchema
from pocache.protocol.ids import EnvelopeId, ModelId, NetworkId, ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.protocol.matching import ONE_Q16, KindThreshold, MatchingProfile
from pocache.protocol.matching_limits import Limits, TokenLimits
from pocache.runtime.network import SERVICE_ROLES, Genesis, Model
from pocache.service.dispatch import Decision, Delivery, Dispatcher
from pocache.service.outbox import LIFE
from pocache.service.reports import Reporter
from pocache.service.unit import Service
from pocache.storage.store import META, OUTBOX, ROUNDS, Prepare, Store, get_meta
from pocache.wire.codec import decode
from pocache.wire.envelope import compute_envelope_id, compute_preimage, open_envelope, parse_envelope, seal
from pocache.wire.messages import BeaconRoundV1, ModelEntryV1, RefusalV1
from pocache.wire.model import WireModel
from pocache.wire.topics import BEACON_ROUND, Role, Topic, get_topic

GENESIS_S: Final = 1_800_000_000
PERIOD_S: Final = 3
STACK: Final = "fake/1"

M = TypeVar("M", bound=WireModel)


@cache
def make_key(name: str) -> SigningKey:
    """Return the key that belongs to a name; the same object every time."""
    return SigningKey.generate(hashlib.sha256(b"pocache/kit/" + name.encode()).digest())


@dataclass(frozen=True)
class Network:
    """What everybody on a test network knows, and all of its secrets."""

    genesis: Genesis
    keys: dict[Role, SigningKey]
    beacon_secret: bytes
    model: Model
    model_envelope: bytes
    """The operator's signed entry of :attr:`model`."""

    @property
    def network_id(self) -> NetworkId:
        """The network's id."""
        return self.genesis.network_id

    @property
    def chain(self) -> Chain:
        """The beacon chain."""
        return self.genesis.beacon_chain

    @property
    def models(self) -> dict[ModelId, Model]:
        """The models by id: the one there is."""
        return {self.model.model_id: self.model}

    @staticmethod
    def key(name: str) -> SigningKey:
        """Return a user's or worker's key by a name that the test makes up, such as ``worker-2``."""
        return make_key(name)

    @staticmethod
    def participant(name: str) -> ParticipantId:
        """Return the id that belongs to :meth:`key`."""
        return make_key(name).participant_id

    def seal(self, signer: SigningKey, body: WireModel) -> bytes:
        """Return ``body`` in an envelope of this network."""
        return seal(signer, self.network_id, body)

    def envelope_id(self, data: bytes) -> EnvelopeId:
        """Return the id of a sealed envelope: of a submission's, it is the job id."""
        envelope = parse_envelope(data)
        preimage = compute_preimage(self.network_id, envelope.kind, envelope.payload)
        return compute_envelope_id(preimage, envelope.kid)

    def open(self, data: bytes, model: type[M]) -> M:
        """Return the body of an envelope, its signature verified."""
        return open_envelope(data, self.network_id, model).body

    def make_round(self, number: int) -> BeaconRoundV1:
        """Return the beacon's round of this number."""
        return BeaconRoundV1(
            chain_hash=self.chain.chain_hash,
            round_number=number,
            signature=sign_round(self.beacon_secret, number),
        )


def make_network(
    *,
    layer_count: int = 2,
    width: int = 4,
    context_tokens_max: int = 64,
    vocab_size: int = 100,
    period_s: int = PERIOD_S,
    **sections: dict[str, Any],
) -> Network:
    """Return a demo network; ``rules``, ``audit``, ``deadlines``, ``bounds`` override the genesis's defaults.

    Rules without a name are those of `unified-pool`.
    For example ``make_network(audit={"lottery_share": "0/1"}, deadlines={"lease_ticks": 4})``.
    """
    keys = {role: make_key(f"service {role.value}") for role in SERVICE_ROLES}
    # Most tests are about what both rule sets have in common, and need few verifiers under this one.
    sections["rules"] = {"name": "unified-pool", **sections.get("rules", {})}
    secret = compute_secret(hashlib.sha256(b"pocache/kit/beacon").digest())
    genesis = Genesis.model_validate(
        {
            "name": "kit",
            "created_ms": GENESIS_S * 1_000,
            "signers": {role.value: key.participant_id for role, key in keys.items()},
            "chain": {
                "scheme": Scheme.BLS_UNCHAINED_G1_RFC9380.value,
                "public_key_hex": compute_public_key(secret).hex(),
                "genesis_s": GENESIS_S,
                "period_s": period_s,
                "genesis_seed_hex": hashlib.sha256(b"pocache/kit/genesis").hexdigest(),
            },
            "demo": True,
            **sections,
        }
    )
    entry = _make_entry(layer_count, width, context_tokens_max, vocab_size)
    envelope = seal(keys[Role.OPERATOR], genesis.network_id, entry)
    return Network(
        genesis=genesis,
        keys=keys,
        beacon_secret=secret,
        model=Model(entry, envelope),
        model_envelope=envelope,
    )


def make_profile(layer_count: int) -> MatchingProfile:
    """Return a profile for float32 rows: honest near 2⁻²⁰, matching up to 2⁻¹⁴, mismatching from 2⁻¹⁰ on.

    One token in 4,096 may fall behind another, by a sixteenth; by more than one, none may.
    """
    kinds = [(kind, layer) for kind in (RowKind.K, RowKind.V) for layer in range(layer_count)]
    kinds += [(RowKind.HIDDEN, 0), (RowKind.SCORES, 0)]
    return MatchingProfile(
        thresholds=tuple(KindThreshold(kind, layer, -20 * ONE_Q16, ONE_Q16) for kind, layer in kinds),
        mean_match_max_q16=6 * ONE_Q16,
        mean_mismatch_min_q16=10 * ONE_Q16,
        peak_match_max_q16=6 * ONE_Q16,
        peak_mismatch_min_q16=10 * ONE_Q16,
        about={"stack": STACK},
        limits=Limits(tokens=TokenLimits(64, 1 << 20, 1 << 20, ONE_Q16 // 16, ONE_Q16)),
    )


def _make_entry(layer_count: int, width: int, context_tokens_max: int, vocab_size: int) -> ModelEntryV1:
    schema = RowSchema(
        encoding="sketch",
        float_format=FloatFormat.F32,
        layer_count=layer_count,
        key_width=width,
        value_width=width,
        hidden_width=width,
    )
    return ModelEntryV1(
        model_id=hashlib.sha256(b"pocache/kit/model").digest(),
        name="kit-model",
        vocab_size=vocab_size,
        context_tokens_max=context_tokens_max,
        eos_tokens=(2,),
        layer_count=layer_count,
        stack=STACK,
        row_schema=_canonical_json(schema.to_dict()),
        profile=_canonical_json(make_profile(layer_count).to_dict()),
        prompt_token_micro=1_000,
        output_token_micro=2_000,
        verify_token_micro=500,
    )


def _canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


class Emission(NamedTuple):
    """One message that a service put into its outbox."""

    topic: Topic[Any]
    body: WireModel
    subject: str
    data: bytes
    envelope_id: EnvelopeId


@dataclass
class Harness:
    """One service on a database, driven message by message.

    ``url`` is in memory unless given; with ``sqlite:///<file>`` a second one goes on where the first stopped.
    """

    service: Service
    network: Network
    url: str = "sqlite://"
    clock_ms: int = GENESIS_S * 1_000 + 100
    """What the service and the server take for now; set it as you like."""
    last: Delivery | None = None
    """The last delivery, for :meth:`apply` to deliver it again."""
    prepare: Prepare | None = None
    """How the service brings its database to its schema, where it has migrations."""
    _sequences: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Open the database; again after :meth:`close`, as a restarted process would."""
        self.store = Store(self.url, self.service.metadata, prepare=self.prepare)
        self.dispatcher = Dispatcher(
            self.service,
            self.store,
            key=self.network.keys[self.service.role],
            genesis=self.network.genesis,
            clock_ms=lambda: self.clock_ms,
        )

    def close(self) -> None:
        """Close the database."""
        self.store.close()

    def deliver(
        self, topic: Topic[Any], body: WireModel, signer: SigningKey | None = None, **tokens: str | bytes
    ) -> Decision:
        """Seal ``body``, store it in the topic's stream, apply it.

        The signer is the topic's service unless given. Subject tokens follow from the body (``job``) and from
        the signer (the participant that the subject names) unless given.
        """
        return self.apply(self.next_delivery(topic, body, signer, **tokens))

    def next_delivery(
        self, topic: Topic[Any], body: WireModel, signer: SigningKey | None = None, **tokens: str | bytes
    ) -> Delivery:
        """Seal ``body`` and store it as :meth:`deliver` does, without applying it."""
        key = self._pick_key(topic, signer)
        return self._store(topic, self.network.seal(key, body), self._fill(topic, body, key, tokens))

    def deliver_data(self, topic: Topic[Any], data: bytes, **tokens: str | bytes) -> Decision:
        """Store these bytes on the topic's subject, well sealed or not, and apply them."""
        return self.apply(self._store(topic, data, tokens))

    def _store(self, topic: Topic[Any], data: bytes, tokens: dict[str, str | bytes]) -> Delivery:
        stream = topic.stream.value if topic.stream is not None else ""
        self._sequences[stream] = self._sequences.get(stream, 0) + 1
        return Delivery(topic.subject(**tokens), data, stream, self._sequences[stream], self.clock_ms)

    def apply(self, delivery: Delivery) -> Decision:
        """Apply one delivery as it is; ``harness.apply(harness.last)`` is a redelivery."""
        self.last = delivery
        (decision,) = self.dispatcher.apply([delivery])
        return decision

    def round(self, number: int) -> Decision:
        """Sign and deliver a round, the clock moved forward to its time."""
        self.clock_ms = max(self.clock_ms, compute_round_time_ms(self.network.chain, number))
        return self.deliver(BEACON_ROUND, self.network.make_round(number))

    def pass_rounds(self, count: int = 1) -> int:
        """Deliver the next ``count`` rounds after the latest one, and return the number of the last."""
        latest = self.latest_round
        for number in range(latest + 1, latest + count + 1):
            decision = self.round(number)
            assert decision.action == "ack", decision
        return latest + count

    def pass_rounds_to(self, number: int) -> None:
        """Deliver every round up to this one that has not come yet."""
        self.pass_rounds(number - self.latest_round)

    @property
    def latest_round(self) -> int:
        """The latest round that was delivered; before the first, the one before what the clock shows."""
        with self.store.begin() as connection:
            latest = connection.execute(sa.select(sa.func.max(ROUNDS.c.number))).scalar_one()
        return int(latest) if latest is not None else compute_round_at(self.network.chain, self.clock_ms) - 1

    @property
    def tick(self) -> int:
        """How many fresh rounds the service has seen."""
        with self.store.begin() as connection:
            return int(get_meta(connection, "tick") or "0")

    def ask(
        self,
        topic: Topic[Any],
        body: WireModel,
        reply: type[M],
        signer: SigningKey | None = None,
        **tokens: str,
    ) -> M | RefusalV1:
        """Ask a question and return the service's signed answer: a ``reply``, or why not."""
        key = self._pick_key(topic, signer)
        subject = topic.subject(**self._fill(topic, body, key, dict(tokens)))
        is_report = isinstance(self.service, Reporter) and topic in self.service.reports()
        data = self.network.seal(key, body)
        answer = (
            self.dispatcher.report(subject, data, lambda: None)
            if is_report
            else self.dispatcher.answer(subject, data)
        )
        envelope = parse_envelope(answer)
        assert envelope.kid == self.network.keys[self.service.role].participant_id, envelope.kid
        if envelope.kind == RefusalV1.kind:
            return self.network.open(answer, RefusalV1)
        return self.network.open(answer, reply)

    def drain(self) -> list[Emission]:
        """Return everything that was emitted since the last time, in order, and forget it."""
        with self.store.begin() as connection:
            rows = connection.execute(
                sa.select(OUTBOX.c.number, OUTBOX.c.subject, OUTBOX.c.data).order_by(OUTBOX.c.number)
            ).all()
        self.dispatcher.outbox.confirm(row.number for row in rows)
        with self.dispatcher.outbox.begin():
            """As an idle service does: what was taken is deleted."""
        return [self._decode(row.subject, row.data) for row in rows]

    def outbox(self) -> list[tuple[Topic[Any], WireModel]]:
        """Return topic and body of everything emitted since the last time, in order, and forget it."""
        return [(emission.topic, emission.body) for emission in self.drain()]

    def outbox_of(self, topic: Topic[M]) -> list[M]:
        """Return what was emitted on one topic since the last time, in order; all else is forgotten."""
        return [emission.body for emission in self.drain() if emission.topic is topic]  # type: ignore[misc]

    def refusal(self) -> RefusalV1:
        """Return the one refusal among what was emitted since the last time; all else is forgotten."""
        (found,) = [body for _, body in self.outbox() if isinstance(body, RefusalV1)]
        return found

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return every row of the service's own tables, to show that a refused message left no trace.

        How often it was started is no part of its state.
        """
        with self.store.begin() as connection:
            rows = {
                table.name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
                for table in (*self.service.metadata.sorted_tables, META)
            }
        rows[META.name] = [row for row in rows[META.name] if row[0] != LIFE]
        return rows

    def _pick_key(self, topic: Topic[Any], signer: SigningKey | None) -> SigningKey:
        if signer is not None:
            return signer
        assert topic.signer in self.network.keys, f"{topic.pattern} is signed by a participant: say which"
        return self.network.keys[topic.signer]

    @staticmethod
    def _fill(
        topic: Topic[Any], body: WireModel, key: SigningKey, tokens: dict[str, str | bytes]
    ) -> dict[str, str | bytes]:
        filled: dict[str, str | bytes] = {}
        for token, name in (("job", "job_id"), ("model", "model_id"), ("participant", "participant")):
            if hasattr(body, name):
                filled[token] = getattr(body, name)
        if topic.named_signer is not None:
            filled[topic.named_signer] = key.participant_id
        return {**filled, **tokens}

    def _decode(self, subject: str, data: bytes) -> Emission:
        topic = get_topic(subject)
        envelope = parse_envelope(data)
        assert envelope.kind == topic.model.kind, (subject, envelope.kind)
        assert envelope.kid == self.network.keys[self.service.role].participant_id, subject
        return Emission(
            topic, decode(topic.model, envelope.payload), subject, data, self.network.envelope_id(data)
        )
