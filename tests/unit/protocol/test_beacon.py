"""Chains, local rounds, and the binding of an event to a round that comes after it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from pocache.protocol import bls
from pocache.protocol.beacon import (
    QUICKNET,
    Chain,
    Scheme,
    bind_round,
    compute_public_key,
    compute_round_at,
    compute_round_time_ms,
    compute_secret,
    sign_round,
    verify_round,
    verify_round_signature,
)
from pocache.protocol.errors import BeaconError
from pocache.protocol.limits import ROUND_MAX, TIME_MS_MAX

SECRET = compute_secret(b"a local chain's entropy, 32 bytes or more")
GENESIS_MS = 1_700_000_000_000


@pytest.fixture
def chain() -> Chain:
    return Chain(
        scheme=Scheme.BLS_UNCHAINED_G1_RFC9380,
        public_key=compute_public_key(SECRET),
        genesis_s=GENESIS_MS // 1000,
        period_s=3,
        genesis_seed=sha256(b"genesis").digest(),
        beacon_id="local",
    )


def test_a_local_round_verifies(chain: Chain) -> None:
    """What the operator signs, every consumer accepts; the randomness is the signature's hash."""
    signature = sign_round(SECRET, 7)
    assert len(signature) == 48
    assert verify_round(chain, 7, signature) == sha256(signature).digest()


def test_a_local_round_of_another_key_or_number_is_refused(chain: Chain) -> None:
    """Neither another operator's signature nor another round's."""
    other = compute_secret(bytes(32))
    for forged in (sign_round(other, 7), sign_round(SECRET, 8)):
        with pytest.raises(BeaconError, match="not this key's"):
            verify_round(chain, 7, forged)


@pytest.mark.parametrize("size", [0, 32, 95, 97])
def test_a_previous_signature_of_another_size_is_refused_even_if_signed(size: int) -> None:
    """Without the fixed size, bytes could move between the previous signature and the round."""
    scheme = Scheme.PEDERSEN_BLS_CHAINED
    key = bls.compute_public_key(scheme.arrangement, SECRET)

    def sign(previous: bytes) -> bytes:
        message = sha256(previous + (2).to_bytes(8, "big")).digest()
        return bls.sign(scheme.arrangement, SECRET, message, scheme.domain)

    verify_round_signature(scheme, key, 2, sign(bytes(96)), bytes(96))
    with pytest.raises(BeaconError, match="stand 96 bytes"):
        verify_round_signature(scheme, key, 2, sign(bytes(size)), bytes(size))


@pytest.mark.parametrize("arrangement", list(bls.Arrangement))
def test_both_arrangements_sign_and_verify(arrangement: bls.Arrangement) -> None:
    """Sizes as stated; another message or domain tag is another signature."""
    key, signature = (
        bls.compute_public_key(arrangement, SECRET),
        bls.sign(arrangement, SECRET, b"message", b"tag"),
    )
    assert (len(key), len(signature)) == (arrangement.public_key_bytes, arrangement.signature_bytes)
    bls.verify_signature(arrangement, key, b"message", signature, b"tag")
    for message, domain in ((b"massage", b"tag"), (b"message", b"tog")):
        with pytest.raises(BeaconError, match="not this key's"):
            bls.verify_signature(arrangement, key, message, signature, domain)


@pytest.mark.parametrize("number", [0, bls.ORDER, bls.ORDER + 1, 2**256 - 1])
def test_secrets_out_of_range_are_refused(number: int) -> None:
    """Zero makes the identity key; r and above are second spellings."""
    with pytest.raises(BeaconError, match="between 1 and r-1"):
        compute_public_key(number.to_bytes(32, "big"))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_secrets_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(BeaconError, match="32 bytes"):
        sign_round(b"\x01" * size, 1)


def test_the_largest_secret_is_the_negated_generator() -> None:
    """r-1 is in range, and its public key is the generator with the other sign."""
    one, largest = ((number).to_bytes(32, "big") for number in (1, bls.ORDER - 1))
    first, last = compute_public_key(one), compute_public_key(largest)
    assert first[1:] == last[1:]
    assert first[0] ^ last[0] == 0x20


def test_any_entropy_makes_a_secret_in_range() -> None:
    """Thirty-two bytes of ones are no secret by themselves, but entropy for one; less is refused."""
    secret = compute_secret(b"\xff" * 32)
    assert 0 < int.from_bytes(secret, "big") < bls.ORDER
    assert secret != compute_secret(b"\xfe" * 32)
    with pytest.raises(BeaconError, match="entropy"):
        compute_secret(bytes(31))


def test_round_one_is_at_genesis(chain: Chain) -> None:
    """And every period brings the next."""
    assert compute_round_time_ms(chain, 1) == GENESIS_MS
    assert compute_round_time_ms(chain, 5) == GENESIS_MS + 12_000


