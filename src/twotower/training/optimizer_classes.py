"""Optimizers: torch's own without its compiler, and those of tables whose steps cost what they touch."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from twotower.errors import ArgumentError
from twotower.processes.sharded_table import ShardedTable

Group = dict[str, Any]
"""Parameters that are stepped alike, with the settings of the step, as torch keeps them."""


class Uncompiled(torch.optim.Optimizer):
    """What torch's optimizers share, without torch's compiler.

    torch wraps these functions so that its compiler passes over them. The first call of one loads the
    compiler for that, which takes a second and which no training here uses.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class Adam(Uncompiled, torch.optim.Adam):
    """``torch.optim.Adam``."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(Uncompiled, torch.optim.AdamW):
    """``torch.optim.AdamW``."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class LazyOptimizer(Uncompiled, ABC):
    """Updates the rows that have a gradient, and leaves all others as they are.

    Weight decay is decoupled and counts by touches: before its update, a row is multiplied by
    ``1 - lr * weight_decay`` once for each step that has a gradient of it, however often the step
    looked it up. A row that ``n`` steps touch decays ``n`` times, and one that none touches never;
    a rare row is thus held back as much by each of its own events as a frequent one.

    Args:
        tables: ``(rows, d)`` parameters.
        defaults: Settings of the groups, ``lr`` and ``weight_decay`` among them.

    Source: Loshchilov and Hutter, ICLR 2019, algorithm 2, for the decay. Differs: rows without a
        gradient do not decay.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update the rows that have a gradient.

        Raises:
            ValueError: A gradient is not sparse.
        """
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                if not table.grad.is_sparse:
                    raise ArgumentError(
                        f"the gradient of a table of {len(table)} rows must be sparse, got a dense "
                        "one; make the table with sparse=True."
                    )
                grad = table.grad.coalesce()  # costs nothing where it is already
                rows, values = grad.indices()[0], grad.values()
                change = self.change(table, rows, values, group)
                if group["weight_decay"] > 0:
                    decay = group["lr"] * group["weight_decay"]
                    change.sub_(table.index_select(0, rows), alpha=decay)
                # On a CPU up to three times as quick as index_add_; rows are distinct, so it is exact.
                table.scatter_add_(0, rows[:, None].expand_as(change), change)

    @abstractmethod
    def change(self, table: Tensor, rows: Tensor, gradients: Tensor, group: Group) -> Tensor:
        """Return what is added to the rows, a new ``(n, d)``, and bring their state up to date.

        Args:
            table: ``(rows, d)``.
            rows: ``(n,)`` int64, distinct.
            gradients: ``(n, d)``, to be left as they are.
            group: The settings.
        """


class LazyAdam(LazyOptimizer):
    """Adam for embedding tables with sparse gradients; its state is twice the table.

    With ``m`` and ``v`` the moments of a row that the step touches, ``g`` the sum of its gradients
    and ``t`` the number of steps of the table so far::

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g g
        row = row - lr weight_decay row - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)

    Other rows keep their values and their moments. Without decay it computes what
    ``torch.optim.SparseAdam`` does, with two fifths of its time on a CPU: a row's moments are read
    once and written once.

    Args:
        tables: ``(rows, d)`` parameters.
        lr: Step size, above 0.
        betas: Decay of the two moments, each in [0, 1).
        eps: Keeps the quotient finite, above 0.
        weight_decay: At least 0; see ``LazyOptimizer``.

    Source: Kingma and Ba, ICLR 2015, algorithm 1 in the order that section 2 ends with. Differs:
        rows without a gradient are left as they are.

    Prefer: ``RowWiseAdagrad`` where twice the table is more memory than there is.
    """

    def __init__(
        self,
        tables: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            tables, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def change(self, table: Tensor, rows: Tensor, gradients: Tensor, group: Group) -> Tensor:
        """Return the step of the rows, and move their moments."""
        beta1, beta2 = group["betas"]
        state = self.state[table]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        state["step"] += 1
        mean: Tensor = state["exp_avg"].index_select(0, rows).lerp_(gradients, 1 - beta1)
        square: Tensor = state["exp_avg_sq"].index_select(0, rows).mul_(beta2)
        square.addcmul_(gradients, gradients, value=1 - beta2)
        state["exp_avg"][rows] = mean
        state["exp_avg_sq"][rows] = square
        size = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        return mean.div_(square.sqrt_().add_(group["eps"])).mul_(-size)


class RowWiseAdagrad(LazyOptimizer):
    """Adagrad with one accumulator a row: its state is 4 bytes a row, whatever the width.

    With ``s`` the accumulator of a row that the step touches, 0 at first, and ``g`` the sum of its
    gradients, ``d`` wide::

        s = s + |g|^2 / d
        row = row - lr weight_decay row - lr g / (sqrt(s) + eps)

    A row's first step has a root mean square of ``lr``, as Adam's has, and its n-th is about
    ``sqrt(n)`` times shorter, so that it wants a larger ``lr`` than Adam.

    Args:
        tables: ``(rows, d)`` parameters.
        lr: Step size, above 0.
        eps: Keeps the quotient finite, above 0.
        weight_decay: At least 0; see ``LazyOptimizer``.

    Source: Duchi, Hazan and Singer, JMLR 2011, with the diagonal of a row replaced by its mean, as
        FBGEMM's exact row-wise Adagrad does (Mudigere et al., ISCA 2022).
    """

    def __init__(
        self, tables: Iterable[Any], lr: float, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(tables, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def change(self, table: Tensor, rows: Tensor, gradients: Tensor, group: Group) -> Tensor:
        """Return the step of the rows, and raise their accumulators."""
        state = self.state[table]
        if not state:
            state["sum"] = table.new_zeros(len(table))
        norms = torch.linalg.vector_norm(gradients, dim=1)
        total: Tensor = state["sum"].index_select(0, rows)
        total.addcmul_(norms, norms, value=1 / table.shape[1])
        state["sum"][rows] = total
        sizes = total.sqrt_().add_(group["eps"]).reciprocal_().mul_(-group["lr"])
        return gradients * sizes[:, None]


def sparse_tables(model: nn.Module) -> set[int]:
    """Return the ``id`` of each parameter that is a table with sparse gradients."""
    return {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag, ShardedTable)) and module.sparse
    }
