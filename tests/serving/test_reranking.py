"""Answers by rules are those of a naive reference, whatever is combined."""

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given

import rule_reference
from rule_reference import COLUMNS, FILTERS, values_of
from twotower import Boost, Cap, Diversify, Explore, FilterError, recipe, train
from twotower.serving.retriever import Retriever

QUERIES: tuple[Any, ...] = (5, 7, 120, "nobody")


@pytest.fixture(scope="module")
def retriever(tiny_retriever: Retriever) -> Retriever:
    """The tiny world's, its items with lists and with missing values."""
    contents = tiny_retriever.contents
    frame = rule_reference.with_columns(contents.items.frame)
    return Retriever(replace(contents, items=replace(contents.items, frame=frame)))


@pytest.fixture
def own(retriever: Retriever) -> Retriever:
    """One of the test's own, which it may write to."""
    return Retriever(retriever.contents)


def put(retriever: Retriever, lines: list[dict[str, Any]]) -> None:
    """Put items in, with columns that the model does not read."""
    with pytest.warns(UserWarning, match="got 'colours', 'maker'"):
        retriever.upsert_items(lines)


boosts = st.builds(Boost, st.sampled_from(list(FILTERS)), st.sampled_from([-3, -0.4, 0.3, 1.1, 50]))
caps = st.builds(Cap, st.sampled_from(COLUMNS), st.integers(1, 4))
rules_of_order = st.tuples(
    st.lists(boosts, max_size=3),
    st.lists(caps, max_size=2, unique_by=lambda cap: cap.column),
    st.lists(st.builds(Diversify, st.sampled_from([0.0, 0.2, 0.5, 1.0])), max_size=1),
).map(lambda parts: [rule for part in parts for rule in part])
options_of = st.fixed_dictionaries(
    {},
    optional={
        "filter": st.sampled_from(list(FILTERS)),
        "exclude_seen": st.booleans(),
        "among": st.just(list(range(1, 160, 2))),
        "without": st.just(list(range(1, 60))),
    },
)


@given(
    st.sampled_from(QUERIES),
    st.sampled_from([1, 3, 10, 40]),
    rules_of_order.flatmap(st.permutations),
    options_of,
)
def test_the_order_is_that_of_the_reference(
    retriever: Retriever, query: Any, k: int, rules: list[Any], options: dict[str, Any]
) -> None:
    found = retriever.recommend(query, k=k, rules=rules, **options)
    assert found.item_ids == rule_reference.answer(retriever, query, k, rules, **options)
    everything = retriever.recommend(query, k=10**6, exclude_seen=False)
    scores = dict(zip(everything.item_ids, everything.scores, strict=True))
    np.testing.assert_allclose(found.scores, [scores[i] for i in found.item_ids], atol=1e-5)
    assert found.explored is None
    assert found.basis == everything.basis


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("query", QUERIES)
def test_what_a_pool_lacks_the_next_one_has(
    retriever: Retriever, query: Any, weight: float
) -> None:
    in_order = retriever.recommend(query, k=200, exclude_seen=False).item_ids
    # Three values are all that the first pool has; further on there are others, two items of each.
    shelves = {
        item: place % 3 if place < 130 else place // 2 for place, item in enumerate(in_order)
    }
    contents = retriever.contents
    frame = contents.items.frame.with_columns(
        shelf=pl.Series([shelves[item] for item in contents.items.frame["item_id"]])
    )
    sorted_out = Retriever(replace(contents, items=replace(contents.items, frame=frame)))
    without = [item for item in in_order if shelves[item] in (66, 70)]
    assert len(without) == 4
    rules: list[Any] = [Cap("shelf", 1), Diversify(weight)]
    found = sorted_out.recommend(query, k=10, rules=rules, without=without)
    assert found.item_ids == rule_reference.answer(sorted_out, query, 10, rules, without=without)
    assert len(found) == 10
    assert not set(without) & set(found.item_ids)
    assert sum(shelves[item] > 2 for item in found.item_ids) == 7
    explore = Explore(0.3, 1, "item_id > 0")
    mixed = sorted_out.recommend(query, k=10, rules=[*rules, explore], without=without)
    assert mixed.explored
    assert len({shelves[item] for item in mixed.item_ids}) == len(mixed) == 10


