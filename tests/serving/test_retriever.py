"""What a retriever answers to every way of asking, and what it refuses."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import nn

from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import BundleError, ConfigError, FilterError
from twotower.features.schema import Feature
from twotower.index.filter_columns import ReadColumn, read_column
from twotower.index.filters import Filter, parse
from twotower.rules.kinds import Boost, Explore
from twotower.serving.answers import Recommendation, Recommendations
from twotower.serving.arguments import Event, features_of, ids_of, queries_of
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.trained import Trained

UNKNOWN = 99_999


def dot_products(retriever: Retriever, vector: np.ndarray[Any, Any]) -> dict[object, float]:
    """Return item id -> dot product, one item after the other."""
    ids = retriever.contents.items.ids.ids.to_list()
    return {
        item: float(sum(a * b for a, b in zip(vector.tolist(), line.tolist(), strict=True)))
        for item, line in zip(ids, retriever.encode_items(), strict=True)
    }


def popular(retriever: Retriever, without: set[object] | None = None) -> list[Any]:
    counts = dict(
        zip(
            retriever.contents.items.ids.ids.to_list(),
            retriever.contents.popularity[2:].tolist(),
            strict=True,
        )
    )
    left = [item for item in counts if item not in (without or set())]
    return sorted(left, key=lambda item: -counts[item])


def same(a: Recommendation, b: Recommendation) -> bool:
    """Whether two answers are equal up to the noise of another batch size."""
    return (
        a.item_ids == b.item_ids
        and a.basis == b.basis
        and np.allclose(a.scores, b.scores, atol=1e-5)
    )


@pytest.fixture(scope="module")
def retriever(tiny_retriever: Retriever) -> Retriever:
    return tiny_retriever


@pytest.fixture(scope="module")
def strings(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Retriever:
    """A bundle whose ids are strings, without any query feature or time."""
    rng = np.random.default_rng(3)
    events = pl.DataFrame(
        {
            "user": [f"u{q}" for q in np.repeat(np.arange(30), 8)],
            "film": [str(i) for q in range(30) for i in rng.permutation(20)[:8]],
        }
    )
    out = tmp_path_factory.mktemp("strings") / "m"
    config = {
        "data": {"query_column": "user", "item_column": "film"},
        "training": {"epochs": 1},
        "towers": {"dim": 4},
    }
    train(events, out=out, config=config, baselines=[])
    return Retriever.open(out)


class TestById:
    def test_is_the_largest_dot_products_not_seen(self, retriever: Retriever) -> None:
        for query in (1, 57, 300):
            scores = dot_products(retriever, retriever.encode_queries(query)[0])
            seen = set(retriever.history(query))
            expected = sorted((i for i in scores if i not in seen), key=lambda i: -scores[i])[:20]
            answer = retriever.recommend(query, k=20)
            assert answer.item_ids == expected
            assert answer.scores == pytest.approx([scores[i] for i in expected], abs=1e-5)
            assert answer.basis == "model"
            assert answer.query_id == query
            assert len(answer) == 20

    def test_seen_items_on_wish(self, retriever: Retriever) -> None:
        seen = set(retriever.history(3))
        assert len(seen) == 11
        with_seen = retriever.recommend(3, k=200, exclude_seen=False)
        without = retriever.recommend(3, k=200)
        assert len(with_seen) == 200
        assert seen.isdisjoint(without.item_ids)
        assert [i for i in with_seen.item_ids if i not in seen] == without.item_ids

    def test_repeats_of_the_data_decide_the_default(self, retriever: Retriever) -> None:
        repeating = Retriever(replace(retriever.contents, repeats=True))
        seen = set(retriever.history(3))
        assert seen <= set(repeating.recommend(3, k=200).item_ids)
        assert seen.isdisjoint(repeating.recommend(3, k=200, exclude_seen=True).item_ids)

    @pytest.mark.parametrize("k", [200, 10**6, 10**15])
    def test_k_above_what_exists(self, retriever: Retriever, k: int) -> None:
        answer = retriever.recommend(3, k=k)
        assert len(answer) == 200 - 11
        assert len(set(answer.item_ids)) == 200 - 11
        assert np.isfinite(answer.scores).all()
        assert len(retriever.recommend(UNKNOWN, k=k)) == 200
        assert len(retriever.similar_items(3, k=k)) == 199

    @pytest.mark.parametrize("k", [0, -1])
    def test_k_below_one(self, retriever: Retriever, k: int) -> None:
        for ask in (retriever.recommend, retriever.similar_items):
            with pytest.raises(ValueError, match=rf"k must be at least 1, got {k}\."):
                ask(3, k=k)
        with pytest.raises(ValueError, match=rf"k must be at least 1, got {k}\."):
            retriever.recommend_all(k=k)

    @pytest.mark.parametrize(
        "same_id", ["7", np.int32(7), np.int64(7), np.uint8(7), 7.0, np.str_("7"), torch.tensor(7)]
    )
    def test_other_forms_of_an_id(self, retriever: Retriever, same_id: Any) -> None:
        answer = retriever.recommend(same_id, k=5)
        assert answer.item_ids == retriever.recommend(7, k=5).item_ids
        assert answer.basis == "model"
        assert retriever.history(same_id) == retriever.history(7)
        assert retriever.similar_items(same_id).item_ids == retriever.similar_items(7).item_ids
        assert (retriever.encode_items([same_id]) == retriever.encode_items([7])).all()
        assert retriever.score([(same_id, same_id)]) == retriever.score([(7, 7)])
        assert isinstance(answer.query_id, (int, float, str))
        assert type(answer.item_ids[0]) is int

    def test_strings_of_digits_are_ids_too(self, strings: Retriever) -> None:
        assert strings.similar_items(7).item_ids == strings.similar_items("7").item_ids
        assert type(strings.similar_items(7).item_ids[0]) is str
        ids: list[Any] = [4, "5", np.int64(6)]
        among = strings.recommend("u3", k=9, among=ids, exclude_seen=False)
        assert sorted(among.item_ids) == ["4", "5", "6"]
        assert strings.recommend("u3", history=[4, 5]).item_ids == (
            strings.recommend("u3", history=["4", "5"]).item_ids
        )

    def test_an_id_of_padding_is_not_a_row(self, retriever: Retriever) -> None:
        for no_id in (0, -1, "", "x", 2**40):
            assert retriever.recommend(no_id).basis == "popularity"
            with pytest.raises(ValueError, match=re.escape(f"catalogue, got {no_id!r}.")):
                retriever.similar_items(no_id)


class TestUnknown:
    def test_gets_what_is_popular_and_is_told(self, retriever: Retriever) -> None:
        answer = retriever.recommend(UNKNOWN, k=200)
        assert answer.basis == "popularity"
        assert answer.item_ids == popular(retriever)
        assert answer.scores == sorted(answer.scores, reverse=True)
        assert sum(answer.scores) == 300 * 10  # one a training event

    def test_is_popular_under_filters_too(self, retriever: Retriever) -> None:
        best = popular(retriever)
        answer = retriever.recommend(UNKNOWN, k=3, without=best[:2], among=best[:4])
        assert answer.item_ids == best[2:4]
        assert answer.basis == "popularity"

    def test_a_history_of_unknown_items_says_nothing(self, retriever: Retriever) -> None:
        unknown: list[int | str] = [UNKNOWN, "x"]
        assert retriever.recommend(history=unknown).basis == "popularity"
        assert retriever.recommend(history=[]).basis == "popularity"
        mixed = retriever.recommend(history=[*unknown, 5], k=4)
        assert same(mixed, retriever.recommend(history=[5], k=4))

    def test_features_that_say_nothing(self, retriever: Retriever) -> None:
        for features in (
            {},
            {"segment": None},
            {"segment": "never seen"},
            {"signal": float("nan")},
            {"signal": float("inf")},
            {"signal": "not a number"},
        ):
            assert retriever.recommend(features=features).basis == "popularity", features
        with pytest.warns(UserWarning, match="got 'no such column'; it knows"):
            answer = retriever.recommend(features={"no such column": 3})
        assert answer.basis == "popularity"

    def test_one_in_a_batch_does_not_touch_the_others(self, retriever: Retriever) -> None:
        answers = retriever.recommend([4, UNKNOWN, 5], k=6)
        assert [a.basis for a in answers] == ["model", "popularity", "model"]
        assert same(answers[0], retriever.recommend(4, k=6))
        assert same(answers[1], retriever.recommend(UNKNOWN, k=6))
        assert same(answers[2], retriever.recommend(5, k=6))

    def test_an_id_beside_features_or_history(self, retriever: Retriever) -> None:
        by_features = retriever.recommend(UNKNOWN, features={"segment": "segment-1"}, k=6)
        assert by_features.basis == "model"
        assert by_features.query_id == UNKNOWN
        assert same(by_features, retriever.recommend(features={"segment": "segment-1"}, k=6))
        by_history = retriever.recommend(UNKNOWN, history=[5, 6], k=6)
        assert by_history.basis == "model"
        assert same(by_history, retriever.recommend(history=[5, 6], k=6))


class TestByFeaturesAndHistory:
    def test_features_and_history_of_a_query_are_the_query(
        self, retriever: Retriever, tiny_world: SyntheticTables
    ) -> None:
        line = tiny_world.queries.row(11, named=True)
        query = line.pop("query_id")
        own = tiny_world.interactions.filter(query_id=query).sort("timestamp")
        events = [
            {"item_id": item, "time": time}
            for item, time in own.select("item_id", "timestamp").head(-1).iter_rows()
        ]
        assert [event["item_id"] for event in events] == retriever.history(query)
        described = retriever.recommend(features=line, history=events, k=9)
        assert described.query_id is None
        assert same(described, retriever.recommend(query, k=9))

    def test_what_is_given_wins_over_what_is_known(self, retriever: Retriever) -> None:
        stored = retriever.encode_queries(4)
        line = retriever.contents.queries.frame.row(3, named=True)
        other = retriever.encode_queries(4, features={"segment": "segment-0", "signal": 3.0})
        assert not np.allclose(stored, other)
        other = retriever.encode_queries(4, history=[1, 2])
        assert not np.allclose(stored, other)
        for given in ({"segment": line["segment"]}, {"signal": line["signal"]}, line, {}):
            assert np.allclose(retriever.encode_queries(4, features=given), stored, atol=1e-6)

    def test_a_null_that_is_given_is_given(self, retriever: Retriever) -> None:
        stored = retriever.encode_queries(4)
        assert not np.allclose(retriever.encode_queries(4, features={"segment": None}), stored)

    def test_given_items_are_the_seen_ones(self, retriever: Retriever) -> None:
        answer = retriever.recommend(4, history=[5, 6], k=200)
        assert {5, 6}.isdisjoint(answer.item_ids)
        assert set(retriever.history(4)) - {5, 6} <= set(answer.item_ids)
        assert len(answer) == 198
        assert len(retriever.recommend(4, history=[5, 5, 5], k=200)) == 199

    def test_order_of_a_history_matters(self, retriever: Retriever) -> None:
        a = retriever.encode_queries(history=[1, 2, 3, 4])
        b = retriever.encode_queries(history=[4, 3, 2, 1])
        assert not np.allclose(a, b)

    def test_only_the_most_recent_events_are_read(self, retriever: Retriever) -> None:
        length = retriever.contents.config.towers.events_read
        recent = [1 + i % 100 for i in range(length)]
        a = retriever.encode_queries(history=recent)
        b = retriever.encode_queries(history=[150, 151, 152, *recent])
        assert np.array_equal(a, b)
        answer = retriever.recommend(history=[150, 151, 152, *recent], k=200)
        assert {150, 151, 152}.isdisjoint(answer.item_ids)  # what was seen is all that was given

    @pytest.mark.parametrize(
        "lines",
        [
            [{"segment": "segment-1"}, {"signal": 0.5}, {}],
            pl.DataFrame({"segment": ["segment-1", None, None], "signal": [None, 0.5, None]}),
        ],
        ids=["mappings", "frame"],
    )
    def test_lines_of_features(self, retriever: Retriever, lines: Any) -> None:
        answers = retriever.recommend(features=lines, k=5)
        assert [a.basis for a in answers] == ["model", "model", "popularity"]
        assert same(answers[0], retriever.recommend(features={"segment": "segment-1"}, k=5))
        assert same(answers[1], retriever.recommend(features={"signal": 0.5}, k=5))

    def test_column_types_may_change_on_the_way(self, retriever: Retriever) -> None:
        plain = retriever.encode_queries(features={"signal": 0.5})
        for value in ("0.5", np.float64(0.5), np.float32(0.5)):
            assert np.array_equal(retriever.encode_queries(features={"signal": value}), plain)
        ints = retriever.encode_queries(features=pl.DataFrame({"signal": [2]}))
        assert np.array_equal(ints, retriever.encode_queries(features={"signal": 2.0}))

    def test_columns_that_are_not_of_the_model(self, retriever: Retriever) -> None:
        plain = retriever.encode_queries(features={"signal": 0.5})
        more = {"signal": 0.5, "": 1, "类别": "x", "nested": {"a": [1]}}
        with pytest.warns(UserWarning, match="got '', '类别', 'nested'; it knows 'query_id'"):
            assert np.array_equal(retriever.encode_queries(features=more), plain)
        with pytest.raises(ValueError, match=r"got 'signl'; did you mean 'signal'\?"):
            retriever.recommend(features={"signl": 0.5}, strict=True)
        with pytest.raises(
            ValueError, match="features must be columns that the bundle knows, got 'x"
        ):
            retriever.encode_items(features={"xyz": 0.5}, strict=True)


class TestBatches:
    def test_equal_single_answers_in_their_order(self, retriever: Retriever) -> None:
        queries = [300, 1, 42, UNKNOWN, 7, 1]
        answers = retriever.recommend(queries, k=30)
        assert isinstance(answers, Recommendations)
        assert [a.query_id for a in answers] == queries
        for query, answer in zip(queries, answers, strict=True):
            assert same(answer, retriever.recommend(query, k=30))

    def test_every_description_at_once(self, retriever: Retriever) -> None:
        ids: list[int | str] = [3, "4", UNKNOWN]
        features: list[dict[str, object]] = [{"signal": 1.0}, {}, {"segment": "segment-2"}]
        histories = [[1, 2], [], [UNKNOWN, 3]]
        answers = retriever.recommend(ids, features=features, history=histories, k=7)
        for place in range(3):
            single = retriever.recommend(
                ids[place], features=features[place], history=histories[place], k=7
            )
            assert same(answers[place], single)

    @pytest.mark.parametrize(
        "form",
        [
            tuple,
            np.array,
            pl.Series,
            pd.Series,
            torch.tensor,
            iter,
            lambda ids: (str(i) for i in ids),
            lambda ids: dict.fromkeys(ids).keys(),
            lambda ids: [ids[0], str(ids[1]), np.int64(ids[2])],
        ],
        # Names of functions hold addresses, which differ between the workers of pytest-xdist.
        ids=[
            "tuple",
            "numpy",
            "polars",
            "pandas",
            "torch",
            "iterator",
            "generator",
            "keys",
            "mixed",
        ],
    )
    def test_forms_of_a_list(self, retriever: Retriever, form: Callable[[list[int]], Any]) -> None:
        ids = [5, 3, 9]
        expected = [a.item_ids for a in retriever.recommend(ids, k=4)]
        assert [a.item_ids for a in retriever.recommend(form(ids), k=4)] == expected
        assert retriever.recommend(history=form(ids), k=4).item_ids == (
            retriever.recommend(history=ids, k=4).item_ids
        )
        found = retriever.recommend(1, k=4, among=form(ids), exclude_seen=False)
        assert sorted(found.item_ids) == [3, 5, 9]
        assert np.array_equal(retriever.encode_items(form(ids)), retriever.encode_items(ids))

    def test_a_range(self, retriever: Retriever) -> None:
        assert [a.query_id for a in retriever.recommend(range(3, 6))] == [3, 4, 5]

    def test_a_list_of_one_is_a_batch(self, retriever: Retriever) -> None:
        for answers in (
            retriever.recommend([3]),
            retriever.recommend(features=[{}]),
            retriever.recommend(history=[[3]]),
            retriever.recommend(history=[[]]),
            retriever.recommend(features=pl.DataFrame({"signal": [1.0]})),
        ):
            assert isinstance(answers, Recommendations)
            assert len(answers) == 1

    def test_empty_lists(self, retriever: Retriever) -> None:
        empties: list[Any] = [[], (), np.array([]), pl.Series([], dtype=pl.Int64)]
        for empty in empties:
            answers = retriever.recommend(empty)
            assert isinstance(answers, Recommendations)
            assert len(answers) == 0
            assert list(answers.to_polars().columns[:5]) == [
                "query_id",
                "rank",
                "item_id",
                "score",
                "basis",
            ]
        assert len(retriever.recommend(features=[])) == 0
        assert len(retriever.recommend(features=pl.DataFrame())) == 0
        assert retriever.recommend(3, among=[]).item_ids == []
        assert len(retriever.recommend(3, without=[])) == 10
        assert retriever.score([]).shape == (0,)
        assert retriever.encode_queries([]).shape == (0, 16)
        assert retriever.encode_items([]).shape == (0, 16)
        assert retriever.encode_items(features=[]).shape == (0, 16)
        assert len(retriever.items([])) == 0

    def test_all_queries(self, retriever: Retriever) -> None:
        frame = retriever.recommend_all(k=3)
        assert frame["query_id"].to_list() == [q for q in range(1, 301) for _ in range(3)]
        for query in (1, 300):
            part = frame.filter(pl.col("query_id") == query)
            assert part["item_id"].to_list() == retriever.recommend(query, k=3).item_ids

    def test_shares_of_all_queries(self, retriever: Retriever) -> None:
        whole = retriever.recommend_all(k=3)
        shares = [retriever.recommend_all(k=3, shard=f"{number}/7") for number in range(1, 8)]
        assert pl.concat(shares).drop("score").equals(whole.drop("score"))
        assert {share["query_id"].n_unique() for share in shares} == {42, 43}
        nothing = retriever.recommend_all(k=3, shard="1/301")
        assert (len(nothing), nothing.schema) == (0, whole.schema)

    def test_more_queries_than_a_chunk(self, retriever: Retriever) -> None:
        ids = [1 + i % 300 for i in range(4_100)]
        vectors = retriever.encode_queries(ids)
        assert vectors.shape == (4_100, 16)
        assert np.allclose(vectors[4_097], retriever.encode_queries(ids[4_097])[0], atol=1e-6)


class TestFilters:
    def test_among_and_without(self, retriever: Retriever) -> None:
        everything = retriever.recommend(8, k=200).item_ids
        among = everything[::3]
        assert retriever.recommend(8, k=200, among=among).item_ids == among
        assert retriever.recommend(8, k=5, among=among).item_ids == among[:5]
        without = everything[:4]
        assert retriever.recommend(8, k=5, without=without).item_ids == everything[4:9]
        both = retriever.recommend(8, k=200, among=among, without=among[:2])
        assert both.item_ids == among[2:]
        assert retriever.recommend(8, among=among, without=among).item_ids == []

    def test_seen_items_among_them_stay_out(self, retriever: Retriever) -> None:
        seen = retriever.history(8)
        assert retriever.recommend(8, among=seen).item_ids == []
        found = retriever.recommend(8, among=seen, exclude_seen=False, k=50).item_ids
        assert sorted(found) == sorted(seen)

    def test_unknown_ids_change_nothing(self, retriever: Retriever) -> None:
        assert retriever.recommend(8, among=[UNKNOWN, "x", 0, -1]).item_ids == []
        plain = retriever.recommend(8).item_ids
        assert retriever.recommend(8, without=[UNKNOWN, "x", 0]).item_ids == plain

    def test_holds_for_every_query_of_a_batch(self, retriever: Retriever) -> None:
        for answer in retriever.recommend([1, UNKNOWN, 3], k=50, among=range(10, 30)):
            assert set(answer.item_ids) <= set(range(10, 30))
            assert len(answer) >= 9


class TestFilterExpressions:
    """Over the items' columns: title, category, signal and tags between bars."""

    def matching(self, retriever: Retriever, **wanted: str) -> set[object]:
        """Item ids by a walk through the table."""
        lines = retriever.contents.items.frame.to_dicts()
        tag, category = wanted.get("tag"), wanted.get("category")
        return {
            line["item_id"]
            for line in lines
            if (tag is None or tag in (line["tags"] or "").split("|"))
            and (category is None or line["category"] == category)
        }

    def test_the_answer_is_the_best_of_those_that_match(self, retriever: Retriever) -> None:
        ranking = retriever.recommend(8, k=200).item_ids
        for text, wanted in (
            ('category = "category-1"', {"category": "category-1"}),
            ('tags has "tag-7"', {"tag": "tag-7"}),
            (
                'tags has "tag-7" AND category="category-4"',
                {"tag": "tag-7", "category": "category-4"},
            ),
        ):
            matching = self.matching(retriever, **wanted)
            assert 0 < len(matching) < 200
            expected = [item for item in ranking if item in matching]
            assert retriever.recommend(8, k=200, filter=text).item_ids == expected
            assert retriever.recommend(8, k=3, filter=text).item_ids == expected[:3]
            answers = retriever.recommend([8, UNKNOWN, 9], k=3, filter=text)
            assert answers[0].item_ids == expected[:3]
            assert [len(answer) for answer in answers] == [3, 3, 3]
            assert all(matching.issuperset(answer.item_ids) for answer in answers)
            assert answers[1].basis == "popularity"

    def test_it_goes_with_among_without_and_seen(self, retriever: Retriever) -> None:
        text = "item_id <= 100"
        seen = retriever.history(8)
        everything = retriever.recommend(8, k=200).item_ids
        low = [item for item in everything if int(item) <= 100]
        assert len(low) == 100 - sum(int(item) <= 100 for item in seen)
        assert retriever.recommend(8, k=200, filter=text).item_ids == low
        assert retriever.recommend(8, filter=text, k=5, without=low[:3]).item_ids == low[3:8]
        assert retriever.recommend(8, filter=text, among=[*low[5:9], 150]).item_ids == low[5:9]
        both = retriever.recommend(8, filter=text, among=low[:9], without=low[:2], k=200)
        assert both.item_ids == low[2:9]
        with_seen = retriever.recommend(8, filter=text, k=200, exclude_seen=False).item_ids
        assert sorted(with_seen) == list(range(1, 101))

    def test_nothing_matches(self, retriever: Retriever) -> None:
        for query in (8, UNKNOWN):
            assert retriever.recommend(query, filter="item_id < 0").item_ids == []
        assert retriever.similar_items(8, filter="signal is null").item_ids == []
        assert len(retriever.recommend_all(filter="item_id < 0")) == 0

    def test_similar_items(self, retriever: Retriever) -> None:
        text = 'category != "category-1"'
        near = retriever.similar_items(5, k=200)
        kept = self.matching(retriever, category="category-1")
        expected = [item for item in near.item_ids if item not in kept]
        found = retriever.similar_items(5, k=200, filter=text)
        assert found.item_ids == expected
        assert len(retriever.similar_items(5, 3, filter=text)) == 3
        alone = retriever.similar_items(5, filter="item_id = 5 or item_id = 6")
        assert alone.item_ids == [6]

    def test_all_queries_and_sessions(self, retriever: Retriever) -> None:
        text = "item_id > 150"
        table = retriever.recommend_all(k=3, filter=text)
        assert len(table) == 900
        assert table["item_id"].min() > 150  # type: ignore[operator]
        own = table.filter(pl.col("query_id") == 8)["item_id"].to_list()
        assert own == retriever.recommend(8, k=3, filter=text).item_ids
        assert retriever.session(8).recommend(3, filter=text).item_ids == own

    def test_a_filter_is_evaluated_once(
        self, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heard: list[str] = []

        def counted(text: str) -> Filter:
            heard.append(text)
            return parse(text)

        monkeypatch.setattr("twotower.serving.allowed.parse", counted)
        fresh = Retriever(retriever.contents)
        for _ in range(3):
            fresh.recommend(8, filter="item_id = 1")
            fresh.similar_items(8, filter="item_id = 1")
            fresh.recommend(8, filter="item_id = 2")
        assert heard == ["item_id = 1", "item_id = 2"]
        for number in range(100, 132):
            fresh.recommend(8, filter=f"item_id = {number}")
        fresh.recommend(8, filter="item_id = 1")  # long ago: it is not remembered for ever
        assert len(heard) == 2 + 32 + 1

    def test_a_column_is_read_once_for_several_filters(
        self, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []

        def counted(raw: pl.Series, feature: Feature | None) -> ReadColumn:
            read.append(raw.name)
            return read_column(raw, feature)

        monkeypatch.setattr("twotower.index.filter_columns.read_column", counted)
        fresh = Retriever(retriever.contents)
        for number in (1, 2, 3):
            fresh.recommend(8, filter=f"item_id != {number}")
        assert read == ["item_id"]

    def test_values_that_exist_nowhere_are_told(self, retriever: Retriever) -> None:
        text = 'category = "Category-1" or item_id = 1'
        note = 'No item has "Category-1" in \'category\'; did you mean "category-1"?'
        asked = retriever.recommend(8, filter=text), *retriever.recommend([8, 9], filter=text)
        asked += (
            retriever.similar_items(8, filter=text),
            retriever.session(8).recommend(filter=text),
        )
        asked += (retriever.recommend(8, rules=[Boost(text, 1.0)]),)
        assert [answer.notes for answer in asked] == [(note,)] * 6
        with pytest.warns(UserWarning, match="No item has"):
            retriever.recommend_all(1, filter=text)
        fine = retriever.recommend(8, filter='category = "category-1"', rules=[Explore(0.1)])
        assert fine.notes == ()

    def test_what_cannot_be_asked(self, retriever: Retriever) -> None:
        for ask in (retriever.recommend, retriever.similar_items):
            with pytest.raises(FilterError, match=r"got 'categry'; did you mean 'category'\?"):
                ask(8, filter='categry = "x"')
            with pytest.raises(FilterError, match="go on with `and` or `or`, got 'tags'"):
                ask(8, filter="item_id = 1 tags")
            with pytest.raises(FilterError, match="hold a condition"):
                ask(8, filter="")
            for no_text in (["item_id = 1"], 5):
                with pytest.raises(FilterError, match="filter must be a string, got"):
                    ask(8, filter=no_text)  # type: ignore[arg-type, call-overload]


class TestUnknownHistories:
    def test_are_told_with_each_answer(self, retriever: Retriever) -> None:
        told: list[list[Event]] = [[1, 2], [1, "x", "y"], ["x", "y"], []]
        whole, part, none, empty = retriever.recommend(history=told, k=2)
        assert (whole.notes, empty.notes) == ((), ())
        assert part.notes == ("2 of the 3 ids of the history are not in the catalogue.",)
        assert none.basis == "popularity"
        assert none.notes == (
            "None of the 2 ids of the history is in the catalogue, so the history says nothing.",
        )

    def test_in_words_for_one(self, retriever: Retriever) -> None:
        (one,) = retriever.recommend(history=["x"]).notes
        assert one.startswith("The one id of the history is not in the catalogue")
        both: list[Event] = [1, "x"]
        (other,) = retriever.recommend(history=both).notes
        assert other == "1 of the 2 ids of the history is not in the catalogue."


class TestScore:
    def test_is_the_dot_product(self, retriever: Retriever) -> None:
        rng = np.random.default_rng(0)
        pairs = [(int(q), int(i)) for q, i in rng.integers(1, 200, (40, 2))]
        scores = retriever.score(pairs)
        assert scores.dtype == np.float32
        for (query, item), score in zip(pairs, scores, strict=True):
            expected = dot_products(retriever, retriever.encode_queries(query)[0])[item]
            assert score == pytest.approx(expected, abs=1e-5)

    def test_is_the_score_of_the_answer(self, retriever: Retriever) -> None:
        answer = retriever.recommend(9, k=25)
        scores = retriever.score((9, item) for item in answer.item_ids)
        assert scores == pytest.approx(answer.scores, abs=1e-5)

    def test_unknown_ids_are_named(self, retriever: Retriever) -> None:
        with pytest.raises(ValueError, match=r"query ids must be known, got 99999\."):
            retriever.score([(1, 1), (UNKNOWN, 1)])
        with pytest.raises(ValueError, match=r"item ids must be in the catalogue, got 'x'\."):
            retriever.score([(1, 1), (1, "x")])


class TestItems:
    def test_similar_is_cosine_without_itself(self, retriever: Retriever) -> None:
        vectors = retriever.encode_items()
        normed = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = retriever.contents.items.ids.ids.to_list()
        for item in (1, 77, 200):
            cosines = normed @ normed[ids.index(item)]
            expected = [ids[p] for p in np.argsort(-cosines, kind="stable") if ids[p] != item]
            answer = retriever.similar_items(item, k=12)
            assert answer.item_ids == expected[:12]
            assert answer.query_id == item
            assert -1.001 < min(answer.scores) <= max(answer.scores) < 1.001

    def test_no_item_is_similar_to_itself(self, retriever: Retriever) -> None:
        for item in range(1, 201):
            assert item not in retriever.similar_items(item, k=200).item_ids

    def test_not_even_a_twin_or_a_zero_vector(self, retriever: Retriever) -> None:
        vectors = retriever.contents.item_vectors.clone()
        vectors[5] = vectors[6]
        vectors[7] = 0.0
        twins = Retriever(replace(retriever.contents, item_vectors=vectors))
        assert twins.similar_items(6, k=1).item_ids == [7]
        assert twins.similar_items(7, k=1).item_ids == [6]
        found = twins.similar_items(8, k=200)
        assert len(found) == 199
        assert np.isfinite(found.scores).all()

    def test_new_items_by_features(self, retriever: Retriever, tiny_world: SyntheticTables) -> None:
        lines = tiny_world.items.head(5).drop("item_id")
        by_frame = retriever.encode_items(features=lines)
        assert by_frame.shape == (5, 16)
        assert np.array_equal(retriever.encode_items(features=lines.to_dicts()), by_frame)
        single = retriever.encode_items(features=lines.row(2, named=True))
        assert np.allclose(single[0], by_frame[2], atol=1e-6)
        assert not np.allclose(by_frame, retriever.encode_items([1, 2, 3, 4, 5]))

    def test_a_known_item_by_features_with_its_id(
        self, retriever: Retriever, tiny_world: SyntheticTables
    ) -> None:
        vectors = retriever.encode_items(features=tiny_world.items)
        assert np.allclose(vectors, retriever.encode_items(), atol=1e-6)

    def test_a_new_item_stands_where_its_kind_stands(self, retriever: Retriever) -> None:
        """Of a category, the mean new item is nearer to that category's items than to others."""
        frame = retriever.contents.items.frame
        hits = 0
        for category in frame["category"].unique().to_list():
            vector = retriever.encode_items(features={"category": category})[0]
            scores = dot_products(retriever, vector)
            own = set(frame.filter(pl.col("category") == category)["item_id"])
            inside = np.mean([scores[i] for i in own])
            hits += bool(inside > np.mean([s for i, s in scores.items() if i not in own]))
        assert hits >= 8

    def test_the_vectors_are_the_callers_own(self, retriever: Retriever) -> None:
        before = retriever.encode_items().copy()
        for given in (retriever.encode_items(), retriever.encode_items([1, 2])):
            given /= 2  # many normalise in place
        assert np.array_equal(retriever.encode_items(), before)
        assert np.array_equal(retriever.encode_items([1, 2]), before[:2])

    def test_both_arguments_are_refused(self, retriever: Retriever) -> None:
        with pytest.raises(ValueError, match="takes item_ids or features, got both"):
            retriever.encode_items([1], features={})

    def test_lines_of_the_table(self, retriever: Retriever) -> None:
        lines = retriever.items([9, 2, 9])
        assert lines["item_id"].to_list() == [9, 2, 9]
        assert lines["title"].to_list() == [f"Synthetic item {i}" for i in (9, 2, 9)]
        assert retriever.item_column == "item_id"
        with pytest.raises(ValueError, match=r"catalogue, got 99999\."):
            retriever.items([1, UNKNOWN])

    def test_history_is_in_order_of_time(
        self, retriever: Retriever, tiny_world: SyntheticTables
    ) -> None:
        events = tiny_world.interactions.filter(pl.col("query_id") == 6).sort("timestamp")
        assert retriever.history(6) == events["item_id"].to_list()[:-1]
        assert retriever.history(UNKNOWN) == []


class TestFrames:
    def test_columns(self, retriever: Retriever) -> None:
        answers = retriever.recommend([4, UNKNOWN], k=2)
        frame = answers.to_polars()
        assert dict(frame.schema) == {
            "query_id": pl.Int64,
            "rank": pl.Int32,
            "item_id": pl.Int64,
            "score": pl.Float32,
            "basis": pl.String,
            "title": pl.String,
            "category": pl.String,
            "signal": pl.Float64,
            "tags": pl.String,
        }
        assert frame["query_id"].to_list() == [4, 4, UNKNOWN, UNKNOWN]
        assert frame["rank"].to_list() == [1, 2, 1, 2]
        assert frame["item_id"].to_list() == answers[0].item_ids + answers[1].item_ids
        assert frame["basis"].to_list() == ["model"] * 2 + ["popularity"] * 2
        assert frame["title"][0] == f"Synthetic item {answers[0].item_ids[0]}"
        assert frame["score"].to_list() == pytest.approx(answers[0].scores + answers[1].scores)

    def test_pandas(self, retriever: Retriever) -> None:
        answers = retriever.recommend([4, UNKNOWN], k=2)
        frame = answers.to_pandas()
        assert isinstance(frame, pd.DataFrame)
        assert list(frame.columns) == answers.to_polars().columns
        assert frame["item_id"].tolist() == answers.to_polars()["item_id"].to_list()

    def test_queries_without_an_id_and_ids_of_two_types(self, retriever: Retriever) -> None:
        nameless = retriever.recommend(features=[{}, {}], k=1).to_polars()
        assert nameless["query_id"].to_list() == [None, None]
        mixed = retriever.recommend([1, "2", "x"], k=1).to_polars()
        assert [str(i) for i in mixed["query_id"]] == ["1", "2", "x"]

    def test_items_with_columns_of_the_answers_names(self, retriever: Retriever) -> None:
        """The answer's own columns win; the table's of the same name are left out."""
        frame = retriever.contents.items.frame.with_columns(
            score=pl.lit(-1), rank=pl.lit(-1), basis=pl.lit("?"), query_id=pl.lit(-1)
        )
        items = replace(retriever.contents.items, frame=frame)
        other = Retriever(replace(retriever.contents, items=items))
        found = other.recommend([4], k=2).to_polars()
        assert found.equals(retriever.recommend([4], k=2).to_polars())

    @pytest.mark.parametrize("column", ["rank", "score", "basis", "query_id"])
    def test_an_item_id_column_of_an_answers_name(self, retriever: Retriever, column: str) -> None:
        contents = retriever.contents
        frame = contents.items.frame.rename({"item_id": column})
        items = replace(contents.items, frame=frame, id_column=column)
        answers = Recommendations(
            tuple(retriever.recommend([4, 5], k=2)), items.frame, items.id_column
        )
        found = answers.to_polars()
        assert found["title"].to_list() == [
            f"Synthetic item {i}" for answer in answers for i in answer.item_ids
        ]
        assert len(found.columns) == 9

    def test_a_list_of_answers(self, retriever: Retriever) -> None:
        answers = retriever.recommend([4, 5, 6])
        assert answers[-1].query_id == 6
        assert [a.query_id for a in answers[:2]] == [4, 5]
        assert len(answers) == 3


class TestRefusals:
    def test_nothing_is_asked(self, retriever: Retriever) -> None:
        with pytest.raises(ValueError, match="needs a query_id, features or a history, got no"):
            retriever.recommend()

    def test_lists_of_unequal_length(self, retriever: Retriever) -> None:
        with pytest.raises(ValueError, match="equal length, got query_id 2, history 1"):
            retriever.recommend([1, 2], history=[[3]])
        with pytest.raises(ValueError, match="equal length, got query_id 1, features 2"):
            retriever.recommend(1, features=[{}, {}])

    def test_a_string_is_no_list(self, retriever: Retriever) -> None:
        """Item ids of one digit exist, so "12" would quietly be two items."""
        asks: list[tuple[str, Callable[[], object]]] = [
            ("history", lambda: retriever.recommend(history="12")),
            ("among", lambda: retriever.recommend(1, among="12")),
            ("without", lambda: retriever.recommend(1, without="12")),
            ("item_ids", lambda: retriever.encode_items("12")),
            ("item_ids", lambda: retriever.items("12")),
        ]
        for name, ask in asks:
            with pytest.raises(ValueError, match=f"{name} must be a list of ids, got '12'; put"):
                ask()
        wrong: Any = 12
        with pytest.raises(ValueError, match="history must be a list of ids, got 12"):
            retriever.recommend(history=wrong)
        half: Any = [[1, 2], 3]
        with pytest.raises(ValueError, match="each history must be a list of ids, got 3"):
            retriever.recommend(history=half)

    def test_features_of_another_form(self, retriever: Retriever) -> None:
        wrong: Any
        for wrong in (np.ones((1, 2)), "signal", [3], ["signal"]):
            with pytest.raises(ValueError, match="features must be a mapping of columns"):
                retriever.recommend(features=wrong)


class TestOpening:
    def test_repr_says_what_it_is(self, retriever: Retriever, tiny_bundle: Path) -> None:
        assert repr(retriever) == f"Retriever('{tiny_bundle}': 300 queries, 200 items, dim 16)"

    def test_in_memory_equals_opened(self, retriever: Retriever, tiny_trained: Trained) -> None:
        frame = tiny_trained.retriever.recommend(list(range(1, 301)), k=20).to_polars()
        assert retriever.recommend(list(range(1, 301)), k=20).to_polars().equals(frame)

    def test_opening_draws_nothing_from_the_callers_generator(self, tiny_bundle: Path) -> None:
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        Retriever.open(tiny_bundle)
        assert torch.equal(torch.rand(3), expected)

    def test_towers_are_not_given_to_a_built_in_bundle(self, tiny_bundle: Path) -> None:
        with pytest.raises(
            BundleError, match=r"query_tower must not be given: the bundle .*/model"
        ):
            Retriever.open(tiny_bundle, query_tower=nn.Linear(3, 16))

    def test_a_device_that_is_not_there(self, tiny_bundle: Path) -> None:
        with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or mps, got 'tpu'"):
            Retriever.open(tiny_bundle, device="tpu")
        assert Retriever.open(tiny_bundle, device="cpu").device.type == "cpu"

    def test_two_at_once_do_not_mix(self, tiny_bundle: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
        a, b = Retriever.open(tiny_bundle), Retriever.open(copy)
        b.encoding.model.requires_grad_(False)
        for parameter in b.encoding.model.parameters():
            parameter.zero_()
        assert a.encode_queries(3).any()
        assert not b.encode_queries(3).any()
        assert Retriever.open(copy).encode_queries(3).any()


class TestArguments:
    def test_what_each_line_gave(self) -> None:
        given = features_of([{"a": 1}, {"b": None}, {}])
        assert {k: v.tolist() for k, v in given.lines_with.items()} == {
            "a": [True, False, False],
            "b": [False, True, False],
        }
        given = features_of(pl.DataFrame({"a": [None, 2]}))
        assert given.lines_with["a"].tolist() == [True, True]

    def test_plain_values(self) -> None:
        ids, given, lists, single, _ = queries_of(np.int64(3), {"a": 1}, [np.int32(4), "5"])
        assert ids == [3]
        assert type(ids[0]) is int
        assert given is not None
        assert given.frame.to_dicts() == [{"a": 1}]
        assert lists == [[4, "5"]]
        assert single

    def test_what_a_line_lacks_is_null(self) -> None:
        assert features_of([{"a": 1}, {"b": "x"}]).frame.to_dicts() == [
            {"a": 1, "b": None},
            {"a": None, "b": "x"},
        ]
        assert len(features_of([{}, {}])) == 2

    def test_a_zero_dimensional_array_is_one_id(self) -> None:
        assert queries_of(np.array(7), None, None)[0] == [7]
        with pytest.raises(ValueError, match="among must be a list of ids"):
            ids_of(np.array(7), what="among")


def test_the_types_say_whether_one_query_is_answered_or_several(retriever: Retriever) -> None:
    """``assert_type`` is checked by mypy; at run time the classes are."""
    one = [
        assert_type(retriever.recommend(4, k=2), Recommendation),
        assert_type(retriever.recommend(history=[1, 2], k=2), Recommendation),
        assert_type(retriever.recommend(features={"signal": 1.0}, k=2), Recommendation),
    ]
    several = [
        assert_type(retriever.recommend([4, 5], k=2), Recommendations),
        assert_type(retriever.recommend(history=[[1, 2], [3]], k=2), Recommendations),
        assert_type(retriever.recommend(features=[{"signal": 1.0}], k=2), Recommendations),
    ]
    assert {type(answer) for answer in one} == {Recommendation}
    assert {type(answer) for answer in several} == {Recommendations}
