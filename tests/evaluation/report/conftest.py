from copy import deepcopy
from typing import Any

import polars as pl
import pytest

from twotower.data.sources.synthetic import SyntheticTables
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train

METHODS = (
    "model",
    "popularity",
    "recent_popularity",
    "item_knn",
    "ease",
    "als",
    "bm25",
    "random",
)


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


@pytest.fixture(scope="session")
def all_figures() -> dict[str, Any]:
    """All that metrics.json can hold: the model above ItemKNN, the strongest of seven."""
    means = {"model": 0.130, "item_knn": 0.109} | {
        method: 0.05 for method in METHODS if method not in ("model", "item_knn")
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
            method: {"ndcg@10": [0.130 - means[method], 0.015, 0.127]} for method in METHODS[1:]
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


@pytest.fixture(scope="session")
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
    return trained.retriever
