"""The doctor on columns that know the label: what is true only after the event."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from twotower.data.dataset import Dataset, EntityTable, Part
from twotower.doctor.data_columns import SIDES_ZH, by_row, codes_of, described
from twotower.doctor.findings import Finding, Severity
from twotower.evaluation.metrics import auc
from twotower.features.schema import Side

LABEL_KNOWN = 0.98
"""From this AUC on a column alone is hardly ever wrong, which nothing known before an event is."""

MAX_EVENTS = 300_000

Labels = npt.NDArray[np.bool_]


def label_columns(dataset: Dataset, roles: Collection[str] | None = None) -> list[Finding]:
    """Return which columns alone tell positive from negative training events.

    A column becomes groups, and each half of the events is scored by the share of positives that its
    group has in the other half; the figure is the AUC of that score. A column of a side is reported
    where it also knows more than the side's ids, which may well belong to one label each. Columns of
    the interactions are never fed and only warned of.

    Args:
        dataset: Split.
        roles: Columns of the interactions that have a role, as the label; None leaves all columns of
            the interactions out.
    """
    events = dataset.interactions
    in_train = np.flatnonzero(dataset.parts == Part.TRAIN)
    if events.labels is None or len(np.unique(events.labels[in_train])) < 2:
        return []
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.permutation(in_train)[:MAX_EVENTS])
    labels, is_first = events.labels[drawn] > 0, rng.random(len(drawn)) < 0.5
    findings = []
    tables: tuple[tuple[Side, EntityTable, npt.NDArray[np.int32]], ...] = (
        ("query", dataset.queries, events.query_rows),
        ("item", dataset.items, events.item_rows),
    )
    for side, table, rows in tables:
        own = _auc_of(rows[drawn].astype(np.int64), labels, is_first)
        for name in described(table):
            codes = codes_of(table.frame[name])
            if codes is None:
                continue
            found = _auc_of(by_row(codes)[rows[drawn]], labels, is_first)
            if found >= LABEL_KNOWN and found > own:
                findings.append(_finding(side, name, found))
    if roles is None:
        return findings
    for name in (name for name in dataset.event_columns.columns if name not in roles):
        codes = codes_of(dataset.event_columns[name][drawn])
        found = 0.0 if codes is None else _auc_of(codes, labels, is_first)
        if found >= LABEL_KNOWN:
            findings.append(_finding("event", name, found))
    return findings


def _finding(side: str, column: str, value: float) -> Finding:
    severity: Severity = "warning" if side == "event" else "error"
    case = "not fed" if side == "event" else "read by a tower"
    facts = {"side": side, "side_zh": SIDES_ZH[side], "column": column}
    return Finding.of(f"column-knows-label: {case}", severity, value, **facts)


def _auc_of(groups: npt.NDArray[np.int64], labels: Labels, is_first: Labels) -> float:
    """Return the AUC of a group's share of positives in the other half; a group of -1 is one, too."""
    if min(labels.sum(), (~labels).sum()) < 1:
        return 0.0
    scores = np.empty(len(groups))
    size = int(groups.max()) + 2
    for half in (is_first, ~is_first):
        other = groups[~half] + 1
        events = np.bincount(other, minlength=size)
        positives = np.bincount(other, labels[~half], size)
        overall = labels[~half].mean() if len(other) else 0.5
        scores[half] = ((positives + overall) / (events + 1))[groups[half] + 1]
    return auc(scores, labels)
