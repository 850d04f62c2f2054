"""The report's charts as Vega-Lite: means with intervals, lines, and a map of points."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twotower.report.svg import GROUPS, INK, MODEL, OTHER, PAPER, QUIET

Spec = dict[str, Any]

SILENT = "\N{ZERO WIDTH SPACE}"
"""Description of a mark that has no tooltip; without one Vega writes its own, in English."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_DOT: Spec = {"type": "point", "filled": True, "opacity": 1}
_RULE: Spec = {"type": "rule", "color": QUIET, "strokeDash": [3, 3]}
_TIP: Spec = {"field": "tip", "type": "nominal"}
_NO_TIP: Spec = {"value": SILENT}
_COLOUR: Spec = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
LINES_HEIGHT = 220
"""Height of a chart of lines, in pixels."""

_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (1, 3), (10, 4), (4, 4))


@dataclass(frozen=True)
class Dot:
    """A line of a dot plot.

    Args:
        label: What it is of.
        value: Where the dot stands.
        low: Left end of the whisker; None where there is none.
        high: Its right end.
        tip: Said on hover.
        is_model: Drawn in the page's one colour.
        is_cut: Whether its line goes on beyond the right end of the axis, which a triangle there says.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    tip: str = ""
    is_model: bool = False
    is_cut: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a line chart.

    Args:
        label: Stands at its end.
        points: ``(x, y)``.
        is_model: Drawn in the page's one colour, and heavier.
        dash: Which of the dash patterns, so that greys can be told apart.
    """

    label: str
    points: Sequence[tuple[float, float]]
    is_model: bool = False
    dash: int = 0


@dataclass(frozen=True)
class Bar:
    """A bar of a bar chart over time, of two parts.

    Args:
        start: Seconds since 1970 at its left side.
        end: The same at its right side.
        lower: Height of the grey part.
        upper: Height of the part above it, in the page's one colour.
        tip: Said on hover.
    """

    start: float
    end: float
    lower: float
    upper: float
    tip: str = ""


@dataclass(frozen=True)
class Point:
    """A point of the map: where, which group, and what is said on hover."""

    x: float
    y: float
    group: int | None
    tip: str


