"""The baselines against nested loops, numbers worked by hand, and worlds whose answer is known."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequences import cases_of, interactions
from twotower.baselines import item_knn as baselines
from twotower.baselines import matrices
from twotower.baselines.item_knn import ItemKNN, choose_item_knn
from twotower.baselines.popularity import Popularity
from twotower.data.dataset import Dataset, EntityTable, Part
from twotower.evaluation.ranking import Scorer, evaluate
from twotower.vocab import Vocabulary


def naive_similarity(
    sequences: list[list[int]],
    weights: list[list[float]],
    num_item_rows: int,
    neighbours: int | None,
    shrinkage: float,
    pair_half_life: float | None,
) -> list[list[float]]:
    largest: list[dict[int, float]] = []
    for items, of_events in zip(sequences, weights, strict=True):
        found: dict[int, float] = {}
        for row, weight in zip(items, of_events, strict=True):
            found[row] = max(found.get(row, 0.0), weight)
        largest.append(found)
    norms = [
        math.sqrt(sum(found.get(row, 0.0) ** 2 for found in largest))
        for row in range(num_item_rows)
    ]
    similarity = [[0.0] * num_item_rows for _ in range(num_item_rows)]
    for j in range(2, num_item_rows):
        for i in range(2, num_item_rows):
            together = 0.0
            if pair_half_life is None:
                for found in largest:
                    together += found.get(j, 0.0) * found.get(i, 0.0)
            else:
                for items, of_events in zip(sequences, weights, strict=True):
                    for s, first in enumerate(items):
                        for t, second in enumerate(items):
                            distance = abs(s - t)
                            if (first, second) == (j, i) and 0 < distance <= 5 * pair_half_life:
                                closeness = 0.5 ** ((distance - 1) / pair_half_life)
                                together += of_events[s] * of_events[t] * closeness
            if i != j and together > 0:
                similarity[j][i] = together / (norms[j] * norms[i] + shrinkage)
        ranked = sorted(range(num_item_rows), key=lambda i, j=j: (-similarity[j][i], i))  # type: ignore[misc]
        for i in ranked[neighbours if neighbours is not None else num_item_rows :]:
            similarity[j][i] = 0.0
    return similarity


def naive_scores(
    similarity: list[list[float]], history: list[int], half_life: float | None
) -> list[float]:
    scores = [0.0] * len(similarity)
    for position, j in enumerate(history):
        age = len(history) - 1 - position
        weight = 1.0 if half_life is None else 0.5 ** (age / half_life)
        for i in range(len(similarity)):
            scores[i] += similarity[j][i] * weight
    return scores


def test_popularity_counts_positive_events() -> None:
    train = interactions([[2, 3, 2], [4, 2]], labels=[1, 1, 1, 0, 1])
    scores = Popularity.fit(train, 6).score(cases_of([[3], [], []]))
    assert scores.tolist() == [[0, 0, 3, 1, 0, 0]] * 3
    assert scores.dtype.is_floating_point


def test_popularity_adds_weights() -> None:
    train = interactions([[2, 3], [2]], weights=[0.5, 4.0, 2.0])
    assert Popularity.fit(train, 4).counts.tolist() == [0, 0, 2.5, 4.0]


def test_popularity_leaves_ties_and_seen_items_to_the_ranking() -> None:
    train = interactions([[2, 3, 4], [4, 3], [5]])
    result = evaluate(Popularity.fit(train, 6), cases_of([[3, 4]]), (1,), num_item_rows=6)
    assert result.mean()["hit_rate@1"] == 1.0  # 2 and 5 were seen once each: the lower row


def test_item_knn_worked_by_hand() -> None:
    # Columns over three queries: item 2 = (1,1,0), item 3 = (1,1,1), item 4 = (0,1,1).
    train = interactions([[2, 3], [2, 3, 4], [3, 4]])
    knn = ItemKNN.fit(train, 5, neighbours=None, shrinkage=0.0, half_life=1.0)
    scores = knn.score(cases_of([[2, 4], [3]]))
    # similarity(2,3) = similarity(4,3) = 2/sqrt 6 = .8165, similarity(2,4) = 1/2. History 2, 4: the
    # last counts whole, the one before half.
    np.testing.assert_allclose(scores[0].numpy(), [0, 0, 0.5, 1.5 * 0.81650, 0.25], atol=1e-5)
    np.testing.assert_allclose(scores[1].numpy(), [0, 0, 0.81650, 0, 0.81650], atol=1e-5)


def test_shrinkage_worked_by_hand() -> None:
    train = interactions([[2, 3], [2, 3, 4], [3, 4]])
    knn = ItemKNN.fit(train, 5, neighbours=None, shrinkage=2.0, half_life=None)
    np.testing.assert_allclose(knn.similarity.toarray()[2, 4], 1 / (2 + 2))


def test_close_pairs_worked_by_hand() -> None:
    # 2 and 3 stand side by side once and two apart once: 1 + 0.5 over sqrt 2 * sqrt 2.
    train = interactions([[2, 3], [3, 4, 2]])
    knn = ItemKNN.fit(train, 5, neighbours=None, shrinkage=0.0, half_life=None, pair_half_life=1.0)
    np.testing.assert_allclose(knn.similarity.toarray()[2, 3], 1.5 / 2)
    np.testing.assert_allclose(knn.similarity.toarray()[3, 2], 1.5 / 2)


item_sequences = st.lists(st.lists(st.integers(2, 8), max_size=7), min_size=1, max_size=6)


@given(
    sequences=item_sequences,
    neighbours=st.sampled_from([None, 1, 2, 4]),
    shrinkage=st.sampled_from([0.0, 3.0]),
    half_life=st.sampled_from([None, 0.5, 2.0]),
    pair_half_life=st.sampled_from([None, 0.4, 1.0]),
    weighted=st.booleans(),
)
def test_item_knn_equals_nested_loops(
    sequences: list[list[int]],
    neighbours: int | None,
    shrinkage: float,
    half_life: float | None,
    pair_half_life: float | None,
    weighted: bool,
) -> None:
    weights = [[1.0 + (t % 3) * weighted for t in range(len(items))] for items in sequences]
    train = interactions(
        sequences, weights=[w for items in weights for w in items] if weighted else None
    )
    knn = ItemKNN.fit(
        train,
        9,
        neighbours=neighbours,
        shrinkage=shrinkage,
        half_life=half_life,
        pair_half_life=pair_half_life,
    )
    similarity = naive_similarity(sequences, weights, 9, neighbours, shrinkage, pair_half_life)
    np.testing.assert_allclose(knn.similarity.toarray(), similarity, rtol=1e-6)
    expected = [naive_scores(similarity, items, half_life) for items in sequences]
    np.testing.assert_allclose(knn.score(cases_of(sequences)).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("pair_half_life", [None, 2.0])
def test_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch, pair_half_life: float | None
) -> None:
    draw = np.random.default_rng(0)
    train = interactions([draw.integers(2, 30, 12).tolist() for _ in range(40)])

    def similarity() -> Any:
        knn = ItemKNN.fit(
            train,
            30,
            neighbours=6,
            shrinkage=1.0,
            half_life=None,
            pair_half_life=pair_half_life,
        )
        return knn.similarity.toarray().tolist()

    whole = similarity()
    monkeypatch.setattr(matrices, "_DENSE_CELLS", 0)
    np.testing.assert_allclose(similarity(), whole, rtol=1e-6)
    whole = similarity()
    monkeypatch.setattr(matrices, "_BLOCK_ENTRIES", 50)
    assert similarity() == whole


def test_sparse_and_dense_scores_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    sequences = [draw.integers(2, 30, 12).tolist() for _ in range(40)]
    knn = ItemKNN.fit(interactions(sequences), 30, neighbours=9, shrinkage=0.0, half_life=3.0)
    dense = knn.score(cases_of(sequences))
    monkeypatch.setattr(baselines, "_DENSE_BYTES", 0)
    sparse = replace(knn).score(cases_of(sequences))
    np.testing.assert_allclose(sparse.numpy(), dense.numpy(), rtol=1e-6)


def test_negatives_unknown_items_and_other_queries_teach_nothing() -> None:
    settings_ = {"neighbours": None, "shrinkage": 0.0, "half_life": None}
    plain = interactions([[2, 3], [4]])
    noisy = interactions([[2, 1, 3, 4], [4, 3]], labels=[1, 1, 1, 0, 1, 0])
    for pair_half_life in (None, 2.0):
        expected, got = (
            ItemKNN.fit(train, 5, **settings_, pair_half_life=pair_half_life)  # type: ignore[arg-type]
            for train in (plain, noisy)
        )
        np.testing.assert_array_equal(got.similarity.toarray(), expected.similarity.toarray())


def test_narrowed_keeps_the_most_similar() -> None:
    draw = np.random.default_rng(1)
    train = interactions([draw.integers(2, 30, 12).tolist() for _ in range(40)])
    wide = ItemKNN.fit(train, 30, neighbours=None, shrinkage=0.0, half_life=2.0)
    narrow = ItemKNN.fit(train, 30, neighbours=3, shrinkage=0.0, half_life=2.0)
    got = wide.narrowed(3)
    assert (got.neighbours, got.half_life) == (3, 2.0)
    np.testing.assert_array_equal(got.similarity.toarray(), narrow.similarity.toarray())
    assert wide.similarity.nnz > got.similarity.nnz  # the wide one is left as it was


def test_very_long_histories_score_finitely() -> None:
    knn = ItemKNN.fit(
        interactions([[2, 3], [3, 4]]), 5, neighbours=None, shrinkage=0.0, half_life=0.5
    )
    (scores,) = knn.score(cases_of([[3] + [2] * 3000])).numpy()
    np.testing.assert_allclose(scores[3], (1 / math.sqrt(2)) * 4 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"neighbours": 0}, r"neighbours must be at least 1 or None, got 0"),
        ({"shrinkage": -1.0}, r"shrinkage must be at least 0 and finite, got -1"),
        ({"half_life": 0.0}, r"half_life must be above 0 and finite, or None, got 0"),
        ({"half_life": math.nan}, r"half_life must be above 0 and finite, or None, got nan"),
        ({"pair_half_life": -2.0}, r"pair_half_life must be above 0 and .* got -2"),
    ],
)
def test_settings_out_of_range(changed: dict[str, float], message: str) -> None:
    values = {"neighbours": 5, "shrinkage": 0.0, "half_life": None} | changed
    with pytest.raises(ValueError, match=message):
        ItemKNN.fit(interactions([[2, 3]]), 4, **values)  # type: ignore[arg-type]


def held_out(
    sequences: list[list[int]], *, ordered: bool, repeats: bool = False, validation: bool = True
) -> Dataset:
    """Each sequence's last event is test; the one before is validation if there is any."""
    events = interactions([[], [], *sequences])  # two reserved query rows
    parts = np.full(len(events), Part.TRAIN, np.uint8)
    parts[events.offsets[3:] - 1] = Part.TEST
    if validation:
        parts[events.offsets[3:] - 2] = Part.VALID

    def side(count: int, name: str) -> EntityTable:
        ids = Vocabulary(pl.Series(name, range(count), dtype=pl.Int64))
        return EntityTable(ids, pl.DataFrame({name: ids.ids}), name)

    return Dataset(
        queries=side(len(sequences), "query_id"),
        items=side(int(events.item_rows.max()) - 1, "item_id"),
        interactions=events,
        parts=parts,
        ordered=ordered,
        repeats=repeats,
        event_columns=pl.DataFrame(),
    )


