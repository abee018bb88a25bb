"""A lease that the router granted: whether it is what the user signed and what this worker runs, and what it binds.

Pure. Refuses a lease that the router did not sign, that names another generator, job, model, schema or profile set, or
that differs in anything from the user's submission: committing to it would commit to what nobody asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pocache.protocol.commitment import Binding, Sampling, compute_sampling_seed, compute_token_hash
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import CommitmentError, EnvelopeError, NotAuthorizedError
from pocache.protocol.ids import Digest, EnvelopeId, JobId, ModelId, NetworkId, ParticipantId
from pocache.runtime.network import Genesis, Model
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import CancelRequestV1, LeaseGrantedV1, LeaseV1, SamplingV1, SubmissionV1
from pocache.wire.topics import Role

GRANTS_KEPT_MAX: Final = 64
"""Checked grants that are remembered; beyond, the longest ago goes, and is checked again if it is asked for."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A checked lease with the prompt that it is for."""

    lease: LeaseV1
    lease_id: EnvelopeId
    lease_envelope: bytes
    prompt: tuple[int, ...]

    @property
    def job_id(self) -> JobId:
        """The job."""
        return JobId(self.lease.job_id)

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters in the protocol's own form."""
        return read_sampling(self.lease.sampling)


def verify_grant(
    body: LeaseGrantedV1, *, genesis: Genesis, model: Model, participant: ParticipantId
) -> Grant:
    """Check a grant against the submission inside it and against what we run, and return it.

    Raises EnvelopeError, SignatureError, CodecError: not the router's, or not the user's. NotAuthorizedError: another
    worker's lease. CommitmentError: it binds something else than the submission and our model.
    """
    opened = open_envelope(body.lease, genesis.network_id, LeaseV1)
    submitted = open_envelope(body.submission, genesis.network_id, SubmissionV1)
    lease, submission = opened.body, submitted.body
    if opened.sender != genesis.signer(Role.ROUTER):
        raise EnvelopeError("the lease is not signed by the router")
    if lease.generator != participant:
        raise NotAuthorizedError("the lease is another worker's")
    if (lease.job_id, lease.attempt) != (body.job_id, body.attempt):
        raise EnvelopeError("the lease is for another job or attempt than the message")
    if submitted.envelope_id != lease.job_id or submitted.sender != lease.user:
        raise CommitmentError("the lease and the submission are of different jobs or users")
    prompt = unpack_tokens(submission.prompt)
    demanded: dict[str, object] = {
        "model_id": submission.model_id,
        "prompt_hash": compute_token_hash(submission.salt, submission.prompt),
        "prompt_count": len(prompt),
        "token_count_max": submission.token_count_max,
        "sampling": submission.sampling,
        "eos_stop": submission.eos_stop,
        "salt": submission.salt,
    }
    if submission.seed is not None:
        demanded["seed"] = compute_sampling_seed(submission.seed, b"", JobId(lease.job_id))
    _compare(lease, demanded, "the submission")
    served = {
        "model_id": model.model_id,
        "schema_digest": model.schema.digest(),
        "profile_set": model.profile_set,
    }
    _compare(lease, served, "this worker's model")
    return Grant(lease, opened.envelope_id, body.lease, prompt)


class GrantVerifier:
    """Checks what one identity is granted, the same grant once: it is looked at when it comes and when it is begun."""

    def __init__(self, genesis: Genesis, model: Model, participant: ParticipantId) -> None:
        self._genesis = genesis
        self._model = model
        self._participant = participant
        self._verified: OrderedDict[tuple[bytes, bytes, bytes, int], Grant] = OrderedDict()

    def verify(self, body: LeaseGrantedV1) -> Grant:
        """Return the checked grant; errors as :func:`verify_grant`."""
        key = (body.lease, body.submission, body.job_id, body.attempt)
        grant = self._verified.pop(key, None) or verify_grant(
            body, genesis=self._genesis, model=self._model, participant=self._participant
        )
        self._verified[key] = grant
        if len(self._verified) > GRANTS_KEPT_MAX:
            self._verified.popitem(last=False)
        return grant


def verify_cancellation(grant: Grant, cancellation: bytes, *, network: NetworkId) -> None:
    """Check that the lease's own user wants no more of its job: nothing else excuses a shorter output.

    Raises EnvelopeError, SignatureError, CodecError: no such envelope. NotAuthorizedError: another's, or another job.
    """
    opened = open_envelope(cancellation, network, CancelRequestV1)
    if opened.sender != grant.lease.user or opened.body.job_id != grant.job_id:
        raise NotAuthorizedError("the cancellation is not that of this job's user")


def compute_binding(grant: Grant, *, network: NetworkId, stack: str, output: bytes) -> Binding:
    """Return what a commitment to ``output`` (packed tokens) binds under this lease."""
    lease = grant.lease
    return Binding(
        network=network,
        job_id=grant.job_id,
        attempt=lease.attempt,
        lease_id=grant.lease_id,
        prompt_hash=Digest(lease.prompt_hash),
        output_hash=compute_token_hash(lease.salt, output),
        model_id=ModelId(lease.model_id),
        stack=stack,
        sampling_digest=grant.sampling.digest(),
        seed=Digest(lease.seed),
        schema_digest=Digest(lease.schema_digest),
        profile_set=Digest(lease.profile_set),
    )


def read_sampling(body: SamplingV1) -> Sampling:
    """Return sampling parameters in the protocol's own form."""
    return Sampling(temperature_micro=body.temperature_micro, top_k=body.top_k, top_p_micro=body.top_p_micro)


def _compare(lease: LeaseV1, demanded: Mapping[str, object], whose: str) -> None:
    wrong = [name for name, value in demanded.items() if getattr(lease, name) != value]
    if wrong:
        raise CommitmentError(f"the lease differs from {whose} in {', '.join(wrong)}")
