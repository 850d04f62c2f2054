"""Tables in a real PostgreSQL hold what the retriever holds, whatever its columns are; or nothing does."""

import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest
import torch

from postgres import binaries
from sandbox import tree_of
from twotower import Retriever, exports
from twotower.errors import ExportError, MissingExtraError
from twotower.exports.pgvector import column_names, lines_of, quoted, type_of
from twotower.index.live_index import LiveIndex

NAN = float("nan")
COLUMNS: dict[str, tuple[list[Any], Any, str]] = {
    "small": ([-128, 127, None], pl.Int8, "smallint"),
    "byte": ([0, 255, None], pl.UInt8, "smallint"),
    "short": ([0, 65_535, None], pl.UInt16, "integer"),
    "int": ([-(2**31), 2**31 - 1, None], pl.Int32, "integer"),
    "wide": ([0, 2**32 - 1, None], pl.UInt32, "bigint"),
    "large": ([-(2**63), 2**63 - 1, None], pl.Int64, "bigint"),
    "huge": ([Decimal(0), Decimal(2**64 - 1), None], pl.UInt64, "numeric"),
    "real": ([0.1, NAN, float("-inf")], pl.Float32, "real"),
    "double": ([0.1, 5e-324, None], pl.Float64, "double precision"),
    "flag": ([True, False, None], pl.Boolean, "boolean"),
    "Text": (["\t\\N\n\r", "", None], pl.String, "text"),
    'a "name"': (["\\N", "\\.", "é薄"], pl.String, "text"),
    "kind": (["a", "b", None], pl.Categorical, "text"),
    "bytes": ([b"\0\xff\\", b"", None], pl.Binary, "bytea"),
    "day": ([date(1, 1, 1), date(9999, 12, 31), None], pl.Date, "date"),
    "moment": ([datetime(2024, 2, 29, 1, 2, 3, 4), None, None], pl.Datetime("us"), "timestamp"),
    "instant": (
        [datetime(2024, 2, 29, 1, tzinfo=UTC), None, None],
        pl.Datetime("us", "UTC"),
        "timestamptz",
    ),
    "clock": ([time(1, 2, 3), None, None], pl.Time, "time"),
    "took": (
        [timedelta(days=-1, seconds=5, microseconds=6), timedelta(days=400), None],
        pl.Duration("us"),
        "interval",
    ),
    "price": ([Decimal("12.30"), Decimal("-0.01"), None], pl.Decimal(10, 2), "numeric"),
    "tags": ([['a,"b"', None, "\\\t{}\n"], [], None], pl.List(pl.String), "text[]"),
    "shares": ([[0.5, NAN], [], None], pl.List(pl.Float64), "double precision[]"),
    "place": ([[1, 2], [3, 4], None], pl.Array(pl.Int64, 2), "bigint[]"),
    "flags": ([[True, None], [], None], pl.List(pl.Boolean), "boolean[]"),
    "nested": (
        [{"a": "\\u0000\t", "b": [1.5]}, {"a": None, "b": []}, None],
        pl.Struct({"a": pl.String, "b": pl.List(pl.Float64)}),
        "jsonb",
    ),
    "lists": ([[[1], []], [], None], pl.List(pl.List(pl.Int64)), "jsonb"),
    "nothing": ([None, None, None], pl.Null, "text"),
}


