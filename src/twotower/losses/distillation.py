"""A loss by which one ranking teaches another: both are compared as distributions over the same items."""

import torch
from torch import Tensor


def listwise_distillation(scores: Tensor, values: Tensor, *, temperature: float) -> Tensor:
    """Return how far the student's ranking is from the teacher's, a scalar.

    With ``t`` the softmax of a line of ``values / temperature`` and ``s`` that of ``scores``: the mean
    over the lines of the Kullback-Leibler divergence ``sum(t * (log t - log s))``.

    Args:
        scores: ``(n, N)`` float of the student, divided by its own temperature.
        values: ``(n, N)`` float of the teacher, higher is better; ``-inf`` where there is no item. Each
            line has one.
        temperature: Above 0; that of the teacher.

    Source: Cao et al., ICML 2007 (ListNet: two lists are compared by their top one probabilities); Hinton,
        Vinyals and Dean, arXiv:1503.02531 (the teacher's temperature). Differs: the student has its own
        temperature, by which it ranks, so the gradient is not multiplied by the square of the teacher's.
    """
    is_there = values.isfinite()
    wanted = torch.log_softmax(values / temperature, dim=1)
    found = torch.log_softmax(scores.masked_fill(~is_there, -torch.inf), dim=1)
    gaps = torch.where(is_there, wanted.exp() * (wanted - found), 0.0)
    return gaps.sum(dim=1).mean()
