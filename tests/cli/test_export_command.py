"""``twotower export``: each target by its name, and one sentence where it cannot be.

``onnx`` takes seconds: ``exports/test_onnx_towers`` looks at what the command wrote, too.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from qdrant_client import QdrantClient

from sandbox import run_command, tree_of

REFUSED = [
    ("onnx model", "export onnx must be given --out, got none"),
    ("pgvector model", "export pgvector must be given --out or --dsn, got neither"),
    ("pgvector model --out o --dsn dbname=x", "must be given --out or --dsn, got both"),
    ("faiss model --dsn dbname=x", "--dsn must not be given for faiss; it takes --out"),
    ("npy model --out o --url http://x", "--url must not be given for npy; it takes --out"),
    ("faiss model --out o --table t", "--table is for pgvector, got it for faiss"),
    ("pgvector model --out o --collection t", "--collection is for qdrant, got it for pgvector"),
    ("parquet model --out model", "--out must be new, got 'model', which is there"),
    ("parquet model --out no/where", "--out must be in a folder that exists, got 'no/where'"),
    ("parquet nothing --out o", "'nothing' must be a bundle"),
    ("pgvector model --dsn postgres//me:hush@x", "--dsn must be how to connect"),
    ("pgvector model --dsn postgresql://me:hush@127.0.0.1:1/x", "the database cannot be reached"),
    ("qdrant model --url http://127.0.0.1:1", "--url must be of a Qdrant server that answers"),
]


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder with a bundle at ``model``."""
    (tmp_path / "model").symlink_to(tiny_bundle)
    return tmp_path


@pytest.mark.parametrize(("command", "told"), REFUSED)
def test_what_cannot_be_is_one_sentence(command: str, told: str, folder: Path) -> None:
    before = tree_of(folder)
    outcome = run_command(("export", *command.split()), folder)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert told in outcome.err
    assert "hush" not in outcome.err
    assert tree_of(folder) == before


def test_an_unknown_target(folder: Path) -> None:
    outcome = run_command(("export", "milvus", "model", "--out", "o"), folder)
    assert outcome.code == 2
    assert "'milvus' is not one of 'onnx'" in outcome.err


@pytest.mark.parametrize("target", ["faiss", "parquet", "npy", "pgvector"])
def test_a_target_by_its_name(target: str, folder: Path) -> None:
    outcome = run_command(("export", target, "model", "--out", "out"), folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "out: 200 items, 300 queries\n"
    assert any((folder / "out").iterdir())


def test_names_of_ones_own(folder: Path) -> None:
    run_command(("export", "pgvector", "model", "--out", "sql", "--table", "shop.films"), folder)
    assert 'CREATE TABLE "shop"."films_queries"' in (folder / "sql" / "load.sql").read_text("utf-8")
    run_command(("export", "qdrant", "model", "--out", "points", "--collection", "films"), folder)
    client = QdrantClient(path=str(folder / "points"))
    assert {c.name for c in client.get_collections().collections} == {"films", "films_queries"}
    client.close()


def test_a_database_is_loaded(folder: Path, postgres: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    outcome = run_command(
        ("export", "pgvector", "model", "--dsn", postgres, "--table", "cli"), folder
    )
    assert (outcome.code, outcome.err) == (0, "")
    first, second = outcome.out.splitlines()
    assert first == "table cli: 200 items, 300 queries"
    assert second == 'For an index, say: CREATE INDEX ON "cli" USING hnsw ("vector" vector_ip_ops);'
    with psycopg.connect(postgres) as connection:
        (found,) = connection.execute("SELECT item_id FROM cli ORDER BY item_id LIMIT 1").fetchone()
        connection.execute("DROP TABLE cli, cli_queries")
    again = run_command(("export", "parquet", "model", "--out", "out"), folder)
    assert again.code == 0
    assert pl.read_parquet(folder / "out" / "items.parquet")["item_id"].min() == found
    assert np.isfinite(
        pl.read_parquet(folder / "out" / "queries.parquet")["vector"].to_numpy()
    ).all()
