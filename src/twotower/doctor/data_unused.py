"""The doctor on what training does not use: columns, kinds of event, ids without a row."""

import numpy as np
import polars as pl

from twotower.chinese import in_chinese
from twotower.config import FeaturesConfig
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset, EntityTable
from twotower.data.unused import event_kinds
from twotower.doctor.data_features import SIDES_ZH, described
from twotower.doctor.findings import KINDS, Finding, Severity
from twotower.features.schema import Side, infer_features
from twotower.vocab import FIRST_ROW

MANY_EVENTS = 0.05
"""From this share of events on whose item or query has no row, a warning."""


def unused(decisions: tuple[Decision, ...]) -> list[Finding]:
    """Return which columns of the interactions nothing reads."""
    left = {d.column: d.reason for d in decisions if d.role is None and d.column is not None}
    if not left:
        return []
    return [Finding(KINDS["unused-columns"], "info", len(left), _listed(left))]


def unstated_kinds(dataset: Dataset, decisions: tuple[Decision, ...]) -> list[Finding]:
    """Return whether a column that nothing reads seems to name the kind of each event."""
    left = {decision.column for decision in decisions if decision.role is None}
    columns = [name for name in dataset.event_columns.columns if name in left]
    kinds = event_kinds(dataset.event_columns, columns)
    if kinds is None:
        return []
    facts = {"column": kinds.column, "shares": kinds.shares, "best": kinds.best or "KIND"}
    return [Finding(KINDS["unstated-event-kinds"], "warning", len(kinds.counts), facts)]


def without_row(dataset: Dataset) -> list[Finding]:
    """Return whether events have items or queries of which the side's table says nothing."""
    events, found = dataset.interactions, []
    for table, rows, what, what_zh in (
        (dataset.items, events.item_rows, "items", "物品"),
        (dataset.queries, events.query_rows, "queries", "查询"),
    ):
        names = described(table)
        if not names:
            continue
        is_empty = table.frame.select(pl.all_horizontal(pl.col(names).is_null())).to_series()
        is_missing = is_empty.to_numpy()[rows.astype(np.int64) - FIRST_ROW]
        if not is_missing.any():
            continue
        share = float(is_missing.mean())
        facts = {
            "what": what,
            "what_zh": what_zh,
            "count": len(np.unique(rows[is_missing])),
            "total": len(np.unique(rows)),
        }
        severity: Severity = "warning" if share >= MANY_EVENTS else "info"
        found.append(Finding(KINDS["ids-without-a-row"], severity, share, facts))
    return found


def shown_only(table: EntityTable, side: Side, settings: FeaturesConfig) -> list[Finding]:
    """Return which columns of a side's table are kept for people alone."""
    stated = getattr(settings, side)
    features = infer_features(
        table.frame, side, table.id_column, stated, settings=settings, forms=table.forms
    )
    left = {f.name: f.reason for f in features if not f.is_fed and f.name not in stated}
    if not left:
        return []
    facts = {"side": side, "side_zh": SIDES_ZH[side], **_listed(left)}
    return [Finding(KINDS["shown-only-columns"], "info", len(left), facts)]


def _listed(columns: dict[str, str]) -> dict[str, str]:
    """Return columns with their reasons in words of both languages, as facts of a finding."""
    chinese = {name: in_chinese(reason) or reason for name, reason in columns.items()}
    return {
        "columns": ", ".join(f"{name!r} ({reason})" for name, reason in columns.items()),
        "columns_zh": "、".join(f"{name!r}（{reason}）" for name, reason in chinese.items()),
    }
