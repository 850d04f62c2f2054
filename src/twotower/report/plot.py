"""The charts of a training as one picture, for a notebook or a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.doctor.findings import Language
from twotower.report.html_files import write_page
from twotower.report.sections.training import epoch_lines, epochs_of
from twotower.report.svg import INK, SVG, svg_of
from twotower.report.wording import speaker

_COLOURS = {
    "ink": "currentColor",
    "quiet": "#808080",
    "rule": "#80808055",
    "model": "#3b82c4",
    "other": "#8a8a8a",
    "paper": "none",
    "c0": "#3b82c4",
    "c1": "#d9822b",
    "c2": "#7a7fd0",
    "c3": "#c2588f",
    "c4": "#87a330",
    "c5": "#2fa3a3",
}
"""Colours for a light and a dark background alike; a notebook does not say which it has."""


@dataclass(frozen=True, repr=False)
class Plot:
    """A picture of charts, which a notebook displays.

    Args:
        svg: The picture, one SVG element.
        label: What it shows, in a sentence.
    """

    svg: str
    label: str

    def __repr__(self) -> str:
        return f"Plot({self.label})"

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return f'<div style="font:13px sans-serif">{self.svg}</div>'

    def save(self, path: str | Path) -> None:
        """Write the picture as an SVG file.

        Args:
            path: The path of the file; an existing file is replaced.

        Raises:
            ConfigError: The file cannot be written.
        """
        write_page(Path(path), self.svg + "\n")


def plot_of_epochs(log: str, best: Any, language: Language = "en") -> Plot:
    """Return charts of the loss and each validation metric by epoch, with the kept epoch marked.

    Args:
        log: The training log of a bundle.
        best: The epoch that was kept.
        language: ``"en"`` or ``"zh"``.
    """
    say = speaker(language)
    lines = epoch_lines(epochs_of(log), best, say)
    title = {"anchor": "start", "color": INK, "fontSize": 13, "fontWeight": "normal"}
    charts = [{**line.spec, "title": {"text": line.title, **title}} for line in lines]
    if not lines:
        is_closed = '"closed form"' in log
        label = say("training_without_steps" if is_closed else "missing", what=say("what_training"))
        text = f'<text y="16" font-size="13" fill="currentColor">{label}</text>'
        size = 'width="560" height="24" font-family="sans-serif"'
        return Plot(f'<svg xmlns="{SVG}" {size}>{text}</svg>', label)
    return plot_of({"hconcat": charts}, " ".join(line.label for line in lines))


def plot_of(spec: Mapping[str, Any], label: str) -> Plot:
    """Return a chart as a picture that needs no page around it.

    Args:
        spec: A Vega-Lite specification with the colours of ``svg.py``.
        label: What it shows, in a sentence.
    """
    drawn = str(svg_of(spec, label=label))
    for name, colour in _COLOURS.items():
        drawn = drawn.replace(f"var(--{name})", colour)
    # Outside a page, no style sheet sets the font.
    return Plot(drawn.replace("<svg", '<svg font-family="sans-serif"', 1), label)
