"""The explorer's answers without a browser: what is escaped, hidden, refused and bounded, and how the live stream goes on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.applications import Starlette

from kit.network import make_network
from kit.recorded import STORED_MS, Recorded, get_jobs, load_recorded
from pocache.bus.port import StreamRecord
from pocache.readmodel import queries
from pocache.readmodel.model import ReadModel
from pocache.receipt.trust import make_trust
from pocache.receipt.verify import verify_receipt
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.model import WireModel
from pocache.wire.topics import Stream
from pocache_gateway.explorer import Explorer, ExplorerSettings
from pocache_gateway.explorer.app import CONTENT_SECURITY_POLICY, HEADERS
from pocache_gateway.explorer.charts import draw_flow, draw_steps
from pocache_gateway.explorer.jobview import compute_tone
from pocache_gateway.explorer.live import CHANGES_MAX, Broadcast, _stream, read_last_id, read_news

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"
PAGES = ("", "/jobs", "/workers", "/accounts", "/rounds", "/rounds?used=yes", "/log", "/verify")


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return load_recorded()


@pytest.fixture(scope="module")
def model(recorded: Recorded) -> Iterator[ReadModel]:
    with recorded.open_model() as filled:
        yield filled


def make(model: ReadModel, **options: Any) -> Explorer:
    return Explorer(model, clock_ms=lambda: 1_700_000_060_000, **options)


@pytest_asyncio.fixture
async def client(model: ReadModel) -> AsyncIterator[httpx.AsyncClient]:
    """Texts are hidden."""
    async with connect(make(model)) as opened:
        yield opened


@pytest_asyncio.fixture
async def shown(model: ReadModel) -> AsyncIterator[httpx.AsyncClient]:
    """Texts are shown, and say what a hostile user or model would have them say."""
    explorer = make(model, settings=ExplorerSettings(shows_texts=True), decode=lambda _id, _tokens: HOSTILE)
    async with connect(explorer) as opened:
        yield opened


def connect(explorer: Explorer) -> httpx.AsyncClient:
    app = Starlette(routes=explorer.routes())
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test/explorer", follow_redirects=True
    )


class _Page(HTMLParser):
    """Collects tags, attributes and headings of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def count(self, name: str) -> int:
        return sum(1 for tag, _ in self.tags if tag == name)


