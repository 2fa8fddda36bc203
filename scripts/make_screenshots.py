"""Writes the pictures of the web page in docs/images: docs/images/page.png and docs/images/live.png.

It needs what scripts/page_tools.sh installs. Usage, in the root of the repository:
    PYTHONPATH=packages:.:.page-tools .venv/bin/python scripts/make_screenshots.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.e2e.server import Server
from tests.page.test_page import CHROMIUM

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = {"width": 900, "height": 600}
LOOK_MS = 2200  # a little more than the live view waits between two looks


def draw_page(browser: Browser, server: Server) -> None:
    """Draws the tab Embed with its two results, in light colours."""
    page = browser.new_page(viewport=SIZE)
    page.goto(server.url)
    for name in ("Compare", "Draw"):
        page.get_by_role("button", name=name).click()
    page.wait_for_selector("svg circle")
    page.wait_for_selector("strong")
    page.screenshot(path=IMAGES / "page.png", full_page=True)


def draw_live(browser: Browser, server: Server) -> None:
    """Draws the tab Live under some load, in dark colours."""
    page = browser.new_page(viewport=SIZE, color_scheme="dark")
    page.goto(server.url)
    page.get_by_role("tab", name="Live").click()
    page.wait_for_timeout(LOOK_MS)
    for _ in range(40):
        server.post("/embed", {"inputs": ["hello world", "a longer text of several words"] * 4})
    page.wait_for_timeout(LOOK_MS)
    page.screenshot(path=IMAGES / "live.png")


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        Server(Path(folder) / "server", Path(folder) / "cache", dtype="float32") as made,
    ):
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        draw_page(started, made)
        draw_live(started, made)
        started.close()
