"""Implicit ALS: factors of queries and items by weighted least squares."""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from scipy import sparse

from twotower.baselines.history_matrices import decayed_histories, query_item_matrix
from twotower.baselines.validation import Validation
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.errors import ArgumentError, ConfigError, check_least, check_positive
from twotower.extras import library
from twotower.vocab import FIRST_ROW

# What is tried, the value to fall back on first.
_ALPHAS = (10.0, 1.0, 40.0)
_REGULARIZATIONS = (0.1, 1.0, 10.0)
_FACTORS = (64, 128)
_ITERATIONS = 15
_ROUNDS = 3  # of conjugate gradients in each
_MOST_WORK = 3e12  # multiplications that all settings take together: ten minutes of a core


@dataclass(frozen=True, eq=False)
class ALS:
    """Scores an item by the dot product of its factors with those that best explain the history.

    Training finds the factors of queries ``x`` and items ``y`` that minimise::

        sum over all q, i of confidence(q, i) * (preference(q, i) - x_q . y_i)^2
            + regularization * (sum of |x_q|^2 + sum of |y_i|^2)

    where the preference is 1 and the confidence ``alpha * count / mean count`` if the query has a
    training event with the item (the count is the sum of the weights of its events), else 0 and 1. At test
    time, the factors of a query are the solution for its history with fixed item factors, where each event
    has the mean count. So validation events are used, and a new query needs no training.

    Args:
        model: ``implicit.cpu.als.AlternatingLeastSquares``, fitted on the items from ``FIRST_ROW`` up.
        num_item_rows: Rows of the item vocabulary.
        factors: Width of the factors.
        regularization: At least 0.
        alpha: Above 0.

    Source: Hu, Koren and Volinsky, ICDM 2008, section 4; the solver is that of the library
        ``implicit``. Differs: the confidence of an event is ``alpha * count``, not ``1 + alpha * count``,
        as the library has it, with counts in units of their mean.
    """

    SETTINGS = ("factors", "regularization", "alpha")

    model: Any
    num_item_rows: int
    factors: int
    regularization: float
    alpha: float

    @classmethod
    def fit(
        cls,
        train: Interactions,
        num_item_rows: int,
        *,
        factors: int,
        regularization: float,
        alpha: float,
        seed: int = 0,
    ) -> "ALS":
        """Return the factors after 15 rounds.

        Args:
            train: The training events, and no others; negatives among them are left out.
            num_item_rows: Rows of the item vocabulary.
            factors: At least 1.
            regularization: See the class.
            alpha: See the class.
            seed: Seed of the initial factors.

        Raises:
            MissingExtraError: ``implicit`` is not installed.
            ValueError: A setting is out of its range.
        """
        check_least(1, factors=factors)
        if not 0 <= regularization < np.inf:
            raise ArgumentError(
                f"regularization must be at least 0 and finite, got {regularization}."
            )
        check_positive(alpha=alpha)
        train = train.where(train.is_read & (train.item_rows >= FIRST_ROW))
        counts = query_item_matrix(train, num_item_rows, add_up=True)[:, FIRST_ROW:]
        counts = sparse.csr_matrix(counts, dtype=np.float32)  # what the library takes
        if counts.nnz:
            counts.data /= counts.data.mean()
        counts.data *= alpha
        # Each of the library's threads has its own BLAS to itself.
        als = library("implicit.cpu.als", wanted_by="als", extra="baselines")
        with _loaded().limit(limits=1, user_api="blas"):
            model = als.AlternatingLeastSquares(
                factors=factors,
                regularization=regularization,
                iterations=_ITERATIONS,
                num_threads=torch.get_num_threads(),
                random_state=seed,
            )
            model.fit(counts, show_progress=False)
        return cls(model, num_item_rows, factors, regularization, alpha)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the score of each item row: ``(len(cases), num_item_rows)`` float32."""
        history = decayed_histories(cases.histories, self.num_item_rows, None)[:, FIRST_ROW:]
        history = sparse.csr_matrix(history)
        history.data *= np.float32(self.alpha)
        with _loaded().limit(limits=1, user_api="blas"):
            queries = self.model.recalculate_user(np.arange(len(cases)), history)
        scores = torch.zeros(len(cases), self.num_item_rows)
        items = torch.from_numpy(self.model.item_factors)
        torch.mm(torch.from_numpy(queries), items.T, out=scores[:, FIRST_ROW:])
        return scores


def choose_als(dataset: Dataset, *, seed: int = 0) -> ALS:
    """Return ALS fitted on the training events, its settings chosen on validation.

    NDCG@10 decides, in stages, each on a small grid: alpha, then the regularisation, then the factors.

    Args:
        dataset: Split, with validation queries.
        seed: Seed of the initial factors; at least 0.

    Raises:
        MissingExtraError: ``implicit`` is not installed.
    """
    train, validation = dataset.part(Part.TRAIN), Validation.of(dataset)
    fit = partial(ALS.fit, train, dataset.items.ids.num_rows, seed=seed)
    first, *others = _REGULARIZATIONS
    narrow, *wider = _FACTORS
    best = validation.best(fit(alpha=a, regularization=first, factors=narrow) for a in _ALPHAS)
    more = (fit(alpha=best.alpha, regularization=r, factors=narrow) for r in others)
    best = validation.best([best], more)
    widened = partial(fit, alpha=best.alpha, regularization=best.regularization)
    return validation.best([best], (widened(factors=factors) for factors in wider))


def check_quick(dataset: Dataset) -> None:
    """Refuse data with so many queries and items that ALS is only fitted on request.

    Raises:
        ConfigError: They are so many.
    """
    count = len(dataset.queries) + len(dataset.items)
    narrow, *wider = _FACTORS
    squares = (len(_ALPHAS) + len(_REGULARIZATIONS) - 1) * narrow**2 + sum(f**2 for f in wider)
    if _ROUNDS * _ITERATIONS * count * squares > _MOST_WORK:
        raise ConfigError(
            f"ALS takes more than ten minutes for {count:,} queries and items; name it to have it all the "
            "same."
        )


@cache
def _loaded() -> Any:
    """Return what knows the libraries that are loaded: they are looked for once, which takes a while."""
    library("implicit.cpu.als", wanted_by="als", extra="baselines")  # its BLAS is among them
    return library("threadpoolctl", wanted_by="als", extra="baselines").ThreadpoolController()
