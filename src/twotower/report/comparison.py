"""Runs held against the first of them, as one HTML page in the look of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from twotower.doctor.findings import Language
from twotower.evaluation.compare import Comparison
from twotower.evaluation.figures import MAIN_METRIC
from twotower.evaluation.intervals import Interval
from twotower.evaluation.slices import Slice
from twotower.report.charts import Dot, dot_plot
from twotower.report.figures_reader import ends, number, surely, telling, whole
from twotower.report.html_files import render, write_page
from twotower.report.sections.groups import cut_name, group_label
from twotower.report.sections.methods import Cell, Row, Table, difference_cell, in_two_widths
from twotower.report.wording import Say, metric_label, metric_name, speaker
from twotower.serving.titles import clean

_DIGITS = 4
_MAX_NAME = 40


def write_comparison(
    comparison: Comparison, path: str | Path, *, language: Language = "en"
) -> None:
    """Write what ``compare_runs`` found as one HTML file that needs nothing else.

    Args:
        comparison: Runs held against the first.
        path: Where to; a file that is there is replaced.
        language: ``"en"`` or ``"zh"``.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    say = speaker(language)
    first, *others = comparison.runs
    names = {run: clean(run, _MAX_NAME) for run in comparison.runs}
    page = render(
        "comparison.html",
        language=language,
        t=say,
        runs=[names[run] for run in comparison.runs],
        headline=_headline(comparison, names, say),
        verdicts=[_verdict(comparison, run, names, say) for run in others],
        measured=say(
            "measured",
            queries=whole(comparison.queries),
            part=say("test"),
            targets=whole(comparison.targets),
            among=say("among_all", catalogue=whole(comparison.catalogue)),
            seen=say("removed" if comparison.seen_removed else "kept"),
        ),
        chart=_chart(comparison, names, say),
        figures=_figures(comparison, names, say),
        differences=[_differences(comparison, run, names, say) for run in others],
        settings=[
            (
                setting.name,
                _said(setting.default, say),
                [_said(setting.values.get(run), say) for run in comparison.runs],
            )
            for setting in comparison.settings
        ],
        slices=[
            {
                "run": names[run],
                "won": _slices(comparison.won[run], first, say),
                "lost": _slices(comparison.lost[run], first, say),
            }
            for run in others
        ],
        num_slices=comparison.num_slices,
        first=names[first],
    )
    write_page(Path(path), page)


def _headline(comparison: Comparison, names: Mapping[str, str], say: Say) -> str:
    """Return who is best, as far as it can be told."""
    first, *others = comparison.runs
    gaps = {run: comparison.differences[run][MAIN_METRIC] for run in others}
    best = max(others, key=lambda run: gaps[run].value)
    gap = gaps[best]
    metric, facts = metric_name(say, MAIN_METRIC), {"run": names[best], "first": names[first]}
    if gap.low > 0:
        return say("run_beats", metric=metric, value=number(gap.value, _digits(gap)), **facts)
    if all(found.high < 0 for found in gaps.values()):
        return say("run_loses", metric=metric, value=number(-gap.value, _digits(gap)), **facts)
    return say("run_equal", **facts)


def _verdict(comparison: Comparison, run: str, names: Mapping[str, str], say: Say) -> str:
    gap = comparison.differences[run][MAIN_METRIC]
    sure = surely(gap.low, gap.high)
    return say(
        "run_equal_to" if sure == "equal" else f"run_{sure}",
        run=names[run],
        first=names[comparison.runs[0]],
        metric=metric_name(say, MAIN_METRIC),
        value=number(gap.value, _digits(gap), signed=True),
        low=number(gap.low, _digits(gap), signed=True),
        high=number(gap.high, _digits(gap), signed=True),
    )


def _chart(comparison: Comparison, names: Mapping[str, str], say: Say) -> Markup:
    dots = []
    for run in comparison.runs:
        found = comparison.intervals[run][MAIN_METRIC]
        cell = _cell(found)
        tip = f"{names[run]}: {cell.value} ({cell.interval})"
        is_first = run == comparison.runs[0]
        dots.append(Dot(names[run], found.value, found.low, found.high, tip, not is_first))
    metric = metric_label(say, MAIN_METRIC)
    label = say("exposure_chart", metric=metric, values="; ".join(dot.tip for dot in dots))
    return in_two_widths(label, dot_plot, dots, title=metric)


def _figures(comparison: Comparison, names: Mapping[str, str], say: Say) -> Table:
    metrics = list(comparison.intervals[comparison.runs[0]])
    rows = [
        Row(
            metric_label(say, metric),
            [_cell(comparison.intervals[run][metric]) for run in comparison.runs],
        )
        for metric in metrics
    ]
    return Table(say("methods_table"), list(names.values()), rows)


def _differences(comparison: Comparison, run: str, names: Mapping[str, str], say: Say) -> Table:
    rows = []
    for metric, gap in comparison.differences[run].items():
        cell = difference_cell(gap.as_json(), _DIGITS)
        said = say(f"run_says_{surely(gap.low, gap.high)}")
        rows.append(Row(metric_label(say, metric), [cell], says=said))
    caption = say("run_minus", run=names[run], first=names[comparison.runs[0]])
    return Table(caption, [say("difference")], rows, say("says"))


def _slices(found: Sequence[Slice], first: str, say: Say) -> list[tuple[str, str, str, str]]:
    """Return the name, the queries, the difference and its interval of each slice."""
    lines = []
    for part in found:
        group = part.as_json()
        cell = difference_cell(part.differences[first].as_json(), _DIGITS)
        name = f"{cut_name(say, part.by)}: {group_label(say, group)}"
        lines.append((name, whole(part.queries), cell.value, cell.interval))
    return lines


def _cell(found: Interval) -> Cell:
    return Cell(number(found.value, _DIGITS), ends(found.low, found.high, _DIGITS))


def _digits(gap: Interval) -> int:
    """Return with how many digits a difference is written."""
    return telling(_DIGITS, gap.low, gap.high)


def _said(value: Any, say: Say) -> str:
    if value is None:
        return say("not_set")
    return clean(str(value).lower() if isinstance(value, bool) else value)
