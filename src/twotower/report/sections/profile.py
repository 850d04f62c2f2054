"""A profile of the data: events over time, the long tail, and the content of each column."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from twotower.arrays import Float32s, Floats
from twotower.data.dataset import Dataset, Part
from twotower.doctor.data_columns import codes_of
from twotower.features.raw_values import floats_of, seconds_of, tags_of
from twotower.features.schema import Feature
from twotower.report.charts import Line, bar_chart, line_chart
from twotower.report.figures_reader import date, number, whole
from twotower.report.sections.methods import Chart, in_two_widths
from twotower.report.wording import Say
from twotower.serving.bundle import SideContents
from twotower.serving.titles import clean

MAX_COLUMNS = 40
"""Columns of a side that are shown."""

_PERIODS = 48
_BARS = 24
_DAY = 86_400.0
_ENDS = (0.5, 99.5)
"""Percentiles between which a column's histogram is drawn."""

_MOST_VALUES = 4
_MAX_VALUE = 24


def events_chart(dataset: Dataset, say: Say) -> Markup | None:
    """Return the chart of events over time, training and held out; None where events have no times."""
    times = dataset.interactions.times
    if times is None or not len(times):
        return None
    low, high = float(times.min()), float(times.max())
    edges = np.linspace(low, high if high > low else low + 1, _PERIODS + 1)
    is_train = dataset.parts == Part.TRAIN
    train, _ = np.histogram(times[is_train], edges)
    held_out, _ = np.histogram(times[~is_train], edges)
    parts = list(zip(train.tolist(), held_out.tolist(), strict=True))
    with_time = high - low <= 2 * _DAY
    dates = [date(edge, with_time=with_time) for edge in edges]
    tips = [
        say("period_tip", since=since, until=until, train=whole(first), held_out=whole(second))
        for since, until, (first, second) in zip(dates, dates[1:], parts, strict=False)
    ]
    last = date(high, with_time=with_time)
    label = say("events_chart", count=whole(len(times)), first=dates[0], last=last)
    form = "%m-%d %H:%M" if with_time else "%Y-%m-%d"
    return in_two_widths(label, bar_chart, edges.tolist(), parts, tips, labels=0, time_format=form)


def tail_chart(popularity: Float32s, dataset: Dataset | None, say: Say) -> Chart | None:
    """Return the chart of how training events spread over items and queries; None without any event.

    Args:
        popularity: Training events of each item that may be an answer.
        dataset: The data set, for the queries' events; None where they are not known.
        say: The sentences of the page.
    """
    counts = {"items": np.asarray(popularity, np.float64)}
    if dataset is not None:
        of_queries = np.bincount(dataset.interactions.query_rows[dataset.parts == Part.TRAIN])
        counts["queries"] = of_queries[of_queries > 0].astype(np.float64)
    if not counts["items"].sum() > 0:
        return None
    lines = []
    for dash, (name, values) in enumerate(counts.items()):
        label = say(f"tail_{name}")
        lines.append(Line(label, _lorenz(values), is_model=name == "items", dash=dash))
    tenth = _share_of_top(counts["items"], 0.1)
    without = float((counts["items"] == 0).mean())
    note = say("tail_note", share=number(100 * tenth, 0), none=number(100 * without, 0))
    options: dict[str, Any] = {"title": say("tail_x"), "from_zero": True, "with_dots": False}
    drawn = in_two_widths(note, line_chart, lines, labels=0.5, **options)
    return Chart(say("tail"), drawn, note)


def column_profiles(sides: Sequence[SideContents], say: Say) -> list[dict[str, Any]]:
    """Return the profile of each column but the ids, in words and as a drawing.

    Of each: its ``name``, ``side`` and ``kind``, the share of rows where it is ``missing``, its number of
    ``distinct`` values, what it ``holds``, and its histogram (``drawn``) if it holds numbers or times.

    Args:
        sides: The tables with their features.
        say: The sentences of the page.
    """
    found = []
    for table in (table for table in sides if len(table.frame)):
        names = table.frame.columns
        features = [f for f in table.transforms.features if f.name in names and f.meaning != "id"]
        found += [_profile(table.frame[f.name], f, say) for f in features[:MAX_COLUMNS]]
    return found


def _profile(values: pl.Series, feature: Feature, say: Say) -> dict[str, Any]:
    codes = codes_of(values, bins=False)
    known = values.is_not_null().to_numpy() if codes is None else codes >= 0
    distinct = "" if codes is None else whole(len(np.unique(codes[known])))
    holds, drawn = "", None
    if feature.meaning in ("number", "time"):
        numbers = seconds_of(values) if feature.meaning == "time" else floats_of(values)
        numbers = numbers[np.isfinite(numbers)]
        if len(numbers):
            drawn = _histogram(numbers)
            low, high = float(numbers.min()), float(numbers.max())
            ends = [f"{low:.6g}", f"{high:.6g}"]
            if feature.meaning == "time":
                ends = [date(end, with_time=high - low <= 2 * _DAY) for end in (low, high)]
            holds = ends[0] if ends[0] == ends[1] else say("range", low=ends[0], high=ends[1])
    elif feature.meaning in ("categorical", "tags"):
        _, tags = tags_of(values, feature.separator if feature.meaning == "tags" else "")
        counts = tags.rename("tag").value_counts().sort(["count", "tag"], descending=[True, False])
        distinct, holds = whole(len(counts)), _commonest(counts, len(values))
    elif feature.meaning == "text":
        middle = values.cast(pl.String).drop_nulls().str.split(" ").list.len().median()
        if isinstance(middle, (int, float)):
            holds = say("profile_words", count=f"{middle:g}")
    return {
        "name": clean(feature.name),
        "side": feature.side,
        "kind": feature.kind,
        "missing": number(100 * float(1 - known.mean()), 1),
        "distinct": distinct,
        "holds": holds,
        "drawn": drawn,
    }


def _commonest(counts: pl.DataFrame, num_rows: int) -> str:
    """Return the values that most rows have, with their shares of all rows."""
    shown = [
        f"{clean(tag, _MAX_VALUE)} {100 * count / num_rows:.0f} %"
        for tag, count in counts.head(_MOST_VALUES).rows()
    ]
    return " · ".join([*shown, "…"] if len(counts) > _MOST_VALUES else shown)


def _histogram(numbers: Floats) -> Markup:
    """Return a small histogram for a line of text, without the outermost values."""
    low = float(np.percentile(numbers, _ENDS[0], method="lower"))
    high = float(np.percentile(numbers, _ENDS[1], method="higher"))
    counts, _ = np.histogram(numbers, _BARS, (low, high if high > low else low + 1))
    heights = np.ceil(24 * counts / counts.max()).astype(int)
    bars = "".join(
        f'<rect x="{5 * place}" y="{24 - height}" width="4" height="{height}"/>'
        for place, height in enumerate(heights.tolist())
        if height
    )
    return Markup(
        f'<svg class="sketch" viewBox="0 0 {5 * _BARS} 24" aria-hidden="true">{bars}</svg>'
    )


def _lorenz(values: Floats) -> list[tuple[float, float]]:
    """Return ``(share of the entities, share of the events)`` in percent, the most frequent first."""
    shares = [0, 1, 2, 5, *range(10, 101, 5)]
    return [(share, 100 * _share_of_top(values, share / 100)) for share in shares]


def _share_of_top(values: Floats, share: float) -> float:
    ordered = np.sort(values)[::-1]
    return float(ordered[: int(np.ceil(share * len(ordered)))].sum() / ordered.sum())
