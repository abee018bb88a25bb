"""Bytes that are no receipt: refused before anything is verified, at R1 or R2, and never with a crash."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kit.endings import play
from kit.network import make_network
from pocache.protocol.errors import CodecError, ConfigError, LimitError, ReceiptError
from pocache.protocol.limits import MICRO_MAX, RECEIPT_BYTES_MAX, RECEIPT_TEXT_BYTES_MAX
from pocache.receipt.format import Receipt, decode_receipt, encode_binary, encode_json
from pocache.receipt.report import Report, Status, Step
from pocache.receipt.strict_json import read_json, write_json
from pocache.receipt.trust import TrustRoots, load_trust, make_trust
from pocache.receipt.verify import read_genesis, verify_receipt
from pocache.runtime.network import Genesis, compute_network_id
from pocache.wire.codec import encode_value

ROOT = Path(__file__).parents[3]


def judge(data: bytes, trust: TrustRoots | None = None) -> Report:
    return verify_receipt(data, trust or play("agree").loopback.trust)


def verify_refused(data: bytes, step: Step, code: str, trust: TrustRoots | None = None) -> str:
    """Assert that a receipt fails at a step, with a code, and not by a bug; returns the reason."""
    report = judge(data, trust)
    failure = report.failure
    assert failure is not None
    assert (failure.step, failure.code, failure.is_internal) == (step, code, False)
    assert not report.is_valid
    following = list(Step)[list(Step).index(step) + 1 :]
    assert [one.step for one in report.steps if one.status is Status.NOT_REACHED] == following
    return failure.reason


def text_of(receipt: Receipt) -> dict[str, object]:
    value: dict[str, object] = json.loads(encode_json(receipt))
    return value


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\x80", b"\xc1", b"null\n", b"[]\n", b"receipt", b"\x00" * 64, b"{}\n"]
)
def test_what_is_no_receipt_is_refused(data: bytes) -> None:
    verify_refused(data, Step.FORMAT, CodecError.code)


@pytest.mark.parametrize("kind", ["receipt.v0", "receipt.v2", "result.v1", ""])
def test_another_version_is_refused_by_name(kind: str) -> None:
    value = {**text_of(play("agree").receipt), "kind": kind}
    assert kind in verify_refused(write_json(value), Step.FORMAT, ReceiptError.code)


def test_more_bytes_than_the_limit_are_not_parsed() -> None:
    """The size comes first: a hundred megabytes of brackets cost nothing."""
    started = time.process_time()
    verify_refused(b"{" + b"[" * RECEIPT_TEXT_BYTES_MAX, Step.FORMAT, LimitError.code)
    verify_refused(b"\x88" * (RECEIPT_BYTES_MAX + 1), Step.FORMAT, LimitError.code)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("depth", [9, 500, 200_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    opened = b'{"kind":' + b"[" * depth + b"]" * depth + b"}\n"
    verify_refused(opened, Step.FORMAT, LimitError.code)
    verify_refused(b"\x91" * depth + b"\xc0", Step.FORMAT, LimitError.code)


def test_a_key_given_twice_is_refused() -> None:
    data = encode_json(play("agree").receipt)
    twice = data.replace(b'"kind":"receipt.v1"', b'"kind":"receipt.v1","kind":"receipt.v1"')
    assert "twice" in verify_refused(twice, Step.FORMAT, CodecError.code)
    packed = b"\x82\xa1a\x01\xa1a\x01"
    verify_refused(packed, Step.FORMAT, CodecError.code)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.rstrip(b"\n"),
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b'":', b'": ', 1),
        lambda data: data.replace(b"receipt.v1", b"rece\\u0069pt.v1"),
        lambda data: json.dumps(dict(reversed(json.loads(data).items()))).encode() + b"\n",
        lambda data: json.dumps(json.loads(data), indent=1, sort_keys=True).encode() + b"\n",
    ],
    ids=["no line feed", "two", "space before", "space inside", "escape", "other order", "indented"],
)
def test_json_in_another_spelling_is_refused(change: object) -> None:
    data = change(encode_json(play("agree").receipt))  # type: ignore[operator]
    verify_refused(data, Step.FORMAT, CodecError.code)


def test_msgpack_in_another_spelling_is_refused() -> None:
    """A longer header, another order of the fields, bytes behind the end."""
    receipt = play("refused").receipt
    data = encode_binary(receipt)
    longer = b"\xde\x00\x08" + data[1:]
    fields = {
        "kind": "receipt.v1",
        "model": receipt.model,
        "genesis": receipt.genesis,
        "record": receipt.record,
    }
    other = encode_value({**fields, "rounds": (), "snapshots": (), "epochs": (), "log": None})
    for one in (longer, other, data + b"\xc0"):
        verify_refused(one, Step.FORMAT, CodecError.code)


@pytest.mark.parametrize(
    "name", ["kind", "genesis", "model", "record", "rounds", "snapshots", "epochs", "log"]
)
def test_a_missing_or_unknown_field_is_refused(name: str) -> None:
    value = text_of(play("agree").receipt)
    verify_refused(
        write_json({one: value[one] for one in value if one != name}), Step.FORMAT, CodecError.code
    )
    verify_refused(write_json({**value, f"{name}2": value[name]}), Step.FORMAT, CodecError.code)


@pytest.mark.parametrize("name", ["genesis", "model", "record", "rounds", "snapshots", "epochs", "log"])
@pytest.mark.parametrize("wrong", [7, True, "?", [7], ["?"], {"a": 1}, [["QUJD"]]])
def test_a_field_of_another_type_is_refused(name: str, wrong: object) -> None:
    """A genesis may be any text: that one is no genesis is the next step's to say."""
    failure = judge(write_json({**text_of(play("agree").receipt), name: wrong})).failure
    assert failure is not None
    assert not failure.is_internal
    assert failure.step is (Step.TRUST if (name, wrong) == ("genesis", "?") else Step.FORMAT)


