"""A training that is killed in any phase: the same call goes on, and ends as one that nobody disturbed."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.config import Config
from twotower.data import mapped
from twotower.errors import ConfigError
from twotower.training.callbacks import Callback
from twotower.training.heats import RACE_FROM
from twotower.training.pipeline import train
from twotower.training.trained import Trained

CONFIG: dict[str, Any] = {
    "towers": {
        "dim": 8,
        "history": "pooled",
        "history_length": 2,
        "question_time": "off",
        "spectral_dim": 4,
        "similarity": "dot",
    },
    "training": {
        "epochs": 3,
        "patience": 8,
        "batch_size": 512,
        "learning_rate": 0.02,
        "precision": "float32",
        "threads": 1,
    },
    "loss": {"negatives": "hard", "num_negatives": 8, "frequencies": "stream"},
}
TIMING = {"seconds", "validation_seconds", "examples_per_second"}


class KilledError(BaseException):
    """Ends a training as no handler of ours expects it."""


@dataclass
class Moments(Callback):
    """Notes the moments of a training: phases, and the second step and the end of each epoch.

    Args:
        kill_at: The moment in which the training is killed; None notes them all.
    """

    kill_at: str | None = None
    seen: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    phase: str = "start"
    epoch: int = 0

    def _at(self, moment: str) -> None:
        self.seen.append(moment)
        if moment == self.kill_at:
            raise KilledError

    def on_data(self, *_: Any) -> None:
        self._at("data")

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
        self.choices += choices

    def on_phase(self, phase: str) -> None:
        self.phase = phase
        self._at(phase)

    def on_start(self, steps_per_epoch: int, progress: Any) -> None:  # noqa: ARG002
        self.epoch = progress.epoch

    def on_step(self, step: int, *_: Any) -> None:
        if step == 1:
            self._at(f"{self.phase}, in epoch {self.epoch + 1}")

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.epoch = record["epoch"]
        self._at(f"{self.phase}, after epoch {self.epoch}")

    def on_figures(self, *_: Any) -> None:
        self._at("figures")


def events(seed: int = 0) -> pl.DataFrame:
    """Return queries that each take items of one of 10 kinds, every other event of any kind."""
    rng = np.random.default_rng(seed)
    num = RACE_FROM + 4
    kind = np.repeat(rng.integers(0, 10, num), 24)
    own = kind * 6 + rng.integers(0, 6, len(kind))
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(num), 24),
            "item_id": np.where(rng.random(len(kind)) < 0.5, own, rng.integers(0, 60, len(kind))),
            "timestamp": 1.6e9 + np.arange(len(kind)) * 3_600.0,
        }
    )


def trained(table: Any, out: Path, watcher: Callback | None, **more: Any) -> Trained:
    given: dict[str, Any] = {"baselines": ["popularity", "item_knn"], "config": CONFIG, **more}
    return train(table, out=out, progress=watcher, name="killed", **given)


def log_of(out: Path) -> list[Any]:
    def timeless(held: Any) -> Any:
        if isinstance(held, dict):
            return {name: timeless(each) for name, each in held.items() if name not in TIMING}
        return [timeless(each) for each in held] if isinstance(held, list) else held

    lines = (out / "training.jsonl").read_text("utf-8").splitlines()
    return [timeless(json.loads(line)) for line in lines]


def files_of(out: Path) -> dict[str, bytes]:
    """Return the files of a bundle, but for those that hold the time."""
    files = (path for path in out.rglob("*") if path.is_file())
    timed = ("manifest.json", "training.jsonl")
    return {str(p.relative_to(out)): p.read_bytes() for p in files if p.name not in timed}


@dataclass(frozen=True)
class Whole:
    """A training that nobody disturbed."""

    out: Path
    moments: list[str]
    num_syncs: int


class Syncs:
    """Replaces ``os.fsync``, and kills in one of its calls, counted from 0 without those of checkpoints."""

    def __init__(self, kill_in: int | None = None) -> None:
        self.kill_in, self.num, self.sync = kill_in, 0, os.fsync

    def __call__(self, descriptor: int) -> None:
        if "model.training" in Path(f"/proc/self/fd/{descriptor}").readlink().parts:
            return
        if self.num == self.kill_in:
            raise KilledError
        self.num += 1
        self.sync(descriptor)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out, moments, syncs = tmp_path_factory.mktemp("whole") / "model", Moments(), Syncs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", syncs)
        trained(events(), out, moments, refit=True)
    return Whole(out, list(dict.fromkeys(moments.seen)), syncs.num)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the place of a bundle, in a folder of its own, and check that no temporary folder is left."""
    for name in ("work", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield tmp_path / "work" / "model"
    assert not list((tmp_path / "tmp").iterdir())


def is_same(out: Path, whole: Whole) -> bool:
    assert {path.name for path in out.parent.iterdir()} == {"model"}
    return files_of(out) == files_of(whole.out) and log_of(out) == log_of(whole.out)


def killed(out: Path, moment: str, table: Any = None, **more: Any) -> None:
    with pytest.raises(KilledError):
        trained(events() if table is None else table, out, Moments(moment), **more)


RACE, HEAT = "race: towers.query_id = 'off'", "race: towers.query_id = 'on'"
REFIT = "training on training and validation events"


def test_killed_in_each_phase_in_turn(whole: Whole, out: Path) -> None:
    """One command, repeated after each kill. The second of the race wins it."""
    phases = ("data", "the closed form", RACE, HEAT, "training", "the closed form beside it", REFIT)
    assert [each for each in whole.moments if each in phases] == [*phases]
    assert whole.moments[-5:] == [
        *("baseline popularity", "baseline ItemKNN with decay", "evaluation", "index", "figures")
    ]
    for moment in whole.moments[1::2]:
        killed(out, moment, refit=True)
        assert not out.exists()
    told = Moments()
    trained(events(), out, told, refit=True)
    assert is_same(out, whole)
    assert not [each for each in told.seen if ", in epoch" in each and REFIT not in each]
    (said,) = (each for each in told.choices if "where it was killed" in each)
    assert said.startswith("the training goes on after epoch 2, where it was killed; remove '")
    assert said.endswith("/model.training' to train from the start")


@pytest.mark.parametrize("place", [0, -1])
def test_killed_while_the_bundle_is_written(
    whole: Whole, out: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """With its first file, and when it is in its place and the checkpoint is still there."""
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", Syncs(range(whole.num_syncs)[place]))
        with pytest.raises(KilledError):
            trained(events(), out, None, refit=True)
    assert out.exists() == (place == -1)
    assert out.with_name("model.training").exists()
    trained(events(), out, None, refit=True)
    assert is_same(out, whole)


@pytest.mark.parametrize("damage", ["half of the first", "a bit of the second", "no first"])
def test_a_damaged_checkpoint_stops_nobody(whole: Whole, out: Path, damage: str) -> None:
    killed(out, "training, after epoch 3", refit=True)
    folder = out.with_name("model.training")
    first, second = folder / "checkpoint.pt", folder / "checkpoint-1.pt"
    if damage == "no first":
        first.unlink()
    elif damage == "half of the first":
        first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    else:
        content = bytearray(second.read_bytes())
        content[len(content) // 2] ^= 1
        second.write_bytes(content)
    told = Moments()
    trained(events(), out, told, refit=True)
    assert is_same(out, whole)
    ours, other = (RACE, HEAT) if "first" in damage else (HEAT, RACE)
    assert f"{ours}, after epoch 2" in told.seen
    assert f"{other}, after epoch 2" not in told.seen
    if damage == "half of the first":
        assert f"'{first}' is damaged: the training starts from the beginning" in told.choices


def test_what_ctrl_c_ended_goes_on_with_resume_alone(whole: Whole, out: Path) -> None:
    class CtrlC(Moments):
        def on_epoch(self, record: dict[str, Any]) -> None:
            if self.phase == "training":
                raise KeyboardInterrupt
            super().on_epoch(record)

    assert trained(events(), out, CtrlC(), refit=True).stopped_early
    told = Moments(f"{RACE}, in epoch 1")
    with pytest.raises(KilledError):
        trained(events(), out, told, refit=True)
    assert not any("goes on" in each for each in told.choices)
    told = Moments(
        f"{RACE}, after epoch 1"
    )  # the first checkpoint of one that nobody ended on purpose
    with pytest.raises(KilledError):
        trained(events(), out, told, refit=True)
    told = Moments()
    trained(events(), out, told, refit=True)
    assert f"{RACE}, in epoch 1" not in told.seen
    assert is_same(out, whole)
    with pytest.raises(ConfigError, match="resume needs a checkpoint, got none"):
        trained(events(), out, None, resume=True)
    assert is_same(out, whole)


def test_other_data_or_settings_start_anew(out: Path) -> None:
    killed(out, f"{RACE}, after epoch 2")
    told = Moments(f"{RACE}, after epoch 1")
    with pytest.raises(KilledError):
        trained(events(1), out, told)
    assert f"{RACE}, in epoch 1" in told.seen
    assert any("is of other data or settings" in each for each in told.choices)
    told = Moments()
    trained(events(1), out, told, baselines=[])
    alone = trained(events(1), out.with_name("alone"), None, baselines=[])
    assert files_of(out) == files_of(out.with_name("alone"))
    assert f"{RACE}, in epoch 1" not in told.seen
    assert alone.path is not None
    assert {path.name for path in out.parent.iterdir()} == {"model", "alone"}


def test_a_second_training_into_the_same_folder_is_refused(out: Path) -> None:
    class Second(Callback):
        def on_epoch(self, record: dict[str, Any]) -> None:  # noqa: ARG002
            with pytest.raises(ConfigError, match="into which another is training; wait for it"):
                trained(events(), out, None)

    trained(events(), out, Second(), baselines=[])
    assert {path.name for path in out.parent.iterdir()} == {"model"}


@pytest.mark.parametrize("change", ["nothing", "the table", "a byte"])
def test_killed_with_a_table_that_was_prepared(
    out: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(mapped, "MAPPED_FROM", 1_000)
    table, data = out.with_name("events.parquet"), out.with_name("model.training-data")
    events().write_parquet(table)
    killed(out, "training, in epoch 3", table)
    assert data.is_dir()
    if change == "the table":
        events(1).write_parquet(table)
    elif change == "a byte":
        file = next(data.rglob("item_rows.npy"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    told = Moments()
    trained(table, out, told, baselines=[])
    assert (f"{RACE}, in epoch 1" in told.seen) == (change == "the table")
    trained(table, out.with_name("alone"), None, baselines=[])
    assert files_of(out) == files_of(out.with_name("alone"))
    left = {path.name for path in out.parent.iterdir()}
    assert left == {"model", "alone", "events.parquet"}
