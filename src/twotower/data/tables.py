"""Reading a table from wherever the user has it, and saying plainly why one cannot be read.

The content decides how a file is read; ``delimited`` reads the text among them. Errors of polars,
pandas and pyarrow become a ``DataError`` in one place, ``reading``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from gzip import decompress
from io import BytesIO
from json import loads
from pathlib import Path
from re import DOTALL
from re import compile as compile_pattern
from typing import NoReturn, TypeAlias
from zlib import error as zlib_error

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from twotower.data.delimited import check_distinct, read_delimited
from twotower.errors import DataError, nearest
from twotower.features.dataframes import Frame, as_polars, is_frame, names_of
from twotower.paths import is_utf8, shown
from twotower.vocab import as_keys

_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstandard file",
    b"FEA1": "a Feather file of version 1",
    b"SQLite format 3": "an SQLite data base",
    b"%PDF": "a PDF document",
}
MOST_LEVELS = 100
"""Levels of arrays and objects in a JSON table."""
_STRING = compile_pattern(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)', DOTALL)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"

Table: TypeAlias = str | Path | Frame
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
        what: Names the table in messages: the argument in Python and the flag without its dashes,
            such as ``items``.

    Raises:
        DataError: The file is missing, a directory, unreadable, empty, binary, not UTF-8, without a
            header or rows, or has a ragged row, an unclosed quote or two columns of one name; or
            ``source`` is none of the above.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not is_utf8(path) or "\0" in str(path):
            raise DataError(
                f"{what} must have a name in UTF-8, got {shown(path)!r}; rename the file."
            )
        subject = f"{what} '{path}'"
        with reading(subject, path):
            frame = _read_file(path, subject, what)
    else:
        subject = what
        with reading(subject, None):
            if not is_frame(source):
                raise DataError(
                    f"{subject} must be a path or a frame of polars, pandas or pyarrow, got "
                    f"{type(source).__name__}; pass one of these."
                )
            if not isinstance(source, pl.LazyFrame):
                check_distinct(names_of(source), subject)
            frame = as_polars(source)
    if not frame.width and not isinstance(source, str | Path):
        raise DataError(f"{subject} must hold a table, got one without columns.")
    if not frame.height:
        raise DataError(f"{subject} must hold rows, got a table without any.")
    return plain_types(frame)


@contextmanager
def reading(subject: str, path: Path | None) -> Iterator[None]:
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
        mixed = isinstance(error, TypeError) or type(error).__module__.startswith("pyarrow")
        if path is None and mixed:
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
    near = nearest(path.name, [entry.name for entry in folder.iterdir()])
    return f"there is '{folder / near}'" if near else "check the path"


def _read_file(path: Path, subject: str, what: str) -> pl.DataFrame:
    if path.is_dir():  # reading it would say "permission denied" on Windows
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
        return pl.read_parquet(BytesIO(data))
    if data.startswith(b"ARROW1"):
        return pl.read_ipc(BytesIO(data))
    if data.startswith(b"\xff\xff\xff\xff"):
        return pl.read_ipc_stream(BytesIO(data))
    if endings & {".parquet", ".arrow", ".feather", ".ipc"}:
        raise DataError(
            f"{subject} must hold what its ending says, got a file that is neither Parquet nor "
            "Arrow; give it its right ending or fetch it again."
        )
    body = _checked_text(data, subject, path)
    json = body.lstrip()[:1] in (b"{", b"[") and not endings & {".csv", ".tsv"}
    if json or endings & {".json", ".jsonl", ".ndjson"}:
        return _read_json(body, subject)
    return read_delimited(body, subject, what)


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
    is_array = body.lstrip().startswith(b"[")
    _check_depth(body, subject, is_array)
    try:
        if is_array:
            return pl.read_json(BytesIO(body), infer_schema_length=None)
        return pl.read_ndjson(BytesIO(body), infer_schema_length=None)
    except PolarsError as error:
        _name_bad_json(body, subject, is_array)
        raise DataError(
            f"{subject} must have one type in each JSON field, got several in one; "
            "write the field alike in every object."
        ) from error


def _check_depth(body: bytes, subject: str, is_array: bool) -> None:
    """Refuse JSON in which polars would overflow its stack, which ends the whole process."""
    for number, line in enumerate([body] if is_array else body.split(b"\n"), start=1):
        # Few lines hold so many brackets; of those, brackets in strings do not count.
        if line.count(b"[") + line.count(b"{") > MOST_LEVELS and _depth(line) > MOST_LEVELS:
            place = "" if is_array else f" in line {number}"
            raise DataError(
                f"{subject} must hold JSON of at most {MOST_LEVELS} levels, got more{place}; leave the "
                "deep field out."
            )


def _depth(json: bytes) -> int:
    """Return how deep the arrays and objects of a JSON text stand in each other."""
    bare = np.frombuffer(_STRING.sub(b"", json), np.uint8)
    steps = np.isin(bare, list(b"[{")).astype(np.int64) - np.isin(bare, list(b"]}"))
    return int(np.cumsum(steps).max(initial=0))


def _name_bad_json(body: bytes, subject: str, is_array: bool) -> None:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name}, which JSON does not have; write null")

    rule = "be an array of JSON objects" if is_array else "hold one JSON object in every line"
    for number, line in enumerate([body] if is_array else body.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = loads(line, parse_constant=refuse_constant)
        except ValueError as error:
            shown = str(error) if "JSON does not have" in str(error) else "broken JSON"
            raise DataError(
                f"{subject} must {rule}, got {shown} in line {number}; correct that line."
            ) from error
        objects = value if isinstance(value, list) and is_array else [value]
        if not all(isinstance(each, dict) for each in objects):
            raise DataError(
                f"{subject} must {rule}, got {type(value).__name__} in line {number}; "
                'write {"user_id": 1, "item_id": 2}.'
            )


# --- types ---


def plain_types(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with one integer, one string and one decimal type instead of several."""
    changed = []
    for column in frame.get_columns():
        if column.dtype in (pl.Categorical, pl.Enum, pl.Null, pl.UInt64, pl.Int128):
            changed.append(as_keys(column).alias(column.name))
        elif column.dtype.is_decimal():
            changed.append(column.cast(pl.Float64))
    return frame.with_columns(changed)
