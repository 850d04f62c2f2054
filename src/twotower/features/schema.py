"""The features of a side: the kind of each column of its table, stated or inferred from its content."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import polars as pl

from twotower.config import FeaturesConfig
from twotower.dataclass_trees import OneOf
from twotower.errors import ConfigError, did_you_mean
from twotower.features.codes import codes_in, is_named_code, is_named_measure
from twotower.features.dates import are_plain_dates
from twotower.features.feature_kinds import FEATURE_KINDS, FeatureKindSpec, Meaning
from twotower.features.forms import READABLE_SHARE, Form, infer_form, is_missing, read
from twotower.features.raw_values import floats_of, seconds_of, share_of
from twotower.features.tokens import num_words

Side = Literal["query", "item", "event"]

_MAX_CATEGORICAL_INTEGERS = 50
_MAX_CATEGORIES = 100_000
_SEPARATORS = ("|", ";", ",")
_SAMPLED = 1_000
_ENOUGH_ROWS = 20
"""Whole numbers of their own in fewer rows may be so by chance."""
_MEETINGS = 3
_CODE_DIGITS = 6
VIEW = "view"
"""Column of the items that says which view each is of, where there are several."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of one side: its kind, the reason for it, and how its values are separated.

    Args:
        name: The column's name, except for the text of a key.
        side: ``"query"``, ``"item"`` or ``"event"``.
        kind: ``shown`` columns are kept for people and never fed.
        reason: Why it has this kind, for the table that is printed.
        separator: The separator of tags in a string; empty for lists.
        buckets: Rows of the table that the tokens of text are hashed into; 0 gives each token its own row.
        column: The column that it reads, where that is not its name.
        encoder: Name or folder of the pretrained encoder of a sentence, or file of the word vectors of
            windows; empty for other kinds.
        tuned: Whether that encoder is trained with the towers.
        form: How its cells are written, where text stands for a number, a date, a list or the like; one of
            ``forms.FORMS``, or empty.
    """

    name: str
    side: Side
    kind: Annotated[str, OneOf("twotower.features.feature_kinds:FEATURE_KINDS")]
    reason: str
    separator: str = ""
    buckets: int = 0
    column: str = ""
    encoder: str = ""
    tuned: bool = False
    form: str = ""

    def read(self, values: pl.Series) -> pl.Series:
        """Return the values of its column, read by its form; see ``forms.read``."""
        return read(values, self.form)

    @property
    def source(self) -> str:
        """The column that it reads."""
        return self.column or self.name

    @property
    def spec(self) -> FeatureKindSpec:
        """All that depends on its kind."""
        return FEATURE_KINDS[self.kind]

    @property
    def meaning(self) -> Meaning:
        """What its values mean to code that shows, groups or filters them."""
        return self.spec.meaning

    @property
    def described(self) -> str:
        """Its kind, for people."""
        return f"{self.kind}, trained" if self.tuned else self.kind

    @property
    def is_fed(self) -> bool:
        """Whether a tower reads it."""
        return self.spec.transform is not None


def infer_features(
    frame: pl.DataFrame,
    side: Side,
    id_column: str,
    stated: Mapping[str, str],
    *,
    key_text: bool = False,
    settings: FeaturesConfig | None = None,
    forms: Mapping[str, Form] | None = None,
) -> tuple[Feature, ...]:
    """Return the features of one side's table, the id first.

    Args:
        frame: One line an entity.
        side: Which side it is.
        id_column: Its key.
        stated: Column name -> kind, which wins over what the content suggests.
        key_text: Whether a key of strings is read as text, too, as a search string is.
        settings: How text is read; None is the default.
        forms: Columns that were read by a form before, from ``read_table_forms``.

    Raises:
        ConfigError: A stated column does not exist (with the nearest name), or its content cannot
            be of the stated kind; or what text is to be read with is not stated.
    """
    settings, forms = settings or FeaturesConfig(), forms or {}
    text: str = settings.text
    _check_names(frame, side, stated)
    features = _of_key(frame, id_column, side, stated.get(id_column), text if key_text else None)
    for values in frame.drop(id_column):
        name = values.name
        features.append(_of_column(values, side, text, stated.get(name), forms.get(name)))
    return _with_windows(features, frame.columns, settings)


@dataclass(frozen=True, slots=True)
class ReadForms:
    """A table whose cells were read by the forms of its columns.

    Args:
        frame: The table, each column in the type that its cells mean.
        forms: Column -> the form it was written in; others have none.
        notes: A sentence for each column in which some cells could not be read, and are missing.
    """

    frame: pl.DataFrame
    forms: Mapping[str, Form]
    notes: tuple[str, ...]


def read_table_forms(
    frame: pl.DataFrame, side: Side, id_column: str, stated: Mapping[str, str]
) -> ReadForms:
    """Return a side's table with the cells of its text columns read, each by its column's form.

    Args:
        frame: As it was read from a file.
        side: Which side it is.
        id_column: Its key, which stays as it is.
        stated: Column name -> kind; only a form that goes with it is taken.
    """
    forms: dict[str, Form] = {}
    columns, notes = [], []
    for values in frame.get_columns():
        name = values.name
        form = None if name == id_column else infer_form(values, stated.get(name))
        if form is None:
            continue
        clean = form.read(values)
        says = values.is_not_null() & ~is_missing(values)
        lost = says & clean.is_null()
        num_lost, num = int(lost.sum()), int(says.sum())
        if name not in stated and num_lost > (1 - READABLE_SHARE) * num:
            continue
        forms[name] = form
        columns.append(clean)
        if num_lost:
            row = int(lost.arg_true()[0])
            # What a query says is nobody else's business: notes go into reports.
            first = f"{values[row]!r} " if side == "item" else ""
            notes.append(
                f"features.{side}.{name}: {num_lost:,} of {num:,} cells do not read as {form.says} and "
                f"are missing, the first {first}in data row {row + 1}; correct them, or state another kind."
            )
    return ReadForms(frame.with_columns(columns), forms, tuple(notes))


def _with_windows(
    features: Iterable[Feature], columns: Collection[str], settings: FeaturesConfig
) -> tuple[Feature, ...]:
    """Return the features as text is read: what is read by windows is read by its tokens, too."""
    found = []
    for feature in features:
        if feature.spec.needs == "word_vectors":
            found.append(_with_text_settings(replace(feature, kind="text"), settings))
            called = _free_name(f"{feature.name} in order", columns)
            feature = replace(feature, name=called, column=feature.source)
        found.append(_with_text_settings(feature, settings))
    return tuple(found)


def _free_name(name: str, columns: Collection[str]) -> str:
    """Return a name that no column has."""
    while name in columns:
        name += "'"
    return name


_READ_WITH = {
    "sentence_encoder": ("a sentence", "name a pretrained encoder or its folder"),
    "word_vectors": ("read by windows", "name a text file of GloVe, word2vec or fastText"),
}
"""Setting that names what texts are read with -> what reads them, and the remedy where it is not stated."""


def _with_text_settings(feature: Feature, settings: FeaturesConfig) -> Feature:
    needs = feature.spec.needs
    if needs:
        encoder = getattr(settings, needs)
        if not encoder:
            how, remedy = _READ_WITH[needs]
            raise ConfigError(
                f"features.{needs} must be stated where features.{feature.side}.{feature.source} is {how}, "
                f"got none; {remedy}."
            )
        tuned = needs == "sentence_encoder" and settings.tune_sentences and feature.side != "event"
        return replace(feature, encoder=encoder, tuned=tuned)
    if feature.spec.has_tokens:
        return replace(feature, buckets=settings.text_buckets or 0)
    return feature


def kinds_of(features: Iterable[Feature]) -> dict[str, str]:
    """Return column -> kind, as the configuration writes it."""
    kinds: dict[str, str] = {}
    for feature in features:
        before = kinds.get(feature.source)
        is_both = before in ("id", "id+text")
        kinds[feature.source] = "id+text" if is_both else feature.kind
    return kinds


def event_features(
    frame: pl.DataFrame, stated: Mapping[str, str], settings: FeaturesConfig
) -> tuple[Feature, ...]:
    """Return the features of the events of a history: those stated, and no other.

    Args:
        frame: The columns of the interactions that hold no ids, one line an event.
        stated: Column name -> kind.
        settings: As ``infer_features``.

    Raises:
        ConfigError: As ``infer_features``.
    """
    _check_names(frame, "event", stated)
    features = [
        _of_column(frame[name], "event", settings.text, kind) for name, kind in stated.items()
    ]
    return _with_windows(features, frame.columns, settings)


def _check_names(frame: pl.DataFrame, side: Side, stated: Mapping[str, str]) -> None:
    for name in stated:
        if name not in frame.columns:
            hint = did_you_mean(name, frame.columns, f"; columns: {', '.join(frame.columns)}")
            raise ConfigError(f"features.{side}.{name} must name a column of the table{hint}")


def _of_key(
    frame: pl.DataFrame, name: str, side: Side, kind: str | None, text: str | None
) -> list[Feature]:
    """Return what is read of the key: the id, its text, or both."""
    if kind not in (None, "id", "id+text"):
        return [_of_column(frame[name], side, "", kind)]
    reason = "the key" if kind is None else "stated"
    features = [Feature(name, side, "id", reason)]
    is_text = text is not None and kind is None and frame[name].dtype == pl.String
    if kind == "id+text" or is_text:
        reason = "the key is text" if kind is None else "stated"
        called = _free_name(f"{name} as text", frame.columns)
        features.append(Feature(called, side, text or "text", reason, column=name))
    return features


def _of_column(
    values: pl.Series, side: Side, text: str, kind: str | None = None, form: Form | None = None
) -> Feature:
    """Return a column's feature: of the stated kind, or of the one that its content suggests.

    Args:
        values: The column.
        side: Its side.
        text: Kind of the columns that are found to be text.
        kind: The stated kind.
        form: The form that the column was read by; None where it was not read yet.
    """
    form = form or infer_form(values, kind)
    values, said = (values, "") if form is None else (form.read(values), form.reason)
    if kind is not None:
        _check_content(values, side, kind)
        reason = "; ".join(filter(None, ("stated", said)))
    else:
        kind, why = _inferred(values, text, form)
        reason = ", ".join(filter(None, (why, said)))
    separator = ""
    if FEATURE_KINDS[kind].meaning == "tags" and values.dtype == pl.String:
        separator = _separator(values)[0] or " "
    name = "" if form is None else form.name
    return Feature(values.name, side, kind, reason, separator, form=name)


def _check_content(values: pl.Series, side: Side, kind: str) -> None:
    """Refuse a column that cannot be of the stated kind."""
    dtype = values.dtype
    path = f"features.{side}.{values.name}"
    meaning = FEATURE_KINDS[kind].meaning
    if meaning in ("number", "time") and isinstance(dtype, (pl.List, pl.Array)):
        raise ConfigError(f"{path} must hold one value a row to be a {kind}, got lists.")
    read = {"number": floats_of, "time": seconds_of}.get(meaning)
    known = _known(values)
    if read is not None and len(known) and np.isnan(read(known)).all():
        raise ConfigError(
            f"{path} must hold values that read as a {kind}, got {dtype} that begins "
            f"with {known[0]!r}; state another kind."
        )
    if meaning == "vector" and _vector_width(values, any_numbers=True) is None:
        raise ConfigError(
            f"{path} must hold number lists of one length to be a vector, got {dtype}."
        )
    if kind == "id+text":
        raise ConfigError(f"{path} must not be 'id+text', which is for the key; state text.")
    if meaning in ("id", "categorical", "text") and dtype.is_nested():
        raise ConfigError(f"{path} must hold one value a row to be {kind}, got lists; use tags.")


def _inferred(values: pl.Series, text: str, form: Form | None) -> tuple[str, str]:
    """Return the kind that a column's content suggests, and why; what its form says comes beside."""
    if form is not None and form.name in ("link", "image"):
        return "shown", ""
    dtype, known = values.dtype, _known(values)
    if not len(known):
        return "shown", "it has no value"
    if isinstance(dtype, (pl.List, pl.Array)):
        width = _vector_width(values)
        if width is not None:
            return "vector", f"lists of {width} numbers"
        if dtype.inner.is_float():
            return "shown", "lists of numbers that differ in length"
        if dtype.inner.is_nested() or dtype.inner == pl.Object:
            return "shown", f"{dtype} has no encoder"
        return "tags", "lists"
    if dtype in (pl.Date, pl.Datetime):
        return "time", "dates"
    if dtype.is_nested() or dtype in (pl.Object, pl.Binary, pl.Duration, pl.Time):
        return "shown", f"{dtype} has no encoder"
    # polars 1.20 cannot count distinct decimals.
    distinct = (known.cast(pl.Float64) if dtype.is_decimal() else known).n_unique()
    if distinct == 1:
        return "shown", "it is constant"
    if dtype == pl.Boolean or dtype in (pl.Categorical, pl.Enum):
        return "categorical", f"{distinct} distinct values"
    if dtype.is_float() or dtype.is_decimal():
        if form is None and is_named_code(values.name) and _are_whole(known):
            return _code(known, distinct, "by its name")
        return "number", f"{distinct} distinct numbers"
    if dtype.is_integer():
        return _inferred_integer(known, distinct)
    return _inferred_string(known, distinct, text)


