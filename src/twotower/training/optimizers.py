"""Every optimizer, with all that depends on which one it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twotower.registry import Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OptimizerSpec:
    """One optimizer.

    Args:
        name: As ``training.optimizer`` and ``training.table_optimizer`` name it.
        dense: What steps dense parameters, or ``module:name`` of it; it takes groups, ``lr`` and ``fused``.
            None where it is for tables alone.
        table: What steps tables with sparse gradients, or ``module:name`` of it; None where it steps none.
        is_l2: Whether weight decay is a penalty in the gradient, and not decoupled from it.
        bytes_of_table: Memory for each number of a table: itself, and what is kept beside it.
        table_rate: How much greater the step size of tables is, where it is not set.
    """

    name: str
    dense: "str | Callable[..., torch.optim.Optimizer] | None" = None
    table: "str | Callable[..., torch.optim.Optimizer] | None" = None
    is_l2: bool = False
    bytes_of_table: int = 12
    table_rate: float = 1


_CLASSES = "twotower.training.optimizer_classes:"
OPTIMIZERS = Registry(
    "optimizer",
    (
        OptimizerSpec("adamw", _CLASSES + "AdamW"),
        OptimizerSpec("adam", _CLASSES + "Adam", _CLASSES + "LazyAdam", is_l2=True),
        # At adam's step size it learns half as much.
        OptimizerSpec(
            "adagrad", None, _CLASSES + "RowWiseAdagrad", bytes_of_table=4, table_rate=10
        ),
    ),
)
