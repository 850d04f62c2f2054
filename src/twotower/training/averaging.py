"""The average of the weights over the steps, which is validated, kept and served."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from twotower.training.optimizer_classes import sparse_tables

ETA = 8


class WeightAverage:
    """Polynomial-decay average: after ``t`` steps, ``avg += (ETA + 1) / (t + ETA) * (weights - avg)``.

    Early steps fade as ``t ** ETA`` grows, so the average spans about the last ninth of all steps. There is
    no schedule and no decay to choose. A step size that is large enough to learn quickly leaves the weights
    jittering around a better point; the average is near that point. Tables with sparse gradients are not
    averaged: that would cost as much as the whole table, while a step touches only some of its rows.

    Source: Shamir and Zhang, ICML 2013, section 4.

    Args:
        model: The model whose weights are averaged.
    """

    def __init__(self, model: nn.Module) -> None:
        sparse = sparse_tables(model)
        averaged = {n: p for n, p in model.named_parameters() if id(p) not in sparse}
        self.names = frozenset(averaged)
        """Names of the parameters that are averaged."""
        self._weights = list(averaged.values())
        self._average = [p.detach().clone() for p in self._weights]
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one more step to the average."""
        self._steps += 1
        share = (ETA + 1) / (self._steps + ETA)
        for average, weight in zip(self._average, self._weights, strict=True):
            average.lerp_(weight, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model for the length of a ``with`` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> list[Tensor]:
        """Return the number of steps and the average, as ``load`` takes them."""
        return [torch.tensor(self._steps), *(average.cpu().clone() for average in self._average)]

    def load(self, state: list[Tensor]) -> None:
        """Go on from a saved state."""
        steps, *averages = state
        self._steps = int(steps)
        for average, saved in zip(self._average, averages, strict=True):
            average.copy_(saved)

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self._average, self._weights, strict=True):
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)
