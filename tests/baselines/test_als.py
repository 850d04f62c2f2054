"""ALS against the normal equations, the library's own answers, and an alternation in plain numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from sequences import cases_of, interactions
from twotower.baselines.als import ALS

pytest.importorskip("implicit")


def drawn(seed: int = 0, queries: int = 40, items: int = 20) -> list[list[int]]:
    """Queries of two kinds, each with six items of its own half."""
    draw = np.random.default_rng(seed)
    half = items // 2
    return [
        (2 + half * (query % 2) + draw.choice(half, 6, replace=False)).tolist()
        for query in range(queries)
    ]


def test_scores_solve_the_normal_equations_of_the_history() -> None:
    fitted = ALS.fit(interactions(drawn()), 22, factors=4, regularization=0.3, alpha=5.0)
    histories = [[2, 5, 7], [13], [4, 4, 15], []]
    scores = fitted.score(cases_of(histories)).numpy()
    items = np.asarray(fitted.model.item_factors, np.float64)  # (20, 4): rows 2 to 21
    for got, history in zip(scores, histories, strict=True):
        left, right = 0.3 * np.eye(4), np.zeros(4)
        for row in range(2, 22):
            count = history.count(row)
            confidence = 5.0 * count if count else 1.0
            left += confidence * np.outer(items[row - 2], items[row - 2])
            right += confidence * (count > 0) * items[row - 2]
        expected = items @ np.linalg.solve(left, right)
        np.testing.assert_allclose(got[2:], expected, atol=1e-4)
        assert got[:2].tolist() == [0, 0]


def loss_of(counts: Any, queries: Any, items: Any, regularization: float) -> float:
    """The objective, with loops; ``counts`` are confidences where they are above 0."""
    total = regularization * float((queries**2).sum() + (items**2).sum())
    for q in range(counts.shape[0]):
        for i in range(counts.shape[1]):
            confidence = counts[q, i] if counts[q, i] > 0 else 1.0
            preference = float(counts[q, i] > 0)
            total += confidence * (preference - float(queries[q] @ items[i])) ** 2
    return total


def test_training_reaches_what_plain_alternation_reaches() -> None:
    sequences = [[*items, items[0]] for items in drawn()]  # one event a query comes twice
    weights = [1.0 + place % 3 for place in range(280)]
    fitted = ALS.fit(
        interactions(sequences, weights=weights), 22, factors=4, regularization=0.3, alpha=5.0
    )
    counts = np.zeros((40, 20))
    for place, row in enumerate(row for items in sequences for row in items):
        counts[place // 7, row - 2] += weights[place]
    confidences = 5.0 * counts / counts[counts > 0].mean()

    def solved(confidences: Any, fixed: Any) -> Any:
        rows = []
        for own in confidences:
            weight = np.where(own > 0, own, 1.0)
            left = (fixed * weight[:, None]).T @ fixed + 0.3 * np.eye(4)
            rows.append(np.linalg.solve(left, fixed.T @ own))
        return np.array(rows)

    items = np.random.default_rng(1).random((20, 4))
    for _ in range(30):
        queries = solved(confidences, items)
        items = solved(confidences.T, queries)
    expected = loss_of(confidences, queries, items, 0.3)
    model = fitted.model
    got = loss_of(confidences, model.user_factors, model.item_factors, 0.3)
    assert got == pytest.approx(expected, rel=0.03)
    zero = loss_of(confidences, 0 * queries, 0 * items, 0.3)
    assert got < 0.7 * zero


def test_ranks_as_the_library_recommends() -> None:
    sequences = drawn()
    fitted = ALS.fit(interactions(sequences), 22, factors=4, regularization=0.3, alpha=5.0)
    scores = fitted.score(cases_of(sequences[:10]))
    dense = np.zeros((10, 20), np.float32)
    for query, items in enumerate(sequences[:10]):
        dense[query, np.array(items) - 2] = 5.0
    ids, values = fitted.model.recommend(
        np.arange(10),
        sparse.csr_matrix(dense),
        N=20,
        filter_already_liked_items=False,
        recalculate_user=True,
    )
    best = torch.from_numpy(np.take_along_axis(scores.numpy(), ids + 2, axis=1))
    np.testing.assert_allclose(best.numpy(), values, atol=1e-5)


def test_the_scale_of_the_weights_does_not_matter() -> None:
    sequences = drawn()
    weights = [1.0 + place % 3 for place in range(240)]

    def scores(scale: float) -> Any:
        train = interactions(sequences, weights=[scale * weight for weight in weights])
        fitted = ALS.fit(train, 22, factors=4, regularization=0.3, alpha=5.0)
        return fitted.score(cases_of(sequences)).numpy()

    np.testing.assert_allclose(scores(64.0), scores(1.0), atol=1e-5)


def test_negatives_and_unknown_items_teach_nothing() -> None:
    sequences = drawn()
    noisy = [[*items, 1, 2] for items in sequences]
    labels = [1, 1, 1, 1, 1, 1, 1, 0] * 40
    plain, got = (
        ALS.fit(train, 22, factors=4, regularization=0.3, alpha=5.0)
        for train in (interactions(sequences), interactions(noisy, labels=labels))
    )
    np.testing.assert_array_equal(got.model.item_factors, plain.model.item_factors)


def test_without_a_training_event_everything_scores_nothing() -> None:
    fitted = ALS.fit(interactions([[]]), 4, factors=2, regularization=0.1, alpha=1.0)
    assert np.isfinite(fitted.score(cases_of([[2, 3]])).numpy()).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"factors": 0}, r"factors must be at least 1, got 0"),
        ({"regularization": -1.0}, r"regularization must be at least 0 and finite, got -1"),
        ({"alpha": 0.0}, r"alpha must be above 0 and finite, got 0"),
        ({"alpha": math.nan}, r"alpha must be above 0 and finite, got nan"),
    ],
)
def test_settings_out_of_range(changed: dict[str, float], message: str) -> None:
    values: dict[str, Any] = {"factors": 2, "regularization": 0.1, "alpha": 1.0} | changed
    with pytest.raises(ValueError, match=message):
        ALS.fit(interactions([[2, 3]]), 4, **values)
