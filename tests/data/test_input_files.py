"""A test of tables of many files: read by blocks, with the columns of the first."""

from pathlib import Path

import polars as pl
import pytest

from twotower.data import input_files
from twotower.data.input_files import blocks_of, check_columns, read_files, schema_of
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

    def test_wide_rows_are_read_in_small_blocks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(input_files, "BLOCK_BYTES", 1 << 16)
        frame = table(*range(100)).with_columns(text=pl.lit("x" * 5_000))
        frame.write_parquet(tmp_path / "x.parquet")
        sizes = [len(block) for _, block in blocks_of(TableFile(str(tmp_path / "x.parquet")), {})]
        assert sum(sizes) == 100
        assert 1 < max(sizes) < 20

    def test_a_prepared_folder_is_no_table(self, tmp_path: Path) -> None:
        for name in (input_files.MANIFEST, input_files.SCHEMA):
            (tmp_path / name).touch()
        with pytest.raises(DataError, match="items must be a table, got the prepared folder"):
            read_files(tmp_path, what="items")
        with pytest.raises(DataError, match="pass the files that it was made of"):
            read_files(tmp_path)

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
            {"c": [None], "b": [1.5], "a": [3.0]},
            schema={"c": pl.Int64(), "b": pl.Float32(), "a": pl.Float64()},
        )
        found = check_columns(other, first, "x")
        assert found.schema == first
        assert found.row(0) == (3, 1.5, None)

    def test_moments_may_have_another_unit(self) -> None:
        times = pl.Series("t", [1_700_000_000_000_000_000]).cast(pl.Datetime("ns"))
        first = pl.Schema({"t": pl.Datetime("us")})
        assert check_columns(times.to_frame(), first, "x").schema == first
        with pytest.raises(DataError, match="got Datetime"):
            check_columns(times.to_frame().select(pl.col("t").dt.offset_by("1ns")), first, "x")

    def test_the_first_value_gives_the_type_and_numbers_are_wide(self) -> None:
        nothing = pl.DataFrame(
            {"a": [None], "b": [1.0], "c": [1]}, schema_overrides={"b": pl.Float32}
        )
        some = pl.DataFrame({"a": [7], "b": [1.0], "c": [1]}, schema_overrides={"a": pl.Int8})
        expected = {"a": pl.Int64(), "b": pl.Float64(), "c": pl.Int64()}
        assert dict(schema_of([nothing, some])) == expected

    @pytest.mark.parametrize(
        ("frame", "said"),
        [
            (pl.DataFrame({"a": ["1"]}), "got String in 'a' instead of Int64"),
            (pl.DataFrame({"b": [1]}), "got no 'a' and also 'b'"),
            (pl.DataFrame({"a": [1.5]}), "got Float64 in 'a' instead of Int64"),
            (
                pl.DataFrame({"a": [2**63]}, schema={"a": pl.UInt64}),
                "got UInt64 in 'a' instead of Int64",
            ),
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
