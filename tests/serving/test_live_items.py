"""Items that come, change and go: what is answered is what a retriever of just these items would answer."""

import json
import time
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from twotower.cli.recommend import described
from twotower.index.lists import divided
from twotower.index.tuning import tuned
from twotower.serving.arguments import features_of
from twotower.serving.client import Client
from twotower.serving.live_items import LiveIds, lines_of
from twotower.serving.manifest import MANIFEST
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW, Vocabulary

CATEGORIES = ("category-1", "category-2", "category-3")


@pytest.fixture
def retriever(tiny_bundle: Any) -> Retriever:
    """One of the test's own, which it may write to."""
    return Retriever.open(tiny_bundle)


def test_rows_follow_their_ids_through_thousands_of_replacements() -> None:
    """Held against a reference that remembers every row of every id."""
    rng = np.random.default_rng(0)
    ids = LiveIds(Vocabulary(pl.Series("id", [f"item-{number}" for number in range(3_000)])))
    known = {key: [FIRST_ROW + place] for place, key in enumerate(ids.ids.to_list())}
    for _ in range(4):
        keys = [f"item-{number}" for number in rng.permutation(4_000)[:2_000]]
        before = ids
        rows_before = before.newest(np.arange(before.num_rows, dtype=np.int32)).copy()
        ids = ids.with_rows(pl.Series(keys))
        for row, key in enumerate(keys, before.num_rows):
            known.setdefault(key, []).append(row)
        again = before.newest(np.arange(before.num_rows, dtype=np.int32))
        np.testing.assert_array_equal(again, rows_before)
    newest = np.arange(ids.num_rows)
    for rows in known.values():
        newest[rows] = rows[-1]
    np.testing.assert_array_equal(ids.newest(np.arange(ids.num_rows, dtype=np.int32)), newest)
    np.testing.assert_array_equal(ids.rows_of(list(known)), [rows[-1] for rows in known.values()])


def test_replacing_an_item_costs_what_adding_one_costs() -> None:
    """Not a look at every row. Computing time of this thread is measured, whatever else runs."""
    ids = LiveIds(Vocabulary(pl.Series("id", range(200_000))))

    def seconds(first: int) -> float:
        keys = pl.Series(range(first, first + 4_000))
        taken = []
        for _ in range(3):
            started = time.thread_time()
            ids.with_rows(keys)
            taken.append(time.thread_time() - started)
        return min(taken)

    assert seconds(100_000) < 5 * seconds(200_000)


def line(item_id: int, like: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**like, "item_id": item_id, **changes}


def first_line(retriever: Retriever) -> dict[str, Any]:
    return retriever.contents.items.frame.row(0, named=True)


def test_a_new_item_is_found_where_its_twin_is(retriever: Retriever) -> None:
    query = 5
    (best,) = retriever.recommend(query, k=1).item_ids
    twin = retriever.contents.items.frame.filter(item_id=best).row(0, named=True)
    told = line(9001, twin, title="the twin")
    vector = retriever.encode_items(features=[told])[0]
    assert retriever.upsert_items([told]) == 1
    np.testing.assert_array_equal(retriever.encode_items([9001])[0], vector)
    ids = retriever.recommend(query, k=201).item_ids
    assert 9001 in ids
    assert retriever.items([9001])["title"].to_list() == ["the twin"]
    assert retriever.recommend(query, k=201, filter="title = 'the twin'").item_ids == [9001]
    assert retriever.similar_items(9001, k=200).item_ids
    assert 9001 in retriever.similar_items(best, k=200).item_ids
    assert retriever.explain(query, 9001).score == pytest.approx(
        dict(zip(ids, retriever.recommend(query, k=201).scores, strict=True))[9001], rel=1e-4
    )
    assert len(retriever.item_ids) == 201
    assert retriever.encode_items().shape[0] == 201


