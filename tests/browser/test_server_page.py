"""The page of a server in a real browser: a person builds a query, filters, and looks at neighbours."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from accessibility import serious_violations
from servers import PATIENCE, running
from twotower import Diversify
from twotower.data.sources.synthetic import SyntheticTables
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train


@pytest.fixture(scope="module")
def url(tiny_bundle: Path) -> Iterator[str]:
    with running(tiny_bundle) as address:
        yield address


@pytest.fixture
def page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page as somebody sees it whose browser is set as the test says; nothing goes wrong in it."""
    settings = {"width": 1280, "locale": "en-US", "color_scheme": "light"}
    settings |= getattr(request, "param", {})
    width = settings.pop("width")
    context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
    context.set_default_timeout(1000 * PATIENCE)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None
    )
    opened.on("request", lambda r: None if r.url.startswith(url) else problems.append(r.url))
    opened.goto(url, wait_until="load")
    opened.wait_for_selector("#basis:not(:empty)")
    yield opened
    context.close()
    assert problems == []


def titles(page: Any) -> list[str]:
    found: list[str] = page.locator("#list h3").all_inner_texts()
    return found


def answered(page: Any, act: Any, path: str = "/recommend") -> None:
    with page.expect_response(lambda answer: path in answer.url and answer.ok):
        act()
    page.wait_for_selector("#list li")


def test_a_history_is_built_by_clicking(page: Any, tiny_retriever: Retriever) -> None:
    frame = tiny_retriever.contents.items.frame
    by_title = dict(zip(frame["title"], frame["item_id"], strict=True))
    page.fill("#item", frame["title"][4])
    answered(page, lambda: page.click("#items button >> nth=0"))
    history = [frame["item_id"][4]]
    assert [by_title[t] for t in titles(page)] == tiny_retriever.recommend(history=history).item_ids
    second = titles(page)[1]
    answered(page, lambda: page.click("#list li:nth-child(2) button >> nth=0"))
    history.append(by_title[second])
    expected = tiny_retriever.recommend(history=history)
    first = tiny_retriever.items(expected.item_ids[:1])["title"][0]
    page.wait_for_selector(f"#list li:first-child h3:text-is('{first}')")
    assert [by_title[t] for t in titles(page)] == expected.item_ids
    assert page.locator("#history li").count() == 2
    answered(page, lambda: page.click("#history button >> nth=0"))
    assert page.locator("#history li").count() == 1
    assert "ms" in page.inner_text("#took")


def test_a_known_query_by_keys_alone(page: Any, tiny_retriever: Retriever) -> None:
    page.focus("#query")
    page.keyboard.type("12")
    page.wait_for_selector("#queries button")
    page.keyboard.press("ArrowDown")
    chosen = page.evaluate("document.activeElement.innerText")
    answered(page, lambda: page.keyboard.press("Enter"))
    assert page.input_value("#query") == chosen
    frame = tiny_retriever.contents.items.frame
    expected = tiny_retriever.items(tiny_retriever.recommend(int(chosen)).item_ids)["title"]
    page.wait_for_selector(f"#list li:first-child h3:text-is('{expected[0]}')")
    assert titles(page) == expected.to_list()
    assert frame.height == 200
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert {"item", "filter", "k", "seen", "Neighbours", "Why"} <= reached


def test_ids_that_a_browser_would_round(
    browser: Any, small_world: SyntheticTables, tmp_path: Path
) -> None:
    def large(column: str) -> pl.Expr:
        return pl.col(column).cast(pl.Int64) + (2**60 + 1)

    trained = train(
        small_world.interactions.with_columns(large("item_id"), large("query_id")),
        items=small_world.items.with_columns(
            large("item_id"), title=pl.format("{} \\ : 12345678901234567890,", "title")
        ),
        queries=small_world.queries.with_columns(large("query_id")),
        out=tmp_path / "model",
        config={"training": {"epochs": 1}, "towers": {"dim": 8}},
    )
    frame = trained.retriever.contents.items.frame
    by_title = dict(zip(frame["title"], frame["item_id"], strict=True))
    with running(tmp_path / "model") as address:
        page = browser.new_page()
        page.goto(address, wait_until="load")
        page.wait_for_selector("#basis:not(:empty)")  # it listens now
        page.fill("#item", frame["title"][4])
        answered(page, lambda: page.click("#items button >> nth=0"))
        expected = trained.retriever.recommend(history=[frame["item_id"][4]])
        assert expected.basis == "model"
        assert [by_title[t] for t in titles(page)] == expected.item_ids
        first = titles(page)[0]
        answered(page, lambda: page.click("#list li:first-child button >> nth=1"), "/similar")
        near = trained.retriever.similar_items(by_title[first]).item_ids
        page.wait_for_function("document.querySelectorAll('#list li').length > 0")
        assert [by_title[t] for t in titles(page)] == near
        page.close()


