"""The figures in the documents' sentences are the constants of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pocache.bus.deadletter import ADVISORIES, DEADLETTERS
from pocache.numerics.calibration import FIT_JOBS_MIN
from pocache.protocol import limits
from pocache.protocol.committee_terms import (
    AUDIT_SEAT,
    COMMITTEE_COUNT_MAX,
    COMMITTEE_SEAT,
    COMMITTEE_SIZE_MAX,
    RECHECK_SEAT,
    TRIES,
)
from pocache.protocol.dispute import RETRY_SAMPLE_FACTOR
from pocache.protocol.matching import LOG2_CEIL_Q16, ONE_Q16, STANDARD_FLOOR_Q16
from pocache.protocol.matching_limits import GRADE_TAILS, MATCH_TAIL, MISMATCH_TAIL
from pocache.protocol.payoff import DEFAULT_COMMITTEE
from pocache.readmodel import projection
from pocache.runtime.network import Bounds
from pocache.service import dispatch, provisioning
from pocache.wire.envelope import ENVELOPE_BYTES_MAX, KIND_CHARS_MAX
from pocache_beacon import drand, threshold
from pocache_cli.calibrate import RUNS_DEFAULT
from pocache_gateway import requests
from pocache_ledger.books import CHECKPOINT_ENTRIES
from pocache_router.admission import CLOCK_SKEW_MS_MAX
from pocache_router.service import EPOCH_TICKS
from pocache_worker import streaming

DOCS = Path(__file__).parents[2] / "docs"
STREAMS = {spec.name: spec for spec in (*provisioning.get_stream_specs(Bounds()), DEADLETTERS, ADVISORIES)}
GATHER_MS = streaming.GATHER_S_PER_STREAM * 1_000

FIGURES: dict[str, dict[str, float]] = {
    "protocol.md": {
        "an envelope adds at most {}": ENVELOPE_BYTES_MAX - limits.PAYLOAD_BYTES_MAX,
        "`kind` (text, 1 … {} printable": KIND_CHARS_MAX,
        "An epoch lasts {} ticks": EPOCH_TICKS,
        "keeps the randomness of the last {}.": dispatch.ROUNDS_KEPT,
        "after an outage at most the last {}.": dispatch.ROUNDS_KEPT,
        "again every {} s until the round is in BEACON": threshold.REPEAT_S,
        "bodies are at most {} bytes": drand.BODY_BYTES_MAX,
        "rests for {} s, doubled each time": drand.REST_FIRST_S,
        "doubled each time up to {} s": drand.REST_S_MAX,
        "Clamped to ±{} · 2¹⁶": LOG2_CEIL_Q16 // ONE_Q16,
        "/ scale⌋, −{} · 2¹⁶)": -STANDARD_FLOOR_Q16 // ONE_Q16,
        "min({} × sample count, 256) positions, a new claim": RETRY_SAMPLE_FACTOR,
        "From {} jobs on, limits are fitted tails": FIT_JOBS_MIN,
        "measure {} jobs themselves": RUNS_DEFAULT,
        "Match limits at 1 in {} honest jobs": MATCH_TAIL,
        "mismatch limits at 1 in {}, for each": MISMATCH_TAIL,
        "the limits of 1 in {}, 100 and 1,000 honest jobs": GRADE_TAILS[0],
        "seats: 1 … {} audit": RECHECK_SEAT - AUDIT_SEAT,
        "audit, 4 … {} recheck": COMMITTEE_SEAT - 1,
        "under `fixed-fee-committee` {} and one for each committee": 2 * 2 * TRIES,
        "the first round after every {}th entry": CHECKPOINT_ENTRIES,
        "`created_ms` at most {} s ahead": CLOCK_SKEW_MS_MAX // 1_000,
        "ours does for {} ms per stream": GATHER_MS,
        "that it has open, {} ms at most": streaming.GATHER_S_MAX * 1_000,
        "delivered again after {} s (E501)": dispatch.REDELIVER_DELAY_S,
        "by others at most {} times": provisioning.DELIVER_MAX,
        "times (tasks: {})": provisioning.TASK_DELIVER_MAX,
        "by a bug: delivered again after {} s": dispatch.POISON_DELAY_S,
        "drops a repeated publish within {} s": STREAMS["RECORD"].duplicate_window_s,
        "| BEACON | the last {} |": STREAMS["BEACON"].max_msgs,
        "| REFUSALS | one hour, at most {} or 256 MiB |": STREAMS["REFUSALS"].max_msgs,
        "one hour, at most 1,000,000 or {} MiB |": STREAMS["REFUSALS"].max_bytes >> 20,
        "| DEADLETTER | {} days": STREAMS["DEADLETTER"].max_age_s / 86_400,
        "30 days, at most {} or 2 GiB": STREAMS["DEADLETTER"].max_msgs,
        "30 days, at most 100,000 or {} GiB": STREAMS["DEADLETTER"].max_bytes >> 30,
        "| ADVISORIES | {} days": STREAMS["ADVISORIES"].max_age_s / 86_400,
        "7 days, at most {} or 64 MiB": STREAMS["ADVISORIES"].max_msgs,
        "7 days, at most 100,000 or {} MiB": STREAMS["ADVISORIES"].max_bytes >> 20,
    },
    "economics.md": {
        "M odd, 3 ≤ M ≤ {} |": COMMITTEE_SIZE_MAX,
        "at most ({}+2M)·β_V·Cv": DEFAULT_COMMITTEE.seat_max
        - COMMITTEE_COUNT_MAX * DEFAULT_COMMITTEE.committee_size,
        "with ({} + 2M)φCv of fees": DEFAULT_COMMITTEE.paid_max
        - COMMITTEE_COUNT_MAX * DEFAULT_COMMITTEE.committee_size,
        "{} to 3 for the audit": AUDIT_SEAT,
        "{} to 6 for its recheck": RECHECK_SEAT,
    },
    "gateway.md": {
        "a chat answer has at most {} tokens": requests.CHAT_TOKENS_DEFAULT,
        "tokens, a completion {}. The deposit": requests.COMPLETION_TOKENS_DEFAULT,
        "`stop` (up to {})": requests.STOPS_MAX,
        "`temperature` (0 to {})": requests.TEMPERATURE_MAX,
        "it gathers them for {} ms a stream": GATHER_MS,
    },
    "explorer.md": {
        "it is bounded: at most {} jobs": projection.Bounds().jobs_max,
        "jobs and {} GiB of envelopes": projection.Bounds().dossier_bytes_max >> 30,
    },
    "threat-model.md": {
        "together, can take {} MiB of it in a round": limits.NEW_ACCOUNTS_BYTES_MAX >> 20,
        "every {}th head signed": CHECKPOINT_ENTRIES,
    },
    "operations.md": {
        "at most {} MiB in a round of the beacon": limits.NEW_ACCOUNTS_BYTES_MAX >> 20,
    },
}


@pytest.mark.parametrize(
    ("file", "sentence", "value"),
    [(file, sentence, value) for file, said in FIGURES.items() for sentence, value in said.items()],
)
def test_a_figure_is_the_codes(file: str, sentence: str, value: float) -> None:
    """Said once, with this value."""
    text = re.sub(r"\s+", " ", (DOCS / file).read_text(encoding="utf-8")).lower()
    shown = f"{value:,.4f}".rstrip("0").rstrip(".")
    assert text.count(sentence.format(shown).lower()) == 1, sentence.format(shown)
