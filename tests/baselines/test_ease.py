"""EASE against a textbook inverse, against ridge regressions, and on worlds whose answer is known."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequences import cases_of, interactions
from twotower.baselines import ease as ease_file
from twotower.baselines.ease import (
    EASE,
    check_size,
    choose_ease,
    num_trained_items,
)
from twotower.config import DataConfig
from twotower.data.dataset import Dataset, Part
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.errors import ConfigError


def naive_scores(
    sequences: list[list[int]],
    num_item_rows: int,
    history: list[int],
    regularization: float,
    half_life: float | None,
    pair_half_life: float | None,
) -> list[float]:
    """The closed form as the paper has it: over all items, in float64, with ``numpy.linalg.inv``."""
    gram = np.zeros((num_item_rows, num_item_rows))
    for items in sequences:
        if pair_half_life is None:
            for j in set(items):
                for i in set(items):
                    gram[j, i] += 1
        else:
            for s, j in enumerate(items):
                for t, i in enumerate(items):
                    if abs(s - t) <= 12 * pair_half_life:
                        gram[j, i] += 0.5 ** (abs(s - t) / pair_half_life)
    inverse = np.linalg.inv(gram + regularization * np.eye(num_item_rows))
    scores = [0.0] * num_item_rows
    for position, j in enumerate(history):
        age = len(history) - 1 - position
        weight = 1.0 if half_life is None else 0.5 ** (age / half_life)
        for i in range(num_item_rows):
            if i != j:
                scores[i] -= weight * inverse[j, i] / inverse[i, i]
    return scores


def test_worked_by_hand() -> None:
    # Two queries, {2, 3} and {2}: G = [[2, 1], [1, 1]], plus 1: [[3, 1], [1, 2]], whose inverse is
    # [[2, -1], [-1, 3]] / 5. From 2 to 3: 1/3. From 3 to 2: 1/2.
    fitted = EASE.fit(interactions([[2, 3], [2]]), 5, regularization=1.0, half_life=1.0)
    scores = fitted.score(cases_of([[2], [3], [2, 3], [2, 2], []]))
    expected: list[list[float]] = [
        [0, 0, 0, 1 / 3, 0],
        [0, 0, 1 / 2, 0, 0],
        [0, 0, 1 / 2, 1 / 6, 0],
        [0, 0, 0, 1 / 2, 0],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)


@given(
    sequences=st.lists(st.lists(st.integers(2, 8), max_size=7), min_size=1, max_size=6),
    regularization=st.sampled_from([0.5, 3.0]),
    half_life=st.sampled_from([None, 0.5, 2.0]),
    pair_half_life=st.sampled_from([None, 0.2, 1.0]),
)
def test_equals_the_closed_form(
    sequences: list[list[int]],
    regularization: float,
    half_life: float | None,
    pair_half_life: float | None,
) -> None:
    fitted = EASE.fit(
        interactions(sequences),
        9,
        regularization=regularization,
        half_life=half_life,
        pair_half_life=pair_half_life,
    )
    expected = [
        naive_scores(sequences, 9, items, regularization, half_life, pair_half_life)
        for items in sequences
    ]
    scores = fitted.score(cases_of(sequences)).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_each_column_is_a_ridge_regression_on_the_other_items() -> None:
    draw = np.random.default_rng(0)
    sequences = [draw.choice(np.arange(2, 14), 5, replace=False).tolist() for _ in range(60)]
    matrix = np.zeros((60, 14))
    for row, items in enumerate(sequences):
        matrix[row, items] = 1
    fitted = EASE.fit(interactions(sequences), 14, regularization=2.0, half_life=None)
    for column, row in enumerate(fitted.item_rows):
        others = np.delete(matrix, row, axis=1)
        ridge = np.linalg.solve(
            others.T @ others + 2.0 * np.eye(13), others.T @ matrix[:, row]
        )  # rows 0 and 1 never occur
        got = np.delete(fitted.weights[:, column], column)
        np.testing.assert_allclose(got, ridge[2:], atol=1e-5)
        assert fitted.weights[column, column] == 0


def test_mirroring_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    train = interactions([draw.integers(2, 30, 12).tolist() for _ in range(40)])
    whole = EASE.fit(train, 30, regularization=2.0, half_life=None).weights
    monkeypatch.setattr(ease_file, "_MIRRORED_ROWS", 5)
    pieces = EASE.fit(train, 30, regularization=2.0, half_life=None).weights
    np.testing.assert_array_equal(pieces, whole)


def test_negatives_and_unknown_items_teach_nothing() -> None:
    plain = EASE.fit(interactions([[2, 3], [4]]), 5, regularization=1.0, half_life=None)
    noisy = interactions([[2, 1, 3, 4], [4, 3]], labels=[1, 1, 1, 0, 1, 0])
    got = EASE.fit(noisy, 5, regularization=1.0, half_life=None)
    np.testing.assert_array_equal(got.weights, plain.weights)
    assert got.item_rows.tolist() == [2, 3, 4]


def test_without_a_training_event_everything_scores_nothing() -> None:
    fitted = EASE.fit(interactions([[]]), 4, regularization=1.0, half_life=None)
    assert fitted.score(cases_of([[2, 3]])).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"regularization": 0.0}, r"regularization must be above 0 and finite, got 0"),
        ({"half_life": 0.0}, r"half_life must be above 0 and finite, or None, got 0"),
        ({"pair_half_life": math.nan}, r"pair_half_life must be above 0 and .* got nan"),
    ],
)
def test_settings_out_of_range(changed: dict[str, float], message: str) -> None:
    values: dict[str, Any] = {"regularization": 1.0, "half_life": None} | changed
    with pytest.raises(ValueError, match=message):
        EASE.fit(interactions([[2, 3]]), 4, **values)


def test_a_regularisation_that_rounding_swallows_is_refused() -> None:
    train = interactions([[2, 3]] * 1_000)
    with pytest.raises(ValueError, match=r"regularization must be above what float32 .* got 1e-08"):
        EASE.fit(train, 4, regularization=1e-8, half_life=None)


@pytest.mark.parametrize(
    ("count", "available", "refusal"),
    [
        (102_000, 8e9, "EASE needs 41.6 GB for 102,000 items, 8.0 GB are available."),
        (102_000, 42e9, None),
        # With 10,000 items several matrices are compared: three at once, 1.2 GB.
        (10_000, 1e9, "EASE needs 1.2 GB for 10,000 items, 1.0 GB are available."),
        (10_000, 1.3e9, None),
    ],
)
def test_memory_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, count: int, available: float, refusal: str | None
) -> None:
    monkeypatch.setattr(ease_file, "num_trained_items", lambda _: count)
    monkeypatch.setattr(ease_file, "available_bytes", lambda: available)
    dataset = walks()
    if refusal is None:
        assert check_size(dataset) == count
    else:
        with pytest.raises(ConfigError) as refused:
            check_size(dataset)
        assert str(refused.value) == refusal


def walks(*, order: Any = "file") -> Dataset:
    """Sequences of short walks round a ring of 60 items: the last item tells the next."""
    draw = np.random.default_rng(0)
    rows = [
        (query, int(item))
        for query in range(150)
        for item in ((np.arange(3) + draw.integers(60, size=(4, 1))).ravel() % 60)
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    return split(prepare(frame, config=DataConfig(order=order, repeats="no")).dataset)


def test_recent_events_and_close_pairs_are_chosen_where_order_matters() -> None:
    chosen = choose_ease(walks())
    assert chosen.half_life is not None
    assert chosen.half_life <= 2.0
    assert chosen.pair_half_life == 5.0


def test_only_training_events_make_the_weights() -> None:
    dataset = walks()
    chosen = choose_ease(dataset)
    again = EASE.fit(
        dataset.part(Part.TRAIN),
        dataset.items.ids.num_rows,
        regularization=chosen.regularization,
        half_life=chosen.half_life,
        pair_half_life=chosen.pair_half_life,
    )
    np.testing.assert_array_equal(again.weights, chosen.weights)
    assert num_trained_items(dataset) == 60


def test_without_order_nothing_is_recent() -> None:
    chosen = choose_ease(walks(order="none"))
    assert (chosen.half_life, chosen.pair_half_life) == (None, None)


def test_without_validation_nothing_is_chosen() -> None:
    dataset = walks()
    parts = np.where(dataset.parts == Part.VALID, Part.TRAIN, dataset.parts)
    chosen = choose_ease(dataset.with_parts(parts, ""))
    assert (chosen.regularization, chosen.half_life, chosen.pair_half_life) == (200.0, 2.0, None)


def test_of_many_items_two_matrices_are_inverted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease_file, "_ALL_TRIED_ITEMS", 59)
    monkeypatch.setattr(ease_file, "_FEW_ITEMS", 40)
    solved, solve = [], ease_file._solved

    def noted(gram: np.ndarray[Any, Any], regularization: float) -> np.ndarray[Any, Any]:
        solved.append((len(gram), regularization))
        return solve(gram, regularization)

    monkeypatch.setattr(ease_file, "_solved", noted)
    chosen = choose_ease(walks())
    assert [size for size, _ in solved] == [40] * 5 + [60] * 2
    assert next(value for size, value in solved if size == 60) == 200.0
    assert len(chosen.item_rows) == 60
    assert chosen.pair_half_life is not None


def test_a_large_catalogue_gets_one_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease_file, "_CHOSEN_ITEMS", 59)
    chosen = choose_ease(walks())
    assert (chosen.regularization, chosen.pair_half_life) == (200.0, None)
    assert chosen.half_life is not None  # chosen all the same