@given(rules_of_order, st.sampled_from([0.0, 0.1, 0.35, 1.0]), st.integers(0, 99), options_of)
def test_what_explores_takes_places_of_the_rest(
    retriever: Retriever, rules: list[Any], share: float, seed: int, options: dict[str, Any]
) -> None:
    query, k, text = 5, 10, "item_id <= 150"
    explore = Explore(share, seed, text)
    base = retriever.recommend(query, k=k, rules=rules, **options).item_ids
    found = retriever.recommend(query, k=k, rules=[explore, *rules], **options)
    again = retriever.recommend(query, k=k, rules=[*rules, explore], **options)
    assert vars(found) == vars(again)
    assert found.explored is not None
    explored = [item for item in found.item_ids if item in found.explored]
    assert set(explored) == set(found.explored)
    assert len(set(found.item_ids)) == len(found.item_ids)
    may_be = set(retriever.recommend(query, k=10**6, **{**options, "exclude_seen": True}).item_ids)
    candidates = {i for i in may_be - set(base) if i <= 150}
    assert set(explored) <= candidates
    lines = {line["item_id"]: line for line in retriever.items(retriever.item_ids).to_dicts()}
    capped = [rule for rule in rules if isinstance(rule, Cap)]
    for cap in capped:
        counts = Counter(v for i in found.item_ids for v in values_of(lines[i], cap.column))
        assert not counts or max(counts.values()) <= cap.most
    if not capped:
        assert len(found) == len(base)
        rest = [item for item in found.item_ids if item not in explored]
        assert rest == base[: len(rest)]
        wanted = share * len(base)
        bounds = {
            min(int(np.floor(wanted)), len(candidates)),
            min(int(np.ceil(wanted)), len(candidates)),
        }
        assert len(explored) in bounds
        expected = min(wanted, len(candidates)) / max(1, len(candidates))
        if explored and wanted == int(wanted):
            assert list(found.explored.values()) == pytest.approx([expected] * len(explored))


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_an_explored_item_stands_once_and_caps_hold_beside_it(
    retriever: Retriever, weight: float
) -> None:
    few = retriever.recommend(5, k=30).item_ids
    lines = {line["item_id"]: line for line in retriever.items(few).to_dicts()}
    deeper = 0
    for seed in range(60):
        rules: list[Any] = [Cap("tags", 3), Diversify(weight), Explore(0.4, seed, "item_id > 0")]
        base = retriever.recommend(5, k=8, rules=rules[:2], among=few).item_ids
        answer = retriever.recommend(5, k=8, rules=rules, among=few)
        assert answer.explored is not None
        assert len(set(answer.item_ids)) == len(answer)
        counts = Counter(v for item in answer.item_ids for v in values_of(lines[item], "tags"))
        assert max(counts.values()) <= 3
        deeper += any(i not in base and i not in answer.explored for i in answer.item_ids)
    assert deeper  # explored items pushed others out, and what fits took their places


def test_new_items_are_explored_and_places_are_spread(own: Retriever) -> None:
    query, twin = 5, own.contents.items.frame.row(0, named=True)
    unseen = {
        item
        for item, count in zip(own.item_ids, own.contents.popularity[2:].tolist(), strict=True)
        if not count
    }
    assert unseen
    put(own, [{**twin, "item_id": 9000 + n} for n in range(5)])
    gone = unseen.pop()
    own.delete_items([gone])
    unseen |= {9000 + n for n in range(5)}
    known = own.recommend(query, k=10).item_ids
    candidates = unseen - set(known) - set(own.history(query))
    shown: Counter[int | str] = Counter()
    places: Counter[int] = Counter()
    for seed in range(400):
        answer = own.recommend(query, k=10, rules=[Explore(0.1, seed)])
        assert answer.explored is not None
        (item,) = answer.explored
        assert answer.explored[item] == pytest.approx(1 / len(candidates))
        shown[item] += 1
        places[answer.item_ids.index(item)] += 1
        assert [i for i in answer.item_ids if i != item] == known[:9]
    assert set(shown) == candidates
    assert set(places) == set(range(10))
    assert max(places.values()) < 2.2 * min(places.values())


