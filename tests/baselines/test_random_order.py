"""The random order against MurmurHash3's finaliser in plain integers, and what random must mean."""

import numpy as np

from twotower.baselines.random_order import RandomOrder
from twotower.data.dataset import Cases
from twotower.histories import Histories


def cases_of(query_rows: list[int]) -> Cases:
    count = len(query_rows)
    targets = Histories.of([np.array([2], np.int32)] * count)
    return Cases(np.array(query_rows, np.int32), Histories.empty(count), targets)


def finalised(value: int) -> int:
    value ^= value >> 16
    value = value * 0x85EBCA6B % 2**32
    value ^= value >> 13
    value = value * 0xC2B2AE35 % 2**32
    return value ^ value >> 16


def test_equals_plain_integers() -> None:
    seed = 5 + 7 * 2**32
    scores = RandomOrder(50, seed).score(cases_of([3, 9]))
    for place, query in enumerate((3, 9)):
        for item in range(50):
            of_query = finalised(finalised(query ^ finalised(5)) ^ finalised(7))
            expected = finalised(finalised((item + 0x9E3779B9) % 2**32) ^ of_query) >> 8
            assert float(scores[place, item]) * 2**24 == expected


def test_scores_look_uniform_and_independent() -> None:
    scores = RandomOrder(500).score(cases_of(list(range(2, 502)))).numpy().astype(np.float64)
    assert abs(scores.mean() - 0.5) < 0.005
    counts = np.histogram(scores, bins=20, range=(0, 1))[0]
    assert abs(counts / 12_500 - 1).max() < 0.05  # 4.7 standard deviations
    assert abs(np.corrcoef(scores) - np.eye(500)).max() < 0.25  # queries: sd 0.045
    first = scores.argmax(axis=1)
    assert len(set(first.tolist())) > 280  # 500 throws among 500: 316 expected


def test_other_seeds_give_other_orders() -> None:
    cases = cases_of([2, 3])
    found = [RandomOrder(99, seed).score(cases) for seed in (0, 1, 2**32, 2**63 - 1)]
    assert len({scores.numpy().tobytes() for scores in found}) == 4