def test_an_item_that_changes_is_there_once_and_stays_seen(retriever: Retriever) -> None:
    query = 5
    seen = retriever.history(query)[-1]
    shown = retriever.recommend(query, k=1).item_ids[0]
    frame = retriever.contents.items.frame
    for item_id in (seen, shown):
        told = frame.filter(item_id=item_id).row(0, named=True)
        retriever.upsert_items({**told, "title": f"new title of {item_id}"})
    found = retriever.recommend(query, k=200).item_ids
    assert found.count(shown) == 1
    assert seen not in found
    assert retriever.items([seen])["title"].to_list() == [f"new title of {seen}"]
    assert seen in retriever.history(query)
    assert retriever.recommend(query, k=200, filter=f"title = 'new title of {seen}'").item_ids == []
    with_seen = retriever.recommend(query, k=200, exclude_seen=False).item_ids
    assert with_seen.count(seen) == 1
    assert len(with_seen) == 200


def test_an_item_that_goes_is_in_no_answer_and_can_come_back(retriever: Retriever) -> None:
    query = 5
    before = retriever.recommend(query, k=200)
    gone = before.item_ids[0]
    told = retriever.contents.items.frame.filter(item_id=gone).row(0, named=True)
    assert retriever.delete_items([gone, "no such item"]) == 1
    assert retriever.delete_items([gone]) == 0
    assert retriever.recommend(query, k=200).item_ids == before.item_ids[1:]
    for ask in (retriever.similar_items, lambda i: retriever.items([i])):
        with pytest.raises(ValueError, match="must be in the catalogue"):
            ask(gone)
    other = retriever.similar_items(before.item_ids[1], k=199).item_ids
    assert gone not in other
    assert retriever.recommend(history=[gone], k=3).basis == "model"  # what was liked says so still
    assert retriever.recommend("nobody", k=200).item_ids.count(gone) == 0
    retriever.upsert_items([told])
    again = retriever.recommend(query, k=200)
    assert again.item_ids == before.item_ids
    np.testing.assert_allclose(again.scores, before.scores, rtol=1e-5)


def test_a_history_may_hold_a_new_item(retriever: Retriever) -> None:
    told = first_line(retriever)
    retriever.upsert_items([line(9001, told)])
    known = retriever.recommend(history=[9001], k=5)
    assert known.basis == "model"
    assert 9001 not in known.item_ids