def _inferred_integer(known: pl.Series, distinct: int) -> tuple[str, str]:
    if is_named_code(known.name):
        return _code(known, distinct, "by its name")
    codes = codes_in(known)
    if codes:
        return _code(known, distinct, codes)
    if distinct <= _MAX_CATEGORICAL_INTEGERS and distinct * 2 <= len(known):
        return "categorical", f"{distinct} distinct whole numbers"
    if distinct < len(known) or not _is_like_key(known):
        return "number", f"{distinct} distinct whole numbers"
    if is_named_measure(known.name):
        return "number", f"{distinct} distinct whole numbers, measured by the name"
    return (
        "shown",
        "a whole number of its own for each row, as a key has; state number if it measures",
    )


def _is_like_key(known: pl.Series) -> bool:
    """Return whether whole numbers that are all distinct are so by more than chance.

    As many draws from as wide a range would meet three times or more; or all have equally many digits, six
    or more.
    """
    low, high = int(str(known.min())), int(str(known.max()))
    if len(known) < _ENOUGH_ROWS or low < 0:
        return False
    meetings = len(known) * (len(known) - 1) / (2 * (high - low + 1))
    return meetings >= _MEETINGS or (len(str(low)) == len(str(high)) >= _CODE_DIGITS)


def _code(known: pl.Series, distinct: int, why: str) -> tuple[str, str]:
    """Return what names something: a category where it recurs, and else another key."""
    if distinct <= _MAX_CATEGORIES and distinct * 2 <= len(known):
        return "categorical", f"{distinct} distinct codes, {why}"
    return "shown", f"codes that hardly recur, {why}"


