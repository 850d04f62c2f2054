"""Spectral against a matrix worked by hand, dense decompositions, and a world whose answer is known."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequences import cases_of, interactions
from twotower.baselines import spectral as spectral_file
from twotower.baselines.spectral import Spectral, choose_spectral, is_quick, spectrum_of
from twotower.baselines.validation import Validation
from twotower.config import DataConfig
from twotower.data.dataset import Dataset, Interactions, Part
from twotower.data.preparation import prepare
from twotower.data.splits import split

Matrix = npt.NDArray[np.float64]
PLAIN: dict[str, Any] = {"query_power": 0.0, "item_power": 0.0}


def dense(sequences: list[list[int]], num_item_rows: int) -> Matrix:
    """The 0/1 matrix of queries by items."""
    matrix = np.zeros((len(sequences), num_item_rows))
    for query, items in enumerate(sequences):
        matrix[query, items] = 1
    return matrix


def drawn(seed: int, queries: int, items: int, each: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [
        draw.choice(np.arange(2, items + 2), each, replace=False).tolist() for _ in range(queries)
    ]


def test_worked_by_hand() -> None:
    # Items 2 and 3 come together twice, item 4 alone once. The Gram matrix of 2 and 3 is [[2, 2], [2, 2]],
    # with eigenvalue 4 of (1, 1) / sqrt 2; that of 4 is 1. So s^2 = 4, 1, and with place 1 lambda = 1:
    # shares 4/5 and 1/2. From 2 to 2 and to 3: 1/2 * 4/5. From 4 to 4: 1/2.
    fitted = Spectral.fit(
        interactions([[2, 3], [3, 2], [4]]),
        6,
        **PLAIN,
        width=9,
        popularity_power=0.0,
        place=1,
        half_life=1.0,
    )
    np.testing.assert_allclose(fitted.spectrum.values, [2, 1], atol=1e-6)
    assert fitted.width == 2  # its rank
    scores = fitted.score(cases_of([[2], [4], [4, 2], [5], []]))
    expected: list[list[float]] = [
        [0, 0, 0.4, 0.4, 0, 0],
        [0, 0, 0, 0, 0.5, 0],
        [0, 0, 0.4, 0.4, 0.25, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)


def test_powers_worked_by_hand() -> None:
    # Item 2 in four queries, each of one item: degrees 4 and 1. The matrix is [1, 1, 1, 1] / sqrt 4 = one
    # value of 2 / 2 = 1, and lambda = 1: a share of 1/2. Each event counts 4^-1/2, the item 4^1/4.
    fitted = Spectral.fit(
        interactions([[2]] * 4),
        3,
        width=1,
        query_power=0.5,
        item_power=0.5,
        popularity_power=0.25,
        place=0,
        half_life=None,
    )
    np.testing.assert_allclose(fitted.spectrum.values, [1], atol=1e-6)
    scores = fitted.score(cases_of([[2], [2, 2]]))[:, 2]
    np.testing.assert_allclose(scores, [0.5 * 4**-0.25, 4**-0.25], atol=1e-6)


@given(
    sequences=st.lists(st.lists(st.integers(2, 9), max_size=6), min_size=1, max_size=12),
    query_power=st.sampled_from([0.0, 0.5]),
    item_power=st.sampled_from([0.0, 0.25]),
    popularity_power=st.sampled_from([-0.25, 0.5]),
    place=st.sampled_from([0, 1, 50]),
    half_life=st.sampled_from([None, 2.0]),
)
def test_at_full_width_it_is_a_ridge_regression_on_all_items(
    sequences: list[list[int]],
    query_power: float,
    item_power: float,
    popularity_power: float,
    place: int,
    half_life: float | None,
) -> None:
    fitted = Spectral.fit(
        interactions(sequences),
        10,
        width=10,
        query_power=query_power,
        item_power=item_power,
        popularity_power=popularity_power,
        place=place,
        half_life=half_life,
    )
    matrix = dense(sequences, 10)
    lengths, degrees = matrix.sum(axis=1), matrix.sum(axis=0)

    def power(count: float, exponent: float) -> float:
        return count**exponent if count else 0.0

    scaled = np.array(
        [
            [
                matrix[q, i] * power(lengths[q], -query_power) * power(degrees[i], -item_power)
                for i in range(10)
            ]
            for q in range(len(sequences))
        ]
    )
    values = np.linalg.svd(scaled, compute_uv=False)
    values = values[values > 1e-3 * max(values[0], 1e-9)]
    expected = np.zeros((len(sequences), 10))
    if len(values):
        penalty = values[min(place, len(values) - 1)] ** 2
        gram = scaled.T @ scaled
        ridge = np.linalg.solve(gram + penalty * np.eye(10), gram)
        for case, items in enumerate(sequences):
            for position, h in enumerate(items):
                age = len(items) - 1 - position
                weight = 1.0 if half_life is None else 0.5 ** (age / half_life)
                for j in range(10):
                    expected[case, j] += (
                        weight
                        * power(degrees[h], -item_power)
                        * ridge[h, j]
                        * power(degrees[j], popularity_power)
                    )
    got = fitted.score(cases_of(sequences)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("queries", "items"), [(300, 60), (60, 300)])
def test_the_leading_vectors_are_those_of_a_dense_decomposition(queries: int, items: int) -> None:
    draw = np.random.default_rng(1)
    kinds = draw.integers(6, size=queries)  # six kinds of query: six large values
    sequences = [
        (2 + kind * items // 6 + draw.choice(items // 6, items // 10, replace=False)).tolist()
        for kind in kinds
    ]
    found = spectrum_of(interactions(sequences), items + 2, width=6, **PLAIN)
    _, values, vectors = np.linalg.svd(dense(sequences, items + 2), full_matrices=False)
    np.testing.assert_allclose(found.values, values[:6], rtol=1e-3)
    np.testing.assert_allclose(
        found.vectors @ found.vectors.T, vectors[:6].T @ vectors[:6], atol=2e-3
    )
    assert found.vectors.dtype == found.values.dtype == np.float32


def test_a_narrower_width_is_the_first_columns() -> None:
    fitted = spectrum_of(interactions(drawn(0, 90, 40, 6)), 42, width=20, **PLAIN)
    wide, narrow = (fitted.item_vectors(width, 3, 0.5) for width in (20, 5))
    np.testing.assert_array_equal(narrow, wide[:, :5])
    assert fitted.shares(20, 3)[3] == pytest.approx(0.5)
    assert (np.diff(fitted.shares(20, 3)) <= 0).all()
    assert fitted.shares(20, 99)[-1] == pytest.approx(0.5)  # the last value, where there are fewer


def test_blocks_change_nothing_but_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    train = interactions(drawn(0, 90, 40, 6))
    whole = spectrum_of(train, 42, width=5, **PLAIN)
    monkeypatch.setattr(spectral_file, "_BLOCK_CELLS", 7 * 15)
    pieces = spectrum_of(train, 42, width=5, **PLAIN)
    np.testing.assert_allclose(np.abs(pieces.vectors), np.abs(whole.vectors), atol=1e-4)


def test_equal_events_give_equal_vectors() -> None:
    train = interactions(drawn(0, 90, 40, 6))
    one, other = (spectrum_of(train, 42, width=8, **PLAIN) for _ in range(2))
    np.testing.assert_array_equal(one.vectors, other.vectors)
    np.testing.assert_array_equal(one.values, other.values)


def test_an_item_without_an_event_has_no_vector() -> None:
    found = spectrum_of(interactions(drawn(0, 90, 40, 6)), 50, width=8, **PLAIN)
    assert found.vectors[42:].tolist() == [[0] * 8] * 8
    assert found.degrees[42:].tolist() == [0] * 8


@pytest.mark.parametrize(
    ("sequences", "width"),
    [
        ([[]], 0),  # no event
        ([[2]], 1),
        ([[2, 3, 4]], 1),  # one query
        ([[2], [2], [2]], 1),  # one item
        ([[2, 3], [4, 5]], 2),
    ],
)
def test_the_width_shrinks_to_the_rank(sequences: list[list[int]], width: int) -> None:
    found = spectrum_of(interactions(sequences), 7, width=64, query_power=0.25, item_power=0.25)
    assert found.width == width
    assert found.vectors.shape == (7, width)
    fitted = Spectral(found, found.width, 0.0, 8, None)
    scores = fitted.score(cases_of([[2], [6]]))
    assert scores.shape == (2, 7)
    assert (scores[0, 2] > 0) == (width > 0)
    assert scores[1].tolist() == [0] * 7


def test_negatives_unknown_items_weights_and_repeats_teach_nothing() -> None:
    plain = spectrum_of(interactions([[2, 3], [4, 3]]), 5, width=4, **PLAIN)
    noisy = interactions(
        [[2, 1, 3, 4, 3], [4, 3]], labels=[1, 1, 1, 0, 1, 1, 1], weights=[1, 2, 3, 4, 5, 6, 7]
    )
    got = spectrum_of(noisy, 5, width=4, **PLAIN)
    np.testing.assert_array_equal(got.vectors, plain.vectors)
    assert got.degrees.tolist() == [0, 0, 1, 2, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0}, r"width must be at least 1, got 0"),
        ({"place": -1}, r"place must be at least 0, got -1"),
        ({"half_life": 0.0}, r"half_life must be above 0 and finite, or None, got 0"),
        ({"query_power": -0.5}, r"query_power must be at least 0 and finite, got -0.5"),
        ({"item_power": math.inf}, r"item_power must be at least 0 and finite, got inf"),
        ({"popularity_power": math.nan}, r"popularity_power must be finite, got nan"),
    ],
)
def test_settings_out_of_range(changed: dict[str, float], message: str) -> None:
    values: dict[str, Any] = {
        "width": 2,
        "query_power": 0.5,
        "item_power": 0.5,
        "popularity_power": 0.5,
        "place": 8,
        "half_life": None,
    }
    with pytest.raises(ValueError, match=message):
        Spectral.fit(interactions([[2, 3]]), 4, **(values | changed))


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


def test_the_choice_is_the_best_of_its_neighbours_on_validation() -> None:
    dataset = walks()
    chosen, validation = choose_spectral(dataset), Validation.of(dataset)
    settings = {name: getattr(chosen, name) for name in chosen.SETTINGS}
    assert chosen.half_life is not None
    assert chosen.half_life <= 2.0  # what came last matters most
    assert chosen.width == 60  # no few dimensions hold a ring of walks

    def quality(**changed: Any) -> float:
        train, num_rows = dataset.part(Part.TRAIN), dataset.items.ids.num_rows
        fitted = Spectral.fit(train, num_rows, **(settings | changed))
        return validation.quality(fitted)

    best = quality()
    assert best == pytest.approx(validation.quality(chosen), abs=1e-3)
    for place in (2, 8, 32, 128):
        assert quality(place=place) <= best + 1e-3
    assert quality(half_life=None) < best


@pytest.mark.parametrize(
    ("grid", "values", "setting"),
    [
        ("_ROUNDS", (4, 1), "rounds"),
        ("_POWERS", ((0.25, 0.25), (3.0, 1.0)), "item_power"),
        ("_DAMPINGS", (0.0, 3.0), "popularity_power"),
        ("_PLACES", (2, 7), "place"),
    ],
)
def test_whichever_comes_first_the_better_is_chosen(
    monkeypatch: pytest.MonkeyPatch, grid: str, values: tuple[Any, ...], setting: str
) -> None:
    monkeypatch.setattr(spectral_file, "WIDTHS", (8,))
    found = []
    for tried in (values, values[::-1]):
        monkeypatch.setattr(spectral_file, grid, tried)
        found.append(getattr(choose_spectral(walks()), setting))
    assert found[0] == found[1]


def test_a_choice_is_made_once_for_each_data_set_and_width() -> None:
    dataset = walks()
    chosen, narrow = choose_spectral(dataset), choose_spectral(dataset, 4)
    assert choose_spectral(dataset) is chosen
    assert choose_spectral(dataset, 4) is narrow
    assert narrow.width == 4
    assert choose_spectral(walks()) is not chosen


def test_widths_that_take_long_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral_file, "WIDTHS", (4, 8, 16))
    assert choose_spectral(walks()).width == 16
    monkeypatch.setattr(spectral_file, "is_quick", lambda _, width: width <= 8)
    assert choose_spectral(walks()).width == 8


def test_what_is_quick_shrinks_with_the_catalogue() -> None:
    """Each width holds six matrices of float32: 2 GB of 500,000 items are 166 columns, 10 of them extra."""
    num = 500_000
    rows = np.arange(num, dtype=np.int32)
    train = Interactions(rows, rows, np.arange(num + 1))
    assert is_quick(train, 128)
    assert not is_quick(train, 192)


def test_what_is_quick_shrinks_with_the_events() -> None:
    def events(count: int) -> Interactions:
        rows = np.zeros(count, np.int8).astype(np.int32)
        return Interactions(rows, rows + 2, np.array([0, count], np.int64))

    assert is_quick(events(1_000_000), 512)
    assert not is_quick(events(30_000_000), 512)
    assert is_quick(events(30_000_000), 64)


def test_without_order_nothing_is_recent() -> None:
    assert choose_spectral(walks(order="none")).half_life is None


def test_without_validation_nothing_is_chosen() -> None:
    dataset = walks()
    parts = np.where(dataset.parts == Part.VALID, Part.TRAIN, dataset.parts)
    chosen = choose_spectral(dataset.with_parts(parts, ""))
    assert [getattr(chosen, name) for name in chosen.SETTINGS] == [
        60,
        4,
        0.25,
        0.25,
        0.0,
        8,
        5.0,
    ]
