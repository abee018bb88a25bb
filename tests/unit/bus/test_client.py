"""Bytes that nats-py cannot decode come through, or are dropped: its read loop would end at them."""

from __future__ import annotations

import pytest

from pocache.bus.client import TolerantClient


def test_a_subject_that_is_not_utf8_is_escaped() -> None:
    """And stays one subject, which no topic has."""
    message = TolerantClient()._build_message(1, b"results.\xff.\xc3\xa9", b"\xfe", b"data", None)
    assert (message.subject, message.reply, message.data) == ("results.\\xff.é", "\\xfe", b"data")


@pytest.mark.parametrize(
    "line", [b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0 400 \xff\r\n\r\n", b"NATS/1.0"]
)
async def test_headers_that_do_not_decode_are_dropped(line: bytes) -> None:
    """In the status, in its description, and where nothing follows."""
    assert await TolerantClient()._process_headers(line) is None


async def test_good_headers_are_read() -> None:
    """The server's own statuses among them."""
    assert await TolerantClient()._process_headers(b"NATS/1.0 404 No Messages\r\n\r\n") == {
        "Status": "404",
        "Description": "No Messages",
    }