def _are_whole(known: pl.Series) -> bool:
    floats = known.cast(pl.Float64)
    return bool((floats == floats.round()).all())


def _inferred_string(known: pl.Series, distinct: int, text: str) -> tuple[str, str]:
    if are_plain_dates(known):
        return "time", "dates as text"
    codes = codes_in(known)
    if codes:
        return _code(known, distinct, codes)
    if _are_objects(known):
        return "shown", "JSON objects have no encoder"
    separator, pieces = _separator(known)
    if separator:
        return "tags", f"{pieces} distinct pieces between {separator!r}"
    if is_named_code(known.name):
        return _code(known, distinct, "by its name")
    if distinct <= _MAX_CATEGORIES and distinct * 2 <= len(known):
        return "categorical", f"{distinct} distinct strings"
    if reads_as_text(known):
        return text, f"{distinct} distinct strings of several words"
    return "shown", f"{distinct} distinct strings in {len(known)} rows"


def _are_objects(known: pl.Series) -> bool:
    return bool(known.str.contains(r"(?s)^\s*(?:\{.*\}|\[\s*\{.*\}\s*\])\s*$").all())


def texts_of(features: Iterable[Feature]) -> tuple[str, ...]:
    """Return the columns that are read as text, each once."""
    return tuple(dict.fromkeys(f.source for f in features if f.meaning == "text"))


