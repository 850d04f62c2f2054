"""Item neighbours, the recent items of a history first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.evaluation.evaluate import evaluate
from twotower.vocab import FIRST_ROW

_BLOCK_ENTRIES = 8_000_000  # of co-occurrences held at once while fitting, about 100 MB
_DENSE_BYTES = 256 * 2**20  # similarities are multiplied as a dense matrix up to this size
_PAIR_REACH = 5  # pair half-lives beyond which two events no longer count as a pair

# What is tried, the value to fall back on first.
_HALF_LIVES = (1.0, 0.5, 2.0, 5.0, 10.0, 20.0, 50.0, None)
_PAIR_HALF_LIVES = (None, 2.0, 5.0, 10.0, 20.0)
_SHRINKAGES = (10.0, 0.0, 50.0)
_NEIGHBOURS = (200, 50, 100, 500)
_ALL_NEIGHBOURS_ITEM_ROWS = 5_000  # in catalogues up to this size, keeping every neighbour is tried
_MAX_CASES = 2_000  # to choose on


@dataclass(frozen=True, eq=False)
class ItemKNN:
    """Scores an item by its similarity to the items of the query's history, recent ones first.

    With ``age_j`` the number of later events in the history (0 for the last), item ``i`` gets::

        score(i)         = sum over events j of similarity(j, i) * 0.5 ** (age_j / half_life)
        similarity(j, i) = together(j, i) / (norm(j) * norm(i) + shrinkage)

    With ``X`` the query x item matrix of training (1, or the largest weight of the pair's events),
    ``norm`` is the length of an item's column and ``together`` the dot product of two columns: the
    cosine, shrunk. Of each history item's similarities the ``neighbours`` largest are kept (equal
    ones by lower row). An item is not similar to itself.

    Args:
        similarity: ``(num_item_rows, num_item_rows)`` float32, sparse: ``similarity[j, i]``.
        neighbours: Similar items kept of each item, at least 1; None keeps all.
        shrinkage: At least 0; lowers similarities that rest on few queries.
        half_life: Events after which one counts half, above 0; None weighs all the same.
        pair_half_life: None, or above 0: then ``together(j, i)`` is the sum, over pairs of training
            events of one query ``d`` positions apart, of ``0.5 ** ((d - 1) / pair_half_life)``
            times both weights, up to ``d = 5 * pair_half_life``: items count as similar that occur
            close to one another, in either order.

    Source: Sarwar et al., WWW 2001, section 3 (cosine between items, a fixed number of them);
        Deshpande and Karypis, TOIS 2004, section 4 (top-N from binary data); Ding and Li, CIKM 2005
        (older events count less, by a half-life). Differs: no ratings are predicted, so the sum is
        not divided by that of the similarities; similarities are not normalised by row, which
        Deshpande and Karypis offer; age is counted in events instead of time, with one half-life
        for all where Ding and Li fit one to each query and cluster of items; shrinkage and
        ``pair_half_life`` are in none of the three.
    """

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

        Memory is bounded by the similarities kept plus a block of about 100 MB.

        Args:
            train: The training events, and no others; negatives among them are left out.
            num_item_rows: Rows of the item vocabulary.
            neighbours: See the class, and so for the rest.
            shrinkage: See the class.
            half_life: See the class. Events without order have no age: it must be None for them.
            pair_half_life: See the class. It must be None for events without order, too.

        Raises:
            ValueError: A setting is out of its range.
        """
        if neighbours is not None and neighbours < 1:
            raise ValueError(f"neighbours must be at least 1 or None, got {neighbours}.")
        if not 0 <= shrinkage < np.inf:
            raise ValueError(f"shrinkage must be at least 0 and finite, got {shrinkage}.")
        for name, value in (("half_life", half_life), ("pair_half_life", pair_half_life)):
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} must be above 0 and finite, or None, got {value}.")
        train = train.where(train.is_positive & (train.item_rows >= FIRST_ROW))
        matrix = _query_item_matrix(train, num_item_rows)
        norms = np.sqrt(matrix.power(2).sum(axis=0))
        if pair_half_life is None:
            blocks = _together(matrix)
        else:
            blocks = _close_together(train, num_item_rows, pair_half_life)
        kept = []
        for first, together in blocks:
            rows = first + np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
            together.data /= norms[rows] * norms[together.indices] + shrinkage
            together.data[rows == together.indices] = 0.0
            kept.append(_largest(together, neighbours))
        similarity = sparse.csr_array(sparse.vstack(kept, format="csr", dtype=np.float32))
        return cls(similarity, neighbours, shrinkage, half_life, pair_half_life)

    def narrowed(self, neighbours: int | None) -> "ItemKNN":
        """Return this with at most ``neighbours`` similar items of each item, None for all."""
        return replace(
            self, similarity=_largest(self.similarity.copy(), neighbours), neighbours=neighbours
        )

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the score of each item row: ``(len(cases), num_item_rows)`` float32."""
        histories = cases.histories
        owners = np.repeat(np.arange(len(histories)), histories.lengths)
        rows, weights = histories.item_rows, np.ones(len(owners))
        if self.half_life is not None:
            ages = histories.offsets[1:][owners] - 1 - np.arange(len(owners))
            weights = 0.5 ** (ages / self.half_life)
        kept = weights > 1e-30  # below, float32 products would be denormal, and slow
        history = sparse.csr_array(
            (weights[kept].astype(np.float32), (owners[kept], rows[kept])),
            shape=(len(histories), self.similarity.shape[0]),
        )
        scores = history @ self._factor
        return torch.from_numpy(scores.toarray() if sparse.issparse(scores) else scores)

    @cached_property
    def _factor(self) -> "sparse.csr_array | npt.NDArray[np.float32]":
        """The similarities in the form that multiplies fastest: dense if small and well filled."""
        cells = self.similarity.shape[0] * self.similarity.shape[1]
        if 4 * cells <= _DENSE_BYTES and self.similarity.nnz > cells / 10:
            return np.ascontiguousarray(self.similarity.toarray())
        return self.similarity


def choose_item_knn(dataset: Dataset, *, pairs: bool = False) -> ItemKNN:
    """Return ItemKNN fitted on the training events, its settings chosen on validation.

    NDCG@10 decides, in stages, each on a small grid: the half-lives, then the shrinkage, then the
    neighbours. The similarities stay those of the training events alone, as a trained model's
    weights do; at test the events of validation enter through the histories only.

    Args:
        dataset: With a split. Without order among its events, both half-lives are None. Where
            queries repeat items, those in the history stay in the ranking. Without any validation
            case nothing is chosen: the first value of each grid is taken.
        pairs: Whether ``pair_half_life`` is chosen too, rather than left at None.
    """
    train, num_item_rows = dataset.part(Part.TRAIN), dataset.items.ids.num_rows
    cases = _thinned(dataset.cases(Part.VALID), _MAX_CASES)
    half_lives = _HALF_LIVES if dataset.ordered else (None,)
    pair_half_lives = _PAIR_HALF_LIVES if dataset.ordered and pairs else (None,)
    neighbours: tuple[int | None, ...] = _NEIGHBOURS
    if num_item_rows <= _ALL_NEIGHBOURS_ITEM_ROWS:
        neighbours = (*_NEIGHBOURS, None)

    def fit(shrinkage: float, half_life: float | None, pair_half_life: float | None) -> ItemKNN:
        return ItemKNN.fit(
            train,
            num_item_rows,
            neighbours=_widest(neighbours),
            shrinkage=shrinkage,
            half_life=half_life,
            pair_half_life=pair_half_life,
        )

    def quality(scorer: ItemKNN) -> float:
        evaluation = evaluate(
            scorer, cases, (10,), num_item_rows=num_item_rows, remove_seen=not dataset.repeats
        )
        return evaluation.mean()["ndcg@10"]

    if not len(cases):
        return fit(_SHRINKAGES[0], half_lives[0], pair_half_lives[-1]).narrowed(neighbours[0])
    fitted = [fit(_SHRINKAGES[0], None, pair_half_life) for pair_half_life in pair_half_lives]
    best = max((replace(knn, half_life=life) for knn in fitted for life in half_lives), key=quality)
    shrunk = [fit(shrinkage, best.half_life, best.pair_half_life) for shrinkage in _SHRINKAGES[1:]]
    best = max((best, *shrunk), key=quality)
    return max((best.narrowed(count) for count in neighbours), key=quality)


def _thinned(cases: Cases, most: int) -> Cases:
    """Return at most ``most`` of the cases, evenly spaced."""
    if len(cases) <= most:
        return cases
    return cases.take(np.linspace(0, len(cases) - 1, most).astype(np.int64))


def _widest(neighbours: tuple[int | None, ...]) -> int | None:
    """Return the largest number of neighbours, None being all."""
    numbers = [count for count in neighbours if count is not None]
    return max(numbers) if len(numbers) == len(neighbours) else None


def _query_item_matrix(train: Interactions, num_item_rows: int) -> sparse.csr_array:
    """Return the largest weight of the events of each query and item: sparse, queries by rows."""
    num_query_rows = len(train.offsets) - 1
    pairs = train.query_rows.astype(np.int64) * num_item_rows + train.item_rows
    order = np.argsort(pairs, kind="stable")
    pairs, starts = np.unique(pairs[order], return_index=True)
    weights = np.ones(len(pairs))
    if train.weights is not None and len(pairs):
        weights = np.maximum.reduceat(train.weights[order].astype(np.float64), starts)
    return sparse.csr_array(
        (weights, (pairs // num_item_rows, pairs % num_item_rows)),
        shape=(num_query_rows, num_item_rows),
    )


def _blocks(costs: npt.NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Yield ranges of items whose costs sum to at most a block's, or that are one item."""
    total = np.concatenate([[0], np.cumsum(costs, dtype=np.int64)])
    first = 0
    while first < len(costs):
        last = int(np.searchsorted(total, total[first] + _BLOCK_ENTRIES, side="right")) - 1
        yield first, max(last, first + 1)
        first = max(last, first + 1)


