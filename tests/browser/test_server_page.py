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
from twotower.serving.bundle import write_bundle
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.private import without_queries


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
    # As a filter that is wrong is refused; and what a test asks without a connection.
    expected = re.compile(
        "the server responded with a status of 422|net::ERR_INTERNET_DISCONNECTED"
    )
    opened.on(
        "console",
        lambda m: (
            problems.append(m.text)
            if m.type in ("error", "warning") and not expected.search(m.text)
            else None
        ),
    )
    opened.on("request", lambda r: None if r.url.startswith(url) else problems.append(r.url))
    opened.goto(url, wait_until="load")
    opened.wait_for_selector("#list li")
    yield opened
    context.close()
    assert problems == []


def titles(page: Any) -> list[str]:
    found: list[str] = page.locator("#list h3").all_inner_texts()
    return found


def answered(page: Any, act: Any, path: str = "/recommend") -> None:
    with page.expect_response(lambda answer: path in answer.url and answer.ok):
        act()
    page.wait_for_selector("#answers:not([aria-busy])")


def choose(page: Any, place: int, what: str) -> None:
    """Open the menu of an answer and take an entry."""
    page.click(f"#list > li:nth-child({place}) .more")
    page.click(f"#list > li:nth-child({place}) [role=menuitem]:text-is('{what}')")


def without_query(page: Any) -> None:
    """Take the query out that the page began with."""
    page.fill("#query", "")
    page.wait_for_selector("#list:empty", state="attached")


def titles_of(retriever: Retriever, item_ids: list[Any]) -> list[str]:
    found: list[str] = retriever.items(item_ids)["title"].to_list()
    return found


def test_it_opens_with_an_answer_and_has_others(page: Any, tiny_retriever: Retriever) -> None:
    known = set()
    for _ in range(3):
        query = int(page.input_value("#query"))
        known.add(query)
        assert page.inner_text("#answers-title") == f"Answers for query_id {query}"
        expected = tiny_retriever.recommend(query)
        page.wait_for_selector("#known:not(:empty)")
        assert titles(page) == titles_of(tiny_retriever, expected.item_ids)
        latest = titles_of(tiny_retriever, tiny_retriever.history(query)[::-1][:5])
        assert page.inner_text("#known") == f"Its history, the latest first: {' · '.join(latest)} …"
        assert page.is_hidden("text=oldest first")
        answered(page, lambda: page.click("#another"))
    assert len(known) > 1


def test_a_history_is_built_by_clicking(page: Any, tiny_retriever: Retriever) -> None:
    frame = tiny_retriever.contents.items.frame
    by_title = dict(zip(frame["title"], frame["item_id"], strict=True))
    without_query(page)
    assert "Pick a query" in page.inner_text("#basis")
    page.fill("#item", frame["title"][4])
    answered(page, lambda: page.click("#items button >> nth=0"))
    history = [frame["item_id"][4]]
    assert [by_title[t] for t in titles(page)] == tiny_retriever.recommend(history=history).item_ids
    second = titles(page)[1]
    answered(page, lambda: choose(page, 2, "Add to history"))
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
    page.keyboard.press("Control+A")
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
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert {"field-0", "item", "filter", "k", "seen", "map-draw"} <= reached
    page.focus("#list li .more")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.innerText") == "Show on the map"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "more"
    assert page.locator("[role=menu]:visible").count() == 0


def test_features_that_are_filled_in_are_asked_with(page: Any, tiny_retriever: Retriever) -> None:
    answered(page, lambda: page.fill("#query", "7"))
    segments = tiny_retriever.contents.queries.frame["segment"].value_counts()
    common = segments.filter(pl.col("count") >= 10)["segment"].to_list()
    shown = page.locator("#field-0-values option").evaluate_all("all => all.map(o => o.value)")
    assert sorted(shown) == sorted(common)
    told = [{"segment": segment, "signal": 0.5} for segment in common]
    answers = [
        titles_of(tiny_retriever, tiny_retriever.recommend(7, features=each).item_ids)
        for each in told
    ]
    stored = titles_of(tiny_retriever, tiny_retriever.recommend(7).item_ids)
    # One whose answer is not that of the stored features.
    place = next(place for place, answer in enumerate(answers) if answer != stored)
    answered(page, lambda: page.fill("#field-0", told[place]["segment"]))
    answered(page, lambda: page.fill("#field-1", "0.5"))
    assert titles(page) == answers[place]