BAD: dict[str, tuple[Any, str]] = {
    "no id": ([{"title": "x"}], "must be an id like those .* got None"),
    "a null id": ([{"item_id": None, "title": "x"}], "must be an id like those .* got None"),
    "an id of another kind": ([{"item_id": "abc"}], "must be an id like those .* got 'abc'"),
    "twice": ([{"item_id": 9001}, {"item_id": "9001"}], "distinct within a call, got 9001 twice"),
    "no number": ([{"item_id": 9001, "signal": "dear"}], "signal must hold Float64, got 'dear'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_change_nothing(retriever: Retriever, case: str) -> None:
    lines, message = BAD[case]
    assert "signal" in retriever.contents.items.frame.columns
    before = retriever.recommend(5, k=300).item_ids
    with pytest.raises(ValueError, match=message):
        retriever.upsert_items([{"item_id": 9009, "title": "whole"}, *lines])
    assert retriever.recommend(5, k=300).item_ids == before
    with pytest.raises(ValueError, match="must have the column 'item_id', got title"):
        retriever.upsert_items({"title": "x"})


def test_what_the_bundle_does_not_know_is_told(retriever: Retriever) -> None:
    with pytest.warns(UserWarning, match="got 'colour'.* Nothing reads them"):
        retriever.upsert_items([line(9001, first_line(retriever), colour="red")])
    with pytest.raises(ValueError, match="got 'colour'"):
        retriever.upsert_items([{"item_id": 9002, "colour": "red"}], strict=True)
    with pytest.warns(UserWarning, match="1 of the items have no feature"):
        retriever.upsert_items([{"item_id": 9003}])
    assert retriever.upsert_items([]) == 0


LOSSY: list[tuple[Any, Any]] = [
    (pl.Int64, 1999.9),
    (pl.Int64, True),
    (pl.Int64, "01999"),
    (pl.Int64, "1999.0"),
    (pl.Int64, 9.3e18),
    (pl.Int64, float("nan")),
    (pl.Int8, 300),
    (pl.UInt8, -1),
    (pl.Float64, True),
    (pl.Float64, 2**53 + 1),
    (pl.Float64, "01.5"),
    (pl.Float64, "inf"),
    (pl.Float32, 1e300),
    (pl.Boolean, 1),
    (pl.String, ["a"]),
    (pl.Date, "2020-01-01T10:00:00"),
    (pl.Date, datetime(2020, 1, 1, 10)),
    (pl.Date, 20_000),
    (pl.Datetime("ms"), "2020-01-01T10:00:00.123456"),
    (pl.List(pl.Int64), [1, 2.5]),
    (pl.List(pl.Int64), [1, True]),
    (pl.List(pl.Float32), [0.5, 1e300]),
    (pl.Array(pl.Float32, 2), [0.5]),
]
KEPT: list[tuple[Any, Any, Any]] = [
    (pl.Int64, 1999.0, 1999),
    (pl.Int64, "1999", 1999),
    (pl.UInt8, 255, 255),
    (pl.Float64, 2**53, 2.0**53),
    (pl.Float64, "1.50", 1.5),
    (pl.Float32, 0.5, 0.5),
    (pl.Float32, 0.1, float(np.float32(0.1))),
    (pl.Boolean, True, True),
    (pl.Boolean, "false", False),
    (pl.String, 1.5, "1.5"),
    (pl.String, True, "true"),
    (pl.Date, "2020-01-01", date(2020, 1, 1)),
    (pl.Date, datetime(2020, 1, 1), date(2020, 1, 1)),
    (pl.Datetime("us"), date(2020, 1, 1), datetime(2020, 1, 1)),
    (pl.List(pl.Int64), [1, 2.0, None], [1, 2, None]),
    (pl.List(pl.Int64), [], []),
    (pl.List(pl.String), ["a", 1], ["a", "1"]),
    (pl.Array(pl.Float32, 2), [0.5, 1], [0.5, 1.0]),
]


def fitted(retriever: Retriever, dtype: Any, values: list[Any]) -> list[Any]:
    """Return values as a column of a type holds them, which the tiny world does not have."""
    contents = retriever.contents
    frame = contents.items.frame.with_columns(pl.lit(None, dtype).alias("own"))
    contents = replace(contents, items=replace(contents.items, frame=frame))
    told = [{"item_id": 9001 + place, "own": value} for place, value in enumerate(values)]
    return lines_of(contents, features_of(told))["own"].to_list()


@pytest.mark.parametrize(("dtype", "value"), LOSSY)
def test_a_value_that_its_column_would_change_is_refused(
    tiny_retriever: Retriever, dtype: Any, value: Any
) -> None:
    with pytest.raises(ValueError, match=r"own must hold .*, got "):
        fitted(tiny_retriever, dtype, [value])
    with pytest.raises(ValueError, match=r"own must hold .*, got "):
        fitted(tiny_retriever, dtype, [None, value])


@pytest.mark.parametrize(("dtype", "value", "expected"), KEPT)
def test_a_value_that_its_column_keeps_is_taken_beside_any_other(
    tiny_retriever: Retriever, dtype: Any, value: Any, expected: Any
) -> None:
    assert fitted(tiny_retriever, dtype, [value, None]) == [expected, None]
    others = [(v, e) for other, v, e in KEPT if other == dtype and v != value]
    told = [value, *(v for v, _ in others)]
    assert fitted(tiny_retriever, dtype, told) == [expected, *(e for _, e in others)]


def test_a_true_beside_a_number_stays_a_truth_value(tiny_retriever: Retriever) -> None:
    with pytest.raises(ValueError, match="own must hold Int64, got True"):
        fitted(tiny_retriever, pl.Int64, [1, True])
    with pytest.raises(ValueError, match=r"own must hold String, got \['b'\]"):
        fitted(tiny_retriever, pl.String, ["a", ["b"]])
    assert fitted(tiny_retriever, pl.String, [1, True, "x"]) == ["1", "true", "x"]


def test_what_is_nested_too_deeply_is_refused(tiny_retriever: Retriever) -> None:
    deep: Any = 1
    for depth in range(2000):
        deep = [deep]
        if depth == 30:
            deep_enough = deep
    assert described(json.dumps({"segment": deep_enough})) == {"segment": deep_enough}
    for ask in (
        lambda: tiny_retriever.recommend(features={"segment": deep}),
        lambda: tiny_retriever.upsert_items({"item_id": 9001, "title": deep}),
        lambda: tiny_retriever.recommend(5, among=[deep]),
        lambda: tiny_retriever.recommend(history=[deep]),
        lambda: Client("http://127.0.0.1:9").recommend(history=[{"item_id": 1, "x": deep}]),
        lambda: described(json.dumps({"segment": [[[deep_enough]]]})),
        lambda: described('{"segment": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    ):
        with pytest.raises(ValueError, match="nested at most 32 levels deep, got more"):
            ask()


class Catalogue(RuleBasedStateMachine):
    """Random changes beside a dictionary of what should be there, and an answer beside one by hand."""

    bundle: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.retriever = Retriever.open(self.bundle)
        frame = self.retriever.contents.items.frame
        self.lines: dict[int, dict[str, Any]] = {r["item_id"]: r for r in frame.to_dicts()}
        self.start = list(self.lines.values())
        vectors = self.retriever.encode_items()
        self.vectors = dict(zip(self.retriever.item_ids, vectors, strict=True))

    @rule(
        item_id=st.integers(1, 240), like=st.integers(0, 199), category=st.sampled_from(CATEGORIES)
    )
    def put(self, item_id: int, like: int, category: str) -> None:
        told = line(item_id, self.start[like], category=category)
        self.retriever.upsert_items([told])
        self.lines[item_id] = told
        self.vectors[item_id] = self.retriever.encode_items(features=[told])[0]

    @rule(item_ids=st.lists(st.integers(1, 240), max_size=5))
    def take_out(self, item_ids: list[int]) -> None:
        there = {i for i in item_ids if i in self.lines}
        assert self.retriever.delete_items(item_ids) == len(there)
        for item_id in there:
            del self.lines[item_id], self.vectors[item_id]

    @rule()
    def save_and_open(self) -> None:
        """A bundle that is written now goes on as if nothing had happened, histories as well."""
        before = self.retriever.encode_queries([3, 5, 8])
        with TemporaryDirectory() as folder:
            self.retriever.save(Path(folder) / "model")
            self.retriever = Retriever.open(Path(folder) / "model")
        after = self.retriever.encode_queries([3, 5, 8])
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)

    @precondition(lambda self: self.lines)
    @rule(query=st.integers(1, 300), k=st.integers(1, 30), category=st.sampled_from(CATEGORIES))
    def ask(self, query: int, k: int, category: str) -> None:
        vector = self.retriever.encode_queries(query)[0]
        seen = set(self.retriever.history(query))
        scores = {
            item: float(vector @ self.vectors[item])
            for item, told in self.lines.items()
            if item not in seen and told["category"] == category
        }
        found = self.retriever.recommend(query, k=k, filter=f"category = '{category}'")
        assert len(found) == min(k, len(scores))
        assert len(set(found.item_ids)) == len(found)
        expected = sorted(scores.values(), reverse=True)[:k]
        np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-4)
        for item, score in zip(found.item_ids, found.scores, strict=True):
            assert score == pytest.approx(scores[int(item)], rel=1e-4, abs=1e-4)

    @invariant()
    def items_are_those_that_should_be_there(self) -> None:
        assert sorted(self.retriever.item_ids) == sorted(self.lines)
        assert self.retriever.contents.num_items == len(self.lines)


@pytest.mark.hypothesis
@pytest.mark.filterwarnings("ignore:.*of the items have no feature")
def test_a_catalogue_that_changes_at_random(
    tiny_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Catalogue, "bundle", tiny_bundle)
    monkeypatch.setattr("twotower.index.live_index._TAIL", 10)
    from hypothesis.stateful import run_state_machine_as_test

    few = settings(max_examples=settings().max_examples // 3)  # each is 25 changes
    run_state_machine_as_test(Catalogue, settings=few)


def test_a_saved_catalogue_is_a_bundle_like_any_other(retriever: Retriever, tmp_path: Path) -> None:
    told = first_line(retriever)
    item_id = told["item_id"]
    row = retriever.known_item_rows([item_id])
    popularity = retriever.contents.popularity[row]
    assert popularity > 0
    retriever.save(tmp_path / "same")
    assert json.loads((tmp_path / "same" / MANIFEST).read_bytes())["format_version"] == 1
    taken_out = retriever.item_ids[5]
    retriever.upsert_items([{**told, "category": CATEGORIES[1]}, line(9001, told)])
    retriever.delete_items([taken_out])
    retriever.save(tmp_path / "model")
    opened = Retriever.open(tmp_path / "model")
    assert json.loads((tmp_path / "model" / MANIFEST).read_bytes())["format_version"] == 2
    assert "items_changed" in opened.contents.provenance
    assert sorted(opened.item_ids) == sorted(retriever.item_ids)
    assert opened.known_item_rows([item_id]) == row
    assert opened.contents.popularity[row] == popularity
    assert opened.items([item_id])["category"].to_list() == [CATEGORIES[1]]
    with pytest.raises(ValueError, match="must be in the catalogue"):
        opened.similar_items(taken_out)
    assert opened.upsert_items([line(9002, told)]) == 1  # and it goes on
    assert opened.delete_items([9001, 9002]) == 2


def test_a_saved_catalogue_keeps_the_lists_of_its_index(tiny_bundle: Any, tmp_path: Path) -> None:
    exact = Retriever.open(tiny_bundle)
    vectors = exact.index.item_vectors
    queries = torch.from_numpy(exact.encode_queries(list(range(1, 200))))
    lists = tuned(divided(vectors, 8), vectors, queries, 0.9)
    retriever = Retriever(replace(exact.contents, lists=lists))
    told = first_line(retriever)
    last = retriever.contents.items.frame.row(-1, named=True)
    retriever.upsert_items([{**last, "item_id": told["item_id"]}, line(9001, last)])
    retriever.save(tmp_path / "model")
    opened = Retriever.open(tmp_path / "model")
    assert not opened.index.is_exact
    assert opened.contents.lists is not None
    assert len(opened.contents.lists.list_of) == 201
    like = opened.known_item_rows([told["item_id"], 9001]) - FIRST_ROW
    nearest = torch.cdist(opened.contents.item_vectors[like], lists.centres).argmin(dim=1)
    assert opened.contents.lists.list_of[like].tolist() == nearest.tolist()
    assert opened.recommend(7, k=5).item_ids == retriever.recommend(7, k=5).item_ids


def test_an_id_is_the_same_in_every_form(retriever: Retriever) -> None:
    """Keys that went through JSON or pandas are floats or text; all of them mean the newest row."""
    told = first_line(retriever)
    retriever.upsert_items(line(3, told, title="changed"))
    retriever.upsert_items(line(9001, told, title="new"))
    for changed, new in ((3, 9001), ("3", "9001"), (3.0, 9001.0)):
        assert retriever.items([changed, new])["title"].to_list() == ["changed", "new"]  # type: ignore[list-item]


def test_frames_are_taken_as_they_are(retriever: Retriever) -> None:
    frame = retriever.contents.items.frame.head(3).with_columns(pl.col("item_id") + 9000)
    assert retriever.upsert_items(frame) == 3
    assert len(retriever.item_ids) == 203


def test_dates_are_written_as_json_has_them(retriever: Retriever) -> None:
    table = retriever.contents.items
    frame = table.frame.with_columns(
        day=pl.lit(date(2020, 1, 1)), moment=pl.lit(datetime(2020, 1, 1, tzinfo=UTC))
    )
    contents = replace(retriever.contents, items=replace(table, frame=frame))
    told = {"item_id": 9001, "day": "2024-05-06", "moment": "2024-05-06T07:08:09Z"}
    lines = lines_of(contents, features_of([told]))
    assert lines["day"].to_list() == [date(2024, 5, 6)]
    assert lines["moment"].to_list() == [datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)]
    for name in ("day", "moment"):
        with pytest.raises(ValueError, match=f"{name} must hold Date.*, got 'soon'"):
            lines_of(contents, features_of([{**told, name: "soon"}]))


def test_a_value_that_comes_later_is_no_longer_missed(retriever: Retriever) -> None:
    text = "category = 'new kind' or category = 'newer kind'"
    assert len(retriever.recommend(1, filter=text).notes) == 2
    retriever.upsert_items({"item_id": 9002, "category": "new kind", "signal": 0.5})
    assert retriever.recommend(1, filter=text).notes == (
        "No item has \"newer kind\" in 'category'.",
    )
