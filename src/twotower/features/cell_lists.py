"""Lists in a cell, as JSON, as Python and as numpy write them -> lists."""

import json
import re
from collections.abc import Iterator

import polars as pl

_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*"'
_NUMBER = r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?"
_GAP = r"[ \t\n\r]*"


def _flat(element: str) -> str:
    return rf"^{_GAP}\[{_GAP}(?:{element}(?:{_GAP},{_GAP}{element})*)?{_GAP}\]{_GAP}$"


_JSON = _flat(f"(?:{_STRING}|{_NUMBER}|true|false|null)")
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
    texts = [
        None if elements is None else [_as_text(element) for element in elements]
        for elements in _elements_of(cells)
    ]
    return pl.Series(cells.name, texts, dtype=pl.List(pl.String))


def number_lists_of_cells(cells: pl.Series) -> pl.Series:
    """Return each cell as a list of floats; null where it is no list, or one with something else."""
    numbers: list[list[float | None] | None] = []
    for elements in _elements_of(cells):
        floats = [each for each in elements or () if not isinstance(each, str)]
        numbers.append(None if elements is None or len(floats) < len(elements) else floats)
    return pl.Series(cells.name, numbers, dtype=pl.List(pl.Float64))


def _as_text(element: Element) -> str | None:
    if element is None or isinstance(element, str):
        return element
    return str(int(element)) if element.is_integer() and abs(element) < 1e15 else str(element)


def _elements_of(cells: pl.Series) -> Iterator[list[Element] | None]:
    """Yield the elements of each cell, or None."""
    frame = pl.DataFrame({"cell": cells})
    cell = pl.col("cell")
    as_json = (
        pl.when(cell.str.contains(_JSON))
        .then(cell)
        .when(cell.str.contains(_SINGLE_QUOTED))
        .then(cell.str.replace_all("'", '"', literal=True))
    )
    quick = frame.select(as_json.alias("json"))["json"]
    known = quick.drop_nulls()
    # Each of them is one whole list, so that all can be read at once.
    decoded = iter(json.loads(f"[{','.join(known.to_list())}]"))
    for is_quick, text in zip(quick.is_not_null().to_list(), cells.to_list(), strict=True):
        if is_quick:
            yield [_plain(element) for element in next(decoded)]
        else:
            yield None if text is None else _slowly(text)


def _plain(element: object) -> Element:
    if isinstance(element, bool):
        return "true" if element else "false"
    if isinstance(element, int):
        return float(element)
    return element  # type: ignore[return-value]


def _slowly(text: str) -> list[Element] | None:
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
