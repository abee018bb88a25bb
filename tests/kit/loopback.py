"""All services of a network in one process, without a bus: each job is played to its payout in milliseconds.

The services, their dispatchers, databases and rules are the real ones; users and workers are played here, honest unless
told, with keys that a test knows, so that it can also sign what nobody honest would. The clock stands still between
rounds; whatever a service says is heard by whoever takes it before the next round comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kit.committing import make_leaves, make_tree
from kit.network import STACK, Emission, Harness, Network, make_key, make_network
from kit.routing import make_entropy
from pocache.protocol.beacon import compute_round_at, compute_round_time_ms
from pocache.protocol.challenge import Corner
from pocache.protocol.commitment import (
    Binding,
    Sampling,
    compute_binding_digest,
    compute_leaf_count,
    compute_token_hash,
)
from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.errors import EjectedError
from pocache.protocol.ids import Digest, JobId, ModelId
from pocache.protocol.keys import SigningKey
from pocache.receipt.export import Entry, Header
from pocache.receipt.format import Receipt, decode_receipt
from pocache.receipt.trust import TrustRoots, make_trust
from pocache.service.dispatch import Delivery
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Stream, Topic, get_topic
from pocache_commitments.service import CommitmentsService
from pocache_ledger.service import LedgerService
from pocache_router.service import RouterService
from pocache_verifier.service import VerifierService

SECTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "audit": {"lottery_share": "0/1", "sample_count": 4, "window_rounds": 4, "full_depth_share": "1/2"},
    "deadlines": {"queue_ticks": 12, "lease_ticks": 8, "seal_ticks": 4, "opening_ticks": 3},
    "rules": {"name": "unified-pool", "stage_max": 3},
}
MONEY_MICRO: Final = 10_000_000_000
PROMPT: Final = (5, 6, 7)
OUTPUT: Final = (8, 9, 10, 11, 12)
ROUNDS_MAX: Final = 60


@dataclass(frozen=True)
class Habit:
    """What a worker does otherwise than it should."""

    flavour: str = "honest"
    """Whose rows it computes: those of equal flavour match, others do not."""
    rounding: str = ""
    """Another machine's arithmetic: rows of equal flavour and other rounding are close, and not the same."""
    opens: bool = True
    seals: bool = True
    commits: bool = True
    commits_twice: bool = False
    is_last_missed: bool = False
    """Its last token is not the best: every verifier sees that, and none convicts it."""


