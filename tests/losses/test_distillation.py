import math

import pytest
import torch
from torch import Tensor

from twotower.losses.distillation import listwise_distillation

INF = float("inf")


def naive(scores: Tensor, values: Tensor, temperature: float) -> float:
    """Return the loss by loops over floats."""

    def shares(numbers: list[float]) -> list[float]:
        weights = [math.exp(number) for number in numbers]
        return [weight / sum(weights) for weight in weights]

    total = 0.0
    for line, taught in zip(scores.tolist(), values.tolist(), strict=True):
        there = [place for place, value in enumerate(taught) if value > -INF]
        student = shares([line[place] for place in there])
        teacher = shares([taught[place] / temperature for place in there])
        total += sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))
    return total / len(scores)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_it_is_the_divergence_of_what_is_there(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, values = (torch.randn(5, 4, generator=generator) for _ in range(2))
    values[0, 2:] = -INF
    values[3, 1:] = -INF  # with one item alone, there is nothing to learn
    found = listwise_distillation(scores, values, temperature=temperature)
    assert float(found) == pytest.approx(naive(scores, values, temperature), rel=1e-5)


def test_one_who_agrees_has_nothing_to_learn() -> None:
    values = torch.tensor([[2.0, 1.0, -1.0, -INF]])
    scores = torch.tensor([[9.0, 8.5, 7.5, 50.0]], requires_grad=True)
    loss = listwise_distillation(scores, values, temperature=2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert scores.grad is not None
    assert torch.allclose(scores.grad, torch.zeros(1, 4), atol=1e-6)


def test_the_gradient_is_what_both_differ_by() -> None:
    values = torch.tensor([[0.0, 1.0, 2.0, -INF], [1.0, 0.0, 0.0, 0.0]])
    scores = torch.tensor([[3.0, 0.0, 1.0, 9.0], [0.0, 1.0, 2.0, 3.0]], requires_grad=True)
    listwise_distillation(scores, values, temperature=1.0).backward()  # type: ignore[no-untyped-call]
    student = torch.softmax(scores.detach().masked_fill(values == -INF, -INF), dim=1)
    assert scores.grad is not None
    assert torch.allclose(scores.grad, (student - torch.softmax(values, dim=1)) / 2, atol=1e-6)
