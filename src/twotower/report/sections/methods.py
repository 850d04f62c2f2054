"""The model and the baselines: intervals, a table, curves by list length, and exposure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from twotower.baselines.specs import BASELINES
from twotower.doctor.findings import Language
from twotower.evaluation.figures import OURS
from twotower.report import wording
from twotower.report.charts import Dot, Line, Spec, dot_plot, line_chart
from twotower.report.figures_reader import Reading, ends, number, surely, telling, with_ends
from twotower.report.svg import svg_of
from twotower.report.wording import Say, method_label, metric_label, metric_name

WIDE, NARROW, HALF = 860, 340, 420
_LABELS = {WIDE: 190, NARROW: 138, HALF: 150}
_COLUMNS = ("ndcg@10", "hit_rate@10", "recall@10", "mrr@10", "recall@100")
_EXPOSURE = ("coverage", "gini", "novelty", "popularity_bias", "diversity")


class Cell(NamedTuple):
    """A figure in a table: its value, and its interval under it."""

    value: str
    interval: str = ""


class Row(NamedTuple):
    """A line of a table."""

    name: str
    cells: Sequence[Cell]
    is_model: bool = False
    says: str = ""


class Table(NamedTuple):
    """A table: its caption, its columns, its lines, and the heading of the verdicts."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    says: str = ""


class Chart(NamedTuple):
    """A small chart with its own heading and a line about it."""

    title: str
    drawn: Markup
    note: str = ""


def in_two_widths(
    label: str, draw: Callable[..., Spec], *shown: Any, labels: float = 1, **options: Any
) -> Markup:
    """Return a chart drawn for a screen and for a phone; the page's style shows one of them.

    Args:
        label: What the chart shows, in a sentence.
        draw: A function of ``charts``; gets a ``width``, and a ``label_width`` unless ``labels`` is 0.
        shown: Its lines, dots or bars.
        labels: Width of the labels, as a share of the usual width.
        options: The rest of its arguments.
    """
    drawn = []
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        if labels:
            options["label_width"] = int(labels * _LABELS[width])
        spec = draw(*shown, width=width, **options)
        drawn.append(Markup('<div class="{}">{}</div>').format(name, svg_of(spec, label=label)))
    return Markup("").join(drawn)


def methods_chart(reading: Reading, say: Say) -> Markup:
    """Return the plot of every method's mean with its interval, best first."""
    metric = reading.metric
    assert metric is not None
    dots = _dots(reading, metric, say)
    called, best = metric_name(say, metric), "; ".join(dot.tip for dot in dots) + "."
    label = say("methods_chart", metric=called, count=len(reading.baselines), best=best)
    return in_two_widths(label, dot_plot, dots, title=called, from_zero=True)


def _dots(reading: Reading, metric: str, say: Say) -> list[Dot]:
    """Return a dot for each method that has a value of the metric, best first."""
    dots = []
    for method in reading.methods:
        value, triple = reading.value(method, metric), reading.interval(method, metric)
        if value is None:
            continue
        low, high = (None, None) if triple is None else triple[1:]
        digits, name = reading.digits(metric), method_label(say, method)
        tip = number(value, digits) if triple is None else with_ends(triple, digits)
        dots.append(Dot(name, value, low, high, f"{name}: {tip}", method == reading.subject))
    return dots


def methods_table(reading: Reading, say: Say) -> Table:
    """Return the table of the main figures, with the verdict of each paired difference."""
    metrics = [m for m in _COLUMNS if reading.value(reading.subject, m) is not None]
    if "hit_rate@10" in metrics and _same(reading, "hit_rate@10", "recall@10"):
        metrics.remove("recall@10")
    metrics = metrics or list(reading.figures.get("model") or ())[:4]
    table = _table(reading, metrics, say("methods_table"), say)
    if not reading.figures.get("differences"):
        return table
    assert reading.metric is not None
    rows = []
    for method, row in zip(reading.methods, table.rows, strict=True):
        difference = reading.difference(method, reading.metric)
        says = ""
        if difference is not None and method in reading.baselines:
            says = say(f"says_{surely(*difference[1:])}")
        cell = difference_cell(difference, reading.digits(reading.metric))
        rows.append(row._replace(cells=[*row.cells, cell], says=says))
    subject, metric = say(f"subject_{reading.subject}"), metric_name(say, reading.metric)
    columns = [*table.columns, say("model_minus", subject=subject, metric=metric)]
    return Table(table.caption, columns, rows, say("says"))


