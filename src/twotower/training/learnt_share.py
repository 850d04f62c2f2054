"""How much of what was learnt is added to popularity where the test is a later period."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from twotower.arrays import Bools, Floats
from twotower.towers.popularity import PopularityPrior

SHARES = (0.0, 0.25, 0.5, 1.0)
"""What is tried, the least first: of equal ones it is chosen. By 0 popularity alone answers."""
GROUPS = ("without events", "with events")


@dataclass(frozen=True)
class BestShares:
    """The best share for each group of queries.

    Args:
        metric: The mean over validation, each group with its own share.
        shares: For queries without events, and with events.
        said: A sentence for each group that validation has.
    """

    metric: float
    shares: tuple[float, float]
    said: tuple[str, ...]


class ShareSearch:
    """Searches the best shares for a model as it is.

    Args:
        prior: Of the model; it has the same shares after a search as before.
        is_known: ``(n,)`` whether each validation case has events that the model reads; at least one case.
        weights: ``(n,)`` of the cases in a mean, or None.
        name: Of the metric.
        measure: Returns the metric of each case, ``(n,)``.
    """

    def __init__(
        self,
        prior: PopularityPrior,
        is_known: Bools,
        weights: Floats | None,
        name: str,
        measure: Callable[[], Floats],
    ) -> None:
        self.prior = prior
        self.is_known = is_known
        self.weights = np.ones(len(is_known)) if weights is None else weights
        self.name = name
        self.measure = measure

    def best(self) -> BestShares:
        """Return the best share for each group; a group without a case has that of the other."""
        values = np.stack([self._popular, *(self._values(share) for share in SHARES[1:])])
        chosen: list[int | None] = [None, None]
        found, said = np.zeros(len(self.is_known)), []
        for group, name in enumerate(GROUPS):
            members = self.is_known == bool(group)
            if not members.any():
                continue
            means = np.average(values[:, members], axis=1, weights=self.weights[members])
            best = int(np.argmax(means))
            chosen[group], found[members] = best, values[best, members]
            said.append(
                f"queries {name} are answered by popularity and {SHARES[best]:g} times what was learnt: "
                f"their validation {self.name} is {means[best]:.4f}, {means[0]:.4f} by popularity alone, "
                f"{means[-1]:.4f} with all that was learnt"
            )
        first, second = chosen
        without = first if first is not None else second
        having = second if second is not None else first
        assert without is not None
        assert having is not None
        metric = float(np.average(found, weights=self.weights))
        return BestShares(metric, (SHARES[without], SHARES[having]), tuple(said))

    @cached_property
    def _popular(self) -> Floats:
        """The metric by popularity alone, which training does not change."""
        return self._values(0.0)

    def _values(self, share: float) -> Floats:
        before = self.prior.shares.tolist()
        self.prior.share(share, share)
        try:
            return self.measure()
        finally:
            self.prior.share(*before)
