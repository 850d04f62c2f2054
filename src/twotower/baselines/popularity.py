"""Popularity: what most queries liked."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from twotower.data.dataset import Cases, Interactions


@dataclass(frozen=True, eq=False)
class Popularity:
    """Scores an item by how often it occurs in training, the same for every query.

    Args:
        counts: ``(num_item_rows,)`` float32.
    """

    counts: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, train: Interactions, num_item_rows: int) -> "Popularity":
        """Return the popularity of each item: its positive events, weighted if they have weights.

        Args:
            train: The training events, and no others.
            num_item_rows: Rows of the item vocabulary.
        """
        train = train.where(train.is_positive)
        counts = np.bincount(train.item_rows, train.weights, minlength=num_item_rows)
        return cls(counts.astype(np.float32))

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the counts once for each case: ``(len(cases), num_item_rows)`` float32."""
        return torch.from_numpy(self.counts).expand(len(cases), -1)