def _table(reading: Reading, metrics: Sequence[str], caption: str, say: Say) -> Table:
    """Return the means of every method, with their intervals."""
    rows = [
        Row(
            method_label(say, method),
            [_cell(reading, method, metric) for metric in metrics],
            method == reading.subject,
        )
        for method in reading.methods
    ]
    return Table(caption, [metric_label(say, metric) for metric in metrics], rows)


def all_figures_table(reading: Reading, say: Say) -> Table:
    """Return the table of every mean: a line for each metric, a column for each method."""
    rows = [
        Row(
            metric_label(say, metric),
            [Cell(number(reading.value(method, metric), 4)) for method in reading.methods],
        )
        for metric in reading.figures.get("model") or ()
    ]
    return Table(say("all_figures"), [method_label(say, m) for m in reading.methods], rows)


def left_out(reading: Reading, say: Say, language: Language) -> list[str]:
    """Return sentences that say why baselines were not run."""
    sentences = []
    for method, reason in (reading.protocol.get("left_out") or {}).items():
        said = wording.translated(reason, language).text.rstrip(".。")
        sentences.append(say("left_out", name=method_label(say, method), reason=said))
    return sentences


def baseline_settings(reading: Reading, say: Say) -> list[tuple[str, str]]:
    """Return the settings of each baseline, in words."""
    found: dict[str, Any] = reading.protocol.get("settings") or {}
    if not found and reading.protocol.get("item_knn"):
        found = {"item_knn": reading.protocol["item_knn"]}
    said = []
    for method, settings in found.items():
        words = ", ".join(
            f"{wording.setting_name(say, name)} {_setting(value, say)}"
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
    """Return a chart for each metric, by the length of the list, with a line for each method."""
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
        options = {"label_width": _LABELS[HALF], "title": say("k"), **_by_count(ks)}
        spec = line_chart(lines, width=HALF, **options)
        charts.append(Chart(called, svg_of(spec, label=label)))
    return charts


def _by_count(counts: Sequence[int]) -> dict[str, Any]:
    """Return the options of a line chart over counts."""
    return {"x_values": counts, "logarithmic": True, "from_zero": True}


def _lines(
    xs: Sequence[float], by_method: Mapping[str, Sequence[float]], subject: str, say: Say
) -> list[Line]:
    """Return a line for each method; the line of ``subject`` has the accent colour of the page."""
    # The place of each is the colour of its line.
    every = ("model", *BASELINES, *(method for method in OURS if method != "model"))
    return [
        Line(
            method_label(say, method),
            list(zip(xs, by_method[method], strict=True)),
            method == subject,
            every.index(method),
        )
        for method in every
        if method in by_method
    ]


def known_events_chart(reading: Reading, say: Say) -> Chart | None:
    """Return the chart of a metric by the number of events that the model knows of a query."""
    found = reading.figures.get("known_events") or {}
    numbers, by_method = found.get("events") or [], found.get("methods") or {}
    if len(numbers) < 2 or "model" not in by_method:
        return None
    means = {method: [mean for mean, _, _ in triples] for method, triples in by_method.items()}
    lines = _lines(numbers, means, "model", say)
    said = "; ".join(
        say("known_value", count=count, value=number(value), low=number(low), high=number(high))
        for count, (value, low, high) in zip(numbers, by_method["model"], strict=True)
    )
    called = metric_name(say, found["metric"])
    label = say("known_chart", metric=called, values=said)
    drawn = in_two_widths(label, line_chart, lines, title=say("known_events"), **_by_count(numbers))
    note = say("known_note", metric=called, queries=found["queries"], values=said)
    return Chart(say("known_title"), drawn, note)


def exposure_charts(reading: Reading, say: Say) -> list[Chart]:
    """Return a small plot for each measure of exposure, with every method in each."""
    charts = []
    for metric in _exposure_metrics(reading):
        called, dots = metric_label(say, metric), _dots(reading, metric, say)
        label = say("exposure_chart", metric=called, values="; ".join(dot.tip for dot in dots))
        spec = dot_plot(dots, width=HALF, label_width=_LABELS[HALF], from_zero=True)
        note = f"mean_{metric.partition('@')[0]}"
        said = say(note) if note in wording.TEXTS else ""
        charts.append(Chart(called, svg_of(spec, label=label), said))
    return charts


def exposure_table(reading: Reading, say: Say) -> Table:
    """Return the measures of exposure as a table."""
    return _table(reading, _exposure_metrics(reading), say("exposure_table"), say)


def _exposure_metrics(reading: Reading) -> list[str]:
    """Return the measures of exposure that the figures hold, each at the cut-off nearest to 10."""
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
