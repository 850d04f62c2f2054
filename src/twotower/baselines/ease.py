"""EASE with decay: a closed-form linear regression of each item on the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from scipy.linalg import lapack

from twotower.arrays import Float32s, Ints, distinct
from twotower.baselines import history_matrices as matrices
from twotower.baselines.validation import Validation, half_lives
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.errors import ArgumentError, ConfigError, check_positive
from twotower.runtime import available_bytes
from twotower.vocab import FIRST_ROW

_PAIR_REACH = 12  # pair half-lives beyond which two events no longer count as a pair
_MIRRORED_ROWS = 512  # of the matrix that are mirrored at once

# What is tried, the value to fall back on first.
_REGULARIZATIONS = (200.0, 50.0, 800.0)
_PAIR_HALF_LIVES = (None, 5.0, 20.0)
_HALF_LIVES = (2.0, 1.0, 0.5, 5.0, 10.0, 20.0, 50.0, None)
_AUTO_ITEMS = 35_000  # its inverse takes ten minutes of a core there
_ALL_TRIED_ITEMS = 8_000  # above, most settings are tried on the next number of items
_FEW_ITEMS = 4_000
_CHOSEN_ITEMS = 16_000  # above, one inverse takes minutes: only the half-life is chosen


@dataclass(frozen=True, eq=False)
class EASE:
    """Scores an item by a regression on the items of the query's history, where recent ones weigh more.

    ``score(i) = sum over events j of weights[j, i] * 0.5 ** (age_j / half_life)``, with ``age_j`` the
    number of later events in the history. With ``G`` the items' Gram matrix of training,
    ``X^T X`` of the 0/1 query x item matrix ``X``, and ``P = (G + regularization * I)^-1``::

        weights[j, i] = -P[j, i] / P[i, i]      weights[i, i] = 0

    which is the least squares solution of ``X = X weights`` under that diagonal.

    Args:
        item_rows: ``(m,)`` int64, the items with a training event, ascending. Others score 0.
        weights: ``(m, m)`` float32.
        num_item_rows: Rows of the item vocabulary.
        regularization: Above 0; Steck's lambda.
        half_life: Number of events after which an event counts half, above 0; None weighs all alike.
        pair_half_life: None, or above 0: then ``G[j, i]`` is the sum, over the ordered pairs of
            training events of one query ``d`` positions apart, of ``0.5 ** (d / pair_half_life)``, up
            to ``d = 12 * pair_half_life``, including each event with itself. This is the Gram matrix of
            histories seen through a decaying window at each of their events.

    Source: Steck, WWW 2019, section 3 (the closed form). Differs: both half-lives; weights of events
        are not read.
    """

    SETTINGS = ("regularization", "half_life", "pair_half_life")

    item_rows: Ints
    weights: Float32s
    num_item_rows: int
    regularization: float
    half_life: float | None
    pair_half_life: float | None = None

    @classmethod
    def fit(
        cls,
        train: Interactions,
        num_item_rows: int,
        *,
        regularization: float,
        half_life: float | None,
        pair_half_life: float | None = None,
    ) -> "EASE":
        """Return the regression of each item of ``train`` on the others.

        It takes four bytes for each pair of items, and time proportional to the cube of the number of
        items.

        Args:
            train: The training events only; negatives among them are ignored.
            num_item_rows: Rows of the item vocabulary.
            regularization: See the class, also for the other settings.
            half_life: Must be None for events without order, which have no age.
            pair_half_life: Must be None for events without order, too.

        Raises:
            ValueError: A setting is out of its range, or ``regularization`` is too low for the rounding
                of float32.
        """
        check_positive(regularization=regularization)
        check_positive(or_none=True, half_life=half_life, pair_half_life=pair_half_life)
        item_rows, gram = _gram(train, pair_half_life)
        weights = _solved(gram, regularization)
        return cls(item_rows, weights, num_item_rows, regularization, half_life, pair_half_life)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the score of each item row: ``(len(cases), num_item_rows)`` float32."""
        history = matrices.decayed_histories(cases.histories, self.num_item_rows, self.half_life)
        scores = np.zeros((len(cases), self.num_item_rows), np.float32)
        if len(self.item_rows):
            scores[:, self.item_rows] = matrices.product(history[:, self.item_rows], self.weights)
        return torch.from_numpy(scores)


