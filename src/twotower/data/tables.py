"""Reading a table from wherever the user has it, and saying plainly why one cannot be read.

Delimited text is read as strings, checked row by row against its header, and only then given types:
so an id such as ``007`` stays what it is, and a bad row is named by its line. Errors of polars,
pandas and pyarrow become a ``DataError`` in one place, ``_reading``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from csv import Error as CsvError
from csv import reader as csv_reader
from difflib import get_close_matches
from gzip import decompress
from io import BytesIO, StringIO
from itertools import islice
from json import loads
from pathlib import Path
from re import compile as pattern_of
from typing import TYPE_CHECKING, NoReturn, TypeAlias, Union
from zlib import error as zlib_error

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PanicException, PolarsError

from twotower.data.columns import is_role_name
from twotower.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import pandas
    import pyarrow

_SEPARATORS = (b"\t", b",", b";", b"|", b"::")
_UNIT = b"\x1f"  # stands in for "::", which polars cannot split at
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstandard file",
    b"FEA1": "a Feather file of version 1",
    b"SQLite format 3": "an SQLite data base",
    b"%PDF": "a PDF document",
}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_NUMBER = pattern_of(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_DATE = pattern_of(r"\d{4}-\d\d-\d\d([T ].*)?|\d{1,2}[/.]\d{1,2}[/.]\d{4}.*")
_NO_NUMBER = ("NA", "N/A", "null", "NULL", "None", "\\N")
_EXAMPLES = {"items": "item_id,title,genres", "queries": "user_id,age,gender"}

Table: TypeAlias = Union[str, Path, pl.DataFrame, pl.LazyFrame, "pandas.DataFrame", "pyarrow.Table"]
"""What ``read_table`` reads."""


def read_table(source: Table, *, what: str = "interactions") -> pl.DataFrame:
    """Return the table that ``source`` holds, with at least one row.

    Files: delimited text with a header line (separated by tab, comma, semicolon, ``|`` or ``::``),
    JSON lines, a JSON array of objects, Parquet, Arrow IPC (Feather); each also gzipped. The
    content decides, not the ending. In delimited text an empty cell is null; a column is integer,
    float or boolean only if every cell is, and stays string if a cell has a leading zero or more
    digits than the number could keep. Columns without a name are left out where they are empty or
    count the rows.

    Args:
        source: Path of a file, or a frame. A pandas index is dropped unless it has a name.
        what: Names the argument in messages, as the user typed it.

    Raises:
        DataError: The file is missing, a directory, unreadable, empty, binary, not UTF-8, without a
            header or rows, or has a ragged row, an unclosed quote or two columns of one name; or
            ``source`` is none of the above.
        MissingExtraError: A pandas frame needs pyarrow, and it is not installed.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        subject = f"{what} '{path}'"
        with _reading(subject, path):
            frame = _read_file(path, subject, what)
    else:
        subject = what
        with _reading(subject, None):
            frame = _from_frame(source, subject)
        if not frame.width:
            raise DataError(f"{subject} must hold a table, got one without columns.")
        if not frame.height:
            raise DataError(f"{subject} must hold rows, got a table without any.")
    return _plain_types(frame)


