"""Row-wise Adagrad: a worked number, nested loops, torch's own at width 1, and what it leaves alone."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from twotower.training.optimizer_classes import RowWiseAdagrad

NUM_ROWS = 5
Lookup = tuple[int, list[float]]  # a row, and the gradient that the loss gives its vector
Steps = list[list[Lookup]]


def lookups(width: int) -> st.SearchStrategy[Steps]:
    numbers = st.lists(st.floats(-3, 3, width=32), min_size=width, max_size=width)
    return st.lists(
        st.lists(st.tuples(st.integers(0, NUM_ROWS - 1), numbers), max_size=7),
        min_size=1,
        max_size=4,
    )


def table_of(values: Tensor) -> nn.Embedding:
    table = nn.Embedding(len(values), values.shape[1], sparse=True)
    with torch.no_grad():
        table.weight.copy_(values)
    return table


def start(width: int) -> Tensor:
    return torch.linspace(-1, 1, NUM_ROWS * width).view(NUM_ROWS, width)


def train(table: nn.Embedding, optimizer: torch.optim.Optimizer, steps: Steps) -> Tensor:
    width = table.embedding_dim
    for looked_up in steps:
        optimizer.zero_grad()
        vectors = table(torch.tensor([row for row, _ in looked_up], dtype=torch.int64))
        given_gradients = torch.tensor([g for _, g in looked_up]).view(-1, width)
        (vectors * given_gradients).sum().backward()
        optimizer.step()
    return table.weight.detach().clone()


def naive(
    weights: list[list[float]], steps: Steps, lr: float, weight_decay: float
) -> list[list[float]]:
    """Nested loops over floats."""
    width = len(weights[0])
    total = [0.0] * len(weights)
    for looked_up in steps:
        for row in {row for row, _ in looked_up}:
            gradient = [0.0] * width
            for other, values in looked_up:
                if other == row:
                    for column in range(width):
                        gradient[column] += values[column]
            for column in range(width):
                total[row] += gradient[column] ** 2 / width
            for column in range(width):
                weights[row][column] *= 1 - lr * weight_decay
                weights[row][column] -= lr * gradient[column] / (math.sqrt(total[row]) + 1e-8)
    return weights


def test_two_steps_worked_by_hand() -> None:
    """A row (1, 1), lr 0.5. First it is looked up twice, with (1, 4) and (2, 0): together (3, 4).

    Mean square (9 + 16) / 2 = 12.5, root 3.5355: the step is (0.42426, 0.56569), to
    (0.57574, 0.43431). Then (6, 0): 12.5 + 18 = 30.5, root 5.52268: by (0.54321, 0) to
    (0.03253, 0.43431). With a sum in the mean's place the first step would be (0.3, 0.4); with an
    accumulator a number, (0.5, 0.5); with the two lookups squared apart, (0.46, 0.62).
    """
    table = table_of(torch.ones(3, 2))
    optimizer = RowWiseAdagrad(table.parameters(), lr=0.5)
    train(table, optimizer, [[(1, [1.0, 4.0]), (1, [2.0, 0.0])]])
    assert table.weight[1].tolist() == pytest.approx([0.57574, 0.43431], abs=1e-5)
    train(table, optimizer, [[(1, [6.0, 0.0])]])
    assert table.weight[1].tolist() == pytest.approx([0.03253, 0.43431], abs=1e-5)
    assert table.weight[[0, 2]].tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("weight_decay", [0.0, 0.4])
@given(steps=lookups(3))
def test_equals_nested_loops(weight_decay: float, steps: Steps) -> None:
    table = table_of(start(3))
    wanted = naive(table.weight.tolist(), steps, 0.3, weight_decay)
    optimizer = RowWiseAdagrad(table.parameters(), lr=0.3, weight_decay=weight_decay)
    found = train(table, optimizer, steps)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-5)


@given(lookups(1))
def test_equals_the_adagrad_of_torch_where_a_row_is_one_number(steps: Steps) -> None:
    ours, theirs = table_of(start(1)), table_of(start(1))
    theirs.sparse = False  # a gradient of 0 moves nothing
    found = train(ours, RowWiseAdagrad(ours.parameters(), lr=0.3, eps=1e-10), steps)
    wanted = train(theirs, torch.optim.Adagrad(theirs.parameters(), lr=0.3, eps=1e-10), steps)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@given(lookups(3))
def test_rows_without_a_gradient_stay_bit_for_bit(steps: Steps) -> None:
    table = table_of(start(3))
    found = train(table, RowWiseAdagrad(table.parameters(), lr=0.3, weight_decay=0.4), steps)
    touched = {row for looked_up in steps for row, _ in looked_up}
    for row in set(range(NUM_ROWS)) - touched:
        assert torch.equal(found[row], start(3)[row])


@pytest.mark.parametrize("scale", [0.25, 64.0])
@given(steps=lookups(3))
def test_the_loss_may_be_scaled(scale: float, steps: Steps) -> None:
    """Each step is a gradient over a root mean square of gradients of the same scale."""
    away_from_zero = [[(row, [2 * g + 7 for g in values]) for row, values in s] for s in steps]
    scaled = [[(row, [scale * g for g in values]) for row, values in s] for s in away_from_zero]
    tables = [table_of(start(3)), table_of(start(3))]
    plain, other = (
        train(table, RowWiseAdagrad(table.parameters(), lr=0.3), given_steps)
        for table, given_steps in zip(tables, (away_from_zero, scaled), strict=True)
    )
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-5)


def test_decay_counts_by_touches() -> None:
    """Rows of 1, lr 0.1, decay 0.5, zero gradients: 0.95 a step that touches the row, not a lookup."""
    table = table_of(torch.ones(3, 1))
    optimizer = RowWiseAdagrad(table.parameters(), lr=0.1, weight_decay=0.5)
    train(table, optimizer, [[(0, [0.0]), (0, [0.0])], [(0, [0.0]), (1, [0.0])]])
    assert table.weight.flatten().tolist() == pytest.approx([0.9025, 0.95, 1.0])


def test_the_state_is_four_bytes_a_row() -> None:
    table = table_of(start(3))
    optimizer = RowWiseAdagrad(table.parameters(), lr=0.3)
    train(table, optimizer, [[(2, [1.0, 0.0, 0.0])]])
    (kept,) = optimizer.state[table.weight].values()
    assert kept.nbytes == 4 * NUM_ROWS


def test_goes_on_from_a_saved_state_as_if_it_had_not_stopped() -> None:
    steps: Steps = [[(0, [1.0, 2.0, 3.0]), (3, [0.5, 0.0, 0.0])], [(0, [-1.0, 1.0, 0.0])]]
    whole = table_of(start(3))
    unbroken = RowWiseAdagrad(whole.parameters(), lr=0.3)
    train(whole, unbroken, steps)
    resumed_table = copy.deepcopy(whole)
    resumed = RowWiseAdagrad(resumed_table.parameters(), lr=0.3)
    resumed.load_state_dict(copy.deepcopy(unbroken.state_dict()))
    wanted = train(whole, unbroken, steps)
    assert torch.equal(train(resumed_table, resumed, steps), wanted)


def test_a_dense_gradient_is_refused() -> None:
    table = nn.Embedding(NUM_ROWS, 3)
    optimizer = RowWiseAdagrad(table.parameters(), lr=0.3)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"table of 5 rows must be sparse, got a dense one"):
        optimizer.step()
