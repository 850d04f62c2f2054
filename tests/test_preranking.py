"""The pieces of ``benchmarks/preranking.py`` on which its figures depend."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def preranking(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("preranking")


def pairs_of(num: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 6, num)
    return pl.DataFrame(
        {
            "user_id": users,
            "movie_id": rng.integers(0, 8, num),
            "label": rng.integers(0, 2, num),
            "gender": ["F" if user % 2 else "M" for user in users],
            "age": [str(user // 2) for user in users],
            "occupation": ["writer"] * num,
            "genres": [["Drama", "War"][: 1 + line % 2] for line in range(num)],
        }
    )


def flipped(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs.with_columns(label=1 - pl.col("label"))


def test_the_auc_of_resamples(preranking: ModuleType) -> None:
    """Positives at 0.8 and 0.3 against negatives at 0.5 and 0.3 win 1, 1, 0 and a half."""
    scores, labels = np.array([0.8, 0.3, 0.5, 0.3]), np.array([1, 1, 0, 0])
    owners = np.array([0, 1, 1, 0])
    # With owner 1 drawn twice its pairs count twice: wins of 1, 2, 1, and 0 of 4 pairs.
    draws = np.array([[1, 1], [1, 2], [2, 0]])
    found = preranking.resampled(scores, labels, owners, draws)
    assert found == pytest.approx([2.5 / 4, (2 + 1 + 0 + 1) / 9, 1.0])


def test_a_rating_of_three_is_no_label(preranking: ModuleType) -> None:
    ratings = pl.DataFrame(
        {"user_id": [1, 1, 2, 2, 3], "movie_id": [7, 8, 7, 9, 7], "rating": [5.0, 3, 4, 2, 1]}
    )
    found = preranking.labelled(ratings)
    assert found["label"].to_list() == [1, 1, 0, 0]
    assert found["movie_id"].to_list() == [7, 7, 9, 7]


def test_each_pair_is_in_one_part(preranking: ModuleType) -> None:
    pairs = pl.DataFrame({"line": range(1000)})
    parts = preranking.drawn(pairs)
    assert {name: len(part) for name, part in parts.items()} == {
        "test": 200,
        "valid": 160,
        "train": 640,
    }
    assert sorted(pl.concat(parts.values())["line"].to_list()) == list(range(1000))


def test_the_means_of_known_labels(preranking: ModuleType) -> None:
    known = pl.DataFrame(
        {
            "user_id": [1, 1, 1, 2],
            "movie_id": [7, 8, 9, 7],
            "label": [1, 0, 0, 0],
            "gender": ["F", "F", "F", "M"],
            "age": ["18"] * 4,
            "occupation": ["writer"] * 4,
            "genres": [["Drama"], ["Drama", "War"], ["War"], ["Drama"]],
        }
    )
    found = preranking.with_means(known.head(1), known)
    assert found["mean_user_id"].to_list() == pytest.approx([1 / 3])
    assert found["mean_movie_id"].to_list() == [0.5]
    assert found["mean_movie_id_gender"].to_list() == [1.0]
    assert found["mean_user_genres"].to_list() == [0.5]  # of the two pairs with Drama


def test_clean_columns_know_no_label_of_another_part_nor_their_own(preranking: ModuleType) -> None:
    parts = {name: pairs_of(60, seed) for seed, name in enumerate(("train", "valid", "test"))}
    items = parts["train"].select("movie_id", "genres")

    def columns(protocol: str, **changed: pl.DataFrame) -> dict[str, Any]:
        queries = pl.DataFrame()
        found: dict[str, Any] = preranking.Given(
            protocol, parts | changed, items, queries, (), 0
        ).columns
        return found

    for protocol, leaks in ((preranking.CLEAN, False), (preranking.PUBLISHED, True)):
        before = columns(protocol)
        for name in ("valid", "test"):
            after = columns(protocol, **{name: flipped(parts[name])})
            assert np.array_equal(before[name], after[name], equal_nan=True) is not leaks
            assert np.array_equal(before["train"], after["train"], equal_nan=True)
        for line in range(3):
            one = parts["train"].with_row_index("at")
            label = pl.when(pl.col("at") == line).then(1 - pl.col("label")).otherwise("label")
            after = columns(protocol, train=one.with_columns(label=label).drop("at"))
            own = (before["train"][line], after["train"][line])
            assert np.array_equal(*own, equal_nan=True) is not leaks


def test_the_published_towers_read_the_means_of_the_same_part(preranking: ModuleType) -> None:
    parts = {"train": pairs_of(40, 0), "test": pairs_of(20, 1)}
    queries = parts["train"].select("user_id", "gender").unique("user_id")
    items = parts["train"].select("movie_id", "genres").unique("movie_id")
    given = preranking.Given(preranking.PUBLISHED, parts, items, queries, (), 0)
    events, movies, users = preranking.tables(given)
    assert events["test"]["user_in_part"][0] == f"test/{parts['test']['user_id'][0]}"
    for name, pairs in parts.items():
        for frame, key, mean in (
            (users, "user", "user_mean"),
            (movies, "movie", "movie_mean"),
        ):
            of_key = pairs.filter(pl.col(f"{key}_id") == 1)["label"].mean()
            found = frame.filter(pl.col(f"{key}_in_part") == f"{name}/1")[mean].item()
            assert found == pytest.approx(of_key)
