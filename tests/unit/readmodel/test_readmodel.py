"""The read model of a real record: what it counts, that it counts it once, what it keeps, and what it makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kit.network import make_key, make_network
from kit.recorded import Recorded, RecordedBus, get_jobs, load_recorded
from pocache.bus.port import StreamRecord
from pocache.protocol.errors import ConfigError, NotYetError, UnknownJobError
from pocache.protocol.matching import Verdict
from pocache.protocol.sprt import judge_jobs
from pocache.readmodel import queries
from pocache.readmodel import tables as tb
from pocache.readmodel.dossiers import build_receipt_json, load_case, load_dossier, to_job_id
from pocache.readmodel.follow import catch_up
from pocache.readmodel.matching import Measured, list_running_sums
from pocache.readmodel.model import ReadModel
from pocache.readmodel.projection import Bounds
from pocache.receipt.trust import make_trust
from pocache.receipt.verify import verify_receipt
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role, Stream

ENDINGS = ("no_challenge", "agree", "confirm_prior", "no_opening", "equivocation")


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return load_recorded()


@pytest.fixture(scope="module")
def model(recorded: Recorded) -> Iterator[ReadModel]:
    with recorded.open_model() as filled:
        yield filled


def dump(model: ReadModel) -> dict[str, list[Any]]:
    """Return every row of every table."""
    with model.reading() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(sa.select(table))), key=repr)
            for table in tb.METADATA.sorted_tables
        }


def count_subjects(recorded: Recorded, start: str) -> int:
    return sum(1 for one in recorded.records if one.subject.startswith(start))


def test_the_overview_counts_what_the_record_says(model: ReadModel, recorded: Recorded) -> None:
    with model.reading() as connection:
        overview = queries.read_overview(connection, now_ms=recorded.records[-1].stored_ms)
        rows = queries.list_jobs(connection, limit=100).rows
    assert overview.sums["jobs"] == len(rows) == count_subjects(recorded, "jobs.admitted.") == 10
    assert sum(overview.endings.values()) == count_subjects(recorded, "payouts.settled.")
    assert set(overview.endings) == set(ENDINGS)
    assert overview.log_size == count_subjects(recorded, "commitments.recorded.")
    assert (
        overview.audited_count
        == sum(1 for row in rows if row["audit"])
        == count_subjects(recorded, "audits.opened.")
    )
    assert overview.sums["slashed_count"] == sum(row["slashed_count"] for row in rows) == 4
    assert overview.sums["pool_micro"] == sum(row["pool_micro"] for row in rows)
    assert sum(overview.phases.values()) == 10
    assert overview.open_count == 10 - overview.phases["settled"] - overview.phases["refused"] == 1
    assert sum(one[1] for one in overview.minutes) == 10
    assert len(overview.minutes) == queries.MINUTES_SHOWN
    with model.reading() as connection:
        assert queries.list_faults(connection) == []


def test_what_is_delivered_again_changes_nothing(recorded: Recorded) -> None:
    with recorded.open_model() as twice:
        before = dump(twice)
        assert twice.apply(recorded.records) == 0
        assert dump(twice) == before


@pytest.mark.parametrize("cut", [1, 150, 280])
def test_it_goes_on_where_it_stopped(recorded: Recorded, model: ReadModel, tmp_path: Path, cut: int) -> None:
    """Cut anywhere, closed and opened again: the same rows as in one go."""
    file = tmp_path / "readmodel.sqlite"
    with recorded.open_model(file, is_filled=False) as first:
        assert first.apply(recorded.records[:cut]) == cut
    with recorded.open_model(file, is_filled=False) as second:
        assert second.apply(recorded.records) == len(recorded.records) - cut
        assert dump(second) == dump(model)
        assert second.tree.root() == model.tree.root()


def test_a_batch_that_fails_leaves_nothing_behind(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Effects and the position in the stream are one transaction."""
    with recorded.open_model(is_filled=False) as failing:
        failing.apply(recorded.records[:50])
        before = dump(failing)

        def break_down(*_arguments: object) -> None:
            raise RuntimeError("the disk is gone")

        with monkeypatch.context() as patched:
            patched.setattr("pocache.readmodel.projection.set_cursor", break_down)
            with pytest.raises(RuntimeError):
                failing.apply(recorded.records[50:])
        assert dump(failing) == before
        assert failing.apply(recorded.records) == len(recorded.records) - 50


