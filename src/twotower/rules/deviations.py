"""The standard deviation of a query's scores over the catalogue, without scoring it."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.vocab import FIRST_ROW

_CHUNK = 2**15


class Moments:
    """The mean and the covariance of item vectors, kept while items come and go.

    The scores ``q . e`` of a query over all items have variance ``q' C q``, where ``C`` is the covariance
    of the vectors; so it costs ``dim ** 2`` a query, and each item is read when it comes and when it goes.

    Args:
        dim: Of the vectors.
    """

    def __init__(self, dim: int) -> None:
        self._counted = np.zeros(0, np.bool_)
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._squares = torch.zeros((dim, dim), dtype=torch.float64)

    def count(self, item_vectors: Tensor, offered: npt.NDArray[np.bool_] | None) -> None:
        """Count the items that are there now, and no others.

        Args:
            item_vectors: ``(num_item_rows, dim)``; a row that was there is as it was.
            offered: ``(num_item_rows,)``; None are all but the reserved rows.
        """
        now = np.ones(len(item_vectors), np.bool_) if offered is None else offered.copy()
        now[:FIRST_ROW] = False
        before = np.zeros(len(now), np.bool_)
        before[: len(self._counted)] = self._counted
        for rows, sign in ((now & ~before, 1), (before & ~now, -1)):
            places = np.flatnonzero(rows)
            for start in range(0, len(places), _CHUNK):
                some = torch.from_numpy(places[start : start + _CHUNK]).to(item_vectors.device)
                vectors = item_vectors[some].cpu().double()
                self._sum += sign * vectors.sum(dim=0)
                self._squares += sign * (vectors.T @ vectors)
        self._counted = now

    def deviations(self, query_vectors: Tensor) -> npt.NDArray[np.float32]:
        """Return the standard deviation of each query's scores: ``(Q,)``, 0 where there is no item."""
        num = max(1, int(self._counted.sum()))
        mean = self._sum / num
        covariance = self._squares / num - mean[:, None] * mean
        queries = query_vectors.cpu().double()
        variances = ((queries @ covariance) * queries).sum(dim=1).clamp(min=0)
        return np.asarray(variances.sqrt().numpy(), np.float32)
