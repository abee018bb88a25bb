"""Judging a receipt, without recomputing: a job of 1,000 tokens with 16 openings of each side.

Nothing waits here, so what is counted is the computing time of one thread. The budget is 50 ms beyond start-up for the
shape of the demo's model; an 8B model's is shown beside it. The verifier's rows are close to the generator's and never the
same, as on two machines. The baseline is what nobody can leave out: the signatures of the envelopes and rounds.

Command: ``make bench ARGS=receipt``. Recorded figures: bench/RESULTS.md.
"""

from __future__ import annotations

import logging
import sys
import time
from functools import partial
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.measure import Row, compare
from kit.loopback import SECTIONS, Habit, Loopback
from pocache.protocol.beacon import verify_round
from pocache.protocol.keys import verify_signature
from pocache.protocol.matching import STANDARD_FLOOR_Q16
from pocache.receipt.format import Receipt, encode_binary, encode_json
from pocache.receipt.verify import examine_receipt, verify_receipt
from pocache.wire import messages as m
from pocache.wire.envelope import compute_preimage, open_envelope, parse_envelope

PROMPT_COUNT, OUTPUT_COUNT, SAMPLES = 200, 800, 16
SHAPES = (("the demo's model, 4 layers", 4, 32), ("an 8B model, 32 layers", 32, 64))


def run() -> list[Row]:
    """Return a row per shape and form."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    return [row for name, layers, width in SHAPES for row in _measure(name, layers, width)]


def _measure(name: str, layers: int, width: int) -> list[Row]:
    loopback = Loopback(
        {**SECTIONS, "audit": {**SECTIONS["audit"], "sample_count": SAMPLES}},
        prompt=tuple(3 + index % 90 for index in range(PROMPT_COUNT)),
        output=tuple(3 + index % 90 for index in range(OUTPUT_COUNT)),
        model={"layer_count": layers, "width": width, "context_tokens_max": 2_000},
        habits={f"verifier-{number}": Habit(rounding="another machine") for number in range(1, 4)},
    )
    receipt = loopback.get_receipt(loopback.play(challenge=True))
    rows = []
    for form, data in (("JSON", encode_json(receipt)), ("binary", encode_binary(receipt))):
        report, case = examine_receipt(data, loopback.trust)
        assert report.is_complete, report.failure
        assert case is not None
        assert case.outcome is not None
        assert case.outcome.comparisons[0].mean_q16 > STANDARD_FLOOR_Q16, "the two sides' rows differ"
        rows.append(
            compare(
                f"verify a receipt, {form}, {len(data):,} bytes, {name} x {width} f32",
                partial(verify_receipt, data, loopback.trust),
                "its envelopes' and rounds' signatures alone",
                lambda: _verify_signatures(loopback, receipt),
                clock=time.thread_time,
            )
        )
    return rows


def _verify_signatures(loopback: Loopback, receipt: Receipt) -> None:
    network = loopback.network.network_id
    for data in (*receipt.record, *receipt.rounds, *receipt.snapshots, receipt.model):
        envelope = parse_envelope(data)
        preimage = compute_preimage(network, envelope.kind, envelope.payload)
        verify_signature(envelope.kid, preimage, envelope.sig)
    for data in receipt.rounds:
        body = open_envelope(data, network, m.BeaconRoundV1).body
        verify_round(loopback.network.chain, body.round_number, body.signature)