def test_a_message_that_is_not_what_it_must_be_is_noted_and_skipped(recorded: Recorded) -> None:
    """A flipped bit of a payout: no payout, a fault that names it, and everything behind it is taken."""
    at = next(i for i, one in enumerate(recorded.records) if one.subject.startswith("payouts.settled."))
    bad = replace(
        recorded.records[at], data=recorded.records[at].data[:-1] + bytes([recorded.records[at].data[-1] ^ 1])
    )
    with recorded.open_model(is_filled=False) as model:
        model.apply([*recorded.records[:at], bad, *recorded.records[at + 1 :]])
        with model.reading() as connection:
            [fault] = queries.list_faults(connection)
            overview = queries.read_overview(connection, now_ms=recorded.records[-1].stored_ms)
        assert (fault["stream"], fault["sequence"]) == (bad.stream, bad.sequence)
        assert "E103" in fault["reason"]
        assert sum(overview.endings.values()) == 7


def test_a_message_of_another_signer_is_no_message(recorded: Recorded) -> None:
    """A service's own words on another service's subject are a fault."""
    source = next(one for one in recorded.records if one.subject.startswith("payouts.settled."))
    target = next(one for one in recorded.records if one.subject.startswith("outcomes.decided."))
    with recorded.open_model(is_filled=False) as model:
        model.apply([replace(source, subject=target.subject)])
        with model.reading() as connection:
            assert len(queries.list_faults(connection)) == 1
            assert queries.list_jobs(connection).rows == []


def test_a_message_that_fails_half_way_leaves_nothing_behind() -> None:
    """A router's own word with a submission in it that is none: a fault, and neither a job nor an envelope kept."""
    network = make_network()
    body = m.JobAdmittedV1(
        job_id=bytes(32),
        user=make_key("user").participant_id,
        submission=b"no envelope",
        generation_max_micro=1,
        verification_max_micro=1,
    )
    data = network.seal(network.keys[Role.ROUTER], body)
    record = StreamRecord(t.JOB_ADMITTED.subject(job=body.job_id), data, {}, Stream.RECORD.value, 1, 1)
    model = ReadModel(network.genesis, network.models)
    try:
        assert model.apply([record]) == 1
        with model.reading() as connection:
            assert len(queries.list_faults(connection)) == 1
            assert queries.list_jobs(connection).rows == []
            assert queries.list_messages(connection, body.job_id) == []
            assert queries.read_overview(connection, now_ms=0).sums == {"faults": 1}
    finally:
        model.close()


def test_bounds_drop_the_oldest_that_are_over_and_nothing_else(recorded: Recorded) -> None:
    with recorded.open_model(bounds=Bounds(jobs_max=4, dossier_bytes_max=20_000)) as model:
        with model.reading() as connection:
            rows = queries.list_jobs(connection, limit=100).rows
            kept = connection.execute(sa.select(sa.func.sum(sa.func.length(tb.MESSAGES.c.data)))).scalar_one()
            overview = queries.read_overview(connection, now_ms=0)
        assert len(rows) == 4
        assert "queued" in {row["phase"] for row in rows}
        assert kept <= 20_000
        assert overview.sums["jobs"] == 10
        assert overview.sums["dossier_bytes"] == kept


def test_a_committees_record_has_receipts_heatmaps_and_draws_as_well() -> None:
    """Every job of the other rule set that is over: its receipt verifies, its outcome is computed again, its draws fit."""
    with load_recorded("receipts-committee").open_model() as model:
        endings = get_jobs(model)
        assert {"conviction", "no_opening", "equivocation"} <= set(endings)
        with model.reading() as connection:
            assert queries.list_faults(connection) == []
            for ending, job_id in endings.items():
                row = queries.get_job(connection, job_id)
                assert row is not None
                if not row["ending"]:
                    continue
                data = build_receipt_json(model, connection, job_id)
                report = verify_receipt(data, make_trust(model.genesis))
                assert (report.is_valid, report.case) == (True, ending), report.failure
                measured = Measured(load_case(model, connection, job_id))
                stated = () if measured.case.outcome is None else measured.case.outcome.comparisons
                assert len(measured.heatmaps) == len(stated)
                assert all(one.verdict == one.stated_verdict for one in measured.heatmaps)
                for draw in measured.draws:
                    assert draw.problem == ""
                    assert draw.stake_micro == sum(one.weight for one in draw.candidates)
                    first = [
                        one.place
                        for one, low, high in list_running_sums(draw.candidates)
                        if draw.ticket is not None and low <= draw.ticket < high
                    ]
                    assert first == [0] * len(first)


