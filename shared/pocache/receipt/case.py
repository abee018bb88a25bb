"""One job as the steps see it: the network it ran on, what was said about it, and the randomness it was judged by.

Owns no judgement. What is derived here is derived from bodies whose envelopes were opened; whether they say the truth
is asked by the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pocache.protocol.beacon import Chain, verify_round
from pocache.protocol.challenge import Corner, DeterministicStream, Tag, compute_full_corner, compute_seed
from pocache.protocol.encoding import RowSchema, unpack_tokens
from pocache.protocol.errors import BeaconError
from pocache.protocol.ids import Digest, JobId, NetworkId, ParticipantId
from pocache.protocol.matching import Comparison
from pocache.receipt.dossier import Dossier, NotShownError, Said, open_message, open_party
from pocache.receipt.format import LogProof
from pocache.receipt.trust import TrustRoots
from pocache.runtime.network import Genesis, Model
from pocache.wire import messages as m
from pocache.wire import topics as t


class RoundBook:
    """Beacon rounds by number, each verified once, when somebody asks for it."""

    def __init__(
        self,
        network: NetworkId,
        genesis: Genesis,
        read: Callable[[int], bytes | None],
        *,
        is_canonical: bool = True,
    ) -> None:
        self._network, self._genesis = network, genesis
        self._read, self._is_canonical = read, is_canonical
        self._randomness: dict[int, bytes] = {}
        self.verified: list[int] = []

    def get(self, number: int) -> bytes:
        """Return a round's randomness, its BLS signature verified. Raises BeaconError, NotShownError."""
        if number not in self._randomness:
            self._randomness[number] = self._verify(number)
            self.verified.append(number)
        return self._randomness[number]

    def _verify(self, number: int) -> bytes:
        data = self._read(number)
        if data is None:
            raise NotShownError(f"round {number} is not shown")
        body = open_message(
            data, self._network, self._genesis, (t.BEACON_ROUND,), is_canonical=self._is_canonical
        ).body
        chain = self._genesis.beacon_chain
        if (body.round_number, body.chain_hash) != (number, chain.chain_hash):
            raise BeaconError(
                f"where round {number} was expected stands {body.round_number} of {body.chain_hash.hex()}"
            )
        return verify_round(chain, number, body.signature, body.previous_signature or None)


@dataclass
class Case:
    """A job under examination."""

    network: NetworkId
    genesis: Genesis
    trust: TrustRoots | None
    dossier: Dossier
    model: Model
    model_sender: ParticipantId
    rounds: RoundBook
    rounds_shown: tuple[int, ...] | None
    """The rounds that the receipt has; None where the whole beacon stream is at hand."""
    snapshots: Mapping[int, m.SnapshotV1]
    is_record_whole: bool
    """Every snapshot and epoch there was is at hand, not only what this job needs."""
    epochs: tuple[m.EpochV1, ...] = ()
    log: LogProof | None = None
    comparisons: dict[tuple[object, ...], Comparison] = field(default_factory=dict)
    """Those that were computed, by stage, look and parties: each once."""
    parts: dict[tuple[int, int, str], list[m.OpeningV1]] = field(default_factory=dict)
    """The parts of openings, their multiproofs verified, by stage, look and party: each once."""

    @property
    def chain(self) -> Chain:
        """The beacon chain."""
        return self.genesis.beacon_chain

    @cached_property
    def job_id(self) -> JobId:
        """What the job is called."""
        return JobId(self.admitted.job_id)

    @cached_property
    def admitted(self) -> m.JobAdmittedV1:
        """The router took the job."""
        return self.dossier.get(t.JOB_ADMITTED)

    @cached_property
    def submission(self) -> Said[m.SubmissionV1]:
        """The user's own envelope."""
        return open_party(self.admitted.submission, self.network, m.SubmissionV1)

    @property
    def is_committed(self) -> bool:
        """Whether a generator committed to a result."""
        return bool(self.dossier.all(t.COMMITMENT_RECORDED))

    @cached_property
    def recorded(self) -> m.CommitmentRecordedV1:
        """The commitment, as it was recorded."""
        return self.dossier.get(t.COMMITMENT_RECORDED)

    @cached_property
    def result(self) -> Said[m.ResultV1]:
        """The generator's own envelope."""
        return open_party(self.recorded.result, self.network, m.ResultV1)

    @cached_property
    def lease(self) -> Said[m.LeaseV1]:
        """The router's lease that the result carries."""
        return open_party(self.result.body.lease, self.network, m.LeaseV1)

    @property
    def generator(self) -> ParticipantId:
        """Who generated."""
        return ParticipantId(self.recorded.generator)

    @property
    def user(self) -> ParticipantId:
        """Who asked."""
        return ParticipantId(self.admitted.user)

    @cached_property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's token ids."""
        return unpack_tokens(self.submission.body.prompt)

    @cached_property
    def output(self) -> tuple[int, ...]:
        """The output's token ids."""
        return unpack_tokens(self.result.body.output)

    @property
    def leaf_count(self) -> int:
        """N."""
        return self.result.body.leaf_count

    @property
    def root(self) -> Digest:
        """What the generator committed to."""
        return Digest(self.result.body.root)

    @property
    def full_corner(self) -> Corner:
        """The corner of the whole job."""
        return compute_full_corner(self.model.schema.layer_count, self.leaf_count)

    @property
    def audit(self) -> m.AuditOpenedV1 | None:
        """The audit, None where there was none."""
        return self.dossier.find(t.AUDIT_OPENED)

    @property
    def outcome(self) -> m.OutcomeV1 | None:
        """How the dispute ended, None where there was none."""
        return self.dossier.find(t.OUTCOME_DECIDED)

    def open_stream(self, tag: Tag, round_number: int, stage: int) -> DeterministicStream:
        """Return the stream of one draw about this commitment (docs/protocol.md 6.1)."""
        seed = compute_seed(
            tag,
            network=self.network,
            chain_hash=self.chain.chain_hash,
            round_number=round_number,
            randomness=self.rounds.get(round_number),
            root=self.root,
            leaf_count=self.leaf_count,
            job_id=self.job_id,
            stage=stage,
        )
        return DeterministicStream(seed)

    def get_schema(self, stage: int, corner: Corner) -> RowSchema:
        """Return the schema of a party's leaves: the model's for the generator, its corner's for a verifier."""
        if stage == 0:
            return self.model.schema
        return self.model.schema.restrict(corner.layer_max, full_depth=corner.full_depth)


def read_corner(body: m.CornerV1) -> Corner:
    """Return a corner in the protocol's own form."""
    return Corner(layer_max=body.layer_max, position_max=body.position_max, full_depth=body.full_depth)
