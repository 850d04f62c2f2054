"""Item vectors of a bundle are mapped, so that the processes that serve it share them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from twotower.index.live_index import LiveIndex
from twotower.serving.loading import with_reserved_rows
from twotower.serving.retriever import Retriever
from twotower.serving.storage import load_item_vectors, save_item_vectors, save_tensors
from twotower.vocab import FIRST_ROW

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="maps are read from /proc")
VECTORS = torch.randn((5_000, 24), generator=torch.Generator().manual_seed(0))


def file_behind(tensor: torch.Tensor) -> str:
    """Return the path that the memory of a tensor is a mapping of; none or ``[heap]`` is its own memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5) + [""] * (6 - len(line.split(maxsplit=5)))
        start, end = (int(place, 16) for place in span.split("-"))
        if start <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end:
            return path.strip()
    return ""


@ON_LINUX
def test_an_opened_bundle_answers_from_the_mapped_file(tiny_bundle: Path) -> None:
    retriever = Retriever.open(tiny_bundle)
    file = str((tiny_bundle / "items.safetensors").resolve())
    assert retriever.recommend(5, k=10).item_ids
    assert file_behind(retriever.index.item_vectors) == file
    assert file_behind(retriever.contents.item_vectors) == file


@ON_LINUX
def test_items_that_are_put_in_leave_it_mapped(tiny_bundle: Path) -> None:
    retriever = Retriever.open(tiny_bundle)
    line = retriever.contents.items.frame.row(0, named=True)
    retriever.upsert_items([{**line, "item_id": 9001}])
    assert 9001 in retriever.recommend(5, k=201).item_ids
    index = retriever.index
    assert file_behind(index._index.item_vectors) == str(
        (tiny_bundle / "items.safetensors").resolve()
    )
    assert len(index._vectors._buffer) == len(index._index.item_vectors)  # no copy with the new row


@ON_LINUX
def test_what_a_test_of_mappings_sees_of_a_copy() -> None:
    assert file_behind(VECTORS) in ("", "[heap]")


def test_the_reserved_rows_lie_before_the_vectors(tmp_path: Path) -> None:
    save_item_vectors(tmp_path / "items.safetensors", VECTORS)
    found = load_item_vectors(tmp_path / "items.safetensors")
    assert torch.equal(found, VECTORS)
    rows = with_reserved_rows(found)
    assert rows.shape == (FIRST_ROW + len(VECTORS), 24)
    assert not rows[:FIRST_ROW].any()
    assert torch.equal(rows[FIRST_ROW:], VECTORS)
    assert rows[FIRST_ROW:].data_ptr() == found.data_ptr()


def test_earlier_releases_read_the_file(tmp_path: Path) -> None:
    """They took the tensor ``vectors`` and asked for nothing else."""
    save_item_vectors(tmp_path / "items.safetensors", VECTORS)
    assert torch.equal(load_file(tmp_path / "items.safetensors")["vectors"], VECTORS)


def test_a_file_of_earlier_releases_is_read(tmp_path: Path) -> None:
    save_tensors(tmp_path / "items.safetensors", {"vectors": VECTORS})
    found = load_item_vectors(tmp_path / "items.safetensors")
    assert torch.equal(found, VECTORS)
    rows = with_reserved_rows(found)
    assert not rows[:FIRST_ROW].any()
    assert torch.equal(rows[FIRST_ROW:], VECTORS)


def test_a_file_whose_reserved_rows_are_no_zeros_finds_the_same(tmp_path: Path) -> None:
    loud = {"reserved": torch.ones(FIRST_ROW, 24), "vectors": VECTORS}
    save_tensors(tmp_path / "items.safetensors", loud)
    rows = with_reserved_rows(load_item_vectors(tmp_path / "items.safetensors"))
    assert not rows[:FIRST_ROW].any()
    assert torch.equal(rows[FIRST_ROW:], VECTORS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_reserved_rows_are_left_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    other = {"reserved": torch.zeros(3, 24), "vectors": VECTORS.to(dtype)}
    save_tensors(tmp_path / "items.safetensors", other)
    assert torch.equal(load_item_vectors(tmp_path / "items.safetensors"), VECTORS.to(dtype))


@pytest.mark.parametrize("num_items", [0, 1, 63, 5_000])
def test_answers_are_those_of_a_copy_bit_for_bit(tmp_path: Path, num_items: int) -> None:
    vectors = VECTORS[:num_items].contiguous()
    save_item_vectors(tmp_path / "items.safetensors", vectors)
    mapped = with_reserved_rows(load_item_vectors(tmp_path / "items.safetensors"))
    copied = torch.cat([torch.zeros(FIRST_ROW, 24), vectors])
    queries = torch.randn((70, 24), generator=torch.Generator().manual_seed(1))
    for few in (queries[:1], queries[:3], queries):
        one, other = LiveIndex(mapped).search(few, 9), LiveIndex(copied).search(few, 9)
        np.testing.assert_array_equal(one.item_rows, other.item_rows)
        np.testing.assert_array_equal(one.scores, other.scores)