@pytest.mark.parametrize("ending", ENDINGS)
def test_receipts_from_the_read_model_verify(model: ReadModel, ending: str) -> None:
    """Assembled from the record alone, with proofs from the tree that was rebuilt here."""
    job_id = get_jobs(model)[ending]
    with model.reading() as connection:
        data = build_receipt_json(model, connection, job_id)
    report = verify_receipt(data, make_trust(model.genesis))
    assert report.is_valid, report.failure
    assert report.case == ending
    assert report.job_id == job_id


def test_there_is_no_receipt_of_a_job_that_is_open_or_unknown(model: ReadModel) -> None:
    with model.reading() as connection:
        with pytest.raises(NotYetError):
            build_receipt_json(model, connection, get_jobs(model)["queued"])
        with pytest.raises(UnknownJobError):
            load_dossier(model, connection, bytes(32))


def test_the_heatmap_is_the_outcomes_own_comparison(model: ReadModel) -> None:
    with model.reading() as connection:
        case = load_case(model, connection, get_jobs(model)["confirm_prior"])
        measured = Measured(case)
        heat = measured.heatmaps[0]
    assert case.outcome is not None
    stated = {(one.stage, one.left, one.right): one for one in case.outcome.comparisons}
    assert len(measured.heatmaps) == len(stated) == 3
    for one in measured.heatmaps:
        same = stated[one.stage, one.left, one.right]
        assert (one.verdict, one.mean_q16, one.peak_q16) == (same.verdict, same.mean_q16, same.peak_q16)
        assert len(one.cells) == same.row_count
        assert max(cell.standard_q16 for cell in one.cells) == same.peak_q16 == one.worst.standard_q16
    assert heat.is_right_generator
    assert heat.verdict == Verdict.MISMATCH
    assert heat.worst.standard_q16 > heat.peak_mismatch_min_q16
    assert {cell.layer for cell in heat.cells} == {0, 1}


def test_the_draw_shows_the_ticket_that_drew_the_verifier(model: ReadModel) -> None:
    with model.reading() as connection:
        case = load_case(model, connection, get_jobs(model)["confirm_prior"])
        draws = Measured(case).draws
    assert [one.stage for one in draws] == [1, 2]
    for draw in draws:
        assert draw.ticket is not None
        first = [one for one, low, high in list_running_sums(draw.candidates) if low <= draw.ticket < high]
        assert [one.participant for one in first] == list(draw.drawn[:1])
        assert first[0].place == 0
        assert draw.stake_micro == sum(one.weight for one in draw.candidates)
    [left_out] = [one for one in draws[1].candidates if one.place is None]
    assert left_out.participant == draws[0].drawn[0]
    assert left_out.why_not == "was drawn at an earlier stage"


def test_margins_come_from_the_generators_own_score_rows(model: ReadModel) -> None:
    with model.reading() as connection:
        case = load_case(model, connection, get_jobs(model)["agree"])
        margins = Measured(case).margins
    assert margins
    assert [one.position for one in margins] == sorted({one.position for one in margins})
    assert all(one.position >= len(case.prompt) - 1 for one in margins)
    assert all(one.logit <= one.logsumexp and one.gap >= 0 for one in margins)


def test_pages_follow_each_other_without_gap_or_repetition(model: ReadModel) -> None:
    with model.reading() as connection:
        everything = [row["number"] for row in queries.list_jobs(connection, limit=100).rows]
        walked: list[int] = []
        key = None
        while True:
            page = queries.list_jobs(connection, before=key, limit=3)
            walked += [row["number"] for row in page.rows]
            if page.next_key is None:
                break
            key = page.next_key
    assert walked == everything == sorted(everything, reverse=True)


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"phase": "open"}, 1),
        ({"phase": "settled"}, 8),
        ({"ending": "agree"}, 3),
        ({"audit": "lottery"}, 1),
        ({"slashed": True}, 4),
        ({"ending": "agree", "audit": "lottery"}, 1),
    ],
)
def test_filters(model: ReadModel, filters: dict[str, Any], count: int) -> None:
    with model.reading() as connection:
        assert len(queries.list_jobs(connection, **filters).rows) == count


