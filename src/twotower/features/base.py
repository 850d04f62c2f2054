"""The interface of a transform of a feature."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.arrays import Bools, Float32s, Rows
from twotower.errors import ArgumentError
from twotower.features.schema import Feature
from twotower.vocab import UNKNOWN_ROW, Vocabulary

Numbers = dict[str, npt.NDArray[np.floating[Any]]]
FeatureArrays = dict[str, Rows | Float32s]


@dataclass(eq=False, repr=False)
class Transform(ABC):
    """A fitted transform of one feature.

    Args:
        feature: The column and its kind.
        vocabulary: Its vocabulary, or None where it has none.
        numbers: Its fitted constants by their names.
    """

    feature: Feature
    vocabulary: Vocabulary | None
    numbers: Numbers

    @classmethod
    @abstractmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "Transform":
        """Return the transform fitted on training rows."""

    @abstractmethod
    def apply(self, values: pl.Series) -> Rows | Float32s:
        """Return the input of the encoder, one line for each value."""

    @property
    def width(self) -> int:
        """Number of columns of a float output; 0 where the output is rows of a vocabulary."""
        return 0

    def is_known(self, values: Rows | Float32s) -> Bools:
        """Return which lines of its output hold a value: ``(n,)`` bool.

        These are the lines with a row of the vocabulary, or with a number other than 0.
        """
        is_row = np.issubdtype(values.dtype, np.integer)
        known: Bools = values > UNKNOWN_ROW if is_row else values != 0
        return known if known.ndim == 1 else np.asarray(known.any(axis=1))

    def check(self) -> None:
        """Refuse a vocabulary or constants that ``fit`` never makes: a bundle may hold anything.

        Raises:
            ValueError: A part is missing or superfluous, or a constant has another shape or range.
        """
        self._check_parts()

    def _check_parts(
        self,
        *,
        has_vocabulary: bool = False,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        **shapes: tuple[int, ...],
    ) -> None:
        """Refuse other parts than these.

        Args:
            has_vocabulary: Whether there must be a vocabulary.
            bounds: Name of a constant -> the smallest and the largest number that it may hold.
            shapes: Name of each constant -> its shape.
        """
        name = self.feature.name
        if (self.vocabulary is not None) != has_vocabulary:
            rule = "have a" if has_vocabulary else "have no"
            raise ArgumentError(f"the column {name!r} must {rule} vocabulary")
        found = {key: array.shape for key, array in self.numbers.items()}
        if found != shapes:
            raise ArgumentError(f"the column {name!r} must have constants {shapes}, got {found}")
        for key, array in self.numbers.items():
            is_float = np.issubdtype(array.dtype, np.floating)
            if not is_float or not np.isfinite(array).all():
                raise ArgumentError(f"{key} of the column {name!r} must hold finite numbers")
            low, high = (bounds or {}).get(key, (-np.inf, np.inf))
            if array.size and not low <= array.min() <= array.max() <= high:
                raise ArgumentError(f"{key} of the column {name!r} must be in {low:g}..{high:g}")

    def own_vocabulary(self) -> Vocabulary:
        """Return the vocabulary of a transform that always has one."""
        assert self.vocabulary is not None
        return self.vocabulary
