import re
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from twotower.baselines.specs import BASELINES
from twotower.data.sources.synthetic import SyntheticTables
from twotower.doctor.diagnosis import diagnose_bundle
from twotower.doctor.findings import Finding, Kind, Text
from twotower.errors import ConfigError
from twotower.report import html_files
from twotower.report.html_report import write_report
from twotower.serving.retriever import Retriever
from twotower.serving.titles import Titles, clean
from twotower.training.pipeline import train

FINDING = Finding(
    Kind(
        "duplicate-events",
        en=Text("{count} copies <b>", "They count twice.", "Remove them."),
        zh=Text("{count} 份副本", "重复计算。", "去重。"),
    ),
    "warning",
    0.5,
    {"count": 7},
)
VOID = {"meta", "br", "img", "link", "input", "hr"}
SHAPES = {"path", "line", "rect", "circle"}


class Page(HTMLParser):
    """What a page is made of; fails where an element is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def group(by: str, label: str, value: float, queries: int, **more: Any) -> dict[str, Any]:
    return {
        "by": by,
        "label": label,
        "side": "query",
        "metric": "ndcg@10",
        "queries": queries,
        "targets": queries,
        "small": queries < 10,
        "intervals": {"model": [value, value - 0.01, value + 0.01]},
        "differences": {"item_knn": [0.01, -0.02, 0.04]},
        "reference": 0.13,
        "low": None,
        "high": None,
        "unit": None,
        **more,
    }


@pytest.fixture
def figures(all_figures: dict[str, Any]) -> dict[str, Any]:
    """Figures that a test may change."""
    return deepcopy(all_figures)


@pytest.fixture(scope="module")
def all_figures() -> dict[str, Any]:
    """All that metrics.json can hold: the model above ItemKNN, the strongest of eight."""
    means = {"model": 0.130, "item_knn": 0.109} | {
        method: 0.05 for method in BASELINES if method != "item_knn"
    }
    exposure = {"coverage@10": 0.5, "gini@10": 0.8, "novelty@10": 9.1, "diversity@10": 0.4}
    table = {
        method: {"ndcg@10": mean, "hit_rate@10": 2 * mean, "recall@10": 2 * mean, "recall@100": 0.7}
        for method, mean in means.items()
    }
    intervals = {
        method: {metric: [value, value - 0.004, value + 0.004] for metric, value in row.items()}
        for method, row in table.items()
    }
    ks = [1, 2, 5, 10, 20, 50, 100]
    curve = {method: [mean * k / 10 for k in ks] for method, mean in means.items()}
    return {
        **{method: row | exposure | {"popularity_bias@10": 0.1} for method, row in table.items()},
        "intervals": intervals,
        "differences": {
            method: {"ndcg@10": [0.130 - means[method], 0.015, 0.127]}
            for method in means
            if method != "model"
        },
        "verdict": "The model beats ItemKNN with decay by 0.021 NDCG@10.",
        "verdicts": {},
        "curves": {"k": ks, "ndcg": curve, "recall": curve, "hit_rate": curve},
        "slices": [
            group("all", "all", 0.13, 900),
            group("cold_items", "cold", 0.01, 57),
            group("cold_items", "warm", 0.14, 5),
            group("activity", "1 to 7 events", 0.1, 300, low=1.0, high=7.0, unit="events"),
            group("time", "x", 0.1, 300, low=0.0, high=86400.0, unit="day"),
            group("item.<i>genre</i>", "Sci-Fi & <b>", 0.12, 90),
        ],
        "known_events": {
            "events": [0, 1, 20],
            "queries": 321,
            "metric": "ndcg@10",
            "methods": {
                method: [[0.02, 0.01, 0.03], [0.06, 0.05, 0.07], [0.12, 0.11, 0.13]]
                for method in ("model", "popularity", "item_knn", "ease")
            },
        },
        "seeds": {"ndcg@10": {"mean": 0.1295, "sd": 0.0012, "values": [0.13, 0.129, 0.1295]}},
        "protocol": {
            "part": "test",
            "queries": 943,
            "targets": 1886,
            "targets_that_cannot_be_found": {"seen": 1, "absent": 2},
            "catalogue": 1682,
            "ranking": "full",
            "seen_removed": True,
            "settings": {"item_knn": {"neighbours": None, "half_life": 1.0, "chosen_on": "valid"}},
            "left_out": {},
        },
    }


@pytest.fixture(scope="module")
def hostile_retriever(small_world: SyntheticTables, one_thread: None) -> Retriever:
    """A bundle whose titles try everything, with string ids and a hostile query column."""

    bad = [
        "<script>alert(1)</script>",
        "\"quoted\" & 'single' </title></svg>",
        "\u202egnirts desrever",
        "word" * 200,
        "🦄👩‍👩‍👧‍👦 emoji",
        "control\x00\x0b\x1bs",
        "{{ 7 * 7 }}{% raw %}",
        "",
    ]
    ids = small_world.items["item_id"]
    n = len(ids)
    items = pl.DataFrame(
        {
            "item_id": "i<" + ids.cast(pl.String) + '">',
            "title": [
                f"{bad[i % len(bad)]}{i or ''}" if bad[i % len(bad)] else None
                for i in range(len(ids))
            ],
            "genre": [("<b>x</b>", "a & b", None)[i % 3] for i in range(n)],
        }
    )
    events = small_world.interactions.with_columns(
        ("i<" + pl.col("item_id").cast(pl.String) + '">').alias("item_id"),
        ("q<" + pl.col("query_id").cast(pl.String) + ">").alias("query_id"),
    )
    trained = train(
        events,
        items=items,
        config={"training": {"epochs": 1}, "towers": {"dim": 8}},
        name="<img src=x onerror=alert(1)>",
    )
    # Markup was taken out of the cells; a bundle made by somebody else may hold it.
    contents = trained.retriever.contents
    frame = contents.items.frame.select("item_id").join(
        items, on="item_id", how="left", maintain_order="left"
    )
    return Retriever(replace(contents, items=replace(contents.items, frame=frame)))


def with_metrics(retriever: Retriever, metrics: dict[str, Any]) -> Retriever:
    return Retriever(replace(retriever.contents, metrics=metrics), path=retriever.path)


def written(retriever: Retriever, folder: Path, **options: Any) -> str:
    write_report(retriever, folder / "r.html", **options)
    return (folder / "r.html").read_text("utf-8")


@pytest.fixture(scope="module")
def full(tiny_retriever: Retriever, all_figures: dict[str, Any]) -> Retriever:
    return with_metrics(tiny_retriever, all_figures)


@pytest.fixture(scope="module")
def english(full: Retriever, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(full, tmp_path_factory.mktemp("en"), findings=[FINDING])


def test_everything_has_its_place_and_the_verdict_comes_first(
    english: str,
) -> None:
    page = Page(english)
    assert [t for t, _ in page.tags].count("h1") == 1
    sections = [s["id"] for s in page.all("section")]
    assert sections == [
        "baselines", "curves", "slices", "scores", "importance", "training", "profile", "exposure",
        "map", "examples", "doctor", "configuration",
    ]  # fmt: skip
    assert page.all("html") == [{"lang": "en"}]
    for said in (
        "The model beats ItemKNN with decay by 0.021 NDCG@10",
        "0.015 to 0.127",
        "over 3 seeds: mean 0.1295, standard deviation 0.0012",
        "3 of these items cannot be found by any method (1 were seen before, 2 are",
        "cold: NDCG@10 0.010 (0.000 to 0.020), against 0.130 overall; 57 queries",
        "1970-01-01 to 1970-01-02",
        "7 copies <b>",
        "tiny world",
        "10 real queries",
        "The same 321 queries each time",
        "0.060 (0.050 – 0.070) with 1; 0.120 (0.110 – 0.130) with 20",
        "towers.dim",
    ):
        assert said in page.text, said
    assert english.index("The model beats") < english.index("<section")


def test_it_is_one_file_that_asks_for_nothing(english: str) -> None:
    text, page = english, Page(english)
    assert len(text.encode()) < 3_000_000
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("img")
    assert not re.search(r"url\((?!#)|@import", text)
    links = {value for _, a in page.tags for key, value in a.items() if key in ("href", "src")}
    assert all(link and link.startswith("#") for link in links)
    assert {link[1:] for link in links if link} <= {a.get("id") for _, a in page.tags}


def test_charts_have_labels_unique_ids_and_the_pages_colours(
    english: str,
) -> None:
    page = Page(english)
    charts = [svg for svg in page.all("svg") if svg.get("class") != "sketch"]
    assert len(charts) > 10
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        for name in ("fill", "stroke"):
            if tag in {*SHAPES, "text"} and attributes.get(name):
                assert str(attributes[name]).startswith(("var(--", "none", "transparent")), (
                    tag,
                    attributes,
                )


def test_tables_have_captions_and_scopes(english: str) -> None:
    page = Page(english)
    assert len(page.all("table")) == len(page.all("caption")) >= 5
    assert all(th.get("scope") in ("row", "col") for th in page.all("th"))


def test_chinese_leaves_no_english_sentence(full: Retriever, tmp_path: Path) -> None:
    text = written(full, tmp_path, language="zh", findings=[FINDING])
    page = Page(text)
    assert page.all("html") == [{"lang": "zh-CN"}]
    assert "模型优于带衰减的 ItemKNN，NDCG@10 高出 0.021" in page.text
    assert "7 份副本" in page.text
    labels = [a["aria-label"] for _, a in page.tags if a.get("aria-label")]
    assert all(re.search(r"[\u4e00-\u9fff]", str(label)) for label in labels)
    notes = re.sub(r'<(\w+) lang="en">.*?</\1>', "", text, flags=re.S)
    plain = Page(re.sub(r"<(style|code|title)\b.*?</\1>", "", notes, flags=re.S)).text
    assert not re.search(r"\b(the|with|queries|items|of)\b", plain)
    assert 'lang="en"' not in text


def test_an_older_bundle_says_what_it_lacks(tiny_retriever: Retriever, tmp_path: Path) -> None:
    means = {"ndcg@10": 0.2, "hit_rate@10": 0.3}
    old = {
        "model": means,
        "popularity": {"ndcg@10": 0.1, "hit_rate@10": 0.2},
        "item_knn": {"ndcg@10": 0.15, "hit_rate@10": 0.25},
        "protocol": {"part": "test", "queries": 9, "item_knn": {"half_life": 1.0}},
    }
    page = Page(written(with_metrics(tiny_retriever, old), tmp_path))
    assert (
        "The model reaches NDCG@10 0.200; ItemKNN with decay, the strongest baseline, 0.150"
        in page.text
    )
    assert "without intervals" in page.text
    assert page.text.count("Not in this bundle") == 3
    assert "New queries" not in page.text


@pytest.mark.parametrize("metrics", [{}, {"model": {"auc": 0.7}}, {"model": {}, "protocol": {}}])
def test_hardly_any_figures_still_make_a_page(
    tiny_retriever: Retriever, tmp_path: Path, metrics: dict[str, Any]
) -> None:
    Page(written(with_metrics(tiny_retriever, metrics), tmp_path))


def test_sampled_figures_are_called_inflated(
    tiny_retriever: Retriever, figures: dict[str, Any], tmp_path: Path
) -> None:
    figures["protocol"] |= {"ranking": "sampled", "candidates_a_query": 101.0}
    text = Page(written(with_metrics(tiny_retriever, figures), tmp_path)).text
    assert "inflated" in text
    assert "ranking 101 candidates each, out of 1,682 items" in text


@pytest.mark.parametrize(("language", "said"), [("en", "has a label for"), ("zh", "有标签的物品")])
def test_a_validation_among_labels_is_told(
    full: Retriever, english: str, tmp_path: Path, language: str, said: str
) -> None:
    config = full.contents.config.with_settings(["training.validate_among=labels"])
    changed = Retriever(replace(full.contents, config=config, metrics={}), path=full.path)
    assert said in Page(written(changed, tmp_path, language=language)).text
    assert said not in Page(english).text


def test_hostile_titles_are_only_text(hostile_retriever: Retriever, tmp_path: Path) -> None:
    text = written(hostile_retriever, tmp_path, findings=diagnose_bundle(hostile_retriever))
    page = Page(text)
    assert not page.all("script")
    assert not page.all("img")
    assert not page.all("b")
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search(r"[\x00-\x08\x0b\x1b\u202e]", text)
    assert "word" * 30 not in text
    assert "<img src=x onerror=alert(1)>" in page.text


def test_a_bundle_without_histories_shows_no_queries(
    tiny_retriever: Retriever, tmp_path: Path
) -> None:
    bare = replace(
        tiny_retriever.contents, histories=None, history_parts=None, targets=None, log=""
    )
    page = Page(written(Retriever(bare), tmp_path))
    assert "no queries can be shown" in page.text
    assert "0 real queries" not in page.text
    assert page.text.count("Real queries") == 2  # the contents and the heading
    assert "a training log" in page.text


def test_collapsed_vectors_have_no_map(tiny_retriever: Retriever, tmp_path: Path) -> None:
    contents = tiny_retriever.contents
    same = replace(contents, item_vectors=torch.ones_like(contents.item_vectors), metrics={})
    assert "There is no map" in Page(written(Retriever(same), tmp_path)).text


def test_the_same_bundle_gives_the_same_page(full: Retriever, english: str, tmp_path: Path) -> None:
    assert written(full, tmp_path, findings=[FINDING]) == english


def test_titles_come_from_the_column_of_that_name(tiny_retriever: Retriever) -> None:
    titles = Titles(tiny_retriever.contents.items)
    assert titles.column == "title"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a\nb\t c", "a b c"), ("x" * 95, "x" * 89 + "…"), ("\u202eabc", "abc"), (7, "7")],
)
def test_clean(value: object, expected: str) -> None:
    assert clean(value) == expected


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    page.write_text("old")
    with pytest.raises(ConfigError, match=r"out must be a file, got the folder"):
        html_files.write_page(tmp_path, "new")
    with pytest.raises(ConfigError, match=r"out must be in a folder that exists"):
        html_files.write_page(tmp_path / "none" / "r.html", "new")
    with pytest.raises(ConfigError, match=r"out must be a name of at most 220 bytes, got 250"):
        html_files.write_page(tmp_path / ("x" * 250), "new")
    assert page.read_text() == "old"
    assert list(tmp_path.iterdir()) == [page]
