"""Every reason why a submission is refused: its stable code, its words, and that no money was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from kit.network import GENESIS_S, Network, make_key, make_network
from kit.routing import PROMPT, USER, RouterHarness, make_router, make_submission
from pocache.protocol.encoding import pack_tokens
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import encode_value

NOW_MS = GENESIS_S * 1_000
CONTEXT, VOCABULARY, AGE_MS = 64, 100, 60_000


def refused_with(router: RouterHarness, data: bytes) -> m.RefusalV1:
    """Deliver a submission that is refused; nothing but the refusal may happen."""
    before = router.dump()
    assert router.deliver_data(t.JOB_SUBMITTED, data).action == "term"
    ((topic, refusal),) = router.outbox()
    assert topic is t.REFUSALS[router.service.role]
    assert isinstance(refusal, m.RefusalV1)
    assert router.dump() == before
    return refusal


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_id": bytes(32)}, "E201", "kit-model"),
        ({"prompt": b""}, "E202", "empty"),
        ({"prompt": pack_tokens([VOCABULARY])}, "E202", f"token {VOCABULARY} lies outside"),
        ({"prompt": pack_tokens([2**32 - 1])}, "E202", "outside the vocabulary"),
        ({"prompt": pack_tokens([1] * (CONTEXT - 7))}, "E202", "65 tokens; this model's context is 64"),
        ({"token_count_max": CONTEXT}, "E202", "67 tokens"),
        ({"prompt": b"\x01\x00\x00"}, "E105", "token"),
        ({"token_count_max": 0}, "E101", "token_count_max"),
        ({"token_count_max": 2**31}, "E101", "token_count_max"),
        ({"salt": b"short"}, "E101", "salt"),
        ({"seed": b"short"}, "E101", "seed"),
        ({"expires_ms": NOW_MS + 100}, "E206", "expires_ms has passed"),
        ({"created_ms": NOW_MS + 60_201}, "E206", "lies in the future"),
        ({"created_ms": NOW_MS + 99 - AGE_MS}, "E206", "too old"),
        ({"created_ms": -1}, "E101", "created_ms"),
    ],
)
def test_a_submission_that_the_network_does_not_take(
    router: RouterHarness, network: Network, changes: dict[str, Any], code: str, words: str
) -> None:
    refusal = refused_with(router, network.seal(USER, make_submission(network, **changes)))
    assert refusal.code == code
    assert words in refusal.reason


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"temperature_micro": -1}, "E101"),
        ({"temperature_micro": 100_000_001}, "E101"),
        ({"top_k": -1}, "E101"),
        ({"top_k": 1_000_001}, "E101"),
        ({"top_k": VOCABULARY + 1}, "E203"),
        ({"top_p_micro": 0}, "E101"),
        ({"top_p_micro": -1}, "E101"),
        ({"top_p_micro": 1_000_001}, "E101"),
        ({"temperature_micro": True}, "E101"),
        ({"temperature_micro": "1"}, "E101"),
        ({"beam_count": 4}, "E101"),
    ],
)
def test_sampling_parameters_out_of_range(
    router: RouterHarness, network: Network, changes: dict[str, Any], code: str
) -> None:
    """What no model can do is refused by the codec (E101), what this model cannot do by the router (E203)."""
    fields = {"temperature_micro": 0, "top_k": 0, "top_p_micro": 1_000_000, **changes}
    body = make_submission(network).model_dump()
    data = seal_fields(network, {**body, "sampling": fields})
    refusal = refused_with(router, data)
    assert refusal.code == code
    assert next(iter(changes)) in refusal.reason


def test_a_float_is_no_temperature(router: RouterHarness, network: Network) -> None:
    """Nothing that could be rounded is signed."""
    data = seal_payload(network, b"\x81\xa8sampling\xcb" + bytes(8))
    assert refused_with(router, data).code == "E101"


def test_limits_themselves_are_admitted(router: RouterHarness) -> None:
    """The largest of everything that is allowed is allowed."""
    router.submit(
        prompt=pack_tokens([VOCABULARY - 1] * (CONTEXT - 8)),
        sampling=m.SamplingV1(temperature_micro=100_000_000, top_k=VOCABULARY, top_p_micro=1),
        created_ms=router.clock_ms - AGE_MS,
        expires_ms=router.clock_ms + 1,
    )
    router.submit(created_ms=router.clock_ms + 60_000)


def test_no_more_jobs_than_the_network_takes(router: RouterHarness, network: Network) -> None:
    """The fourth job is refused, and taken once one of the others is over."""
    first, *_ = [router.submit(salt=bytes([number]) * 16) for number in range(3)]
    router.drain()
    data = network.seal(USER, make_submission(network))
    refusal = refused_with(router, data)
    assert (refusal.code, "try again later" in refusal.reason) == ("E205", True)
    escrow = m.HoldRequestV1(
        purpose="escrow", job_id=first, attempt=1, party=USER.participant_id, amount_micro=1
    )
    router.refuse_hold(escrow)
    assert router.deliver_data(t.JOB_SUBMITTED, data).action == "ack"


def test_costs_that_no_pool_can_hold_are_refused() -> None:
    """A price so high that βCg exceeds what an account holds: refused, not a crash."""
    dear = make_network(rules={"beta": "1000000000000"}, context_tokens_max=40_000)
    router = make_router(dear)
    refusal = refused_with(router, dear.seal(USER, make_submission(dear, token_count_max=32_000)))
    assert (refusal.code, "pool" in refusal.reason) == ("E401", True)
    router.close()


# --- envelopes --------------------------------------------------------------------------------------------


def seal_fields(network: Network, fields: dict[str, Any], *, kind: str = "submission.v1") -> bytes:
    """Return an envelope whose signature holds, of a payload that no model checked."""
    return seal_payload(network, encode_value(fields), kind=kind)


def seal_payload(network: Network, payload: bytes, *, kind: str = "submission.v1") -> bytes:
    from pocache.wire.envelope import compute_preimage

    signature = USER.sign(compute_preimage(network.network_id, kind, payload))
    return encode_value(
        {"kind": kind, "payload": payload, "kid": USER.participant_id, "sig": signature}, bytes_max=2_000_000
    )


def test_malformed_msgpack(router: RouterHarness, network: Network) -> None:
    """Outside the envelope, inside it, and after its end."""
    good = network.seal(USER, make_submission(network))
    assert refused_with(router, b"\xc1 not msgpack").code == "E101"
    assert refused_with(router, b"").code == "E101"
    assert refused_with(router, good[:-1]).code == "E101"
    assert refused_with(router, good + b"\x00").code == "E101"
    assert refused_with(router, seal_payload(network, b"\xc1")).code == "E101"
    assert refused_with(router, seal_payload(network, b"\x93\x01\x02\x03")).code == "E101"


def test_wrong_kind(router: RouterHarness, network: Network) -> None:
    """Another message, and a submission that calls itself something else."""
    other = m.BalanceQueryV1(participant=USER.participant_id)
    refusal = refused_with(router, network.seal(USER, other))
    assert (refusal.code, "submission.v1" in refusal.reason) == ("E102", True)
    fields = make_submission(network).model_dump()
    assert refused_with(router, seal_fields(network, fields, kind="submission.v2")).code == "E102"


def test_unknown_and_missing_fields(router: RouterHarness, network: Network) -> None:
    fields = make_submission(network).model_dump()
    extra = refused_with(router, seal_fields(network, {**fields, "discount": 1}))
    assert (extra.code, "discount" in extra.reason) == ("E101", True)
    fields.pop("salt")
    missing = refused_with(router, seal_fields(network, fields))
    assert (missing.code, "salt" in missing.reason) == ("E101", True)


def test_oversized_payload(router: RouterHarness, network: Network) -> None:
    """A message over the limit is refused before a byte of it is decoded."""
    huge = seal_payload(network, bytes(1_000_001))
    assert refused_with(router, huge).code == "E102"
    assert refused_with(router, bytes(1_100_000)).code == "E104"


def test_deeply_nested_payload(router: RouterHarness, network: Network) -> None:
    nested = b"\x81\xa1a" * 40 + b"\xc0"
    assert refused_with(router, seal_payload(network, nested)).code == "E104"
    assert refused_with(router, b"\x91" * 100_000 + b"\xc0").code == "E104"


def test_bad_signature(router: RouterHarness, network: Network) -> None:
    """One bit of the signature, one of what is signed, and the signature over another network's id."""
    good = network.seal(USER, make_submission(network))
    flipped = bytearray(good)
    flipped[-1] ^= 1
    assert refused_with(router, bytes(flipped)).code == "E103"
    tampered = good.replace(b"salt of 16 bytes", b"SALT of 16 bytes")
    assert tampered != good
    assert refused_with(router, tampered).code == "E103"
    elsewhere = make_network(bounds={"attempt_max": 3})
    assert refused_with(router, elsewhere.seal(USER, make_submission(elsewhere))).code == "E103"


