"""The documentation site in a real browser, where it is built: ``make site``."""

import os
from pathlib import Path
from typing import Any

import pytest

from accessibility import serious_violations
from servers import PATIENCE

SITE = Path(__file__).resolve().parents[2] / "site"
HOME = {"en": "en/README.html", "zh": "zh/README.zh-CN.html"}
TABLES = {"en": "en/docs/how-good.html", "zh": "zh/docs/how-good.zh-CN.html"}
GUIDE = {"en": "en/docs/serving.html", "zh": "zh/docs/serving.zh-CN.html"}


@pytest.fixture(scope="module")
def site() -> Path:
    """The built site; without it the tests are skipped, unless TWOTOWER_SITE=1 asks for it."""
    if not SITE.is_dir() and os.environ.get("TWOTOWER_SITE") != "1":
        pytest.skip("no site; build it by `make site`, or set TWOTOWER_SITE=1 to fail without")
    assert SITE.is_dir(), "TWOTOWER_SITE=1, and no site is built"
    return SITE


def opened(browser: Any, address: str, *, width: int = 1280) -> tuple[Any, list[str]]:
    """Return the page, and every address that it asked for."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(1000 * PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address, wait_until="load")
    return page, asked


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_ask_for_nothing(browser: Any, site: Path, language: str, width: int) -> None:
    for page_name in (HOME[language], GUIDE[language], f"{language}/docs/api/twotower.html"):
        page, asked = opened(browser, (site / page_name).as_uri(), width=width)
        assert [address for address in asked if not address.startswith("file:")] == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.close()


@pytest.mark.parametrize(
    ("language", "query", "found"),
    [
        ("en", "exploration", "Rules"),
        ("en", "twotower.Retriever", "Retriever"),
        ("zh", "负样本校正", "负样本与损失"),
        ("zh", "冷启动", "冷启动"),
        ("zh", "logQ", "负样本与损失"),
    ],
)
def test_search_finds(browser: Any, site: Path, language: str, query: str, found: str) -> None:
    page, _ = opened(browser, f"{(site / language / 'search.html').as_uri()}?q={query}")
    page.locator("#search-results ul.search li", has_text=found).first.wait_for()
    page.close()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_page_leads_to_itself_in_the_other_language(
    browser: Any, site: Path, language: str
) -> None:
    other = "zh" if language == "en" else "en"
    page, _ = opened(browser, (site / GUIDE[language]).as_uri())
    page.locator("a.other-language").click()
    assert page.url == (site / GUIDE[other]).as_uri()
    page.close()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_axe_finds_nothing_serious(browser: Any, site: Path, language: str) -> None:
    for page_name in (HOME[language], GUIDE[language], TABLES[language]):
        page, _ = opened(browser, (site / page_name).as_uri(), width=390)
        assert serious_violations(page) == []
        page.close()
