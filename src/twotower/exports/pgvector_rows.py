"""A table as PostgreSQL takes it: types, quoted names, and lines for COPY."""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import polars as pl

from twotower.exports.contents import free_name
from twotower.exports.folder import json_value

_SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
_LONGEST_NAME = 63
_ESCAPED = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_REPLACED = "\ufffd"
_ROWS = 10_000
"""Lines that are made at once."""

_TYPES: dict[str, tuple[type[pl.DataType], ...]] = {
    "smallint": (pl.Int8, pl.Int16, pl.UInt8),
    "integer": (pl.Int32, pl.UInt16),
    "bigint": (pl.Int64, pl.UInt32),
    "numeric": (pl.UInt64, pl.Int128, pl.Decimal),
    "real": (pl.Float32,),
    "double precision": (pl.Float64,),
    "boolean": (pl.Boolean,),
    "text": (pl.String, pl.Categorical, pl.Enum, pl.Null),
    "bytea": (pl.Binary,),
    "date": (pl.Date,),
    "time": (pl.Time,),
    "interval": (pl.Duration,),
}
"""PostgreSQL type to the types that are stored in it."""


def type_of(dtype: pl.DataType) -> str:
    """Return the PostgreSQL type of a column; what has none is ``jsonb``."""
    if isinstance(dtype, pl.Datetime):
        return "timestamp" if dtype.time_zone is None else "timestamptz"
    if isinstance(dtype, (pl.List, pl.Array)):
        inner = dtype.inner
        assert isinstance(inner, pl.DataType)
        nested = isinstance(inner, (pl.List, pl.Array, pl.Struct))
        return "jsonb" if nested else f"{type_of(inner)}[]"
    return next((name for name, kinds in _TYPES.items() if isinstance(dtype, kinds)), "jsonb")


def quoted(name: str) -> str:
    """Return an identifier in quotes."""
    return '"' + name.replace('"', '""') + '"'


def quoted_table(name: str) -> str:
    """Return a table's name, which may have its schema's and a dot before it, in quotes."""
    return ".".join(quoted(part) for part in name.split("."))


def column_names(names: Iterable[str]) -> list[str]:
    """Return names that a table's columns may have: as they are, or else cut, filled or numbered."""
    taken = list(_SYSTEM_COLUMNS)
    for name in names:
        name = name.replace("\0", "") or "column"
        if len(name.encode()) > _LONGEST_NAME or name in taken:
            short = name.encode()[: _LONGEST_NAME - 4].decode(errors="ignore")
            name = free_name(short, taken)
        taken.append(name)
    return taken[len(_SYSTEM_COLUMNS) :]


def lines_of(frame: pl.DataFrame, vector: str) -> Iterator[str]:
    """Yield the lines of a table in the text format of COPY, some at a time.

    NUL, which PostgreSQL's text cannot hold, becomes U+FFFD.

    Args:
        frame: The table.
        vector: Its column of vectors, which is written as pgvector reads them.
    """
    writers = [
        _vector_text if name == vector else _writer(type_of(dtype))
        for name, dtype in frame.schema.items()
    ]

    def fields(write: Callable[[Any], str], column: pl.Series) -> list[str]:
        values = column.to_list()
        return [r"\N" if v is None else write(v).translate(_ESCAPED) for v in values]

    for piece in frame.iter_slices(_ROWS):
        columns = map(fields, writers, piece)
        yield "".join("\t".join(line) + "\n" for line in zip(*columns, strict=True))


def _writer(kind: str) -> Callable[[Any], str]:
    """Return what writes a value of a PostgreSQL type."""
    if kind.endswith("[]"):
        return partial(_array_text, _writer(kind.removesuffix("[]")))
    return _json_text if kind == "jsonb" else _text


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds}.{value.microseconds:06} seconds"
    return str(value).replace("\0", _REPLACED)  # of floats the shortest digits that read the same


def _vector_text(value: Any) -> str:
    return "[" + ",".join(map(str, value)) + "]"


def _array_text(write: Callable[[Any], str], values: list[Any]) -> str:
    escaped = (
        "NULL" if v is None else '"' + write(v).replace("\\", r"\\").replace('"', r"\"") + '"'
        for v in values
    )
    return "{" + ",".join(escaped) + "}"


def _json_text(value: Any) -> str:
    return json.dumps(json_value(value, nul=_REPLACED), ensure_ascii=False)