def test_base64_with_loose_bits_or_without_padding_is_refused() -> None:
    value = text_of(play("agree").receipt)
    model = str(value["model"])
    for text in (model.rstrip("=") if model.endswith("=") else model[:-1], model + "\n", "QR==", "QQ"):
        verify_refused(write_json({**value, "model": text}), Step.FORMAT, CodecError.code)


def test_floats_and_integers_beyond_64_bits_are_refused() -> None:
    data = encode_json(play("agree").receipt)
    for number, code in (
        (b"1.5", CodecError.code),
        (b"NaN", CodecError.code),
        (b"9" * 5_000, LimitError.code),
    ):
        verify_refused(data.replace(b'"log":{', b'"log":' + number + b',"log2":{', 1), Step.FORMAT, code)


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1])
def test_integers_beyond_2_to_the_53_survive(number: int) -> None:
    assert read_json(write_json({"n": number}), bytes_max=100) == {"n": number}


def test_a_genesis_with_amounts_beyond_2_to_the_53_survives_both_forms() -> None:
    network = make_network(rules={"name": "unified-pool", "lease_fee_micro": MICRO_MAX})
    receipt = replace(play("agree").receipt, genesis=network.genesis.canonical_json())
    for data in (encode_json(receipt), encode_binary(receipt)):
        decoded = decode_receipt(data)
        assert decoded.genesis == receipt.genesis
        assert read_genesis(decoded.genesis).rules.lease_fee_micro == MICRO_MAX
    assert compute_network_id(receipt.genesis) == network.network_id


