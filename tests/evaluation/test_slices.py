"""A metric on groups: hand-worked groups, and a naive reference for any ranking and any group."""

import json
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.dataset import Cases, Dataset, EntityTable, Interactions, Part
from twotower.errors import ConfigError
from twotower.evaluation.ranking import Evaluation, evaluate
from twotower.evaluation.slices import Slice, slices, worst
from twotower.histories import Histories
from twotower.vocab import Vocabulary

Event = tuple[int, int, Part]


class Table:
    """Scores looked up by query row."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = torch.tensor(scores)

    def score(self, cases: Cases) -> torch.Tensor:
        best = self.scores[torch.from_numpy(cases.query_rows).long() - 2]
        return torch.cat([torch.zeros(len(best), 2), best], dim=1)


def dataset_of(
    events: list[Event],
    queries: pl.DataFrame,
    items: pl.DataFrame,
    times: list[float] | None = None,
) -> Dataset:
    """Return a data set of events (query, item, part), sorted by query; ids are line numbers."""
    rows = np.array([query + 2 for query, _, _ in events], np.int32)
    return Dataset(
        queries=EntityTable(Vocabulary(queries["q"]), queries, "q"),
        items=EntityTable(Vocabulary(items["i"]), items, "i"),
        interactions=Interactions(
            query_rows=rows,
            item_rows=np.array([item + 2 for _, item, _ in events], np.int32),
            offsets=np.searchsorted(rows, np.arange(len(queries) + 3)).astype(np.int64),
            times=None if times is None else np.array(times),
        ),
        parts=np.array([part for _, _, part in events], np.uint8),
        ordered=True,
        repeats=True,
        event_columns=queries.clear(),
    )


def evaluations(data: Dataset, k: int = 3, **scores: list[list[float]]) -> dict[str, Evaluation]:
    cases = data.cases(Part.TEST)
    num_rows = data.items.ids.num_rows
    return {
        name: evaluate(Table(s), cases, (k,), num_item_rows=num_rows, remove_seen=False)
        for name, s in scores.items()
    }


QUERIES = pl.DataFrame({"q": [0, 1, 2], "city": ["Ulm", "Bonn", "Ulm"]})
ITEMS = pl.DataFrame({"i": [0, 1, 2, 3], "kind": ["a", "a", "b", "b"]})
# Item 0 is in training twice, item 1 once, items 2 and 3 never.
EVENTS: list[Event] = [
    (0, 0, Part.TRAIN),
    (0, 1, Part.TEST),
    (0, 2, Part.TEST),
    (1, 0, Part.TRAIN),
    (1, 1, Part.TRAIN),
    (1, 3, Part.TEST),
    (2, 0, Part.TEST),
]
# Query 0 ranks 2, 0, 1; query 1 ranks 0, 3, 2; query 2 ranks 0, 1, 2.
MODEL = [[2.0, 1.0, 3.0, 0.0], [3.0, 0.0, 1.0, 2.0], [3.0, 2.0, 1.0, 0.0]]
# Everybody gets 0, 1, 2.
OTHER = [[3.0, 2.0, 1.0, 0.0]] * 3


def found(by: list[str] | None = None, metric: str = "mrr@3") -> dict[tuple[str, str], Slice]:
    data = dataset_of(EVENTS, QUERIES, ITEMS)
    groups = slices(evaluations(data, model=MODEL, other=OTHER), data, metric=metric, by=by)
    return {(group.by, group.label): group for group in groups}


class TestByHand:
    def test_the_whole(self) -> None:
        """Reciprocal ranks of the model: 1 (item 2), 1/2, 1; of the other: 1/2, 0, 1."""
        whole = found([])[("all", "all")]
        assert (whole.queries, whole.targets) == (3, 4)
        assert whole.intervals["model"].value == pytest.approx(2.5 / 3)
        assert whole.intervals["other"].value == pytest.approx(1.5 / 3)
        assert whole.differences["other"].value == pytest.approx(1 / 3)
        assert "model" not in whole.differences
        assert whole.reference == pytest.approx(2.5 / 3)

    def test_queries_of_a_column(self) -> None:
        groups = found(["city"])
        ulm, bonn = groups[("query.city", "Ulm")], groups[("query.city", "Bonn")]
        assert (ulm.queries, ulm.targets, ulm.side) == (2, 3, "query")
        assert ulm.intervals["model"].value == 1.0
        assert ulm.intervals["other"].value == 0.75
        assert (bonn.queries, bonn.targets) == (1, 1)
        assert bonn.intervals["model"].value == 0.5
        assert bonn.reference == pytest.approx(2.5 / 3)

    def test_items_of_a_column_keep_their_ranks(self) -> None:
        """Kind a is item 1 of query 0, at rank 3, and item 0 of query 2, at rank 1."""
        groups = found(["item.kind"])
        a, b = groups[("item.kind", "a")], groups[("item.kind", "b")]
        assert (a.queries, a.targets, a.side) == (2, 2, "item")
        assert a.intervals["model"].value == pytest.approx((1 / 3 + 1) / 2)
        assert (b.queries, b.targets) == (2, 2)
        assert b.intervals["model"].value == pytest.approx((1 + 1 / 2) / 2)

    def test_relevant_items_of_a_query_are_those_of_the_group(self) -> None:
        """Recall of query 0 among kind b is 1 of 1, not 1 of 2."""
        b = found(["kind"], "recall@3")[("item.kind", "b")]
        assert b.intervals["other"].value == pytest.approx((1 + 0) / 2)
        assert b.intervals["model"].value == 1.0

    def test_cold_and_warm_items(self) -> None:
        groups = found(["cold_items"])
        assert groups[("cold_items", "cold")].targets == 2  # items 2 and 3
        assert groups[("cold_items", "warm")].targets == 2
        assert groups[("cold_items", "cold")].intervals["model"].value == pytest.approx(0.75)

    def test_without_others_there_are_no_differences(self) -> None:
        data = dataset_of(EVENTS, QUERIES, ITEMS)
        assert slices(evaluations(data, model=MODEL), data, metric="mrr@3")[0].differences == {}

    def test_another_method_may_be_the_one_that_counts(self) -> None:
        data = dataset_of(EVENTS, QUERIES, ITEMS)
        both = evaluations(data, a=MODEL, b=OTHER)
        whole = slices(both, data, metric="mrr@3", model="b", by=[])[0]
        assert whole.differences["a"].value == pytest.approx(-1 / 3)
        assert whole.reference == pytest.approx(0.5)


class TestFurtherMetrics:
    """Means of every other metric that is asked for."""

    @pytest.mark.parametrize("by", [["city", "kind"], None])
    def test_each_is_what_it_would_be_as_the_only_one(self, by: list[str] | None) -> None:
        data = dataset_of(EVENTS, QUERIES, ITEMS)
        both = evaluations(data, model=MODEL, other=OTHER)
        names = ["hit_rate@1", "recall@3", "ndcg@2"]
        some = slices(both, data, metric="mrr@3", further=[*names, "mrr@3"], by=by)
        for name in names:
            alone = slices(both, data, metric=name, by=by)
            for group, own in zip(some, alone, strict=True):
                assert (group.by, group.label) == (own.by, own.label)
                assert set(group.means) == ({"model", "other"} if by else {"model"})
                for method, means in group.means.items():
                    assert set(means) == set(names)  # the main one has an interval already
                    assert means[name] == own.intervals[method].value
        assert json.loads(json.dumps(some[1].as_json()))["means"] == some[1].means

    def test_by_hand(self) -> None:
        """Kind b is item 2 of query 0, at rank 1 (the other: rank 3), and item 3 of query 1, at rank 2."""
        data = dataset_of(EVENTS, QUERIES, ITEMS)
        both = evaluations(data, model=MODEL, other=OTHER)
        groups = slices(both, data, metric="mrr@3", further=["hit_rate@1", "recall@3"], by=["kind"])
        (b,) = (group for group in groups if group.label == "b")
        assert b.means["model"] == {"hit_rate@1": 0.5, "recall@3": 1.0}
        assert b.means["other"] == {"hit_rate@1": 0.0, "recall@3": 0.5}

    def test_one_beyond_what_was_ranked_is_refused(self) -> None:
        data = dataset_of(EVENTS, QUERIES, ITEMS)
        with pytest.raises(ValueError, match="cut-off of at most 3"):
            slices(evaluations(data, model=MODEL), data, metric="mrr@3", further=["recall@4"])


class TestReference:
    """What a group of items is held against."""

    def test_with_one_target_a_query_it_is_the_mean_over_all(self) -> None:
        events = [event for event in EVENTS if event != (0, 2, Part.TEST)]
        data = dataset_of(events, QUERIES, ITEMS)
        groups = slices(evaluations(data, model=MODEL), data, metric="mrr@3", by=["kind"])
        overall = (1 / 3 + 1 / 2 + 1) / 3
        assert [group.reference for group in groups] == pytest.approx([overall] * 3)

    def test_with_several_it_is_of_as_many_drawn_at_random(self) -> None:
        """Every query finds its 4 items at ranks 1 to 4; of two, hit rate at 1 is 1/2 on average.

        Over all the hit rate is 1, and holding the halves against that would call both bad.
        """
        queries = pl.DataFrame({"q": list(range(200))})
        items = pl.DataFrame({"i": [0, 1, 2, 3], "kind": ["a", "a", "b", "b"]})
        events = [(q, i, Part.TEST) for q in range(200) for i in range(4)]
        data = dataset_of(events, queries, items)
        scores = [[4.0, 1.0, 3.0, 2.0] if q % 2 else [1.0, 3.0, 4.0, 2.0] for q in range(200)]
        groups = slices(evaluations(data, 1, model=scores), data, metric="hit_rate@1", by=["kind"])
        whole, a, b = groups
        assert whole.intervals["model"].value == 1.0
        assert a.intervals["model"].value == b.intervals["model"].value == 0.5
        # A query keeps on average half of its items, and one in 16 queries keeps none.
        assert a.reference == pytest.approx(0.5 / (1 - 1 / 16), abs=0.03)


def naive(
    ranked: list[list[int]], targets: list[set[int]], kept: list[set[int]], metric: str, k: int
) -> float:
    """Return a group's mean as nested loops over the kept targets of each query."""
    values = []
    for ranking, wanted, held in zip(ranked, targets, kept, strict=True):
        relevant = wanted & held
        if not relevant:
            continue
        hits = [rank for rank, item in enumerate(ranking[:k], 1) if item in relevant]
        if metric == "ndcg":
            ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
            values.append(sum(1 / math.log2(rank + 1) for rank in hits) / ideal)
        elif metric == "recall":
            values.append(len(hits) / len(relevant))
        else:
            values.append(1 / hits[0] if hits else 0.0)
    return sum(values) / len(values)


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 6),
    metric=st.sampled_from(["ndcg", "recall", "mrr"]),
)
def test_agrees_with_nested_loops(seed: int, k: int, metric: str) -> None:
    rng = np.random.default_rng(seed)
    num_queries, num_items = 6, 7
    targets = [set(rng.choice(num_items, rng.integers(1, 5), replace=False)) for _ in range(6)]
    kinds = rng.choice(["a", "b", "c"], num_items).tolist()
    cities = rng.choice(["u", "v"], num_queries).tolist()
    data = dataset_of(
        [(q, int(i), Part.TEST) for q in range(num_queries) for i in sorted(targets[q])],
        pl.DataFrame({"q": range(num_queries), "city": cities}),
        pl.DataFrame({"i": range(num_items), "kind": kinds}),
    )
    scores = rng.permuted(np.tile(np.arange(num_items), (num_queries, 1)), axis=1)
    ranked = np.argsort(-scores, axis=1).tolist()
    groups = slices(
        evaluations(data, 6, model=scores.astype(float).tolist()),
        data,
        metric=f"{metric}@{k}",
        by=["kind", "city"],
    )
    everything = set(range(num_items))
    for group in groups:
        if group.by == "item.kind":
            one = {i for i in everything if kinds[i] == group.label}
            kept = [one] * num_queries
        elif group.by == "query.city":
            kept = [everything if city == group.label else set() for city in cities]
        else:
            kept = [everything] * num_queries
        expected = naive(ranked, targets, kept, metric, k)
        assert group.intervals["model"].value == pytest.approx(expected)
        assert group.queries == sum(bool(t & h) for t, h in zip(targets, kept, strict=True))
        assert group.targets == sum(len(t & h) for t, h in zip(targets, kept, strict=True))
    labels = {(group.by, group.label) for group in groups}
    assert {("query.city", city) for city in cities} <= labels


