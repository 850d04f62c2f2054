"""Reading delimited text: header, rows, cells, types.

Text is read as strings, checked row by row against its header, and only then given types: so an id
such as ``007`` stays what it is, and a bad row is named by its line.
"""

from contextlib import suppress
from csv import Error as CsvError
from csv import reader as csv_reader
from io import BytesIO, StringIO
from itertools import islice
from re import compile as pattern_of
from typing import NoReturn

import numpy as np
import polars as pl

from twotower.arrays import Bools, Ints
from twotower.data.columns import is_role_name
from twotower.errors import DataError

_SEPARATORS = (b"\t", b",", b";", b"|", b"::")
_UNIT = b"\x1f"  # stands in for "::", which polars cannot split at
_NUMBER = pattern_of(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_DATE = pattern_of(r"\d{4}-\d\d-\d\d([T ].*)?|\d{1,2}[/.]\d{1,2}[/.]\d{4}.*")
_NO_NUMBER = ("NA", "N/A", "null", "NULL", "None", "\\N")
_EXAMPLES = {"items": "item_id,title,genres", "queries": "user_id,age,gender"}


def read_delimited(body: bytes, subject: str, what: str) -> pl.DataFrame:
    """Return the table that delimited text holds, each column in its narrowest type.

    Args:
        body: UTF-8 text without a byte-order mark, NUL bytes and carriage returns.
        subject: Names the text in messages, such as ``items 'items.csv'``.
        what: Which table it is; decides the example of a header line.

    Raises:
        DataError: There is no header line, no row below it, a row of another width, an unclosed
            quote, or two columns of one name.
    """
    separator = _separator(body)
    if separator == b"::":
        body, separator = body.replace(b"::", _UNIT), _UNIT
    _check_header(body, separator, subject, what)
    strings = _cells(body, separator, subject)
    names = [(name or "").strip() for name in strings.row(0)]
    strings = strings.slice(1)
    if not strings.height:
        raise DataError(f"{subject} must hold rows, got only a header line.")
    check_distinct([name for name in names if name], subject)
    columns = []
    for position, (name, cells) in enumerate(zip(names, strings.get_columns(), strict=True)):
        column = _typed(cells).alias(name or f"column_{position + 1}")
        # what pandas writes for an index, and what a separator at the end of each line makes
        if not name and (column.null_count() == len(column) or _is_index(column)):
            continue
        columns.append(column)
    return pl.DataFrame(columns)


def _first_rows(body: bytes, separator: bytes, count: int) -> list[list[str]]:
    lines = body[: 1 << 20].decode("utf-8", "ignore").split("\n")
    text = "\n".join(line for line in lines if line)
    if len(separator) == 1:
        with suppress(CsvError):
            return list(islice(csv_reader(StringIO(text), delimiter=separator.decode()), count))
    return [line.split(separator.decode()) for line in islice(text.split("\n"), count)]


def _separator(body: bytes) -> bytes:
    """Return the separator that cuts the header, and the most lines into as many cells as it."""

    def merit(separator: bytes) -> tuple[float, int]:
        widths = [len(row) for row in _first_rows(body, separator, 100)]
        agreeing = sum(widths[0] <= width <= widths[0] + 1 for width in widths)
        return agreeing / len(widths), widths[0]

    cutting = [each for each in _SEPARATORS if len(_first_rows(body, each, 1)[0]) > 1]
    return max(cutting, key=merit, default=b",")


def _kind(cell: str) -> str:
    cell = cell.strip()
    if not cell:
        return "empty"
    numbers = all(_NUMBER.fullmatch(part) for part in cell.split())  # "3 1 4" is a list of them
    return "value" if numbers or _DATE.fullmatch(cell) else "text"


def _check_header(body: bytes, separator: bytes, subject: str, what: str) -> None:
    rows = _first_rows(body, separator, 21)
    first = rows[0]
    if len(first) == 1:  # cells may be separated by what we do not split at
        rows = [row[0].split() if row else [] for row in rows]
        spaced = len(rows) > 1 and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
        first = rows[0]
        named = any(_kind(cell) == "text" for cell in first)
        if spaced and named and all(_kind(cell) == "value" for row in rows[1:] for cell in row):
            raise DataError(
                f"{subject} must separate cells by tab, comma, semicolon, '|' or '::', got "
                "spaces; replace them."
            )
    if any(is_role_name(cell) for cell in first):
        return
    kinds = [_kind(cell) for cell in first]
    alike = len(rows) > 1 and all(
        kind in (_kind(cell), "empty") or _kind(cell) == "empty"
        for row in rows[1:]
        for kind, cell in zip(kinds, row, strict=False)
    )
    if set(kinds) <= {"value"} or ("value" in kinds and alike):
        line = body.lstrip(b"\n").split(b"\n", 1)[0].decode().replace("\x1f", "::")
        example = next((text for key, text in _EXAMPLES.items() if key in what), None)
        raise DataError(
            f"{subject} must start with a header line, got {line[:80]!r}, which looks like data; "
            "add a line that names the columns, separated like the rest, "
            f"e.g. {example or 'user_id,item_id,rating,timestamp'}."
        )


def _cells(body: bytes, separator: bytes, subject: str) -> pl.DataFrame:
    """Return every cell as a string, the header in row 0; null where empty."""
    quoted = b'"' in body and separator != _UNIT
    layout = _layout(body, separator, quoted)
    if layout is None and separator == b"\t":
        # tab-separated files are often written without any quoting
        quoted, layout = False, _layout(body, separator, False)
    if layout is None:
        rows = _rows_one_by_one(body, separator, subject)
        return pl.DataFrame(
            [pl.Series(f"{i}", cells, pl.String) for i, cells in enumerate(zip(*rows, strict=True))]
        ).with_columns(_empty_to_null())
    widths, lines, blank, trailing = layout
    width = int(widths[0])
    ragged = (widths != width) & ~(trailing & (widths == width + 1))
    if ragged.any():
        row = int(ragged.argmax())
        _refuse_ragged(subject, int(lines[row]), int(widths[row]), width)
    if len(blank):
        body = np.delete(np.frombuffer(body, np.uint8), blank).tobytes()
    frame = pl.read_csv(
        BytesIO(body),
        has_header=False,
        schema={f"{i}": pl.String for i in range(width)},
        truncate_ragged_lines=True,  # all that is cut off is an empty cell after the last separator
        separator=separator.decode(),
        quote_char='"' if quoted else None,
        infer_schema=False,
    )
    if frame.height != len(widths):
        raise DataError(
            f"{subject} must hold {len(widths)} lines of cells, got {frame.height} after reading; "
            "put cells that hold quotes or line breaks in quotes."
        )
    return frame.with_columns(_empty_to_null())


def _empty_to_null() -> pl.Expr:
    return pl.when(pl.all() != "").then(pl.all())


def _refuse_ragged(subject: str, line: int, got: int, expected: int) -> NoReturn:
    remedy = "complete that line" if got < expected else "quote cells that hold the separator"
    cells = "1 cell" if expected == 1 else f"{expected} cells"
    raise DataError(
        f"{subject} must have {cells} in every row, as its header has, "
        f"got {got} in line {line}; {remedy} or remove it."
    )


def _layout(body: bytes, separator: bytes, quoted: bool) -> tuple[Ints, Ints, Ints, Bools] | None:
    """Return how ``body`` is cut into rows, or None where its quotes follow no rule.

    Returns:
        Of each row that is not blank: its number of cells, its 1-based line, and (last) whether it
        ends with a separator; between them the positions of the line ends of blank lines.
    """
    if not body.endswith(b"\n"):
        body += b"\n"
    array = np.frombuffer(body, np.uint8)
    ends, cuts = np.flatnonzero(array == 10), np.flatnonzero(array == separator[0])
    all_ends = ends
    if quoted:
        quotes = np.flatnonzero(array == 34)
        if len(quotes) % 2:
            return None
        opening, closing = quotes[0::2], quotes[1::2]
        edge = np.zeros(256, np.bool_)
        edge[[10, separator[0]]] = True
        reopens = closing[:-1] + 1 == opening[1:]  # "" inside a quoted cell
        starts = (opening == 0) | edge[array[opening - 1]]
        stops = edge[array[closing + 1]]
        is_regular = (starts[1:] | reopens).all() and (stops[:-1] | reopens).all()
        if not (is_regular and starts[0] and stops[-1]):
            return None
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        cuts = cuts[np.searchsorted(quotes, cuts) % 2 == 0]
    begins = np.concatenate([[0], ends[:-1] + 1])
    keep = begins != ends
    widths = np.diff(np.searchsorted(cuts, ends), prepend=0) + 1
    lines = np.searchsorted(all_ends, begins) + 1
    trailing = array[ends - 1] == separator[0]
    return widths[keep], lines[keep], ends[~keep], trailing[keep]


def _rows_one_by_one(body: bytes, separator: bytes, subject: str) -> list[list[str]]:
    """Return the rows of a file with stray quotes, which only a sequential reader can judge."""
    reader = csv_reader(StringIO(body.decode()), delimiter=separator.decode(), strict=True)
    rows: list[list[str]] = []
    line = 1
    try:
        for row in reader:
            if row and rows and len(row) != len(rows[0]):
                _refuse_ragged(subject, line, len(row), len(rows[0]))
            if row:
                rows.append(row)
            line = reader.line_num + 1
    except CsvError as error:
        raise DataError(
            f"{subject} must close every quote, got an unclosed or stray quote in the row that "
            f'starts in line {line}; close it, or double a quote that is meant as such ("").'
        ) from error
    return rows


# --- types ---


def _is_index(column: pl.Series) -> bool:
    return column.dtype.is_integer() and column.equals(
        pl.Series(np.arange(len(column)), dtype=column.dtype)
    )


def _typed(cells: pl.Series) -> pl.Series:
    """Return ``cells`` as the narrowest type that keeps every one of them."""
    if cells.null_count() == len(cells):
        return cells
    for texts in (cells, cells.str.strip_chars()):
        whole = texts.cast(pl.Int64, strict=False)
        if whole.null_count() == cells.null_count():
            # "007" and "+5" are keys, not numbers
            return whole if whole.cast(pl.String).equals(texts, null_equal=True) else cells
        missing = texts.is_in(_NO_NUMBER)
        numbers = texts.set(missing, None).cast(pl.Float64, strict=False)
        if numbers.null_count() == cells.null_count() + missing.sum() < len(cells):
            return _number(texts.set(missing, None), numbers, cells)
    texts = cells.str.to_lowercase()
    if texts.drop_nulls().is_in(["true", "false"]).all():
        return texts == "true"
    return cells


def _number(texts: pl.Series, numbers: pl.Series, cells: pl.Series) -> pl.Series:
    if texts.str.contains(r"^[-+]?0\d").any() or texts.str.contains(r"^[-+]?\d{17,}$").any():
        return cells
    whole = texts.cast(pl.Int64, strict=False)
    return whole if whole.null_count() == texts.null_count() else numbers


# --- names ---


def check_distinct(names: list[str], subject: str) -> None:
    """Refuse two columns of one name; return nothing where there are none.

    Raises:
        DataError: A name is repeated.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"{subject} must have distinct column names, got {', '.join(map(repr, repeated))} "
            "more than once; rename the repeats."
        )
