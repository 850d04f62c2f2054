"""pgvector: tables of items and queries in PostgreSQL, or files to create them."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from twotower.caller import argument
from twotower.errors import ExportError
from twotower.exports.contents import contents_of, free_name, vector_column
from twotower.exports.folder import Exported, check_folder, first_line, json_value, new_folder
from twotower.extras import library
from twotower.serving.retriever import Bundle

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
MOST_NUMBERS = 16_000
"""The widest ``vector`` of pgvector."""
MOST_INDEXED = 2_000
"""The widest that an index of pgvector takes."""


@dataclass(frozen=True, eq=False)
class _Table:
    """A table to be made.

    Args:
        name: As in SQL, without quotes.
        frame: Its lines; columns have names that PostgreSQL takes, the first being the key.
        vector: Which of them is the vector.
    """

    name: str
    frame: pl.DataFrame
    vector: str

    @property
    def quoted(self) -> str:
        return quoted_table(self.name)

    @property
    def width(self) -> int:
        dtype = self.frame.schema[self.vector]
        assert isinstance(dtype, pl.Array)
        return dtype.size

    def ddl(self) -> str:
        types = {name: type_of(dtype) for name, dtype in self.frame.schema.items()}
        types[self.vector] = f"vector({self.width}) NOT NULL"
        types[self.frame.columns[0]] += " PRIMARY KEY"
        columns = ",\n".join(f"  {quoted(name)} {kind}" for name, kind in types.items())
        return f"CREATE TABLE {self.quoted} (\n{columns}\n);\n"

    def index_ddl(self) -> str:
        """Return what makes an index of the vectors, where pgvector has one for so many numbers."""
        width = self.width
        if width > MOST_INDEXED:
            return f"-- An index takes vectors of up to {MOST_INDEXED} numbers, and these have {width}.\n"
        column = f"{quoted(self.vector)} vector_ip_ops"
        return (
            "-- Without an index every answer is exact. With one of these it is quicker, and misses some.\n"
            f"CREATE INDEX ON {self.quoted} USING hnsw ({column});\n"
            f"-- CREATE INDEX ON {self.quoted} USING ivfflat ({column}) WITH (lists = "
            f"{max(1, len(self.frame) // 1_000)});\n"
        )


def export_pgvector(bundle: Bundle, out: str | Path, *, table: str = "items") -> Exported:
    """Write ``load.sql`` and the data that it copies, for ``psql``; and ``index.sql`` to run afterwards.

    ``psql -f load.sql``, in the folder, creates two tables in one transaction: the items, with their
    columns and vectors, and the queries (``items_queries``), with vectors and seen items.

    Args:
        bundle: The bundle to export: a path, or an opened one in its current state; see ``Retriever.of``.
        out: A folder that does not exist yet.
        table: Name of the items' table, with or without its schema and a dot.

    Raises:
        ExportError: The folder cannot be made or written, there is no item, or pgvector cannot hold what is
            there.
    """
    check_folder(out)
    made, notes = _tables(bundle, table)
    with new_folder(out) as folder:
        script = [
            r"\set ON_ERROR_STOP on",
            "SET client_encoding = 'UTF8';",
            "SET client_min_messages = warning;",  # of an extension that is there
            "BEGIN;",
            "CREATE EXTENSION IF NOT EXISTS vector;",
        ]
        for each, file in zip(made, ("items.copy", "queries.copy"), strict=True):
            with (folder / file).open("w", encoding="utf-8", newline="") as opened:
                opened.writelines(lines_of(each.frame, each.vector))
            script += [each.ddl(), rf"\copy {each.quoted} FROM '{file}'"]
        load = "\n".join([*script, "COMMIT;", ""])
        (folder / "load.sql").write_text(load, encoding="utf-8", newline="\n")
        (folder / "index.sql").write_text(made[0].index_ddl(), encoding="utf-8", newline="\n")
    return Exported(str(out), len(made[0].frame), len(made[1].frame), tuple(notes))


def load_pgvector(bundle: Bundle, dsn: str, *, table: str = "items") -> Exported:
    """Create the tables of ``export_pgvector`` in a database, in one transaction.

    No index is created; ``notes`` of the result say how to create one.

    Args:
        bundle: The bundle to export: a path, or an opened one in its current state; see ``Retriever.of``.
        dsn: Connection string, as for ``psql``; the rest comes from ``PGPASSWORD`` and the like.
        table: Name of the items' table, with or without its schema and a dot.

    Raises:
        ExportError: The database cannot be reached, has no pgvector, already has such a table, or refuses
            a statement; or see ``export_pgvector``.
        MissingExtraError: ``psycopg`` is not installed.
    """
    psycopg = library("psycopg", wanted_by="twotower export pgvector", extra="pgvector")
    with _connected(psycopg, dsn) as connection:
        cursor = connection.cursor()
        _check_absent(cursor, table)
        _make_extension(psycopg, cursor)
        made, notes = _tables(bundle, table)
        for each in made:
            cursor.execute(each.ddl().encode())
            with cursor.copy(f"COPY {each.quoted} FROM STDIN".encode()) as copy:
                for lines in lines_of(each.frame, each.vector):
                    copy.write(lines)
        connection.commit()
    script = made[0].index_ddl().splitlines()
    index = f"For an index, say: {script[1]}" if len(script) > 1 else script[0].strip("- ")
    return Exported(f"table {table}", len(made[0].frame), len(made[1].frame), (*notes, index))


def _tables(bundle: Bundle, table: str) -> tuple[list[_Table], list[str]]:
    """Return the tables of items and queries, and what is to be known of them.

    Raises:
        ExportError: The vectors are too wide, the name is no name, or an id holds NUL.
    """
    are_names = all(0 < len(part.encode()) <= 50 for part in table.split("."))
    if not are_names or not table.isprintable():
        raise ExportError(
            f"{argument('table')} must be a name of at most 50 bytes, or a schema's, a dot and one, "
            f"got {table!r}."
        )
    items, queries = contents_of(bundle)
    made, notes = [], list(items.notes)
    for name, frame in ((table, items.frame()), (f"{table}_queries", queries.frame(items))):
        ids = frame.to_series(0).cast(pl.String)
        odd = ids.filter(ids.str.contains("\0", literal=True))
        if len(odd):
            raise ExportError(
                f"ids must hold no NUL for PostgreSQL, got {odd[0]!r}; train without it."
            )
        named = dict(zip(frame.columns, column_names(frame.columns), strict=True))
        changed = [f"{old!r} is {new!r}" for old, new in named.items() if old != new]
        if changed:
            notes.append(f"Columns of {name} have other names there: {', '.join(changed)}.")
        made.append(_Table(name, frame.rename(named), named[vector_column(frame)]))
    if made[0].width > MOST_NUMBERS:
        raise ExportError(
            f"pgvector holds vectors of up to {MOST_NUMBERS} numbers, got {made[0].width}; train with a "
            "lower towers.dim or towers.spectral_dim."
        )
    return made, notes


@contextmanager
def _connected(psycopg: Any, dsn: str) -> Iterator[Any]:
    """Connect to a database; what it refuses becomes one sentence."""
    try:
        given = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise ExportError(  # what cannot be read may be a password
            f"{argument('dsn')} must be how to connect to PostgreSQL, as in "
            "'host=db.example dbname=shop user=me' or 'postgresql://me@db.example/shop', "
            "got what cannot be read."
        ) from None
    try:
        connection = psycopg.connect(
            **{"connect_timeout": "10", **given, "client_encoding": "UTF8"}
        )
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        if given.get("password"):
            reason = reason.replace(str(given["password"]), "***")
        raise ExportError(f"the database cannot be reached: {reason}") from None
    with connection:
        try:
            yield connection
        except psycopg.Error as error:
            raise ExportError(
                f"the database refused: {first_line(error)}; nothing was changed."
            ) from error


def _check_absent(cursor: Any, table: str) -> None:
    for name in (table, f"{table}_queries"):
        found = cursor.execute("SELECT to_regclass(%s)", (quoted_table(name),)).fetchone()
        if found[0] is not None:
            raise ExportError(
                f"the table {name} must not be there yet; drop it, or name another with "
                f"{argument('table')} and rename that when it is loaded."
            )


def _make_extension(psycopg: Any, cursor: Any) -> None:
    try:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.Error as error:
        raise ExportError(
            f"the database must have pgvector, got: {first_line(error)}; install it on the server (for "
            "PostgreSQL 17 Debian's package is postgresql-17-pgvector), and CREATE EXTENSION vector as one "
            "who may."
        ) from error


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
