"""What participants of an earlier release said, said to today's services: the same jobs end in the same payouts.

And the rules by which two adjacent releases understand each other (docs/protocol.md 11.10).
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from kit.loopback import Loopback
from kit.network import make_key, make_network
from kit.recording import describe
from pocache.protocol.errors import CodecError, EnvelopeError
from pocache.runtime.network import Genesis, Model
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import decode, encode
from pocache.wire.envelope import open_envelope, seal

VECTORS = Path(__file__).parents[1] / "vectors"
RECORDINGS = sorted(VECTORS.glob("recorded_v*.jsonl.gz"))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return a recording's lines."""
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def open_network(head: dict[str, Any]) -> Loopback:
    """Start today's services on a recording's genesis; nobody has money there yet."""
    genesis = Genesis.model_validate_json(head["genesis"])
    assert genesis.network_id.hex() == head["network_id"], "today's release takes it for another network"
    envelope = base64.b64decode(head["model"])
    model = Model(open_envelope(envelope, genesis.network_id, m.ModelEntryV1).body, envelope)
    return Loopback(known=replace(make_network(), genesis=genesis, model=model, model_envelope=envelope))


def read_payouts(loopback: Loopback) -> list[dict[str, Any]]:
    """Return what was paid, as the recording says it."""
    network_id = loopback.network.network_id
    found = [
        describe(open_envelope(entry.data, network_id, m.PayoutSettledV1).body)
        for entry in loopback.record
        if t.PAYOUT_SETTLED.matches(entry.subject)
    ]
    return [json.loads(json.dumps(one)) for one in found]


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.name)
def test_an_older_client_is_served_as_it_was(file: Path) -> None:
    """Submissions, lease requests, results, challenges, claims and openings, word for word as they were recorded."""
    head, *lines = read_lines(file)
    loopback = open_network(head)
    for line in lines:
        if "data" in line:
            loopback.hear(line["at_ms"], line["subject"], base64.b64decode(line["data"]))
    expected = [line["payout"] for line in lines if "payout" in line]
    assert len(expected) >= 4
    assert {one["case"] for one in expected} >= {"no_challenge", "agree"}
    assert read_payouts(loopback) == expected
    totals = loopback.services[t.Role.LEDGER].ask(t.TOTALS_QUERY, m.TotalsQueryV1(), m.TotalsReplyV1)
    assert isinstance(totals, m.TotalsReplyV1)
    assert totals.journal_intact
    assert totals.open_pool_count == 0


def test_there_is_a_recording() -> None:
    """A parametrized test without parameters would say nothing."""
    assert next(file.name for file in RECORDINGS) == "recorded_v1.jsonl.gz"


class NextChallengeRequestV1(m.ChallengeRequestV1):
    """As a later release may have it: one field more, left out where it says nothing."""

    depth: int | None = Field(default=None, exclude_if=lambda value: value is None)


BODY: dict[str, Any] = {"job_id": bytes(32), "attempt": 3}


def test_a_field_of_the_next_release_that_is_not_used_is_not_seen() -> None:
    """Both releases write the same bytes, and read each other's."""
    today, following = m.ChallengeRequestV1(**BODY), NextChallengeRequestV1(**BODY)
    assert encode(today) == encode(following)
    assert decode(NextChallengeRequestV1, encode(today)) == following
    assert decode(m.ChallengeRequestV1, encode(following)) == today


def test_a_field_of_the_next_release_that_is_used_is_refused_by_its_name() -> None:
    """An older service cannot know what it would ignore."""
    data = encode(NextChallengeRequestV1(**BODY, depth=4))
    with pytest.raises(CodecError, match="depth"):
        decode(m.ChallengeRequestV1, data)


def test_a_kind_of_the_next_release_is_refused_by_its_name() -> None:
    """And its sender is told so: an envelope that no service takes is not lost in silence."""

    class ChallengeRequestV2(m.ChallengeRequestV1):
        kind = "challenge-request.v2"

    loopback = Loopback()
    key = make_key("user")
    data = seal(key, loopback.network.network_id, ChallengeRequestV2(**BODY))
    with pytest.raises(EnvelopeError, match=r"not challenge-request\.v2"):
        open_envelope(data, loopback.network.network_id, m.ChallengeRequestV1)
    subject = t.CHALLENGE_REQUESTED.subject(user=key.participant_id, job=bytes(32))
    commitments = loopback.services[t.Role.COMMITMENTS]
    decision = commitments.deliver_data(t.CHALLENGE_REQUESTED, data, user=key.participant_id, job=bytes(32))
    assert decision.action == "term"
    refusal = commitments.refusal()
    assert (refusal.code, refusal.subject) == (EnvelopeError.code, subject)