def test_somebody_elses_name_on_a_submission(router: RouterHarness, network: Network) -> None:
    """The key that signed pays: another's name in the envelope does not verify."""
    good = network.seal(make_key("mallory"), make_submission(network))
    forged = good.replace(make_key("mallory").participant_id.encode(), USER.participant_id.encode())
    assert forged != good
    assert refused_with(router, forged).code == "E103"


def test_a_replayed_envelope_is_one_job(router: RouterHarness) -> None:
    """The same bytes stored again are refused; delivered again, they are a redelivery and change nothing."""
    job_id = router.submit()
    assert router.last is not None
    data, delivery = router.last.data, router.last
    router.drain()
    assert router.apply(delivery).action == "ack"
    assert router.outbox() == []
    assert refused_with(router, data).code == "E208"
    assert [row[0] for row in router.dump()["jobs"]] == [job_id]


def test_the_refusal_names_the_message(router: RouterHarness, network: Network) -> None:
    """By the hash of the bytes that were sent, on a subject that the sender can listen to."""
    import hashlib

    data = network.seal(USER, make_submission(network, prompt=b""))
    router.deliver_data(t.JOB_SUBMITTED, data)
    (emission,) = router.drain()
    digest = hashlib.sha256(data).digest()
    assert emission.subject == f"refusals.router.{digest.hex()}"
    assert emission.body.message_hash == digest  # type: ignore[attr-defined]


