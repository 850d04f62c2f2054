"""Items of text are searched without any events, and what was never measured says so."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sandbox import run_command
from twotower import Retriever, evaluate_bundle, index_items, recipe
from twotower.doctor.diagnosis import diagnose_bundle
from twotower.errors import ConfigError

ITEMS = pl.DataFrame(
    {
        "item_id": range(100, 108),
        "title": [
            "The running of engines in the cold",
            "A garden and its flowers",
            "Flowers for the dogs of the city",
            "The dog that ran to the river",
            "On rivers and the bridges over them",
            "Engines of the city",
            "The city in the cold of the night",
            "Bridges, dogs and gardens",
        ],
        "body": [
            f"it is what it was and that was all about the number {n} of them" for n in range(8)
        ],
        "year": range(2000, 2008),
        "link": [f"https://example.com/{n}" for n in range(8)],
    }
)
SMALL = recipe("search").with_settings(["towers.dim=32", "training.threads=1"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "model"
    index_items(ITEMS, text=["title"], out=out, config=SMALL, name="library")
    return out


def test_a_bundle_of_items_alone_searches(bundle: Path) -> None:
    retriever = Retriever.open(bundle)
    assert retriever.recommend("an engine running", k=1).item_ids == [100]
    assert retriever.recommend("brdges ovr rivrs", k=1).item_ids == [104]  # by letters alone
    assert retriever.recommend("dogs", k=9, filter="year > 2003").item_ids[0] == 107
    retriever.upsert_items([{"item_id": 900, "title": "Zeppelins of the city"}])
    assert retriever.recommend("zeppelin", k=1).item_ids == [900]
    assert retriever.contents.metrics["words"]["share"] == retriever.share_of_words > 0.5
    assert "model" not in retriever.contents.metrics


def test_it_is_measured_where_right_items_are_told(bundle: Path) -> None:
    judged = pl.DataFrame({"query": ["running engine", "flower garden"], "item_id": [100, 101]})
    figures = evaluate_bundle(Retriever.open(bundle), test=judged, baselines=["bm25"])
    assert figures["served"]["ndcg@10"] == 1.0
    assert figures["protocol"]["queries"] == 2
    assert figures["bm25"]["ndcg@10"] == 1.0


def test_what_was_never_measured_is_said_so(bundle: Path) -> None:
    (finding,) = diagnose_bundle(Retriever.open(bundle))
    said = finding.as_json()["what"]
    assert said.endswith("because the bundle was made of items alone, without any events.")
    assert "nothing is known of how good" in (bundle / "MODEL_CARD.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("told", "read"),
    [({}, ("title", "body")), ({"text": ["body"]}, ("body",)), ({"text": ["link"]}, ("link",))],
)
def test_columns_that_are_read(told: dict[str, Any], read: tuple[str, ...]) -> None:
    contents = index_items(ITEMS, config=SMALL, **told).contents
    assert tuple(contents.metrics["words"]["item_columns"]) == read
    kinds = {feature.source: feature.kind for feature in contents.items.transforms.features}
    assert {name for name, kind in kinds.items() if kind == "text"} == set(read)
    assert kinds["year"] == "shown"


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"items must have a column of text, got none among item_id"
    ):
        index_items(ITEMS.select("item_id", "year"), config=SMALL)
    with pytest.raises(ConfigError, match=r"features.item.titel must name .* did you mean 'title'"):
        index_items(ITEMS, text=["titel"], config=SMALL)
    with pytest.raises(ValueError, match=r"sequence of columns, got the string 'title'"):
        index_items(ITEMS, text="title", config=SMALL)


def test_in_one_command(tmp_path: Path) -> None:
    long = ITEMS.with_columns(body=pl.col("body") + pl.lit(" and of others" * 5 + " end"))
    long.write_csv(tmp_path / "items.csv")
    done = run_command(
        ("index", "items.csv", "--text", "title,body", "--out", "m", "--set", "towers.dim=16"),
        tmp_path,
    )
    assert done.code == 0, done.err
    assert "8 items, searched by title, body; nothing was learnt" in done.out
    recommend = ("recommend", "m", "--query", "engine running", "-k", "1")
    asked = run_command(recommend, tmp_path)
    assert "│ 100 " in asked.out
    assert "…" in asked.out  # a terminal shows the beginning of a long text
    assert "end" not in asked.out
    assert "of others end" in run_command((*recommend, "--json"), tmp_path).out
    shown = run_command(("inspect", "m"), tmp_path)
    assert shown.code == 0