@contextmanager
def _reading(subject: str, path: Path | None) -> Iterator[None]:
    """Turn whatever goes wrong below into one clear ``DataError``."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"{subject} must be a file, got none of that name; {_hint(path)}."
        ) from error
    except IsADirectoryError as error:
        raise DataError(f"{subject} must be a file, got a directory; name a file in it.") from error
    except PermissionError as error:
        raise DataError(
            f"{subject} must be readable, got 'permission denied'; "
            "change its permissions or copy it to where you may read it."
        ) from error
    except (PolarsError, PanicException, OSError, ValueError, TypeError) as error:
        foreign = isinstance(error, PolarsError | PanicException | OSError)
        if isinstance(error, DataError) or (path is not None and not foreign):
            raise
        if isinstance(error, OSError) and error.strerror:  # polars raises some without
            reason = error.strerror.lower()
            raise DataError(f"{subject} must be readable, got '{reason}'; check it.") from error
        if path is None and type(error).__module__.startswith("pyarrow"):
            problem, remedy = "a column of mixed types", "give each column one type, e.g. str"
        elif path is None:
            problem, remedy = "a frame that cannot be read", "check that it can be collected"
        else:
            problem, remedy = "a damaged or cut-off file", "write or fetch it again"
        raise DataError(f"{subject} must be a whole table, got {problem}; {remedy}.") from error
    except MemoryError as error:
        raise DataError(f"{subject} must fit into memory, got a larger table.") from error


def _hint(path: Path | None) -> str:
    if path is None:
        return "check the path that it scans"
    folder = path.parent
    if not folder.is_dir():
        return f"the folder '{folder}' does not exist either"
    near = get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    return f"there is '{folder / near[0]}'" if near else "check the path"


def _read_file(path: Path, subject: str, what: str) -> pl.DataFrame:
    if path.is_dir():
        raise IsADirectoryError
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = decompress(data)
        except (EOFError, OSError, zlib_error) as error:
            raise DataError(
                f"{subject} must be a whole gzip file, got a damaged one; fetch it again."
            ) from error
    if not data.removeprefix(_BOM).strip():
        raise DataError(f"{subject} must hold a table, got an empty file.")
    for magic, kind in _FOREIGN.items():
        if data.startswith(magic):
            raise DataError(
                f"{subject} must be CSV, TSV, JSON lines, Parquet or Arrow, got {kind}; "
                "unpack it or export it as one of these."
            )
    endings = {suffix.lower() for suffix in path.suffixes}
    if data.startswith(b"PAR1"):
        frame = pl.read_parquet(BytesIO(data))
    elif data.startswith(b"ARROW1"):
        frame = pl.read_ipc(BytesIO(data))
    elif data.startswith(b"\xff\xff\xff\xff"):
        frame = pl.read_ipc_stream(BytesIO(data))
    elif endings & {".parquet", ".arrow", ".feather", ".ipc"}:
        raise DataError(
            f"{subject} must hold what its ending says, got a file that is neither Parquet nor "
            "Arrow; give it its right ending or fetch it again."
        )
    else:
        body = _checked_text(data, subject, path)
        json = body.lstrip()[:1] in (b"{", b"[") and not endings & {".csv", ".tsv"}
        if json or endings & {".json", ".jsonl", ".ndjson"}:
            frame = _read_json(body, subject)
        else:
            frame = _read_delimited(body, subject, what)
    if not frame.width or not frame.height:
        raise DataError(f"{subject} must hold rows, got a table without any.")
    return frame


def _checked_text(data: bytes, subject: str, path: Path) -> bytes:
    """Return ``data`` without byte-order mark and carriage returns, or say why it is no text."""
    name = path.name.removesuffix(".gz")
    zeros = sorted(data[start:2000:2].count(0) for start in (0, 1))
    # UTF-16 text without a byte-order mark has a zero in every other byte and nowhere else
    if data.startswith(_UTF16) or (zeros[0] == 0 and zeros[1] > min(len(data), 2000) / 4):
        raise DataError(
            f"{subject} must be UTF-8 text, got UTF-16 in line 1; "
            f"convert it: iconv -f UTF-16 -t UTF-8 '{name}' > 'utf8-{name}'."
        )
    data = data.removeprefix(_BOM)
    nul = data.find(0)
    if nul >= 0:
        _refuse_binary(subject, "a NUL byte", data.count(b"\n", 0, nul) + 1)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x}"
        control = sum(value < 32 and value not in b"\t\n\r\f" for value in data[:4096])
        if control > 0.01 * min(len(data), 4096):
            _refuse_binary(subject, byte, line)
        raise DataError(
            f"{subject} must be UTF-8 text, got {byte} in line {line}; if it is Latin-1, "
            f"convert it: iconv -f LATIN1 -t UTF-8 '{name}' > 'utf8-{name}'."
        ) from error
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data


def _refuse_binary(subject: str, found: str, line: int) -> NoReturn:
    raise DataError(
        f"{subject} must be CSV, TSV, JSON lines, Parquet or Arrow, got binary data "
        f"({found} in line {line}); name another file."
    )


# --- JSON ---


def _read_json(body: bytes, subject: str) -> pl.DataFrame:
    try:
        if body.lstrip().startswith(b"["):
            return pl.read_json(BytesIO(body), infer_schema_length=None)
        return pl.read_ndjson(BytesIO(body), infer_schema_length=None)
    except PolarsError as error:
        _name_bad_json(body, subject)
        raise DataError(
            f"{subject} must have one type in each JSON field, got several in one; "
            "write the field alike in every object."
        ) from error


def _name_bad_json(body: bytes, subject: str) -> None:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name}, which JSON does not have; write null")

    if body.lstrip().startswith(b"["):
        lines: Iterator[tuple[int, bytes]] = iter([(1, body)])
        rule = "be an array of JSON objects"
    else:
        lines = enumerate(body.split(b"\n"), start=1)
        rule = "hold one JSON object in every line"
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = loads(line, parse_constant=refuse_constant)
        except ValueError as error:
            shown = str(error) if "JSON does not have" in str(error) else "broken JSON"
            raise DataError(
                f"{subject} must {rule}, got {shown} in line {number}; correct that line."
            ) from error
        objects = value if isinstance(value, list) and rule.startswith("be") else [value]
        if not all(isinstance(each, dict) for each in objects):
            raise DataError(
                f"{subject} must {rule}, got {type(value).__name__} in line {number}; "
                'write {"user_id": 1, "item_id": 2}.'
            )


# --- delimited text ---


def _read_delimited(body: bytes, subject: str, what: str) -> pl.DataFrame:
    separator = _separator(body)
    if separator == b"::":
        body, separator = body.replace(b"::", _UNIT), _UNIT
    _check_header(body, separator, subject, what)
    strings = _cells(body, separator, subject)
    names = [(name or "").strip() for name in strings.row(0)]
    strings = strings.slice(1)
    if not strings.height:
        raise DataError(f"{subject} must hold rows, got only a header line.")
    _check_distinct([name for name in names if name], subject)
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
    if len(separator) > 1:
        return [line.split(separator.decode()) for line in islice(text.split("\n"), count)]
    try:
        return list(islice(csv_reader(StringIO(text), delimiter=separator.decode()), count))
    except CsvError:
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


Layout = tuple[
    npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]
]


def _layout(body: bytes, separator: bytes, quoted: bool) -> Layout | None:
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
        if not ((starts[1:] | reopens).all() and starts[0] and (stops[:-1] | reopens).all()):
            return None
        if not stops[-1]:
            return None
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        cuts = cuts[np.searchsorted(quotes, cuts) % 2 == 0]
    begins = np.concatenate([[0], ends[:-1] + 1])
    is_blank = begins == ends
    widths = np.diff(np.searchsorted(cuts, ends), prepend=0) + 1
    lines = np.searchsorted(all_ends, begins) + 1
    trailing = array[ends - 1] == separator[0]
    keep = ~is_blank
    return widths[keep], lines[keep], ends[is_blank], trailing[keep]


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


def _plain_types(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with one integer, one string and one decimal type instead of several."""
    changed = []
    for column in frame.get_columns():
        dtype = column.dtype
        if dtype in (pl.Categorical, pl.Enum, pl.Null):
            changed.append(column.cast(pl.String))
        elif isinstance(dtype, pl.Decimal):
            changed.append(column.cast(pl.Float64))
        elif dtype in (pl.UInt64, pl.Int128):
            whole = column.cast(pl.Int64, strict=False)
            fits = whole.null_count() == column.null_count()
            changed.append(whole if fits else column.cast(pl.String))
    return frame.with_columns(changed)