@dataclass
class Loopback:
    """A running network of services; ``habits`` by the names of workers."""

    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: SECTIONS)
    verifiers: tuple[str, ...] = ("verifier-1", "verifier-2", "verifier-3")
    generator: str = "worker"
    habits: dict[str, Habit] = field(default_factory=dict)
    user: str = "user"
    witnesses: tuple[str, ...] = ()
    prompt: tuple[int, ...] = PROMPT
    output: tuple[int, ...] = OUTPUT
    model: Mapping[str, int] = field(default_factory=dict)
    """Layers, width, context and vocabulary of the model, where they are others than the kit's."""
    known: Network | None = None
    """A network that is there already, with nobody's money on it: what a recording is played to."""
    record: list[Entry] = field(default_factory=list)
    rounds: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        sections: dict[str, Any] = {name: dict(one) for name, one in self.sections.items()}
        if self.witnesses:
            sections["witnesses"] = tuple(make_key(one).participant_id for one in self.witnesses)
        options: dict[str, Any] = {**self.model, **sections}
        self.network: Network = self.known or make_network(**options)
        genesis, models = self.network.genesis, self.network.models
        services = (
            RouterService(genesis, models, make_entropy()),
            CommitmentsService(genesis, models),
            VerifierService(genesis, models),
            LedgerService(genesis=genesis, models=models),
        )
        self.services = {one.role: Harness(one, self.network) for one in services}
        self._sequences: dict[str, int] = {}
        self._submitted = 0
        self._cancels = False
        self._waiting: list[tuple[Role, Delivery]] = []
        self._pending: list[Emission] = []
        self._leaves: dict[tuple[str, int, int], list[bytes]] = {}
        self.denied: list[m.LeaseDeniedV1] = []
        self.keys: dict[str, str] = {
            make_key(name).participant_id: name for name in (self.generator, *self.verifiers, self.user)
        }
        if self.known is None:
            self.fund()

    @property
    def clock_ms(self) -> int:
        """What every service takes for now."""
        return self.services[Role.ROUTER].clock_ms

    @property
    def trust(self) -> TrustRoots:
        """The trust roots of this network."""
        return make_trust(self.network.genesis)

    def fund(self) -> None:
        """Give everybody money, enroll the verifiers, and let two rounds pass."""
        self.tick()
        for name, bucket in [
            (self.user, "available"),
            *((one, "stake") for one in (self.generator, *self.verifiers)),
        ]:
            body = m.DepositV1.model_validate(
                {
                    "participant": make_key(name).participant_id,
                    "bucket": bucket,
                    "amount_micro": MONEY_MICRO,
                    "reference": f"kit/{name}",
                }
            )
            self.say(t.DEPOSITED, body, self.network.keys[Role.OPERATOR], participant=body.participant)
        for name in self.verifiers:
            member = m.MemberV1(
                generates=False,
                verifies=True,
                model_ids=(self.network.model.model_id,),
                stack=STACK,
                announced_ms=self.clock_ms,
            )
            self.say(t.MEMBER_ANNOUNCED, member, make_key(name), worker=make_key(name).participant_id)
        self.tick(2)

    # --- the bus -------------------------------------------------------------------------------------------------

    def say(self, topic: Topic[Any], body: WireModel, key: SigningKey, **tokens: str | bytes) -> bytes:
        """Publish a message, let everybody act on it, and return its envelope."""
        data = self.network.seal(key, body)
        self._store(topic, topic.subject(**tokens), data)
        self.settle()
        return data

    def hear(self, at_ms: int, subject: str, data: bytes) -> None:
        """Have somebody's message stored at a time, whoever said it, and everybody act on it."""
        for harness in self.services.values():
            harness.clock_ms = at_ms
        self._store(get_topic(subject), subject, data)
        self.settle()

    def settle(self) -> None:
        """Deliver until nobody has anything to say."""
        while True:
            emissions = [one for harness in self.services.values() for one in harness.drain()]
            for one in emissions:
                self._store(one.topic, one.subject, one.data)
                self._pending.append(one)
            retried, self._waiting = self._waiting, []
            for role, delivery in retried:
                self._deliver(role, delivery)
            if not emissions and len(self._waiting) == len(retried):
                return

    def tick(self, count: int = 1) -> None:
        """Let rounds pass, everybody acting on each."""
        for _ in range(count):
            number = compute_round_at(self.network.chain, self.clock_ms) + 1
            for harness in self.services.values():
                harness.clock_ms = compute_round_time_ms(self.network.chain, number) + 50
            data = self.network.seal(self.network.keys[Role.BEACON], self.network.make_round(number))
            self._store(t.BEACON_ROUND, t.BEACON_ROUND.subject(), data)
            self.settle()

    def _store(self, topic: Topic[Any], subject: str, data: bytes) -> None:
        stream = topic.stream.value if topic.stream is not None else ""
        sequence = self._sequences[stream] = self._sequences.get(stream, 0) + 1
        entry = Entry(stream, sequence, subject, data)
        if topic.stream is Stream.RECORD:
            self.record.append(entry)
        elif topic.stream is Stream.BEACON:
            self.rounds.append(entry)
        for role in topic.takers:
            if role in self.services:
                self._deliver(role, Delivery(subject, data, stream, sequence, self.clock_ms))

    def _deliver(self, role: Role, delivery: Delivery) -> None:
        decision = self.services[role].apply(delivery)
        assert decision.action != "halt", decision
        if decision.action == "nak":
            self._waiting.append((role, delivery))

    # --- a job ---------------------------------------------------------------------------------------------------

    def play(
        self, *, challenge: bool = False, challenge_after: int = 0, cancel: bool = False, **changes: Any
    ) -> JobId:
        """Submit a job and play everybody until it is paid; ``challenge_after`` so many rounds after the commitment.

        With ``cancel`` its user cancels it as soon as somebody generates it, and gets all but two tokens.
        """
        self._cancels = cancel
        job_id = self.submit(**changes)
        since: int | None = None
        is_challenged = False
        for _ in range(ROUNDS_MAX):
            self.act()
            recorded = self.find(t.COMMITMENT_RECORDED, job_id)
            if recorded is not None and challenge and not is_challenged:
                since = 0 if since is None else since + 1
                if since >= challenge_after:
                    is_challenged = True
                    self.challenge(job_id, recorded.attempt)
            if self.find(t.PAYOUT_SETTLED, job_id) is not None or self._is_refused(job_id):
                return job_id
            self.tick()
        raise AssertionError("the job did not come to its end")

    def submit(self, **changes: Any) -> JobId:
        """Submit a job; the seed is the user's own unless ``seed=None``."""
        self._submitted += 1
        fields: dict[str, Any] = {
            "model_id": self.network.model.model_id,
            "prompt": pack_tokens(self.prompt),
            "token_count_max": len(self.output),
            "sampling": m.SamplingV1(),
            "seed": hashlib.sha256(b"kit seed").digest(),
            "salt": hashlib.sha256(b"salt %d" % self._submitted).digest()[:16],
            "created_ms": self.clock_ms,
            "expires_ms": self.clock_ms + 600_000,
        }
        key = make_key(changes.pop("user", self.user))
        data = self.say(t.JOB_SUBMITTED, m.SubmissionV1(**{**fields, **changes}), key)
        return JobId(self.network.envelope_id(data))

    def challenge(self, job_id: JobId, attempt: int = 1) -> None:
        """The user challenges."""
        key = make_key(self.user)
        body = m.ChallengeRequestV1(job_id=job_id, attempt=attempt)
        self.say(t.CHALLENGE_REQUESTED, body, key, user=key.participant_id, job=job_id)

    def cancel(self, job_id: JobId, signer: str | None = None) -> bytes:
        """The user, or another, cancels."""
        key = make_key(signer or self.user)
        body = m.CancelRequestV1(job_id=job_id)
        return self.say(t.CANCEL_REQUESTED, body, key, user=key.participant_id, job=job_id)

    def act(self) -> None:
        """Let the workers do what was asked of them since the last time."""
        while self._pending:
            one = self._pending.pop(0)
            tokens = one.topic.parse(one.subject)
            if isinstance(one.body, m.GenerateTaskV1):
                self._request_lease(one.body)
            elif isinstance(one.body, m.LeaseGrantedV1):
                if self._cancels:
                    self.cancel(JobId(one.body.job_id))
                    self._granted = one.body
                else:
                    self._generate(one.body)
            elif isinstance(one.body, m.LeaseDeniedV1):
                self.denied.append(one.body)
            elif isinstance(one.body, m.LeaseCancelledV1):
                self._generate(self._granted, cancellation=one.body.cancellation)
            elif isinstance(one.body, m.VerifyTaskV1):
                self._verify(one.body, self.keys[tokens["worker"]])
            elif isinstance(one.body, m.ChallengeIssuedV1):
                self._open(one.body, self.keys[tokens["worker"]])

    def find(self, topic: Topic[Any], job_id: bytes) -> Any:
        """Return the first thing that was said about a job on a topic, None when there is none."""
        subjects = topic.filter(job=job_id)
        for one in self.record:
            if topic.matches(one.subject) and one.subject == subjects:
                return open_envelope(one.data, self.network.network_id, topic.model).body
        return None

    def _is_refused(self, job_id: bytes) -> bool:
        refused = self.find(t.HOLD_REFUSED, job_id)
        return refused is not None and refused.purpose == "escrow"

    def _habit(self, name: str) -> Habit:
        return self.habits.get(name, Habit())

    def _request_lease(self, task: m.GenerateTaskV1) -> None:
        if any(one.code == EjectedError.code for one in self.denied):
            return  # as a worker does that was told so
        key = make_key(self.generator)
        body = m.LeaseRequestV1(
            job_id=task.job_id, attempt=task.attempt, requested_ms=self.clock_ms, publication=task.publication
        )
        self.say(t.LEASE_REQUESTED, body, key, worker=key.participant_id)

    def _generate(self, granted: m.LeaseGrantedV1, cancellation: bytes | None = None) -> None:
        habit, key = self._habit(self.generator), make_key(self.generator)
        if not habit.commits:
            return
        lease = open_envelope(granted.lease, self.network.network_id, m.LeaseV1).body
        output, end = self.output, "length"
        if cancellation is not None:
            output, end = output[:-2], "cancelled"
        leaf_count = compute_leaf_count(lease.prompt_count, len(output))
        schema = self.network.model.schema
        flavours = (habit.flavour, "another") if habit.commits_twice else (habit.flavour,)
        for flavour in reversed(flavours):
            leaves = make_leaves(
                schema,
                leaf_count,
                lease.prompt_count,
                flavour=flavour,
                rounding=habit.rounding,
                is_last_missed=habit.is_last_missed,
            )
            self._leaves[self.generator, 0, 0] = leaves
            body = make_result(
                self.network,
                granted.lease,
                make_tree(leaves).root(),
                self.clock_ms,
                tokens=output,
                finish_reason=end,
                cancellation=cancellation,
            )
            self.say(t.RESULT_COMPLETED, body, key, worker=key.participant_id, job=granted.job_id)

    def _verify(self, task: m.VerifyTaskV1, name: str) -> None:
        habit = self._habit(name)
        if not habit.seals:
            return
        corner = Corner(task.corner.layer_max, task.corner.position_max, task.corner.full_depth)
        schema = self.network.model.schema.restrict(corner.layer_max, full_depth=corner.full_depth)
        leaves = make_leaves(
            schema,
            corner.position_max + 1,
            task.prompt_count,
            flavour=habit.flavour,
            rounding=habit.rounding,
            is_last_missed=self._habit(self.generator).is_last_missed,
        )
        self._leaves[name, task.stage, task.retry] = leaves
        body = m.ClaimSealedV1(
            job_id=task.job_id,
            attempt=task.attempt,
            stage=task.stage,
            retry=task.retry,
            corner=task.corner,
            leaf_count=len(leaves),
            root=make_tree(leaves).root(),
            stack=STACK,
        )
        key = make_key(name)
        self.say(t.CLAIM_SEALED, body, key, worker=key.participant_id, job=task.job_id)

    def _open(self, asked: m.ChallengeIssuedV1, name: str) -> None:
        if not self._habit(name).opens:
            return
        held = [leaves for (who, _, _), leaves in self._leaves.items() if who == name]
        leaves = next(one for one in reversed(held) if make_tree(one).root() == asked.root)
        positions = unpack_tokens(asked.positions)
        # In two parts where there is more than one position: receipts have both.
        half = (len(positions) + 1) // 2
        runs = [run for run in (positions[:half], positions[half:]) if run]
        key = make_key(name)
        for part, run in enumerate(runs):
            body = m.OpeningV1(
                job_id=asked.job_id,
                attempt=asked.attempt,
                stage=asked.stage,
                retry=asked.retry,
                part=part,
                part_count=len(runs),
                positions=pack_tokens(run),
                leaves=tuple(leaves[position] for position in run),
                proof=b"".join(make_tree(leaves).multiproof(run)),
            )
            self.say(t.OPENING_SUBMITTED, body, key, worker=key.participant_id, job=asked.job_id)

    # --- what is to be shown ---------------------------------------------------------------------------------------

    def ask_receipt(
        self, job_id: JobId, asker: str | None = None, part: int = 0
    ) -> m.ReceiptPartV1 | m.RefusalV1:
        """Ask the store for a part of a job's receipt."""
        key = make_key(asker or self.user)
        return self.services[Role.COMMITMENTS].ask(
            t.RECEIPT_QUERY,
            m.ReceiptQueryV1(job_id=job_id, part=part),
            m.ReceiptPartV1,
            key,
            user=key.participant_id,
            job=job_id.hex(),
        )

    def get_receipt(self, job_id: JobId, asker: str | None = None) -> Receipt:
        """Return a job's receipt."""
        parts: list[m.ReceiptPartV1] = []
        while not parts or len(parts) < parts[0].part_count:
            part = self.ask_receipt(job_id, asker, len(parts))
            assert isinstance(part, m.ReceiptPartV1), part
            parts.append(part)
        return decode_receipt(b"".join(part.data for part in parts))

    @property
    def header(self) -> Header:
        """The first line of an export."""
        return Header(self.network.genesis.canonical_json(), (self.network.model_envelope,))


