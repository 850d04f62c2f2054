"""The last update of a bundle: its figures beside those of the model before and of popularity."""

from collections.abc import Mapping
from typing import Any

from twotower.doctor.findings import Language
from twotower.evaluation.figures import MAIN_METRIC, SHOWN
from twotower.report.figures_reader import Reading, whole
from twotower.report.sections.methods import Cell, Row, Table
from twotower.report.wording import Said, Say, metric_label, translated

_DIGITS = 4
_METHODS = ("model", "yesterday", "popularity")


def lead(figures: Mapping[str, Any], say: Say) -> str:
    """Return a sentence on the last update; empty without one."""
    update = figures.get("update")
    if not update:
        return ""
    names = ("night", "events", "new_items", "new_queries", "queries")
    return say("update_lead", **{name: whole(update[name]) for name in names})


def reasons(figures: Mapping[str, Any], language: Language) -> list[Said]:
    """Return why the check of the last update refused its model; none if it did not."""
    update = figures.get("update") or {}
    return [translated(reason, language) for reason in update.get("reasons", ())]


def table(figures: Mapping[str, Any], say: Say) -> Table | None:
    """Return the figures of the last update with their intervals; None without one."""
    update = figures.get("update")
    if not update:
        return None
    reading = Reading(update)
    metrics = [metric for metric in SHOWN if reading.value("model", metric) is not None]
    rows = []
    for method in _METHODS:
        cells = [_cell(reading.interval(method, metric)) for metric in metrics]
        cells.append(_cell(reading.difference(method, MAIN_METRIC), sign="+"))
        rows.append(Row(say(f"update_{method}"), cells, is_model=method == "model"))
    columns = [*(metric_label(say, metric) for metric in metrics), say("update_minus")]
    return Table(say("update_table", queries=whole(update["queries"])), columns, rows)


def _cell(triple: tuple[float, float, float] | None, *, sign: str = "") -> Cell:
    if triple is None:
        return Cell("")
    value, low, high = triple
    return Cell(f"{value:{sign}.{_DIGITS}f}", f"{low:{sign}.{_DIGITS}f} – {high:{sign}.{_DIGITS}f}")
