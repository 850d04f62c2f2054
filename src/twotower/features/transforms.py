"""Transforms: a raw column -> numbers, fitted on training rows and kept in the bundle.

The same ``apply`` runs in training and in serving, so the two cannot drift. No value can make it
fail: what is missing, of another type or never seen becomes what each class states.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from twotower.arrays import Bools, Float32s, Floats, Ints, Rows
from twotower.errors import DataError
from twotower.features import raw_values
from twotower.features.base import FeatureArrays, Numbers, Transform
from twotower.features.schema import Feature
from twotower.features.tuned import TokenIdsTransform
from twotower.registry import resolved
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW, Vocabulary, as_keys

MAX_TAGS = 32
"""Most tags of an entity that are read; later ones are left out."""

LARGEST = 1e100
"""Larger numbers are read as this one, so that no square of one overflows."""

_SCALE_BOUNDS = {"scale": (1 / LARGEST, np.inf)}


class CategoryTransform(Transform):
    """Ids and categories -> ``(n,)`` int32 rows. Missing becomes 0, unseen becomes 1."""

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "CategoryTransform":
        """Return the vocabulary of the training rows' values."""
        return cls(feature, Vocabulary.fit(as_keys(values), min_count), {})

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        self._check_parts(has_vocabulary=True)

    def apply(self, values: pl.Series) -> Rows:
        """Return the row of each value."""
        return self.own_vocabulary().rows_of(values)


class IdTransform(CategoryTransform):
    """The key -> ``(n,)`` int32 rows. A missing key is as unknown as an unseen one: both become 1."""

    def apply(self, values: pl.Series) -> Rows:
        """Return the row of each id."""
        return np.maximum(super().apply(values), UNKNOWN_ROW)


class TagsTransform(Transform):
    """Lists, or strings with a separator -> ``(n, MAX_TAGS)`` int32 rows, padded with 0.

    A missing or empty list is all padding; unseen tags are left out, so that a new tag does not
    blur those that are known.
    """

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "TagsTransform":
        """Return the vocabulary of the training rows' tags and how many the longest list has."""
        lines, tags = raw_values.tags_of(values, feature.separator)
        vocabulary = Vocabulary.fit(tags, min_count)
        longest = int(np.bincount(lines).max()) if len(lines) else 1
        width = np.array([min(MAX_TAGS, longest)], np.float64)
        return cls(feature, vocabulary, {"longest": width})

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        self._check_parts(has_vocabulary=True, bounds={"longest": (1, MAX_TAGS)}, longest=(1,))

    def apply(self, values: pl.Series) -> Rows:
        """Return the rows of each value's tags."""
        lines, tags = raw_values.tags_of(values, self.feature.separator)
        rows = self.own_vocabulary().rows_of(tags)
        known = rows > UNKNOWN_ROW
        width = int(self.numbers["longest"][0])
        return raw_values.padded(lines[known], rows[known], len(values), width)


class _FlaggedTransform(Transform):
    """Numbers of which the last is 1 where there was no value to read, and else 0."""

    def is_known(self, values: Rows | Float32s) -> Bools:
        """Return where the missing flag is not set."""
        return np.asarray(values[:, -1] == 0)


class NumberTransform(_FlaggedTransform):
    """Numbers -> ``(n, 2)`` float32: the scaled value and a flag that it is missing.

    Scaled by median and interquartile range (by the standard deviation where that range is 0),
    after ``log1p`` where no training value is negative and their skewness is above 2, a negative
    one then counting as 0; cut off at +-10.
    """

    width = 2  # the value and the flag

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "NumberTransform":  # noqa: ARG003
        """Return the scale of the training rows.

        Raises:
            DataError: A value is infinite.
        """
        floats = _bounded(raw_values.floats_of(values))
        _check_finite(feature, floats)
        known = floats[~np.isnan(floats)]
        log = bool(len(known)) and known.min() >= 0 and _skewness(known) > 2
        known = np.log1p(known) if log else known
        low, middle, high = np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else (0, 0, 0)
        numbers = {"log": log, "center": middle, "scale": _spread(known, float(high - low))}
        return cls(feature, None, {k: np.array([v], np.float64) for k, v in numbers.items()})

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        self._check_parts(bounds=_SCALE_BOUNDS, log=(1,), center=(1,), scale=(1,))

    def apply(self, values: pl.Series) -> Float32s:
        """Return the scaled values; missing, infinite or unreadable ones are 0 with the flag 1."""
        floats = _bounded(raw_values.floats_of(values))
        if self.numbers["log"][0]:
            floats = np.log1p(np.maximum(floats, 0))
        missing = ~np.isfinite(floats)
        scaled = np.where(missing, 0.0, _scaled(np.where(missing, 0.0, floats), self.numbers))
        return np.stack([scaled, missing], axis=1).astype(np.float32)