@pytest.mark.parametrize(
    ("since_genesis_ms", "latest"), [(-GENESIS_MS, 0), (-1, 0), (0, 1), (2999, 1), (3000, 2), (3001, 2)]
)
def test_the_latest_round_at_a_time(chain: Chain, since_genesis_ms: int, latest: int) -> None:
    """Zero before genesis; a round is there from the millisecond it is due."""
    assert compute_round_at(chain, GENESIS_MS + since_genesis_ms) == latest


@pytest.mark.parametrize(
    ("since_genesis_ms", "delay_ms", "bound"),
    [
        (0, 0, 2),
        (0, 2999, 2),
        (0, 3000, 3),
        (1, 2999, 3),
        (2999, 0, 2),
        (3000, 0, 3),
        (-1, 0, 1),
        (-9000, 0, 1),
    ],
)
def test_an_event_is_bound_to_the_first_round_after_it(
    chain: Chain, since_genesis_ms: int, delay_ms: int, bound: int
) -> None:
    """Strictly after t + Δ, never the round that is due in that very millisecond."""
    assert bind_round(chain, GENESIS_MS + since_genesis_ms, delay_ms) == bound


def test_a_bound_round_is_due_within_one_period_after_the_delay(chain: Chain) -> None:
    """The definition, for every millisecond of two periods."""
    for time_ms in range(GENESIS_MS, GENESIS_MS + 6_000, 7):
        due_ms = compute_round_time_ms(chain, bind_round(chain, time_ms, 4_000))
        assert 0 < due_ms - (time_ms + 4_000) <= 3_000


def test_times_and_rounds_out_of_range_are_refused(chain: Chain) -> None:
    """Bounds hold before any arithmetic."""
    for number in (-1, 0, ROUND_MAX + 1):
        with pytest.raises(BeaconError, match="round"):
            compute_round_time_ms(chain, number)
        with pytest.raises(BeaconError, match="round"):
            verify_round(chain, number, bytes(48))
    for time_ms in (-1, TIME_MS_MAX + 1):
        with pytest.raises(BeaconError, match="time"):
            bind_round(chain, time_ms, 0)
        with pytest.raises(BeaconError, match="time"):
            compute_round_at(chain, time_ms)
        with pytest.raises(BeaconError, match="delay"):
            bind_round(chain, GENESIS_MS, time_ms)


@pytest.mark.parametrize(
    "change",
    [
        {"public_key": b""},
        {"public_key": bytes(96)},
        {"public_key": b"\xc0" + bytes(95)},
        {"scheme": Scheme.PEDERSEN_BLS_CHAINED},
        {"scheme": "bls-unchained-g1-rfc9380"},
        {"genesis_s": -1},
        {"genesis_s": TIME_MS_MAX},
        {"period_s": 0},
        {"period_s": 2**32},
        {"genesis_seed": bytes(31)},
        {"beacon_id": "x" * 5000},
    ],
    ids=lambda change: f"{next(iter(change))}",
)
def test_a_chain_that_cannot_be_is_not_made(chain: Chain, change: dict[str, object]) -> None:
    """Construction is the check: no other place needs one."""
    with pytest.raises(BeaconError):
        replace(chain, **change)  # type: ignore[arg-type]


def test_every_field_but_the_scheme_is_in_the_chain_hash(chain: Chain) -> None:
    """drand leaves the scheme out, and the id of the default beacon."""
    changes: list[dict[str, object]] = [
        {"public_key": compute_public_key(compute_secret(bytes(32)))},
        {"genesis_s": 1},
        {"period_s": 4},
        {"genesis_seed": bytes(32)},
        {"beacon_id": "other"},
    ]
    hashes = {replace(chain, **change).chain_hash for change in changes}  # type: ignore[arg-type]
    assert len(hashes | {chain.chain_hash}) == len(changes) + 1
    assert replace(chain, scheme=Scheme.BLS_UNCHAINED_ON_G1).chain_hash == chain.chain_hash
    assert replace(chain, beacon_id="").chain_hash == replace(chain, beacon_id="default").chain_hash


@pytest.mark.parametrize("published", [QUICKNET, None], ids=["quicknet", "local"])
def test_an_info_document_returns_the_chain(chain: Chain, published: Chain | None) -> None:
    """What we serve in drand's form, we read."""
    original = published or chain
    assert Chain.from_info(original.to_info()) == original


@pytest.mark.parametrize(
    "change",
    [
        {"public_key": "xyz"},
        {"public_key": None},
        {"period": "3"},
        {"period": True},
        {"period": 4},
        {"genesis_time": 1.5},
        {"genesis_time": 1},
        {"groupHash": "00" * 32},
        {"schemeID": "bls-bn254-unchained-on-g1"},
        {"schemeID": None},
        {"schemeID": ["pedersen-bls-chained"]},
        {"hash": "00" * 32},
        {"hash": None},
        {"metadata": {"beaconID": "quickest"}},
        {"metadata": {"beaconID": 7}},
        {"metadata": "quicknet"},
    ],
    ids=lambda change: f"{next(iter(change))}",
)
def test_an_info_document_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    """Every field is needed, typed, and under the hash."""
    with pytest.raises(BeaconError):
        Chain.from_info({**QUICKNET.to_info(), **change})
