"""A test of the files that make up a table: which a path names, and what their folders say."""

import os
from pathlib import Path

import polars as pl
import pytest

from twotower.data.input_files import read_files
from twotower.errors import DataError
from twotower.table_files import (
    NO_VALUE,
    TableFile,
    address_of,
    is_of_many,
    table_files,
    types_of_keys,
)


def table(*ids: int) -> pl.DataFrame:
    return pl.DataFrame({"user_id": ids, "item_id": [f"i{each}" for each in ids]})


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """Two days with two files each, and what other programs leave beside them."""
    folder = tmp_path / "a=b" / "events"
    for place, day in enumerate(("2026-11-29", "2026-11-30")):
        at = folder / f"day={day}"
        at.mkdir(parents=True)
        for part in (0, 1):
            table(10 * place + part).write_parquet(at / f"part-{part}.parquet")
        (at / "_SUCCESS").touch()
        (at / ".part-0.parquet.crc").touch()
    return folder


class TestFiles:
    def test_a_folder_names_its_files_in_the_order_of_their_paths(self, days: Path) -> None:
        found = [Path(file.path).relative_to(days).as_posix() for file in table_files(days)]
        assert found == [
            "day=2026-11-29/part-0.parquet",
            "day=2026-11-29/part-1.parquet",
            "day=2026-11-30/part-0.parquet",
            "day=2026-11-30/part-1.parquet",
        ]

    @pytest.mark.parametrize(
        "given", ["", "day=2026-11-29", "day=2026-11-29/part-0.parquet", "day=2026-11-29/*.parquet"]
    )
    def test_names_of_folders_are_columns(self, days: Path, given: str) -> None:
        """Those from the first one above that is no column on: a=b is not."""
        assert table_files(days / given)[0].keys == {"day": "2026-11-29"}

    @pytest.mark.parametrize("pattern", ["day=*/part-0.parquet", "**/part-0.parquet"])
    def test_a_pattern_names_files(self, days: Path, pattern: str) -> None:
        found = table_files(days / pattern)
        assert len(found) == 2
        assert found[1].keys == {"day": "2026-11-30"}

    def test_a_file_is_itself(self, days: Path) -> None:
        one = days / "day=2026-11-29" / "part-0.parquet"
        assert table_files(one) == (TableFile(str(one), {"day": "2026-11-29"}),)

    @pytest.mark.parametrize("name", ["", "*.parquet"])
    def test_no_file_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match="must hold files, got none"):
            table_files(tmp_path / name)

    @pytest.mark.parametrize("given", ["s3://bucket/events/*.parquet", "s3:/bucket/events"])
    def test_an_address_stays_one_as_a_path(self, given: str) -> None:
        assert is_of_many(Path(given))
        assert address_of(Path(given)).startswith("s3://bucket/events")


class TestLinks:
    def test_lead_to_files_once(self, days: Path, tmp_path: Path) -> None:
        (tmp_path / "events").mkdir()
        (tmp_path / "events" / "linked").symlink_to(days)
        (tmp_path / "events" / "back").symlink_to(tmp_path / "events")
        for given in ("events", "events/**/*.parquet"):
            assert len(table_files(tmp_path / given)) == 4

    def test_parquet_is_known_by_its_bytes(self, tmp_path: Path) -> None:
        for name in ("a.parquet", "b.pq", "c"):
            table(1).write_parquet(tmp_path / name)
        (tmp_path / "notes").write_text("x")
        assert [Path(file.path).name for file in table_files(tmp_path)] == [
            "a.parquet",
            "b.pq",
            "c",
        ]

    @pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
    def test_a_name_that_cannot_be_is_for_whoever_reads_it(self, name: str) -> None:
        assert not is_of_many(name)
        assert address_of(name) == name

    def test_a_name_that_is_not_utf8_is_refused(self, tmp_path: Path) -> None:
        table(1).write_parquet(tmp_path / "x.parquet")
        (tmp_path / "x.parquet").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet"))
        with pytest.raises(DataError, match="must have names in UTF-8"):
            table_files(tmp_path)


class TestKeys:
    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (["1", "20"], pl.Int64()),
            (["1", None], pl.Int64()),
            (["01", "20"], pl.String()),
            (["2026-11-29", "2026-11-30"], pl.Date()),
            (["2026-11-29", "x"], pl.String()),
            ([None, None], pl.String()),
        ],
    )
    def test_the_type_is_one_that_writes_all_values_alike(
        self, values: list[str | None], dtype: pl.DataType
    ) -> None:
        files = [TableFile(f"{place}", {"key": value}) for place, value in enumerate(values)]
        assert types_of_keys(files) == {"key": dtype}

    def test_all_files_have_the_same(self) -> None:
        with pytest.raises(DataError, match="got day for 'a' and none for 'b'"):
            types_of_keys([TableFile("a", {"day": "1"}), TableFile("b")])

    def test_a_column_of_that_name_must_say_the_same(self) -> None:
        frame = pl.DataFrame({"day": [1, 1]})
        found = TableFile("x", {"day": "1"}).with_keys(frame, {"day": pl.Int64()})
        assert found.equals(frame)
        with pytest.raises(DataError, match="must hold in 'day' what its folder says, '2'"):
            TableFile("x", {"day": "2"}).with_keys(frame, {"day": pl.Int64()})

    def test_a_value_of_another_type_is_refused(self) -> None:
        with pytest.raises(DataError, match="key 'day' must have values of type Int64, got 'x'"):
            TableFile("f", {"day": "x"}).with_keys(table(1), {"day": pl.Int64()})

    def test_nothing_is_null_and_escapes_are_read(self, tmp_path: Path) -> None:
        for name in (f"city={NO_VALUE}", "city=S%C3%A3o%20Paulo"):
            (tmp_path / name).mkdir()
            table(1).write_parquet(tmp_path / name / "x.parquet")
        files = table_files(tmp_path)
        assert [file.keys["city"] for file in files] == ["São Paulo", None]
        found = files[1].with_keys(table(1), types_of_keys(files))
        assert found["city"].to_list() == [None]


def test_where_there_is_parquet_nothing_else_is_read(days: Path) -> None:
    (days / "notes.txt").write_text("x")
    assert len(table_files(days)) == 4
    for file in table_files(days):
        Path(file.path).unlink()
    assert [Path(file.path).name for file in table_files(days)] == ["notes.txt"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 64], ids=["empty", "zeros"])
def test_a_damaged_file_is_not_passed_over(days: Path, damage: bytes) -> None:
    good = next(days.rglob("*.parquet"))
    (good.parent / "z.parquet").write_bytes(damage)
    assert str(good.parent / "z.parquet") in {each.path for each in table_files(days)}
    with pytest.raises(DataError, match=r"z\.parquet"):
        read_files(days)
