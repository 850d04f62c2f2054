"""Blocks: what stands between the summed feature vectors and a tower's output."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from twotower.errors import ArgumentError
from twotower.towers.dropout import Dropout


class SkipMLP(nn.Module):
    """``x + MLP(x)`` with GELU; the last layer starts at zero, so a tower starts as the plain sum.

    Args:
        dim: Width in and out.
        hidden: Widths of the hidden layers, at least one.
        dropout: Of each hidden layer's output.

    Raises:
        ValueError: ``hidden`` is empty.
    """

    def __init__(self, dim: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        if not hidden:
            raise ArgumentError(
                "hidden must have at least one width, got none; leave the block out."
            )
        layers: list[nn.Module] = []
        for narrow, wide in zip((dim, *hidden), hidden, strict=False):
            layers += [nn.Linear(narrow, wide), nn.GELU(), Dropout(dropout)]
        last = nn.Linear(hidden[-1], dim)
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()
        self.layers = nn.Sequential(*layers, last)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map ``(n, dim)`` to ``(n, dim)``."""
        return vectors + cast("Tensor", self.layers(vectors))


class TanhMLP(nn.Module):
    """Layers of tanh alone, as in DSSM; the sum of the feature vectors is the first one's product.

    Args:
        widths: Of all layers, the first being that of the summed vectors; at least two.
        dropout: Of each layer's output but the last.

    Raises:
        ValueError: There are fewer than two widths.

    Source: Huang et al., CIKM 2013, section 3.1, equations 1 to 3.
    """

    def __init__(self, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ArgumentError(f"widths must be at least two, got {len(widths)}.")
        self.bias = nn.Parameter(torch.zeros(widths[0]))
        layers: list[nn.Module] = [nn.Tanh()]
        for narrow, wide in pairwise(widths):
            layers += [Dropout(dropout), nn.Linear(narrow, wide), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map ``(n, widths[0])`` to ``(n, widths[-1])``."""
        return cast("Tensor", self.layers(vectors + self.bias))
