"""Each figure of what is shown: worked by hand, against nested loops, and at its ends."""

import math
from itertools import combinations

import numpy as np
import pytest

from twotower.evaluation import exposure_metrics as module
from twotower.evaluation.exposure_metrics import exposure

NONE = np.zeros(0, np.int32)


def rows(*lines: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    return np.array(lines, np.int32)


def test_worked_by_hand() -> None:
    # Items 2..5 have 0, 1, 1 and 6 training events: ranks 1, 2.5 (shared), 2.5 and 4 of 4.
    # Item 5 is shown twice, 2 and 3 once, 4 never; the test wanted 4 and 2.
    figures = exposure(
        rows([5, 2, 4], [5, 3, 4]),
        2,
        popularity=np.array([9, 9, 0, 1, 1, 6]),
        targets=np.array([4, 2], np.int32),
        item_vectors=np.array([[9.0, 9], [9, 9], [0, 2], [3, 0], [1, 1], [1, 0]]),
    )
    bits = [math.log2(12 / 1), math.log2(12 / 2), math.log2(12 / 7)]  # 8 events and 4 items
    assert figures == pytest.approx(
        {
            "coverage@2": 3 / 4,
            "popularity_bias@2": ((2 * 4 + 1 + 2.5) / 4 - (2.5 + 1) / 2) / 4,
            "novelty@2": (bits[0] + bits[1] + 2 * bits[2]) / 4,
            # counts 0, 1, 1, 2 weighted by -3, -1, 1, 3
            "gini@2": 6 / (4 * 4),
            # orthogonal, and equal in direction
            "diversity@2": (1 + 0) / 2,
        }
    )


def naive_gini(counts: list[int]) -> float:
    """Half the mean absolute difference of two items, over the mean."""
    total = sum(abs(a - b) for a in counts for b in counts)
    return total / (2 * len(counts) * sum(counts))


def test_equals_nested_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_CELLS", 20)  # several chunks
    rng = np.random.default_rng(0)
    items, k = 12, 4
    answers = np.stack([rng.permutation(np.arange(2, items + 2))[:6] for _ in range(17)])
    answers[rng.random(answers.shape) < 0.2] = 0
    answers[3] = 0
    answers[4, :4] = [0, 7, 0, 0]
    vectors = rng.normal(size=(items + 2, 3))
    vectors[5] = 0
    popularity = rng.integers(0, 5, size=items + 2)
    targets = rng.integers(0, items + 2, size=30)
    figures = exposure(
        answers.astype(np.int32),
        k,
        popularity=popularity,
        targets=targets.astype(np.int32),
        item_vectors=vectors.astype(np.float32),
    )
    lists = [[int(row) for row in line[:k] if row] for line in answers]
    shown = [row for line in lists for row in line]
    counts = [shown.count(row) for row in range(2, items + 2)]

    def percentile(row: int) -> float:
        catalogue = popularity[2:].tolist()
        less = sum(events < popularity[row] for events in catalogue)
        equal = sum(events == popularity[row] for events in catalogue)
        return float((less + (equal + 1) / 2) / items)

    def distance(a: int, b: int) -> float:
        norm = float(np.linalg.norm(vectors[a]) * np.linalg.norm(vectors[b]))
        return 1 - (float(vectors[a] @ vectors[b]) / norm if norm else 0.0)

    wanted = [percentile(row) for row in targets if row >= 2]
    total = int(popularity[2:].sum()) + items
    assert figures == pytest.approx(
        {
            "coverage@4": len(set(shown)) / items,
            "popularity_bias@4": np.mean([percentile(r) for r in shown]) - np.mean(wanted),
            "novelty@4": np.mean([-math.log2((popularity[r] + 1) / total) for r in shown]),
            "gini@4": naive_gini(counts),
            "diversity@4": np.mean(
                [
                    np.mean([distance(a, b) for a, b in combinations(line, 2)])
                    for line in lists
                    if len(line) > 1
                ]
            ),
        }
    )


def test_everything_equally_often() -> None:
    figures = exposure(rows([2, 3], [4, 5]), 2, popularity=np.full(6, 3), targets=rows([2])[0])
    assert figures == pytest.approx(
        {"coverage@2": 1, "popularity_bias@2": 0, "novelty@2": 2, "gini@2": 0}
    )


def test_the_same_item_for_everybody() -> None:
    figures = exposure(rows([5], [5]), 1, popularity=np.arange(6), targets=rows([2, 3, 4, 5])[0])
    assert figures["coverage@1"] == 1 / 4
    assert figures["gini@1"] == 1 - 1 / 4
    assert figures["popularity_bias@1"] == 4 / 4 - 2.5 / 4


def test_a_list_shorter_than_k_is_taken_as_it_is() -> None:
    figures = exposure(rows([2, 3]), 10, popularity=np.ones(4), targets=rows([2])[0])
    assert figures["coverage@10"] == 1.0


def test_what_cannot_be_said_is_left_out() -> None:
    popularity, vectors = np.ones(4), np.ones((4, 2))
    nothing = exposure(rows([0, 1]), 2, popularity=popularity, targets=NONE, item_vectors=vectors)
    assert nothing == {"coverage@2": 0.0}
    nobody = exposure(rows([0, 1])[:0], 2, popularity=popularity, targets=NONE)
    assert nobody == {"coverage@2": 0.0}
    single = exposure(rows([2, 1]), 2, popularity=popularity, targets=NONE, item_vectors=vectors)
    assert list(single) == ["coverage@2", "novelty@2", "gini@2"]
    unknown = exposure(rows([2, 3]), 2, popularity=popularity, targets=rows([1, 0])[0])
    assert "popularity_bias@2" not in unknown


def test_errors() -> None:
    answers, popularity = rows([2, 3]), np.ones(4)
    with pytest.raises(ValueError, match=r"k must be at least 1, got 0"):
        exposure(answers, 0, popularity=popularity, targets=NONE)
    with pytest.raises(
        ValueError, match=r"at least one item after the 2 reserved rows, got 2 rows"
    ):
        exposure(answers, 1, popularity=popularity[:2], targets=NONE)
    with pytest.raises(ValueError, match=r"item_rows must have shape \(Q, R\), got \(2,\)"):
        exposure(answers[0], 1, popularity=popularity, targets=NONE)
    with pytest.raises(ValueError, match=r"item_rows must be in 0..2, .* got 0..3"):
        exposure(answers, 1, popularity=popularity[:3], targets=NONE)
    with pytest.raises(ValueError, match=r"targets must be in 0..3, .* got -1..0"):
        exposure(answers, 1, popularity=popularity, targets=rows([-1])[0])
    with pytest.raises(ValueError, match=r"item_vectors must have shape \(4, dim\), got \(3, 2\)"):
        exposure(answers, 1, popularity=popularity, targets=NONE, item_vectors=np.zeros((3, 2)))
