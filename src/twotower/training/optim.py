"""Optimizers: one for dense parameters, and a sparse one for tables that a step touches in part."""

from typing import Any

import torch
from torch import nn

from twotower.config import TrainingConfig


class Optimizers:
    """Adam or AdamW for dense parameters, its sparse form for tables with sparse gradients.

    ``torch.optim.SparseAdam`` updates the moments of the rows in the batch only, so a step costs what
    it touches and not what the table holds. It has no weight decay.

    Args:
        model: Whose parameters are trained.
        config: ``optimizer``, ``learning_rate`` and ``weight_decay``.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        sparse = {
            id(module.weight)
            for module in model.modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
        }
        parameters = list(model.parameters())
        dense = [p for p in parameters if id(p) not in sparse]
        self._all: list[torch.optim.Optimizer] = []
        if dense:
            kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
            self._all.append(kind(dense, lr=config.learning_rate, weight_decay=config.weight_decay))
        if sparse:
            tables = [p for p in parameters if id(p) in sparse]
            self._all.append(torch.optim.SparseAdam(tables, lr=config.learning_rate))

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