@pytest.fixture(scope="module")
def shop(
    small_world: SyntheticTables, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Retriever]]:
    """A server whose ids a browser would round, with pictures and links; two links are hostile."""

    def large(column: str) -> pl.Expr:
        return pl.col(column).cast(pl.Int64) + (2**60 + 1)

    own, hostile = pl.format("https://shop.example/{}", "item_id"), pl.lit("javascript:alert(1)")
    path = tmp_path_factory.mktemp("shop") / "model"
    trained = train(
        small_world.interactions.with_columns(large("item_id"), large("query_id")),
        items=small_world.items.with_columns(
            large("item_id"),
            title=pl.format("{} \\ : 12345678901234567890,", "title"),
            page=pl.when(pl.col("item_id") > 2).then(own).otherwise(hostile),
            photo=pl.format("https://images.example/{}.png", "item_id"),
        ),
        queries=small_world.queries.with_columns(large("query_id")),
        out=path,
        config={"training": {"epochs": 1}, "towers": {"dim": 8}},
        baselines=[],
    )
    with running(path) as address:
        yield address, trained.retriever


def test_ids_that_a_browser_would_round(browser: Any, shop: tuple[str, Retriever]) -> None:
    address, retriever = shop
    frame = retriever.contents.items.frame
    by_title = dict(zip(frame["title"], frame["item_id"], strict=True))
    page = browser.new_page()
    page.goto(address, wait_until="load")
    page.wait_for_selector("#list li")
    without_query(page)
    page.fill("#item", frame["title"][4])
    answered(page, lambda: page.click("#items button >> nth=0"))
    expected = retriever.recommend(history=[frame["item_id"][4]])
    assert expected.basis == "model"
    assert [by_title[t] for t in titles(page)] == expected.item_ids
    first = titles(page)[0]
    answered(page, lambda: choose(page, 1, "Neighbours"), "/similar")
    near = retriever.similar_items(by_title[first]).item_ids
    assert [by_title[t] for t in titles(page)] == near
    page.close()


def test_links_lead_to_the_web_alone_and_pictures_tell_nobody_where_they_are_seen(
    browser: Any, shop: tuple[str, Retriever]
) -> None:
    address, retriever = shop
    page = browser.new_page()
    seen: list[Any] = []

    def picture(route: Any) -> None:
        seen.append(route.request)
        svg = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
        route.fulfill(status=200, content_type="image/svg+xml", body=svg)

    page.route("https://images.example/**", picture)
    page.goto(address, wait_until="load")
    page.wait_for_selector("#list img")
    answered(page, lambda: page.check("#seen"))
    answered(page, lambda: page.fill("#k", "60"))
    page.wait_for_selector("#list > li:nth-child(60)")
    links = page.locator("#list h3 a").evaluate_all("all => all.map(a => [a.href, a.rel])")
    urls = retriever.contents.items.frame["page"].to_list()
    assert sorted(href for href, _ in links) == sorted(u for u in urls if u.startswith("https"))
    assert len(links) == 58
    assert {rel for _, rel in links} == {"noopener noreferrer"}
    assert all("referer" not in request.all_headers() for request in seen)
    assert page.locator("#list img").evaluate_all("all => all.every(i => i.loading === 'lazy')")
    page.close()


def test_only_a_page_with_pictures_may_load_some(url: str, shop: tuple[str, Retriever]) -> None:
    policies = [httpx.get(each).headers["content-security-policy"] for each in (url, shop[0])]
    assert ["img-src 'self';" in policy for policy in policies] == [True, False]
    assert "img-src 'self' https: http:;" in policies[1]
    assert "img-src 'self';" in httpx.get(f"{shop[0]}/docs").headers["content-security-policy"]


def test_a_page_that_knows_no_query_opens_with_an_answer_all_the_same(
    browser: Any, tiny_retriever: Retriever, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "model", without_queries(tiny_retriever.contents))
    with running(tmp_path / "model") as address:
        page = browser.new_page()
        page.goto(address, wait_until="load")
        page.wait_for_selector("#list li")
        assert page.inner_text("#answers-title") == "Answers for this history"
        assert page.locator("#history li").count() == 1
        assert page.is_hidden("#query-field")
        assert page.is_hidden("#words-field")
        page.close()