class TestRefused:
    def both(self, data: Dataset) -> dict[str, Evaluation]:
        return evaluations(data, model=MODEL, other=OTHER)

    @pytest.fixture
    def data(self) -> Dataset:
        return dataset_of(EVENTS, QUERIES, ITEMS)

    def test_without_the_model(self, data: Dataset) -> None:
        with pytest.raises(ValueError, match="evaluations must hold 'two', got 'model', 'other'"):
            slices(self.both(data), data, metric="mrr@3", model="two")

    @pytest.mark.parametrize("metric", ["auc", "ndcg", "ndcg@0", "wrong@3"])
    def test_a_metric_that_is_none(self, data: Dataset, metric: str) -> None:
        with pytest.raises(ValueError, match=f"metric must be one of .* got '{metric}'"):
            slices(self.both(data), data, metric=metric)

    def test_a_cut_off_beyond_what_was_ranked(self, data: Dataset) -> None:
        with pytest.raises(ValueError, match=r"at most 3, .* got 'ndcg@10'; evaluate with ks"):
            slices(self.both(data), data)

    def test_evaluations_of_other_cases(self, data: Dataset) -> None:
        fewer = evaluations(dataset_of(EVENTS[:-1], QUERIES, ITEMS), other=OTHER)
        with pytest.raises(ValueError, match="same cases, got others for 'other' than for 'model'"):
            slices(self.both(data) | fewer, data, metric="mrr@3")

    def test_a_column_that_does_not_exist(self, data: Dataset) -> None:
        with pytest.raises(ConfigError, match="got 'citty'; did you mean 'city'"):
            slices(self.both(data), data, metric="mrr@3", by=["citty"])