# --- frames ---


def _from_frame(source: object, subject: str) -> pl.DataFrame:
    if isinstance(source, pl.DataFrame):
        return source
    if isinstance(source, pl.LazyFrame):
        return source.collect()
    library = type(source).__module__.split(".")[0]
    kind = type(source).__name__
    if library == "pandas" and kind == "DataFrame":
        return _from_pandas(source, subject)
    if library == "pyarrow" and kind == "Table":
        names: list[str] = source.column_names  # type: ignore[attr-defined]
        _check_distinct(names, subject)
        frame = pl.from_arrow(source)
        assert isinstance(frame, pl.DataFrame)
        return frame
    raise DataError(
        f"{subject} must be a path or a frame of polars, pandas or pyarrow, got {kind}; "
        "pass one of these."
    )


def _from_pandas(source: "pandas.DataFrame", subject: str) -> pl.DataFrame:
    named = [name for name in source.index.names if name is not None]
    if named:
        source = source.reset_index(named)
    source = source.rename(columns=str)
    _check_distinct(list(source.columns), subject)
    try:
        return pl.from_pandas(source)
    except ImportError as error:
        raise MissingExtraError(
            f"{subject} must be readable, got a pandas frame and no pyarrow; "
            "pip install 'twotower[pandas]'."
        ) from error


def _check_distinct(names: list[str], subject: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"{subject} must have distinct column names, got {', '.join(map(repr, repeated))} "
            "more than once; rename the repeats."
        )
