"""A test of ``twotower update``: its page in small, its exit codes, and the example that runs it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from nights import LATEST, lines, shop, written
from sandbox import run_command

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "every-night.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written(tmp_path)
    shop(1).write_parquet(tmp_path / "today.parquet")
    (tmp_path / "events" / "day=2026-12-02").mkdir(parents=True)
    shop(2).write_parquet(tmp_path / "events" / "day=2026-12-02" / "0.parquet")
    lines(LATEST).write_parquet(tmp_path / "new-items.parquet")
    return tmp_path


def test_the_commands_of_the_page_work_one_after_the_other(folder: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    commands = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    assert [command[0] for command in commands] == ["update", "inspect", "update"]
    said = []
    for command in commands:
        outcome = run_command(tuple(command), folder)
        assert outcome.code == 0, outcome.err
        said.append(outcome.out)
    assert "The bundle is at model-tomorrow." in said[0]
    assert (folder / "model-tomorrow.report.html").is_file()
    assert "This is update 1 of the bundle since its training" in said[1]
    assert "yesterday's model" in said[1]
    assert "Update 2:" in said[2]
    assert "Expired: 0 items" in said[2]


def test_a_refused_day_ends_with_3_and_writes_a_report_alone(folder: Path) -> None:
    day = pl.read_parquet(folder / "today.parquet")
    bad = day.with_columns(day["item_id"].shuffle(seed=1))
    bad.write_parquet(folder / "bad.parquet")
    command = ("update", "model", "--interactions", "bad.parquet", "--out", "new")
    outcome = run_command((*command, "--json"), folder)
    assert outcome.code == 3
    (reason,) = json.loads(outcome.out)["refused"]
    assert reason.startswith("Today's events do not fit their queries")
    assert not (folder / "new").exists()
    page = (folder / "new.refused.html").read_text(encoding="utf-8")
    assert "<h1>The check refused update 1</h1>" in page
    assert run_command((*command, "--force"), folder).code == 0
    assert (folder / "new" / "manifest.json").is_file()
    assert not (folder / "new.refused.html").exists()


def test_wrong_input_ends_with_2_and_one_sentence(folder: Path) -> None:
    shop(1).rename({"user_id": "who", "item_id": "what"}).write_parquet(folder / "odd.parquet")
    before = sorted(each.name for each in folder.iterdir())
    wrong = {
        ("--interactions", "odd.parquet"): "must",
        ("--interactions", "none.parquet"): "none.parquet",
        ("--interactions", "today.parquet", "--journal", "none"): "--journal must be what a server",
        ("--interactions", "today.parquet", "--expire-days", "0"): "--expire-days must be above 0",
    }
    for given, message in wrong.items():
        outcome = run_command(("update", "model", *given, "--out", "new"), folder)
        assert outcome.code == 2, outcome
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
    assert sorted(each.name for each in folder.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="it is a script of a shell")
def test_the_script_updates_the_newest_bundle(folder: Path) -> None:
    (folder / "current").symlink_to("model")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(ROOT / "examples" / "every_night.sh"), str(folder), "today.parquet"]
    ended = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=False)
    assert ended.returncode == 0
    new = (folder / "current").resolve()
    assert new.name != "model"
    assert json.loads((new / "metrics.json").read_text(encoding="utf-8"))["update"]["night"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="it is a script of a shell")
def test_a_server_that_does_not_answer_is_tried_again(folder: Path) -> None:
    """curl ends with 3 for an address that is none; 3 of the script is a day that was refused."""
    (folder / "current").symlink_to("model")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(ROOT / "examples" / "every_night.sh"), str(folder), "today.parquet"]
    env = {**os.environ, "PATH": path, "TWOTOWER_TOKEN": "t"}
    ended = subprocess.run([*command, "http://[::"], cwd=folder, env=env, check=False)
    assert ended.returncode == 1
    assert (folder / "current").resolve().name == "model"
