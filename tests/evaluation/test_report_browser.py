"""The report in a real browser: any Chromium that is installed, through playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from qwen_retrieval.evaluation.report import render_report
from tests.evaluation.test_report import HOSTILE, everything, hostile

if TYPE_CHECKING:
    from playwright.sync_api import Browser

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Playwright's own browser, or else the machine's."""
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if Path(own).exists() else next(filter(None, map(shutil.which, PROGRAMS)), None)
        if found is None:
            pytest.skip(f"no browser: none of {', '.join(PROGRAMS)} is installed, nor playwright's own")
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


class Opened:
    """A page, and all that it complained about or asked for."""

    def __init__(self, browser: Browser, html: str, folder: Path, scheme: Literal["light", "dark"] = "light") -> None:
        self.url = (folder / "report.html").as_uri()
        (folder / "report.html").write_text(html, "utf-8")
        self.page = browser.new_page(color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(self.url)


@pytest.fixture(scope="module")
def opened(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(browser, render_report(everything()), tmp_path_factory.mktemp("report"))


def test_the_page_opens_without_complaints_and_asks_for_nothing(opened: Opened) -> None:
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [opened.url]
    assert opened.page.locator("h1").inner_text().startswith("Use embedder 64 int8")


def test_plots_are_visible_and_drawn(opened: Opened) -> None:
    plots = opened.page.locator("figure > svg")
    assert plots.count() == 4
    for number in range(4):
        box = plots.nth(number).bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 150
    ink = "one => [getComputedStyle(one).fill, getComputedStyle(document.body).backgroundColor]"
    fill, paper = opened.page.locator("#storage svg path.s1").last.evaluate(ink)
    assert fill not in ("none", paper, "rgb(0, 0, 0)")  # the style sheet is in force


def test_a_click_and_a_key_sort_the_table(opened: Opened) -> None:
    table = opened.page.locator("table.sortable")
    header = table.locator("thead th", has_text="Kept bytes")

    def kept() -> list[str]:
        return table.locator("tbody tr td:nth-last-child(2)").all_inner_texts()

    before = kept()
    header.locator("button").click()
    numbers = [int(text) for text in kept()[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    assert kept()[-1] == "–"  # BM25 has none; it was the first
    assert header.get_attribute("aria-sort") == "descending"
    opened.page.keyboard.press("Enter")  # the button has the focus
    assert [int(text) for text in kept()[:-1]] == sorted(numbers)
    table.locator("thead th", has_text="System").locator("button").click()
    names = table.locator("tbody th").all_inner_texts()
    assert names[:2] == ["BM25", "embedder 32"]
    assert sorted(kept()) == sorted(before)
    assert header.get_attribute("aria-sort") is None


def test_a_phone_scrolls_the_table_and_not_the_page(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, render_report(everything()), tmp_path)
    opened.page.set_viewport_size({"width": 390, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390


def test_dark_is_dark_and_paper_has_every_query(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, render_report(everything()), tmp_path, "dark")
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert opened.page.locator("details[open]").count() == 1
    assert opened.page.pdf().startswith(b"%PDF")
    assert opened.page.locator("details[open]").count() == 2


def test_scripts_in_texts_do_not_run_nor_would_they_if_they_got_in(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, render_report(hostile()), tmp_path)
    assert opened.complaints == []
    assert opened.page.locator("blockquote").first.inner_text() == HOSTILE
    opened.page.evaluate(
        "() => { const one = document.createElement('script'); one.textContent = 'window.hacked = 3';"
        " document.body.append(one); }"
    )
    assert opened.page.evaluate("window.hacked") is None
    assert "Content Security Policy" in opened.complaints[0]
