"""What an export holds is what the retriever holds now, and a folder is whole or not there."""

import json
import sys
from pathlib import Path

import faiss
import numpy as np
import polars as pl
import pytest
import torch

from file_modes import umask, wrong_modes
from sandbox import NoDiskError, small_disk, tree_of
from twotower import Retriever, exports, train
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import ExportError, MissingExtraError
from twotower.exports.contents import free_name, items_of, queries_of

FILES = {
    "faiss": {"index.faiss", "items.parquet", "queries.parquet"},
    "parquet": {"items.parquet", "queries.parquet"},
    "npy": {
        "items.npy",
        "item_ids.json",
        "queries.npy",
        "query_ids.json",
        "seen_offsets.npy",
        "seen_items.npy",
    },
}


@pytest.mark.parametrize("target", FILES)
def test_a_target_has_its_files(target: str, tiny_retriever: Retriever, tmp_path: Path) -> None:
    exported = getattr(exports, f"export_{target}")(tiny_retriever, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES[target]
    assert exported == exports.Exported(str(tmp_path / "out"), 200, 300)


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("target", FILES)
def test_the_umask_says_who_can_read_it(
    target: str, tiny_retriever: Retriever, tmp_path: Path, mask: int
) -> None:
    with umask(mask):
        getattr(exports, f"export_{target}")(tiny_retriever, tmp_path / "out")
    assert not wrong_modes(tmp_path / "out", mask)


def test_items_are_those_of_now(changed_retriever: Retriever, tmp_path: Path) -> None:
    exports.export_parquet(changed_retriever, tmp_path / "out")
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    ids = changed_retriever.item_ids
    assert items["item_id"].to_list() == ids
    assert "new" in ids
    assert len(ids) in (299, 300)  # one item came; the best of two queries, one or two, went
    assert items.filter(item_id="item's 8")["title"].to_list() == ["another"]
    assert items.drop("vector").equals(changed_retriever.items(ids))
    np.testing.assert_array_equal(items["vector"].to_numpy(), changed_retriever.encode_items())


def test_queries_have_what_they_have_seen(changed_retriever: Retriever, tmp_path: Path) -> None:
    exports.export_parquet(changed_retriever, tmp_path / "out")
    queries = pl.read_parquet(tmp_path / "out" / "queries.parquet")
    here = {*changed_retriever.item_ids}
    gone = 0
    for query_id, seen in queries.select("query_id", "seen").rows():
        known = {*changed_retriever.history(query_id)}
        assert len(seen) == len({*seen})
        assert {*seen} == known & here
        gone += len(known - here)
    assert gone > 0
    positions = queries_of(changed_retriever, items_of(changed_retriever)).seen
    ids = np.array(changed_retriever.item_ids, object)[positions.item_rows]
    assert [list(part) for part in np.split(ids, positions.offsets[1:-1])] == queries[
        "seen"
    ].to_list()


def test_where_items_repeat_nothing_counts_as_seen(small_world: SyntheticTables) -> None:
    config = {"data": {"repeats": "yes"}, "training": {"epochs": 1}}
    retriever = train(small_world.interactions, config=config).retriever
    queries = queries_of(retriever, items_of(retriever))
    assert len(queries) == 80
    assert queries.frame(items_of(retriever))["seen"].list.len().to_list() == [0] * 80


def test_queries_of_which_nothing_is_known_are_left_out(
    small_world: SyntheticTables, tmp_path: Path
) -> None:
    config = {"towers": {"history": "mean", "query_id": "off"}, "training": {"epochs": 1}}
    trained = train(
        small_world.interactions, config=config, out=tmp_path / "model", histories=False
    )
    assert trained.path is not None
    exported = exports.export_parquet(Retriever.open(trained.path), tmp_path / "out")
    assert (exported.num_items, exported.num_queries) == (55, 0)
    queries = pl.read_parquet(tmp_path / "out" / "queries.parquet")
    assert queries.columns == ["query_id", "vector", "seen"]


def test_columns_that_are_called_as_ours_keep_their_names(
    small_world: SyntheticTables, tmp_path: Path
) -> None:
    items = small_world.items.select("item_id", vector="title", vector_2="category")
    events = small_world.interactions.rename({"query_id": "seen"})
    config = {
        "data": {"query_column": "seen"},
        "training": {"epochs": 1, "solver": "gradient"},
        "towers": {"dim": 8},
    }
    retriever = train(events, items=items, config=config).retriever
    exports.export_parquet(retriever, tmp_path / "out")
    written = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert written.columns == ["item_id", "vector", "vector_2", "vector_3"]
    assert written["vector_3"].dtype == pl.Array(pl.Float32, 8)
    queries = pl.read_parquet(tmp_path / "out" / "queries.parquet")
    assert queries.columns == ["seen", "vector", "seen_2"]
    assert free_name("a", ["a", "a_2"]) == "a_3"


def test_the_index_holds_the_vectors(tiny_retriever: Retriever, tmp_path: Path) -> None:
    exports.export_faiss(tiny_retriever, tmp_path / "out")
    index = faiss.read_index(str(tmp_path / "out" / "index.faiss"))
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    np.testing.assert_array_equal(index.reconstruct_n(0, 200), tiny_retriever.encode_items())


def test_arrays_say_no_more_than_numbers_and_ids(
    changed_retriever: Retriever, tmp_path: Path
) -> None:
    exports.export_npy(changed_retriever, tmp_path / "out")
    items = np.load(tmp_path / "out" / "items.npy", allow_pickle=False)
    assert items.dtype == np.float32
    ids = json.loads((tmp_path / "out" / "item_ids.json").read_text("utf-8"))
    assert ids == changed_retriever.item_ids


class TestRefusals:
    def test_an_empty_catalogue(self, tiny_bundle: Path, tmp_path: Path) -> None:
        retriever = Retriever.open(tiny_bundle)
        retriever.delete_items(retriever.item_ids)
        with pytest.raises(ExportError, match="must hold an item, got a catalogue without any"):
            exports.export_parquet(retriever, tmp_path / "out")
        assert tree_of(tmp_path) == {}

    def test_vectors_that_are_no_numbers(self, tiny_bundle: Path, tmp_path: Path) -> None:
        retriever = Retriever.open(tiny_bundle)
        retriever.index.item_vectors[5] = torch.nan
        told = (
            rf"must be finite, got others for 1 items, such as {retriever.item_ids[3]}; train again"
        )
        with pytest.raises(ExportError, match=told):
            exports.export_npy(retriever, tmp_path / "out")

    def test_a_folder_that_is_there_stays(self, tiny_retriever: Retriever, tmp_path: Path) -> None:
        (tmp_path / "thesis").write_text("years of work")
        (tmp_path / "empty").mkdir()
        before = tree_of(tmp_path)
        for name in ("thesis", "empty"):
            with pytest.raises(ExportError, match=f"out must be new, got .*{name}"):
                exports.export_npy(tiny_retriever, tmp_path / name)
        with pytest.raises(ExportError, match="out must be in a folder that exists"):
            exports.export_npy(tiny_retriever, tmp_path / "nowhere" / "out")
        assert tree_of(tmp_path) == before

    @pytest.mark.parametrize("target", ["faiss", "parquet", "npy", "pgvector"])
    def test_a_full_disk(self, target: str, tiny_retriever: Retriever, tmp_path: Path) -> None:
        try:
            with small_disk(tmp_path, 4_096):
                with pytest.raises(ExportError, match="could not be written: the disk is full"):
                    getattr(exports, f"export_{target}")(tiny_retriever, tmp_path / "disk" / "out")
                assert list((tmp_path / "disk").iterdir()) == []
        except NoDiskError as error:
            pytest.skip(str(error))

    def test_a_missing_extra_is_named(
        self, tiny_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(MissingExtraError, match=r"pip install .*\[ann\]'"):
            exports.export_faiss(tiny_retriever, tmp_path / "out")
