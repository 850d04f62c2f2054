"""The readers of docs/exports.md, as they stand there, answer as the retriever does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from twotower import Retriever, exports
from twotower.exports.onnx_inputs import TowerInputs

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
FENCE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
READERS = {
    "faiss": "import faiss",
    "pgvector": "import psycopg",
    "qdrant": "from qdrant_client",
    "parquet": "import numpy as np\nimport polars",
    "npy": "import json\nfrom pathlib import Path\n\nimport numpy as np\n\n",
    "onnx": "import json\nfrom pathlib import Path\n\nimport numpy as np\nfrom onnxruntime",
}


def reader_of(target: str, document: str = "exports.md") -> str:
    fences = FENCE.findall((DOCS / document).read_text("utf-8"))
    (code,) = [fence for fence in fences if fence.startswith(READERS[target])]
    return str(code)


def test_they_are_short_and_the_same_in_both_languages() -> None:
    for target in READERS:
        assert reader_of(target) == reader_of(target, "exports.zh-CN.md")
        lines = [line for line in reader_of(target).splitlines() if line and "import" not in line]
        assert len(lines) <= 10, target


def differing(
    retriever: Retriever, top_10: Callable[[Any], list[Any]], num: int = 1_000
) -> tuple[int, float]:
    """Return in how many places of ``num`` answers another item stands, and by how much its score differs.

    Both items' scores are computed anew, in float64; a difference of rounding is no difference.
    """
    ids = retriever.contents.queries.ids.ids.to_list()[:num]
    assert len(ids) == num
    vectors = retriever.encode_queries(ids).astype(np.float64)
    answers = retriever.recommend(ids)
    places, largest = 0, 0.0
    for vector, answer in zip(vectors, answers, strict=True):
        assert answer.basis == "model"
        found = top_10(answer.query_id)
        assert len(set(found)) == 10
        if found == answer.item_ids:
            continue
        wanted, got = (retriever.encode_items(i) @ vector for i in (answer.item_ids, found))
        places += sum(a != b for a, b in zip(found, answer.item_ids, strict=True))
        largest = max(largest, float(np.abs(wanted - got).max()))
    return places, largest


def read_by(
    target: str, retriever: Retriever, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Export to a target, and return what its reader has when it was run in that folder."""
    getattr(exports, f"export_{target}")(retriever, folder / "out")
    monkeypatch.chdir(folder / "out")
    names: dict[str, Any] = {}
    exec(reader_of(target), names)
    return names


def test_a_history_knows_each_item_once_as_it_is_now(changed_retriever: Retriever) -> None:
    ids = TowerInputs(changed_retriever).history_ids()
    assert (
        len(ids) == len({*ids}) == 301
    )  # 300, of which two are no answers any more, and a new one
    told = exports.query_inputs(changed_retriever, history=["item's 8", "new", "unheard of"])
    rows = told["history.item_rows"][0] - 2
    assert [ids[row] for row in rows] == ["item's 8", "new"]


@pytest.mark.parametrize("target", ["faiss", "parquet", "npy", "onnx"])
def test_a_reader_gives_the_same_ten_items(
    target: str,
    changed_retriever: Retriever,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operators_parsed_once: None,
) -> None:
    names = read_by(target, changed_retriever, tmp_path, monkeypatch)
    places, largest = differing(changed_retriever, names["top_10"])
    assert places <= 20  # near ties
    assert largest < 1e-5


def test_qdrant_gives_the_same_ten_items(
    tiny_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = read_by("qdrant", tiny_retriever, tmp_path, monkeypatch)
    # Without a server it looks through all queries for each.
    places, largest = differing(tiny_retriever, names["top_10"], 100)
    names["client"].close()
    assert places <= 2  # near ties
    assert largest < 1e-5


def test_postgresql_gives_the_same_ten_items(
    changed_retriever: Retriever, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports.load_pgvector(changed_retriever, postgres)
    given = psycopg.conninfo.conninfo_to_dict(postgres)
    for name, variable in (("host", "PGHOST"), ("user", "PGUSER"), ("dbname", "PGDATABASE")):
        monkeypatch.setenv(variable, str(given[name]))
    names: dict[str, Any] = {}
    exec(reader_of("pgvector"), names)
    try:
        places, largest = differing(changed_retriever, names["top_10"])
    finally:
        names["connection"].close()
        with psycopg.connect(postgres) as connection:
            connection.execute("DROP TABLE items, items_queries")
    assert places <= 20  # near ties
    assert largest < 1e-5