def test_a_filter_and_its_mistakes(page: Any, tiny_retriever: Retriever) -> None:
    answered(page, lambda: page.fill("#query", "7"))
    told = "item_id <= 50"
    answered(page, lambda: page.fill("#filter", told))
    expected = tiny_retriever.recommend(7, filter=told)
    first = tiny_retriever.items(expected.item_ids[:1])["title"][0]
    page.wait_for_selector(f"#list li:first-child h3:text-is('{first}')")
    found = titles(page)
    assert found == tiny_retriever.items(expected.item_ids)["title"].to_list()
    page.fill("#filter", "item_id <=")
    page.wait_for_selector("#filter-said:not([hidden])")
    assert "got its end" in page.inner_text("#filter-said")
    assert page.get_attribute("#filter", "aria-invalid") == "true"
    assert page.is_hidden("#problem")
    assert titles(page) == found
    assert "the answers from before" in page.inner_text("#basis")
    answered(page, lambda: page.fill("#filter", "category != 'category-none'"))
    assert "category-none" in page.inner_text("#filter-said")
    assert page.get_attribute("#filter", "aria-invalid") == "false"
    answered(page, lambda: page.fill("#filter", ""))
    page.wait_for_selector("#filter-said", state="hidden")
    assert page.get_attribute("#filter", "aria-invalid") == "false"
    assert page.inner_text("#basis") == ""


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
    choose(page, 1, "Why this item")
    page.wait_for_selector("#list .why tr")
    assert "history" in page.inner_text("#list .why")
    answered(page, lambda: choose(page, 1, "Neighbours"), "/similar")
    page.wait_for_selector(f"#answers-title:text-is('Neighbours of {first}')")
    item_id = tiny_retriever.item_ids[
        tiny_retriever.contents.items.frame["title"].to_list().index(first)
    ]
    expected = tiny_retriever.items(tiny_retriever.similar_items(item_id).item_ids)["title"]
    assert titles(page) == expected.to_list()
    page.click("#back")
    page.wait_for_selector("#answers-title:text-is('Answers for query_id 7')")


def test_the_map_finds_an_item_and_its_neighbours(page: Any, tiny_retriever: Retriever) -> None:
    page.click("#map-draw")
    page.wait_for_selector("#map-whole:not([hidden])")
    assert "200 items" in page.inner_text("#map-note")
    offered = page.locator("#map-colour option").all_inner_texts()
    assert (offered[:2], len(offered)) == (["nothing", "category"], 4)
    colours = page.evaluate(
        """() => {
          const canvas = document.getElementById("map-canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const found = new Set();
          for (let i = 0; i < data.length; i += 4) found.add(data.slice(i, i + 4).join());
          return [...found];
        }"""
    )
    assert {"11,107,93,255", "181,83,15,255"} <= set(colours)  # the first two of the legend
    page.fill("#map-search", "synthetic item 17")
    page.wait_for_selector("#map-found button")
    page.click("#map-found button >> nth=0")
    page.wait_for_selector("#map-card li")
    near = titles_of(tiny_retriever, tiny_retriever.similar_items(17).item_ids)
    assert page.inner_text("#map-card h3") == "Synthetic item 17"
    assert page.locator("#map-card li").all_inner_texts() == near
    canvas = page.locator("#map-canvas").bounding_box()
    page.mouse.click(canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] - 2)
    assert page.inner_text("#map-card h3") == "Synthetic item 17"  # nothing is there
    answered(page, lambda: page.click("#map-card button >> nth=-1"), "/similar")
    page.wait_for_selector("#answers-title:text-is('Neighbours of Synthetic item 17')")
    assert titles(page) == near


LOOKS: list[dict[str, object]] = [{"color_scheme": "dark", "locale": "zh-CN"}, {"width": 360}]
"""Each width, each colour scheme and each language once."""


@pytest.mark.parametrize("page", LOOKS, indirect=True)
def test_axe_finds_nothing_serious_and_a_phone_shows_all(page: Any, url: str) -> None:
    answered(page, lambda: page.fill("#query", "7"))
    page.click("#map-draw")
    page.wait_for_selector("#map-whole:not([hidden])")
    page.click("#list li:first-child .more")
    page.click("#list li:first-child [role=menuitem] >> nth=2")
    page.wait_for_selector("#list .why tr")
    page.fill("#filter", "(")
    page.wait_for_selector("#filter-said:not([hidden])")
    page.fill("#item", "item")
    page.wait_for_selector("#items button")
    answers, form = (page.locator(each).bounding_box() for each in ("#answers", "#ask"))
    is_phone = page.viewport_size["width"] < 800
    assert (answers["y"] + answers["height"] <= form["y"]) == is_phone
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
    pair = "[[integer | string, integer | string], …]"
    assert pair in page.locator("#routes td:nth-child(2) code").all_inner_texts()


