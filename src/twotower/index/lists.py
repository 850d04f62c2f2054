"""The lists of an approximate index: items that are near each other, and how much of them is searched."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from twotower.arrays import Rows
from twotower.errors import ArgumentError
from twotower.extras import library
from twotower.vocab import FIRST_ROW

DEPTHS = (100, 200, 500, 1_000, 2_000, 5_000, 10_000)
"""Depths of a ranking for which the search is tuned. A ``k`` between two of them takes the deeper one."""
SPREADS = 2.0
"""Standard deviations that a list's best item is taken to lie above its mean. Measured with 200,000 items:
at a recall of .99 it takes 40 % fewer items than 0, and 1 and 3 take nearly as few."""
NUM_LEVELS = 16
"""Levels that 4 bits tell apart."""
_ITERATIONS, _POINTS_A_LIST = 6, 256


@dataclass(frozen=True, eq=False)
class Lists:
    """How a catalogue is divided, and how much of it is searched: all that is kept of an index.

    Args:
        centres: ``(L, dim)`` float32 mean of each list's vectors.
        spreads: ``(L,)`` float32 standard deviation of a coordinate about it.
        list_of: ``(I,)`` int32 list of each item; line ``p`` is row ``p + FIRST_ROW``.
        probes: By depth the number of lists that are searched; deeper rankings are searched exactly.
        levels: ``(dim, 16)`` float32, to which 4-bit codes round a coordinate's difference from its list's
            mean; None for a scan in half precision.
        rescored: By depth the number of items that are scored again after a scan of codes.
    """

    centres: Tensor
    spreads: Tensor
    list_of: Rows
    probes: Mapping[int, int]
    levels: Tensor | None = None
    rescored: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.centres)

    @cached_property
    def _bounds(self) -> Tensor:
        return torch.cat([self.centres, SPREADS * self.spreads[:, None]], dim=1)

    def scores(self, query_vectors: Tensor) -> Tensor:
        """Return what the best item of each list is likely to score: ``(Q, L)`` float32."""
        lengths = query_vectors.norm(dim=1, keepdim=True)
        return torch.cat([query_vectors, lengths], dim=1) @ self._bounds.T

    def over(self, item_vectors: Tensor) -> "Lists":
        """Return the lists of a catalogue that has grown at its end, with the new items in them."""
        new = item_vectors[FIRST_ROW + len(self.list_of) :]
        nearest = _nearest(self.centres, new)
        return replace(self, list_of=np.concatenate([self.list_of, nearest]))

    def holding(self, vectors: Tensor) -> "Lists":
        """Return the same lists with other items in them: ``(I, dim)``."""
        return replace(self, list_of=_nearest(self.centres, vectors))


def divided(item_vectors: Tensor, num_lists: int | None = None, *, seed: int = 0) -> Lists:
    """Return a catalogue in lists of items that are near each other, by k-means, untuned.

    Distances are those of the vectors as they are, lengths included: among inner products a list of long
    vectors is likely to hold the best item and one of short ones is not, and lists of mere directions,
    as faiss makes them for inner products, mix the two.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32 on the CPU; the reserved rows are left out.
        num_lists: At least 1; about twice the root of the number of items where None.
        seed: Of what k-means starts from; equal seeds give equal lists.

    Raises:
        MissingExtraError: The extra ``ann`` is not installed.
        ValueError: There is no item.
    """
    vectors = item_vectors[FIRST_ROW:].contiguous()
    if not len(vectors):
        raise ArgumentError("item_vectors must hold an item, got none.")
    if num_lists is None:
        num_lists = 2 ** round(np.log2(2 * len(vectors) ** 0.5))
    num_lists = min(num_lists, len(vectors))
    faiss = faiss_library()
    settings = faiss.ClusteringParameters()
    settings.niter, settings.seed = _ITERATIONS, seed
    settings.min_points_per_centroid, settings.max_points_per_centroid = 1, _POINTS_A_LIST
    clustering = faiss.Clustering(vectors.shape[1], num_lists, settings)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # sums in another order would be other lists
    try:
        clustering.train(vectors.numpy(), faiss.IndexFlatL2(vectors.shape[1]))
    finally:
        faiss.omp_set_num_threads(before)
    found = faiss.vector_to_array(clustering.centroids).reshape(num_lists, -1)
    nearest = _nearest(torch.from_numpy(found.copy()), vectors)
    _, list_of = np.unique(nearest, return_inverse=True)  # no list is empty
    members = torch.from_numpy(list_of.astype(np.int64))
    counts = torch.bincount(members)
    centres = torch.zeros(len(counts), vectors.shape[1]).index_add_(0, members, vectors)
    centres /= counts[:, None]
    squares = torch.zeros(len(counts))
    for start in range(0, len(vectors), 2**16):
        here = slice(start, start + 2**16)
        far = (vectors[here] - centres[members[here]]).square().mean(dim=1)
        squares.index_add_(0, members[here], far)
    return Lists(centres, (squares / counts).sqrt(), list_of.astype(np.int32), {})


def depth_of(k: int) -> int:
    """Return the depth at which ``k`` is searched: smaller rankings are the beginning of larger ones."""
    return next((depth for depth in DEPTHS if depth >= k), k)


def faiss_library() -> ModuleType:
    """Return faiss, or say how to install it."""
    return library("faiss", wanted_by="approximate search", extra="ann")


def _nearest(centres: Tensor, vectors: Tensor) -> Rows:
    """Return the centre that is nearest to each vector, by Euclidean distance: ``(n,)``."""
    half = centres.square().sum(dim=1) / 2
    parts = [(half - part @ centres.T).argmin(dim=1) for part in torch.split(vectors, 2**13)]
    return torch.cat(parts).numpy().astype(np.int32)