def reads_as_text(values: pl.Series) -> bool:
    """Return whether a column is text: strings of two words or more on average, most of them distinct."""
    if values.dtype != pl.String:
        return False
    known = values.drop_nulls()
    if 2 * known.n_unique() <= len(known):
        return False
    sample = known.gather_every(max(1, len(known) // _SAMPLED))  # a key comes sorted
    return bool(len(sample)) and num_words(sample) >= 2 * len(sample)


def _known(values: pl.Series) -> pl.Series:
    """Return the values that say something: no null, no NaN, no list without a value."""
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    if isinstance(values.dtype, pl.List):
        return values.filter((values.list.drop_nulls().list.len() > 0).fill_null(value=False))
    known = values.drop_nulls()
    return known.drop_nans() if values.dtype.is_float() else known


def _vector_width(values: pl.Series, *, any_numbers: bool = False) -> int | None:
    """Return the common length of lists of floats, or of any numbers; None where there is none.

    Lists of whole numbers are more often ids than vectors, unless their length is part of their type.
    """
    dtype = values.dtype
    if isinstance(dtype, pl.Array) and dtype.inner.is_numeric():
        return (int(dtype.shape[0]) or None) if len(dtype.shape) == 1 else None
    if not isinstance(dtype, pl.List):
        return None
    if dtype.inner.is_float() or (any_numbers and dtype.inner.is_numeric()):
        lengths = values.drop_nulls().list.len().unique()
        return int(lengths[0]) if len(lengths) == 1 and lengths[0] > 0 else None
    return None


def _separator(values: pl.Series) -> tuple[str, int]:
    """Return what separates the tags of a string column and how many distinct ones there are.

    Strings are tags when a tenth of them hold the separator and its pieces recur: at least four
    occurrences a distinct piece, which sentences with commas do not reach.
    """
    known = values.drop_nulls()
    for separator in _SEPARATORS:
        if share_of(known.str.contains(separator, literal=True)) < 0.1:
            continue
        pieces = known.str.split(separator).explode().str.strip_chars()
        distinct = pieces.n_unique()
        if distinct * 4 <= len(pieces):
            return separator, distinct
    return "", 0
