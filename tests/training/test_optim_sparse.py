import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from twotower.config import TrainingConfig
from twotower.training.optimizer_classes import LazyAdam
from twotower.training.steps import TABLE_DECAY, Optimizers

NUM_ROWS, DIM = 6, 3
Batch = list[int]

batches = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=8), min_size=1, max_size=5)


def make_table(seed: int = 0) -> nn.Embedding:
    table = nn.Embedding(NUM_ROWS, DIM, sparse=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        table.weight.copy_(torch.randn(NUM_ROWS, DIM, generator=generator))
    return table


def gradients_of(rows: Batch, step: int) -> Tensor:
    """A gradient for each looked-up row, which depends on the place and the step."""
    places = torch.arange(len(rows) * DIM, dtype=torch.float32).view(len(rows), DIM)
    return torch.sin(places + 7.0 * step + 1.0)


def train(table: nn.Embedding, optimizer: torch.optim.Optimizer, steps: list[Batch]) -> Tensor:
    for number, rows in enumerate(steps):
        optimizer.zero_grad()
        looked_up = table(torch.tensor(rows, dtype=torch.int64))
        (looked_up * gradients_of(rows, number)).sum().backward()
        optimizer.step()
    return table.weight.detach().clone()


def naive(weights: list[list[float]], steps: list[Batch], lr: float) -> list[list[float]]:
    """Lazy Adam in nested loops over floats, from the formula of the paper."""
    mean = [[0.0] * DIM for _ in weights]
    square = [[0.0] * DIM for _ in weights]
    for number, rows in enumerate(steps):
        given_gradients = gradients_of(rows, number).tolist()
        for row in set(rows):
            for column in range(DIM):
                gradient = 0.0
                for place, looked_up in enumerate(rows):
                    if looked_up == row:
                        gradient += given_gradients[place][column]
                mean[row][column] = 0.9 * mean[row][column] + 0.1 * gradient
                square[row][column] = 0.999 * square[row][column] + 0.001 * gradient**2
                unbias = math.sqrt(1 - 0.999 ** (number + 1)) / (1 - 0.9 ** (number + 1))
                root = math.sqrt(square[row][column]) + 1e-8
                weights[row][column] -= lr * unbias * mean[row][column] / root
    return weights


def test_two_steps_worked_by_hand() -> None:
    """One number, 1 at first, lr 0.1, gradients 2 and then 4.

    Step 1: m = 0.2, v = 0.004; sqrt(0.001) / 0.1 * 0.2 / sqrt(0.004) = 1: the weight falls by 0.1,
    to 0.9, whatever the gradient. Step 2: m = 0.18 + 0.4 = 0.58, v = 0.003996 + 0.016 = 0.019996;
    sqrt(0.001999) / 0.19 * 0.58 / sqrt(0.019996) = 0.23532 * 4.10163 = 0.96518: to 0.80348.
    Without the second moment's correction the first step would be 3.16 long, and with no memory of
    the first gradient the second would be 0.1 again.
    """
    table = nn.Embedding(2, 1, sparse=True)
    with torch.no_grad():
        table.weight.fill_(1.0)
    optimizer = LazyAdam(table.parameters(), lr=0.1)
    seen = []
    for gradient in (2.0, 4.0):
        optimizer.zero_grad()
        (table(torch.tensor([0])) * gradient).sum().backward()
        optimizer.step()
        seen.append(float(table.weight[0].detach()))
    assert seen == pytest.approx([0.9, 0.80348], abs=1e-5)
    assert float(table.weight[1].detach()) == 1.0


@given(batches)
def test_equals_nested_loops(steps: list[Batch]) -> None:
    table = make_table()
    wanted = naive(table.weight.tolist(), steps, lr=0.05)
    found = train(table, LazyAdam(table.parameters(), lr=0.05), steps)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=1e-5)


@given(batches)
def test_equals_the_sparse_adam_of_torch(steps: list[Batch]) -> None:
    ours, theirs = make_table(), make_table()
    found = train(ours, LazyAdam(ours.parameters(), lr=0.05), steps)
    wanted = train(theirs, torch.optim.SparseAdam(theirs.parameters(), lr=0.05), steps)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_equals_dense_adam_where_every_step_touches_every_row() -> None:
    steps = [list(range(NUM_ROWS)), [*range(NUM_ROWS), 2, 2], list(range(NUM_ROWS))[::-1]]
    ours, theirs = make_table(), make_table()
    theirs.sparse = False
    found = train(ours, LazyAdam(ours.parameters(), lr=0.05, eps=1e-30), steps)
    wanted = train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.05, eps=1e-30), steps)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@given(batches)
def test_rows_without_a_gradient_stay_bit_for_bit(steps: list[Batch]) -> None:
    table = make_table()
    before = table.weight.detach().clone()
    found = train(table, LazyAdam(table.parameters(), lr=0.05), steps)
    touched = {row for rows in steps for row in rows}
    for row in set(range(NUM_ROWS)) - touched:
        assert torch.equal(found[row], before[row])


def test_a_row_without_a_gradient_keeps_its_momentum() -> None:
    """Row 0 moves as if the steps in between had not been, save for the table's count of steps."""
    table = make_table()
    optimizer = LazyAdam(table.parameters(), lr=0.05)
    train(table, optimizer, [[0]])
    moment = optimizer.state[table.weight]["exp_avg"][0].clone()
    train(table, optimizer, [[1], [2, 3]])
    assert torch.equal(optimizer.state[table.weight]["exp_avg"][0], moment)
    assert optimizer.state[table.weight]["step"] == 3