def test_places_are_drawn_evenly(retriever: Retriever) -> None:
    places: Counter[int] = Counter()
    for seed in range(400):
        answer = retriever.recommend(5, k=10, rules=[Explore(0.3, seed, "item_id > 0")])
        places.update(
            p for p, item in enumerate(answer.item_ids) if item in (answer.explored or {})
        )
    assert sum(places.values()) == 1200
    assert all(85 < places[place] < 155 for place in range(10)), places  # 120, and 3.8 deviations


def test_without_a_new_item_nothing_is_explored(retriever: Retriever) -> None:
    full = replace(retriever.contents, popularity=retriever.contents.popularity + 1)
    answer = Retriever(full).recommend(5, rules=[Explore(1.0)])
    assert answer.explored == {}
    assert answer.item_ids == retriever.recommend(5).item_ids


def test_ids_of_any_type_draw_alike_and_others_differ(retriever: Retriever) -> None:
    rules: list[Any] = [Explore(0.5, filter="item_id > 0")]
    assert (
        retriever.recommend(5, rules=rules).item_ids
        == retriever.recommend("5", rules=rules).item_ids
    )
    told = [
        retriever.recommend(history=history, rules=rules) for history in ([1, 2], [1, 2], [2, 1])
    ]
    drawn = [list(answer.explored or {}) for answer in told]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_several_queries_are_answered_as_each_alone(retriever: Retriever) -> None:
    rules: list[Any] = [
        Boost("item_id <= 150", 0.3),
        Cap("category", 2),
        Diversify(0.3),
        Explore(0.2, 4, "item_id > 20"),
    ]
    ids: list[Any] = [5, "nobody", 7, 120, "nobody else"]
    together = retriever.recommend(ids, k=8, rules=rules)
    for query, answer in zip(ids, together, strict=True):
        alone = retriever.recommend(query, k=8, rules=rules)
        assert answer.item_ids == alone.item_ids
        assert answer.explored == alone.explored
        assert answer.basis == alone.basis
        assert answer.scores == pytest.approx(alone.scores, abs=1e-5)
    frame = together.to_polars()
    assert frame.columns[:6] == ["query_id", "rank", "item_id", "score", "basis", "propensity"]
    drawn = frame.filter(pl.col("propensity").is_not_null())
    assert drawn["item_id"].to_list() == [
        i for a in together for i in a.item_ids if i in a.explored
    ]
    assert "propensity" not in retriever.recommend(ids, k=2).to_polars().columns
    everyone = retriever.recommend_all(3, rules=iter(rules))
    assert everyone.filter(query_id=120)["item_id"].to_list() == (
        retriever.recommend(120, k=3, rules=rules).item_ids
    )


def test_a_session_takes_rules(retriever: Retriever) -> None:
    rules: list[Any] = [Cap("category", 1), Explore(0.3, 2, "item_id > 0")]
    session, asked = retriever.session(5), retriever.recommend(5, k=6, rules=rules)
    answer = session.recommend(6, rules=rules)
    assert (answer.item_ids, answer.explored) == (asked.item_ids, asked.explored)


def test_an_item_is_boosted_from_the_last_place(retriever: Retriever) -> None:
    last = retriever.recommend(5, k=200).item_ids[-1]
    boosted = retriever.recommend(5, k=1, rules=[Boost(f"item_id = {last}", 100)])
    assert boosted.item_ids == [last]


def test_what_changes_in_the_catalogue_counts(own: Retriever) -> None:
    rules: list[Any] = [
        Boost("maker is null", 0.7),
        Cap("colours", 2),
        Cap("maker", 1),
        Diversify(0.4),
    ]
    own.recommend(5, rules=rules)  # and all that is kept of it
    frame = own.contents.items.frame
    lines = [{**line, "item_id": 9000 + line["item_id"]} for line in frame.head(30).to_dicts()]
    put(own, [{**line, "maker": 77, "colours": ["red", "violet"]} for line in lines])
    put(own, [{**frame.row(40, named=True), "maker": 77}])
    own.delete_items([*range(60, 90), 9001])
    for query, k in itertools.product(QUERIES, (4, 30)):
        found = own.recommend(query, k=k, rules=rules).item_ids
        assert found == rule_reference.answer(own, query, k, rules)
        assert not {*range(60, 90), 9001} & set(found)


