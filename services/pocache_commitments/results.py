"""Whether a result may be recorded: its lease, its tokens and its binding (docs/protocol.md 4.7).

Pure functions of what was sent and of the network's configuration. Refuses whatever the lease's router did
not sign, another leaseholder, another N, an output that ends otherwise than it says, another stack,
another binding digest, and a latest round that does not fit the time of arrival. Does not look at the rows
behind the root: an audit does.
"""

from __future__ import annotations

from pocache.protocol.beacon import compute_round_at
from pocache.protocol.commitment import (
    Binding,
    Sampling,
    compute_binding_digest,
    compute_token_hash,
    verify_leaf_count,
)
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import (
    CommitmentError,
    ExpiredError,
    InputError,
    NotAuthorizedError,
    UnknownJobError,
)
from pocache.protocol.ids import Digest, EnvelopeId, JobId, ModelId, ParticipantId
from pocache.runtime.network import Genesis, Model
from pocache.wire.envelope import OpenedEnvelope, open_envelope
from pocache.wire.messages import CancelRequestV1, LeaseV1, ResultV1
from pocache.wire.topics import Role


def open_lease(genesis: Genesis, result: ResultV1, sender: ParticipantId) -> OpenedEnvelope[LeaseV1]:
    """Return the lease that a result carries, if it is this router's, for this attempt, and the sender's.

    Raises UnknownJobError: the router never leased this attempt. NotAuthorizedError: it leased it to
    somebody else.
    """
    try:
        opened = open_envelope(result.lease, genesis.network_id, LeaseV1)
    except InputError as error:
        raise UnknownJobError(f"no lease of this network's router: {error}") from error
    lease = opened.body
    if opened.sender != genesis.signer(Role.ROUTER):
        raise UnknownJobError("the lease is not signed by the router: this attempt was never dispatched")
    if (lease.job_id, lease.attempt) != (result.job_id, result.attempt):
        raise UnknownJobError("the lease is for another job or attempt")
    if lease.generator != sender:
        raise NotAuthorizedError("the lease is another worker's")
    return opened


def verify_result(genesis: Genesis, model: Model, lease: OpenedEnvelope[LeaseV1], result: ResultV1) -> None:
    """Check all of a result that does not depend on when it came; CommitmentError, EncodingError."""
    tokens = unpack_tokens(result.output)
    _verify_output(model, lease.body, tokens, result.finish_reason)
    _verify_cancellation(genesis, lease.body, result)
    verify_leaf_count(result.leaf_count, lease.body.prompt_count, len(tokens))
    if result.stack != model.entry.stack:
        raise CommitmentError(f"stack {result.stack!r}: this model is served on {model.entry.stack!r}")
    if lease.body.schema_digest != model.schema.digest() or lease.body.profile_set != model.profile_set:
        raise CommitmentError("the lease names another row schema or profile than this model has here")
    if result.binding != compute_binding_digest(
        _make_binding(genesis, lease.body, lease.envelope_id, result)
    ):
        raise CommitmentError("the binding digest is not that of this lease, output and stack")


def verify_arrival(genesis: Genesis, lease: LeaseV1, result: ResultV1, stored_ms: int) -> None:
    """Check that a result came in time and knew about when; ExpiredError that says what to do.

    The latest round that it names is none that was still to come, and at most
    ``commitment_lag_rounds_max`` old.
    """
    if stored_ms > lease.deadline_ms:
        raise ExpiredError(f"the lease ended {stored_ms - lease.deadline_ms} ms before this result arrived")
    current = compute_round_at(genesis.beacon_chain, stored_ms)
    oldest = current - genesis.audit.commitment_lag_rounds_max
    if not oldest <= result.latest_round <= current:
        raise ExpiredError(
            f"the result names round {result.latest_round}, it arrived in round {current}: "
            "sign it again with the latest round and announce it again before the lease ends"
        )


def _verify_output(model: Model, lease: LeaseV1, tokens: tuple[int, ...], finish_reason: str) -> None:
    """Check the vocabulary and the end: at the first EOS where that stops it, else at full length or cancelled."""
    if len(tokens) > lease.token_count_max:
        raise CommitmentError(f"{len(tokens)} output tokens where {lease.token_count_max} were asked for")
    if max(tokens) >= model.entry.vocab_size:
        raise CommitmentError(
            f"output token {max(tokens)} lies outside the vocabulary of {model.entry.vocab_size}"
        )
    stops = [
        index for index, token in enumerate(tokens) if lease.eos_stop and token in model.entry.eos_tokens
    ]
    if stops and stops[0] != len(tokens) - 1:
        raise CommitmentError(f"the output goes on after the end of sequence at index {stops[0]}")
    is_full = len(tokens) == lease.token_count_max
    if not stops and not is_full and finish_reason != "cancelled":
        raise CommitmentError("the output ends early: no end of sequence, and not the length asked for")
    if finish_reason != ("stop" if stops else "length" if is_full else "cancelled"):
        raise CommitmentError(f"finish reason {finish_reason!r} is not how this output ends")


def _verify_cancellation(genesis: Genesis, lease: LeaseV1, result: ResultV1) -> None:
    """Check that an output was cancelled by the user of its lease, and that nothing else claims to be."""
    if (result.finish_reason == "cancelled") != (result.cancellation is not None):
        raise CommitmentError("an output is cancelled by the user's signed request, and by nothing else")
    if result.cancellation is None:
        return
    try:
        opened = open_envelope(result.cancellation, genesis.network_id, CancelRequestV1)
    except InputError as error:
        raise CommitmentError(f"the cancellation is no signed request: {error}") from error
    if opened.sender != lease.user or opened.body.job_id != lease.job_id:
        raise CommitmentError("the cancellation is not that of this job's user")


def _make_binding(genesis: Genesis, lease: LeaseV1, lease_id: EnvelopeId, result: ResultV1) -> Binding:
    sampling = Sampling(
        temperature_micro=lease.sampling.temperature_micro,
        top_k=lease.sampling.top_k,
        top_p_micro=lease.sampling.top_p_micro,
    )
    return Binding(
        network=genesis.network_id,
        job_id=JobId(lease.job_id),
        attempt=lease.attempt,
        lease_id=lease_id,
        prompt_hash=Digest(lease.prompt_hash),
        output_hash=compute_token_hash(lease.salt, result.output),
        model_id=ModelId(lease.model_id),
        stack=result.stack,
        sampling_digest=sampling.digest(),
        seed=Digest(lease.seed),
        schema_digest=Digest(lease.schema_digest),
        profile_set=Digest(lease.profile_set),
    )
