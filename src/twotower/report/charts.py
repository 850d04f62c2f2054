"""The report's charts as Vega-Lite: means with intervals, lines, and a map of points."""

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from twotower.report.svg import GROUPS, INK, MODEL, OTHER, PAPER, QUIET

Spec = dict[str, Any]

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_DOT: Spec = {"type": "point", "filled": True, "opacity": 1}
_RULE: Spec = {"type": "rule", "color": QUIET, "strokeDash": [3, 3]}
_TIP: Spec = {"field": "tip", "type": "nominal"}
_COLOUR: Spec = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
PART_COLOURS = (*GROUPS, OTHER, QUIET)
"""Of the parts of stacked bars, in their order."""
LINES_HEIGHT = 220
"""Height of a chart of lines, in pixels."""

_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (1, 3), (10, 4), (4, 4), (12, 2, 2, 2), (3, 7))


class Dot(NamedTuple):
    """A line of a dot plot.

    Args:
        label: The name at the left.
        value: The place of the dot.
        low: The left end of the whisker; None for no whisker.
        high: The right end of the whisker.
        tip: The tooltip.
        is_model: Whether it is drawn in the accent colour of the page.
        is_cut: Whether the whisker goes beyond the right end of the axis; a triangle there shows it.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    tip: str = ""
    is_model: bool = False
    is_cut: bool = False


class Line(NamedTuple):
    """A line of a line chart.

    Args:
        label: The name at its right end.
        points: ``(x, y)``.
        is_model: Whether it is drawn heavier, and in the accent colour of the page.
        dash: The number of its dash pattern, which tells grey lines apart.
    """

    label: str
    points: Sequence[tuple[float, float]]
    is_model: bool = False
    dash: int = 0


class Point(NamedTuple):
    """A point of the map: its place, its group, and its tooltip."""

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
        width: Width of the whole, in pixels.
        label_width: Width of the labels within it.
        reference: Place of a vertical rule; None for no rule.
        title: Title of the axis.
        from_zero: Whether the axis begins at 0.
        span: Ends of the axis, for plots on one scale.
    """
    values = [
        {
            "line": number,
            "value": dot.value,
            "low": dot.value if dot.low is None else dot.low,
            "high": dot.value if dot.high is None else dot.high,
            "tip": dot.tip,
            "colour": MODEL if dot.is_model else OTHER,
            "cut": dot.is_cut,
        }
        for number, dot in enumerate(dots)
    ]
    names = [_folded(dot.label, label_width) for dot in dots]
    y_axis = {
        "title": None,
        "grid": False,
        "labelExpr": f"{json.dumps(names)}[datum.value]",
        "labelLimit": 0,
        "labelLineHeight": 14,
        "labelColor": INK,
        "labelAlign": "left",
        "labelPadding": label_width,
    }
    y_scale = {"paddingInner": 0, "paddingOuter": 0.2}
    num_ticks = max(3, (width - label_width) // 90)
    x_axis = {"title": title, "tickCount": num_ticks, "labelFlush": False}
    x_scale: Spec = {"zero": from_zero, "nice": True}
    if span is not None:
        x_scale |= {"nice": False, "domain": list(span)}
    whisker = {"type": "rule", "strokeWidth": 2.5, "strokeCap": "round"}
    disc = {**_DOT, "size": 90, "strokeWidth": 2}
    layers = [
        _layer(whisker, x={"field": "low"}, x2={"field": "high"}, color=_COLOUR),
        _layer(disc, x={"field": "value"}, fill=_COLOUR, stroke={"value": PAPER}),
    ]
    if reference is not None:
        rule = _layer(_RULE, [{"at": reference}], x={"field": "at"}, y=None, description=None)
        layers.insert(0, rule)
    if any(dot.is_cut for dot in dots):
        arrow = {**_DOT, "shape": "triangle-right", "size": 70, "xOffset": 6}
        only_cut = {"transform": [{"filter": "datum.cut"}]}
        layers.append(only_cut | _layer(arrow, x={"field": "high"}, fill=_COLOUR))
    return {
        "data": {"values": values},
        "width": width - label_width - 24,
        "height": {"step": 27 if max(map(len, names), default=1) == 1 else 36},
        "encoding": {
            "x": {"type": "quantitative", "scale": x_scale, "axis": x_axis},
            "y": {"field": "line", "type": "ordinal", "scale": y_scale, "axis": y_axis},
            "description": _TIP,
        },
        "layer": layers,
    }


def _layer(mark: Spec, values: Sequence[Spec] | None = None, **encoding: Any) -> Spec:
    """Return a layer of one mark, on values of its own or on those of the whole chart."""
    own = {} if values is None else {"data": {"values": values}}
    return {**own, "mark": mark, "encoding": encoding}


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
        lines: The lines; the model's is drawn last, over the others.
        width: Width of the whole, in pixels.
        label_width: Width of the names at the right; 0 leaves them out.
        title: Title of the x axis.
        x_values: The values that the x axis labels; None leaves them to Vega.
        logarithmic: Whether the x axis is logarithmic.
        from_zero: Whether the y axis begins at 0.
        mark_x: Place of a vertical rule; None for no rule.
        mark_label: The text above the rule.
        whole_x: Whether x is a count.
        with_dots: Whether each point has a dot with its value as a tooltip.
    """
    ordered = sorted(lines, key=lambda line: line.is_model)
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    begins_at_zero = from_zero and min(ys) >= 0
    low, high = 0.0 if begins_at_zero else min(ys), max(ys)
    pad = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    domain = (low if begins_at_zero else low - pad, high + pad)
    x_axis: Spec = {"title": title, "grid": False, "labelOverlap": True, "labelSeparation": 5}
    if x_values is not None:
        x_axis["values"] = list(x_values)
    elif whole_x:
        x_axis |= {"format": "d", "tickMinStep": 1, "tickCount": 6}
    else:
        x_axis |= {"format": "~g", "tickCount": 8}
    x_scale = {
        # What starts at 0 has no logarithm there.
        "type": ("log" if min(xs) > 0 else "symlog") if logarithmic else "linear",
        "domain": [min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1],
        "nice": False,
    }
    y_axis = {"title": None, "tickCount": 5, "minExtent": 34}
    y_scale = {"domain": domain, "nice": False, "zero": False}
    layers: list[Spec] = []
    if mark_x is not None:
        place = [{"x": mark_x, "y": domain[1]}]
        text = {"type": "text", "text": mark_label, "color": QUIET, "baseline": "bottom", "dy": -4}
        layers += [_layer(_RULE, place, y=None), _layer(text, place)]
    for line in ordered:
        colour, thickness, dash, size = OTHER, 1.5, _DASHES[line.dash % len(_DASHES)], 14
        if line.is_model:
            colour, thickness, dash, size = MODEL, 2.75, (1, 0), 28
        drawn = {"type": "line", "color": colour, "strokeWidth": thickness, "strokeDash": dash}
        points = [{"x": x, "y": y, "tip": f"{line.label}: {y:.4g}"} for x, y in line.points]
        layers.append(_layer({**drawn, "strokeCap": "round"}, points))
        if with_dots:
            dot = {**_DOT, "color": colour, "size": size}
            layers.append(_layer(dot, points, description=_TIP))
    if label_width:
        layers.append(_end_labels(ordered, domain, label_width))
    return {
        "width": width - 52 - label_width,
        "height": LINES_HEIGHT,
        "padding": {"left": 2, "top": 2, "bottom": 2, "right": 20 if label_width else 8},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "scale": x_scale, "axis": x_axis},
            "y": {"field": "y", "type": "quantitative", "scale": y_scale, "axis": y_axis},
        },
        "layer": layers,
    }


def bar_chart(
    edges: Sequence[float],
    parts: Sequence[tuple[float, float]],
    tips: Sequence[str],
    *,
    width: int,
    time_format: str,
) -> Spec:
    """Return bars over time, each with a grey part and one in the accent colour above it.

    Args:
        edges: The moments between bars, in seconds since 1970: one more than there are bars.
        parts: The heights of both parts of each bar.
        tips: The tooltip of each bar.
        width: Width of the whole, in pixels.
        time_format: Format of the moments on the axis.
    """
    values = [
        {
            "start": start * 1000,
            "end": end * 1000,
            "low": low,
            "high": high,
            "tip": tip,
            "colour": colour,
        }
        for start, end, (lower, upper), tip in zip(edges, edges[1:], parts, tips, strict=False)
        for low, high, colour in ((0.0, lower, OTHER), (lower, lower + upper, MODEL))
        if high > low
    ]
    first, last, num_ticks = edges[0], edges[-1], max(2, width // 170)
    ticks = [first + place * (last - first) / num_ticks for place in range(num_ticks + 1)]
    x_axis = {
        "title": None,
        "grid": False,
        "format": time_format,
        "labelFlush": True,
        "values": [tick * 1000 for tick in ticks],
    }
    y_axis = {"title": None, "tickCount": 4, "minExtent": 34, "format": "~s"}
    return {
        "data": {"values": values},
        "width": width - 62,
        "height": 160,
        "mark": {"type": "rect", "stroke": PAPER, "strokeWidth": 1},
        "encoding": {
            "x": {"field": "start", "type": "temporal", "scale": {"type": "utc"}, "axis": x_axis},
            "x2": {"field": "end"},
            "y": {"field": "low", "type": "quantitative", "axis": y_axis},
            "y2": {"field": "high"},
            "color": _COLOUR,
            "description": _TIP,
        },
    }


def stacked_bars(
    bars: Sequence[tuple[str, Sequence[float]]],
    names: Sequence[str],
    *,
    width: int,
    label_width: int = 0,
    title: str | None = None,
) -> Spec:
    """Return horizontal bars that are cut into the same parts, with the names of the parts above them.

    Args:
        bars: The label of each bar and the lengths of its parts.
        names: Of the parts, at most ``len(PART_COLOURS)``.
        width: Width of the whole, in pixels.
        label_width: Width of the labels within it; 0 leaves them out.
        title: Title of the axis.
    """
    values: list[Spec] = []
    for line, (label, lengths) in enumerate(bars):
        ends = [0.0, *accumulate(lengths)]
        values += [
            {"line": line, "start": start, "end": end, "name": name, "tip": _tip(label, name, part)}
            for start, end, name, part in zip(ends, ends[1:], names, lengths, strict=False)
            if part > 0
        ]
    labels = [_cut(label, label_width) for label, _ in bars]
    y_axis = {
        "title": None,
        "grid": False,
        "labelExpr": f"{json.dumps(labels)}[datum.value]",
        "labelLimit": 0,
        "labelColor": INK,
        "labelAlign": "left",
        "labelPadding": label_width,
    }
    x_axis = {"title": title, "tickCount": max(3, (width - label_width) // 90)}
    legend = {"title": None, "orient": "top", "labelColor": INK, "labelFontSize": 13, "offset": 6}
    legend |= {"symbolType": "square", "symbolStrokeWidth": 0, "columnPadding": 16}
    legend["aria"] = False  # Vega would describe it in English
    legend["columns"] = max(3, width // 100)
    longest = max((sum(lengths) for _, lengths in bars), default=0) or 1
    return {
        "data": {"values": values},
        "width": width - label_width - 24,
        "height": {"step": 27},
        "mark": {"type": "rect", "stroke": PAPER, "strokeWidth": 1},
        "encoding": {
            "x": {
                "field": "start",
                "type": "quantitative",
                "scale": {"domain": [0, longest], "nice": False},
                "axis": x_axis,
            },
            "x2": {"field": "end"},
            "y": {
                "field": "line",
                "type": "ordinal",
                "scale": {"padding": 0.15},
                "axis": y_axis if label_width else None,
            },
            "color": {
                "field": "name",
                "type": "nominal",
                "scale": {"domain": list(names), "range": list(PART_COLOURS[: len(names)])},
                "legend": legend,
            },
            "description": _TIP,
        },
    }


def _tip(label: str, name: str, part: float) -> str:
    return ": ".join(each for each in (label, name, f"{part:.3g}") if each)


def point_map(points: Sequence[Point], *, width: int, height: int) -> Spec:
    """Return a map: points of a group share a colour and a shape; those of none are small and grey."""
    values = [
        {
            "x": point.x,
            "y": point.y,
            "tip": point.tip,
            "colour": OTHER if point.group is None else GROUPS[point.group],
            "shape": "circle" if point.group is None else SHAPES[point.group],
            "size": 16 if point.group is None else 34,
        }
        for point in sorted(points, key=lambda point: point.group is not None)
    ]
    scale = {"zero": False, "nice": False, "padding": 8}
    place = {"type": "quantitative", "axis": None, "scale": scale}
    return {
        "data": {"values": values},
        "width": width,
        "height": height,
        "mark": {**_DOT, "opacity": 0.8, "strokeWidth": 0},
        "encoding": {
            "x": {"field": "x", **place},
            "y": {"field": "y", **place},
            "color": _COLOUR,
            "shape": {**_COLOUR, "field": "shape"},
            "size": {**_COLOUR, "field": "size", "type": "quantitative"},
            "description": _TIP,
        },
    }


def _end_labels(lines: Sequence[Line], domain: tuple[float, float], label_width: int) -> Spec:
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
    return _layer(mark, values, text={"field": "text"}, color=_COLOUR)


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
