"""What parties signed, checked here once more: challenges, contradicting results, and openings that the store accepted.

The commitment store has checked them too. This service decides about money, so it takes nobody's word for what a party
said: it opens the party's own envelope, and follows the multiproof to the root that the party promised. Refuses what
does not hold; a dispute then waits, and nothing is decided on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pocache.protocol.commitment import Promise, is_equivocation
from pocache.protocol.dispute_terms import GENERATOR_STAGE, Party
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import EnvelopeError
from pocache.protocol.ids import Digest, EnvelopeId, JobId, NetworkId
from pocache.protocol.opening import verify_opening
from pocache.runtime.network import Genesis
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import ChallengeRequestV1, OpeningAcceptedV1, OpeningV1
from pocache_verifier.comparison import get_schema
from pocache_verifier.jobs import Job, open_result


def verify_challenge(network: NetworkId, job: Job, envelope: bytes | None) -> None:
    """Check that a job's own user asked for its audit; EnvelopeError, SignatureError."""
    if envelope is None:
        raise EnvelopeError("the user's challenge is not shown")
    challenge = open_envelope(envelope, network, ChallengeRequestV1)
    signed = (challenge.sender, challenge.body.job_id, challenge.body.attempt)
    if signed != (job.user, job.job_id, job.attempt):
        raise EnvelopeError("the challenge is not the user's own, of this job and attempt")


def verify_contradiction(genesis: Genesis, job: Job, envelope: bytes) -> EnvelopeId:
    """Return the id of the second result that a job's generator signed against its recorded one (docs/protocol.md 4.9).

    Raises EnvelopeError for another's result, another job's or attempt's, or one that promises the same; SignatureError.
    """
    result, lease = open_result(genesis, envelope, generator=job.generator)
    body = result.body
    of_job = (job.job_id, job.attempt)
    if (body.job_id, body.attempt) != of_job or (lease.job_id, lease.attempt) != of_job:
        raise EnvelopeError("the second result is of another job or attempt")
    first = Promise(job.job_id, job.attempt, job.leaf_count, job.root, job.binding)
    second = Promise(
        JobId(body.job_id), body.attempt, body.leaf_count, Digest(body.root), Digest(body.binding)
    )
    if not is_equivocation(first, second):
        raise EnvelopeError("the second result promises what the recorded one does")
    return result.envelope_id


def open_opening(
    network: NetworkId, job: Job, parties: Sequence[Party], accepted: OpeningAcceptedV1, told_stage: int
) -> OpeningV1:
    """Return one part of a party's opening, its signature, leaves and multiproof verified.

    The stage is the record's; a verifier signs the one that it was told of.

    Raises EnvelopeError for another's or another stage's opening, SignatureError, OpeningError, MerkleError.
    """
    party = next((one for one in parties if one.participant == accepted.participant), None)
    if party is None:
        raise EnvelopeError(f"{accepted.participant} is no party of the stage")
    opened = open_envelope(accepted.opening, network, OpeningV1)
    body = opened.body
    signed = (opened.sender, body.job_id, body.attempt, body.stage, body.retry)
    stage = accepted.stage if party.stage == GENERATOR_STAGE else told_stage
    if signed != (party.participant, job.job_id, job.attempt, stage, accepted.retry):
        raise EnvelopeError("the opening is another's, or of another stage, than the record says")
    verify_opening(
        unpack_tokens(body.positions),
        body.leaves,
        body.proof,
        schema=get_schema(job, party),
        prompt_count=job.prompt_count,
        leaf_count=party.corner.position_max + 1,
        root=party.root,
    )
    return body
