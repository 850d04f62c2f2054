"""A table of embeddings of which a few rows are trained."""

import torch
from torch import Tensor, nn


class MovingRows(nn.Module):
    """Takes the place of a table in a model: some rows are trained, and the others stay as they are.

    A step costs what the moving rows cost, however long the table is.

    Args:
        table: The table. It is not changed before ``settled``.
        rows: ``(m,)`` int64, the rows that move.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple, so that its weights are no parameters of this module
        self._rows = rows
        self.weight = nn.Parameter(table.weight.detach()[rows].clone())
        self._place_of = torch.full((len(table.weight),), -1, device=rows.device)
        self._place_of[rows] = torch.arange(len(rows), device=rows.device)

    def forward(self, rows: Tensor) -> Tensor:
        """Map ``(...)`` rows to ``(..., dim)``."""
        places = self._place_of[rows]
        still = self._table[0].weight.detach()[rows]
        moving = self.weight[places.clamp(min=0)]
        return torch.where((places >= 0)[..., None], moving, still)

    def settled(self) -> nn.Embedding:
        """Return the table, with these rows where they are now."""
        (table,) = self._table
        with torch.no_grad():
            table.weight[self._rows] = self.weight
        return table
