"""Choose the settings of a baseline by NDCG@10 on validation."""

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from twotower.data.dataset import Cases, Dataset, Part
from twotower.evaluation.ranking import Scorer, mean_of

Candidate = TypeVar("Candidate", bound=Scorer)

before_each: ContextVar[Callable[[], object]] = ContextVar("before_each", default=lambda: None)
"""Called before a candidate is measured; what it raises ends the choice."""


@dataclass(frozen=True, eq=False)
class Validation:
    """The validation cases that settings are chosen on.

    Args:
        dataset: The data set of the cases.
        cases: The cases. Without any, nothing can be chosen.
    """

    dataset: Dataset
    cases: Cases
    _known: WeakKeyDictionary[Scorer, float] = field(default_factory=WeakKeyDictionary)

    @classmethod
    def of(cls, dataset: Dataset) -> "Validation":
        """Return ``choice_cases`` of the data set's validation cases at most, evenly spaced."""
        return cls(dataset, thinned(dataset.cases(Part.VALID), dataset.choice_cases))

    def quality(self, scorer: Scorer) -> float:
        """Return the scorer's NDCG@10; there must be a case.

        It is computed once, since the best of one stage competes with the candidates of the next.
        """
        if scorer not in self._known:
            before_each.get()()
            self._known[scorer] = mean_of("ndcg@10", self.dataset, scorer, self.cases)
        return self._known[scorer]

    def best(self, *candidates: Iterable[Candidate]) -> Candidate:
        """Return the candidate of the highest quality, the first of equal ones.

        Without any case it is the first candidate, and the others are not made.

        Args:
            candidates: Several iterables with at least one candidate in all. Of an iterator, two candidates
                are held at once.
        """
        every = chain.from_iterable(candidates)
        return max(every, key=self.quality) if len(self.cases) else next(every)


def thinned(cases: Cases, most: int) -> Cases:
    """Return at most ``most`` of the cases, evenly spaced."""
    if len(cases) <= most:
        return cases
    return cases.take(np.linspace(0, len(cases) - 1, most).astype(np.int64))


def half_lives(dataset: Dataset, values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return the half-lives that can be tried: of events without order, None alone."""
    return tuple(values) if dataset.ordered else (None,)
