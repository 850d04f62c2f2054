"""Mining hard negatives with the model as it is: once an epoch, for all queries."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.dataset import Dataset, Part
from twotower.features.base import FeatureArrays
from twotower.losses.model_negatives import HardNegatives, mine
from twotower.processes.job import here
from twotower.towers.encoding import Encoding

DEPTH = 100
"""Items that are mined a query."""


class Miner:
    """Refreshes the lists of a ``HardNegatives`` sampler.

    A query is encoded with what its history reads before the last training item that the model predicts,
    which is its own item here. What it reads in training is never mined. Where histories are read, queries
    without earlier events are left out.

    Args:
        sampler: Whose lists are refreshed.
        encoding: The model with the catalogue's features.
        query_arrays: One array a feature over all query rows.
        dataset: Its training events are read, and what it offers may be mined.
        margin: See ``mine``.
    """

    def __init__(
        self,
        sampler: HardNegatives,
        encoding: Encoding,
        query_arrays: FeatureArrays,
        dataset: Dataset,
        margin: float,
    ) -> None:
        events = dataset.part(Part.TRAIN)
        events = events.where(events.is_read)
        self._offered = dataset.offered
        self._sampler = sampler
        self._encoding = encoding
        self._margin = margin
        self._known = events.histories()
        place, positive = np.arange(len(events)), events.is_positive
        last = np.full(len(self._known), -1)
        np.maximum.at(last, events.query_rows[positive], place[positive])
        least = self._known.offsets[:-1] + encoding.model.reads_history
        self._queries = np.flatnonzero((last >= least) & (last >= 0))
        self._own = self._known.item_rows[last[self._queries]].astype(np.int64)
        before = self._known.where(place < last[events.query_rows])
        earlier = before.take(self._queries)
        if events.times is not None and encoding.model.reads_question_time:
            earlier = replace(earlier, asked=events.times[last[self._queries]])
        self._earlier = earlier
        lengths = np.bincount(events.query_rows[positive], minlength=len(self._known))
        self._features = {name: values[self._queries] for name, values in query_arrays.items()}
        self._shares = (lengths / max(1, lengths.sum())).astype(np.float32)

    def refresh(self) -> None:
        """Mine with the model as it is now; each of several processes mines for some queries."""
        part = here().part(len(self._queries))
        known = self._known.take(self._queries[part])

        def known_of(lines: slice) -> tuple[Tensor, Tensor]:
            some = known.take(lines)
            return self._tensor(some.owners), self._tensor(some.item_rows.astype(np.int64))

        item_vectors = self._encoding.item_vectors()
        features = {name: values[part] for name, values in self._features.items()}
        earlier = self._earlier.take(part)
        self._encoding.fetch(features, earlier)
        found = mine(
            self._encoding.query_vectors(features, earlier),
            item_vectors,
            self._tensor(self._own[part]),
            known_of,
            depth=DEPTH,
            margin=self._margin,
            offered=None if self._offered is None else self._tensor(self._offered),
        )
        nums = [each.stop - each.start for each in here().parts(len(self._queries))]
        found = here().gathered(found, nums)
        mined = found.new_zeros((len(self._known), found.shape[1]))
        mined[self._tensor(self._queries)] = found
        self._sampler.refresh(mined, self._tensor(self._shares))

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._encoding.device)
