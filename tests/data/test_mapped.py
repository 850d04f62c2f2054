"""A test of columns on disk: what is cut out of them is on disk, too, and leaves nothing there."""

from pathlib import Path

import numpy as np
import pytest

from twotower.data import mapped
from twotower.data.mapped import ColumnFile, blocks, in_order, is_mapped, where


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "BLOCK_VALUES", 7)


def column(folder: Path, num: int = 100) -> "np.memmap[tuple[int], np.dtype[np.int32]]":
    np.save(folder / "column.npy", np.arange(num, dtype=np.int32))
    return np.load(folder / "column.npy", mmap_mode="r")  # type: ignore[no-any-return]


@pytest.mark.parametrize("num", [0, 1, 7, 20])
def test_blocks_are_all_places(num: int) -> None:
    assert [place for own in blocks(num) for place in range(own.start, own.stop)] == list(
        range(num)
    )


def test_what_is_cut_out_is_mapped_and_its_file_has_no_name(tmp_path: Path) -> None:
    whole = column(tmp_path)
    mask = np.arange(100) % 3 == 1
    found = where(whole, mask, int(mask.sum()))
    assert is_mapped(found)
    assert found.dtype == np.int32
    assert found.tolist() == whole[mask].tolist()
    again = where(found, found % 2 == 0, int((found % 2 == 0).sum()))
    assert is_mapped(again)
    assert again.tolist() == [value for value in range(1, 100, 3) if value % 2 == 0]
    assert [path.name for path in tmp_path.iterdir()] == ["column.npy"]


def test_places_in_another_order_are_mapped_if_the_column_is(tmp_path: Path) -> None:
    whole = column(tmp_path)
    order = np.random.default_rng(0).permutation(100)[:50]
    found = in_order(whole, order)
    assert is_mapped(found)
    assert found.tolist() == order.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["column.npy"]
    assert not is_mapped(in_order(np.asarray(whole), order))


def test_a_folder_that_is_gone_is_none_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    whole = column(tmp_path / "inner")
    (tmp_path / "inner" / "column.npy").unlink()
    (tmp_path / "inner").rmdir()
    mask = np.ones(100, np.bool_)
    mask[0] = False
    assert where(whole, mask, 99).tolist() == list(range(1, 100))


class TestColumnFile:
    def test_is_what_numpy_saves(self, tmp_path: Path) -> None:
        values = np.linspace(0, 1, 10)
        with ColumnFile(tmp_path / "x.npy", np.float64, 10) as file:
            for own in blocks(10):
                file.append(values[own])
        np.save(tmp_path / "y.npy", values)
        assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()

    def test_counts_what_is_missing(self, tmp_path: Path) -> None:
        with (
            pytest.raises(AssertionError, match="1 values are missing"),
            ColumnFile(tmp_path / "x.npy", np.int32, 3) as file,
        ):
            file.append(np.zeros(2, np.int32))


def test_what_is_cut_out_of_memory_lies_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    found = where(np.arange(9), np.arange(9) > 6, 2)
    assert found.tolist() == [7, 8]
    assert isinstance(found, np.memmap)
    assert Path(str(found.filename)).parent == tmp_path / "tmp"