@pytest.mark.parametrize("path", PAGES)
async def test_each_page_is_whole_semantic_and_under_a_strict_policy(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    page = _Page(answer.text)
    assert page.count("h1") == page.count("main") == page.count("nav") == 1
    assert page.count("title") >= 1
    assert ("html", {"lang": "en"}) in page.tags
    # Nothing that the policy would refuse: no inline script or style, no handler.
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert tag != "style"
        if tag == "script":
            assert (attributes.get("src") or "").startswith("/explorer/static/")
        for name in ("href", "src", "action"):
            assert not (attributes.get(name) or "").startswith(("http:", "https:", "//", "javascript:"))


async def test_pages_of_jobs_and_people_answer_for_every_ending(
    model: ReadModel, client: httpx.AsyncClient
) -> None:
    with model.reading() as connection:
        rows = queries.list_jobs(connection, limit=100).rows
        people = queries.list_participants(connection, "everybody")
        tested = {one["participant"] for one in queries.list_job_tests(connection)}
    for row in rows:
        answer = await client.get(f"/jobs/{row['job_id'].hex()}")
        assert answer.status_code == 200
        assert "Not everything can be shown" not in answer.text
    for row in people:
        if len(row["participant"]) == 56:
            answer = await client.get(f"/participants/{row['participant']}")
            assert answer.status_code == 200
            assert ("Test over its audited jobs" in answer.text) == (row["participant"] in tested)


@pytest.mark.parametrize("is_ejecting", [True, False])
async def test_an_ejection_is_shown_with_its_bond(is_ejecting: bool) -> None:
    """And a network that ejects nobody says so where it shows the tests."""
    network = make_network(ejection={}) if is_ejecting else make_network()
    worker, model_id = network.participant("worker"), network.model.model_id
    ejection = m.EjectionV1(
        participant=worker,
        model_id=model_id,
        test="tokens",
        job_id=b"\x07" * 32,
        outcome=bytes(32),
        job_count=4,
        grade_sum_q16=0,
        token_sum_q16=1_400_000,
    )
    bond = m.BondTakenV1(
        participant=worker,
        model_id=model_id,
        ejection=bytes(32),
        stake_micro=8_000_000,
        bond_micro=4_000_000,
        taken_micro=3_000_000,
        open_micro=1_000_000,
        entry=9,
    )
    said: list[tuple[t.Topic[Any], WireModel]] = [(t.WORKER_EJECTED, ejection), (t.BOND_TAKEN, bond)]
    records = [
        StreamRecord(
            topic.subject(participant=worker),
            network.seal(network.keys[topic.signer], body),
            {},
            Stream.RECORD.value,
            number,
            STORED_MS,
        )
        for number, (topic, body) in enumerate(said if is_ejecting else (), 1)
    ]
    posted = m.StakePostedV1(participant=worker, stake_micro=5_000_000, free_micro=4_000_000, entry=10)
    data = network.seal(network.keys[t.Role.LEDGER], posted)
    subject = t.STAKE_POSTED.subject(participant=worker)
    records.append(StreamRecord(subject, data, {}, Stream.RECORD.value, 3, STORED_MS))
    model = ReadModel(network.genesis, network.models)
    try:
        model.apply(records)
        async with connect(make(model)) as opened:
            answer = await opened.get(f"/participants/{worker}")
    finally:
        model.close()
    assert answer.status_code == 200
    text = " ".join(answer.text.split())
    assert ("by the test over tokens, with job" in text) == is_ejecting
    assert ("bond 3.00 of 4.00 taken, 1.00 once it is free" in text) == is_ejecting
    assert ("bond taken" in text) == is_ejecting, "among the transfers"


async def test_a_convicted_job_shows_distances_draws_and_payments(
    model: ReadModel, client: httpx.AsyncClient
) -> None:
    text = (await client.get(f"/jobs/{get_jobs(model)['confirm_prior'].hex()}")).text
    assert 'data-verdict="mismatch"' in text
    assert 'class="h8"' in text
    assert "Two verifiers agree with each other and not with the generator" in text
    assert text.count('class="ticket"') == 2
    assert 'class="band bad"' in text
    assert "slashed" in text


async def test_texts_and_receipts_are_hidden_unless_allowed(
    model: ReadModel, client: httpx.AsyncClient, shown: httpx.AsyncClient
) -> None:
    job = get_jobs(model)["agree"].hex()
    hidden = (await client.get(f"/jobs/{job}")).text
    assert "data-text" not in hidden
    assert "receipt.json" not in hidden
    assert "Hidden." in hidden
    refused = await client.get(f"/jobs/{job}/receipt.json")
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "E209"
    assert 'data-text="prompt"' in (await shown.get(f"/jobs/{job}")).text
    answer = await shown.get(f"/jobs/{job}/receipt.json")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert verify_receipt(answer.content, make_trust(model.genesis)).is_valid


async def test_a_reader_who_may_see_one_users_jobs_sees_no_others(model: ReadModel) -> None:
    job = get_jobs(model)["agree"]
    with model.reading() as connection:
        row = queries.get_job(connection, job)
        others = [
            one
            for one in queries.list_jobs(connection, limit=100).rows
            if row is None or one["user"] != row["user"]
        ]
    assert row is not None
    async with connect(make(model, may_read=lambda _request, user: user == row["user"])) as client:
        assert (await client.get(f"/jobs/{job.hex()}/receipt.json")).status_code == 200
        for other in others:
            assert (await client.get(f"/jobs/{other['job_id'].hex()}/receipt.json")).status_code == 403
    async with connect(make(model, may_read=lambda _request, user: user != row["user"])) as client:
        assert (await client.get(f"/jobs/{job.hex()}/receipt.json")).status_code == 403


async def test_markup_in_texts_and_names_is_never_markup(
    model: ReadModel, shown: httpx.AsyncClient, recorded: Recorded
) -> None:
    job_id = get_jobs(model)["agree"]
    text = (await shown.get(f"/jobs/{job_id.hex()}")).text
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{7*7}}" in text
    assert not [tag for tag, attributes in _Page(text).tags if tag == "img" and attributes.get("src") == "x"]
    with model.reading() as connection:
        everybody = [row["participant"] for row in queries.list_participants(connection, "everybody")]
    async with connect(make(model, names=dict.fromkeys(everybody, HOSTILE))) as client:
        for path in (
            *PAGES,
            f"/jobs/{job_id.hex()}",
            f"/participants/{next(one for one in everybody if len(one) == 56)}",
        ):
            answer = (await client.get(path)).text
            assert "<script>alert" not in answer
            assert _Page(answer).count("img") == 1  # the brand's


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/none",
        "/jobs/" + "A" * 64,
        "/jobs/" + "0" * 64,
        "/jobs/..%2f..%2fetc%2fpasswd",
        "/jobs/%2e%2e/receipt.json",
        "/jobs/" + "0" * 63 + "%00",
        "/jobs/..%2f..%2f" + "0" * 64 + "/receipt.json",
        "/jobs/" + "0" * 64 + "/receipt.json",
        "/participants/U" + "A" * 54,
        "/participants/<script>",
        "/participants/U" + "A" * 55,
        "/rounds/0x10",
        "/rounds/-1",
        "/rounds/99999999999999999999",
        "/rounds/٣",
        "/rounds/999999",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/explorer.css%00.js",
        "/static//etc/passwd",
        "/jobs?state=nonsense",
        "/jobs?before=-1",
        "/jobs?before=1;drop",
        "/log?before=x",
        "/nothing/at/all",
    ],
)
async def test_bad_addresses_are_refused_with_words(shown: httpx.AsyncClient, path: str) -> None:
    answer = await shown.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    if answer.headers["content-type"].startswith("text/html"):
        page = _Page(answer.text)
        assert page.count("h1") == 1
        assert "<script>" not in answer.text
        said = re.search(r'<p class="lede">(.*?)</p>', answer.text)
        assert said is not None
        assert len(said.group(1)) > 10
    else:
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_it_is_read_only(client: httpx.AsyncClient, method: str) -> None:
    for path in ("", "/jobs", "/live", "/static/explorer.js"):
        assert (await client.request(method, path)).status_code == 405


