"""How a filter's mistake is told: a sentence, and carets under its place."""

import unicodedata
from dataclasses import dataclass

from twotower.errors import FilterError

Scalar = str | int | float | bool

_PLACES = 76  # characters of the text around a mistake


@dataclass(frozen=True)
class Nowhere:
    """A value that a filter asks for and no line has.

    Args:
        column: Which is compared with it.
        value: As the filter states it.
        near: What the column holds that may be meant, or None.
    """

    column: str
    value: Scalar
    near: Scalar | None = None

    def __str__(self) -> str:
        """Return it as a sentence."""
        meant = "" if self.near is None else f"; did you mean {said(self.near)}?"
        return f"No item has {said(self.value)} in {shortened(self.column)!r}{meant or '.'}"


def refusal(text: str, place: slice, rule: str) -> FilterError:
    """Return an error that says what a filter must do, with carets under ``text[place]``."""
    start, end = place.start, place.stop
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", start)
    line = text[first : len(text) if last < 0 else last]
    start, end = start - first, min(end - first, len(line))
    cut = max(0, start - _PLACES // 2)
    before, shown = ("..." if cut else ""), line[cut : cut + _PLACES]
    after = "..." if cut + _PLACES < len(line) else ""
    shown = "".join(c if c.isprintable() else " " for c in shown)  # no codes to a terminal
    marked = shown[start - cut : end - cut]
    indent = " " * (len(before) + _width(shown[: start - cut]))
    carets = "^" * max(1, _width(marked))
    return FilterError(f"filter must {rule}\n  {before}{shown}{after}\n  {indent}{carets}")


def shortened(text: str) -> str:
    """Return a text of at most 40 characters, for a message."""
    return text if len(text) <= 40 else text[:37] + "..."


def said(value: Scalar) -> str:
    """Return a literal as a person writes it, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    escaped = shortened(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _width(text: str) -> int:
    """Return how many places of a terminal a text takes: Chinese characters take two."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)