def test_a_filter_and_its_mistakes(page: Any, tiny_retriever: Retriever) -> None:
    answered(page, lambda: page.fill("#query", "7"))
    told = "item_id <= 50"
    answered(page, lambda: page.fill("#filter", told))
    expected = tiny_retriever.recommend(7, filter=told)
    first = tiny_retriever.items(expected.item_ids[:1])["title"][0]
    page.wait_for_selector(f"#list li:first-child h3:text-is('{first}')")
    assert titles(page) == tiny_retriever.items(expected.item_ids)["title"].to_list()
    assert page.is_hidden("#problem")


def test_diversity_is_a_number_from_0_to_1(page: Any, tiny_retriever: Retriever) -> None:
    answered(page, lambda: page.fill("#query", "7"))
    plain = titles(page)
    answered(page, lambda: page.fill("#diversity", "0.7"))
    expected = tiny_retriever.recommend(7, rules=[Diversify(0.7)])
    wanted = tiny_retriever.items(expected.item_ids)["title"].to_list()
    assert wanted != plain
    page.wait_for_selector(f"#list li:nth-child(2) h3:text-is('{wanted[1]}')")
    assert titles(page) == wanted
    answered(page, lambda: page.fill("#diversity", "7"))  # as 1
    answered(page, lambda: page.fill("#diversity", ""))
    page.wait_for_selector(f"#list li:nth-child(2) h3:text-is('{plain[1]}')")
    assert titles(page) == plain
    assert page.is_hidden("#problem")


def test_neighbours_and_why(page: Any, tiny_retriever: Retriever) -> None:
    answered(page, lambda: page.fill("#query", "7"))
    first = titles(page)[0]
    page.click("#list li:first-child button[aria-expanded]")
    page.wait_for_selector("#list .why tr")
    assert "history" in page.inner_text("#list .why")
    answered(page, lambda: page.click("#list li:first-child button >> nth=1"), "/similar")
    assert page.inner_text("#answers-title") == f"Neighbours of {first}"
    item_id = tiny_retriever.item_ids[
        tiny_retriever.contents.items.frame["title"].to_list().index(first)
    ]
    expected = tiny_retriever.items(tiny_retriever.similar_items(item_id).item_ids)["title"]
    assert titles(page) == expected.to_list()
    answered(page, lambda: page.click("#back"))
    assert page.inner_text("#answers-title") == "Answers"


LOOKS: list[dict[str, object]] = [{"color_scheme": "dark", "locale": "zh-CN"}, {"width": 360}]
"""Each width, each colour scheme and each language once."""


@pytest.mark.parametrize("page", LOOKS, indirect=True)
def test_axe_finds_nothing_serious_and_a_phone_shows_all(page: Any, url: str) -> None:
    answered(page, lambda: page.fill("#query", "7"))
    page.click("#list li:first-child button[aria-expanded]")
    page.wait_for_selector("#list .why tr")
    page.fill("#item", "item")
    page.wait_for_selector("#items button")
    for address in (None, f"{url}/docs"):
        if address is not None:
            page.goto(address)
            page.wait_for_selector("#routes section")
        assert serious_violations(page) == []
        width = page.viewport_size["width"]
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_each_example_of_the_interface_is_one(page: Any, url: str) -> None:
    page.goto(f"{url}/docs")
    page.wait_for_selector("#routes section")
    asked = 0
    for told in page.locator("#routes pre code").all_inner_texts():
        method = re.search(r"-X (\w+)", told)
        address, body = re.search(r"'(http[^']*)'", told), re.search(r"-d '(.*)'", told)
        assert address is not None
        if method is None or body is None:
            continue
        asked += 1
        assert json.loads(body[1]), told
        if method[1] == "POST":
            answer = httpx.post(address[1], json=json.loads(body[1]))
            assert answer.status_code in (200, 404), (told, answer.text)  # the ids are made up
    assert asked == 8
    assert "rules.explore.share" in page.locator("#routes th code").all_inner_texts()


@pytest.mark.parametrize("page", [{"locale": "zh-CN"}], indirect=True)
def test_the_language_is_that_of_the_browser_and_can_be_turned(page: Any) -> None:
    assert page.inner_text("#ask-title") == "谁在问"
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#language")
    assert page.inner_text("#ask-title") == "Who asks"
    page.reload()
    page.wait_for_selector("#basis:not(:empty)")
    assert page.inner_text("#ask-title") == "Who asks"