def choose_ease(dataset: Dataset) -> EASE:
    """Return EASE fitted on the training events, with settings chosen on validation.

    NDCG@10 decides, on small grids: first whether pairs decay, then the regularisation, with the best
    half-life of the history for each. With more than 8,000 items, this is done on the 4,000 that have the
    most events, where an inverse takes a second. It says whether pairs decay, and which regularisation is
    compared with the default on all items. With more than 16,000 items, only the half-life is chosen.

    Args:
        dataset: With a split. Without order among its events, both half-lives are None.

    Raises:
        ConfigError: The catalogue is too large for the memory that is available.
    """
    count, num_rows = check_size(dataset), dataset.items.ids.num_rows
    train, validation = dataset.part(Part.TRAIN), Validation.of(dataset)
    lives = half_lives(dataset, _HALF_LIVES)
    pair_lives = half_lives(dataset, _PAIR_HALF_LIVES)

    def tried(
        events: Interactions, pair_half_life: float | None, regularizations: Sequence[float]
    ) -> Iterator[EASE]:
        item_rows, gram = _gram(events, pair_half_life)
        for number, regularization in enumerate(regularizations, 1):
            # The last one may take the matrix itself.
            matrix = gram.copy() if number < len(regularizations) else gram
            weights = _solved(matrix, regularization)
            fitted = EASE(item_rows, weights, num_rows, regularization, None, pair_half_life)
            del matrix, weights
            yield validation.best(replace(fitted, half_life=life) for life in lives)

    first, *others = _REGULARIZATIONS
    if count > _CHOSEN_ITEMS:
        return next(tried(train, None, [first]))
    is_large = count > _ALL_TRIED_ITEMS
    few = _of_common_items(train, _FEW_ITEMS) if is_large else train
    best = validation.best(*(tried(few, life, [first]) for life in pair_lives))
    other = validation.best(tried(few, best.pair_half_life, others))
    if not is_large:
        return validation.best([best, other])
    del few
    return validation.best(tried(train, best.pair_half_life, [first, other.regularization]))


def check_size(dataset: Dataset) -> int:
    """Return ``num_trained_items``, of a catalogue that is not too large.

    Raises:
        ConfigError: It is, for the memory that is available.
    """
    count, available, needed = num_trained_items(dataset), available_bytes(), peak_bytes(dataset)
    if needed > available:
        raise ConfigError(
            f"EASE needs {needed / 1e9:.1f} GB for {count:,} items, "
            f"{available / 1e9:.1f} GB are available."
        )
    return count


def peak_bytes(dataset: Dataset) -> float:
    """Return how many bytes are held while the settings are chosen."""
    count = num_trained_items(dataset)
    held = 3 if count <= _CHOSEN_ITEMS else 1  # the Gram matrix, the best, the one being tried
    return 4.0 * held * count**2


def check_quick(dataset: Dataset) -> None:
    """Refuse a catalogue that is so large that EASE is only fitted on request.

    Raises:
        ConfigError: It is.
    """
    count = num_trained_items(dataset)
    if count > _AUTO_ITEMS:
        raise ConfigError(
            f"EASE takes more than ten minutes for {count:,} items; name it to have it all the same."
        )


def num_trained_items(dataset: Dataset) -> int:
    """Return how many items have a positive training event: the width of the matrix."""
    train = dataset.part(Part.TRAIN)
    rows = train.item_rows[train.is_read]
    return len(distinct(rows[rows >= FIRST_ROW]))


def _of_common_items(train: Interactions, most: int) -> Interactions:
    """Return the events of at most so many items, those with the most events."""
    counts = np.bincount(train.item_rows[train.is_read & (train.item_rows >= FIRST_ROW)])
    kept = np.argsort(-counts, kind="stable")[:most]
    return train.where(np.isin(train.item_rows, kept))


def _gram(train: Interactions, pair_half_life: float | None) -> tuple[Ints, Float32s]:
    """Return the item rows of training, ``(m,)``, and their Gram matrix, ``(m, m)``."""
    train = train.where(train.is_read & (train.item_rows >= FIRST_ROW))
    item_rows, places = np.unique(train.item_rows, return_inverse=True)
    count = len(item_rows)
    plain = replace(train, item_rows=places.astype(np.int32), weights=None)
    if pair_half_life is None:
        gram = np.zeros((count, count), np.float32)
        for first, block in matrices.together(matrices.query_item_matrix(plain, count)):
            dense = sparse.csr_array(block, dtype=np.float32).toarray()
            gram[first : first + block.shape[0]] = dense
    else:
        distances = np.arange(1, int(_PAIR_REACH * pair_half_life) + 1)
        gram = matrices.close_matrix(plain, count, 0.5 ** (distances / pair_half_life), np.float32)
        gram[np.diag_indices(count)] += np.bincount(places, minlength=count).astype(np.float32)
    return item_rows.astype(np.int64), gram


def _solved(gram: Float32s, regularization: float) -> Float32s:
    """Return the weights, in the memory of ``gram``: it is overwritten."""
    count = len(gram)
    if count == 0:
        return gram
    gram[np.diag_indices(count)] += regularization
    # The transpose is in the order of LAPACK, which then copies nothing.
    factor, failed = lapack.spotrf(gram.T, lower=1, clean=0, overwrite_a=1)
    if failed:
        raise ArgumentError(
            f"regularization must be above what float32 rounds away, got {regularization}; raise it."
        )
    inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    weights: Float32s = inverse.T  # its upper triangle is the answer
    for start in range(0, count, _MIRRORED_ROWS):
        end = min(start + _MIRRORED_ROWS, count)
        weights[start:end, :start] = weights[:start, start:end].T
        own = np.triu(weights[start:end, start:end])
        weights[start:end, start:end] = own + np.triu(own, 1).T
    weights /= -weights.diagonal().copy()
    np.fill_diagonal(weights, 0.0)
    return weights
