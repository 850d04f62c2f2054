import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twotower.losses.base import Batch
from twotower.losses.candidates import Candidates
from twotower.losses.dense import at_least_float32, score, weighted_mean

ROWS, OWN = torch.tensor([2, 3, 4]), torch.tensor([0, 1, 2])


def test_dots_and_own_worked() -> None:
    queries, items = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    scores = score(Batch(queries, items, Candidates(torch.tensor([2, 3]), torch.tensor([1, 1]))))
    assert scores.dots.tolist() == [[5, 8], [-1, -4]]
    assert scores.own.tolist() == [8, -4]
    assert scores.left_out.tolist() == [[False, True], [False, True]]


def test_shares_are_as_one_over_q_and_sum_to_one_over_what_is_a_negative() -> None:
    # The second candidate is hidden from the first query, the third is nobody's negative.
    log_q = torch.tensor([1.0, 2.0, 5.0, 4.0]).log()
    never = torch.tensor([False, False, True, False])
    candidates = Candidates(torch.tensor([2, 3, 4, 5]), torch.tensor([0, 2]), log_q, never)
    hidden = torch.tensor([[1], [2]])
    scores = score(Batch(torch.ones(2, 1), torch.ones(4, 1), candidates, hidden=hidden))
    # Query 0: only the fourth. Query 1: 1 : 1/2 : 1/4 = 4/7, 2/7, 1/7.
    expected = torch.tensor([[0, 0, 0, 1], [4 / 7, 2 / 7, 0, 1 / 7]])
    torch.testing.assert_close(scores.negative_shares(), expected)


def test_shares_of_a_query_without_negatives_are_all_zero() -> None:
    hidden = torch.tensor([[1, 0], [1, 1], [0, 1]])
    scores = score(Batch(torch.ones(3, 1), torch.ones(3, 1), Candidates(ROWS, OWN), hidden=hidden))
    assert scores.negative_shares().tolist() == [[0, 0, 1], [0.5, 0, 0.5], [0, 0, 0]]


def test_candidates_of_each_query_worked() -> None:
    # Query 0 lists items 1 and 2 besides its own, of which 2 is hidden; query 1 lists item 0 and
    # its own a second time, which is no negative.
    queries, items = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]])
    columns = torch.tensor([[0, 1, 2], [2, 0, 2]])
    log_q = torch.tensor([0.1, 0.2, 0.3])
    candidates = Candidates(ROWS, torch.tensor([0, 2]), log_q, columns=columns)
    scores = score(Batch(queries, items, candidates, hidden=torch.tensor([[0, 2], [2, 2]])))
    assert scores.dots.tolist() == [[3, 4, 5], [10, 6, 10]]
    assert scores.own.tolist() == [3, 10]
    assert scores.left_out.tolist() == [[True, False, True], [True, False, True]]
    assert scores.log_q is not None
    assert torch.equal(scores.log_q, log_q[columns])


@given(seed=st.integers(0, 2**31), listed=st.booleans(), length=st.integers(0, 4))
def test_what_is_left_out_equals_loops(seed: int, listed: bool, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(6, (4,), generator=generator)
    hidden = torch.randint(6, (4, length), generator=generator)
    never = torch.rand(6, generator=generator) < 0.3
    columns = torch.arange(6).expand(4, 6)
    if listed:
        others = torch.randint(6, (4, 3), generator=generator)
        columns = torch.cat([positions[:, None], others], dim=1)
    candidates = Candidates(
        torch.arange(2, 8), positions, never=never, columns=columns if listed else None
    )
    scores = score(Batch(torch.ones(4, 2), torch.ones(6, 2), candidates, hidden=hidden))
    for b in range(4):
        for place, left_out in zip(columns[b].tolist(), scores.left_out[b].tolist(), strict=True):
            own = place == int(positions[b])
            assert left_out == (own or bool(never[place]) or place in hidden[b].tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_multiplied_in_float32(dtype: torch.dtype) -> None:
    # In either half precision 2048 + 1 is 2048.
    queries, items = torch.ones(1, 2, dtype=dtype), torch.tensor([[2048, 1]], dtype=dtype)
    columns = torch.tensor([[0]])
    for candidates in (
        Candidates(torch.tensor([2]), torch.tensor([0])),
        Candidates(torch.tensor([2]), torch.tensor([0]), columns=columns),
    ):
        assert score(Batch(queries, items, candidates)).dots.item() == 2049


def test_other_precisions_are_left_alone() -> None:
    for dtype in (torch.float32, torch.float64):
        vectors = torch.ones(1, 2, dtype=dtype)
        assert at_least_float32(vectors) is vectors


def test_a_vector_too_few_is_refused() -> None:
    candidates = Candidates(ROWS, torch.tensor([0]))
    with pytest.raises(ValueError, match="the vectors of all 3 candidates, got 2"):
        score(Batch(torch.ones(1, 1), torch.ones(2, 1), candidates))


@pytest.mark.parametrize(
    ("columns", "shape", "message"),
    [
        (None, (2,), r"log_q must be \(3,\) or \(2, 3\), got \(2,\)"),
        (None, (2, 1), r"log_q must be \(3,\) or \(2, 3\), got \(2, 1\)"),
        ([[0, 1], [0, 1]], (2, 3), r"log_q must be \(3,\) or \(2, 2\), got \(2, 3\)"),
    ],
)
def test_log_q_that_does_not_fit_is_refused(
    columns: list[list[int]] | None, shape: tuple[int, ...], message: str
) -> None:
    candidates = Candidates(
        ROWS,
        torch.tensor([0, 0]),
        torch.zeros(shape),
        columns=None if columns is None else torch.tensor(columns),
    )
    with pytest.raises(ValueError, match=message):
        score(Batch(torch.ones(2, 1), torch.ones(3, 1), candidates))


def test_weighted_mean_worked() -> None:
    losses = torch.tensor([1.0, 4.0])
    assert weighted_mean(losses, None).item() == 2.5
    assert weighted_mean(losses, torch.tensor([3.0, 1.0])).item() == 1.75
