"""The working folder: what is saved is read back, and only by the same training."""

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from file_modes import umask, wrong_modes
from twotower.errors import BundleError, ConfigError
from twotower.training.checkpoints import Progress, WorkFolder


def progress_of(epoch: int = 2) -> Progress:
    weights = {"a": torch.arange(3.0), "b": torch.tensor(float(epoch))}
    return Progress(
        epoch=epoch,
        model=weights,
        optimizers=[{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
        average=[torch.tensor(4), torch.ones(2)],
        best_model={"a": torch.zeros(3)},
        best_metric=0.25,
        best_epoch=1,
        epochs_since_best=1,
        log=[{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}],
    )


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


class TestSaving:
    def test_all_of_it_comes_back(self, tmp_path: Path) -> None:
        folder = WorkFolder(tmp_path / "model", "f")
        assert folder.path == tmp_path / "model.training"
        folder.save(progress_of())
        loaded = WorkFolder(tmp_path / "model", "f").load()
        assert equal(vars(loaded), vars(progress_of()))
        assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoint.pt", "log.jsonl"]
        lines = (folder.path / "log.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == progress_of().log

    @pytest.mark.parametrize("mask", [0o022, 0o077])
    def test_the_umask_says_who_can_read_it(self, tmp_path: Path, mask: int) -> None:
        with umask(mask):
            WorkFolder(tmp_path / "model", "f").save(progress_of())
        assert not wrong_modes(tmp_path / "model.training", mask)

    def test_the_newest_counts(self, tmp_path: Path) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        for epoch in (1, 2, 3):
            folder.save(progress_of(epoch))
        assert folder.load().epoch == 3

    def test_ctrl_c_while_writing_leaves_the_old_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        folder.save(progress_of(1))

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            folder.save(progress_of(2))
        monkeypatch.undo()
        assert folder.load().epoch == 1
        folder.save(progress_of(3))
        assert folder.load().epoch == 3
        assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoint.pt", "log.jsonl"]

    def test_a_disk_without_room_is_named(self, tmp_path: Path) -> None:
        """The system lets no file grow above 500 bytes."""
        folder = WorkFolder(tmp_path / "m", "f")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        try:
            with pytest.raises(BundleError, match=r"m\.training' could not be written") as raised:
                folder.save(progress_of())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.strerror(errno.EFBIG).lower() in str(raised.value)
        assert not list(tmp_path.iterdir())

    def test_a_place_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "m.training").write_text("mine")
        with pytest.raises(BundleError, match="could not be written"):
            WorkFolder(tmp_path / "m", "f").save(progress_of())
        assert (tmp_path / "m.training").read_text() == "mine"

    def test_removing(self, tmp_path: Path) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        folder.remove()
        folder.save(progress_of())
        folder.remove()
        assert not list(tmp_path.iterdir())


class TestLoading:
    def test_none_is_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"got none at '.*/m\.training'; train without it"):
            WorkFolder(tmp_path / "m", "f").load()

    def test_of_another_training(self, tmp_path: Path) -> None:
        WorkFolder(tmp_path / "m", "f").save(progress_of())
        with pytest.raises(
            ConfigError, match="the data and the settings of the first run, got oth"
        ):
            WorkFolder(tmp_path / "m", "g").load()

    @pytest.mark.parametrize("held", [{"epoch": 1}, [1], torch.zeros(2)], ids=["dict", "list", "t"])
    def test_of_another_program(self, tmp_path: Path, held: object) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        folder.path.mkdir()
        torch.save(held, folder.path / "checkpoint.pt")
        with pytest.raises(ConfigError, match="of the first run, got others"):
            folder.load()

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    def test_half_a_file(self, tmp_path: Path, share: float) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        folder.save(progress_of())
        content = (folder.path / "checkpoint.pt").read_bytes()
        (folder.path / "checkpoint.pt").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ConfigError, match=r"cannot read '.*checkpoint\.pt'; remove it and"):
            folder.load()

    def test_runs_no_code(self, tmp_path: Path) -> None:
        """A checkpoint is a pickle, read by the unpickler that knows tensors and plain values only."""

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (os.mkdir, (str(tmp_path / "evil"),))

        folder = WorkFolder(tmp_path / "m", "f")
        folder.path.mkdir()
        torch.save({"fingerprint": "f", "epoch": Evil()}, folder.path / "checkpoint.pt")
        with pytest.raises(ConfigError, match="cannot read"):
            folder.load()
        assert not (tmp_path / "evil").exists()
