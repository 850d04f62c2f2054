"""The model beside the baselines: intervals, a table, curves by list length, and exposure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from twotower.doctor.findings import Language
from twotower.report.charts import Dot, Line, Spec, dot_plot, line_chart
from twotower.report.figures_reader import (
    SUBJECTS,
    Reading,
    ends,
    methods,
    number,
    surely,
    telling,
)
from twotower.report.svg import svg_of
from twotower.report.wording import (
    TEXTS,
    Say,
    method_label,
    metric_label,
    metric_name,
    setting_name,
    translated,
)

WIDE, NARROW, HALF = 860, 340, 420
_LABELS = {WIDE: 190, NARROW: 138, HALF: 150}
_COLUMNS = ("ndcg@10", "hit_rate@10", "recall@10", "mrr@10", "recall@100")
_EXPOSURE = ("coverage", "gini", "novelty", "popularity_bias", "diversity")


@dataclass(frozen=True)
class Cell:
    """A figure in a table: its value, and its interval under it."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    name: str
    cells: Sequence[Cell]
    is_model: bool = False
    says: str = ""


@dataclass(frozen=True)
class Table:
    """A table: its caption, its columns, its lines, and the head of what each line says."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    says: str = ""


@dataclass(frozen=True)
class Chart:
    """A small chart with its own heading and a line about it."""

    title: str
    drawn: Markup
    note: str = ""


def in_two_widths(
    label: str, draw: Callable[..., Spec], shown: Sequence[Any], **options: Any
) -> Markup:
    """Return a chart drawn for a screen and for a phone; the page's style shows one of them.

    Args:
        label: What it shows, in a sentence.
        draw: One of ``charts``; gets its ``width`` and ``label_width``.
        shown: Its lines, dots or bars.
        options: The rest of its arguments.
    """
    drawn = []
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        spec = draw(shown, **{"width": width, "label_width": _LABELS[width], **options})
        drawn.append(Markup('<div class="{}">{}</div>').format(name, svg_of(spec, label=label)))
    return Markup("").join(drawn)


def methods_chart(reading: Reading, say: Say) -> Markup:
    """Return the plot of every method's mean with its interval, best first."""
    metric = reading.metric
    assert metric is not None
    digits = reading.digits(metric)
    dots, said = [], []
    for method in reading.methods:
        value = reading.value(method, metric)
        if value is None:
            continue
        triple = reading.interval(method, metric)
        name = method_label(say, method)
        tip = f"{name}: {number(value, digits)}"
        if triple is not None:
            tip += f" ({ends(*triple[1:], digits)})"
        said.append(tip)
        low, high = (None, None) if triple is None else triple[1:]
        dots.append(Dot(name, value, low, high, tip, method == reading.subject))
    called = metric_name(say, metric)
    label = say(
        "methods_chart", metric=called, count=len(reading.baselines), best="; ".join(said) + "."
    )
    return in_two_widths(label, dot_plot, dots, title=called, from_zero=True)


def methods_table(reading: Reading, say: Say) -> Table:
    """Return the figures that say most, and what each paired difference says."""
    metrics = [m for m in _COLUMNS if reading.value(reading.subject, m) is not None]
    if "hit_rate@10" in metrics and _same(reading, "hit_rate@10", "recall@10"):
        metrics.remove("recall@10")
    metrics = metrics or list(reading.figures.get("model") or ())[:4]
    has_differences = bool(reading.figures.get("differences"))
    rows = []
    for method in reading.methods:
        cells = [_cell(reading, method, metric) for metric in metrics]
        says = ""
        if has_differences:
            difference = reading.difference(method, reading.metric)
            cells.append(difference_cell(difference, reading.digits(reading.metric)))
            if difference is not None and method not in SUBJECTS:
                says = say(f"says_{surely(*difference[1:])}")
        rows.append(Row(method_label(say, method), cells, method == reading.subject, says))
    columns = [metric_label(say, metric) for metric in metrics]
    if has_differences:
        assert reading.metric is not None
        columns.append(
            say(
                "model_minus",
                subject=say(f"subject_{reading.subject}"),
                metric=metric_name(say, reading.metric),
            )
        )
    said = say("says") if has_differences else ""
    return Table(say("methods_table"), columns, rows, said)


def all_figures_table(reading: Reading, say: Say) -> Table:
    """Return every mean: a line a metric, a column a method."""
    rows = [
        Row(
            metric_label(say, metric),
            [Cell(number(reading.value(method, metric), 4)) for method in reading.methods],
        )
        for metric in reading.figures.get("model") or ()
    ]
    return Table(say("all_figures"), [method_label(say, m) for m in reading.methods], rows)


def left_out(reading: Reading, say: Say, language: Language) -> list[str]:
    """Return why baselines were not run."""
    return [
        say(
            "left_out",
            name=method_label(say, method),
            reason=translated(reason, language).text.rstrip(".。"),
        )
        for method, reason in (reading.protocol.get("left_out") or {}).items()
    ]


def baseline_settings(reading: Reading, say: Say) -> list[tuple[str, str]]:
    """Return the settings of each baseline, as words."""
    found: dict[str, Any] = reading.protocol.get("settings") or {}
    if not found and reading.protocol.get("item_knn"):
        found = {"item_knn": reading.protocol["item_knn"]}
    said = []
    for method, settings in found.items():
        words = ", ".join(
            f"{setting_name(say, name)} {_setting(value, say)}"
            for name, value in settings.items()
            if name != "chosen_on"
        )
        if words:
            said.append((method_label(say, method), words))
    return said