@pytest.mark.parametrize("page", [{"locale": "zh-CN"}], indirect=True)
def test_the_language_is_that_of_the_browser_and_can_be_turned(page: Any) -> None:
    assert page.inner_text("#ask-title") == "提问"
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.fill("#filter", "item_id <=")
    page.wait_for_selector("#filter-said:not([hidden])")
    assert "过滤条件到此结束" in page.inner_text("#filter-said")
    assert "^" in page.inner_text("#filter-said")  # the place stays
    answered(page, lambda: page.fill("#filter", "category = 'category-none'"))
    assert "没有任何物品的 'category' 是 \"category-none\"" in page.inner_text("#filter-said")
    page.fill("#k", "2.5")
    page.wait_for_selector("#problem:text-is('k：须是整数，却写了 2.5。')")
    page.fill("#k", "9999")
    page.wait_for_selector("#problem:text-is('k 最大为 1000，却写了 9999。')")
    # A page that a proxy shows in place of an answer, and no connection.
    page.route("**/recommend", lambda route: route.fulfill(status=200, body="<html>"))
    page.fill("#k", "9")
    page.wait_for_selector("#problem:text('无法读取返回的内容（状态码 200）')")
    page.unroute("**/recommend")
    page.context.set_offline(True)
    page.fill("#k", "8")
    page.wait_for_selector("#problem:text-is('无法连接服务器。')")
    page.click("#map-draw")
    page.wait_for_selector("#map-note:text-is('无法连接服务器。')")
    page.context.set_offline(False)
    page.fill("#k", "9999")
    page.wait_for_selector("#problem:text('9999')")
    page.click("#language")
    assert page.inner_text("#ask-title") == "Ask"
    page.wait_for_selector("#problem:text-is('k must be at most 1000, got 9999.')")
    page.reload()
    page.wait_for_selector("#list li")
    assert page.inner_text("#ask-title") == "Ask"


@pytest.mark.parametrize("page", [{"locale": "zh-CN", "width": 390}], indirect=True)
def test_the_interface_is_in_the_language_of_the_browser(page: Any, url: str) -> None:
    page.goto(f"{url}/docs")
    page.wait_for_selector("#routes section")
    assert page.title() == "twotower：接口"
    shown = page.locator("#routes p, #routes td:last-child, #routes caption").all_inner_texts()
    assert len(shown) > 100
    assert [text for text in shown if text and not re.search(r"[\u4e00-\u9fff]", text)] == []
    assert "返回一个查询的最佳物品。" in shown
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == 390
    page.click("#language")
    page.wait_for_selector("#routes p:text-is('Return the best items for one query.')")
    page.click("#language")
    page.wait_for_selector("#routes p:text-is('返回一个查询的最佳物品。')")


def test_a_second_stage_shows_the_order_of_retrieval_beside_its_own(
    browser: Any, tiny_world: SyntheticTables, tmp_path: Path
) -> None:
    trained = train(
        tiny_world.interactions,
        items=tiny_world.items,
        config={
            "training": {"epochs": 1, "solver": "gradient"},
            "towers": {"dim": 8, "history": "pooled", "query_id": "off", "question_time": "off"},
            "rerank": {"use": "on", "candidates": 40},
        },
        baselines=[],
        out=tmp_path / "model",
    )
    with running(tmp_path / "model") as address:
        page = browser.new_page()
        page.goto(address, wait_until="load")
        page.wait_for_selector("#list li")
        answered(page, lambda: page.fill("#query", "7"))
        page.wait_for_selector("#list .before")
        retriever = trained.retriever
        ranked, plain = retriever.recommend(7), retriever.recommend(7, k=40, rerank=False)
        assert ranked.item_ids != plain.item_ids[:10]
        names = dict(
            zip(retriever.item_ids, retriever.items(retriever.item_ids)["title"], strict=True)
        )
        assert titles(page) == [names[item] for item in ranked.item_ids]
        places = [plain.item_ids.index(item) + 1 for item in ranked.item_ids]
        said = page.locator("#list .before").all_inner_texts()
        assert said == [f"Retrieved at place {place}" for place in places]
        answered(page, lambda: page.press("#rerank", "Space"))  # a list of queries is open above it
        page.wait_for_selector("#list li:first-child:not(:has(.before))")
        assert titles(page) == [names[item] for item in plain.item_ids[:10]]
        assert serious_violations(page) == []
        page.close()
    assert page.is_closed()