def walks() -> list[list[int]]:
    """Sequences of four short walks round a ring of 60 items: the last item tells the next."""
    draw = np.random.default_rng(0)
    return [
        ((np.arange(3) + draw.integers(60, size=(4, 1))).ravel() % 60 + 2).tolist()
        for _ in range(150)
    ]


def test_recent_items_win_where_order_matters() -> None:
    dataset = held_out(walks(), ordered=True)
    knn = choose_item_knn(dataset)
    assert knn.half_life is not None
    assert knn.half_life <= 2.0
    num_item_rows = dataset.items.ids.num_rows

    def ndcg(scorer: Scorer) -> float:
        cases = dataset.cases(Part.TEST)
        return evaluate(scorer, cases, (10,), num_item_rows=num_item_rows).mean()["ndcg@10"]

    popularity = Popularity.fit(dataset.part(Part.TRAIN), num_item_rows)
    assert ndcg(knn) > 1.3 * ndcg(replace(knn, half_life=None)) > 1.3 * ndcg(popularity)


def test_close_pairs_are_chosen_where_they_help() -> None:
    knn = choose_item_knn(held_out(walks(), ordered=True))
    assert knn.pair_half_life is not None


def test_only_training_events_make_similarities() -> None:
    dataset = held_out(walks(), ordered=True)
    chosen = choose_item_knn(dataset)
    again = ItemKNN.fit(
        dataset.part(Part.TRAIN),
        dataset.items.ids.num_rows,
        neighbours=chosen.neighbours,
        shrinkage=chosen.shrinkage,
        half_life=chosen.half_life,
        pair_half_life=chosen.pair_half_life,
    )
    np.testing.assert_array_equal(again.similarity.toarray(), chosen.similarity.toarray())