@pytest.fixture(scope="module")
def search(one_thread: None) -> Retriever:
    """Documents that are found by their words, too."""
    pairs = [
        (f"{colour} {thing} {size}", f"{thing} in {colour}, size {size}", colour, thing)
        for colour, thing, size in itertools.product(
            ("red", "blue", "green", "white"), ("shoes", "hat", "coat", "scarf"), range(30, 34)
        )
    ]
    frame = pl.DataFrame(pairs, schema=["query", "document", "colour", "thing"], orient="row")
    quick = ["training.epochs=1", "training.batch_size=32", "training.threads=1", "towers.dim=8"]
    return train(
        frame.select("query", "document"),
        items=frame.select("document", "colour", "thing"),
        config=recipe("search").with_settings(quick),
        baselines=[],
    ).retriever


def test_words_in_common_go_with_rules(search: Retriever) -> None:
    queries = ["red shoes 31", "nothing of this", "white scarf", "xyzzy"]
    rules: list[Any] = [
        Boost("colour = 'blue'", 1.5),
        Cap("thing", 2),
        Explore(0.5, 3, "colour = 'green'"),
    ]
    together = search.recommend(queries, k=6, words=0.5, rules=rules, exclude_seen=True)
    for query, answer in zip(queries, together, strict=True):
        everything = search.recommend(query, k=100, words=0.5, exclude_seen=False)
        scores = dict(zip(everything.item_ids, everything.scores, strict=True))
        seen = set(search.history(query))
        deviation = np.std(np.array(everything.scores, np.float64))
        lines = {line["document"]: line for line in search.items(search.item_ids).to_dicts()}
        left = [i for i in search.item_ids if i not in seen]
        left.sort(key=lambda i: -(scores[i] + 1.5 * deviation * (lines[i]["colour"] == "blue")))
        explored = [i for i in answer.item_ids if i in (answer.explored or {})]
        base: list[Any] = []
        for item in left:
            alike = [i for i in base if lines[i]["thing"] == lines[item]["thing"]]
            base += [item] if len(alike) < 2 else []
        assert explored
        assert all(lines[i]["colour"] == "green" and i not in base[:6] for i in explored)
        expected: list[Any] = []
        for item in left:
            alike = [i for i in expected + explored if lines[i]["thing"] == lines[item]["thing"]]
            if len(alike) < 2 and item not in explored and len(expected + explored) < 6:
                expected.append(item)
        assert [i for i in answer.item_ids if i not in explored] == expected
        assert answer.scores == pytest.approx([scores[i] for i in answer.item_ids], abs=1e-5)
        assert answer.basis == everything.basis


WRONG: list[tuple[Any, type[Exception], str]] = [
    (
        Cap("categry", 1),
        ValueError,
        "got 'categry'; did you mean 'category'. They are item_id, title",
    ),
    (Boost("yeer > 3", 1), FilterError, "got 'yeer'"),
    (Boost("maker >", 1), FilterError, r"\^"),
    (Explore(0.1, filter="maker = 'x'"), FilterError, "holds whole numbers"),
    (
        Cap("odd", 1),
        ValueError,
        "must name a column of single values, tags or lists of them, got 'odd'",
    ),
]


@pytest.mark.parametrize(("rule", "error", "message"), WRONG)
def test_what_does_not_fit_the_catalogue_is_refused(
    retriever: Retriever, rule: Any, error: type[Exception], message: str
) -> None:
    contents = retriever.contents
    frame = contents.items.frame.with_columns(odd=pl.struct("maker"))
    odd = Retriever(replace(contents, items=replace(contents.items, frame=frame)))
    with pytest.raises(error, match=message):
        odd.recommend(5, rules=[rule])
