"""Small HTML for notebooks: plain tables and text without colours of its own, so that any theme fits."""

from collections.abc import Iterable, Sequence
from html import escape

_CELL = "padding:.15em .7em .15em 0;text-align:{side};vertical-align:top"
_QUIET = "opacity:.7"


def text(said: object, *, quiet: bool = False, bold: bool = False) -> str:
    """Return a line of text, escaped."""
    style = f' style="{_QUIET}"' if quiet else ' style="margin-top:.4em"' if bold else ""
    words = escape(str(said))
    return f"<div{style}>{f'<b>{words}</b>' if bold else words}</div>"


def table(rows: Iterable[Sequence[object]], *, header: Sequence[object] = ()) -> str:
    """Return a table, escaped; numbers stand at the right of their cells, and None leaves a cell empty."""
    lines = [tuple(row) for row in rows]
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{_style(cell)}">{_said(cell)}</td>' for cell in line)
        + "</tr>"
        for line in lines
    )
    head = ""
    if header:
        first = lines[0] if lines else header
        cells = (
            f'<th style="{_style(cell)};{_QUIET}">{escape(str(name))}</th>'
            for name, cell in zip(header, first, strict=True)
        )
        head = f"<thead><tr>{''.join(cells)}</tr></thead>"
    return (
        f'<table style="border-collapse:collapse;font:inherit">{head}<tbody>{body}</tbody></table>'
    )


def fold(title: str, *parts: str) -> str:
    """Return parts that are shown when their title is clicked.

    Args:
        title: Text.
        parts: HTML.
    """
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def block(*parts: str) -> str:
    """Return parts of HTML as one."""
    return f"<div>{''.join(parts)}</div>"


def _style(cell: object) -> str:
    return _CELL.format(side="right" if isinstance(cell, (int, float)) else "left")


def _said(cell: object) -> str:
    if cell is None:
        return ""
    return escape(f"{cell:.4f}" if isinstance(cell, float) else str(cell))
