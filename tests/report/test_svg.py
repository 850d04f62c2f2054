from xml.etree import ElementTree

from twotower.report.charts import (
    Dot,
    Line,
    Point,
    apart,
    dot_plot,
    line_chart,
    point_map,
    stacked_bars,
)
from twotower.report.svg import MODEL, SVG, svg_of

DOTS = [Dot("mine", 0.2, 0.1, 0.3, 'tip <b> & "quotes"', True), Dot("theirs", 0.1)]


def drawn(**options: object) -> ElementTree.Element:
    return ElementTree.fromstring(
        svg_of(dot_plot(DOTS, width=400, label_width=100, **options), label="a < b")  # type: ignore[arg-type]
    )


def titles(root: ElementTree.Element) -> list[str | None]:
    return [title.text for title in root.iter(f"{{{SVG}}}title")]


def test_a_description_becomes_a_tooltip_and_vegas_own_words_go() -> None:
    root = drawn()
    assert titles(root) == ['tip <b> & "quotes"'] * 2  # whisker and dot; the other has none
    assert root.attrib["aria-label"] == "a < b"
    assert not [e for e in root.iter() if e is not root and "aria-label" in e.attrib]


def test_colours_are_variables_and_the_size_is_relative() -> None:
    root = drawn(reference=0.15)
    text = ElementTree.tostring(root, encoding="unicode")
    assert "var(--model)" in text
    assert "var(--other)" in text
    assert MODEL not in text
    assert "white" not in text
    assert "font-family" not in text
    assert "width" not in root.attrib
    assert root.attrib["viewBox"].startswith("0 0 ")


def test_a_whisker_spans_its_interval() -> None:
    root = drawn(span=(0.0, 1.0))
    rules = [e for e in root.iter(f"{{{SVG}}}line") if e.get("stroke") == "var(--model)"]
    assert [float(rule.get("x2", 0)) for rule in rules] == [(400 - 100 - 24) * 0.2]


def test_two_charts_on_a_page_share_no_id() -> None:
    lines = [Line("a", [(1, 0.1), (10, 0.2)], is_model=True), Line("b", [(1, 0.1), (10, 0.1)])]
    spec = line_chart(
        lines, width=400, label_width=80, x_values=(1, 10), logarithmic=True, mark_x=10
    )
    root = ElementTree.fromstring(svg_of(spec, label="x"))
    assert not [e for e in root.iter() if "id" in e.attrib]
    assert "a: 0.2" in titles(root)


def test_labels_are_moved_apart_within_their_ends() -> None:
    assert apart([0.0, 0.1, 5.0], 1.0, 0.0, 10.0) == [0.0, 1.0, 5.0]
    assert apart([9.5, 9.8, 10.0], 1.0, 0.0, 10.0) == [8.0, 9.0, 10.0]
    assert apart([3.0, 3.0, 3.0], 1.0, 0.0, 1.0) == [0.0, 1.0, 2.0]  # too little room
    assert apart([], 1.0, 0.0, 1.0) == []


def test_a_line_of_one_point_and_equal_values_can_be_drawn() -> None:
    spec = line_chart([Line("loss", [(1, 0.0)], is_model=True)], width=400)
    svg_of(spec, label="x")


def test_groups_of_the_map_differ_in_shape_and_colour() -> None:
    points = [Point(0, 0, 0, "a"), Point(1, 1, 1, "b"), Point(2, 0, None, "c")]
    root = ElementTree.fromstring(svg_of(point_map(points, width=100, height=80), label="x"))
    marks = [e for e in root.iter(f"{{{SVG}}}path") if list(e)]
    assert {mark.get("fill") for mark in marks} == {"var(--c0)", "var(--c1)", "var(--other)"}
    assert len({mark.get("d") for mark in marks}) == 3
    assert titles(root) == ["c", "a", "b"]


def test_long_labels_fold_and_then_are_cut() -> None:
    dots = [Dot("a rather long label that takes two", 0.1), Dot("x" * 80, 0.2)]
    root = ElementTree.fromstring(svg_of(dot_plot(dots, width=400, label_width=120), label="x"))
    words = [e.text or "" for e in root.iter() if e.tag in (f"{{{SVG}}}text", f"{{{SVG}}}tspan")]
    assert "a rather long label"[:8] in " ".join(words)
    assert any(word.startswith("xxx") and word.endswith("…") for word in words)
    assert [e for e in root.iter(f"{{{SVG}}}tspan") if e.get("dy")]


def test_the_parts_of_a_bar_lie_side_by_side_and_are_named() -> None:
    bars = [("a", [3.0, 0.0, 1.0]), ("b", [1.0, 1.0, 0.5])]
    spec = stacked_bars(bars, ["steps", "test", "reading"], width=400, label_width=60)
    ends = [(each["start"], each["end"], each["name"]) for each in spec["data"]["values"]]
    assert ends[:2] == [(0.0, 3.0, "steps"), (3.0, 4.0, "reading")]
    assert ends[2:] == [(0.0, 1.0, "steps"), (1.0, 2.0, "test"), (2.0, 2.5, "reading")]
    root = ElementTree.fromstring(svg_of(spec, label="parts"))
    assert titles(root) == [
        "a: steps: 3",
        "a: reading: 1",
        "b: steps: 1",
        "b: test: 1",
        "b: reading: 0.5",
    ]
    words = {text.text for text in root.iter(f"{{{SVG}}}text")}
    assert {"steps", "test", "reading", "a", "b"} <= words
