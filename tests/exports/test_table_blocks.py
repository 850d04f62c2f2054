"""Tables read by blocks: the same rows however the files are cut."""

import os
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.errors import DataError
from twotower.exports.table_blocks import Blocks, blocks_of, is_read_by_blocks

FRAME = pl.DataFrame({"item_id": range(50), "name": [f"item {n}" for n in range(50)]})


def write_files(folder: Path, cuts: list[int], frame: pl.DataFrame = FRAME) -> Path:
    """Write a frame as files that end at the cuts, of which some may be empty."""
    folder.mkdir()
    ends = [*sorted(cuts), len(frame)]
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        frame[start:end].write_parquet(folder / f"{number:03}.parquet", row_group_size=7)
    return folder


def rows_of(blocks: Blocks, length: int) -> pl.DataFrame:
    """Return all rows, read by blocks of some length."""
    starts = range(0, blocks.num_rows, length)
    every = range(blocks.num_rows)
    return pl.concat([blocks.read(every[s : s + length], blocks.columns) for s in starts])


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(1, 60))
def test_no_cut_of_the_files_changes_the_rows(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], length: int
) -> None:
    folder = write_files(tmp_path_factory.mktemp("cut") / "items", cuts)
    for table in (folder, str(folder / "*.parquet"), FRAME, FRAME.lazy()):
        blocks = blocks_of(table, "items")
        assert (blocks.columns, blocks.num_rows) == (["item_id", "name"], 50)
        assert rows_of(blocks, length).equals(FRAME)


def test_columns_in_the_names_of_folders(tmp_path: Path) -> None:
    for country, rows in (("1", [0, 1]), ("x", [2, 3])):
        folder = tmp_path / "items" / f"country={country}"
        folder.mkdir(parents=True)
        FRAME[rows].write_parquet(folder / "part.parquet")
    for table in (tmp_path / "items", tmp_path / "items" / "*" / "*.parquet"):
        blocks = blocks_of(table, "items")
        # One value alone would be an integer.
        assert blocks.read(range(1), ["country", "item_id"]).rows() == [("1", 0)]
        assert blocks.read(range(1, 4), ["country"])["country"].to_list() == ["1", "x", "x"]


def test_what_jobs_leave_beside_their_files_is_no_part_of_the_table(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "items", [20])
    (folder / "_SUCCESS").touch()
    (folder / "notes.txt").write_text("x")
    write_files(folder / "_temporary", [])
    write_files(folder / ".hidden", [])
    FRAME.write_parquet(folder / "_metadata.parquet")
    assert blocks_of(folder, "items").num_rows == 50


def test_a_later_file_may_have_more_columns_but_none_less(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "items", [])
    FRAME.with_columns(price=1.5).write_parquet(folder / "100.parquet")
    assert blocks_of(folder, "items").read(range(100), ["item_id"]).height == 100
    FRAME.drop("name").write_parquet(folder / "200.parquet")
    blocks = blocks_of(folder, "items")
    with pytest.raises(DataError, match="items must be whole Parquet files with the same columns"):
        blocks.read(range(120), ["name"])


def test_a_table_that_changed_has_another_digest(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "items", [20])
    before = blocks_of(folder, "items").digest()
    assert blocks_of(folder / "*.parquet", "items").digest() == before
    FRAME[:1].write_parquet(folder / "new.parquet")
    assert blocks_of(folder, "items").digest() != before
    (folder / "new.parquet").unlink()
    assert blocks_of(folder, "items").digest() == before
    os.utime(folder / "000.parquet", (1, 1))
    assert blocks_of(folder, "items").digest() != before
    of_frame = blocks_of(FRAME, "items").digest()
    assert blocks_of(FRAME.clone(), "items").digest() == of_frame
    assert blocks_of(FRAME.with_columns(pl.col("item_id") + 1), "items").digest() != of_frame


def test_a_table_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "items.csv").write_text("item_id\n1\n")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    write_files(tmp_path / "none", [], FRAME.clear())
    for table, said in [
        (tmp_path / "empty", "items '.*empty' must hold files, got none"),
        (tmp_path / "nothing", "items must be whole Parquet files .* got 'no such file"),
        (tmp_path / "*.arrow", r"items '.*\*\.arrow' must hold files, got none"),
        (tmp_path / "items.csv", "items must be Parquet, got another format in .*items.csv'"),
        (tmp_path / "cut.parquet", "items must be whole Parquet files"),
        (tmp_path / "none", "items must hold rows, got a table without any"),
        (FRAME.clear(), "items must hold rows, got a table without any"),
        (pl.DataFrame({"a": [object()]}), "items must have one type in each column, got .* 'a'"),
        (7, "items must be a path or a frame of polars, pandas or pyarrow, got int"),
    ]:
        with pytest.raises(DataError, match=f"^{said}"):
            blocks_of(table, "items")


def test_a_table_that_changes_while_it_is_read_is_told(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "items", [])
    blocks = blocks_of(folder, "items")
    FRAME[:30].write_parquet(folder / "000.parquet")
    with pytest.raises(DataError, match="items must not change while it is read"):
        blocks.read(range(50), ["item_id"])


def test_other_formats_are_for_read_table(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id\n1\n")
    folder = write_files(tmp_path / "items", [])
    assert is_read_by_blocks(folder)
    assert is_read_by_blocks(folder / "*.parquet")
    assert is_read_by_blocks((folder / "000.parquet").rename(tmp_path / "of-another-ending.csv"))
    assert not is_read_by_blocks(tmp_path / "items.csv")
    assert not is_read_by_blocks(tmp_path / "nothing")