def test_without_order_nothing_is_recent() -> None:
    knn = choose_item_knn(held_out(walks(), ordered=False))
    assert (knn.half_life, knn.pair_half_life) == (None, None)


@pytest.mark.parametrize(("ordered", "half_life"), [(True, 1.0), (False, None)])
def test_without_validation_nothing_is_chosen(ordered: bool, half_life: float | None) -> None:
    knn = choose_item_knn(held_out(walks(), ordered=ordered, validation=False))
    assert (knn.neighbours, knn.shrinkage, knn.half_life) == (200, 10.0, half_life)


def test_seen_items_count_where_queries_repeat_items() -> None:
    # Four cliques of three items; a query stays in its own, but for two strays at the end of train.
    # Targets stand in the history: with removal nothing is found and nothing can be chosen.
    draw = np.random.default_rng(0)
    sequences = []
    for query in range(60):
        own = 2 + 3 * (query % 4) + draw.integers(3, size=14)
        own[10:12] = 2 + draw.integers(12, size=2)
        sequences.append(own.tolist())
    repeating = choose_item_knn(held_out(sequences, ordered=True, repeats=True))
    assert repeating.half_life is None or repeating.half_life >= 5.0


def test_the_best_of_several_shrinkages_is_that_of_one() -> None:
    train = interactions(walks())
    several = baselines._similarities(train, 62, 9, (10.0, 0.0, 50.0), 2.0)
    for shrinkage, similarity in zip((10.0, 0.0, 50.0), several, strict=True):
        one = ItemKNN.fit(
            train, 62, neighbours=9, shrinkage=shrinkage, half_life=None, pair_half_life=2.0
        )
        np.testing.assert_array_equal(similarity.toarray(), one.similarity.toarray())


def test_a_large_catalogue_keeps_the_first_shrinkage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_ALL_SHRINKAGES_ITEM_ROWS", 10)
    monkeypatch.setattr(baselines, "_SHRINKAGES", (1e9, 0.0))
    assert choose_item_knn(held_out(walks(), ordered=True)).shrinkage == 1e9
