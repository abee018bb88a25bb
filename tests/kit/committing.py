"""A job as its worker and verifiers hold it: lease, rows, tree, result, openings; honest unless told."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from kit.network import STACK, Network
from pocache.protocol.beacon import compute_round_at
from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.commitment import (
    Binding,
    Sampling,
    compute_binding_digest,
    compute_leaf_count,
    compute_token_hash,
)
from pocache.protocol.encoding import RowKind, RowSchema, encode_leaf, pack_tokens
from pocache.protocol.ids import Digest, JobId, ModelId
from pocache.protocol.keys import SigningKey
from pocache.protocol.merkle import MerkleTree
from pocache.wire.messages import (
    ClaimSealedV1,
    CornerV1,
    LeaseV1,
    OpeningV1,
    ResultV1,
    SamplingV1,
    StagePartyV1,
    StageSealedV1,
)
from pocache.wire.topics import Role

SALT: Final = b"salt of 16 bytes"
EOS: Final = 2


MISSED_BY: Final = 1 / 16
"""Margin of a token that is not the best; the kit's profile knows honest ones like that, and they are rare."""


def make_leaves(
    schema: RowSchema,
    leaf_count: int,
    prompt_count: int,
    *,
    flavour: str = "honest",
    rounding: str = "",
    is_last_missed: bool = False,
) -> list[bytes]:
    """Return encoded leaves whose floats are hashes of position, row and flavour; ``rounding`` moves each by a little.

    ``is_last_missed``: the last token is not the model's best, if hardly worse. That position is always opened.
    """
    leaves = []
    for position in range(leaf_count):
        rows = {}
        for kind, layer in schema.row_keys(scored=position >= prompt_count - 1):
            count = schema.row_bytes(kind) // 4
            name = f"{flavour} {position} {kind.name} {layer}".encode()
            words = struct.unpack(f"<{count}h", hashlib.shake_256(name).digest(2 * count))
            drift = hashlib.shake_256(rounding.encode() + name).digest(count) if rounding else bytes(count)
            values = [word / 2**15 + by / 2**32 for word, by in zip(words, drift, strict=True)]
            if kind is RowKind.SCORES:
                is_missed = is_last_missed and position == leaf_count - 1
                values[-1] = MISSED_BY if is_missed else 0.0  # the delivered token is the best
            rows[kind, layer] = struct.pack(f"<{count}f", *values)
        leaves.append(encode_leaf(schema, position, rows))
    return leaves


def make_tree(leaves: Sequence[bytes]) -> MerkleTree:
    """Return the Merkle tree over encoded leaves."""
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


def to_wire(corner: Corner) -> CornerV1:
    """Return a corner as it travels."""
    return CornerV1(
        layer_max=corner.layer_max, position_max=corner.position_max, full_depth=corner.full_depth
    )


@dataclass
class Holder:
    """One who committed to leaves: it can open them."""

    key: SigningKey
    stage: int
    corner: Corner
    leaves: list[bytes]

    @cached_property
    def tree(self) -> MerkleTree:
        """The tree over the leaves."""
        return make_tree(self.leaves)

    def make_claim(
        self, job: Job, *, retry: int = 0, signer: SigningKey | None = None, **changes: Any
    ) -> bytes:
        """Return this verifier's sealed claim; ``changes`` replaces its fields, ``signer`` its key."""
        fields = {
            "job_id": job.job_id,
            "attempt": job.attempt,
            "stage": self.stage,
            "retry": retry,
            "corner": to_wire(self.corner),
            "leaf_count": len(self.leaves),
            "root": self.tree.root(),
            "stack": STACK,
        }
        return job.network.seal(signer or self.key, ClaimSealedV1(**{**fields, **changes}))

    def make_party(self, job: Job, *, retry: int = 0) -> StagePartyV1:
        """Return this holder as a party of a stage."""
        return StagePartyV1(
            participant=self.key.participant_id,
            stage=self.stage,
            root=self.tree.root(),
            leaf_count=len(self.leaves),
            corner=to_wire(self.corner),
            claim=self.make_claim(job, retry=retry) if self.stage else None,
        )

    def open(
        self,
        job: Job,
        positions: Sequence[int],
        *,
        stage: int = 1,
        retry: int = 0,
        part: int = 0,
        part_count: int = 1,
        **changes: Any,
    ) -> OpeningV1:
        """Return one part's opening; ``changes`` replaces its fields."""
        inside = sorted({position for position in positions if position < len(self.leaves)})
        fields = {
            "job_id": job.job_id,
            "attempt": job.attempt,
            "stage": stage,
            "retry": retry,
            "part": part,
            "part_count": part_count,
            "positions": pack_tokens(positions),
            "leaves": tuple(self.leaves[position] for position in positions),
            "proof": b"".join(self.tree.multiproof(inside)),
        }
        return OpeningV1(**{**fields, **changes})


