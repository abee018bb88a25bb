"""What a generator's commitment binds: tokens, sampler, seed, all else in one digest (docs/protocol.md 4).

Owns the canonical bytes of the binding and of the token hashes, the sampling parameters, the sampling seed,
and the rule for when two results contradict each other. Refuses counts, digests and parameters out of range.
The latest known beacon round is no part of the binding: it is a signed field beside it, so a commitment that
an outage delayed can be announced again without equivocating. Does not check a Merkle root (merkle.py) or a
signature (keys.py).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pocache.protocol.errors import CommitmentError, EncodingError, SamplingError
from pocache.protocol.ids import Digest
from pocache.protocol.limits import (
    ATTEMPT_COUNT_MAX,
    LEAF_COUNT_MAX,
    OUTPUT_TOKENS_MAX,
    PROMPT_TOKENS_MAX,
    TEMPERATURE_MICRO_MAX,
    TEXT_BYTES_MAX,
    TOKEN_BYTES,
    TOP_K_MAX,
    TOP_P_MICRO_ONE,
)

if TYPE_CHECKING:
    from pocache.protocol.ids import EnvelopeId, JobId, ModelId, NetworkId

DIGEST_BYTES: Final = 32
SALT_BYTES_MIN: Final = 16
"""Below this a short prompt could be found by hashing guesses."""

_TOKENS_DOMAIN: Final = b"pocache/v1/tokens"
_CHUNK_DOMAIN: Final = b"pocache/v1/chunk"
_SAMPLING_DOMAIN: Final = b"pocache/v1/sampling"
_BINDING_DOMAIN: Final = b"pocache/v1/binding"
_USER_SEED_DOMAIN: Final = b"pocache/v1/user-seed"
_EPOCH_SEED_DOMAIN: Final = b"pocache/v1/epoch-seed"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; temperature 0 is greedy, top_k 0 and top_p_micro 1,000,000 are off."""

    temperature_micro: int = 0
    top_k: int = 0
    top_p_micro: int = TOP_P_MICRO_ONE

    def __post_init__(self) -> None:
        """Refuse what no sampler can follow; SamplingError."""
        _verify_range("temperature_micro", self.temperature_micro, 0, TEMPERATURE_MICRO_MAX)
        _verify_range("top_k", self.top_k, 0, TOP_K_MAX)
        _verify_range("top_p_micro", self.top_p_micro, 1, TOP_P_MICRO_ONE)

    def digest(self) -> Digest:
        """Return SHA256(lp(domain) ‖ u64 temperature_micro ‖ u64 top_k ‖ u64 top_p_micro), big-endian."""
        numbers = (self.temperature_micro, self.top_k, self.top_p_micro)
        return _sha256(_lp(_SAMPLING_DOMAIN) + b"".join(number.to_bytes(8, "big") for number in numbers))


@dataclass(frozen=True, slots=True)
class Binding:
    """Everything that a commitment is about besides its root and leaf count (docs/protocol.md 4.5)."""

    network: NetworkId
    job_id: JobId
    attempt: int
    lease_id: EnvelopeId
    prompt_hash: Digest
    output_hash: Digest
    model_id: ModelId
    stack: str
    sampling_digest: Digest
    seed: Digest
    schema_digest: Digest
    profile_set: Digest

    def __post_init__(self) -> None:
        """Refuse digests of another length, an attempt out of range, a nameless stack; CommitmentError."""
        for name in _BINDING_DIGESTS:
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) != DIGEST_BYTES:
                message = f"binding: {name} must be {DIGEST_BYTES} bytes"
                raise CommitmentError(message)
        if type(self.attempt) is not int or not 1 <= self.attempt <= ATTEMPT_COUNT_MAX:
            message = f"binding: attempt must be in 1..{ATTEMPT_COUNT_MAX}, got {self.attempt!r}"
            raise CommitmentError(message)
        if not self.stack or len(self.stack.encode()) > TEXT_BYTES_MAX:
            message = f"binding: stack must be 1..{TEXT_BYTES_MAX} bytes of text"
            raise CommitmentError(message)


_BINDING_DIGESTS: Final = (
    "network",
    "job_id",
    "lease_id",
    "prompt_hash",
    "output_hash",
    "model_id",
    "sampling_digest",
    "seed",
    "schema_digest",
    "profile_set",
)


@dataclass(frozen=True, slots=True)
class Promise:
    """What a generator's signed result says about one attempt, as far as it can contradict another."""

    job_id: JobId
    attempt: int
    leaf_count: int
    root: Digest
    binding_digest: Digest


