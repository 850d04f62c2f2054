"""The report in a real browser: it asks for nothing, fits a phone, and axe finds nothing serious."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from accessibility import serious_violations
from servers import PATIENCE
from twotower.doctor.findings import Finding, Kind, Text
from twotower.report.html_report import write_report
from twotower.serving.retriever import Retriever

Scheme = Literal["light", "dark"]
SAID = Text("{value:.0%} of the events are copies.", "They count twice.", "Remove them.")
KIND = Kind("duplicate-events", en=SAID, zh=SAID)
FINDINGS = [Finding(KIND, "error", 0.5), Finding(KIND, "warning", 0.1), Finding(KIND, "info", 0.0)]
HOSTILE = "<script>document.title='owned'</script>" + "long" * 60


@pytest.fixture(scope="module")
def pages(tiny_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of the tiny world in both languages, some titles hostile."""
    contents = tiny_retriever.contents
    titles = contents.items.frame["title"].to_list()
    hostile = contents.items.frame.with_columns(
        title=contents.items.frame["title"].scatter(range(0, len(titles), 7), HOSTILE)
    )
    odd = replace(contents, items=replace(contents.items, frame=hostile))
    folder = tmp_path_factory.mktemp("reports")
    languages: tuple[Literal["en", "zh"], ...] = ("en", "zh")
    for language in languages:
        path = folder / f"{language}.html"
        write_report(
            Retriever(odd, path=tiny_retriever.path), path, language=language, findings=FINDINGS
        )
    return {language: folder / f"{language}.html" for language in languages}


def opened(
    browser: Any, path: Path, *, width: int = 1280, scheme: Scheme = "light"
) -> tuple[Any, list[str]]:
    """Return the page, and every address that it asked for."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(1000 * PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    return page, asked


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_request_leaves_and_nothing_runs(
    browser: Any, pages: dict[str, Path], language: str
) -> None:
    page, asked = opened(browser, pages[language])
    assert asked == [pages[language].as_uri()]
    assert "owned" not in page.title()
    assert page.locator("h1").count() == 1
    page.close()


@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("zh", "dark")])
def test_axe_finds_nothing_serious(
    browser: Any, pages: dict[str, Path], language: str, scheme: Scheme
) -> None:
    page, _ = opened(browser, pages[language], scheme=scheme)
    for details in page.locator("details").all():  # what is folded away is read, too
        details.evaluate("element => { element.open = true }")
    assert serious_violations(page) == []
    page.close()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_phone_shows_it_without_sideways_scrolling(
    browser: Any, pages: dict[str, Path], language: str
) -> None:
    page, _ = opened(browser, pages[language], width=360)
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    shown = page.locator("figure svg").evaluate_all(
        "all => all.filter(e => e.getBoundingClientRect().width > 0).length"
    )
    assert shown == page.locator("figure").count()  # one of the two widths of each chart
    page.close()


def test_dark_and_print_change_the_paper(browser: Any, pages: dict[str, Path]) -> None:
    def paper(page: Any) -> str:
        found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return found

    light, _ = opened(browser, pages["en"])
    dark, _ = opened(browser, pages["en"], scheme="dark")
    assert paper(light) != paper(dark)
    dark.emulate_media(media="print")
    assert paper(dark) == paper(light)
    light.close()
    dark.close()
