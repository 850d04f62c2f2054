"""A Vega-Lite chart as static SVG that follows the page's colours and speaks to a screen reader."""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import vl_convert
from markupsafe import Markup

SVG = "http://www.w3.org/2000/svg"

COLOURS: dict[str, str] = {
    "#010101": "ink",
    "#020202": "quiet",
    "#030303": "rule",
    "#040404": "model",
    "#050505": "other",
    "#060606": "paper",
    **{f"#07070{number + 1}": f"c{number}" for number in range(6)},
}
"""Colour in a specification -> the name of the CSS variable that replaces it."""

INK, QUIET, RULE, MODEL, OTHER, PAPER, *GROUPS = COLOURS

_FONT_SIZE = 13
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "sans-serif",
    "padding": 2,
    "view": {"stroke": None},
    "axis": {
        "domain": False,
        "gridColor": RULE,
        "labelColor": QUIET,
        "labelFontSize": _FONT_SIZE,
        "labelPadding": 6,
        "tickColor": RULE,
        "ticks": False,
        "titleColor": QUIET,
        "titleFontSize": _FONT_SIZE,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "mark": {"description": ""},  # without one, Vega writes its own, in English
    "text": {"fontSize": _FONT_SIZE},
}
_LEFT_OUT = {"aria-hidden", "aria-label", "aria-roledescription", "class", "display", "font-family"}
_LEFT_OUT |= {"pointer-events", "role", "stroke-miterlimit"}


def svg_of(spec: Mapping[str, Any], *, label: str) -> Markup:
    """Return a chart as an SVG element to stand in a page.

    Colours become the page's CSS variables, the font is inherited, the ``description`` of a mark becomes
    its tooltip, and the whole is one image with one label.

    Args:
        spec: A Vega-Lite specification with the colours of this module.
        label: What the chart shows, in a sentence, for readers who cannot see it.
    """
    drawn = vl_convert.vegalite_to_svg(dict(spec), config=_CONFIG)
    root = ElementTree.fromstring(drawn)
    width, height = root.attrib["width"], root.attrib["height"]
    _clean(root)
    root.attrib.clear()
    root.set("viewBox", f"0 0 {float(width):g} {float(height):g}")
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", f"max-width:{float(width):g}px")
    ElementTree.register_namespace("", SVG)
    # Every piece of text in it was escaped when it was written.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element) -> None:
    """Remove what is invisible, and turn descriptions into tooltips and colours into variables."""
    for child in list(element):
        if child.get("display") == "none" or child.get("opacity") == "0" or _is_empty(child):
            element.remove(child)
        else:
            _clean(child)
    given = dict(element.attrib)
    element.attrib.clear()
    for name, value in given.items():
        if name not in _LEFT_OUT and (name, value) != ("opacity", "1"):
            element.set(name, _themed(value.removesuffix("px")))
    is_mark = given.get("role") == "graphics-symbol" and given["aria-roledescription"] != "axis"
    if is_mark and given["aria-label"]:
        title = ElementTree.Element(f"{{{SVG}}}title")
        title.text = given["aria-label"]
        element.insert(0, title)


def _is_empty(element: ElementTree.Element) -> bool:
    """Return whether an element is a path without a length, or the frame of a group."""
    if element.tag != f"{{{SVG}}}path":
        return False
    is_frame = (
        element.get("class") in ("background", "foreground") and element.get("stroke") is None
    )
    return is_frame or element.get("d") in (None, "", "M0,0h0v0h0Z")


def _themed(value: str) -> str:
    """Return an attribute with numbers of one decimal, and with the page's colours."""
    if value in COLOURS:
        return f"var(--{COLOURS[value]})"
    return re.sub(r"\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
