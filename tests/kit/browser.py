"""A real headless Chromium for a test, driven by Playwright; the system's own, never one that is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Browser, Page, async_playwright

ROOT: Final = Path(__file__).resolve().parents[2]
ARTEFACTS: Final = ROOT / ".artefacts" / "browser"
"""Where a run leaves its screenshots; git ignores it."""
HOST: Final = "explorer.test"
"""A name for this machine that browsers do not take for a secure origin."""
FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
)
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")

DESKTOP: Final = {"width": 1_280, "height": 900}
PHONE: Final = {"width": 390, "height": 844}


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Start a browser with a profile of its own; skipped where there is none, a failure where all is required."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        reason = "no Chromium on this machine: install the package chromium"
        if os.environ.get("POCACHE_REQUIRE") == "all":
            pytest.fail(reason)
        pytest.skip(reason)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


async def find_overflow(page: Page) -> list[str]:
    """Return what sticks out of the page sideways, or is cut off inside a box that does not scroll."""
    found: list[str] = await page.evaluate(
        """() => {
          const name = (one) => `${one.tagName.toLowerCase()}.${one.className?.baseVal ?? one.className}`;
          const inside = (one) => one.closest('.scroll, nav, .visually-hidden, .skip, svg, pre');
          const all = [...document.querySelectorAll('body *')].filter((one) => !inside(one) && one.getClientRects().length);
          const out = all.filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => `out: ${name(one)}`);
          const cut = all.filter((one) => one.children.length === 0 && one.scrollWidth > one.clientWidth + 1
            && getComputedStyle(one).display !== 'inline' && getComputedStyle(one).overflowX === 'hidden').map((one) => `cut: ${name(one)}`);
          const wide = document.documentElement.scrollWidth > innerWidth ? ['the page scrolls sideways'] : [];
          return [...wide, ...out, ...cut].slice(0, 10);
        }"""
    )
    return found


async def find_overlaps(page: Page) -> list[str]:
    """Return pairs of texts that lie over each other."""
    found: list[str] = await page.evaluate(
        """() => {
          const texts = [];
          const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) {
            const node = walker.currentNode;
            if (!node.data.trim() || node.parentElement.closest('.visually-hidden, details:not([open]) > :not(summary), title, .heat')) continue;
            const range = document.createRange();
            range.selectNodeContents(node);
            for (const box of range.getClientRects()) if (box.width > 1) texts.push([node.data.trim().slice(0, 30), box, node.parentElement]);
          }
          const found = [];
          for (let one = 0; one < texts.length; one += 1) for (let other = one + 1; other < texts.length; other += 1) {
            const [a, b] = [texts[one][1], texts[other][1]];
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (wide > 2 && high > 0.35 * Math.min(a.height, b.height)) {
              const scrolls = [texts[one][2].closest('.scroll'), texts[other][2].closest('.scroll')];
              if (scrolls[0] === scrolls[1]) found.push(`${texts[one][0]} | ${texts[other][0]}`);
            }
          }
          return found.slice(0, 10);
        }"""
    )
    return found
