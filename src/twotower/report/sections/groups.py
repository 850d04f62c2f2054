"""The slices of the test: as plots, as a table, and the worst of them in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from twotower.report.charts import Dot, dot_plot
from twotower.report.figures_reader import Reading, date, ends, number, whole, with_ends
from twotower.report.sections.methods import Cell, Chart, Row, Table, difference_cell, in_two_widths
from twotower.report.wording import TEXTS, Say, method_name, metric_label, metric_name
from twotower.serving.titles import clean

Group = Mapping[str, Any]
"""A slice as ``Slice.as_json`` writes it."""

_MAX_LABEL = 40
_WORST = 5


def cut_name(say: Say, by: str) -> str:
    """Return the name of a cut: ``popularity of the items``, ``item: genres``."""
    if f"by_{by}" in TEXTS:
        return say(f"by_{by}")
    side, _, column = by.partition(".")
    if column and f"side_{side}" in TEXTS:
        return say("by_column", side=say(f"side_{side}"), column=clean(column, _MAX_LABEL))
    return clean(by, _MAX_LABEL)


def group_label(say: Say, group: Group) -> str:
    """Return the name of one group of a cut, in the page's language."""
    low, high, unit = group.get("low"), group.get("high"), group.get("unit")
    label = str(group["label"])
    is_word = not str(group["by"]).startswith(("query.", "item.")) or label.startswith("(")
    if is_word and f"label_{label}" in TEXTS:
        return say(f"label_{label}")
    if unit is None or low is None or high is None:
        return clean(label, _MAX_LABEL)
    ends = list(dict.fromkeys((_said(low, unit), _said(high, unit))))
    said = ends[0] if len(ends) == 1 else say("range", low=ends[0], high=ends[1])
    return say("range_events", range=said) if unit == "events" else said


def worst_groups(groups: Sequence[Group], reading: Reading, say: Say) -> list[str]:
    """Return sentences about the groups whose whole interval lies below their reference."""

    def below(group: Group) -> float:
        """Return how far the upper end of its interval is below the reference, as a negative number."""
        return reading.of_group(group)[2] - float(group["reference"])

    sentences = []
    for group in sorted((g for g in groups if not g["small"] and below(g) < 0), key=below)[:_WORST]:
        value, low, high = (number(each) for each in reading.of_group(group))
        sentences.append(
            say(
                "worst_item",
                name=f"{cut_name(say, group['by'])}: {group_label(say, group)}",
                metric=metric_name(say, group["metric"]),
                queries=whole(group["queries"]),
                reference=number(group["reference"]),
                value=value,
                low=low,
                high=high,
            )
        )
    return sentences


def group_charts(groups: Sequence[Group], reading: Reading, say: Say) -> list[Chart]:
    """Return a plot for each cut, all on one scale, with a rule at the mean over all queries."""
    cuts: dict[str, list[Group]] = {}
    for group in groups:
        cuts.setdefault(group["by"], []).append(group)
    reference = next((reading.of_group(group)[0] for group in cuts.pop("all", ())), None)
    sure = [g for g in groups if not g["small"]] or list(groups)
    top = max((reading.of_group(g)[2] for g in sure), default=1.0)
    charts = []
    for by, members in cuts.items():
        dots = []
        for group in members:
            value, low, high = reading.of_group(group)
            label = group_label(say, group)
            tip = f"{label}: {with_ends((value, low, high))}, n = {whole(group['queries'])}"
            name = f"{label} ({say('few')})" if group["small"] else label
            shown = (min(value, top), min(low, top), min(high, top))
            dots.append(Dot(name, *shown, tip, is_model=True, is_cut=high > top))
        metric = metric_name(say, members[0]["metric"])
        called = cut_name(say, by)
        label = say("slice_chart", metric=metric, by=called, values="; ".join(d.tip for d in dots))
        span = (0.0, top * 1.02 or 1.0)
        drawn = in_two_widths(label, dot_plot, dots, reference=reference, span=span)
        charts.append(Chart(called[:1].upper() + called[1:], drawn))
    return charts


def groups_table(groups: Sequence[Group], reading: Reading, say: Say) -> Table:
    """Return the table of the slices: count, means of the model, difference to the best baseline."""
    strongest = reading.strongest
    means = groups[0].get("means") or {}  # older bundles have none
    further = list(means.get(reading.subject, {}))
    columns = [say("queries"), metric_name(say, groups[0]["metric"])]
    columns += [metric_label(say, metric) for metric in further]
    if strongest is not None:
        columns.append(say("against", name=method_name(say, strongest)))
    rows = []
    for group in groups:
        value, low, high = reading.of_group(group)
        count = whole(group["queries"]) + (f" ({say('few')})" if group["small"] else "")
        cells = [Cell(count), Cell(number(value), ends(low, high))]
        cells += [Cell(number(group["means"][reading.subject].get(metric))) for metric in further]
        if strongest is not None:
            found = (group.get("differences") or {}).get(strongest)
            cells.append(difference_cell(found, 3))
        label = group_label(say, group)
        name = label if group["by"] == "all" else f"{cut_name(say, group['by'])}: {label}"
        rows.append(Row(name, cells))
    return Table(say("slice_table", count=len(groups)), columns, rows)


def _said(value: float, unit: str) -> str:
    if unit == "events":
        return f"{value:,.0f}"
    if unit in ("day", "minute"):
        return date(value, with_time=unit == "minute")
    return f"{value:.6g}"