# --- trust roots --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network_id", "00" * 32),
        ("operator", make_network().keys[next(iter(make_network().keys))].participant_id),
        ("chain_hash", "11" * 32),
        ("chain_scheme", "bls-unchained-on-g1"),
        ("chain_public_key", "22" * 96),
    ],
)
def test_another_trust_root_fails_at_r2(field: str, value: str) -> None:
    """Also a beacon chain that was not pinned: whatever it signs decides nothing here."""
    trust = play("agree").loopback.trust.model_copy(update={field: value})
    data = encode_json(play("agree").receipt)
    verify_refused(data, Step.TRUST, ReceiptError.code, trust)


def test_a_profile_that_was_not_pinned_fails_at_r4() -> None:
    trust = play("agree").loopback.trust
    digest = play("agree").loopback.network.model.profile.digest().hex()
    data = encode_json(play("agree").receipt)
    assert judge(data, trust.model_copy(update={"profiles": [digest]})).is_valid
    verify_refused(
        data, Step.SUBMISSION, ReceiptError.code, trust.model_copy(update={"profiles": ["33" * 32]})
    )


def with_genesis(change: dict[str, object]) -> tuple[bytes, TrustRoots]:
    """Return a receipt whose genesis says something else, and trust roots that pin it."""
    receipt = play("agree").receipt
    value = json.loads(receipt.genesis)
    for name, one in change.items():
        section, _, key = name.rpartition(".")
        (value[section] if section else value)[key] = one
    genesis = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    trust = play("agree").loopback.trust.model_copy(update={"network_id": compute_network_id(genesis).hex()})
    return encode_json(replace(receipt, genesis=genesis)), trust


@pytest.mark.parametrize(
    "change",
    [
        {"rules.name": "winner-takes-all"},
        {"rules.alpha": "six fifths"},
        {"version": 2},
        {"surprise": 1},
        {"chain.public_key_hex": "c0" + "00" * 95},
        {"signers": {}},
        {"rules": []},
    ],
    ids=str,
)
def test_rules_that_this_release_does_not_know_fail_at_r2(change: dict[str, object]) -> None:
    """Pinned or not: what cannot be computed again is not called valid."""
    data, trust = with_genesis(change)
    failure = judge(data, trust).failure
    assert failure is not None
    assert failure.step is Step.TRUST
    assert not failure.is_internal


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version":1}', "null"])
def test_a_genesis_that_is_none_fails_at_r2(text: str) -> None:
    receipt = replace(play("agree").receipt, genesis=text.encode())
    trust = play("agree").loopback.trust.model_copy(
        update={"network_id": compute_network_id(text.encode()).hex()}
    )
    failure = judge(encode_json(receipt), trust).failure
    assert failure is not None
    assert (failure.step, failure.is_internal) == (Step.TRUST, False)


def test_a_trust_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    trust = play("agree").loopback.trust
    file = tmp_path / "trust.json"
    file.write_text(trust.to_json())
    assert load_trust(file) == trust
    for text in ("{}", "[", '{"a":1,"a":2}', trust.to_json().replace("version", "vision"), "x" * 300_000):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"trust\.json"):
            load_trust(file)
    with pytest.raises(ConfigError, match="cannot read"):
        load_trust(tmp_path / "none.json")


def test_trust_is_made_of_the_genesis() -> None:
    genesis: Genesis = play("agree").loopback.network.genesis
    trust = make_trust(genesis)
    assert trust.network_id == genesis.network_id.hex()
    assert trust.chain_hash == genesis.beacon_chain.chain_hash.hex()


def test_the_schema_has_the_fields_of_a_receipt() -> None:
    """Written by hand for others: it must not say something else than the reader."""
    schema = json.loads((ROOT / "docs" / "receipt.schema.json").read_text())
    value = text_of(play("agree").receipt)
    assert set(schema["required"]) == set(schema["properties"]) == set(value)
    log = schema["properties"]["log"]["oneOf"][1]
    shown = set(value["log"])  # type: ignore[call-overload]
    # What witnesses add is there only where they have.
    assert set(log["required"]) == shown <= set(log["properties"])
    assert schema["properties"]["kind"]["const"] == value["kind"]
