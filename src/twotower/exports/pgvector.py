"""pgvector: tables of items and of queries in PostgreSQL, or the files that make them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from twotower.caller import argument
from twotower.errors import ExportError
from twotower.exports.contents import items_of, queries_of
from twotower.exports.folder import Exported, check_folder, new_folder
from twotower.exports.pgvector_rows import column_names, lines_of, quoted, quoted_table, type_of
from twotower.extras import library
from twotower.serving.retriever import Bundle, Retriever

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

    def ddl(self) -> str:
        columns = []
        for place, (name, dtype) in enumerate(self.frame.schema.items()):
            kind = type_of(dtype)
            if name == self.vector:
                assert isinstance(dtype, pl.Array)
                kind = f"vector({dtype.size}) NOT NULL"
            columns.append(f"  {quoted(name)} {kind}{' PRIMARY KEY' if place == 0 else ''}")
        return f"CREATE TABLE {self.quoted} (\n" + ",\n".join(columns) + "\n);\n"

    def index_ddl(self) -> str:
        """Return what makes an index of the vectors, where pgvector has one for so many numbers."""
        width = self.frame.schema[self.vector].size  # type: ignore[attr-defined]
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
    """Write ``load.sql`` and the data that it copies, for ``psql``; and ``index.sql`` for afterwards.

    ``psql -f load.sql``, in the folder, makes two tables in one transaction: the items, with their columns
    and vectors, and the queries (``items_queries``), with vectors and what each has seen.

    Args:
        bundle: What is exported, as it is now: a path, or an opened one; see ``Retriever.of``.
        out: A folder that is not there yet.
        table: Name of the items' table, with its schema's and a dot before it or not.

    Raises:
        ExportError: The folder cannot be made or written, there is no item, or pgvector cannot hold what is
            there.
    """
    check_folder(out)
    retriever = Retriever.of(bundle)
    made, notes = _tables(retriever, table)
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
        (folder / "load.sql").write_text(
            "\n".join([*script, "COMMIT;", ""]), encoding="utf-8", newline="\n"
        )
        (folder / "index.sql").write_text(made[0].index_ddl(), encoding="utf-8", newline="\n")
    return Exported(str(out), len(made[0].frame), len(made[1].frame), notes)


def load_pgvector(bundle: Bundle, dsn: str, *, table: str = "items") -> Exported:
    """Make the tables of ``export_pgvector`` in a database, in one transaction: both, or nothing.

    No index is made; see ``notes`` of what is returned.

    Args:
        bundle: What is exported, as it is now: a path, or an opened one; see ``Retriever.of``.
        dsn: How to connect, as ``psql`` takes it; what it leaves open ``PGPASSWORD`` and the like say.
        table: Name of the items' table, with its schema's and a dot before it or not.

    Raises:
        ExportError: The database cannot be reached, has no pgvector or such a table already, or refuses
            something; or as ``export_pgvector``.
        MissingExtraError: ``psycopg`` is not installed.
    """
    psycopg = library("psycopg", wanted_by="twotower export pgvector", extra="pgvector")
    with _connected(psycopg, dsn) as connection, _told(psycopg):
        cursor = connection.cursor()
        _check_absent(cursor, table)
        _make_extension(psycopg, cursor)
        retriever = Retriever.of(bundle)
        made, notes = _tables(retriever, table)
        for each in made:
            cursor.execute(each.ddl().encode())
            with cursor.copy(f"COPY {each.quoted} FROM STDIN".encode()) as copy:
                for lines in lines_of(each.frame, each.vector):
                    copy.write(lines)
        connection.commit()
    index = f"For an index, say: {made[0].index_ddl().splitlines()[1]}"
    if len(made[0].index_ddl().splitlines()) == 1:
        index = made[0].index_ddl().strip("- \n")
    return Exported(f"table {table}", len(made[0].frame), len(made[1].frame), (*notes, index))


def _tables(retriever: Retriever, table: str) -> tuple[tuple[_Table, _Table], tuple[str, ...]]:
    """Return the tables of items and queries, and what is to be known of them.

    Raises:
        ExportError: The vectors are too wide, the name is no name, or an id holds NUL.
    """
    if (
        not all(0 < len(part.encode()) <= 50 for part in table.split("."))
        or not table.isprintable()
    ):
        raise ExportError(
            f"{argument('table')} must be a name of at most 50 bytes, or a schema's, a dot and one, "
            f"got {table!r}."
        )
    items = items_of(retriever)
    queries = queries_of(retriever, items)
    width = items.vectors.shape[1]
    if width > MOST_NUMBERS:
        raise ExportError(
            f"pgvector holds vectors of up to {MOST_NUMBERS} numbers, got {width}; train with a lower "
            "towers.dim."
        )
    notes = []
    made = []
    for name, frame in ((table, items.frame()), (f"{table}_queries", queries.frame(items))):
        ids = frame.to_series(0)
        if ids.dtype == pl.String and ids.str.contains("\0", literal=True).any():
            odd = ids.filter(ids.str.contains("\0", literal=True))[0]
            raise ExportError(
                f"ids must hold no NUL for PostgreSQL, got {odd!r}; train without it."
            )
        columns = column_names(frame.columns)
        changed = [
            f"{old!r} is {new!r}"
            for old, new in zip(frame.columns, columns, strict=True)
            if old != new
        ]
        if changed:
            notes.append(f"Columns of {name} have other names there: {', '.join(changed)}.")
        vector = next(n for n, d in reversed(frame.schema.items()) if isinstance(d, pl.Array))
        place = frame.columns.index(vector)
        made.append(
            _Table(
                name, frame.rename(dict(zip(frame.columns, columns, strict=True))), columns[place]
            )
        )
    return (made[0], made[1]), tuple(notes)


@contextmanager
def _connected(psycopg: Any, dsn: str) -> Iterator[Any]:
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
        yield connection


@contextmanager
def _told(psycopg: Any) -> Iterator[None]:
    """Turn what the database refuses into one sentence."""
    try:
        yield
    except psycopg.Error as error:
        reason = re.split(r"\n", str(error).strip())[0]
        raise ExportError(f"the database refused: {reason}; nothing was changed.") from error


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
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"the database must have pgvector, got: {reason}; install it on the server (for PostgreSQL 17 "
            "Debian's package is postgresql-17-pgvector), and CREATE EXTENSION vector as one who may."
        ) from error
