"""Mining hard negatives with the model as it is: once an epoch, for all queries."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.dataset import Interactions
from twotower.features.base import FeatureArrays
from twotower.losses.hard import HardNegatives, mine
from twotower.towers.encoding import Encoding

DEPTH = 100
"""Items that are mined a query."""


class Miner:
    """Refreshes the lists of a ``HardNegatives`` sampler.

    A query is encoded with what its history reads before its last training item that is asked for, which is
    its own item here; what it reads in training is never mined. Where histories are read, queries without
    anything before are not mined for.

    Args:
        sampler: Whose lists are refreshed.
        encoding: The model with the catalogue's features.
        query_arrays: One array a feature over all query rows.
        events: The training events that histories read.
        margin: See ``mine``.
        offered: ``(num_item_rows,)`` bool, the items that may be mined; None allows all.
    """

    def __init__(
        self,
        sampler: HardNegatives,
        encoding: Encoding,
        query_arrays: FeatureArrays,
        events: Interactions,
        margin: float,
        *,
        offered: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self._offered = offered
        self._sampler = sampler
        self._encoding = encoding
        self._margin = margin
        self._known = events.histories()
        place, positive = np.arange(len(events)), events.is_positive
        last = np.full(len(self._known), -1)
        np.maximum.at(last, events.query_rows[positive], place[positive])
        least = self._known.offsets[:-1] + encoding.model.reads_history
        self._queries = np.flatnonzero((last >= least) & (last >= 0))
        own = last[self._queries]
        self._own = torch.from_numpy(self._known.item_rows[own].astype(np.int64))
        before = self._known.where(place < last[events.query_rows])
        self._earlier = before.take(self._queries)
        lengths = np.bincount(events.query_rows[positive], minlength=len(self._known))
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
            offered=None if self._offered is None else torch.from_numpy(self._offered).to(device),
        )
        mined = torch.zeros((len(self._known), found.shape[1]), dtype=torch.int64, device=device)
        mined[torch.from_numpy(self._queries).to(device)] = found
        self._sampler.refresh(mined, self._shares.to(device))
