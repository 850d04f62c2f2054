"""Transforms: a raw column -> numbers, fitted on training rows and kept in the bundle.

The same ``apply`` runs in training and in serving, so the two cannot drift. No value can make it
fail: what is missing, of another type or never seen becomes what each class states.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.errors import DataError
from twotower.features.schema import Feature, dates_of
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW, Vocabulary

MAX_TAGS = 32
"""Most tags of an entity that are read; later ones are left out."""

Numbers = dict[str, npt.NDArray[np.float64]]
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


class CategoryTransform(Transform):
    """Ids and categories -> ``(n,)`` int32 rows. Missing becomes 0, unseen becomes 1."""

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "CategoryTransform":
        """Return the vocabulary of the training rows' values."""
        return cls(feature, Vocabulary.fit(_as_keys(values), min_count), {})

    def apply(self, values: pl.Series) -> npt.NDArray[np.int32]:
        """Return the row of each value."""
        return self.own_vocabulary().rows_of(_as_keys(values))

    def is_known(
        self, values: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Return which values are in the vocabulary."""
        return np.asarray(values > UNKNOWN_ROW)


class IdTransform(CategoryTransform):
    """The key -> ``(n,)`` int32 rows. A missing key is as unknown as an unseen one: both become 1."""

    def apply(self, values: pl.Series) -> npt.NDArray[np.int32]:
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
        lists = _as_lists(values, feature.separator)
        vocabulary = Vocabulary.fit(lists.explode(empty_as_null=True), min_count)
        longest = lists.list.len().max()
        width = min(MAX_TAGS, max(1, int(longest) if isinstance(longest, int) else 1))
        return cls(feature, vocabulary, {"longest": np.array([width], np.float64)})

    def apply(self, values: pl.Series) -> npt.NDArray[np.int32]:
        """Return the rows of each value's tags."""
        lists = _as_lists(values, self.feature.separator)
        result = np.full((len(lists), int(self.numbers["longest"][0])), PADDING_ROW, np.int32)
        lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
        flat = lists.filter(lists.list.len().fill_null(0) > 0).explode(empty_as_null=True)
        rows = self.own_vocabulary().rows_of(flat)
        owner = np.repeat(np.arange(len(lists)), lengths)
        known = rows > UNKNOWN_ROW
        owner, rows = owner[known], rows[known]
        starts = np.searchsorted(owner, np.arange(len(lists)))
        place = np.arange(len(owner)) - starts[owner]
        fits = place < result.shape[1]
        result[owner[fits], place[fits]] = rows[fits]
        return result

    def is_known(
        self, values: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Return which entities have a tag of the vocabulary."""
        return np.asarray((values > UNKNOWN_ROW).any(axis=1))


class NumberTransform(Transform):
    """Numbers -> ``(n, 2)`` float32: the scaled value and a flag that it is missing.

    Scaled by median and interquartile range (by the standard deviation where that range is 0),
    after ``log1p`` where no value is negative and the skewness is above 2; cut off at +-10.
    """

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "NumberTransform":  # noqa: ARG003
        """Return the scale of the training rows.

        Raises:
            DataError: A value is infinite.
        """
        floats = _as_floats(values)
        infinite = np.flatnonzero(np.isinf(floats))
        if len(infinite):
            raise DataError(
                f"{feature.side} feature {feature.name!r} must be finite, "
                f"got {floats[infinite[0]]} for {len(infinite)} rows."
            )
        known = floats[~np.isnan(floats)]
        log = bool(len(known)) and known.min() >= 0 and _skewness(known) > 2
        known = np.log1p(known) if log else known
        low, middle, high = np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else (0, 0, 0)
        scale = (high - low) or (known.std() if len(known) else 0) or 1.0
        numbers = {"log": log, "center": middle, "scale": scale}
        return cls(feature, None, {k: np.array([v], np.float64) for k, v in numbers.items()})

    def apply(self, values: pl.Series) -> npt.NDArray[np.float32]:
        """Return the scaled values; missing, infinite or unreadable ones are 0 with the flag 1."""
        floats = _as_floats(values)
        if self.numbers["log"][0]:
            floats = np.log1p(np.where(floats > -1, floats, np.nan))
        missing = ~np.isfinite(floats)
        scaled = (np.where(missing, 0.0, floats) - self.numbers["center"]) / self.numbers["scale"]
        scaled = np.where(missing, 0.0, np.clip(scaled, -10, 10))
        return np.stack([scaled, missing], axis=1).astype(np.float32)

    @property
    def width(self) -> int:
        """Two: the value and the flag."""
        return 2

    def is_known(
        self, values: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Return where the missing flag is not set."""
        return np.asarray(values[:, -1] == 0)


class TimeTransform(Transform):
    """Moments -> ``(n, 8)`` float32: scaled date, missing flag, and three cycles.

    The cycles are sine and cosine of the hour in the day, the day in the week and the day in the
    year. Item vectors are computed once, so an age that changes with each event is not an item's
    property; a date is, and the towers can learn from it what the age says within the data's span.
    """

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "TimeTransform":  # noqa: ARG003
        """Return the centre and spread of the training rows' moments."""
        seconds = _as_seconds(values)
        known = seconds[np.isfinite(seconds)]
        center = float(np.median(known)) if len(known) else 0.0
        scale = float(known.std()) if len(known) else 1.0
        return cls(feature, None, {"center": np.array([center]), "scale": np.array([scale or 1.0])})

    def apply(self, values: pl.Series) -> npt.NDArray[np.float32]:
        """Return the scaled moments; all 0 with the flag 1 where there is none to read."""
        seconds = _as_seconds(values)
        missing = ~np.isfinite(seconds)
        seconds = np.where(missing, 0.0, seconds)
        scaled = np.clip((seconds - self.numbers["center"]) / self.numbers["scale"], -10, 10)
        days = seconds / 86_400
        angles = [
            2 * np.pi * (days % 1),
            2 * np.pi * (days / 7 % 1),
            2 * np.pi * (days / 365.25 % 1),
        ]
        cycles = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
        table = np.stack([scaled, *cycles], axis=1)
        table[missing] = 0.0
        return np.concatenate([table, missing[:, None]], axis=1).astype(np.float32)

    @property
    def width(self) -> int:
        """Eight: the date, six cycles and the flag."""
        return 8

    def is_known(
        self, values: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Return where the missing flag is not set."""
        return np.asarray(values[:, -1] == 0)


class VectorTransform(Transform):
    """Lists of ``d`` numbers -> ``(n, d)`` float32, standardised; missing is the mean, 0."""

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "VectorTransform":  # noqa: ARG003
        """Return mean and standard deviation of the training rows.

        Raises:
            DataError: A number is infinite, or the lists differ in length.
        """
        rows = [row for row in values.to_list() if row is not None]
        widths = {len(row) for row in rows}
        if len(widths) != 1:
            raise DataError(
                f"{feature.side} feature {feature.name!r} must hold lists of one length, "
                f"got lengths {sorted(widths)[:5]}."
            )
        table = np.array(rows, np.float64)
        if np.isinf(table).any():
            raise DataError(f"{feature.side} feature {feature.name!r} must be finite, got inf.")
        mean, std = np.nanmean(table, axis=0), np.nanstd(table, axis=0)
        return cls(feature, None, {"mean": mean, "std": np.where(std > 0, std, 1.0)})

    def apply(self, values: pl.Series) -> npt.NDArray[np.float32]:
        """Return the standardised vectors; 0 where one is missing or of another length."""
        width = self.width
        table = np.full((len(values), width), np.nan)
        for position, row in enumerate(values.to_list()):
            if isinstance(row, (list, tuple)) and len(row) == width:
                table[position] = [np.nan if number is None else number for number in row]
        table = (table - self.numbers["mean"]) / self.numbers["std"]
        return np.where(np.isfinite(table), table, 0.0).astype(np.float32)

    @property
    def width(self) -> int:
        """Length of the vectors."""
        return len(self.numbers["mean"])

    def is_known(
        self, values: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Return which vectors are not exactly the mean, which stands for a missing one."""
        return np.asarray((values != 0).any(axis=1))


TRANSFORMS: dict[str, type[Transform]] = {
    "id": IdTransform,
    "categorical": CategoryTransform,
    "tags": TagsTransform,
    "number": NumberTransform,
    "time": TimeTransform,
    "vector": VectorTransform,
}
"""The transform of each kind that is fed."""


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
        cls,
        features: tuple[Feature, ...],
        frame: pl.DataFrame,
        event_counts: npt.NDArray[np.int64],
        min_count: int,
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
            if feature.kind == "id":
                ids = frame[feature.name].filter(pl.Series(event_counts >= min_count))
                transforms.append(IdTransform.fit(feature, ids, 1))
            elif feature.is_fed:
                kind = TRANSFORMS[feature.kind]
                transforms.append(kind.fit(feature, seen[feature.name], min_count))
        return cls(features, tuple(transforms))

    def apply(self, frame: pl.DataFrame) -> FeatureArrays:
        """Return one array a fed feature: ``(n,)`` or ``(n, width)``.

        A column that the frame lacks is missing in every row; columns unknown here are ignored.
        """
        return {
            t.feature.name: t.apply(
                frame[t.feature.name]
                if t.feature.name in frame.columns
                else pl.Series(t.feature.name, [None] * len(frame), pl.String)
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

    def say_something(self, arrays: FeatureArrays) -> npt.NDArray[np.bool_]:
        """Return in which lines at least one feature is known: ``(n,)`` bool."""
        num = len(next(iter(arrays.values()))) if arrays else 0
        known = np.zeros(num, np.bool_)
        for transform in self.transforms:
            known |= transform.is_known(arrays[transform.feature.name])
        return known


def _as_keys(values: pl.Series) -> pl.Series:
    """Return categories as strings, or as integers where they are; whole floats are integers."""
    if values.dtype.is_integer() or values.dtype == pl.String:
        return values
    if values.dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        is_whole = bool((whole.cast(values.dtype) == values).fill_null(value=True).all())
        return whole if is_whole else values.cast(pl.String)
    if values.dtype == pl.Null:
        return values.cast(pl.String)
    return values.cast(pl.String, strict=False)


def _as_lists(values: pl.Series, separator: str) -> pl.Series:
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    if isinstance(values.dtype, pl.List):
        return values.cast(pl.List(pl.String))
    strings = values.cast(pl.String, strict=False)
    lists = strings.str.split(separator) if separator else strings.reshape((-1, 1)).arr.to_list()
    pieces = lists.list.eval(pl.element().str.strip_chars())
    return pieces.list.eval(pl.element().filter(pl.element().is_not_null() & (pl.element() != "")))


def _as_floats(values: pl.Series) -> npt.NDArray[np.float64]:
    floats = values.cast(pl.Float64, strict=False).fill_null(float("nan"))
    return floats.to_numpy().astype(np.float64)


def _as_seconds(values: pl.Series) -> npt.NDArray[np.float64]:
    if values.dtype == pl.String:
        values = dates_of(values)
    if values.dtype == pl.Date:
        values = values.cast(pl.Datetime("us"))
    if isinstance(values.dtype, pl.Datetime):
        return values.dt.epoch("us").cast(pl.Float64).fill_null(float("nan")).to_numpy() / 1e6
    return _as_floats(values)


def _skewness(values: npt.NDArray[np.float64]) -> float:
    deviation = values.std()
    return 0.0 if deviation == 0 else float((((values - values.mean()) / deviation) ** 3).mean())