def make_result(
    network: Network,
    lease_data: bytes,
    root: Digest,
    now_ms: int,
    *,
    tokens: tuple[int, ...] = OUTPUT,
    stack: str = STACK,
    **changes: Any,
) -> m.ResultV1:
    """Return the generator's result under a lease; ``changes`` replace fields after the binding is made."""
    lease = open_envelope(lease_data, network.network_id, m.LeaseV1)
    body = lease.body
    binding = Binding(
        network=network.network_id,
        job_id=JobId(body.job_id),
        attempt=body.attempt,
        lease_id=lease.envelope_id,
        prompt_hash=Digest(body.prompt_hash),
        output_hash=compute_token_hash(body.salt, pack_tokens(tokens)),
        model_id=ModelId(body.model_id),
        stack=stack,
        sampling_digest=Sampling().digest(),
        seed=Digest(body.seed),
        schema_digest=Digest(body.schema_digest),
        profile_set=Digest(body.profile_set),
    )
    fields: dict[str, Any] = {
        "job_id": body.job_id,
        "attempt": body.attempt,
        "lease": lease_data,
        "output": pack_tokens(tokens),
        "finish_reason": "length",
        "leaf_count": compute_leaf_count(body.prompt_count, len(tokens)),
        "root": root,
        "binding": compute_binding_digest(binding),
        "stack": stack,
        "latest_round": compute_round_at(network.chain, now_ms),
    }
    return m.ResultV1(**{**fields, **changes})
