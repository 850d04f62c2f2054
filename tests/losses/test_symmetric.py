import math
from typing import Any

import pytest
import torch
from torch import Tensor

from twotower.losses.candidates import Candidates
from twotower.losses.softmax import SoftmaxLoss, SymmetricSoftmaxLoss


def naive_item_losses(
    queries: Tensor, items: Tensor, candidates: Candidates, hidden: Tensor, temperature: float
) -> list[float]:
    """Return the loss of each own item among the queries, by loops over floats."""
    rows = candidates.item_rows.tolist()
    own_rows = [rows[place] for place in candidates.positions.tolist()]
    assert candidates.query_rows is not None
    assert candidates.query_log_q is not None
    asking = candidates.query_rows.tolist()
    losses = []
    for b, own_row in enumerate(own_rows):
        logits = []
        for c, query in enumerate(queries.tolist()):
            liked = {own_rows[c], *(rows[place] for place in hidden[c].tolist())}
            if c != b and (own_row in liked or asking[b] == asking[c]):
                continue
            item = items[int(candidates.positions[b])].tolist()
            dot = sum(x * y for x, y in zip(query, item, strict=True))
            logits.append((c, dot / temperature - float(candidates.query_log_q[c])))
        log_sum = math.log(sum(math.exp(logit) for _, logit in logits))
        losses.append(log_sum - dict(logits)[b])
    return losses


def some(batch: int, num: int, num_rows: int) -> tuple[Tensor, Tensor, Candidates, Tensor]:
    """Return a batch in which items stand several times, and queries ask several times."""
    generator = torch.Generator().manual_seed(batch)
    queries = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    items = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    candidates = Candidates(
        torch.randint(2, 2 + num_rows, (num,), generator=generator),
        torch.randint(num, (batch,), generator=generator),
        torch.randn(num, generator=generator),
        query_rows=torch.randint(2, 2 + batch, (batch,), generator=generator),
        query_log_q=torch.randn(batch, generator=generator),
    )
    hidden = torch.randint(num, (batch, 2), generator=generator)
    hidden[::2, 1] = candidates.positions[::2]  # a filler
    return queries.requires_grad_(), items.requires_grad_(), candidates, hidden


def test_worked_number() -> None:
    # Dots (2, 1; 0, 1), T = 1, own items on the diagonal. Queries among items: log(1 + e^-1) and
    # log(1 + e^-1) = 0.3133 each. Items among queries: log(1 + e^-2) = 0.1269 and log 2 = 0.6931.
    # The mean of the means is (0.3133 + 0.4100) / 2 = 0.3616.
    queries, items = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.eye(2)
    candidates = Candidates(torch.tensor([2, 3]), torch.arange(2))
    loss = SymmetricSoftmaxLoss()(queries, items, candidates)
    assert loss.item() == pytest.approx(0.3616, abs=5e-5)


@pytest.mark.parametrize(("batch", "num", "num_rows"), [(6, 5, 4), (40, 60, 50), (1, 3, 3)])
def test_equals_loops_over_floats(batch: int, num: int, num_rows: int) -> None:
    queries, items, candidates, hidden = some(batch, num, num_rows)
    weights = torch.linspace(0.1, 2, batch, dtype=torch.float64)
    arguments: dict[str, Any] = {"temperature": 0.7, "hidden": hidden, "weights": weights}
    value = SymmetricSoftmaxLoss()(queries, items, candidates, **arguments)
    losses = naive_item_losses(queries, items, candidates, hidden, 0.7)
    of_queries = sum(w * x for w, x in zip(weights.tolist(), losses, strict=True))
    of_items = SoftmaxLoss()(queries, items, candidates, **arguments).item()
    expected = (of_items + of_queries / weights.sum().item()) / 2
    assert value.item() == pytest.approx(expected)


def test_gradients_match_finite_differences() -> None:
    queries, items, candidates, hidden = some(6, 5, 4)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def value(queries: Tensor, items: Tensor, temperature: Tensor) -> Tensor:
        loss = SymmetricSoftmaxLoss(label_smoothing=0.1)
        return loss(queries, items, candidates, temperature=temperature, hidden=hidden)

    assert torch.autograd.gradcheck(value, (queries, items, temperature))


def test_with_equal_sides_both_directions_are_one() -> None:
    vectors = torch.randn(5, 4, dtype=torch.float64)
    candidates = Candidates(torch.arange(2, 7), torch.arange(5))
    torch.testing.assert_close(
        SymmetricSoftmaxLoss()(vectors, vectors, candidates),
        SoftmaxLoss()(vectors, vectors, candidates),
    )


def test_an_item_is_not_held_against_who_is_known_to_like_it() -> None:
    # Query 1 liked item 2 before: query 0's item learns nothing from query 1.
    queries = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    items = torch.randn(3, 4, dtype=torch.float64)
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.arange(3))
    weights = torch.tensor([1.0, 0.0, 0.0])
    hidden = torch.tensor([[0], [0], [2]])
    loss = SymmetricSoftmaxLoss()(queries, items, candidates, hidden=hidden, weights=weights)
    (gradient,) = torch.autograd.grad(loss, queries)
    assert gradient.any(dim=1).tolist() == [True, False, True]


def test_smoothing_and_precision_reach_both_directions() -> None:
    queries, items, candidates, hidden = some(40, 60, 50)
    plain = SymmetricSoftmaxLoss()(queries, items, candidates, hidden=hidden)
    vectors = torch.randn(5, 4)
    even = Candidates(torch.arange(2, 7), torch.arange(5))
    for settings in ({"label_smoothing": 0.2}, {"precision": torch.bfloat16}):
        changed = SymmetricSoftmaxLoss(**settings)(queries, items, candidates, hidden=hidden)
        assert changed.item() != plain.item()
        torch.testing.assert_close(
            SymmetricSoftmaxLoss(**settings)(vectors, vectors, even),
            SoftmaxLoss(**settings)(vectors, vectors, even),
        )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 2"):
        SymmetricSoftmaxLoss(label_smoothing=2)
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.arange(3))
    with pytest.raises(ValueError, match=r"labels must all be 1 .* got 1 of 0"):
        SymmetricSoftmaxLoss()(
            torch.eye(3), torch.eye(3), candidates, labels=torch.tensor([1.0, 0.0, 1.0])
        )