def _together(matrix: sparse.csr_array) -> Iterator[tuple[int, sparse.csr_array]]:
    """Yield the first item of each block and the dot products of its items with all."""
    by_item = matrix.T.tocsr()
    found = np.diff(matrix.indptr)[by_item.indices]  # items of the query, per entry
    work = np.diff(np.concatenate([[0], np.cumsum(found)])[by_item.indptr])
    for first, last in _blocks(np.minimum(work, matrix.shape[1])):
        yield first, by_item[first:last] @ matrix


def _close_together(
    train: Interactions, num_item_rows: int, pair_half_life: float
) -> Iterator[tuple[int, sparse.csr_array]]:
    """Yield the first item of each block and how closely its items occur together with all."""
    reach = max(1, int(_PAIR_REACH * pair_half_life))
    distances = np.concatenate([np.arange(-reach, 0), np.arange(1, reach + 1)])
    closeness = 0.5 ** ((np.abs(distances) - 1) / pair_half_life)
    weights = np.ones(len(train)) if train.weights is None else train.weights.astype(np.float64)
    events = np.argsort(train.item_rows, kind="stable")  # by item
    counts = np.bincount(train.item_rows, minlength=num_item_rows)
    ends = np.cumsum(counts)
    piece = max(1, _BLOCK_ENTRIES // len(distances))
    for first, last in _blocks(counts * len(distances)):
        shape = (last - first, num_item_rows)
        together = sparse.csr_array(shape)
        for start in range(ends[first] - counts[first], ends[last - 1], piece):
            here = events[start : min(start + piece, ends[last - 1])]
            there = here[:, None] + distances  # (events, 2 reach)
            query_rows = train.query_rows[here]
            inside = (there >= train.offsets[query_rows][:, None]) & (
                there < train.offsets[query_rows + 1][:, None]
            )
            event, distance = inside.nonzero()
            other = there[inside]
            values = weights[here[event]] * weights[other] * closeness[distance]
            cells = (train.item_rows[here[event]] - first, train.item_rows[other])
            together = together + sparse.csr_array((values, cells), shape=shape)
        yield first, together


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
