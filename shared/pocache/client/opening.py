"""Opening what the network says to a user: who signed it, and that a result is one for this very submission."""

from __future__ import annotations

from typing import TypeVar

from pocache.job import Job, verify_lease
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import CommitmentError
from pocache.protocol.ids import ParticipantId
from pocache.runtime.network import Genesis
from pocache.wire import messages as m
from pocache.wire.envelope import open_envelope
from pocache.wire.model import WireModel
from pocache.wire.topics import Role

M = TypeVar("M", bound=WireModel)


def open_said(data: bytes, model: type[M], genesis: Genesis, role: Role) -> M:
    """Return the body of what a service said. Raises CommitmentError where another signed it, InputError for no envelope."""
    opened = open_envelope(data, genesis.network_id, model)
    if opened.sender != genesis.signer(role):
        raise CommitmentError(f"{model.kind} is not signed by the {role.value}")
    return opened.body


def open_result(job: Job, data: bytes, genesis: Genesis) -> tuple[m.ResultV1, ParticipantId]:
    """Return a result and its generator, if it fulfils a lease of this network's router for this submission."""
    opened = open_envelope(data, genesis.network_id, m.ResultV1)
    result, lease = opened.body, open_said(opened.body.lease, m.LeaseV1, genesis, Role.ROUTER)
    verify_lease(job, lease)
    if (result.job_id, result.attempt) != (lease.job_id, lease.attempt):
        raise CommitmentError("the result is another attempt's than its lease")
    if opened.sender != lease.generator:
        raise CommitmentError("the result is not signed by the leaseholder")
    if len(unpack_tokens(result.output)) > lease.token_count_max:
        raise CommitmentError("the result has more tokens than were asked for")
    return result, opened.sender
