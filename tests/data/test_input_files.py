"""A test of tables of many files: read by blocks, with the columns of the first."""

from pathlib import Path

import polars as pl
import pytest

from twotower.data import input_files
from twotower.data.input_files import blocks_of, check_columns, read_files
from twotower.errors import DataError
from twotower.table_files import TableFile


def table(*ids: int) -> pl.DataFrame:
    return pl.DataFrame({"user_id": ids, "item_id": [f"i{each}" for each in ids]})


class TestBlocks:
    def test_together_they_are_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(input_files, "BLOCK_CELLS", 12)
        path = tmp_path / "x.parquet"
        table(*range(10)).write_parquet(path, row_group_size=4)
        blocks = list(blocks_of(TableFile(str(path)), {}))
        assert [start for start, _ in blocks] == [0, 3, 6, 9]
        assert pl.concat(frame for _, frame in blocks).equals(table(*range(10)))
        late = list(blocks_of(TableFile(str(path)), {}, start=2))
        assert [start for start, _ in late] == [6, 9]

    def test_text_is_read_in_blocks_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(input_files, "BLOCK_CELLS", 12)
        (tmp_path / "x.csv").write_text("user_id,item_id\n1,a\n2,b\n3,c\n4,d\n")
        blocks = list(blocks_of(TableFile(str(tmp_path / "x.csv")), {}))
        assert [len(frame) for _, frame in blocks] == [3, 1]

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        table(*range(1000)).write_parquet(path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"x\.parquet.*a damaged or cut-off file"):
            list(blocks_of(TableFile(str(path)), {}))


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


def test_many_files_are_read_as_one(tmp_path: Path) -> None:
    for place, day in enumerate(("2026-11-29", "2026-11-30")):
        (tmp_path / f"day={day}").mkdir()
        table(10 * place, 10 * place + 1).write_parquet(tmp_path / f"day={day}" / "x.parquet")
    frame = read_files(tmp_path)
    assert frame["user_id"].to_list() == [0, 1, 10, 11]
    assert frame.schema["day"] == pl.Date
    assert read_files(str(tmp_path / "**" / "*.parquet")).equals(frame)