def many(size: int, model: list[float]) -> list[Slice]:
    """Slices of groups of ``size`` queries, in each of which that share of targets is found."""
    queries = pl.DataFrame(
        {"q": range(size * len(model)), "g": sorted("abcdef"[: len(model)] * size)}
    )
    items = pl.DataFrame({"i": [0, 1]})
    data = dataset_of([(q, 0, Part.TEST) for q in range(len(queries))], queries, items)
    scores = [
        [1.0, 0.0] if place < share * size else [0.0, 1.0]
        for share in model
        for place in range(size)
    ]
    return slices(evaluations(data, 1, model=scores), data, metric="hit_rate@1", by=["g"])


class TestWorst:
    def test_those_that_are_surely_below_the_whole_the_worst_first(self) -> None:
        bad = worst(many(100, [0.5, 0.1, 0.9, 0.3]))
        assert [group.label for group in bad] == ["b", "d"]
        assert [group.label for group in worst(many(100, [0.5, 0.1, 0.9, 0.3]), 1)] == ["b"]

    def test_small_ones_prove_nothing(self) -> None:
        groups = many(9, [0.0, 1.0, 1.0, 1.0])
        assert all(group.is_small for group in groups[1:])
        assert worst(groups) == []


class TestWords:
    def test_a_sentence(self) -> None:
        groups = found(["cold_items", "city"])
        cold = groups[("cold_items", "cold")]
        interval = cold.intervals["model"]
        assert cold.sentence() == (
            f"cold items: MRR@3 0.750 ({interval.low:.3f} to {interval.high:.3f}) against "
            f"{cold.reference:.3f} overall, 2 queries"
        )
        assert groups[("query.city", "Bonn")].sentence("other").endswith("overall, 1 query")
        assert groups[("query.city", "Bonn")].name == "query city Bonn"

    def test_json_says_it_without_words(self) -> None:
        groups = found(["activity", "cold_items"])
        read = json.loads(json.dumps(groups[("activity", "1 event")].as_json()))
        assert (read["low"], read["high"], read["unit"]) == (1, 1, "events")
        interval = groups[("activity", "1 event")].intervals["model"]
        assert read["intervals"]["model"] == [interval.value, interval.low, interval.high]
        assert read["small"] is True
        cold = groups[("cold_items", "cold")].as_json()
        assert (cold["by"], cold["label"], cold["unit"]) == ("cold_items", "cold", None)


