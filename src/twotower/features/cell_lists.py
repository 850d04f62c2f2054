"""Lists in a cell, as JSON, as Python and as numpy write them -> lists."""

import re
from collections.abc import Callable
from typing import Any

import polars as pl

_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*"'
_WHOLE = r"(?:0|[1-9][0-9]{0,14})"
_GAP = r"[ \t\n\r]*"


def _flat(element: str) -> str:
    return rf"^{_GAP}\[{_GAP}(?:{element}(?:{_GAP},{_GAP}{element})*)?{_GAP}\]{_GAP}$"


_JSON_TEXTS = _flat(f"(?:{_STRING}|-?{_WHOLE}|true|false|null)")
_JSON_NUMBERS = _flat(rf"(?:-?{_WHOLE}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{{1,2}})?|null)")
_SINGLE_QUOTED = _flat(r"'[^'\"\\\x00-\x1f]*'")
_ELEMENT = re.compile(
    r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s,'"\[\]{}][^,'"\[\]{}]*))\s*(?:,|$)""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_NOTHING = ("null", "None", "nan", "NaN")
_BARE_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

Element = str | float | None


def text_lists_of_cells(cells: pl.Series) -> pl.Series:
    """Return each cell as a list of strings; null where it is no list of single values.

    Numbers are written as JSON writes them, whole ones without a point.
    """
    return _decoded(cells, (_JSON_TEXTS, _SINGLE_QUOTED), pl.List(pl.String), _texts_of)


def number_lists_of_cells(cells: pl.Series) -> pl.Series:
    """Return each cell as a list of floats; null where it is no list, or one with something else."""
    return _decoded(cells, (_JSON_NUMBERS,), pl.List(pl.Float64), _floats_of)


def _decoded(
    cells: pl.Series, patterns: tuple[str, ...], dtype: Any, read: Callable[[str], list[Any] | None]
) -> pl.Series:
    """Return each cell as a list: those of the patterns all at once as JSON, others one by one."""
    cell = pl.col("cell")
    is_quick = pl.any_horizontal(cell.str.contains(pattern) for pattern in patterns)
    is_double = cell.str.contains('"', literal=True)
    quoted = pl.when(is_double).then(cell).otherwise(cell.str.replace_all("'", '"', literal=True))
    as_json = pl.when(is_quick).then(quoted)
    still_left = as_json.is_null() & cell.str.contains(r"^\s*\[")
    frame = pl.DataFrame({"cell": cells}).select(json=as_json, left=still_left)
    quick, is_left = frame["json"].str.json_decode(dtype), frame["left"]
    if is_left.any():
        slow: list[list[Any] | None] = [None] * len(cells)
        for place in is_left.arg_true():
            slow[place] = read(cells[place])
        both = pl.DataFrame({"quick": quick, "slow": pl.Series(slow, dtype=dtype)})
        quick = both.select(pl.coalesce("quick", "slow")).to_series()
    return quick.rename(cells.name)


def _texts_of(text: str) -> list[str | None] | None:
    elements = _elements_of(text)
    return None if elements is None else [_as_text(element) for element in elements]


def _floats_of(text: str) -> list[float | None] | None:
    elements = _elements_of(text)
    floats = [each for each in elements or () if not isinstance(each, str)]
    return None if elements is None or len(floats) < len(elements) else floats


def _as_text(element: Element) -> str | None:
    if element is None or isinstance(element, str):
        return element
    return str(int(element)) if element.is_integer() and abs(element) < 1e15 else str(element)


def _elements_of(text: str) -> list[Element] | None:
    text = text.strip()
    if len(text) < 2 or text[0] != "[" or text[-1] != "]":
        return None
    inside, elements, place = text[1:-1].strip(), list[Element](), 0
    pieces = inside.split()
    if len(pieces) > 1 and all(_BARE_NUMBER.fullmatch(piece) for piece in pieces):
        return [float(piece) for piece in pieces]  # as numpy writes them
    while place < len(inside):
        found = _ELEMENT.match(inside, place)
        if found is None:
            return None
        double, single, bare = found.groups()
        quoted = single if double is None else double
        elements.append(_of_bare(bare.strip()) if quoted is None else _unescaped(quoted))
        place = found.end()
    return elements


def _of_bare(text: str) -> Element:
    if text in _NOTHING:
        return None
    if _BARE_NUMBER.fullmatch(text):
        number = float(text)
        return number if abs(number) < 1e15 else text
    return text.lower() if text in ("True", "False") else text


def _unescaped(quoted: str) -> str:
    def told(found: re.Match[str]) -> str:
        escape = found[1]
        if escape[0] in "ux" and len(escape) > 1:
            return chr(int(escape[1:], 16))
        return _ESCAPES.get(escape, escape)

    text = _ESCAPE.sub(told, quoted)
    if any("\ud800" <= sign <= "\udfff" for sign in text):  # JSON writes an emoji as two of them
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