@pytest.fixture
def connection(postgres: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to an empty database."""
    with psycopg.connect(postgres, autocommit=True) as opened:
        yield opened
        for (name,) in opened.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' "
            "AND relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname LIKE ANY "
            "(ARRAY['pg%', 'information%']))"
        ).fetchall():
            opened.execute(f"DROP TABLE {name}".encode())


def plain(value: Any) -> Any:
    """Return a value of which NaN equals NaN."""
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def copied(connection: psycopg.Connection[Any], frame: pl.DataFrame) -> dict[str, list[Any]]:
    """Return the columns of a frame as the database has them."""
    columns = ", ".join(f"{quoted(name)} {type_of(dtype)}" for name, dtype in frame.schema.items())
    connection.execute(f"CREATE TABLE t ({columns})".encode())
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        for lines in lines_of(frame, "none is a vector"):
            copy.write(lines)
    rows = connection.execute("SELECT * FROM t ORDER BY 1").fetchall()
    return dict(zip(frame.columns, map(list, zip(*rows, strict=True)), strict=True))


def test_every_type_of_column_comes_back_as_it_was(connection: psycopg.Connection[Any]) -> None:
    given = {
        n: pl.Series(values, strict=False).cast(dtype)
        if dtype == pl.UInt64
        else pl.Series(values, dtype=dtype)
        for n, (values, dtype, _) in COLUMNS.items()
    }
    frame = pl.DataFrame({"id": [1, 2, 3]} | given)
    found = copied(connection, frame)
    for name, (values, dtype, kind) in COLUMNS.items():
        assert type_of(frame.schema[name]) == kind
        assert plain(found[name]) == plain(values), name
        assert frame.schema[name] == dtype


def test_what_postgresql_has_no_place_for_becomes_something_else(
    connection: psycopg.Connection[Any],
) -> None:
    frame = pl.DataFrame(
        {
            "id": [1],
            "text": ["a\0b"],
            "texts": [["\0", "b"]],
            "nested": [{"a": "\0", "b": [NAN, float("inf")], "c": date(2024, 1, 2)}],
        }
    )
    found = copied(connection, frame)
    assert found["text"] == ["a\ufffdb"]
    assert found["texts"] == [["\ufffd", "b"]]
    assert found["nested"] == [{"a": "\ufffd", "b": [None, None], "c": "2024-01-02"}]


def test_names_that_a_table_cannot_have_are_changed() -> None:
    long = "n" * 70
    given = ["id", "Id", "xmin", "", "a\0b", "ab", long, long + "x", "列" * 30]
    names = column_names(given)
    assert names[:3] == ["id", "Id", "xmin_2"]
    assert names[3:6] == ["column", "ab", "ab_2"]
    assert len({*names}) == len(given)
    assert all(0 < len(name.encode()) <= 63 for name in names)


def columns_of(connection: psycopg.Connection[Any], table: str) -> dict[str, str]:
    """Return the type of each column of a table."""
    asked = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
        (table,),
    )
    return dict(asked.fetchall())


def assert_loaded(connection: psycopg.Connection[Any], retriever: Retriever, table: str) -> None:
    """Check that the tables hold every item and every query of a retriever, and no other."""
    types = columns_of(connection, quoted(table))
    assert list(types) == [*retriever.contents.items.frame.columns, "vector"]
    assert types["item_id"] == "text"
    assert types["names"] == "text[]"
    assert types["vector"] == "vector(16)"
    lines = connection.execute(
        f"SELECT item_id, title, odd, names, shares, since, vector::real[] FROM {quoted(table)}".encode()
    ).fetchall()
    ids = [line[0] for line in lines]
    assert ids == retriever.item_ids
    told = retriever.items(ids).select("title", "odd", "names", "shares", "since").rows()
    assert plain([line[1:-1] for line in lines]) == plain(told)
    np.testing.assert_array_equal(
        np.array([line[-1] for line in lines], np.float32), retriever.encode_items()
    )
    queries = connection.execute(
        f"SELECT query_id, vector::real[], seen FROM {quoted(table + '_queries')}".encode()
    ).fetchall()
    assert [line[0] for line in queries] == retriever.contents.queries.ids.ids.to_list()
    vectors = np.array([line[1] for line in queries], np.float32)
    np.testing.assert_allclose(
        vectors, retriever.encode_queries([q[0] for q in queries]), atol=1e-6
    )
    for query_id, _, seen in queries[:50]:
        assert set(seen) == {*retriever.history(query_id)} & {*ids}


def test_a_database_is_loaded(
    changed_retriever: Retriever, postgres: str, connection: psycopg.Connection[Any]
) -> None:
    exported = exports.load_pgvector(changed_retriever, postgres, table='My "items"')
    assert (exported.num_items, exported.num_queries) == (len(changed_retriever.item_ids), 1_000)
    assert_loaded(connection, changed_retriever, 'My "items"')
    index = exported.notes[-1].split(": ", 1)[1]
    connection.execute(index.encode())
    name = quoted('My "items"')
    asked = (
        f"EXPLAIN SELECT item_id FROM {name} ORDER BY vector <#> "
        f"(SELECT vector FROM {name} LIMIT 1) LIMIT 10"
    ).encode()
    connection.execute("SET enable_seqscan = off")
    plan = " ".join(line for (line,) in connection.execute(asked).fetchall())
    assert "Index Scan using" in plan


def test_files_for_psql_do_the_same(
    changed_retriever: Retriever,
    postgres: str,
    connection: psycopg.Connection[Any],
    tmp_path: Path,
) -> None:
    exports.export_pgvector(changed_retriever, tmp_path / "out", table='my "shop"')
    folder = binaries()
    assert folder is not None

    def psql(script: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(folder / "psql"), "-X", "-q", postgres, "-f", script],
            cwd=tmp_path / "out",
            capture_output=True,
            text=True,
            check=False,
        )

    done = psql("load.sql")
    assert (done.returncode, done.stderr) == (0, "")
    assert_loaded(connection, changed_retriever, 'my "shop"')
    assert psql("index.sql").returncode == 0
    assert psql("load.sql").returncode == 3  # it is there
    with (tmp_path / "out" / "queries.copy").open("a") as file:
        file.write("half a line")
    script = tmp_path / "out" / "load.sql"
    script.write_text(script.read_text("utf-8").replace('"my ""shop""', '"other'), "utf-8")
    assert psql("load.sql").returncode == 3
    assert connection.execute("SELECT to_regclass('other')").fetchone() == (None,)


REFUSING = """
CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
  IF EXISTS (SELECT 1 FROM pg_event_trigger_ddl_commands() WHERE object_identity LIKE '%queries%')
  THEN RAISE EXCEPTION 'no more tables today'; END IF;
END $$;
CREATE EVENT TRIGGER refusing ON ddl_command_end EXECUTE FUNCTION refuse();
"""


class TestRefusals:
    def test_what_fails_midway_leaves_nothing(
        self, tiny_retriever: Retriever, postgres: str, connection: psycopg.Connection[Any]
    ) -> None:
        connection.execute(REFUSING.encode())
        try:
            with pytest.raises(ExportError, match="the database refused: no more tables today"):
                exports.load_pgvector(tiny_retriever, postgres)
        finally:
            connection.execute("DROP EVENT TRIGGER refusing; DROP FUNCTION refuse")
        assert connection.execute("SELECT to_regclass('items')").fetchone() == (None,)

    @pytest.mark.parametrize("there", ["items", "items_queries"])
    def test_a_table_that_is_there_stays(
        self,
        there: str,
        tiny_retriever: Retriever,
        postgres: str,
        connection: psycopg.Connection[Any],
    ) -> None:
        connection.execute(f"CREATE TABLE {there} (years_of_work int)".encode())
        with pytest.raises(ExportError, match=rf"the table {there} must not be there yet; drop it"):
            exports.load_pgvector(tiny_retriever, postgres)
        assert list(columns_of(connection, there)) == ["years_of_work"]

    def test_a_schema_that_is_not_there(
        self, tiny_retriever: Retriever, postgres: str, connection: psycopg.Connection[Any]
    ) -> None:
        with pytest.raises(ExportError, match='refused: schema "nowhere" does not exist'):
            exports.load_pgvector(tiny_retriever, postgres, table="nowhere.items")
        connection.execute("CREATE SCHEMA shop")
        exports.load_pgvector(tiny_retriever, postgres, table="shop.items")
        assert connection.execute("SELECT count(*) FROM shop.items").fetchone() == (200,)
        connection.execute("DROP SCHEMA shop CASCADE")

    def test_a_database_that_cannot_be_reached(self, tiny_retriever: Retriever) -> None:
        dsn = "postgresql://me:hush%20hush@127.0.0.1:1/shop"
        with pytest.raises(
            ExportError, match=r"the database cannot be reached: .*refused"
        ) as caught:
            exports.load_pgvector(tiny_retriever, dsn)
        assert "hush" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("dsn", ["postgres//me:hush@db/shop", "hostname=db password=hush"])
    def test_a_connection_that_cannot_be_read_is_not_told(
        self, dsn: str, tiny_retriever: Retriever
    ) -> None:
        with pytest.raises(ExportError, match="dsn must be how to connect") as caught:
            exports.load_pgvector(tiny_retriever, dsn)
        assert "hush" not in str(caught.value)

    def test_a_server_without_pgvector(
        self, tiny_retriever: Retriever, postgres: str, connection: psycopg.Connection[Any]
    ) -> None:
        connection.execute("DROP EXTENSION IF EXISTS vector CASCADE")
        connection.execute("CREATE ROLE guest LOGIN")
        try:
            with pytest.raises(ExportError, match="must have pgvector, got: permission denied"):
                exports.load_pgvector(tiny_retriever, f"{postgres} user=guest")
        finally:
            connection.execute("DROP ROLE guest")

    def test_vectors_that_are_too_wide(self, tiny_bundle: Path, tmp_path: Path) -> None:
        retriever = Retriever.open(tiny_bundle)
        retriever.index = LiveIndex(torch.zeros(202, 2_001))
        exports.export_pgvector(retriever, tmp_path / "wide")
        index = (tmp_path / "wide" / "index.sql").read_text("utf-8")
        assert index == "-- An index takes vectors of up to 2000 numbers, and these have 2001.\n"
        retriever.index = LiveIndex(torch.zeros(202, 16_001))
        with pytest.raises(ExportError, match="up to 16000 numbers, got 16001"):
            exports.export_pgvector(retriever, tmp_path / "wider")
        assert not (tmp_path / "wider").exists()

    @pytest.mark.parametrize("table", ["", "a.", "t" * 51, "a\0b", "a\nb"])
    def test_a_name_that_is_none(
        self, table: str, tiny_retriever: Retriever, tmp_path: Path
    ) -> None:
        with pytest.raises(ExportError, match="table must be a name of at most 50 bytes"):
            exports.export_pgvector(tiny_retriever, tmp_path / "out", table=table)
        assert tree_of(tmp_path) == {}

    def test_an_id_with_a_nul(self, changed_retriever: Retriever, tmp_path: Path) -> None:
        retriever = Retriever.open(changed_retriever.path)
        retriever.upsert_items([{"item_id": "a\0b", "category": "category-1"}])
        with pytest.raises(
            ExportError, match=r"ids must hold no NUL for PostgreSQL, got 'a\\x00b'"
        ):
            exports.export_pgvector(retriever, tmp_path / "out")

    def test_a_missing_extra_is_named(
        self, tiny_retriever: Retriever, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(MissingExtraError, match=r"pip install .*\[pgvector\]'"):
            exports.load_pgvector(tiny_retriever, "")