def compute_leaf_count(prompt_count: int, output_count: int) -> int:
    """Return N = |prompt| + |output| − 1: the last sampled token is never fed back; CommitmentError."""
    if not 1 <= prompt_count <= PROMPT_TOKENS_MAX:
        message = f"a prompt has 1..{PROMPT_TOKENS_MAX} tokens, got {prompt_count}"
        raise CommitmentError(message)
    if not 1 <= output_count <= OUTPUT_TOKENS_MAX:
        message = f"an output has 1..{OUTPUT_TOKENS_MAX} tokens, got {output_count}"
        raise CommitmentError(message)
    leaf_count = prompt_count + output_count - 1
    assert leaf_count < LEAF_COUNT_MAX
    return leaf_count


def verify_leaf_count(leaf_count: int, prompt_count: int, output_count: int) -> None:
    """Refuse a commitment with another N than its tokens have; CommitmentError."""
    expected = compute_leaf_count(prompt_count, output_count)
    if leaf_count != expected:
        message = f"leaf count {leaf_count}, but {prompt_count} + {output_count} tokens make {expected}"
        raise CommitmentError(message)


def compute_token_hash(salt: bytes, tokens: bytes) -> Digest:
    """Return SHA256(lp(domain) ‖ lp(salt) ‖ lp(packed tokens)).

    The salt keeps a public log from giving short texts away. Errors: CommitmentError for a salt below
    SALT_BYTES_MIN, EncodingError for tokens that are not whole.
    """
    if len(salt) < SALT_BYTES_MIN:
        message = f"a token hash needs a salt of at least {SALT_BYTES_MIN} bytes, got {len(salt)}"
        raise CommitmentError(message)
    _verify_packed(tokens)
    return _sha256(_lp(_TOKENS_DOMAIN) + _lp(salt) + _lp(tokens))


CHUNK_HASH_START: Final = Digest(
    hashlib.sha256(len(_CHUNK_DOMAIN).to_bytes(4, "big") + _CHUNK_DOMAIN).digest()
)
"""The cumulative chunk hash of no tokens at all."""


def compute_chunk_hash(previous: Digest, tokens: bytes) -> Digest:
    """Fold packed tokens into the cumulative hash of what was streamed before.

    h ← SHA256(lp(domain) ‖ h ‖ token) for each token by itself, so how a stream was cut into chunks leaves no
    trace. Errors: CommitmentError, EncodingError.
    """
    if len(previous) != DIGEST_BYTES:
        message = f"a chunk hash is {DIGEST_BYTES} bytes, got {len(previous)}"
        raise CommitmentError(message)
    _verify_packed(tokens)
    prefix = hashlib.sha256(_lp(_CHUNK_DOMAIN))
    current = bytes(previous)
    for start in range(0, len(tokens), TOKEN_BYTES):
        step = prefix.copy()
        step.update(current)
        step.update(tokens[start : start + TOKEN_BYTES])
        current = step.digest()
    return Digest(current)


def compute_binding_digest(binding: Binding) -> Digest:
    """Return SHA256 over the length-prefixed fields of the binding, in the order of its definition."""
    fields = (
        _BINDING_DOMAIN,
        binding.network,
        binding.job_id,
        binding.attempt.to_bytes(4, "big"),
        binding.lease_id,
        binding.prompt_hash,
        binding.output_hash,
        binding.model_id,
        binding.stack.encode(),
        binding.sampling_digest,
        binding.seed,
        binding.schema_digest,
        binding.profile_set,
    )
    return _sha256(b"".join(_lp(field) for field in fields))


def compute_sampling_seed(user_seed: bytes | None, epoch_key: bytes, job_id: JobId) -> Digest:
    """Return the seed that the router issues with the lease (docs/protocol.md 4.3).

    SHA256(lp(domain) ‖ lp(user seed)) when the user gave one, the same for each of its jobs, because the user
    is whom a bad seed cheats; else HMAC-SHA256(epoch key, lp(domain) ‖ lp(job id)), which nobody can shop for
    and which anyone can check once the epoch key is published. Errors: CommitmentError.
    """
    if user_seed is not None:
        return _sha256(_lp(_USER_SEED_DOMAIN) + _lp(user_seed))
    if len(epoch_key) != DIGEST_BYTES:
        message = f"an epoch key is {DIGEST_BYTES} bytes, got {len(epoch_key)}"
        raise CommitmentError(message)
    return Digest(hmac.digest(epoch_key, _lp(_EPOCH_SEED_DOMAIN) + _lp(job_id), "sha256"))


def is_equivocation(one: Promise, other: Promise) -> bool:
    """Answer whether two signed results contradict: same attempt, another leaf count, root or binding."""
    same_attempt = (one.job_id, one.attempt) == (other.job_id, other.attempt)
    return same_attempt and one != other


def _lp(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _sha256(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).digest())


def _verify_packed(tokens: bytes) -> None:
    if len(tokens) % TOKEN_BYTES:
        message = f"packed tokens are {TOKEN_BYTES} bytes each, got {len(tokens)} bytes"
        raise EncodingError(message)


def _verify_range(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        message = f"sampling: {name} must be an integer in {low}..{high}, got {value!r}"
        raise SamplingError(message)