def _setting(value: Any, say: Say) -> Any:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {each}" for key, each in value.items()) or say("none")
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return say("none") if value is None else value


def curve_charts(reading: Reading, say: Say) -> list[Chart]:
    """Return a chart a metric: its growth with the length of the list, a line a method."""
    curves = reading.figures.get("curves") or {}
    ks = curves.get("k") or []
    charts: list[Chart] = []
    drawn: list[Any] = []
    for metric in ("ndcg", "recall", "hit_rate"):
        by_method = curves.get(metric) or {}
        if len(ks) < 2 or not by_method or by_method in drawn:
            continue  # with one relevant item a query, recall is the hit rate
        drawn.append(by_method)
        lines = _lines(ks, by_method, reading.subject, say)
        called = metric_label(say, metric)
        values = ", ".join(f"{line.label} {line.points[-1][1]:.3f}" for line in lines)
        label = say("curve_chart", metric=called, first=ks[0], last=ks[-1], values=values)
        spec = line_chart(
            lines,
            width=HALF,
            label_width=150,
            title=say("k"),
            x_values=ks,
            logarithmic=True,
            from_zero=True,
        )
        charts.append(Chart(called, svg_of(spec, label=label)))
    return charts


def _lines(
    xs: Sequence[float], by_method: Mapping[str, Sequence[float]], subject: str, say: Say
) -> list[Line]:
    """Return a line a method, that of ``subject`` in the page's one colour."""
    return [
        Line(
            method_label(say, method),
            list(zip(xs, by_method[method], strict=True)),
            method == subject,
            methods().index(method),
        )
        for method in methods()
        if method in by_method
    ]


def known_events_chart(reading: Reading, say: Say) -> Chart | None:
    """Return the plot of how good answers are by the number of events that are known of a query."""
    found = reading.figures.get("known_events") or {}
    numbers, by_method = found.get("events") or [], found.get("methods") or {}
    if len(numbers) < 2 or "model" not in by_method:
        return None
    means = {method: [mean for mean, _, _ in triples] for method, triples in by_method.items()}
    lines = _lines(numbers, means, "model", say)
    said = "; ".join(
        say(
            "known_value",
            count=num,
            value=number(value, 3),
            low=number(low, 3),
            high=number(high, 3),
        )
        for num, (value, low, high) in zip(numbers, by_method["model"], strict=True)
    )
    called = metric_name(say, found["metric"])
    label = say("known_chart", metric=called, values=said)
    drawn = in_two_widths(
        label,
        line_chart,
        lines,
        title=say("known_events"),
        x_values=numbers,
        logarithmic=True,
        from_zero=True,
    )
    note = say("known_note", metric=called, queries=found["queries"], values=said)
    return Chart(say("known_title"), drawn, note)


def exposure_charts(reading: Reading, say: Say) -> list[Chart]:
    """Return a small plot a measure of what gets shown, every method in each."""
    charts = []
    for metric in _exposure_metrics(reading):
        called, digits = metric_label(say, metric), reading.digits(metric)
        found = [(m, reading.value(m, metric)) for m in reading.methods]
        dots = [
            Dot(
                method_label(say, method),
                value,
                tip=f"{method_label(say, method)}: {number(value, digits)}",
                is_model=method == reading.subject,
            )
            for method, value in found
            if value is not None
        ]
        label = say("exposure_chart", metric=called, values="; ".join(dot.tip for dot in dots))
        spec = dot_plot(dots, width=HALF, label_width=_LABELS[HALF], from_zero=True)
        note = f"mean_{metric.partition('@')[0]}"
        drawn = svg_of(spec, label=label)
        charts.append(Chart(called, drawn, say(note) if note in TEXTS else ""))
    return charts


def exposure_table(reading: Reading, say: Say) -> Table:
    """Return the same figures as numbers."""
    metrics = _exposure_metrics(reading)
    rows = [
        Row(
            method_label(say, method),
            [_cell(reading, method, metric) for metric in metrics],
            method == reading.subject,
        )
        for method in reading.methods
    ]
    return Table(say("exposure_table"), [metric_label(say, metric) for metric in metrics], rows)


def _exposure_metrics(reading: Reading) -> list[str]:
    """Return the measures of exposure that are there, each at the cut-off nearest to 10."""
    chosen = []
    for name in _EXPOSURE:
        present = [m for m in reading.figures.get("model") or () if m.partition("@")[0] == name]
        if present:
            chosen.append(min(present, key=lambda m: abs(int(m.partition("@")[2] or 10) - 10)))
    return chosen


def _same(reading: Reading, one: str, other: str) -> bool:
    return all(reading.value(m, one) == reading.value(m, other) for m in reading.methods)


def _cell(reading: Reading, method: str, metric: str) -> Cell:
    digits, triple = reading.digits(metric), reading.interval(method, metric)
    interval = "" if triple is None else ends(*triple[1:], digits)
    return Cell(number(reading.value(method, metric), digits), interval)


def difference_cell(difference: Sequence[float] | None, digits: int) -> Cell:
    """Return a difference, with as many digits as tell it from 0; an empty cell for None."""
    if difference is None:
        return Cell("")
    value, low, high = difference
    digits = telling(digits, low, high)
    return Cell(number(value, digits, signed=True), ends(low, high, digits, signed=True))