@dataclass
class Job:
    """One attempt of a job: who asked, who generated, what was committed."""

    network: Network
    name: str = "job"
    attempt: int = 1
    prompt: tuple[int, ...] = (5, 6, 7)
    output: tuple[int, ...] = (8, 9, 10, 11, 12)
    eos_stop: bool = True
    stack: str = STACK
    lease_changes: dict[str, Any] = field(default_factory=dict)
    granted_ms: int = 0
    deadline_ms: int = 2**52

    @property
    def job_id(self) -> JobId:
        """The job's id."""
        return JobId(hashlib.sha256(self.name.encode()).digest())

    @property
    def user(self) -> SigningKey:
        """Who submitted it."""
        return self.network.key("user")

    @property
    def worker(self) -> SigningKey:
        """Who generates it."""
        return self.network.key("worker")

    @property
    def leaf_count(self) -> int:
        """N."""
        return compute_leaf_count(len(self.prompt), len(self.output))

    @property
    def finish_reason(self) -> str:
        """How the output ends."""
        return "stop" if self.eos_stop and self.output[-1] == EOS else "length"

    @cached_property
    def generator(self) -> Holder:
        """The generator with its honest leaves."""
        return self.make_holder("worker", 0, self.full_corner)

    @property
    def full_corner(self) -> Corner:
        """All layers of all positions."""
        return compute_full_corner(self.network.model.schema.layer_count, self.leaf_count)

    def make_holder(self, name: str, stage: int, corner: Corner, *, flavour: str = "honest") -> Holder:
        """Return somebody who committed to this job's rows within a corner."""
        schema = self.network.model.schema.restrict(corner.layer_max, full_depth=corner.full_depth)
        leaves = make_leaves(
            schema, corner.position_max + 1, len(self.prompt), flavour=f"{self.name} {flavour}"
        )
        return Holder(self.network.key(name), stage, corner, leaves)

    def make_lease(self, signer: SigningKey | None = None, **changes: Any) -> bytes:
        """Return the router's lease; ``changes`` replaces its fields, ``signer`` the router."""
        model = self.network.model
        fields = {
            "job_id": self.job_id,
            "attempt": self.attempt,
            "generator": self.worker.participant_id,
            "user": self.user.participant_id,
            "model_id": model.model_id,
            "prompt_hash": compute_token_hash(SALT, pack_tokens(self.prompt)),
            "prompt_count": len(self.prompt),
            "token_count_max": 5,
            "sampling": SamplingV1(),
            "eos_stop": self.eos_stop,
            "seed": hashlib.sha256(b"seed").digest(),
            "salt": SALT,
            "schema_digest": model.schema.digest(),
            "profile_set": model.profile_set,
            "granted_ms": self.granted_ms,
            "deadline_ms": self.deadline_ms,
        }
        key = self.network.keys[Role.ROUTER] if signer is None else signer
        return self.network.seal(key, LeaseV1(**{**fields, **self.lease_changes, **changes}))

    def make_result(self, now_ms: int, *, lease: bytes | None = None, **changes: Any) -> ResultV1:
        """Return the worker's result as of a time; ``changes`` replaces fields after the binding is made."""
        data = self.make_lease() if lease is None else lease
        fields = {
            "job_id": self.job_id,
            "attempt": self.attempt,
            "lease": data,
            "output": pack_tokens(self.output),
            "finish_reason": self.finish_reason,
            "leaf_count": self.leaf_count,
            "root": self.generator.tree.root(),
            "binding": self.compute_binding(data),
            "stack": self.stack,
            "latest_round": compute_round_at(self.network.chain, now_ms),
        }
        return ResultV1(**{**fields, **changes})

    def compute_binding(self, lease_data: bytes) -> Digest:
        """Return the binding digest of this output under a lease."""
        lease = self.network.open(lease_data, LeaseV1)
        binding = Binding(
            network=self.network.network_id,
            job_id=JobId(lease.job_id),
            attempt=lease.attempt,
            lease_id=self.network.envelope_id(lease_data),
            prompt_hash=Digest(lease.prompt_hash),
            output_hash=compute_token_hash(lease.salt, pack_tokens(self.output)),
            model_id=ModelId(lease.model_id),
            stack=self.stack,
            sampling_digest=Sampling().digest(),
            seed=Digest(lease.seed),
            schema_digest=Digest(lease.schema_digest),
            profile_set=Digest(lease.profile_set),
        )
        return compute_binding_digest(binding)

    def make_stage(
        self, *verifiers: Holder, sealed_ms: int, retry: int = 0, sample_count: int = 4
    ) -> StageSealedV1:
        """Return the sealed stage of the last of these verifiers."""
        last = verifiers[-1]
        return StageSealedV1(
            job_id=self.job_id,
            attempt=self.attempt,
            stage=last.stage,
            retry=retry,
            corner=to_wire(last.corner),
            parties=tuple(
                holder.make_party(self, retry=retry if holder is last else 0)
                for holder in (self.generator, *verifiers)
            ),
            sample_count=sample_count,
            sealed_ms=sealed_ms,
        )


def poison_leaf(schema: RowSchema, leaf: bytes) -> bytes:
    """Return the leaf with its first float made NaN."""
    start = len(leaf) - (len(leaf) - _header_bytes(schema))
    return leaf[:start] + struct.pack("<f", float("nan")) + leaf[start + 4 :]


def _header_bytes(schema: RowSchema) -> int:
    rows = schema.layer_count * (schema.row_bytes(RowKind.K) + schema.row_bytes(RowKind.V))
    rows += schema.row_bytes(RowKind.HIDDEN) if schema.has_hidden else 0
    return schema.leaf_bytes(scored=False) - rows
