"""One step of all parameters: groups, learning rates, clipping; and the average of weights over steps."""

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twotower.config import TrainingConfig
from twotower.features.tuned import SentenceEncoder
from twotower.processes.job import here
from twotower.processes.sharded_table import sharded_tables
from twotower.registry import resolved
from twotower.training.optimizer_classes import sparse_tables
from twotower.training.optimizers import OPTIMIZERS

ETA = 8
TABLE_DECAY = 5
"""How much stronger a row decays in the steps that touch it, where others do not (docs/decisions/0065)."""


def learning_rate_factor(taken: int, steps: int, warmup_steps: int, decay: str) -> float:
    """Return what learning rates are multiplied by in the next step: in (0, 1].

    With ``t`` steps taken of ``T``, of which ``w`` are warm-up::

        warm-up, t < w   (t + 1) / (w + 1)
        none             1
        linear           1 - p                  p = (t - w) / (T - w)
        cosine           (1 + cos(pi p)) / 2

    so that it rises evenly from 0 before the first step and falls to 0 after the last: no step is
    taken in vain.

    Args:
        taken: Steps so far, from 0 to ``steps - 1``.
        steps: Those of all epochs.
        warmup_steps: At least 0.
        decay: ``"none"``, ``"linear"`` or ``"cosine"``.

    Source: warm-up as in Goyal et al., 2017 (arXiv 1706.02677), section 2.2; cosine as in Loshchilov
        and Hutter, ICLR 2017, equation 5. Differs: no restart.
    """
    if taken < warmup_steps:
        return (taken + 1) / (warmup_steps + 1)
    if decay == "none":
        return 1.0
    progress = (taken - warmup_steps) / (steps - warmup_steps)
    return 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, kept: Collection[int] = ()
) -> Tensor:
    """Shorten all gradients by one factor so that their norm is at most ``max_norm``.

    The norm is that of all gradients as one vector. A row of a table that was looked up more than
    once counts with the sum of its gradients, as it would in a dense one; sparse gradients are left
    coalesced.

    Args:
        parameters: Those without a gradient are passed over.
        max_norm: Above 0.
        kept: The ``id`` of each parameter of which every process keeps rows of its own.

    Returns:
        The norm before, a scalar.

    Source: Pascanu, Mikolov and Bengio, ICML 2013, algorithm 1.
    """
    values: list[Tensor] = []
    of_kept: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            (of_kept if id(parameter) in kept else values).append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    norm = nn.utils.get_total_norm(values)
    if kept:
        others = here().sum_in_place(nn.utils.get_total_norm(of_kept).square().reshape(1))
        norm = (norm.square() + others[0]).sqrt()
    # Never read here: on a GPU that would wait for the backward pass.
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*values, *of_kept):
        gradient.mul_(factor)
    return norm


class Optimizers:
    """Adam or AdamW for dense parameters, ``LazyAdam`` or ``RowWiseAdagrad`` for sparse tables.

    Biases and a learnt temperature have no weight decay: for them, zero means nothing. A sentence encoder
    has its own learning rate, and weight decay with AdamW only. Tables with sparse gradients have it with
    AdamW only, too, ``TABLE_DECAY`` times as much in the steps that touch a row.

    Args:
        model: The model whose parameters are trained.
        config: ``optimizer``, ``table_optimizer``, ``learning_rate``, ``table_learning_rate``,
            ``sentence_learning_rate``, ``warmup_steps``, ``decay``, ``clip_norm`` and ``weight_decay``; no
            ``auto`` left.
        steps: Number of steps of all epochs, after which ``decay`` is complete.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, steps: int) -> None:
        weight_decay, rate = config.weight_decay, config.learning_rate
        assert weight_decay is not None
        assert rate is not None
        sparse = sparse_tables(model)
        self._parameters = list(model.parameters())
        self._kept = frozenset(id(table.weight) for table in sharded_tables(model))
        self._config = config
        self._steps = steps
        self._taken = 0
        self._all: list[torch.optim.Optimizer] = []
        dense = [p for p in self._parameters if id(p) not in sparse]
        if dense:
            kind = resolved(OPTIMIZERS[config.optimizer].dense)
            # Of an L2 penalty adam makes a whole step wherever there is no other gradient: in each row of
            # a token that no text of the batch has.
            l2 = OPTIMIZERS[config.optimizer].is_l2
            encoders = [m for m in model.modules() if isinstance(m, SentenceEncoder)]
            tuned = {id(p) for encoder in encoders for p in encoder.parameters()}
            groups: list[dict[str, Any]] = [
                {
                    "params": [p for p in dense if (p.ndim > 1, id(p) in tuned) == (matrix, own)],
                    "weight_decay": weight_decay if matrix and not (own and l2) else 0.0,
                    "lr": config.sentence_learning_rate if own else rate,
                }
                for own in (False, True)
                for matrix in (True, False)
            ]
            # On a CPU three to six times as quick as torch's default, which passes over them often.
            self._all.append(kind([g for g in groups if g["params"]], lr=rate, fused=True))
        if sparse:
            tables = [p for p in self._parameters if id(p) in sparse]
            spec, is_l2 = OPTIMIZERS[config.table_optimizer], OPTIMIZERS[config.optimizer].is_l2
            # A touch keeps as much of a row, whichever step size the optimizer has.
            decay = 0.0 if is_l2 else TABLE_DECAY * weight_decay / spec.table_rate
            lazy = resolved(spec.table)
            self._all.append(
                lazy(tables, lr=config.table_learning_rate or rate, weight_decay=decay)
            )
        self._rates = [[group["lr"] for group in o.param_groups] for o in self._all]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update all parameters."""
        config = self._config
        if config.clip_norm is not None:
            clip_gradients(self._parameters, config.clip_norm, self._kept)
        factor = learning_rate_factor(self._taken, self._steps, config.warmup_steps, config.decay)
        for optimizer, rates in zip(self._all, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = factor * rate
            optimizer.step()
        self._taken += 1

    def state_dict(self) -> list[Any]:
        """Return on the CPU what ``load_state_dict`` takes: the steps taken, and each optimizer's state."""
        return [self._taken, *map(_state_of, self._all)]

    def load_state_dict(self, states: list[Any]) -> None:
        """Go on from a saved state."""
        self._taken, *saved = states
        for optimizer, state in zip(self._all, saved, strict=True):
            optimizer.load_state_dict(state)


def _state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer with all its tensors on the CPU."""
    found = optimizer.state_dict()
    state = {
        parameter: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in values.items()}
        for parameter, values in found["state"].items()
    }
    return {**found, "state": state}


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