async def test_a_search_says_what_it_takes(model: ReadModel, client: httpx.AsyncClient) -> None:
    job = get_jobs(model)["agree"].hex()
    assert job in (await client.get("/jobs", params={"q": job[:6]})).text
    for bad in ("<b>", "xyz", "abc", "a" * 65):
        text = (await client.get("/jobs", params={"q": bad})).text
        assert 'role="alert"' in text
        assert "<b>" not in text


async def test_empty_pages_say_so(recorded: Recorded) -> None:
    with recorded.open_model(is_filled=False) as empty:
        async with connect(make(empty)) as client:
            for path in ("", "/jobs", "/workers", "/accounts", "/rounds", "/log"):
                answer = await client.get(path)
                assert answer.status_code == 200
                assert 'class="empty"' in answer.text


async def test_a_round_is_verified_when_it_is_looked_at(recorded: Recorded) -> None:
    with recorded.open_model() as model:
        async with connect(make(model)) as client:
            assert "was verified here" in (await client.get("/rounds/5")).text
            with model._engine.begin() as connection:
                connection.exec_driver_sql(
                    "UPDATE rounds SET data = (SELECT data FROM rounds WHERE number = 6) WHERE number = 5"
                )
            assert "does not hold" in (await client.get("/rounds/5")).text


async def test_the_log_is_held_against_its_own_entries(recorded: Recorded) -> None:
    with recorded.open_model() as model:
        async with connect(make(model)) as client:
            assert "it is the checkpoint’s" in (await client.get("/log")).text
            with model._engine.begin() as connection:
                connection.exec_driver_sql("UPDATE checkpoints SET root = zeroblob(32)")
            assert "contradicts its own checkpoint" in (await client.get("/log")).text


# --- live ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("17", 17),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("9" * 20, None),
        ("٣", None),
        ("1\n", None),
    ],
)
def test_a_last_event_id_is_a_position_or_nothing(text: str | None, expected: int | None) -> None:
    assert read_last_id(text) == expected


