"""ItemKNN with decay: neighbours of the items of a history, where recent ones weigh more.

``choose_item_knn`` chooses its half lives; ``history_matrices.decayed_histories`` computes the decay.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy import sparse

from twotower.arrays import Float32s
from twotower.baselines import history_matrices as matrices
from twotower.baselines.validation import Validation, half_lives
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.errors import ArgumentError, ConfigError, check_positive
from twotower.vocab import FIRST_ROW

_DENSE_BYTES = 256 * 2**20  # similarities are multiplied as a dense matrix up to this size
_PAIR_REACH = 5  # pair half-lives beyond which two events no longer count as a pair

# What is tried, the value to fall back on first.
_HALF_LIVES = (1.0, 0.5, 2.0, 5.0, 10.0, 20.0, 50.0, None)
_PAIR_HALF_LIVES = (None, 2.0, 10.0, 20.0)
_SHRINKAGES = (10.0, 0.0, 50.0)
_NEIGHBOURS = (200, 50, 100, 500)
_ALL_SHRINKAGES_ITEM_ROWS = 50_000  # above, similarities are held once, with the first shrinkage
_ALL_NEIGHBOURS_ITEM_ROWS = 5_000  # in catalogues up to this size, keeping every neighbour is tried
_MOST_BYTES = 4e9  # of the similarities while they are put together
_BYTES_OF_ONE = 24
_MOST_PAIRS = 6e10  # of events of one query: counting them takes ten minutes of a core
_CLOSE = 3  # times as long takes a pair by its distance


@dataclass(frozen=True, eq=False)
class ItemKNN:
    """Scores an item by its similarity to the items of the query's history, where recent ones weigh more.

    With ``age_j`` the number of later events in the history (0 for the last), item ``i`` gets::

        score(i)         = sum over events j of similarity(j, i) * 0.5 ** (age_j / half_life)
        similarity(j, i) = together(j, i) / (norm(j) * norm(i) + shrinkage)

    With ``X`` the query x item matrix of training (1, or the largest weight of the pair's events),
    ``norm`` is the length of an item's column and ``together`` the dot product of two columns: a shrunk
    cosine. The ``neighbours`` largest similarities of each history item are kept (of equal ones, the lower
    row). The similarity of an item to itself is 0.

    Args:
        similarity: ``(num_item_rows, num_item_rows)`` float32, sparse: ``similarity[j, i]``.
        neighbours: Number of similar items kept for each item, at least 1; None keeps all.
        shrinkage: At least 0; lowers similarities that are based on few queries.
        half_life: Number of events after which an event counts half, above 0; None weighs all alike.
        pair_half_life: None, or above 0: then ``together(j, i)`` is the sum, over pairs of training
            events of one query ``d`` positions apart, of ``0.5 ** ((d - 1) / pair_half_life)``
            times both weights, up to ``d = 5 * pair_half_life``. Items are then similar if they occur
            close to each other, in either order.

    Source: Sarwar et al., WWW 2001, section 3 (cosine between items, a fixed number of them);
        Deshpande and Karypis, TOIS 2004, section 4 (top-N from binary data); Ding and Li, CIKM 2005
        (older events count less, by a half-life). Differs: no ratings are predicted, so the sum is
        not divided by that of the similarities; similarities are not normalised by row, which
        Deshpande and Karypis offer; age is counted in events instead of time, with one half-life
        for all where Ding and Li fit one to each query and cluster of items; shrinkage and
        ``pair_half_life`` are in none of the three.
    """

    SETTINGS = ("neighbours", "shrinkage", "half_life", "pair_half_life")

    similarity: sparse.csr_array
    neighbours: int | None
    shrinkage: float
    half_life: float | None
    pair_half_life: float | None = None

    @classmethod
    def fit(
        cls,
        train: Interactions,
        num_item_rows: int,
        *,
        neighbours: int | None,
        shrinkage: float,
        half_life: float | None,
        pair_half_life: float | None = None,
    ) -> "ItemKNN":
        """Return the neighbours of each item of ``train``.

        Memory is bounded by the kept similarities plus a block of about 100 MB.

        Args:
            train: The training events only; negatives among them are ignored.
            num_item_rows: Rows of the item vocabulary.
            neighbours: See the class.
            shrinkage: See the class.
            half_life: See the class. Must be None for events without order, which have no age.
            pair_half_life: See the class. Must be None for events without order, too.

        Raises:
            ValueError: A setting is out of its range.
        """
        if neighbours is not None and neighbours < 1:
            raise ArgumentError(f"neighbours must be at least 1 or None, got {neighbours}.")
        if not 0 <= shrinkage < np.inf:
            raise ArgumentError(f"shrinkage must be at least 0 and finite, got {shrinkage}.")
        check_positive(or_none=True, half_life=half_life, pair_half_life=pair_half_life)
        found = _similarities(train, num_item_rows, neighbours, (shrinkage,), pair_half_life)
        return cls(found[0], neighbours, shrinkage, half_life, pair_half_life)

    def narrowed(self, neighbours: int | None) -> "ItemKNN":
        """Return this with at most ``neighbours`` similar items of each item, None for all."""
        similarity = _largest(self.similarity.copy(), neighbours)
        return replace(self, similarity=similarity, neighbours=neighbours)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the score of each item row: ``(len(cases), num_item_rows)`` float32."""
        history = matrices.decayed_histories(
            cases.histories, self.similarity.shape[0], self.half_life
        )
        if sparse.issparse(self._factor):
            return torch.from_numpy((history @ self._factor).toarray())
        return torch.from_numpy(matrices.product(history, self._factor))

    @cached_property
    def _factor(self) -> sparse.csr_array | Float32s:
        """The similarities in the form that multiplies fastest: dense if small and well filled."""
        cells = self.similarity.shape[0] * self.similarity.shape[1]
        if 4 * cells <= _DENSE_BYTES and self.similarity.nnz > cells / 10:
            return np.ascontiguousarray(self.similarity.toarray())
        return self.similarity


def choose_item_knn(dataset: Dataset) -> ItemKNN:
    """Return ItemKNN fitted on the training events, with settings chosen on validation.

    NDCG@10 decides, on small grids: for each ``pair_half_life`` the half-life and then the shrinkage
    (up to 50,000 items, so that larger similarities are held only once), then the best
    ``pair_half_life``, then the neighbours. The similarities come from the training events alone, like the
    weights of a trained model; at test time, validation events are used only as part of histories.

    Args:
        dataset: With a split. If its events have no order, both half-lives are None. If queries repeat
            items, items of the history stay in the ranking. Without validation cases the first value of
            each grid is taken.
    """
    train, validation = dataset.part(Part.TRAIN), Validation.of(dataset)
    num_item_rows = dataset.items.ids.num_rows
    is_small = num_item_rows <= _ALL_NEIGHBOURS_ITEM_ROWS
    neighbours = (*_NEIGHBOURS, None) if is_small else _NEIGHBOURS
    widest = None if is_small else max(_NEIGHBOURS)
    lives = half_lives(dataset, _HALF_LIVES)
    few = num_item_rows <= _ALL_SHRINKAGES_ITEM_ROWS
    shrinkages = _SHRINKAGES if few else _SHRINKAGES[:1]

    def shrunk(pair_life: float | None) -> ItemKNN:
        similarities = _similarities(train, num_item_rows, widest, shrinkages, pair_life)
        first, *others = (
            ItemKNN(similarity, widest, shrinkage, lives[0], pair_life)
            for similarity, shrinkage in zip(similarities, shrinkages, strict=True)
        )
        first = validation.best(replace(first, half_life=life) for life in lives)
        alike = (replace(other, half_life=first.half_life) for other in others)
        return validation.best([first], alike)

    best = validation.best(shrunk(life) for life in half_lives(dataset, _PAIR_HALF_LIVES))
    return validation.best(best.narrowed(count) for count in neighbours)


def check_quick(dataset: Dataset) -> None:
    """Refuse data that are so large that ItemKNN is only fitted on request.

    Raises:
        ConfigError: They are.
    """
    train = dataset.part(Part.TRAIN)
    lives = half_lives(dataset, _PAIR_HALF_LIVES)
    close = sum(2 * _PAIR_REACH * life for life in lives if life is not None) * len(train)
    if _num_pairs(train) + _CLOSE * close > _MOST_PAIRS or peak_bytes(dataset) > _MOST_BYTES:
        raise ConfigError(
            f"ItemKNN takes more than ten minutes or {_MOST_BYTES / 1e9:.0f} GB for {len(train):,} events; "
            "name it to have it all the same."
        )


def peak_bytes(dataset: Dataset) -> float:
    """Return how many bytes the similarities take while they are put together."""
    pairs = _num_pairs(dataset.part(Part.TRAIN))
    return _BYTES_OF_ONE * min(pairs, float(dataset.num_items) * max(_NEIGHBOURS))


def _num_pairs(train: Interactions) -> float:
    """Return how many pairs of events of one query there are."""
    lengths = np.diff(train.offsets).astype(np.float64)
    return float((lengths**2).sum())


def _similarities(
    train: Interactions,
    num_item_rows: int,
    neighbours: int | None,
    shrinkages: tuple[float, ...],
    pair_half_life: float | None,
) -> list[sparse.csr_array]:
    """Return the similarities under each shrinkage, from one count of what occurs together."""
    train = train.where(train.is_read & (train.item_rows >= FIRST_ROW))
    matrix = matrices.query_item_matrix(train, num_item_rows)
    norms = np.sqrt(matrix.power(2).sum(axis=0))
    if pair_half_life is None:
        blocks = matrices.together(matrix)
    else:
        distances = np.arange(max(1, int(_PAIR_REACH * pair_half_life)))
        blocks = matrices.close_together(train, num_item_rows, 0.5 ** (distances / pair_half_life))
    kept: list[list[sparse.csr_array]] = [[] for _ in shrinkages]
    for first, block in blocks:
        block.sort_indices()  # once, for all of its copies
        rows = first + np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        lengths = norms[rows] * norms[block.indices]
        block.data[rows == block.indices] = 0.0
        for shrinkage, pieces in zip(shrinkages, kept, strict=True):
            similar = block.copy()
            similar.data /= lengths + shrinkage
            pieces.append(sparse.csr_array(_largest(similar, neighbours), dtype=np.float32))
    return [sparse.csr_array(sparse.vstack(pieces, format="csr")) for pieces in kept]


def _largest(similarity: sparse.csr_array, neighbours: int | None) -> sparse.csr_array:
    """Return the ``neighbours`` largest entries of each row, without zeros, ties by column."""
    similarity.eliminate_zeros()
    if neighbours is None:
        return similarity
    similarity.sort_indices()
    kept = np.ones(similarity.nnz, np.bool_)
    for row in np.flatnonzero(np.diff(similarity.indptr) > neighbours):
        here = slice(similarity.indptr[row], similarity.indptr[row + 1])
        values = similarity.data[here]
        last = np.partition(values, -neighbours)[-neighbours]
        above, equal = values > last, values == last
        kept[here] = above | (equal & (np.cumsum(equal) <= neighbours - above.sum()))
    similarity.data[~kept] = 0.0
    similarity.eliminate_zeros()
    return similarity
