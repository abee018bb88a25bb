"""What the server says on the side is read exactly or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocache.bus.deadletter import ADVISORIES, ADVISORY_CONSUMER, compute_dead_letter, parse_advisory
from pocache.bus.delivery import Delivery, compute_reason_text, parse_delivery
from pocache.bus.provision import compute_consumer_config, compute_stream_config
from pocache.bus.puller import PullSettings
from pocache.bus.reading import parse_record, parse_time_ms
from pocache.bus.server import ServerSettings, render_server_config
from pocache.bus.specs import ConsumerSpec, StreamSpec
from pocache.protocol.errors import BusError

ADVISORY = {
    "type": "io.nats.jetstream.advisory.v1.max_deliver",
    "stream": "TASKS",
    "consumer": "generate",
    "stream_seq": 7,
    "deliveries": 3,
}


def test_a_delivery_is_read_from_both_forms_of_its_subject() -> None:
    expected = Delivery("TASKS", "generate", 2, 17, 1_700_000_000_123)
    tail = "TASKS.generate.2.17.4.1700000000123999999.5"
    assert parse_delivery(f"$JS.ACK.{tail}") == expected
    assert parse_delivery(f"$JS.ACK.hub.ACCHASH.{tail}.token") == expected
    assert parse_delivery(f"$JS.ACK.hub.ACCHASH.{tail}") == expected


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "$JS.ACK",
        "$JS.ACK.S.c.1.2.3.4",
        "$JS.FC.S.c.1.2.3.4.5",
        "$JS.ACK.S.c.x.2.3.4.5",
        "$JS.ACK.S.c.1.-2.3.4.5",
    ],
)
def test_what_is_no_delivery_is_none(reply: str) -> None:
    assert parse_delivery(reply) is None


def test_a_reason_becomes_one_bounded_line() -> None:
    assert compute_reason_text("a\r\nX: b\tc") == "a X: b c"
    assert compute_reason_text("ä") == "\\xe4"
    assert len(compute_reason_text("x" * 5_000)) == 256
    assert compute_reason_text(" \n") == "no reason given"
    assert "\x00" not in compute_reason_text("a\x00b")


def test_times_are_cut_to_milliseconds() -> None:
    assert parse_time_ms("2024-06-01T10:00:00.123999789Z") == 1_717_236_000_123
    assert parse_time_ms("2024-06-01T10:00:00Z") == 1_717_236_000_000
    with pytest.raises(ValueError, match="zone"):
        parse_time_ms("2024-06-01T10:00:00")


def test_a_record_needs_its_position() -> None:
    headers = {
        "Nats-Stream": "RECORD",
        "Nats-Subject": "a.b",
        "Nats-Sequence": "3",
        "Nats-Time-Stamp": "2024-06-01T10:00:00Z",
        "Own": "x",
    }
    record = parse_record(headers, b"d")
    assert (record.subject, record.sequence, record.headers) == ("a.b", 3, {"Own": "x"})
    for name in ("Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp"):
        with pytest.raises(BusError):
            parse_record({key: value for key, value in headers.items() if key != name}, b"d")


def test_advisories_of_both_kinds_are_read() -> None:
    advisory = parse_advisory(json.dumps(ADVISORY).encode())
    assert advisory is not None
    assert (advisory.stream, advisory.consumer, advisory.sequence) == ("TASKS", "generate", 7)
    assert advisory.reason == "delivered 3 times without success"
    terminated = ADVISORY | {"type": "io.nats.jetstream.advisory.v1.terminated", "reason": "bad kind"}
    advisory = parse_advisory(json.dumps(terminated).encode())
    assert advisory is not None
    assert advisory.reason == "bad kind"


@pytest.mark.parametrize("body", [[], 1, {}, ADVISORY | {"type": "other"}, ADVISORY | {"stream_seq": "x"}])
def test_what_is_no_advisory_is_none(body: object) -> None:
    assert parse_advisory(json.dumps(body).encode()) is None
    assert parse_advisory(b"\xff") is None


def test_a_dead_letter_is_stored_once_per_message_and_consumer() -> None:
    letter = compute_dead_letter(
        subject="tasks.generate.m", stream="TASKS", consumer="c", sequence=7, delivered_count=1, reason="r"
    )
    assert letter.subject == "dead.TASKS.c"
    assert letter.message_id == "dead.TASKS.c.7"
    assert letter.headers["Pocache-Dead-Subject"] == "tasks.generate.m"


def test_a_spec_without_a_bound_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="bound"):
        StreamSpec(name="S", subjects=("s",))
    with pytest.raises(AssertionError):
        StreamSpec(name="S", subjects=("s",), retention="workqueue", deny_delete=True)
    with pytest.raises(AssertionError):
        ConsumerSpec(stream="S", durable="a.b")
    with pytest.raises(AssertionError):
        ConsumerSpec(stream="S", durable="c", backoff_s=(1.0, 2.0), max_deliver=2)
    with pytest.raises(AssertionError):
        PullSettings(credit=1, expires_s=1.0, heartbeat_s=0.6)


def test_specs_become_the_servers_configuration() -> None:
    config = compute_stream_config(ADVISORIES)
    assert (config.name, config.max_msgs, config.max_age) == ("ADVISORIES", 100_000, 7 * 86_400.0)
    consumer = compute_consumer_config(ADVISORY_CONSUMER)
    assert (consumer.durable_name, consumer.max_deliver, consumer.ack_policy) == (
        "deadletters",
        -1,
        "explicit",
    )
    two = compute_consumer_config(ConsumerSpec(stream="S", durable="c", filter_subjects=("a", "b")))
    assert (two.filter_subject, two.filter_subjects) == (None, ["a", "b"])


def test_a_duplicate_window_never_exceeds_the_age() -> None:
    spec = StreamSpec(name="S", subjects=("s",), max_age_s=5.0)
    assert compute_stream_config(spec).duplicate_window == 5.0


def test_the_server_s_configuration_pins_what_nats_py_needs() -> None:
    text = render_server_config(ServerSettings(Path("/data/x y")))
    assert "feature_flags { js_ack_fc_v2: false }" in text
    assert "sync_interval: always" in text
    assert 'listen: "127.0.0.1:-1"' in text
    assert 'store_dir: "/data/x y"' in text
    assert "sync_interval" not in render_server_config(ServerSettings(Path("/d"), sync_always=False))
