"""What worker tests need beside a network: one whose model a FakeEngine runs, and the router's side of a lease."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from kit.network import Harness, Network, make_key, make_network
from pocache.engine.fake import FakeEngine
from pocache.protocol.commitment import compute_sampling_seed, compute_token_hash
from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.ids import JobId
from pocache.protocol.keys import SigningKey
from pocache.runtime.network import Model
from pocache.service.unit import Unit
from pocache.wire import messages as m
from pocache.wire.topics import Role
from pocache_worker.grants import GrantVerifier
from pocache_worker.service import WorkerService
from pocache_worker.tables import LEASES, OPENINGS

T = TypeVar("T")

MODEL_NAME: Final = "kit"
CONTEXT_TOKENS_MAX: Final = 512
PROMPT: Final = (7, 8, 9, 10, 11)
SALT: Final = b"sixteen bytes ok"


def build_fake_engine(model_name: str = MODEL_NAME) -> FakeEngine:
    """Return the engine that the network of :func:`make_worker_network` serves."""
    return FakeEngine(model_name, context_tokens_max=CONTEXT_TOKENS_MAX)


def make_worker_network(*, worker: str = "worker-1", **arguments: Any) -> Network:
    """Return a network whose model is the fake engine's, with ``worker`` as the key that a harness signs with."""
    network = make_network(context_tokens_max=CONTEXT_TOKENS_MAX, **arguments)
    found = build_fake_engine().capabilities()
    entry = network.model.entry.model_copy(
        update={
            "model_id": found.model_id,
            "vocab_size": found.vocab_size,
            "eos_tokens": found.eos_tokens,
            "layer_count": found.layer_count,
            "stack": found.stack,
            "row_schema": json.dumps(found.schema.to_dict(), sort_keys=True, separators=(",", ":")).encode(),
        }
    )
    keys = {**network.keys, Role.WORKER: make_key(worker)}
    envelope = network.seal(keys[Role.OPERATOR], entry)
    return replace(network, keys=keys, model=Model(entry), model_envelope=envelope)


def make_submission(network: Network, *, token_count_max: int = 6, **changes: Any) -> m.SubmissionV1:
    """Return a small job for the network's model."""
    fields: dict[str, Any] = {
        "model_id": network.model.model_id,
        "prompt": pack_tokens(PROMPT),
        "token_count_max": token_count_max,
        "sampling": m.SamplingV1(temperature_micro=800_000),
        "eos_stop": False,
        "salt": SALT,
        "created_ms": 0,
        "expires_ms": 10**15,
        **changes,
    }
    return m.SubmissionV1(**fields)


def make_grant(
    network: Network,
    worker: SigningKey,
    *,
    submission: m.SubmissionV1 | None = None,
    signer: SigningKey | None = None,
    attempt: int = 1,
    deadline_ms: int = 10**15,
    **changes: Any,
) -> m.LeaseGrantedV1:
    """Return what the router grants a worker; ``changes`` falsify fields of the lease."""
    user = make_key("user")
    body = make_submission(network) if submission is None else submission
    sealed = network.seal(user, body)
    job_id = network.envelope_id(sealed)
    fields: dict[str, Any] = {
        "job_id": job_id,
        "attempt": attempt,
        "generator": worker.participant_id,
        "user": user.participant_id,
        "model_id": body.model_id,
        "prompt_hash": compute_token_hash(body.salt, body.prompt),
        "prompt_count": len(unpack_tokens(body.prompt)),
        "token_count_max": body.token_count_max,
        "sampling": body.sampling,
        "eos_stop": body.eos_stop,
        "seed": compute_sampling_seed(body.seed, bytes(32), JobId(job_id)),
        "salt": body.salt,
        "schema_digest": network.model.schema.digest(),
        "profile_set": network.model.profile_set,
        "granted_ms": 0,
        "deadline_ms": deadline_ms,
        **changes,
    }
    lease = network.seal(signer or network.keys[Role.ROUTER], m.LeaseV1(**fields))
    return m.LeaseGrantedV1(job_id=job_id, attempt=attempt, lease=lease, submission=sealed)


@dataclass
class Bench:
    """A harness around one worker, with the transactions that its tasks would make."""

    network: Network
    harness: Harness
    rings: list[None] = field(default_factory=list)

    @property
    def key(self) -> SigningKey:
        """The worker's key."""
        return self.network.keys[Role.WORKER]

    def transact(self, work: Callable[[Unit], T]) -> T:
        """Run ``work`` as one of the worker's tasks would."""
        return self.harness.dispatcher.transact(work)

    def phases(self) -> list[str]:
        """Return the phases of all leases, in the order of their attempts."""
        return self.transact(
            lambda unit: list(
                unit.connection.execute(sa.select(LEASES.c.phase).order_by(LEASES.c.attempt)).scalars()
            )
        )

    def opening_phases(self) -> list[str]:
        """Return the phases of all openings."""
        return self.transact(
            lambda unit: list(unit.connection.execute(sa.select(OPENINGS.c.phase)).scalars())
        )


def make_bench(*, opens: bool = True) -> Bench:
    """Return a bench around an honest worker, or one that never opens."""
    network = make_worker_network()
    rings: list[None] = []
    service = WorkerService(
        network.keys[Role.WORKER].participant_id,
        GrantVerifier(network.genesis, network.model, network.keys[Role.WORKER].participant_id),
        notify=lambda _news: rings.append(None),
        opens=opens,
    )
    return Bench(network, Harness(service, network), rings)
