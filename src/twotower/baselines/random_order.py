"""Random order: the lower bound for every other method."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from twotower.data.dataset import Cases


@dataclass(frozen=True)
class RandomOrder:
    """Scores each pair of a query and an item by a hash of both, in [0, 1).

    The score of a pair does not depend on the other pairs.

    Args:
        num_item_rows: Rows of the item vocabulary.
        seed: At least 0; each seed gives another order.
    """

    num_item_rows: int
    seed: int = 0

    def score(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), num_item_rows)`` float32."""
        seed = _mixed(np.array([self.seed & 0xFFFFFFFF, self.seed >> 32], np.uint32))
        queries = _mixed(_mixed(cases.query_rows.astype(np.uint32) ^ seed[0]) ^ seed[1])
        items = _mixed(np.arange(self.num_item_rows, dtype=np.uint32) + np.uint32(0x9E3779B9))
        scores = np.empty((len(cases), self.num_item_rows), np.float32)
        # Row by row, so that the integers stay in the cache.
        for place, query in enumerate(queries):
            scores[place] = _mixed(items ^ query) >> np.uint32(8)
        scores *= 2.0**-24
        return torch.from_numpy(scores)


def _mixed(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return the values with every bit spread over all 32.

    Source: the finaliser of MurmurHash3, 32 bits (Appleby, 2011).
    """
    values = values ^ (values >> np.uint32(16))
    values = values * np.uint32(0x85EBCA6B)
    values = values ^ (values >> np.uint32(13))
    values = values * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))
