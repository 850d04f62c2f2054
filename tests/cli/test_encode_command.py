"""``twotower encode`` and ``recommend --all --shard``: shares, a kill in the middle, bad input."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from sandbox import run_command, tree_of
from twotower import Retriever
from twotower.data.sources.synthetic import SyntheticTables
from twotower.exports import job_folder

ROWS = 40
KILLED_BEFORE_ITS_THIRD_FILE = f"""
import os, signal, sys
from twotower.cli import main
from twotower.exports import job_folder

def kill(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("-00002.parquet"):
        os.kill(os.getpid(), signal.SIGKILL)

job_folder.ROWS_OF_A_FILE = {ROWS}
sys.addaudithook(kill)
sys.argv[0] = "twotower"
main()
"""
REFUSED = [
    ("model", "encode must be given --items or --queries, got neither"),
    ("model --items i.parquet --queries i.parquet", "--items or --queries, got both"),
    ("model --items i.parquet --shard 0/3", "--shard must be I/N with I in 1..N, such as 3/16, got '0/3'"),
    ("model --items i.parquet --shard 4/3", "got '4/3'; number the shards from 1"),
    ("model --items i.parquet --shard x", "got 'x'; number the shards from 1"),
    ("model --items i.parquet --dtype int8", "--dtype must be float32 or float16, got 'int8'"),
    ("model --items i.parquet --at 7", "--at must go with queries, got it for items"),
    ("model --queries i.parquet --at noon", "--at must be seconds since 1970"),
    ("model --queries i.parquet", "queries must have the id column 'query_id', got item_id, title"),
    ("model --items nothing.parquet", "items 'nothing.parquet' must be a file, got none of that name"),
    ("model --items empty", "items 'empty' must hold files, got none; check the path"),
    ("model --items *.arrow", "items '*.arrow' must hold files, got none; check the path"),
    ("model --items null.csv", "items must have an id in every row, got none in row 2 of the table"),
    ("model --items cut.parquet", "items must be whole Parquet files with the same columns"),
    ("nothing --items i.parquet", "'nothing' must be a bundle"),
    ("model --items i.parquet --out i.parquet", "--out must be a folder, got the file 'i.parquet'"),
    ("model --items i.parquet --out no/where", "--out must be in a folder that exists, got 'no/where'"),
    ("model --items empty --out empty/o", "--out must be outside the table's folder"),
]  # fmt: skip


@pytest.fixture
def folder(tiny_bundle: Path, tiny_world: SyntheticTables, tmp_path: Path) -> Path:
    """A folder with a bundle at ``model`` and tables."""
    (tmp_path / "model").symlink_to(tiny_bundle)
    tiny_world.items.write_parquet(tmp_path / "i.parquet")
    tiny_world.queries.write_csv(tmp_path / "q.csv")
    (tmp_path / "null.csv").write_text("item_id,title\n1,one\n,none\n")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "i.parquet").read_bytes()[:99])
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of 40 rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_folder, "ROWS_OF_A_FILE", ROWS)
        yield


@pytest.mark.parametrize(("command", "told"), REFUSED)
def test_what_cannot_be_is_one_sentence(command: str, told: str, folder: Path) -> None:
    before = tree_of(folder)
    out = () if "--out" in command else ("--out", "o")
    outcome = run_command(("encode", *command.split(), *out), folder)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert told in outcome.err
    assert tree_of(folder) == before


def test_shards_of_a_table_of_text(folder: Path, tiny_retriever: Retriever) -> None:
    for number in (2, 1):
        command = ("encode", "model", "--queries", "q.csv", "--out", "o", "--shard", f"{number}/2")
        outcome = run_command(command, folder)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out == "o: 150 queries\n"
    found = pl.read_parquet(folder / "o" / "*.parquet")
    assert found["query_id"].to_list() == list(range(1, 301))
    wanted = tiny_retriever.encode_queries(list(range(1, 301)))
    assert found["vector"].to_numpy() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("small_files")
def test_a_process_that_was_killed_is_gone_on_with(folder: Path) -> None:
    command = ("encode", "model", "--items", "i.parquet", "--out", "o", "--shard", "1/1")
    undisturbed = (*command[:-4], "--out", "whole", *command[-2:])
    assert run_command(undisturbed, folder).code == 0
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_ITS_THIRD_FILE, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    left = tree_of(folder / "o")
    whole = tree_of(folder / "whole")
    files = {name for name in left if not name.startswith(".")}
    assert files == {"shard-1-of-1.json", *(f"part-1-of-1-0000{n}.parquet" for n in (0, 1))}
    assert any(name.startswith(".part-1-of-1-00002.parquet.writing-") for name in left)
    assert {name: left[name] for name in files} == {name: whole[name] for name in files}
    outcome = run_command(command, folder)
    assert outcome.out == "o: 200 items\nFiles that were there already: 2.\n"
    assert tree_of(folder / "o") == whole
    assert len(whole) == 6


def test_a_folder_that_cannot_be_written_is_told(folder: Path) -> None:
    (folder / "o").mkdir()
    (folder / "o" / "shard-1-of-1.json").mkdir()
    outcome = run_command(("encode", "model", "--items", "i.parquet", "--out", "o"), folder)
    assert outcome.code == 2
    assert outcome.err.startswith(
        "twotower: --out must be a readable and writable folder, got 'is a directory' for 'o'"
    )


def test_the_answers_of_all_shards_are_those_to_all_queries(folder: Path) -> None:
    command = ("recommend", "model", "--all", "-k", "3")
    for file, *shard in [
        ("whole.parquet",),
        *((f"share-{n}.parquet", "--shard", f"{n}/4") for n in (1, 2, 3, 4)),
    ]:
        outcome = run_command((*command, "--out", file, *shard), folder)
        assert (outcome.code, outcome.err) == (0, "")
    shares = pl.read_parquet(folder / "share-*.parquet")
    whole = pl.read_parquet(folder / "whole.parquet")
    assert shares.drop("score").equals(whole.drop("score"))
    assert shares["score"].to_numpy() == pytest.approx(whole["score"].to_numpy(), rel=1e-4)
    assert pl.read_parquet(folder / "share-2.parquet")["query_id"].unique().len() == 75


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("--all --out a.csv --shard 5/4", "--shard must be I/N with I in 1..N, such as 3/16, got '5/4'"),
        ("--query 1 --shard 1/4", "--shard must go with --all, got '1/4' alone"),
    ],
)  # fmt: skip
def test_a_share_of_answers_that_is_none(command: str, told: str, folder: Path) -> None:
    outcome = run_command(("recommend", "model", *command.split()), folder)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert told in outcome.err
    assert not (folder / "a.csv").exists()
