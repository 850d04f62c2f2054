"""A comparison of runs with the first of them, as one HTML page in the style of the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twotower.doctor.findings import Language
from twotower.evaluation.compare import Comparison
from twotower.evaluation.figures import MAIN_METRIC
from twotower.evaluation.intervals import Interval
from twotower.evaluation.slices import Slice
from twotower.report.charts import Dot, dot_plot
from twotower.report.figures_reader import ends, number, surely, telling, whole, with_ends
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
    """Write the result of ``compare_runs`` as one HTML file that needs nothing else.

    Args:
        comparison: The result of ``compare_runs``.
        path: The path of the file; an existing file is replaced.
        language: ``"en"`` or ``"zh"``.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    say = speaker(language)
    runs, (first, *others) = comparison.runs, comparison.runs
    names = {run: clean(run, _MAX_NAME) for run in runs}
    dots = []
    for run in runs:
        value, low, high = mean = comparison.intervals[run][MAIN_METRIC].as_json()
        tip = f"{names[run]}: {with_ends(mean, _DIGITS)}"
        dots.append(Dot(names[run], value, low, high, tip, is_model=run != first))
    metric = metric_label(say, MAIN_METRIC)
    label = say("exposure_chart", metric=metric, values="; ".join(dot.tip for dot in dots))
    rows = [
        Row(metric_label(say, name), [_cell(comparison.intervals[run][name]) for run in runs])
        for name in comparison.intervals[first]
    ]
    page = render(
        "comparison.html",
        language=language,
        t=say,
        runs=list(names.values()),
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
        chart=in_two_widths(label, dot_plot, dots, title=metric),
        figures=Table(say("methods_table"), list(names.values()), rows),
        differences=[_differences(comparison, run, names, say) for run in others],
        settings=[
            (
                setting.name,
                _said(setting.default, say),
                [_said(setting.values.get(run), say) for run in runs],
            )
            for setting in comparison.settings
        ],
        slices=[
            {
                "run": names[run],
                "won": [_slice(part, first, say) for part in comparison.won[run]],
                "lost": [_slice(part, first, say) for part in comparison.lost[run]],
            }
            for run in others
        ],
        num_slices=comparison.num_slices,
        first=names[first],
    )
    write_page(Path(path), page)


def _headline(comparison: Comparison, names: Mapping[str, str], say: Say) -> str:
    """Return which run is best, as far as it can be told."""
    first, *others = comparison.runs
    gaps = {run: comparison.differences[run][MAIN_METRIC] for run in others}
    best = max(others, key=lambda run: gaps[run].value)
    gap = gaps[best]
    key = "run_equal"
    if gap.low > 0:
        key = "run_beats"
    elif all(found.high < 0 for found in gaps.values()):
        key = "run_loses"
    facts = {"run": names[best], "first": names[first], "metric": metric_name(say, MAIN_METRIC)}
    return say(key, value=number(abs(gap.value), telling(_DIGITS, gap.low, gap.high)), **facts)


def _verdict(comparison: Comparison, run: str, names: Mapping[str, str], say: Say) -> str:
    gap = comparison.differences[run][MAIN_METRIC]
    sure, digits = surely(gap.low, gap.high), telling(_DIGITS, gap.low, gap.high)
    return say(
        "run_equal_to" if sure == "equal" else f"run_{sure}",
        run=names[run],
        first=names[comparison.runs[0]],
        metric=metric_name(say, MAIN_METRIC),
        value=number(gap.value, digits, signed=True),
        low=number(gap.low, digits, signed=True),
        high=number(gap.high, digits, signed=True),
    )


def _differences(comparison: Comparison, run: str, names: Mapping[str, str], say: Say) -> Table:
    rows = []
    for metric, gap in comparison.differences[run].items():
        cell = difference_cell(gap.as_json(), _DIGITS)
        said = say(f"run_says_{surely(gap.low, gap.high)}")
        rows.append(Row(metric_label(say, metric), [cell], says=said))
    caption = say("run_minus", run=names[run], first=names[comparison.runs[0]])
    return Table(caption, [say("difference")], rows, say("says"))


def _slice(part: Slice, first: str, say: Say) -> tuple[str, str, str, str]:
    """Return the name, the queries, the difference and its interval of a slice."""
    cell = difference_cell(part.differences[first].as_json(), _DIGITS)
    name = f"{cut_name(say, part.by)}: {group_label(say, part.as_json())}"
    return name, whole(part.queries), cell.value, cell.interval


def _cell(found: Interval) -> Cell:
    return Cell(number(found.value, _DIGITS), ends(found.low, found.high, _DIGITS))


def _said(value: Any, say: Say) -> str:
    if value is None:
        return say("not_set")
    return clean(str(value).lower() if isinstance(value, bool) else value)
