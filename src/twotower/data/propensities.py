"""How likely something is looked at where it stood: propensities of positions, and weights by them.

In the position-based model a click on item ``d`` of query ``q`` at position ``k`` has probability
``p_k * r(q, d)``: it was looked at, and it is relevant. A click that weighs ``1 / p_k`` then says the
same of relevance wherever it happened.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twotower.errors import ArgumentError

MAX_WEIGHT = 10.0
"""What a click weighs at most, where one at the first position weighs 1; of 5, 10, 20 and 40 the best."""
SMOOTHING = 20.0
"""Clicks that the power law adds, on an imaginary item that two neighbouring positions showed equally."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Propensities:
    """How likely what stands at each position is looked at, relative to the first of them.

    Args:
        positions: ``(K,)`` int, distinct and rising.
        values: ``(K,)`` float64 in (0, 1], never rising; the first is 1.
        num_clicks: Clicks on what stood at several positions, from which they were estimated; 0 where
            the power law was assumed.
    """

    positions: npt.NDArray[np.integer]
    values: Floats
    num_clicks: int

    def weights(self, positions: npt.NDArray[np.integer], most: float = MAX_WEIGHT) -> Floats:
        """Return ``min(1 / p_k, most)`` of each click: ``(n,)`` float64, at least 1.

        Args:
            positions: ``(n,)`` int from 1. One that is not known is taken for the last known one before it,
                or for the first.
            most: What none weighs more than.

        Source: Joachims, Swaminathan and Schnabel, WSDM 2017: the weights, and that they are clipped.
        """
        place = np.searchsorted(self.positions, positions, side="right") - 1
        return np.minimum(1 / self.values[np.maximum(place, 0)], most)


def power_law(positions: npt.NDArray[np.integer]) -> Propensities:
    """Return propensities in proportion to ``1 / position``, where nothing better is known.

    Args:
        positions: ``(n,)`` int from 1, not empty.

    Source: Joachims, Swaminathan and Schnabel, WSDM 2017, the experiments on simulated clicks, with eta 1.
    """
    distinct = np.unique(positions)
    return Propensities(distinct, distinct[0] / distinct, 0)


def harvested(
    pairs: npt.NDArray[np.integer],
    positions: npt.NDArray[np.integer],
    clicked: npt.NDArray[np.bool_],
) -> Propensities:
    """Return the propensities that make the clicks likeliest, given how often each item was clicked.

    What stood at several positions of the same query is as relevant at each, so that where its clicks fell
    tells positions apart. Of ``c_i`` clicks on pair ``i``, which position ``k`` showed ``n_ik`` times, each
    fell on ``k`` with probability ``n_ik p_k / sum_j n_ij p_j``: relevance is not in it. The logarithms of
    ``p`` maximise

        sum_ik c_ik log(n_ik p_k / sum_j n_ij p_j)

    plus, for neighbouring positions ``k < l``, ``SMOOTHING`` clicks of a pair that both showed alike often,
    which fell by the power law, ``l : k``. So the ratio of two neighbours of which little is known is
    nearly that of the power law. What rises with the position is then pooled (isotonic regression of
    the logarithms, each weighing its clicks).

    Args:
        pairs: ``(n,)`` int >= 0, a number for each query and item.
        positions: ``(n,)`` int from 1, where the item was shown.
        clicked: ``(n,)`` whether it was clicked there.

    Returns:
        The power law where no pair with a click was shown at two positions.

    Raises:
        ValueError: Nothing is given, the lengths differ, or a position is below 1.

    Source: Agarwal et al., WSDM 2019: what is harvested, and a likelihood of all pairs of positions.
        Hausman, Hall and Griliches, Econometrica 1984: counts given their sum. Differs: the paper estimates
        one relevance for each two positions, and every pair weighs the same there however often it was
        shown; neither smoothing nor pooling is theirs.

    Example:
        >>> shown = np.array([1] * 400 + [2] * 400)  # one document, 200 clicks above, 50 below
        >>> clicked = np.arange(800) % 400 < np.where(shown == 1, 200, 50)
        >>> harvested(np.zeros(800, np.int64), shown, clicked).values.round(2)
        array([1.  , 0.27])
    """
    if not len(pairs) == len(positions) == len(clicked):
        raise ArgumentError(
            "pairs, positions and clicked must be equally long, got "
            f"{len(pairs)}, {len(positions)} and {len(clicked)}."
        )
    if not len(positions) or positions.min() < 1:
        found = positions.min() if len(positions) else "none"
        raise ArgumentError(f"positions must be whole numbers from 1, got {found}.")
    distinct, place = np.unique(positions, return_inverse=True)
    num = len(distinct)
    cells, cell = np.unique(
        np.unique(pairs, return_inverse=True)[1] * num + place, return_inverse=True
    )
    shown = np.bincount(cell).astype(np.float64)
    clicks = np.bincount(cell, clicked)
    owner, at = np.divmod(cells, num)
    is_several = np.bincount(owner)[owner] > 1
    is_used = is_several & (np.bincount(owner, clicks)[owner] > 0)
    if not is_used.any():
        return power_law(positions)
    owner = np.unique(owner[is_used], return_inverse=True)[1]
    at, shown, clicks = at[is_used], shown[is_used], clicks[is_used]
    of_pair = np.bincount(owner, clicks)
    at_position = np.bincount(at, clicks, num)
    places = distinct.astype(np.float64)  # an int32 has no room for the sum of two
    below = places[1:] / (places[1:] + places[:-1])  # of the upper position, by the power law

    def cost(logs: Floats) -> tuple[float, Floats]:
        """Return the negated logarithm of the likelihood, and its gradient: a scalar, ``(K,)``."""
        looked = shown * np.exp(logs[at])
        total = np.bincount(owner, looked)
        slope = np.bincount(at, (of_pair / total)[owner] * looked, num).astype(np.float64)
        slope -= at_position
        step = np.diff(logs)
        upper = 1 / (1 + np.exp(step))
        value = of_pair @ np.log(total) - at_position @ logs
        value += SMOOTHING * np.sum(np.logaddexp(0, step) - (1 - below) * step)
        slope[1:] += SMOOTHING * (below - upper)
        slope[:-1] -= SMOOTHING * (below - upper)
        return float(value), slope

    from scipy.optimize import minimize  # takes a while, and few tables have positions

    start = -np.log(distinct.astype(np.float64))
    logs = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    from sklearn.isotonic import (
        IsotonicRegression,
    )  # it takes a second to load, and few data need it

    pooled = IsotonicRegression(increasing=False).fit_transform(
        distinct, logs, sample_weight=at_position + SMOOTHING
    )
    return Propensities(distinct, np.exp(pooled - pooled[0]), int(at_position.sum()))
