"""What the documentation shows runs as it stands."""

import ast
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from twotower import Retriever
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.splits import split

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def output_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """What an example prints, run in the test's folder; it warns of nothing, which would be an error."""
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> str:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def test_the_search_understands_other_words_and_misspelt_ones(
    output_of: Callable[[str], str],
) -> None:
    printed = output_of("search.py")
    ours, words = (float(figure) for figure in re.findall(r": ([01]\.\d+)$", printed, re.MULTILINE))
    assert ours > words
    plain, misspelt = printed.splitlines()[-2:]
    assert "-> ['Backpack, green, hiking'" in plain
    assert "Backpack, green, hiking" in misspelt


def test_films_that_nobody_has_seen_are_found(output_of: Callable[[str], str]) -> None:
    printed = output_of("cold_items.py")
    recalls = dict(re.findall(r"(\w+): recall@100 of unseen films (\S+)", printed))
    assert float(recalls["model"]) > 0.05
    assert float(recalls["popularity"]) == float(recalls["item_knn"]) == 0
    assert printed.count("Alien Planet is shown to") == 3


def test_who_is_new_in_one_catalogue_is_answered_by_the_other(
    output_of: Callable[[str], str], tmp_path: Path
) -> None:
    printed = output_of("two_catalogues.py")
    assert re.findall(r"^(classics|recent): The model", printed, re.MULTILINE) == [
        "classics",
        "recent",
    ]
    years = [int(year) for year in re.findall(r"\((\d{4})\)", printed.split("may like")[1])]
    assert len(years) == 6
    assert max(years) < 1990
    assert (tmp_path / "two-catalogues" / "classics" / "manifest.json").is_file()


def test_what_is_explored_says_what_there_is(output_of: Callable[[str], str]) -> None:
    printed = output_of("exploration.py")
    (chance,) = re.findall(r"explored, (\S+)$", printed, re.MULTILINE)
    assert 0 < float(chance) < 0.1
    assert printed.count("'Drama'") <= 4
    estimated, there = re.findall(r"estimated (\S+) .* there are (\d+)", printed)[0]
    assert float(estimated) == pytest.approx(int(there), rel=0.4)


def test_processes_encode_all_shards(tiny_bundle: Path, tmp_path: Path) -> None:
    items = Retriever.open(tiny_bundle).contents.items.frame
    (tmp_path / "items").mkdir()
    items[:70].write_parquet(tmp_path / "items" / "1.parquet")
    items[70:].write_parquet(tmp_path / "items" / "2.parquet")
    (tmp_path / "model").symlink_to(tiny_bundle)
    command = ["sh", str(EXAMPLES / "encode_shards.sh"), "model", "items", "vectors", "2", "2"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    found = pl.read_parquet(tmp_path / "vectors" / "*.parquet")
    assert found["item_id"].to_list() == items["item_id"].to_list()
    assert len(list((tmp_path / "vectors").glob("shard-*-of-2.json"))) == 2


@pytest.mark.parametrize(
    "name", ["search.py", "cold_items.py", "two_catalogues.py", "exploration.py"]
)
def test_they_are_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 40


def lines_of_code(path: Path) -> int:
    """Return how many lines are neither imports, docstrings, comments nor blank."""
    text = path.read_text(encoding="utf-8")
    other: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr):
            other |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(re.match(r"\s*[^\s#]", line)) and number not in other for number, line in lines)


def test_a_loop_of_ones_own_takes_25_lines_and_learns(
    small_world: SyntheticTables, one_thread: None
) -> None:
    assert lines_of_code(EXAMPLES / "own_loop.py") <= 25
    train = runpy.run_path(str(EXAMPLES / "own_loop.py"))["train"]
    untrained, trained = (train(small_world, epochs=epochs) for epochs in (0, 12))
    assert trained > 1.3 * untrained
    assert train(small_world, epochs=12) == trained


def test_the_loss_trains_in_the_trainer_of_hugging_face(
    small_world: SyntheticTables, one_thread: None
) -> None:
    pytest.importorskip("accelerate")
    data = split(prepare(small_world.interactions).dataset)
    train = runpy.run_path(str(EXAMPLES / "hugging_face.py"))["train"]
    untrained, trained = (train(data, epochs) for epochs in (0, 40))
    assert trained > 1.3 * untrained
