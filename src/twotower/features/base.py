"""What every transform of a feature promises."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.features.schema import Feature
from twotower.vocab import Vocabulary

Numbers = dict[str, npt.NDArray[np.floating[Any]]]
FeatureArrays = dict[str, npt.NDArray[np.int32] | npt.NDArray[np.float32]]


class Transform(ABC):
    """A fitted transform of one feature.

    Attributes:
        feature: What it transforms.
        vocabulary: Its values, where it has a vocabulary.
        numbers: Its fitted constants, where it has some.
    """

    def __init__(self, feature: Feature, vocabulary: Vocabulary | None, numbers: Numbers) -> None:
        self.feature = feature
        self.vocabulary = vocabulary
        self.numbers = numbers

    @classmethod
    @abstractmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "Transform":
        """Return the transform fitted on training rows."""

    @abstractmethod
    def apply(self, values: pl.Series) -> npt.NDArray[np.int32] | npt.NDArray[np.float32]:
        """Return what the encoder reads: one line a value."""

    @property
    def width(self) -> int:
        """Number of columns of a float output; 0 where the output is rows of a vocabulary."""
        return 0

    @abstractmethod
    def is_known(
        self, values: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Return in which lines of its output there was a value to read: ``(n,)`` bool."""

    def own_vocabulary(self) -> Vocabulary:
        """Return the vocabulary of a transform that always has one."""
        assert self.vocabulary is not None
        return self.vocabulary
