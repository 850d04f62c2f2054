"""Vectors of whole tables: they are those of the bundle, whatever the shards, the files and the formats."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_allclose

from sandbox import tree_of
from twotower import Retriever, train
from twotower.arrays import Float32s
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import DataError, ExportError
from twotower.exports import encode_table, job_folder
from twotower.training.trained import Trained


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of 40 rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_folder, "ROWS_OF_A_FILE", 40)
        yield


@pytest.fixture
def items(tiny_world: SyntheticTables, tmp_path: Path) -> Path:
    """The items' table as a file, with a column that the bundle does not know."""
    tiny_world.items.with_columns(stock=1).write_parquet(tmp_path / "items.parquet")
    return tmp_path / "items.parquet"


def written(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "*.parquet")


def vectors_of(frame: pl.DataFrame) -> Float32s:
    return np.asarray(frame["vector"].to_numpy(), np.float32)


@pytest.mark.usefixtures("small_files")
def test_items_of_the_catalogue_get_their_vectors(
    tiny_bundle: Path, tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    done = encode_table(tiny_bundle, tmp_path / "out", items=items)
    assert (done.num_items, done.num_queries, done.notes) == (200, 0, ())
    found = written(tmp_path / "out")
    assert found.columns == ["item_id", "vector"]
    assert found.schema["vector"] == pl.Array(pl.Float32, 16)
    assert found["item_id"].to_list() == pl.read_parquet(items)["item_id"].to_list()
    ids = found["item_id"].to_list()
    assert_allclose(vectors_of(found), tiny_retriever.encode_items(ids), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_files")
def test_queries_have_the_histories_of_the_bundle(
    tiny_bundle: Path, tiny_retriever: Retriever, tiny_world: SyntheticTables, tmp_path: Path
) -> None:
    queries = tiny_world.queries.with_columns(
        query_id=pl.Series([*range(1, 291), *range(9_001, 9_011)])
    )
    done = encode_table(tiny_bundle, tmp_path / "out", queries=queries)
    assert (done.num_items, done.num_queries, done.notes) == (0, 300, ())
    found = written(tmp_path / "out")
    assert found["query_id"].equals(queries["query_id"])
    known = tiny_retriever.encode_queries(list(range(1, 291)))
    assert_allclose(vectors_of(found)[:290], known, rtol=1e-5, atol=1e-6)
    new = tiny_retriever.encode_queries(features=queries[290:].drop("query_id"))
    assert_allclose(vectors_of(found)[290:], new, rtol=1e-5, atol=1e-6)
    assert not np.allclose(vectors_of(found)[0], known[1])
    alone = encode_table(tiny_bundle, tmp_path / "ids", queries=queries.select("query_id"))
    assert alone.notes == (
        "The table lacks 'segment', 'signal': values are as in the bundle, else missing.",
    )
    assert_allclose(vectors_of(written(tmp_path / "ids"))[:290], known, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("count", [1, 3])
def test_all_shards_together_hold_each_row_once(
    count: int, tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number in range(count, 0, -1):
        encode_table(tiny_retriever, out, items=items, shard=f"{number}/{count}")
    ids = pl.read_parquet(items)["item_id"].to_list()
    assert written(out)["item_id"].to_list() == ids
    about = json.loads((out / f"shard-1-of-{count}.json").read_text())
    assert about["rows"] == [0, 200 // count]
    assert about["files"] == len(list(out.glob("part-1-of-*.parquet"))) == -(-(200 // count) // 40)


def test_a_share_without_rows_has_no_file_but_is_done(
    tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    few = pl.read_parquet(items)[:1]
    done = [
        encode_table(tiny_retriever, tmp_path / "out", items=few, shard=f"{n}/2") for n in (1, 2)
    ]
    assert [each.num_items for each in done] == [0, 1]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["part-2-of-2-00000.parquet", "shard-1-of-2.json", "shard-2-of-2.json"]


def test_shards_do_not_depend_on_how_the_table_is_cut(
    tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    frame = pl.read_parquet(items)
    (tmp_path / "cut").mkdir()
    for number, start in enumerate((0, 30, 150)):
        part = frame[start : [30, 150, 200][number]]
        part.write_parquet(tmp_path / "cut" / f"{number}.parquet")
    whole, cut = (tmp_path / name for name in ("of-one-file", "of-three"))
    for table, out in ((items, whole), (tmp_path / "cut", cut)):
        encode_table(tiny_retriever, out, items=table, shard="2/3")
    assert written(whole).equals(written(cut))


def test_half_precision(
    tiny_bundle: Path, tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    for dtype in ("float32", "float16"):
        encode_table(tiny_retriever, tmp_path / dtype, items=items, dtype=dtype)
    half = written(tmp_path / "float16")
    assert half.schema["vector"] == pl.Array(pl.Float16, 16)
    wanted = vectors_of(written(tmp_path / "float32"))
    assert_allclose(vectors_of(half), wanted, rtol=1e-3, atol=1e-3)
    assert np.array_equal(vectors_of(half), wanted.astype(np.float16).astype(np.float32))


@pytest.mark.usefixtures("small_files")
def test_the_same_call_goes_on_where_it_was_interrupted(
    tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_table(tiny_retriever, out, items=items)
    whole = tree_of(out)
    (out / "part-1-of-1-00001.parquet").unlink()
    (out / "part-1-of-1-00003.parquet").unlink()
    kept = (out / "part-1-of-1-00000.parquet").stat().st_mtime_ns
    done = encode_table(tiny_retriever, out, items=items)
    assert done.notes == ("Files that were there already: 3.",)
    assert tree_of(out) == whole
    assert (out / "part-1-of-1-00000.parquet").stat().st_mtime_ns == kept


@pytest.mark.usefixtures("small_files")
def test_a_folder_holds_one_job(
    tiny_bundle: Path, tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_table(tiny_retriever, out, items=items, shard="1/2")
    tiny_retriever.save(tmp_path / "again")
    changed = pl.read_parquet(items)[:199]
    before = tree_of(out)
    cases: list[tuple[str, Path, Path | pl.DataFrame, dict[str, Any]]] = [
        ("the bundle", tmp_path / "again", items, {"shard": "1/2"}),
        ("the bundle", tmp_path / "again", items, {"shard": "2/2"}),  # of another shard, too
        ("the table", tiny_bundle, changed, {"shard": "1/2"}),
        ("the type of the vectors", tiny_bundle, items, {"shard": "1/2", "dtype": "float16"}),
        ("the number of shards", tiny_bundle, items, {"shard": "1/3"}),
        (
            "the type of the vectors and the number of shards",
            tiny_bundle,
            items,
            {"dtype": "float16"},
        ),
    ]
    for said, bundle, table, more in cases:
        with pytest.raises(ExportError) as caught:
            encode_table(bundle, out, items=table, **more)
        assert str(caught.value) == (
            f"out must hold files of the same job, got {str(out)!r}, where 'shard-1-of-2.json' differs "
            f"in {said}; choose another folder, or delete this one."
        )
        assert tree_of(out) == before
    (out / "shard-1-of-2.json").write_text("[]")
    with pytest.raises(ExportError, match=r"'shard-1-of-2\.json' differs in its form"):
        encode_table(tiny_bundle, out, items=items, shard="1/2")


@pytest.mark.usefixtures("small_files")
def test_files_that_are_not_as_they_were_written_are_told(
    tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode_table(tiny_retriever, out, items=items)
    first = out / "part-1-of-1-00000.parquet"
    pl.read_parquet(first)[:7].write_parquet(first)
    with pytest.raises(
        ExportError, match=r"must hold the 40 rows of an earlier run, got 7; delete it"
    ):
        encode_table(tiny_retriever, out, items=items)
    first.write_bytes(b"PAR1")
    with pytest.raises(ExportError, match=r"of an earlier run, got a damaged file; delete it"):
        encode_table(tiny_retriever, out, items=items)
    (out / "shard-1-of-1.json").unlink()
    with pytest.raises(
        ExportError, match=r"out must hold 'shard-1-of-1\.json' beside 'part-1-of-1-"
    ):
        encode_table(tiny_retriever, out, items=items)


@pytest.mark.usefixtures("small_files")
def test_a_missing_id_names_its_row(tiny_retriever: Retriever, items: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(items).with_columns(
        item_id=pl.when(pl.col("item_id") != 151).then("item_id")
    )
    row = frame["item_id"].to_list().index(None)
    with pytest.raises(
        DataError, match=rf"must have an id in every row, got none in row {row + 1} "
    ):
        encode_table(tiny_retriever, tmp_path / "out", items=frame)


def test_items_of_which_nothing_is_known_are_counted(
    tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    new = pl.DataFrame({"item_id": [9_001, 9_002, 1]})
    done = encode_table(tiny_retriever, tmp_path / "out", items=new)
    lacks, empty = done.notes
    assert lacks == "The table lacks 'title', 'category', 'signal', 'tags': values are missing."
    assert empty.startswith(
        "2 of the encoded items have no feature that the bundle knows: each has"
    )


def test_what_cannot_be_is_told(
    tiny_trained: Trained, tiny_retriever: Retriever, items: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], said: str, *given: object, **more: object) -> None:
        with pytest.raises(error, match=said):
            encode_table(*given, **more)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()

    out = tmp_path / "out"
    refused(ValueError, "must be given items or queries, got neither", tiny_retriever, out)
    both = {"items": items, "queries": items}
    refused(ValueError, "must be given items or queries, got both", tiny_retriever, out, **both)
    refused(ValueError, "at must go with queries", tiny_retriever, out, items=items, at=7)
    refused(ValueError, "dtype must be float32 or", tiny_retriever, out, items=items, dtype="int8")
    wrong = pl.DataFrame({"film": [1]})
    refused(
        DataError, "must have the id column 'item_id', got film", tiny_retriever, out, items=wrong
    )
    refused(ExportError, "out must be a folder, got the file", tiny_retriever, items, items=items)
    inside = tmp_path / "vectors"
    said = "out must be outside the table's folder"
    refused(ExportError, said, tiny_retriever, inside, items=tmp_path)
    in_memory = Retriever(tiny_retriever.contents)
    refused(ExportError, "the bundle must be on disk as it is", in_memory, out, items=items)
    assert tiny_trained.path is not None
    live = Retriever.open(tiny_trained.path)
    live.upsert_items([{"item_id": 1, "title": "New"}])
    refused(ExportError, "the bundle must be on disk as it is", live, out, items=items)


def test_a_vector_that_no_half_can_hold_is_told(
    tiny_bundle: Path, items: Path, tmp_path: Path
) -> None:
    retriever = Retriever.open(tiny_bundle)
    for weights in retriever.encoding.model.item_tower.parameters():
        weights.data *= 1e6
    encode_table(retriever, tmp_path / "float32", items=items)
    with pytest.raises(ExportError, match="vectors must be finite in float16, got others for"):
        encode_table(retriever, tmp_path / "float16", items=items, dtype="float16")


def test_a_model_of_the_questions_time_is_asked_at_one(
    small_world: SyntheticTables, tmp_path: Path
) -> None:
    config = {
        "training": {"epochs": 1, "solver": "gradient"},
        "towers": {
            "dim": 8,
            "history": "pooled",
            "query_id": "off",
            "question_time": "on",
            "similarity": "dot",
        },
    }
    train(small_world.interactions, out=tmp_path / "model", config=config, baselines=[])
    retriever = Retriever.open(tmp_path / "model")
    ids = retriever.query_ids
    queries = pl.DataFrame({retriever.contents.queries.id_column: ids})
    with pytest.raises(ValueError, match="at must be given, because the model reads the time"):
        encode_table(retriever, tmp_path / "out", queries=queries)
    last: int = small_world.interactions["timestamp"].max()  # type: ignore[assignment]
    moment = datetime.fromtimestamp(last + 3_600, UTC)
    encode_table(retriever, tmp_path / "out", queries=queries, at=moment)
    wanted = retriever.encode_queries(ids, at=moment)
    assert not np.allclose(wanted, retriever.encode_queries(ids), rtol=1e-3)
    assert_allclose(vectors_of(written(tmp_path / "out")), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ExportError, match="differs in the time of the question"):
        encode_table(retriever, tmp_path / "out", queries=queries, at=moment.timestamp() + 1)