def test_the_router_goes_on_after_every_refusal(router: RouterHarness, network: Network) -> None:
    """Hostile bytes and a good submission in one batch: the good one is admitted."""
    from pocache.service.dispatch import Delivery

    good = network.seal(USER, make_submission(network))
    bad = (b"\xc1", bytes(1_100_000), network.seal(USER, make_submission(network, prompt=b"")))
    batch = [
        Delivery(t.JOB_SUBMITTED.subject(), data, "SUBMISSIONS", 100 + number, router.clock_ms)
        for number, data in enumerate((*bad, good))
    ]
    decisions = router.dispatcher.apply(batch)
    assert [decision.action for decision in decisions] == ["term", "term", "term", "ack"]
    assert len(router.outbox_of(t.JOB_ADMITTED)) == 1


def test_a_prompt_of_the_right_length_is_priced_by_it(router: RouterHarness, network: Network) -> None:
    """αCg + αCv for all tokens asked for, at full depth: the deposit that the ledger will check."""
    job_id = router.submit()
    (hold,) = list(router.outbox_of(t.ROUTER_HOLD_REQUESTED))
    prices, rules = network.model.prices, network.genesis.rule_set
    cg = prices.prompt_token_micro * len(PROMPT) + prices.output_token_micro * 8
    cv = prices.verify_token_micro * (len(PROMPT) + 8 - 1)
    products = rules.compute_products(cg, cv)
    assert (hold.purpose, hold.job_id, hold.party) == ("escrow", job_id, USER.participant_id)
    assert hold.amount_micro == products.deposit == 6 * cg // 5 + 6 * cv // 5
