"""Effective rank and uniformity by hand and by loops, and what they find in planted vectors."""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest

from twotower.doctor.findings import Finding
from twotower.doctor.model_vectors import (
    check_item_vectors,
    check_query_vectors,
    effective_rank,
    uniformity,
)


def even(num: int = 300, dim: int = 16, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)


def said(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.kind.id: finding.severity for finding in findings}


class TestEffectiveRank:
    def test_worked_numbers(self) -> None:
        """Singular values 4 and 1: shares .8 and .2, entropy .5004."""
        assert effective_rank(np.array([[3, 0], [0, 3]], np.float32)) == pytest.approx(2.0)
        assert effective_rank(np.array([[4, 0], [0, 1]], np.float32)) == pytest.approx(
            1.6493, abs=1e-4
        )

    def test_equals_the_definition(self) -> None:
        vectors = even(20, 5)
        values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
        entropy = 0.0
        for value in values:
            share = value / sum(values)
            entropy -= share * math.log(share)
        assert effective_rank(vectors) == pytest.approx(math.exp(entropy))

    def test_neither_scale_nor_rotation_matters(self) -> None:
        vectors = even()
        rotation = np.linalg.qr(even(16, 16, seed=1))[0]
        assert effective_rank(7 * vectors @ rotation) == pytest.approx(effective_rank(vectors))

    def test_the_same_vector_again_and_again_is_one_direction(self) -> None:
        assert effective_rank(np.ones((50, 8), np.float32)) == pytest.approx(1.0, abs=1e-4)

    def test_only_zeros_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"vectors must hold one that is not zero, got none"):
            effective_rank(np.zeros((3, 2), np.float32))


class TestUniformity:
    def test_worked_number(self) -> None:
        """One pair at distance 0, two at a squared distance of 2; a zero vector has no direction."""
        vectors = np.array([[1, 0], [5, 0], [0, 2], [0, 0]], np.float32)
        assert uniformity(vectors) == pytest.approx(math.log((1 + 2 * math.exp(-4)) / 3))

    def test_equals_the_definition(self) -> None:
        vectors = even(12, 3)
        total, pairs = 0.0, 0
        directions = [vector / np.linalg.norm(vector) for vector in vectors]
        for i in range(12):
            for j in range(i):
                total += math.exp(-2 * float(((directions[i] - directions[j]) ** 2).sum()))
                pairs += 1
        assert uniformity(vectors) == pytest.approx(math.log(total / pairs), rel=1e-5)

    def test_one_vector_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"vectors must hold two that are not zero, got 1"):
            uniformity(np.array([[1, 0], [0, 0]], np.float32))


class TestFindings:
    def test_even_vectors_are_fine(self) -> None:
        assert not list(check_query_vectors(even()))
        assert not list(check_item_vectors(even(), np.arange(300, dtype=np.float32)))

    def test_all_on_one_line(self) -> None:
        line = even(dim=1) @ np.ones((1, 16), np.float32) + 0.001 * even(seed=1)
        assert said(check_query_vectors(line))["query-vectors-few-directions"] == "error"

    def test_few_directions_of_many(self) -> None:
        narrow = even(dim=3) @ even(3, 64, seed=1)
        assert said(check_query_vectors(narrow)) == {"query-vectors-few-directions": "info"}
        assert said(check_item_vectors(narrow, np.ones(300, np.float32))) == {
            "item-vectors-few-directions": "warning"
        }

    def test_few_vectors_have_few_directions(self) -> None:
        """Ten vectors of a width of 512 have at most 10 directions: 5 are not few."""
        few = np.tile(np.eye(5, 512, dtype=np.float32), (2, 1))
        assert said(check_query_vectors(few)) == {}
        assert said(check_item_vectors(few, np.ones(10, np.float32))) == {}

    def test_a_vector_that_is_not_finite_is_not_left_out(self) -> None:
        vectors = even()
        vectors[3, 5] = np.nan
        with pytest.raises(ValueError, match=r"vectors must be finite, got NaN .* in line 3;"):
            list(check_query_vectors(vectors))

    def test_a_constant_and_little_else(self) -> None:
        assert said(check_query_vectors(10 + 0.5 * even()))["query-vectors-alike"] == "error"
        assert said(check_query_vectors(10 + 3 * even()))["query-vectors-alike"] == "warning"

    def test_length_that_goes_with_popularity(self) -> None:
        vectors, counts = even(), np.arange(1, 301, dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        found = list(check_item_vectors(vectors / lengths * counts[:, None], counts))
        assert said(found) == {"norm-follows-popularity": "info"}
        assert found[0].value == pytest.approx(1.0)
        assert not list(
            check_item_vectors(vectors / lengths, counts)
        )  # cosine: no length to speak of
        axes = np.tile(np.eye(15, dtype=np.float32), (20, 1))
        assert not list(check_item_vectors(axes, counts))  # exactly equal

    def test_items_that_training_never_saw_are_left_out(self) -> None:
        unseen = np.ones((5_000, 16), np.float32)
        counts = np.concatenate([np.ones(300), np.zeros(5_000)]).astype(np.float32)
        assert not list(check_item_vectors(np.concatenate([even(), unseen]), counts))
