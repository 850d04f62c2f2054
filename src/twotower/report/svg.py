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
"""What a chart says for a colour of the page -> the name of its CSS variable."""

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
    "text": {"fontSize": _FONT_SIZE},
}
_KEPT = {"d", "cx", "cy", "r", "x", "y", "x2", "y2", "x1", "y1", "width", "height", "transform"}
_KEPT |= {"fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "text-anchor"}
_KEPT |= {
    "font-size",
    "font-weight",
    "fill-opacity",
    "stroke-opacity",
    "clip-path",
    "id",
    "dx",
    "dy",
}


def svg_of(spec: Mapping[str, Any], *, label: str) -> Markup:
    """Return a chart as an SVG element to stand in a page.

    Colours become the page's CSS variables, the font is inherited, what a mark's ``description`` says
    becomes its tooltip, and the whole is one image with one label. Ids are left out: on one page they
    would clash.

    Args:
        spec: Vega-Lite, with colours out of this module.
        label: What the chart shows, in a sentence, for who cannot see it.
    """
    drawn = vl_convert.vegalite_to_svg(dict(spec), config=_CONFIG)
    root = ElementTree.fromstring(drawn)
    _clean(root)
    width, height = root.attrib.pop("width"), root.attrib.pop("height")
    root.attrib.clear()
    root.set("viewBox", f"0 0 {float(width):g} {float(height):g}")
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", f"max-width:{float(width):g}px")
    ElementTree.register_namespace("", SVG)
    # Every piece of text in it was escaped when it was written.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element) -> None:
    """Keep what is seen; turn descriptions into tooltips, and colours into variables."""
    for child in list(element):
        if child.get("display") == "none" or child.get("opacity") == "0" or _is_empty(child):
            element.remove(child)
        else:
            _clean(child)
    tip = element.get("aria-label") if element.get("aria-roledescription") != "axis" else None
    is_mark = (element.get("role") or "") == "graphics-symbol"
    attributes = {name: _themed(value) for name, value in element.attrib.items() if name in _KEPT}
    size = attributes.get("font-size", "")
    attributes |= {"font-size": size.removesuffix("px")} if size else {}
    if element.get("opacity", "1") != "1":
        attributes["opacity"] = element.attrib["opacity"]
    if element.tag == f"{{{SVG}}}svg":
        attributes |= {name: element.attrib[name] for name in ("width", "height")}
    element.attrib.clear()
    element.attrib.update(attributes)
    if tip and is_mark and not tip.startswith("\N{ZERO WIDTH SPACE}"):
        title = ElementTree.Element(f"{{{SVG}}}title")
        title.text = tip
        element.insert(0, title)


def _is_empty(element: ElementTree.Element) -> bool:
    name = element.tag.removeprefix(f"{{{SVG}}}")
    no_path = name == "path" and (element.get("d") or "") in ("", "M0,0h0v0h0Z")
    unseen = element.get("class") in ("background", "foreground") and "stroke" not in element.attrib
    return no_path or (name == "path" and unseen)


def _themed(value: str) -> str:
    """Return an attribute with numbers cut to what an eye can tell, and with the page's colours."""
    if value in COLOURS:
        return f"var(--{COLOURS[value]})"
    return re.sub(r"\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
