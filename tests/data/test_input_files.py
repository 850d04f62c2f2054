"""A test of tables of many files: which files a path names, and how their columns agree."""

from pathlib import Path

import polars as pl
import pytest

from twotower.data import input_files
from twotower.data.input_files import (
    InputFile,
    address_of,
    check_columns,
    read_files,
    types_of_keys,
)
from twotower.data.input_files import (
    input_files as files_of,
)
from twotower.errors import DataError


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
        found = [Path(file.path).relative_to(days).as_posix() for file in files_of(days)]
        assert found == [
            "day=2026-11-29/part-0.parquet",
            "day=2026-11-29/part-1.parquet",
            "day=2026-11-30/part-0.parquet",
            "day=2026-11-30/part-1.parquet",
        ]

    def test_names_of_folders_below_the_given_one_are_columns(self, days: Path) -> None:
        assert files_of(days)[0].keys == {"day": "2026-11-29"}
        assert files_of(days / "day=2026-11-29")[0].keys == {}

    @pytest.mark.parametrize("pattern", ["day=*/part-0.parquet", "**/part-0.parquet"])
    def test_a_pattern_names_files(self, days: Path, pattern: str) -> None:
        found = files_of(days / pattern)
        assert len(found) == 2
        assert found[1].keys == {"day": "2026-11-30"}

    def test_a_file_is_itself(self, days: Path) -> None:
        one = days / "day=2026-11-29" / "part-0.parquet"
        assert files_of(one) == (InputFile(str(one)),)

    @pytest.mark.parametrize("name", ["", "*.parquet"])
    def test_no_file_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match="must hold files, got none"):
            files_of(tmp_path / name)

    @pytest.mark.parametrize("given", ["s3://bucket/events/*.parquet", "s3:/bucket/events"])
    def test_an_address_stays_one_as_a_path(self, given: str) -> None:
        assert input_files.is_of_many(Path(given))
        assert address_of(Path(given)).startswith("s3://bucket/events")


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
        files = [InputFile(f"{place}", {"key": value}) for place, value in enumerate(values)]
        assert types_of_keys(files) == {"key": dtype}

    def test_all_files_have_the_same(self) -> None:
        with pytest.raises(DataError, match="got day for 'a' and none for 'b'"):
            types_of_keys([InputFile("a", {"day": "1"}), InputFile("b")])

    def test_nothing_is_null_and_escapes_are_read(self, tmp_path: Path) -> None:
        for name in (f"city={input_files.NO_VALUE}", "city=S%C3%A3o%20Paulo"):
            (tmp_path / name).mkdir()
            table(1).write_parquet(tmp_path / name / "x.parquet")
        assert read_files(tmp_path)["city"].to_list() == ["São Paulo", None]


class TestBlocks:
    def test_together_they_are_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(input_files, "BLOCK_CELLS", 12)
        path = tmp_path / "x.parquet"
        table(*range(10)).write_parquet(path, row_group_size=4)
        blocks = list(InputFile(str(path)).blocks({}))
        assert [start for start, _ in blocks] == [0, 3, 6, 9]
        assert pl.concat(frame for _, frame in blocks).equals(table(*range(10)))
        late = list(InputFile(str(path)).blocks({}, start=2))
        assert [start for start, _ in late] == [6, 9]

    def test_text_is_read_in_blocks_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(input_files, "BLOCK_CELLS", 12)
        (tmp_path / "x.csv").write_text("user_id,item_id\n1,a\n2,b\n3,c\n4,d\n")
        blocks = list(InputFile(str(tmp_path / "x.csv")).blocks({}))
        assert [len(frame) for _, frame in blocks] == [3, 1]

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        table(*range(1000)).write_parquet(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"x\.parquet.*a damaged or cut-off file"):
            list(InputFile(str(path)).blocks({}))


class TestColumns:
    def test_widths_of_numbers_and_order_may_differ(self) -> None:
        first = pl.Schema({"a": pl.Int64(), "b": pl.Float64(), "c": pl.String()})
        other = pl.DataFrame(
            {"c": [None], "b": [1.5], "a": [3]},
            schema={"c": pl.Null(), "b": pl.Float32(), "a": pl.Int16()},
        )
        found = check_columns(other, first, "x")
        assert found.schema == first
        assert found.row(0) == (3, 1.5, None)

    @pytest.mark.parametrize(
        ("frame", "said"),
        [
            (pl.DataFrame({"a": ["1"]}), "got String in 'a' instead of Int64"),
            (pl.DataFrame({"b": [1]}), "got no 'a' and also 'b'"),
            (pl.DataFrame({"a": [1.0]}), "got Float64 in 'a' instead of Int64"),
        ],
    )
    def test_others_are_refused(self, frame: pl.DataFrame, said: str) -> None:
        with pytest.raises(DataError, match=f"'x' must have .*{said}"):
            check_columns(frame, pl.Schema({"a": pl.Int64()}), "x")


def test_many_files_are_read_as_one(days: Path) -> None:
    frame = read_files(days)
    assert frame["user_id"].to_list() == [0, 1, 10, 11]
    assert frame.schema["day"] == pl.Date
    assert read_files(str(days / "**" / "*.parquet")).equals(frame)
