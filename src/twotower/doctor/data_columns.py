"""The doctor on columns: those that are constant, unique or missing, and those that nothing reads."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from twotower.arrays import Ints, distinct
from twotower.chinese import in_chinese
from twotower.config import FeaturesConfig
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset, EntityTable
from twotower.data.unused import event_kinds
from twotower.doctor.findings import Finding, graded
from twotower.features.schema import Feature, Side, infer_features
from twotower.vocab import FIRST_ROW

CONSTANT_SHARE = 0.99
"""Share of the known rows from which one value leaves too little to tell rows apart."""

UNIQUE_SHARE = 0.99
MISSING_SHARE = 0.5
MIN_ROWS = 20
"""Fewest rows; a share of fewer is chance."""

MANY_EVENTS = 0.05
"""Share of events without a row of their item or query from which there is a warning."""

SIDES_ZH = {"query": "查询", "item": "物品", "event": "事件"}

_BINS = 32


def columns(table: EntityTable, side: Side, settings: FeaturesConfig) -> Iterator[Finding]:
    """Yield which columns of a side's table are constant, unique in each row, or mostly missing.

    An entity that the table lacks counts as missing in every column. Numbers and times are unique by
    nature, and so are texts of several words: neither is reported as unique, nor are columns that are only
    shown.

    Args:
        table: The side's table.
        side: Which side it is.
        settings: Kinds that the user stated, and how text is read.

    Raises:
        ConfigError: A stated kind does not go with its column, as in training.
    """
    if len(table) < MIN_ROWS:
        return
    # Of several features of one column the first counts.
    of_column = {feature.source: feature for feature in reversed(_features(table, side, settings))}
    for name in table.frame.columns:
        if name in of_column and name != table.id_column:
            yield from _column(table.frame[name], of_column[name])


def _features(table: EntityTable, side: Side, settings: FeaturesConfig) -> tuple[Feature, ...]:
    stated = getattr(settings, side)
    return infer_features(
        table.frame, side, table.id_column, stated, settings=settings, forms=table.forms
    )


def _column(values: pl.Series, feature: Feature) -> Iterator[Finding]:
    facts = {"side": feature.side, "side_zh": SIDES_ZH[feature.side], "column": feature.name}
    codes = codes_of(values, bins=False)
    is_known = values.is_not_null().to_numpy() if codes is None else codes >= 0
    missing = float(1 - is_known.mean())
    if missing >= MISSING_SHARE:
        yield Finding.of("mostly-missing-feature", "warning", missing, **facts)
    num_known = int(is_known.sum())
    if codes is None or num_known < MIN_ROWS:
        return
    counts = np.bincount(codes[is_known])
    most = float(counts.max() / num_known)
    shown = repr(values[int(np.flatnonzero(codes == counts.argmax())[0])])
    shown = shown if len(shown) <= 40 else f"{shown[:39]}…"
    yield from graded("constant-feature", most, (CONSTANT_SHARE, 1), **facts, most=shown)
    unique = float((counts > 0).sum() / num_known)
    if unique >= UNIQUE_SHARE and feature.is_fed and _is_key(values):
        yield Finding.of("unique-feature", "warning", unique, **facts)


def _is_key(values: pl.Series) -> bool:
    """Return whether values that are all different are a key, not a measure or a text."""
    if values.dtype.is_integer():
        return True
    return values.dtype == pl.String and not values.drop_nulls().str.contains(r"\s").any()


def unused(decisions: tuple[Decision, ...]) -> Iterator[Finding]:
    """Yield which columns of the interactions are unused."""
    left = {d.column: d.reason for d in decisions if d.role is None and d.column is not None}
    if left:
        yield Finding.of("unused-columns", "info", len(left), **_listed(left))


def unstated_kinds(dataset: Dataset, decisions: tuple[Decision, ...]) -> Iterator[Finding]:
    """Yield whether an unused column seems to name the kind of each event."""
    left = {decision.column for decision in decisions if decision.role is None}
    columns = [name for name in dataset.event_columns.columns if name in left]
    kinds = event_kinds(dataset.event_columns, columns)
    if kinds is not None:
        facts = {"column": kinds.column, "shares": kinds.shares, "best": kinds.best or "KIND"}
        yield Finding.of("unstated-event-kinds", "warning", len(kinds.counts), **facts)


def without_row(dataset: Dataset) -> Iterator[Finding]:
    """Yield whether events have items or queries that their side's table says nothing about."""
    events = dataset.interactions
    for table, rows, what, what_zh in (
        (dataset.items, events.item_rows, "items", "物品"),
        (dataset.queries, events.query_rows, "queries", "查询"),
    ):
        names = described(table)
        if not names:
            continue
        is_empty = table.frame.select(pl.all_horizontal(pl.col(names).is_null())).to_series()
        is_missing = is_empty.to_numpy()[rows.astype(np.int64) - FIRST_ROW]
        if is_missing.any():
            yield from graded(
                "ids-without-a-row",
                float(is_missing.mean()),
                (0, MANY_EVENTS),
                what=what,
                what_zh=what_zh,
                count=len(distinct(rows[is_missing])),
                total=len(distinct(rows)),
            )


def shown_only(table: EntityTable, side: Side, settings: FeaturesConfig) -> Iterator[Finding]:
    """Yield which columns of a side's table are only shown to people."""
    features = _features(table, side, settings)
    stated = getattr(settings, side)
    left = {f.name: f.reason for f in features if not f.is_fed and f.name not in stated}
    if left:
        facts = {"side": side, "side_zh": SIDES_ZH[side], **_listed(left)}
        yield Finding.of("shown-only-columns", "info", len(left), **facts)


def _listed(columns: dict[str, str]) -> dict[str, str]:
    """Return the columns and their reasons in both languages, as facts of a finding."""
    chinese = {name: in_chinese(reason) or reason for name, reason in columns.items()}
    return {
        "columns": ", ".join(f"{name!r} ({reason})" for name, reason in columns.items()),
        "columns_zh": "、".join(f"{name!r}（{reason}）" for name, reason in chinese.items()),
    }


def codes_of(values: pl.Series, *, bins: bool = True) -> Ints | None:
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


def by_row(codes: Ints) -> Ints:
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
