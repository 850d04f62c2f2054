"""The walk from a table to the first gradient: the page shows it, and it is the one that training takes."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from test_imports import imports_between_files
from twotower.data.sources.synthetic import World
from twotower.training.callbacks import Callback
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "examples" / "one_step.py"))
FILES = re.compile(r"^\| \d \| \[`([\w/.]+)`\]", re.M)


class Once(Callback):
    """Notes the loss of the first step, and ends the training."""

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        assert (step, examples) == (0, 128)
        self.loss = loss()
        raise KeyboardInterrupt


def test_the_page_shows_the_shapes_of_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    SCRIPT["main"]()
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "one-training-step.md").read_text("utf-8")
    _, _, shown = page.partition("<!-- the table that examples/one_step.py prints -->\n")
    assert shown.partition("<!-- end -->")[0] == printed


def test_there_are_at_most_eight_files_and_no_way_back() -> None:
    files = FILES.findall((ROOT / "docs" / "one-training-step.md").read_text("utf-8"))
    assert 0 < len(files) == len(set(files)) <= 8
    imported = imports_between_files()
    names = [f"twotower.{file.removesuffix('.py').replace('/', '.')}" for file in files]
    ways = {(a, b) for a in names for b in names if b in imported[a]}
    assert len(ways) >= 5
    assert not {(a, b) for a, b in ways if (b, a) in ways}


def test_the_loss_is_that_of_the_first_step_of_training() -> None:
    tables, config = World(SCRIPT["WORLD"]).generate(), SCRIPT["CONFIG"]
    task = Task.of(tables.interactions, items=tables.items, queries=tables.queries, config=config)
    first = Once()
    Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0]).fit(watcher=first)
    *_, (file, _, found) = SCRIPT["walk"]()
    loss = found["loss"]
    assert file == "losses/softmax.py"
    assert isinstance(loss, Tensor)
    assert float(loss.detach()) == first.loss