def dot_plot(
    dots: Sequence[Dot],
    *,
    width: int,
    label_width: int,
    reference: float | None = None,
    title: str | None = None,
    from_zero: bool = False,
    span: tuple[float, float] | None = None,
) -> Spec:
    """Return a plot of one dot and whisker a line, in the order given.

    Args:
        dots: The lines; labels may recur.
        width: Of the whole, in pixels.
        label_width: Of it, for the labels.
        reference: Where a vertical rule stands.
        title: Under the axis.
        from_zero: Whether the axis begins at 0.
        span: Ends of the axis, for plots that are to be compared.
    """
    values = [
        {
            "line": number,
            "value": dot.value,
            "low": dot.value if dot.low is None else dot.low,
            "high": dot.value if dot.high is None else dot.high,
            "tip": dot.tip or SILENT,
            "colour": MODEL if dot.is_model else OTHER,
            "cut": dot.is_cut,
        }
        for number, dot in enumerate(dots)
    ]
    names = [_folded(dot.label, label_width) for dot in dots]
    y = {
        "field": "line",
        "type": "ordinal",
        "axis": {
            "title": None,
            "grid": False,
            "labelExpr": _lookup(names),
            "labelLimit": 0,
            "labelLineHeight": 14,
            "labelColor": INK,
            "labelAlign": "left",
            "labelPadding": label_width,
        },
        "scale": {"paddingInner": 0, "paddingOuter": 0.2},
    }
    scale: dict[str, Any] = {"zero": from_zero, "nice": span is None}
    if span is not None:
        scale["domain"] = list(span)
    x = {
        "type": "quantitative",
        "scale": scale,
        "axis": {
            "title": title,
            "tickCount": max(3, (width - label_width) // 90),
            "labelFlush": False,
        },
    }

    def layer(mark: Spec, field: str, **encoding: Any) -> Spec:
        shared = {"y": y, "x": {**x, "field": field}, "description": _TIP}
        return {"mark": mark, "encoding": {**shared, **encoding}}

    layers: list[Spec] = []
    if reference is not None:
        at = {"x": {**x, "field": "at"}, "description": _NO_TIP}
        layers.append({"data": {"values": [{"at": reference}]}, "mark": _RULE, "encoding": at})
    whisker = {"type": "rule", "strokeWidth": 2.5, "strokeCap": "round"}
    layers.append(layer(whisker, "low", x2={"field": "high"}, color=_COLOUR))
    disc = {**_DOT, "size": 90, "strokeWidth": 2}
    layers.append(layer(disc, "value", fill=_COLOUR, stroke={"value": PAPER}))
    if any(dot.is_cut for dot in dots):
        arrow = {**_DOT, "shape": "triangle-right", "size": 70, "xOffset": 6}
        only_cut = {"transform": [{"filter": "datum.cut"}]}
        layers.append({**only_cut, **layer(arrow, "high", fill=_COLOUR)})
    return {
        "data": {"values": values},
        "width": width - label_width - 24,
        "height": {"step": 27 if max(map(len, names), default=1) == 1 else 36},
        "layer": layers,
    }


def line_chart(
    lines: Sequence[Line],
    *,
    width: int,
    label_width: int = 0,
    title: str | None = None,
    x_values: Sequence[float] | None = None,
    logarithmic: bool = False,
    from_zero: bool = False,
    mark_x: float | None = None,
    mark_label: str = "",
    whole_x: bool = True,
    with_dots: bool = True,
) -> Spec:
    """Return a chart of lines with their names at their ends.

    Args:
        lines: The model's is drawn last, over the others.
        width: Of the whole, in pixels.
        label_width: Room at the right for names; 0 leaves them out.
        title: Under the axis.
        x_values: Where the axis has labels; None leaves it to the library.
        logarithmic: Whether x is.
        from_zero: Whether y begins at 0.
        mark_x: Where a vertical rule stands.
        mark_label: What stands at it.
        whole_x: Whether x counts something.
        with_dots: Whether each point has a dot, which says its value on hover.
    """
    ordered = sorted(lines, key=lambda line: line.is_model)
    everything = [y for line in lines for _, y in line.points]
    low, high = min(everything), max(everything)
    low = 0.0 if from_zero and low >= 0 else low
    pad = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    domain = [low if from_zero and low == 0 else low - pad, high + pad]
    xs = [x for line in lines for x, _ in line.points]
    x_axis: dict[str, Any] = {
        "title": title,
        "grid": False,
        "labelOverlap": True,
        "labelSeparation": 5,
    }
    if x_values is not None:
        x_axis["values"] = list(x_values)
    elif whole_x:
        x_axis |= {"format": "d", "tickMinStep": 1, "tickCount": 6}
    else:
        x_axis |= {"format": "~g", "tickCount": 8}
    x = {
        "field": "x",
        "type": "quantitative",
        "scale": {
            # What starts at 0 has no logarithm there.
            "type": ("log" if min(xs) > 0 else "symlog") if logarithmic else "linear",
            "domain": [min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1],
            "nice": False,
        },
        "axis": x_axis,
    }
    y_axis = {"title": None, "tickCount": 5, "minExtent": 34}
    y = {
        "field": "y",
        "type": "quantitative",
        "scale": {"domain": domain, "nice": False, "zero": False},
        "axis": y_axis,
    }
    layers: list[Spec] = []
    if mark_x is not None:
        at = {"data": {"values": [{"x": mark_x, "y": domain[1]}]}}
        layers.append({**at, "mark": _RULE, "encoding": {"x": x, "description": _NO_TIP}})
        text = {"type": "text", "text": mark_label, "color": QUIET, "baseline": "bottom"}
        mark = {**text, "dy": -4}
        layers.append({**at, "mark": mark, "encoding": {"x": x, "y": y, "description": _NO_TIP}})
    for line in ordered:
        mark = {
            "type": "line",
            "color": MODEL if line.is_model else OTHER,
            "strokeWidth": 2.75 if line.is_model else 1.5,
            "strokeDash": [1, 0] if line.is_model else list(_DASHES[line.dash % len(_DASHES)]),
            "strokeCap": "round",
            "interpolate": "linear",
        }
        points = [{"x": x_, "y": y_, "tip": f"{line.label}: {y_:.4g}"} for x_, y_ in line.points]
        data = {"data": {"values": points}}
        layers.append({**data, "mark": mark, "encoding": {"x": x, "y": y, "description": _NO_TIP}})
        if not with_dots:
            continue
        dot = {**_DOT, "color": mark["color"], "size": 28 if line.is_model else 14}
        layers.append({**data, "mark": dot, "encoding": {"x": x, "y": y, "description": _TIP}})
    if label_width:
        layers += _end_labels(ordered, x, y, domain, label_width)
    room = {"left": 2, "top": 2, "bottom": 2, "right": 20 if label_width else 8}
    plot = width - 52 - label_width
    return {"width": plot, "height": LINES_HEIGHT, "padding": room, "layer": layers}


def bar_chart(bars: Sequence[Bar], *, width: int, time_format: str) -> Spec:
    """Return bars over time, each of a grey part and one in the page's one colour above it.

    Args:
        bars: In their order.
        width: Of the whole, in pixels.
        time_format: How moments are written under the axis.
    """
    values = [
        {
            "start": bar.start * 1000,
            "end": bar.end * 1000,
            "low": low,
            "high": high,
            "tip": bar.tip or SILENT,
            "colour": colour,
        }
        for bar in bars
        for low, high, colour in (
            (0.0, bar.lower, OTHER),
            (bar.lower, bar.lower + bar.upper, MODEL),
        )
        if high > low
    ]
    first, last, num_ticks = bars[0].start, bars[-1].end, max(2, width // 170)
    ticks = [first + place * (last - first) / num_ticks for place in range(num_ticks + 1)]
    axis = {"title": None, "grid": False, "format": time_format, "labelFlush": True}
    x = {
        "field": "start",
        "type": "temporal",
        "scale": {"type": "utc"},
        "axis": {**axis, "values": [tick * 1000 for tick in ticks]},
    }
    y = {
        "field": "low",
        "type": "quantitative",
        "axis": {"title": None, "tickCount": 4, "minExtent": 34, "format": "~s"},
    }
    return {
        "data": {"values": values},
        "width": width - 62,
        "height": 160,
        "mark": {"type": "rect", "stroke": PAPER, "strokeWidth": 1},
        "encoding": {
            "x": x,
            "x2": {"field": "end"},
            "y": y,
            "y2": {"field": "high"},
            "color": _COLOUR,
            "description": _TIP,
        },
    }


def point_map(points: Sequence[Point], *, width: int, height: int) -> Spec:
    """Return a map: points of a group share colour and shape, those of none are small and grey."""
    values = [
        {
            "x": point.x,
            "y": point.y,
            "tip": point.tip or SILENT,
            "colour": OTHER if point.group is None else GROUPS[point.group],
            "shape": "circle" if point.group is None else SHAPES[point.group],
            "size": 16 if point.group is None else 34,
        }
        for point in sorted(points, key=lambda point: point.group is not None)
    ]

    def axis(field: str) -> dict[str, Any]:
        scale = {"zero": False, "nice": False, "padding": 8}
        return {"field": field, "type": "quantitative", "axis": None, "scale": scale}

    return {
        "data": {"values": values},
        "width": width,
        "height": height,
        "mark": {"type": "point", "filled": True, "opacity": 0.8, "strokeWidth": 0},
        "encoding": {
            "x": axis("x"),
            "y": axis("y"),
            "color": _COLOUR,
            "shape": {**_COLOUR, "field": "shape"},
            "size": {**_COLOUR, "field": "size", "type": "quantitative"},
            "description": _TIP,
        },
    }


def _end_labels(
    lines: Sequence[Line],
    x: dict[str, Any],
    y: dict[str, Any],
    domain: Sequence[float],
    label_width: int,
) -> list[Spec]:
    """Return the names at the lines' right ends, moved apart so that none lies over another."""
    gap = (domain[1] - domain[0]) * 15 / LINES_HEIGHT
    lines = sorted(lines, key=lambda line: line.points[-1][1])
    places = apart([line.points[-1][1] for line in lines], gap, domain[0] + gap / 2, domain[1])
    values = [
        {
            "x": line.points[-1][0],
            "y": place,
            "text": _cut(line.label, label_width),
            "colour": MODEL if line.is_model else QUIET,
        }
        for line, place in zip(lines, places, strict=True)
    ]
    mark = {"type": "text", "align": "left", "baseline": "middle", "dx": 8}
    encoding = {
        "x": x,
        "y": y,
        "text": {"field": "text"},
        "color": _COLOUR,
        "description": _NO_TIP,
    }
    return [{"data": {"values": values}, "mark": mark, "encoding": encoding}]


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return rising ``places`` moved so that neighbours are ``gap`` apart, within the ends if they fit.

    Args:
        places: Ascending.
        gap: Least distance between two.
        low: Lowest place.
        high: Highest place; passed over where too many stand in too little room.
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, low if not moved else moved[-1] + gap))
    if moved and moved[-1] > high:
        moved[-1] = max(high, low + gap * (len(moved) - 1))
        for number in range(len(moved) - 2, -1, -1):
            moved[number] = min(moved[number], moved[number + 1] - gap)
    return moved


def _cut(label: str, pixels: int) -> str:
    """Return a label that fits: CJK letters are about as wide as the font is high, others half."""
    room = pixels / 7.4
    used = 0.0
    for number, letter in enumerate(label):
        used += 2.0 if ord(letter) > 0x2E80 else 1.0
        if used > room:
            return label[: max(1, number - 1)] + "…"
    return label


def _folded(label: str, pixels: int) -> list[str]:
    """Return a label as the one line or two that fit."""
    if _cut(label, pixels) == label or " " not in label:
        return [_cut(label, pixels)]
    spaces = [place for place, letter in enumerate(label) if letter == " "]
    middle = min(spaces, key=lambda place: abs(2 * place - len(label)))
    return [_cut(label[:middle], pixels), _cut(label[middle + 1 :], pixels)]


def _lookup(names: Sequence[Sequence[str]]) -> str:
    """Return a Vega expression that says which lines of text name a line."""
    return f"{json.dumps(list(names))}[datum.value]"
