"""The explorer in a real browser: a network runs, a job is followed to its payout, a cheat is seen, a receipt is judged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect
from starlette.applications import Starlette

from kit.browser import ARTEFACTS, DESKTOP, HOST, PHONE, find_overflow, find_overlaps, open_browser
from kit.local import GENERATORS, SECTIONS, VERIFIERS, get_model_id, start_network
from pocache.client import Job, PocacheClient
from pocache.protocol.lifecycle import Phase
from pocache.runtime.config import load_settings
from pocache.wire import messages as m
from pocache.wire.envelope import open_envelope
from pocache_cli.local_network import LocalNetwork, WorkerProcess
from pocache_gateway.explorer.process import open_explorer
from pocache_gateway.server import serve_http
from pocache_gateway.settings import GatewaySettings

CHEAT = "generator-cheat"
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>\"'&amp;{{ 7 * 7 }}"
"""What a model's name, a prompt and an output say here; as text it is harmless."""
WAIT_MS = 60_000
TRIES_MAX = 40

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@dataclass
class Site:
    """A running network, its explorer, a user, and a job that cost its generator the stake."""

    network: LocalNetwork
    client: PocacheClient
    port: int
    convicted: str = ""

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        """Return the address of a page."""
        return f"http://{host}:{self.port}/explorer{path}"

    async def submit(self) -> Job:
        """Submit one job."""
        return await self.client.submit(get_model_id(self.network), (1, 2, 3, 4, 5, 6), token_count_max=8)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Three honest generators and one that runs another model; the texts are shown and hostile."""
    folder = tmp_path_factory.mktemp("network")
    workers = (
        WorkerProcess("generators", GENERATORS, roles="generate"),
        WorkerProcess("cheats", (CHEAT,), roles="generate", cheats={CHEAT: "another-model"}),
        WorkerProcess("verifiers", VERIFIERS, roles="verify"),
    )
    sections = {**SECTIONS, "audit": {**SECTIONS["audit"], "lottery_share": "0/1"}}
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(
            start_network(folder, workers=workers, sections=sections, model_name=HOSTILE)
        )
        environ = {
            "POCACHE_NETWORK_DIR": str(network.directory.path),
            "POCACHE_NATS_URL": network.server.url,
            "POCACHE_GATEWAY_EXPLORER_TEXTS": "shown",
        }
        explorer = await stack.enter_async_context(
            open_explorer(load_settings(environ, name_default="gateway"), decode=lambda _id, _tokens: HOSTILE)
        )
        assert explorer is not None
        client = await stack.enter_async_context(network.open_user("ada"))
        app = Starlette(routes=explorer.routes())
        port = await stack.enter_async_context(serve_http(app, GatewaySettings()))
        # Who follows live has to leave before the server waits for its connections.
        stack.callback(explorer.broadcast.close)
        running = Site(network, client, port)
        running.convicted = await convict(running)
        yield running


async def convict(site: Site) -> str:
    """Submit until the cheat takes one, challenge it, and return its id when the stake is lost."""
    genesis = site.network.directory.genesis
    cheat = site.network.directory.signing_key(CHEAT).participant_id
    for _ in range(TRIES_MAX):
        job = await site.submit()
        await site.client.wait(job, Phase.COMMITTED)
        assert job.result is not None
        lease = open_envelope(job.result.lease, genesis.network_id, m.LeaseV1).body
        if lease.generator == cheat:
            await site.client.challenge(job)
            async with asyncio.timeout(60):
                payout = await site.client.wait_payout(job)
            assert payout.slashed == (cheat,)
            return job.job_id.hex()
    pytest.fail(f"the cheat took none of {TRIES_MAX} jobs")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One browser for the module; each test has pages of its own."""
    async with open_browser() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page of desktop width that tolerates no error and no refused resource."""
    context = await browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
    shown = await context.new_page()
    problems: list[str] = []
    shown.on("pageerror", lambda error: problems.append(str(error)))
    shown.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    yield shown
    await context.close()
    assert problems == []


async def test_a_job_is_followed_live_from_its_submission_to_its_payout(site: Site, page: Page) -> None:
    """It appears on the overview by itself; its own page moves on by itself until everybody is paid."""
    await page.goto(site.url())
    await expect(page.locator(".is-live")).to_be_visible(timeout=WAIT_MS)
    job = await site.submit()
    job_id = job.job_id.hex()
    row = page.locator(f'tr[data-job="{job_id}"]')
    await expect(row).to_be_visible(timeout=WAIT_MS)
    await row.locator("a.id").click()
    article = page.locator("article")
    await expect(article).to_have_attribute("data-job", job_id)
    await expect(page.locator(".id-title .badge")).to_have_text("not audited", timeout=WAIT_MS)
    await expect(page.locator(".rail .done").last).to_have_text("settled")
    await expect(page.locator(".flow .band").first).to_be_visible()
    phases = await page.locator(".timeline .phase strong").all_text_contents()
    assert [one for one in phases if one != "locking"] == [
        "escrowing",
        "queued",
        "generating",
        "committed",
        "settled",
    ]
    payout = await site.client.wait_payout(job)
    total = sum(line.amount_micro for line in payout.lines)
    await expect(page.locator(".flow-head").nth(1)).to_have_text(f"pool {total / 1e6:.6f}".rstrip("0"))


async def test_a_slashed_job_shows_the_mismatch_the_draw_and_who_lost_what(site: Site, page: Page) -> None:
    """Its heatmap is over the threshold, its sortition has the ticket, its generator is slashed."""
    await page.goto(site.url(f"/jobs/{site.convicted}"))
    await expect(page.locator(".id-title .badge")).to_have_text("convicted")
    heat = page.locator("table.heat").first
    await expect(heat).to_have_attribute("data-verdict", "mismatch")
    over = await heat.locator("td.h8, td.h7, td.h6").count()
    assert over > 0
    assert str(over) == await heat.get_attribute("data-over")
    layers = await heat.locator('tbody th[scope="rowgroup"]').all_text_contents()
    assert layers[:2] == ["0", "1"]
    slashed = page.locator("tr", has=page.locator(".badge.bad", has_text="slashed"))
    await expect(slashed).to_have_count(1)
    await expect(slashed.locator("a.who")).to_have_text(CHEAT)
    assert await page.locator(".stake-bar .ticket").count() == 2
    assert await page.locator("tr.picked").count() == 2
    await page.goto(site.url("/workers"))
    await expect(page.get_by_role("region", name="Slashes").get_by_role("link", name=CHEAT)).to_be_visible()


async def test_its_receipt_verifies_in_the_page(site: Site, page: Page) -> None:
    """Every step is shown; what cannot be checked in a browser without curves says so and is no pass."""
    await page.goto(site.url(f"/jobs/{site.convicted}"))
    await page.get_by_role("button", name="Verify in this browser").click()
    report = page.locator("[data-verify-report]")
    await expect(report).to_have_attribute("data-valid", "true", timeout=WAIT_MS)
    steps = dict(
        await page.locator(".report li").evaluate_all(
            "all => all.map(one => [one.dataset.step, one.dataset.status])"
        )
    )
    assert len(steps) == 19
    assert steps.pop("R8.pairing") == "not-checked"
    assert steps.pop("R5") in ("ok", "not-checked")  # until the epoch's key is published
    assert {status for step, status in steps.items() if step in ("R1", "R14", "R15", "R16", "R18")} == {"ok"}


@pytest.mark.parametrize("what", ["record", "rounds", "genesis", "record-order"])
async def test_a_tampered_receipt_does_not(site: Site, page: Page, tmp_path: Path, what: str) -> None:
    """The file as it is holds; with one thing changed it does not, and the step is named."""
    answer = await page.request.get(site.url(f"/jobs/{site.convicted}/receipt.json"))
    assert answer.ok
    data = await answer.body()
    receipt = json.loads(data)
    if what == "genesis":
        receipt["genesis"] = receipt["genesis"].replace('"demo":true', '"demo":false')
    elif what == "record-order":
        receipt["record"].reverse()
    else:
        one = receipt[what][-1]
        receipt[what][-1] = one[:200] + ("A" if one[200] != "A" else "B") + one[201:]
    file = tmp_path / "receipt.json"
    file.write_bytes(json.dumps(receipt, separators=(",", ":")).encode())
    await page.goto(site.url("/verify"))
    await page.get_by_label("Receipt", exact=False).first.set_input_files(file)
    await page.get_by_role("button", name="Verify in this browser").click()
    report = page.locator("[data-verify-report]")
    await expect(report).to_have_attribute("data-valid", "false", timeout=WAIT_MS)
    assert await report.get_attribute("data-failed") in ("R1", "R2", "R3")
    await expect(report.locator(".report li.failed")).to_have_count(1)
    # The same page, the same button, the file as it was.
    file.write_bytes(data)
    await page.get_by_label("Receipt", exact=False).first.set_input_files(file)
    await page.get_by_role("button", name="Verify in this browser").click()
    await expect(report).to_have_attribute("data-valid", "true", timeout=WAIT_MS)


async def test_without_a_secure_origin_the_button_says_so(site: Site, page: Page) -> None:
    """Web Crypto exists only over HTTPS or from this machine: nothing pretends to verify elsewhere."""
    for path in (f"/jobs/{site.convicted}", "/verify"):
        await page.goto(site.url(path, HOST))
        button = page.get_by_role("button", name="Verifying needs HTTPS")
        await expect(button).to_be_disabled()


async def test_markup_from_the_network_is_text(site: Site, page: Page) -> None:
    """Model names, prompts and outputs that are markup show as they are and run nothing."""
    for path in ("", f"/jobs/{site.convicted}"):
        await page.goto(site.url(path))
        assert await page.evaluate("window.pwned") is None
        assert await page.locator("main img, main script").count() == 0
        assert HOSTILE in (await page.locator("main").inner_text())
    await expect(page.locator("pre.text").first).to_have_text(HOSTILE)


async def test_everything_is_reached_by_keys(site: Site, page: Page) -> None:
    """Skip link, sorting and the heatmap's cells work from the keyboard, and say what they did."""
    await page.goto(site.url("/jobs"))
    await page.keyboard.press("Tab")
    await expect(page.locator(".skip")).to_be_focused()
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"
    header = page.locator("thead th", has_text="Pool")
    await header.get_by_role("button").focus()
    for direction in ("ascending", "descending"):
        await page.keyboard.press("Enter")
        await expect(header).to_have_attribute("aria-sort", direction)
        values = await page.locator("tbody tr td:nth-child(7)").evaluate_all(
            "all => all.map(one => +one.dataset.sort)"
        )
        assert values == sorted(values, reverse=direction == "descending")
    await expect(page.locator("#live-status")).to_contain_text("sorted by Pool")
    await page.goto(site.url(f"/jobs/{site.convicted}"))
    first = page.locator("table.heat td").first
    await first.focus()
    said = await page.locator(".cell-detail").first.text_content()
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("ArrowDown")
    assert await page.evaluate("document.activeElement.tagName") == "TD"
    assert await page.locator(".cell-detail").first.text_content() != said


async def test_pages_fit_desktop_and_phone_in_light_and_dark(site: Site, browser: Browser) -> None:
    """Nothing sticks out, is cut off or lies over something else; the screenshots are kept."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    cheat = site.network.directory.signing_key(CHEAT).participant_id
    paths = {
        "overview": "",
        "jobs": "/jobs",
        "job": f"/jobs/{site.convicted}",
        "workers": "/workers",
        "participant": f"/participants/{cheat}",
        "rounds": "/rounds?used=yes",
        "accounts": "/accounts",
        "log": "/log",
        "verify": "/verify",
        "nothing": "/jobs/none",
    }
    problems = []
    for tag, viewport, scheme in (("desktop", DESKTOP, "light"), ("phone", PHONE, "dark")):
        context = await browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
        page = await context.new_page()
        for name, path in paths.items():
            await page.goto(site.url(path))
            problems += [f"{tag} {name}: {one}" for one in await find_overflow(page)]
            problems += [f"{tag} {name}: overlap {one}" for one in await find_overlaps(page)]
            await page.screenshot(path=ARTEFACTS / f"{name}-{tag}.png", full_page=True)
        await context.close()
    assert problems == []