def test_goes_on_from_a_saved_state_as_if_it_had_not_stopped() -> None:
    steps = [[0, 1, 1], [4], [0, 5]]
    whole = make_table()
    unbroken = LazyAdam(whole.parameters(), lr=0.05)
    train(whole, unbroken, steps)
    wanted = train(whole, unbroken, steps)
    first = make_table()
    optimizer = LazyAdam(first.parameters(), lr=0.05)
    train(first, optimizer, steps)
    saved, weights = copy.deepcopy(optimizer.state_dict()), first.weight.detach().clone()
    train(first, optimizer, [[2, 2, 3]])  # must not reach what was saved
    second = make_table(seed=1)
    with torch.no_grad():
        second.weight.copy_(weights)
    resumed = LazyAdam(second.parameters(), lr=0.05)
    resumed.load_state_dict(saved)
    assert torch.equal(train(second, resumed, steps), wanted)


def test_a_dense_gradient_is_refused() -> None:
    table = nn.Embedding(NUM_ROWS, DIM)
    optimizer = LazyAdam(table.parameters(), lr=0.05)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"table of 6 rows must be sparse, got a dense one"):
        optimizer.step()


def test_a_table_without_a_gradient_is_left_alone() -> None:
    table = make_table()
    before = table.weight.detach().clone()
    LazyAdam(table.parameters(), lr=0.05).step()
    assert torch.equal(table.weight.detach(), before)


def test_decay_worked_by_hand() -> None:
    """Rows of 1, lr 0.1, decay 0.5, and no gradient but zeros: 1 - 0.05 a step that touches the row.

    Row 0 is looked up in both steps, and twice in the first: 0.95, then 0.9025. Row 1 once: 0.95.
    Row 2 never: 1. Were it part of the gradient, Adam would step by the learning rate, to 0.9.
    """
    table = nn.Embedding(3, 1, sparse=True)
    nn.init.ones_(table.weight)
    optimizer = LazyAdam(table.parameters(), lr=0.1, weight_decay=0.5)
    for rows in ([0, 0], [0, 1]):
        optimizer.zero_grad()
        (table(torch.tensor(rows)) * 0.0).sum().backward()
        optimizer.step()
    assert table.weight.flatten().tolist() == pytest.approx([0.9025, 0.95, 1.0])


def test_decays_as_adamw_does_where_every_step_touches_every_row() -> None:
    steps = [list(range(NUM_ROWS)), [*range(NUM_ROWS), 2, 2], list(range(NUM_ROWS))[::-1]]
    ours, theirs = make_table(), make_table()
    theirs.sparse = False
    lazy = LazyAdam(ours.parameters(), lr=0.05, eps=1e-30, weight_decay=0.3)
    dense = torch.optim.AdamW(theirs.parameters(), lr=0.05, eps=1e-30, weight_decay=0.3)
    torch.testing.assert_close(
        train(ours, lazy, steps), train(theirs, dense, steps), rtol=1e-5, atol=1e-6
    )


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = make_table()
        self.layer = nn.Linear(DIM, 1)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_optimizers_update_dense_and_sparse_parameters_of_a_model(optimizer: str) -> None:
    torch.manual_seed(0)
    model = Both()
    before = copy.deepcopy(model.state_dict())
    config = TrainingConfig(
        optimizer=optimizer, table_optimizer="adam", learning_rate=0.1, weight_decay=0.1
    )
    both = Optimizers(model, config, 9)
    model.layer(model.table(torch.tensor([2, 2, 4]))).sum().backward()
    both.step()
    after = model.state_dict()
    changed = (after["table.weight"] != before["table.weight"]).any(dim=1)
    assert changed.tolist() == [False, False, True, False, True, False]
    # Adam's first step is the learning rate, whatever the gradient; with decay, from 0.95 of the row.
    kept = 1 - 0.1 * 0.1 * TABLE_DECAY if optimizer == "adamw" else 1.0
    moved = (after["table.weight"] - kept * before["table.weight"])[changed].abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-3, atol=0)
    assert (after["layer.weight"] != before["layer.weight"]).all()
    both.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("optimizer", "table_optimizer", "wanted"),
    [("adamw", "adam", 0.95), ("adamw", "adagrad", 0.995), ("adam", "adam", 1.0)],
)
def test_rows_decay_five_times_as_much_with_each_touch(
    optimizer: str, table_optimizer: str, wanted: float
) -> None:
    """Rate 0.1, decay 0.1, no gradient but zeros: 1 - 0.1 * 0.5.

    Adagrad has a tenth of the decay, for its step size is ten times as great where it is not set.
    """
    model = Both()
    before = model.table.weight.detach().clone()
    config = TrainingConfig(
        optimizer=optimizer, table_optimizer=table_optimizer, learning_rate=0.1, weight_decay=0.1
    )
    both = Optimizers(model, config, 9)
    (model.table(torch.tensor([2, 2, 4])) * 0.0).sum().backward()
    both.step()
    factors = torch.ones(NUM_ROWS, 1)
    factors[[2, 4]] = wanted
    torch.testing.assert_close(model.table.weight.detach(), before * factors)


def test_optimizers_go_on_from_a_saved_state() -> None:
    def run(model: Both, optimizers: Optimizers, rows: Batch) -> None:
        optimizers.zero_grad()
        model.layer(model.table(torch.tensor(rows))).square().sum().backward()
        optimizers.step()

    config = TrainingConfig(table_optimizer="adam", learning_rate=0.1, weight_decay=0.1)
    torch.manual_seed(0)
    model = Both()
    optimizers = Optimizers(model, config, 9)
    run(model, optimizers, [0, 1])
    other = copy.deepcopy(model)
    resumed = Optimizers(other, config, 9)
    resumed.load_state_dict(copy.deepcopy(optimizers.state_dict()))
    for rows in ([1, 2], [0]):
        run(model, optimizers, rows)
        run(other, resumed, rows)
    for name, values in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], values), name