class TimeTransform(_FlaggedTransform):
    """Moments -> ``(n, 8)`` float32: scaled date, missing flag, and three cycles.

    The cycles are sine and cosine of the hour in the day, the day in the week and the day in the
    year. Item vectors are computed once, so an age that changes with each event is not an item's
    property; a date is, and the towers can learn from it what the age says within the data's span.
    """

    width = 8  # the date, six cycles and the flag

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "TimeTransform":  # noqa: ARG003
        """Return the centre and spread of the training rows' moments."""
        seconds = _bounded(raw_values.seconds_of(values))
        known = seconds[np.isfinite(seconds)]
        center = float(np.median(known)) if len(known) else 0.0
        numbers = {"center": np.array([center]), "scale": np.array([_spread(known, 0.0)])}
        return cls(feature, None, numbers)

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        self._check_parts(bounds=_SCALE_BOUNDS, center=(1,), scale=(1,))

    def apply(self, values: pl.Series) -> Float32s:
        """Return the scaled moments; all 0 with the flag 1 where there is none to read."""
        seconds = _bounded(raw_values.seconds_of(values))
        missing = ~np.isfinite(seconds)
        seconds = np.where(missing, 0.0, seconds)
        scaled = _scaled(seconds, self.numbers)
        angles = [2 * np.pi * (seconds / 86_400 / days % 1) for days in (1, 7, 365.25)]
        cycles = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
        table = np.stack([scaled, *cycles], axis=1)
        table[missing] = 0.0
        return np.concatenate([table, missing[:, None]], axis=1).astype(np.float32)


class VectorTransform(Transform):
    """Lists of ``d`` numbers -> ``(n, d)`` float32, standardised; missing is the mean, 0.

    Each number is cut off at +-10 deviations. ``d`` is 0 where no training row has a list.
    """

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "VectorTransform":  # noqa: ARG003
        """Return mean and standard deviation of the training rows.

        Raises:
            DataError: A number is infinite, or the lists differ in length.
        """
        widths = (
            raw_values.number_lists_of(values).list.len().drop_nulls().unique().sort().to_list()
        )
        if len(widths) > 1:
            raise DataError(
                f"{feature.side} feature {feature.name!r} must hold lists of one length, "
                f"got lengths {widths[:5]}; pad them, or state it as shown."
            )
        table = _bounded(raw_values.vectors_of(values, widths[0] if widths else 0))
        _check_finite(feature, np.where(np.isinf(table).any(axis=1), np.inf, 0.0))
        known = ~np.isnan(table)
        counts = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, table, 0.0).sum(axis=0) / counts
        deviation = np.where(known, table - mean, 0.0)
        std = np.sqrt((deviation**2).sum(axis=0) / counts)
        return cls(feature, None, {"mean": mean, "std": np.where(std > 1 / LARGEST, std, 1.0)})

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        width = len(self.numbers["mean"])
        self._check_parts(bounds={"std": (1 / LARGEST, np.inf)}, mean=(width,), std=(width,))

    def apply(self, values: pl.Series) -> Float32s:
        """Return the standardised vectors; 0 where one is missing or of another length."""
        table = _bounded(raw_values.vectors_of(values, self.width))
        table = np.where(np.isinf(table), np.nan, table)
        scaled = np.clip((table - self.numbers["mean"]) / self.numbers["std"], -10, 10)
        return np.where(np.isnan(scaled), 0.0, scaled).astype(np.float32)

    @property
    def width(self) -> int:
        """Length of the vectors."""
        return len(self.numbers["mean"])


def transform_of(feature: Feature) -> type[Transform]:
    """Return the transform of a feature that is fed."""
    found: type[Transform] = resolved(feature.spec.transform)
    return TokenIdsTransform if feature.tuned else found


