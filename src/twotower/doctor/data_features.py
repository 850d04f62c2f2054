"""The doctor on columns: those that hold nothing, the same, or a key; and columns as groups."""

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.config import FeaturesConfig
from twotower.data.dataset import EntityTable
from twotower.doctor.findings import KINDS, Finding, Severity
from twotower.features.schema import Feature, Side, infer_features
from twotower.vocab import FIRST_ROW

CONSTANT_SHARE = 0.99
"""From this share of its known rows on, one value leaves too little to be told apart."""

UNIQUE_SHARE = 0.99
MISSING_SHARE = 0.5
MIN_ROWS = 20
"""Rows below which every share is chance."""

SIDES_ZH = {"query": "查询", "item": "物品", "event": "事件"}

_BINS = 32


def columns(table: EntityTable, side: Side, stated: FeaturesConfig | None = None) -> list[Finding]:
    """Return which columns of a side's table are constant, unique in each row, or mostly missing.

    A row that is missing from the table misses every column. Numbers and times are unique by nature,
    and so are texts of several words: neither is reported as unique, nor is what is shown only.

    Args:
        table: The side's table.
        side: Which side it is.
        stated: Kinds that the user stated, and how text is read.

    Raises:
        ConfigError: A stated kind does not go with its column, as in training.
    """
    if len(table) < MIN_ROWS:
        return []
    findings: list[Finding] = []
    settings = stated or FeaturesConfig()
    features = infer_features(
        table.frame,
        side,
        table.id_column,
        getattr(settings, side),
        settings=settings,
        forms=table.forms,
    )
    of_column = {feature.source: feature for feature in reversed(features)}  # the first of each
    for name in dict.fromkeys(feature.source for feature in features):
        if name != table.id_column:
            findings += _column(table.frame[name], of_column[name])
    return findings


def _column(values: pl.Series, feature: Feature) -> list[Finding]:
    facts = {"side": feature.side, "side_zh": SIDES_ZH[feature.side], "column": feature.name}
    codes = codes_of(values, bins=False)
    is_known = values.is_not_null().to_numpy() if codes is None else codes >= 0
    missing = float(1 - is_known.mean())
    findings = []
    if missing >= MISSING_SHARE:
        findings.append(Finding(KINDS["mostly-missing-feature"], "warning", missing, facts))
    num_known = int(is_known.sum())
    if codes is None or num_known < MIN_ROWS:
        return findings
    counts = np.bincount(codes[is_known])
    most = float(counts.max() / num_known)
    if most >= CONSTANT_SHARE:
        row = int(np.flatnonzero(codes == counts.argmax())[0])
        severity: Severity = "warning" if most == 1 else "info"
        findings.append(
            Finding(
                KINDS["constant-feature"], severity, most, {**facts, "most": _shown(values[row])}
            )
        )
    unique = float((counts > 0).sum() / num_known)
    if unique >= UNIQUE_SHARE and feature.is_fed and _is_key(values):
        findings.append(Finding(KINDS["unique-feature"], "warning", unique, facts))
    return findings


def _is_key(values: pl.Series) -> bool:
    """Whether values that are all different name something, rather than measure or tell."""
    if values.dtype.is_integer():
        return True
    return values.dtype == pl.String and not values.drop_nulls().str.contains(r"\s").any()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def codes_of(values: pl.Series, *, bins: bool = True) -> npt.NDArray[np.int64] | None:
    """Return a column as groups of equal values: ``(n,)`` int64 from 0, -1 where it is missing.

    Args:
        values: ``(n,)`` of any type; lists are equal as a whole.
        bins: Whether numbers and times that seldom recur are grouped into 32 quantiles.

    Returns:
        The groups, or None where values cannot be compared, as vectors and structures.
    """
    dtype = values.dtype
    if isinstance(dtype, pl.List) and not dtype.inner.is_nested() and not dtype.inner.is_float():
        lists = values.cast(pl.List(pl.String))
        values = lists.list.sort().list.join("|").set((lists.list.len() == 0).fill_null(True), None)
    elif dtype.is_nested() or dtype in (pl.Object, pl.Binary):
        return None
    if values.dtype.is_float():
        values = values.fill_nan(None)
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        values = values.set((values.str.strip_chars() == "").fill_null(False), None)
    known = len(values) - values.null_count()
    if values.dtype == pl.Null or not known:
        return np.full(len(values), -1, np.int64)
    ranks = values.rank("dense")
    codes = (ranks.cast(pl.Int64) - 1).fill_null(-1).to_numpy()
    is_scale = values.dtype.is_numeric() or values.dtype.is_temporal()
    if bins and is_scale and (codes.max() + 1) * 2 > known and known > _BINS:
        edges = np.quantile(codes[codes >= 0], np.arange(1, _BINS) / _BINS)
        codes = np.where(codes >= 0, np.searchsorted(edges, codes, side="left"), -1)
    return np.asarray(codes, np.int64)


def by_row(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the groups of a table's lines by row: reserved rows have none."""
    return np.concatenate([np.full(FIRST_ROW, -1, np.int64), codes])


def text_of(values: pl.Series) -> pl.Series | None:
    """Return strings and whole numbers as text without outer spaces, null where empty; else None."""
    if values.dtype in (pl.Categorical, pl.Enum, pl.String) or values.dtype.is_integer():
        texts = values.cast(pl.String).str.strip_chars()
        return texts.set((texts == "").fill_null(False), None)
    return None


def described(table: EntityTable) -> list[str]:
    """Return the columns of a table beside its id."""
    return [name for name in table.frame.columns if name != table.id_column]
