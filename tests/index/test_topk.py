"""Top columns: equal scores are ordered by column, also where some of them do not fit in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twotower.index.topk import top_columns


@given(
    lines=st.lists(
        st.lists(st.sampled_from([-1.5, 0.0, 1.0, 2.0]), min_size=6, max_size=6),
        min_size=1,
        max_size=5,
    ),
    k=st.integers(1, 6),
)
def test_equals_sorting_by_score_and_column(lines: list[list[float]], k: int) -> None:
    values, columns = top_columns(torch.tensor(lines), k)
    for line, best, places in zip(lines, values.tolist(), columns.tolist(), strict=True):
        order = sorted(range(6), key=lambda column: (-line[column], column))
        assert places == order[:k]
        assert best == [line[column] for column in places]


@pytest.mark.parametrize("k", [1, 3, 500, 999, 1000])
def test_a_long_line_of_equal_scores_gives_the_first_columns(k: int) -> None:
    scores = torch.zeros(3, 1000)
    scores[1, 700] = 1.0
    scores[2] = torch.arange(1000.0, 0.0, -1.0)
    columns = top_columns(scores, k)[1]
    assert columns[0].tolist() == list(range(k))
    assert columns[1].tolist() == [700, *(c for c in range(1000) if c != 700)][:k]
    assert columns[2].tolist() == list(range(k))


def test_scores_are_not_changed_and_there_may_be_no_lines() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0]])
    top_columns(scores, 2)
    assert scores.tolist() == [[1, 1, 0]]
    values, columns = top_columns(torch.zeros(0, 4), 2)
    assert values.shape == columns.shape == (0, 2)


def test_minus_infinity_comes_last() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0]])
    values, columns = top_columns(scores, 3)
    assert values.tolist() == [[2, 1, -torch.inf]]
    assert columns[0, :2].tolist() == [3, 1]


@pytest.mark.parametrize("kind", ["distinct", "few values", "nearly all equal", "equal", "nothing"])
@pytest.mark.parametrize(("k", "num"), [(1, 2_048), (3, 6_400), (10, 20_737), (10, 20_480)])
def test_long_lines_are_looked_at_by_blocks(kind: str, k: int, num: int) -> None:
    """The same as sorting all scores, with a rest after the last block and without."""
    draws = torch.Generator().manual_seed(k)
    scores = torch.rand(4, num, generator=draws)
    if kind == "few values":
        scores = (scores * 5).floor()
    elif kind == "nearly all equal":
        scores = (scores > 0.9995).float()
    elif kind == "equal":
        scores = torch.zeros(4, num)
    elif kind == "nothing":
        scores[:] = -torch.inf
        scores[:, -1] = 1.0
    values, columns = top_columns(scores, k)
    expected, order = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :k])
    is_score = values > -torch.inf
    assert torch.equal(columns[is_score], order[:, :k][is_score])