async def take(model: ReadModel, after: int | None, count: int = 1) -> list[dict[str, Any]]:
    broadcast = Broadcast(10)
    stream = _stream(model, broadcast, {}, after)
    found = []
    async with asyncio.timeout(60):
        async for event in stream:
            lines = dict(line.split(": ", 1) for line in event.encode().decode().strip().split("\r\n"))
            found.append({**lines, "data": json.loads(lines["data"])})
            if len(found) == count:
                break
            broadcast.wake()
    await stream.aclose()  # type: ignore[attr-defined]
    assert broadcast.live_count == 0
    return found


async def test_who_reconnects_gets_every_job_that_changed_since(recorded: Recorded) -> None:
    """Cut at a message: the jobs that changed behind it, as they are now, each once, and the id to go on from."""
    with recorded.open_model() as model:
        last = model.get_cursor(Stream.RECORD.value)
        [event] = await take(model, 120)
        with model.reading() as connection:
            changed = {row["job_id"].hex() for row in queries.list_changed(connection, 120, 100)}
        assert event["event"] == "news"
        assert int(event["id"]) == last
        assert [one["job"] for one in event["data"]["jobs"]] and {
            one["job"] for one in event["data"]["jobs"]
        } == changed
        assert event["data"]["overview"]["jobs"] == 10
        [fresh] = await take(model, last)
        assert fresh["data"]["jobs"] == []
        [first] = await take(model, None)
        assert first["data"]["jobs"] == []


async def test_news_arrive_as_they_are_read_and_only_what_is_new(recorded: Recorded) -> None:
    with recorded.open_model(is_filled=False) as model:
        model.apply(recorded.records[:150])
        broadcast = Broadcast(10)
        stream = _stream(model, broadcast, {}, None)
        async with asyncio.timeout(60):
            first = await anext(stream)
            await asyncio.to_thread(model.apply, recorded.records)
            broadcast.wake()
            second = await anext(stream)
        assert first.id is not None
        assert second.id is not None
        assert int(second.id) > int(first.id)
        with model.reading() as connection:
            expected = {row["job_id"].hex() for row in queries.list_changed(connection, int(first.id), 100)}
        assert {one["job"] for one in json.loads(str(second.data))["jobs"]} == expected
        broadcast.close()
        async with asyncio.timeout(60):
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert broadcast.live_count == 0


async def test_who_missed_too_much_loads_the_page_again(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocache_gateway.explorer.live.CHANGES_MAX", 3)
    assert CHANGES_MAX > 3
    with recorded.open_model() as model:
        [event] = await take(model, 0)
        assert event["event"] == "reload"
        assert len(read_news(model, {}, 0)[1]) == 4


async def test_live_connections_are_bounded(model: ReadModel) -> None:
    explorer = make(model, settings=ExplorerSettings(live_max=0))
    async with connect(explorer) as client:
        answer = await client.get("/live")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


# --- drawings ------------------------------------------------------------------------------------------------------


def test_a_flow_is_in_proportion_and_complete() -> None:
    flow = draw_flow([("user", 120, 20, False), ("cheat", 300, 0, True), ("verifier", 60, 460, False)])
    assert flow is not None
    assert [one.account for one in flow.sources] == ["user", "cheat", "verifier"]
    assert [one.account for one in flow.sinks] == ["user", "verifier"]
    assert sum(one.height for one in flow.sources) == pytest.approx(flow.pool_height, abs=0.5)
    assert flow.sources[1].height == pytest.approx(2.5 * flow.sources[0].height, abs=0.2)
    assert flow.sources[1].tone == "bad"
    assert flow.sinks[1].tone == "good"
    assert draw_flow([]) is None
    assert draw_flow([("user", 0, 0, False)]) is None


@pytest.mark.parametrize(
    ("value", "tone"),
    [
        (-4, "h0"),
        (0, "h0"),
        (1, "h0"),
        (50, "h3"),
        (100, "h5"),
        (101, "h6"),
        (200, "h6"),
        (201, "h7"),
        (401, "h8"),
    ],
)
def test_tones_change_at_the_limit(value: int, tone: str) -> None:
    assert compute_tone(value, 100) == tone


def test_steps_keep_a_value_until_the_next() -> None:
    assert draw_steps([(0, 1)]) == ""
    assert draw_steps([(0, 0), (10, 100)]).startswith("M0.0 110.0L600.0 110.0L600.0 10.0")