def test_a_slash_is_found_with_its_job_from_who_lost(model: ReadModel) -> None:
    with model.reading() as connection:
        slashes = queries.list_slashes(connection)
        assert len(slashes) == 4
        for one in slashes:
            person = queries.get_participant(connection, one["account"])
            assert person is not None
            assert person["slashed"] >= 1
            assert person["lost_micro"] >= one["held_micro"] - one["amount_micro"] > 0
            history = queries.list_involvements(connection, one["account"]).rows
            assert one["job_id"] in {row["job_id"] for row in history}


def test_audited_jobs_add_up_to_their_workers_test(model: ReadModel) -> None:
    """Each outcome that shows the generator compared counts once, and the sum is that of the pure function."""
    with model.reading() as connection:
        verdicts = sa.select(tb.JOBS.c.generator).where(tb.JOBS.c.verdict != "")
        audited = Counter(connection.execute(verdicts).scalars())
        tests = queries.list_job_tests(connection)
        assert {one["participant"]: sum(one["grades"]) for one in tests} == audited
        for one in tests:
            assert queries.list_job_tests(connection, one["participant"]) == [one]
            steps = (grade for grade, count in enumerate(one["grades"]) for _ in range(count))
            if one["standing"] == "open" and not one["cycle_count"]:
                assert one["sum_q16"] == judge_jobs(steps).sum_q16
    assert len(audited) > 1


@pytest.mark.parametrize("prefix_length", [4, 7, 64])
def test_a_job_is_found_by_the_beginning_of_its_id(model: ReadModel, prefix_length: int) -> None:
    job_id = get_jobs(model)["agree"]
    with model.reading() as connection:
        assert job_id in {
            row["job_id"] for row in queries.find_jobs(connection, job_id.hex()[:prefix_length])
        }
        assert queries.find_jobs(connection, "0" * 64) == []


def test_one_file_has_one_writer_and_one_network(recorded: Recorded, tmp_path: Path) -> None:
    file = tmp_path / "readmodel.sqlite"
    with recorded.open_model(file):
        with pytest.raises(ConfigError, match="another process"):
            ReadModel(recorded.genesis, {}, file=file)
    other = recorded.genesis.model_copy(update={"name": "another"})
    other.__dict__.pop("network_id", None)
    fresh = ReadModel(other, {}, file=file)
    try:
        assert fresh.get_cursor(Stream.RECORD.value) == 0
    finally:
        fresh.close()


def test_a_file_that_is_no_database_is_refused_by_name(recorded: Recorded, tmp_path: Path) -> None:
    file = tmp_path / "readmodel.sqlite"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="may be removed"):
        ReadModel(recorded.genesis, {}, file=file)


async def test_it_reads_on_from_its_cursor(recorded: Recorded) -> None:
    bus = RecordedBus(recorded.records[:200])
    with recorded.open_model(is_filled=False) as model:
        heard: list[int] = []
        assert await catch_up(model, bus, report=heard.append) == 200  # type: ignore[arg-type]
        bus.records = list(recorded.records)
        bus.reads.clear()
        assert await catch_up(model, bus) == len(recorded.records) - 200  # type: ignore[arg-type]
        assert heard[-1] == 200
        starts = {
            stream: max(one.sequence for one in recorded.records[:200] if one.stream == stream) + 1
            for stream in {one.stream for one in recorded.records[:200]}
        }
        assert {(stream, start) for stream, start in bus.reads if stream in starts} >= set(starts.items())


async def test_a_stream_that_begins_anew_empties_it(recorded: Recorded) -> None:
    rounds = RecordedBus([one for one in recorded.records if one.stream == Stream.BEACON.value])
    with recorded.open_model() as model:
        assert await catch_up(model, rounds) > 0  # type: ignore[arg-type]
        with model.reading() as connection:
            assert queries.list_jobs(connection).rows == []


@pytest.mark.parametrize(
    "text", ["", "ab", "A" * 64, "../" + "a" * 61, "a" * 63, "a" * 65, "é" * 64, "0" * 63 + "\n"]
)
def test_what_is_no_job_id_is_none(text: str) -> None:
    assert to_job_id(text) is None
