"""Mining hard negatives with the model as it is: once an epoch, for all queries."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.dataset import Interactions
from twotower.features.histories import Histories
from twotower.features.transforms import FeatureArrays
from twotower.losses.hard import HardNegatives, mine
from twotower.towers.encoding import Encoding

DEPTH = 100
"""Items that are mined a query."""


class Miner:
    """Refreshes the lists of a ``HardNegatives`` sampler.

    A query is encoded with all its training items but the last, which is its own item here; all its
    training items are known to be liked. Queries with one training item are not mined for.

    Args:
        sampler: Whose lists are refreshed.
        encoding: The model with the catalogue's features.
        query_arrays: One array a feature over all query rows.
        positives: The training events that are liked.
        margin: See ``mine``.
    """

    def __init__(
        self,
        sampler: HardNegatives,
        encoding: Encoding,
        query_arrays: FeatureArrays,
        positives: Interactions,
        margin: float,
    ) -> None:
        self._sampler = sampler
        self._encoding = encoding
        self._margin = margin
        self._known = positives.histories()
        lengths = self._known.lengths
        self._queries = np.flatnonzero(lengths > 1)
        last = self._known.offsets[1:][self._queries] - 1
        self._own = torch.from_numpy(self._known.item_rows[last].astype(np.int64))
        self._earlier = _without_last(self._known.take(self._queries))
        self._features = {name: values[self._queries] for name, values in query_arrays.items()}
        self._shares = torch.from_numpy(lengths / max(1, lengths.sum())).float()

    def refresh(self) -> None:
        """Mine with the model as it is now."""
        device = self._encoding.device
        query_vectors = self._encoding.query_vectors(self._features, self._earlier)
        known = self._known.take(self._queries)

        def known_of(part: slice) -> tuple[Tensor, Tensor]:
            some = known.take(part)
            lines = np.repeat(np.arange(len(some)), some.lengths)
            rows = some.item_rows.astype(np.int64)
            return torch.from_numpy(lines).to(device), torch.from_numpy(rows).to(device)

        found = mine(
            query_vectors,
            self._encoding.item_vectors(),
            self._own.to(device),
            known_of,
            depth=DEPTH,
            margin=self._margin,
        )
        mined = torch.zeros((len(self._known), found.shape[1]), dtype=torch.int64, device=device)
        mined[torch.from_numpy(self._queries).to(device)] = found
        self._sampler.refresh(mined, self._shares.to(device))


def _without_last(histories: Histories) -> Histories:
    """Return histories of at least one event each, all without their last event."""
    keep: npt.NDArray[np.bool_] = np.ones(len(histories.item_rows), np.bool_)
    keep[histories.offsets[1:] - 1] = False
    return histories.where(keep)
