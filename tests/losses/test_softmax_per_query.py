"""The softmax where each query has candidates of its own."""

import math

import pytest
import torch
from torch import Tensor

from twotower.losses.candidates import Candidates
from twotower.losses.softmax import SoftmaxLoss, softmax_loss


def some(
    batch: int, num: int, num_columns: int, dim: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Candidates]:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(batch, dim, generator=generator, dtype=dtype)
    items = torch.randn(num, dim, generator=generator, dtype=dtype)
    positions = torch.randint(num, (batch,), generator=generator)
    others = torch.randint(num, (batch, num_columns - 1), generator=generator)
    log_q = torch.randn(num, generator=generator, dtype=dtype)
    columns = torch.cat([positions[:, None], others], dim=1)
    candidates = Candidates(torch.arange(2, num + 2), positions, log_q, columns=columns)
    return queries.requires_grad_(), items.requires_grad_(), candidates


def naive(
    queries: Tensor,
    items: Tensor,
    candidates: Candidates,
    hidden: Tensor,
    temperature: float,
    label_smoothing: float,
) -> list[float]:
    """Return the loss of each query by loops over floats."""
    assert candidates.columns is not None
    assert candidates.log_q is not None
    assert candidates.never is not None
    losses = []
    for b, query in enumerate(queries.tolist()):
        own, *others = candidates.columns[b].tolist()
        left_out = {own, *hidden[b].tolist(), *candidates.never.nonzero()[:, 0].tolist()}
        # A negative that was drawn twice stands twice.
        places = [own, *(place for place in others if place not in left_out)]
        corrections = [float(candidates.log_q[place]) for place in places]
        logits = [
            sum(x * y for x, y in zip(query, items[place].tolist(), strict=True)) / temperature
            - correction
            for place, correction in zip(places, corrections, strict=True)
        ]
        log_sum = math.log(sum(math.exp(logit) for logit in logits))
        stand_for = [math.exp(-correction) for correction in corrections[1:]]
        spread = label_smoothing if stand_for else 0.0
        targets = [1 - spread, *(spread * share / sum(stand_for) for share in stand_for)]
        losses.append(sum(t * (log_sum - logit) for t, logit in zip(targets, logits, strict=True)))
    return losses


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_equals_loops_over_floats(label_smoothing: float) -> None:
    queries, items, candidates = some(6, 9, 5, 3)
    candidates = Candidates(
        candidates.item_rows,
        candidates.positions,
        candidates.log_q,
        never=torch.arange(9) == 4,
        columns=candidates.columns,
    )
    hidden = torch.stack([candidates.positions, torch.full((6,), 7)], dim=1)
    loss = SoftmaxLoss(label_smoothing)
    weights = torch.linspace(0.1, 2, 6, dtype=torch.float64)
    value = loss(queries, items, candidates, temperature=0.5, hidden=hidden, weights=weights)
    losses = naive(queries, items, candidates, hidden, 0.5, label_smoothing)
    expected = sum(w * x for w, x in zip(weights.tolist(), losses, strict=True))
    assert value.item() == pytest.approx(expected / weights.sum().item())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("log_q_of_query", [False, True])
def test_all_in_every_list_is_the_shared_layout(
    label_smoothing: float, log_q_of_query: bool
) -> None:
    queries, items, candidates = some(5, 7, 2, 3)
    order = torch.stack([torch.randperm(7) for _ in range(5)])
    others = order[order != candidates.positions[:, None]].view(5, 6)
    columns = torch.cat([candidates.positions[:, None], others], dim=1)
    log_q = torch.randn(5, 7) if log_q_of_query else candidates.log_q
    assert log_q is not None
    listed = Candidates(
        candidates.item_rows,
        candidates.positions,
        log_q.gather(1, columns) if log_q_of_query else log_q,
        columns=columns,
    )
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    value = SoftmaxLoss(label_smoothing)(queries, items, listed, temperature=temperature)
    expected = softmax_loss(
        queries,
        items,
        candidates.positions,
        temperature=temperature,
        log_q=log_q,
        label_smoothing=label_smoothing,
    )
    torch.testing.assert_close(value, expected)
    leaves = (queries, items, temperature)
    for gradient, exact in zip(
        torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("log_q_of_query", [False, True])
def test_a_batch_in_parts_is_the_batch(log_q_of_query: bool) -> None:
    # 260 x 1,100 x 64 numbers are more than 2^24: two parts, of 238 queries and 22.
    queries, items, candidates = some(260, 300, 1_100, 64, torch.float32)
    log_q = torch.randn(260, 1_100) if log_q_of_query else candidates.log_q
    hidden = candidates.positions[:, None] + torch.zeros(1, 2, dtype=torch.int64)
    weights = torch.linspace(0.5, 2, 260)

    def loss(part: slice) -> Tensor:
        assert candidates.columns is not None
        assert log_q is not None
        some_candidates = Candidates(
            candidates.item_rows,
            candidates.positions[part],
            log_q[part] if log_q_of_query else log_q,
            columns=candidates.columns[part],
        )
        return SoftmaxLoss()(
            queries[part],
            items,
            some_candidates,
            temperature=8.0,
            hidden=hidden[part],
            weights=weights[part],
        )

    parts = slice(0, 100), slice(100, 260)
    shares = [weights[part].sum() / weights.sum() for part in parts]
    whole = loss(slice(0, 260))
    pieces = [share * loss(part) for share, part in zip(shares, parts, strict=True)]
    expected = torch.stack(pieces).sum()
    torch.testing.assert_close(whole, expected)
    leaves = (queries, items)
    for gradient, exact in zip(
        torch.autograd.grad(whole, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(gradient, exact, atol=1e-6, rtol=1e-3)


def test_a_temperature_that_cannot_divide_is_refused() -> None:
    queries, items, candidates = some(5, 7, 3, 3)
    with pytest.raises(ValueError, match="temperature must be above 0 and finite, got 0"):
        SoftmaxLoss()(queries, items, candidates, temperature=0.0)
