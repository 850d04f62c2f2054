"""Arguments in whatever form people have them: frames of three libraries, rows, paths of bundles."""

import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal, assert_series_equal

from twotower import Retriever, compare_runs, diagnose_bundle, evaluate_bundle, write_report
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.tables import read_table
from twotower.errors import ArgumentError, BundleError, DataError, MissingExtraError
from twotower.exports import export_npy
from twotower.features.dataframes import as_polars, is_frame, to_pandas
from twotower.training.trained import Trained

Form = Callable[[pl.DataFrame], Any]
FORMS: dict[str, Form] = {
    "polars": lambda frame: frame,
    "lazy": lambda frame: frame.lazy(),
    "pandas": lambda frame: frame.to_pandas(),
    "pyarrow": lambda frame: frame.to_arrow(),
    "lines": lambda frame: frame.to_dicts(),
}


@pytest.fixture
def no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas is installed, and pyarrow is not."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)


COLUMNS: dict[str, Any] = {
    "whole": [1, 2, 3],
    "number": [0.5, np.nan, 2.0],
    "flag": [True, False, True],
    "text": ["a", None, "ü"],
    "object": pd.Series(["a", np.nan, "c"], dtype=object),
    "nullable": pd.array([1, None, 3], dtype="Int64"),
    "maybe": pd.array([True, None, False], dtype="boolean"),
    "kind": pd.Categorical(["x", "y", None]),
    "tags": [["a", "b"], [], None],
    "day": [date(2024, 1, 2), None, date(2024, 3, 4)],
    "moment": pd.to_datetime(["2024-01-02 03:04:05", None, "2024-05-06 00:00:00"]),
    "zoned": pd.to_datetime(["2024-01-02", None, "2024-05-06"]).tz_localize("Europe/Berlin"),
    "small": np.array([1, 2, 3], np.int8),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_pandas_column_is_the_same_without_pyarrow(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame({name: COLUMNS[name]})
    expected = as_polars(frame)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    found = as_polars(frame)
    if expected.schema[name] == pl.Categorical:
        expected = expected.cast(pl.String)
    assert_frame_equal(found, expected)


def test_a_pandas_frame_keeps_its_named_index_without_pyarrow(no_pyarrow: None) -> None:
    frame = pd.DataFrame({1: [5, 6]}, index=pd.Index(["a", "b"], name="user_id"))
    assert_frame_equal(read_table(frame), pl.DataFrame({"user_id": ["a", "b"], "1": [5, 6]}))
    with pytest.raises(DataError, match="a column of mixed types; give each column one type"):
        read_table(pd.DataFrame({"a": [1, "x", [2]]}))
    with pytest.raises(DataError, match="distinct column names, got 'x' more than once"):
        read_table(pd.DataFrame([[1, 2]], columns=["x", "x"]))


def test_answers_are_a_pandas_frame_without_pyarrow(
    tiny_retriever: Retriever, no_pyarrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = tiny_retriever.recommend([4, 5], k=3)
    found, expected = answers.to_pandas(), answers.to_polars()
    assert list(found.columns) == expected.columns
    for name in expected.columns:
        assert found[name].tolist() == expected[name].to_list()
    assert to_pandas(pl.DataFrame({"a": [1, None]}))["a"].isna().tolist() == [False, True]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="to_pandas needs the library 'pandas'"):
        answers.to_pandas()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
class TestFrames:
    def test_features(self, form: Form, tiny_retriever: Retriever, tiny_world: Any) -> None:
        frame = tiny_world.queries.head(3)
        expected = [a.item_ids for a in tiny_retriever.recommend(features=frame, k=5)]
        found: Any = tiny_retriever.recommend(features=form(frame), k=5)
        assert [answer.item_ids for answer in found] == expected
        assert len(set(map(tuple, expected))) > 1

    def test_a_history(self, form: Form, tiny_retriever: Retriever) -> None:
        events = pl.DataFrame({"item_id": [5, 9, 44], "time": [10.0, 20.0, 1e9]})
        expected = tiny_retriever.recommend(history=events.to_dicts(), k=5)
        found = tiny_retriever.recommend(history=form(events), k=5)
        assert found.scores == pytest.approx(expected.scores)
        several: Any = tiny_retriever.recommend(history=[form(events), form(events.head(1))], k=5)
        assert several[0].scores == pytest.approx(expected.scores)
        assert several[1].scores != pytest.approx(expected.scores, abs=0.01)

    def test_new_items(self, form: Form, tiny_bundle: Path, tiny_world: Any) -> None:
        frame = tiny_world.items.head(2).with_columns(pl.col("item_id") + 10_000)
        retriever = Retriever.open(tiny_bundle)
        assert retriever.upsert_items(form(frame)) == 2
        vectors = retriever.encode_items(features=form(frame))
        assert np.array_equal(retriever.encode_items([10_001, 10_002]), vectors)

    def test_pairs(self, form: Form, tiny_retriever: Retriever) -> None:
        pairs = pl.DataFrame({"user": [4, 5], "item": [9, 9]})
        given = form(pairs)
        given = given if is_frame(given) else pairs.rows()
        assert np.array_equal(tiny_retriever.score(given), tiny_retriever.score([(4, 9), (5, 9)]))


def test_a_row_of_a_pandas_frame_describes_one_query(
    tiny_retriever: Retriever, tiny_world: SyntheticTables
) -> None:
    frame = tiny_world.queries.head(2)
    (expected, _) = tiny_retriever.recommend(features=frame.to_dicts(), k=4)
    found = tiny_retriever.recommend(features=frame.to_pandas().iloc[0], k=4)
    assert found.scores == pytest.approx(expected.scores)


def test_a_time_of_an_event_may_be_a_datetime(tiny_retriever: Retriever) -> None:
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    seconds = [{"item_id": 5, "time": moment.timestamp()}, {"item_id": 9, "time": 2e9}]
    for given in (moment, moment.replace(tzinfo=None)):
        events: list[dict[str, object]] = [
            {"item_id": 5, "time": given},
            {"item_id": 9, "time": 2e9},
        ]
        found = tiny_retriever.recommend(history=events, k=4).scores
        assert found == tiny_retriever.recommend(history=seconds, k=4).scores


class TestAllQueries:
    def test_their_ids_and_vectors(
        self,
        tiny_retriever: Retriever,
        tiny_world: SyntheticTables,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ids = tiny_retriever.query_ids
        assert sorted(map(int, ids)) == sorted(tiny_world.queries["query_id"].to_list())
        monkeypatch.setattr("twotower.serving.retriever._AT_ONCE", 128)
        vectors = tiny_retriever.encode_queries()
        assert vectors.shape == (len(ids), 16)
        assert np.allclose(vectors, tiny_retriever.encode_queries(ids), atol=1e-6)
        assert_series_equal(
            tiny_retriever.recommend_all(1)["query_id"], pl.Series("query_id", ids, strict=False)
        )

    def test_a_private_bundle_has_none(self) -> None:
        class Private(Retriever):
            @property
            def contents(self) -> Any:
                return type("Contents", (), {"is_private": True})()

            @contents.setter
            def contents(self, given: Any) -> None:
                pass

        private = Private.__new__(Private)
        private.path = Path("p")
        with pytest.raises(BundleError, match=r"must hold queries .* written with private=True"):
            private.encode_queries()


class TestPaths:
    def test_a_bundle_is_a_path_an_opened_one_or_a_training(
        self, tiny_trained: Trained, tiny_bundle: Path, tiny_retriever: Retriever
    ) -> None:
        assert Retriever.of(tiny_retriever) is tiny_retriever
        assert Retriever.of(tiny_trained) is tiny_trained.retriever
        assert Retriever.of(str(tiny_bundle)).path == tiny_bundle

    def test_functions_take_a_path(self, tiny_bundle: Path, tmp_path: Path) -> None:
        figures = evaluate_bundle(str(tiny_bundle), (10,), baselines=[])
        assert figures["model"]["ndcg@10"] > 0
        assert len(compare_runs([str(tiny_bundle), tiny_bundle], names=["a", "b"]).runs) == 2
        assert export_npy(tiny_bundle, tmp_path / "npy").num_items == 200

    def test_a_path_without_a_bundle_is_said(self, tmp_path: Path) -> None:
        for ask in (
            evaluate_bundle,
            diagnose_bundle,
            lambda path: write_report(path, tmp_path / "report.html"),
            lambda path: export_npy(path, tmp_path / "npy"),
        ):
            with pytest.raises(BundleError, match="'nowhere' must be a bundle, got no manifest"):
                ask("nowhere")

    def test_tables_of_an_evaluation_may_be_pandas_frames(
        self, tiny_retriever: Retriever, tiny_world: SyntheticTables
    ) -> None:
        test = tiny_world.interactions.tail(40)
        expected = evaluate_bundle(tiny_retriever, (10,), test=test, baselines=[])
        found = evaluate_bundle(tiny_retriever, (10,), test=test.to_pandas(), baselines=[])
        assert found["model"] == expected["model"]


def test_what_is_no_frame_is_refused(tiny_retriever: Retriever) -> None:
    with pytest.raises(ArgumentError, match="or a frame of polars, pandas or pyarrow, got list"):
        tiny_retriever.recommend(features=[1, 2])