def test_one_call_cuts_by_all_that_there_is(tiny_retriever: Any) -> None:
    from twotower.evaluation.evaluate_bundle import dataset_of as remembered
    from twotower.evaluation.scorers import ModelScorer

    data = remembered(tiny_retriever)
    scorer = ModelScorer(
        tiny_retriever.encoding,
        tiny_retriever.query_features,
        tiny_retriever.contents.popularity,
    )
    one = evaluate(scorer, data.cases(Part.TEST), (10,), num_item_rows=data.items.ids.num_rows)
    groups = slices({"model": one}, data)
    assert groups[0].by == "all"
    kinds = {group.by for group in groups}
    assert {"item_popularity", "time"} <= kinds
    assert any(by.startswith("item.") for by in kinds)
    assert groups[0].intervals["model"].value == pytest.approx(one.mean()["ndcg@10"])
    for by in kinds - {"all"}:
        parts = [group for group in groups if group.by == by]
        assert len(parts) > 1
        if by in ("time", "activity"):  # every query in exactly one
            assert sum(group.queries for group in parts) == len(one.cases)


def test_history_lengths_are_those_of_the_cases() -> None:
    """Cases may come from elsewhere than a data set, with histories of their own."""
    data = dataset_of(EVENTS, QUERIES, ITEMS)
    cases = data.cases(Part.TEST)
    longer = Cases(
        cases.query_rows,
        Histories.of([np.array([2] * n, np.int32) for n in (0, 3, 3)]),
        cases.targets,
    )
    one = evaluate(Table(MODEL), longer, (3,), num_item_rows=6, remove_seen=False)
    groups = slices({"model": one}, data, metric="mrr@3", by=["history_length"])
    assert [(g.label, g.queries) for g in groups[1:]] == [("0 events", 1), ("3 events", 2)]
