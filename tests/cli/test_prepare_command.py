"""A test of ``twotower prepare``: the commands of its page in small, and what it refuses."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sandbox import run_command, tree_of

PAGE = Path(__file__).parents[2] / "docs" / "large-data.md"
SMALL = (
    "--set",
    "training.epochs=1",
    "--set",
    "training.solver=gradient",
    "--set",
    "towers.history=pooled",
    "--set",
    "towers.question_time=off",
    "--set",
    "towers.dim=8",
)
"""The page trains with the defaults, which takes too long for a test."""


def write_day(folder: Path, day: int, num: int = 150) -> None:
    rng = np.random.default_rng(day)
    at = folder / f"day=2026-{11 + day // 31}-{1 + day % 30:02}"
    at.mkdir(parents=True)
    pl.DataFrame(
        {
            "user_id": rng.integers(0, 60, num),
            "item_id": rng.integers(0, 40, num),
            "timestamp": 1_700_000_000 + day * 86_400 + rng.integers(0, 86_400, num),
        }
    ).write_parquet(at / "part-0.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day in (27, 28, 29):
        write_day(tmp_path / "events", day)
    titles = [f"item {n}" for n in range(45)]
    pl.DataFrame({"item_id": range(45), "title": titles}).write_parquet(tmp_path / "items.parquet")
    return tmp_path


def test_the_commands_of_the_page_work_one_after_the_other(folder: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    commands = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    assert [command[0] for command in commands].count("prepare") == 4
    said = []
    for command in commands:
        if "--append" in command and not (folder / "events" / "day=2026-12-01").exists():
            write_day(folder / "events", 31)
            (folder / "events" / "day=2026-12-02").rename(folder / "events" / "day=2026-12-01")
        more = (*SMALL, "--baselines", "popularity") if command[0] == "train" else ()
        outcome = run_command((*command, *more), folder)
        assert outcome.code == 0, outcome.err
        said.append(outcome.out)
    checked, prepared, _, appended, again = said
    assert "450 rows of 3 files: 450 events." in checked
    assert "There are 60 queries and 45 items, those without events included." in checked
    assert checked.rstrip().endswith("Nothing was written.")
    assert "Next: twotower train --interactions data --out model" in prepared
    assert "data now holds 600 events." in appended
    assert re.search(r"These files and tables name \d+ queries and 40 items", appended)
    assert "data holds these files already; nothing was changed." in again


def test_counts_as_json(folder: Path) -> None:
    outcome = run_command(
        ("prepare", "--interactions", "events", "--out", "data", "--json"), folder
    )
    found = json.loads(outcome.out)
    assert (found["rows"], found["events"], found["left_out"]) == (450, 450, {})
    assert [file["rows"] for file in found["files"]] == [150, 150, 150]
    assert found["path"] == "data"


REFUSED = [
    ("--interactions events", "prepare needs either --out or --check"),
    ("--interactions events --out data --check", "prepare needs either --out or --check"),
    ("--out data", "prepare needs either --interactions, or --train and --test"),
    ("--interactions nowhere --out data", "must be a file, got none of that name"),
    ("--interactions 'nowhere/*' --out data", "must hold files, got none"),
    ("--interactions events --out items.parquet", "--out must be new"),
    ("--interactions events --out data --append", "--append must go with a prepared folder"),
    ("--interactions events --check --append", "--append must go with --out"),
    ("--interactions items.parquet --out data", "no column could be the query id"),
    ("--interactions events --items events --out data", "must have one row an id"),
    ("--interactions events --impressions-column day --out data", "impressions_column must not be"),
    ("--interactions cut.parquet --out data", "a damaged or cut-off file"),
    ("--interactions mixed --out data", "got String in 'user_id' instead of Int64"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED)
def test_what_cannot_be_is_one_sentence(folder: Path, options: str, told: str) -> None:
    whole = (folder / "events" / "day=2026-11-28" / "part-0.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[:-50])
    (folder / "mixed").mkdir()
    (folder / "mixed" / "0.parquet").write_bytes(whole)
    other = pl.read_parquet(folder / "mixed" / "0.parquet")
    other.with_columns(pl.col("user_id").cast(pl.String)).write_parquet(
        folder / "mixed" / "1.parquet"
    )
    before = tree_of(folder)
    outcome = run_command(("prepare", *shlex.split(options)), folder)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert told in outcome.err
    assert tree_of(folder) == before


def test_a_prepared_folder_that_is_damaged_is_refused(folder: Path) -> None:
    assert run_command(("prepare", "--interactions", "events", "--out", "data"), folder).code == 0
    file = folder / "data" / "0000" / "events" / "times.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    outcome = run_command(("train", "--interactions", "data", "--out", "model"), folder)
    assert outcome.code == 2
    assert "other bytes than were written in '0000/events/times.npy'" in outcome.err