class SideTransforms:
    """All transforms of one side, in the schema's order.

    Args:
        features: The side's features, fed or not.
        transforms: One for each feature that is fed.
    """

    def __init__(self, features: tuple[Feature, ...], transforms: tuple[Transform, ...]) -> None:
        self.features = features
        self.transforms = transforms

    @classmethod
    def fit(
        cls, features: tuple[Feature, ...], frame: pl.DataFrame, event_counts: Ints, min_count: int
    ) -> "SideTransforms":
        """Return the transforms fitted on entities seen in training.

        Args:
            features: The schema of the side.
            frame: One line an entity.
            event_counts: ``(lines,)`` training events of each entity. Lines without any are not
                looked at; an id needs ``min_count`` events to have an embedding of its own.
            min_count: Also the least number of lines that a category or tag must stand in.
        """
        seen = frame.filter(pl.Series(event_counts > 0))
        transforms: list[Transform] = []
        for feature in features:
            if feature.meaning == "id":
                ids = frame[feature.name].filter(pl.Series(event_counts >= min_count))
                transforms.append(IdTransform.fit(feature, ids, 1))
            elif feature.is_fed:
                kind = transform_of(feature)
                # What is not fitted to texts may know all of them.
                known = frame if feature.spec.knows_all_rows else seen
                values = feature.read(known[feature.source])
                transforms.append(kind.fit(feature, values, min_count))
        return cls(features, tuple(transforms))

    def apply(self, frame: pl.DataFrame) -> FeatureArrays:
        """Return one array a fed feature: ``(n,)`` or ``(n, width)``.

        A column that the frame lacks is missing in every row; columns unknown here are ignored. Cells are
        read by the form of their column where they are not yet.
        """
        return {
            t.feature.name: t.apply(
                t.feature.read(frame[t.feature.source])
                if t.feature.source in frame.columns
                else pl.Series(t.feature.source, [None] * len(frame), pl.String)
            )
            for t in self.transforms
        }

    def apply_to_rows(self, frame: pl.DataFrame) -> FeatureArrays:
        """Return the arrays of a whole entity table by row, the two reserved rows first.

        A reserved row has no value in any column.
        """
        nothing = self.apply(pl.DataFrame({"": [None] * FIRST_ROW}))
        return {
            name: np.concatenate([nothing[name], values])
            for name, values in self.apply(frame).items()
        }

    @property
    def columns(self) -> list[str]:
        """The columns that the features are of, each once."""
        return list(dict.fromkeys(feature.source for feature in self.features))

    def reads_text_of(self, column: str) -> bool:
        """Return whether a column is read as text."""
        return any(
            t.feature.source == column and t.feature.meaning == "text" for t in self.transforms
        )

    def say_something(self, arrays: FeatureArrays) -> Bools:
        """Return in which lines at least one feature is known: ``(n,)`` bool."""
        num = len(next(iter(arrays.values()))) if arrays else 0
        known = np.zeros(num, np.bool_)
        for transform in self.transforms:
            known |= transform.is_known(arrays[transform.feature.name])
        return known


def _check_finite(feature: Feature, floats: Floats) -> None:
    infinite = floats[np.isinf(floats)]
    if len(infinite):
        raise DataError(
            f"{feature.side} feature {feature.name!r} must be finite, "
            f"got {infinite[0]} for {len(infinite)} rows; make them null."
        )


def _bounded(values: Floats) -> Floats:
    return np.where(np.isinf(values), values, np.clip(values, -LARGEST, LARGEST))


def _spread(known: Floats, between: float) -> float:
    """Return what numbers are divided by: ``between``, else their deviation, else 1."""
    spread = between or (float(known.std()) if len(known) else 0.0)
    return spread if spread > 1 / LARGEST else 1.0


def _scaled(values: Floats, numbers: Numbers) -> Floats:
    """Return ``(values - center) / scale`` cut off at +-10."""
    return np.clip((values - numbers["center"]) / numbers["scale"], -10, 10)


def _skewness(values: Floats) -> float:
    deviation = values.std()
    if deviation <= 1 / LARGEST:
        return 0.0
    return float((((values - values.mean()) / deviation) ** 3).mean())


@dataclass(frozen=True)
class Sides:
    """The fitted features of both sides.

    Args:
        query: Of the queries.
        item: Of the items.
        event: Of the events of a history; None where nothing but their items is read.
    """

    query: SideTransforms
    item: SideTransforms
    event: SideTransforms | None = None

    @property
    def features(self) -> tuple[Feature, ...]:
        """All columns with their kinds."""
        of_events = () if self.event is None else self.event.features
        return (*self.query.features, *self.item.features, *of_events)
