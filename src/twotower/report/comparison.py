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
from twotower.report.figures_reader import number, telling, whole
from twotower.report.html_files import render, write_page
from twotower.report.sections.groups import cut_name, group_label
from twotower.report.sections.methods import Cell, Row, Table, in_two_widths
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
                say("not_set") if setting.default is None else _said(setting.default),
                [
                    say("not_set")
                    if setting.values.get(run) is None
                    else _said(setting.values[run])
                    for run in comparison.runs
                ],
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
    sure = "better" if gap.low > 0 else "worse" if gap.high < 0 else "equal_to"
    return say(
        f"run_{sure}",
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
        tip = f"{names[run]}: {number(found.value, _DIGITS)} ({_ends(found)})"
        is_first = run == comparison.runs[0]
        dots.append(Dot(names[run], found.value, found.low, found.high, tip, not is_first))
    metric = metric_label(say, MAIN_METRIC)
    return in_two_widths(
        lambda width, labels: dot_plot(dots, width=width, label_width=labels, title=metric),
        say("exposure_chart", metric=metric, values="; ".join(dot.tip for dot in dots)),
    )


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
        sure = "better" if gap.low > 0 else "worse" if gap.high < 0 else "equal"
        cell = _cell(gap, signed=True)
        rows.append(Row(metric_label(say, metric), [cell], says=say(f"run_says_{sure}")))
    caption = say("run_minus", run=names[run], first=names[comparison.runs[0]])
    return Table(caption, [say("difference")], rows, say("says"))


def _slices(found: Sequence[Slice], first: str, say: Say) -> list[tuple[str, str, str, str]]:
    """Return the name, the queries, the difference and its interval of each slice."""
    lines = []
    for part in found:
        group = part.as_json()
        gap = part.differences[first]
        name = f"{cut_name(say, part.by)}: {group_label(say, group)}"
        difference = number(gap.value, _digits(gap), signed=True)
        lines.append((name, whole(part.queries), difference, _ends(gap, signed=True)))
    return lines


def _cell(found: Interval, *, signed: bool = False) -> Cell:
    digits = _digits(found) if signed else _DIGITS
    return Cell(number(found.value, digits, signed=signed), _ends(found, signed=signed))


def _ends(found: Interval, *, signed: bool = False) -> str:
    digits = _digits(found) if signed else _DIGITS
    low, high = (number(end, digits, signed=signed) for end in (found.low, found.high))
    return f"{low} – {high}"


def _digits(gap: Interval) -> int:
    """Return with how many digits a difference is written."""
    return telling(_DIGITS, gap.low, gap.high)


def _said(value: Any) -> str:
    return clean(str(value).lower() if isinstance(value, bool) else value)
