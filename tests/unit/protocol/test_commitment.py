"""The binding covers all its fields, chunk hashes forget the chunks, and seeds cannot be shopped."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from typing import Any

import pytest

from pocache.protocol.commitment import (
    CHUNK_HASH_START,
    Binding,
    Promise,
    Sampling,
    compute_binding_digest,
    compute_chunk_hash,
    compute_leaf_count,
    compute_sampling_seed,
    compute_token_hash,
    is_equivocation,
    verify_leaf_count,
)
from pocache.protocol.errors import CommitmentError, EncodingError, SamplingError
from pocache.protocol.ids import Digest, EnvelopeId, JobId, ModelId, NetworkId

SALT = b"s" * 16
TOKENS = bytes(range(24))


def lp(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def make_binding() -> Binding:
    return Binding(
        network=NetworkId(b"\x01" * 32),
        job_id=JobId(b"\x02" * 32),
        attempt=1,
        lease_id=EnvelopeId(b"\x03" * 32),
        prompt_hash=Digest(b"\x04" * 32),
        output_hash=Digest(b"\x05" * 32),
        model_id=ModelId(b"\x06" * 32),
        stack="torch 2.13.0 float32 sdpa x86",
        sampling_digest=Sampling().digest(),
        seed=Digest(b"\x07" * 32),
        schema_digest=Digest(b"\x08" * 32),
        profile_set=Digest(b"\x09" * 32),
    )


CHANGES: dict[str, Any] = {
    "network": b"\xff" * 32,
    "job_id": b"\xff" * 32,
    "attempt": 2,
    "lease_id": b"\xff" * 32,
    "prompt_hash": b"\xff" * 32,
    "output_hash": b"\xff" * 32,
    "model_id": b"\xff" * 32,
    "stack": "torch 2.13.0 float32 eager x86",
    "sampling_digest": Sampling(temperature_micro=1).digest(),
    "seed": b"\xff" * 32,
    "schema_digest": b"\xff" * 32,
    "profile_set": b"\xff" * 32,
}


def test_the_binding_digest_is_the_documented_bytes() -> None:
    binding = make_binding()
    fields = [getattr(binding, field.name) for field in dataclasses.fields(binding)]
    fields[2] = (1).to_bytes(4, "big")
    fields[7] = binding.stack.encode()
    preimage = lp(b"pocache/v1/binding") + b"".join(lp(field) for field in fields)
    assert compute_binding_digest(binding) == hashlib.sha256(preimage).digest()


def test_every_field_of_the_binding_counts() -> None:
    digests = {
        compute_binding_digest(dataclasses.replace(make_binding(), **{n: v})) for n, v in CHANGES.items()
    }
    assert set(CHANGES) == {field.name for field in dataclasses.fields(Binding)}
    assert len(digests | {compute_binding_digest(make_binding())}) == len(CHANGES) + 1


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in {"attempt", "stack"}])
@pytest.mark.parametrize("value", [b"", b"\x00" * 31, b"\x00" * 33, "0" * 32])
def test_a_digest_of_another_length_is_refused(name: str, value: Any) -> None:
    with pytest.raises(CommitmentError, match=name):
        dataclasses.replace(make_binding(), **{name: value})


@pytest.mark.parametrize(
    "change", [{"attempt": 0}, {"attempt": 17}, {"attempt": True}, {"stack": ""}, {"stack": "é" * 2_049}]
)
def test_attempt_and_stack_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CommitmentError):
        dataclasses.replace(make_binding(), **change)


def test_the_last_sampled_token_has_no_leaf() -> None:
    assert compute_leaf_count(5, 3) == 7
    assert compute_leaf_count(1, 1) == 1
    verify_leaf_count(7, 5, 3)
    with pytest.raises(CommitmentError, match="make 7"):
        verify_leaf_count(8, 5, 3)


@pytest.mark.parametrize(
    ("prompt_count", "output_count"), [(0, 1), (1, 0), (65_537, 1), (1, 32_769), (-1, 3)]
)
def test_token_counts_out_of_range_are_refused(prompt_count: int, output_count: int) -> None:
    with pytest.raises(CommitmentError):
        compute_leaf_count(prompt_count, output_count)


def test_the_token_hash_is_salted_and_unambiguous() -> None:
    expected = hashlib.sha256(lp(b"pocache/v1/tokens") + lp(SALT) + lp(TOKENS)).digest()
    assert compute_token_hash(SALT, TOKENS) == expected
    assert compute_token_hash(SALT + TOKENS[:4], TOKENS[4:]) != expected
    with pytest.raises(CommitmentError, match="salt"):
        compute_token_hash(SALT[1:], TOKENS)
    with pytest.raises(EncodingError):
        compute_token_hash(SALT, TOKENS[1:])


@pytest.mark.parametrize("cut", range(0, 25, 4))
def test_the_chunk_hash_does_not_depend_on_chunking(cut: int) -> None:
    whole = compute_chunk_hash(CHUNK_HASH_START, TOKENS)
    assert compute_chunk_hash(compute_chunk_hash(CHUNK_HASH_START, TOKENS[:cut]), TOKENS[cut:]) == whole


def test_the_chunk_hash_folds_token_by_token() -> None:
    current = hashlib.sha256(lp(b"pocache/v1/chunk")).digest()
    assert current == CHUNK_HASH_START
    for start in range(0, 24, 4):
        current = hashlib.sha256(lp(b"pocache/v1/chunk") + current + TOKENS[start : start + 4]).digest()
    assert compute_chunk_hash(CHUNK_HASH_START, TOKENS) == current


def test_chunk_hashes_refuse_torn_tokens_and_short_states() -> None:
    with pytest.raises(EncodingError):
        compute_chunk_hash(CHUNK_HASH_START, b"\x00" * 5)
    with pytest.raises(CommitmentError):
        compute_chunk_hash(Digest(CHUNK_HASH_START[1:]), TOKENS)


def test_every_sampling_parameter_counts_in_the_digest() -> None:
    variants = [Sampling(), Sampling(1), Sampling(0, 1), Sampling(0, 0, 999_999)]
    assert len({sampling.digest() for sampling in variants}) == len(variants)
    preimage = lp(b"pocache/v1/sampling") + b"".join(n.to_bytes(8, "big") for n in (700_000, 40, 950_000))
    assert Sampling(700_000, 40, 950_000).digest() == hashlib.sha256(preimage).digest()


@pytest.mark.parametrize("name", ["temperature_micro", "top_k", "top_p_micro"])
@pytest.mark.parametrize("value", [-1, 100_000_001, 0.5, True])
def test_absurd_sampling_parameters_are_refused(name: str, value: int) -> None:
    with pytest.raises(SamplingError, match=name):
        Sampling(**{name: value})


def test_top_p_of_zero_is_refused() -> None:
    with pytest.raises(SamplingError, match="top_p_micro"):
        Sampling(top_p_micro=0)


def test_a_users_seed_gives_the_same_sampling_seed_for_each_of_its_jobs() -> None:
    expected = hashlib.sha256(lp(b"pocache/v1/user-seed") + lp(b"mine")).digest()
    for job in (b"\x01", b"\x02"):
        assert compute_sampling_seed(b"mine", b"k" * 32, JobId(job * 32)) == expected


def test_without_a_users_seed_epoch_key_and_job_decide() -> None:
    job = JobId(b"\x01" * 32)
    expected = hmac.new(b"k" * 32, lp(b"pocache/v1/epoch-seed") + lp(job), "sha256").digest()
    assert compute_sampling_seed(None, b"k" * 32, job) == expected
    assert compute_sampling_seed(None, b"l" * 32, job) != expected
    with pytest.raises(CommitmentError, match="epoch key"):
        compute_sampling_seed(None, b"", job)


def test_an_empty_user_seed_is_a_seed() -> None:
    """Falling back to the epoch key would ignore what the user signed."""
    job = JobId(b"\x01" * 32)
    assert compute_sampling_seed(b"", b"k" * 32, job) != compute_sampling_seed(None, b"k" * 32, job)


@pytest.mark.parametrize(
    ("change", "contradicts"),
    [
        ({}, False),
        ({"leaf_count": 8}, True),
        ({"root": Digest(b"\x08" * 32)}, True),
        ({"binding_digest": Digest(b"\x08" * 32)}, True),
        ({"attempt": 2, "leaf_count": 8}, False),
        ({"job_id": JobId(b"\x08" * 32), "leaf_count": 8}, False),
    ],
)
def test_equivocation_is_another_promise_for_the_same_attempt(
    change: dict[str, Any], *, contradicts: bool
) -> None:
    one = Promise(JobId(b"\x01" * 32), 1, 7, Digest(b"\x02" * 32), Digest(b"\x03" * 32))
    assert is_equivocation(one, dataclasses.replace(one, **change)) is contradicts
