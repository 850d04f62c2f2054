"""The working folder: what is saved is read back, and only by the same training."""

import errno
import hashlib
import io
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from file_modes import umask, wrong_modes
from twotower.errors import BundleError, ConfigError
from twotower.training.checkpoints import Progress, WorkFolder, folder_of, holding


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


def put(file: Path, held: object) -> None:
    """Write what torch reads, with its digest at the end."""
    written = io.BytesIO()
    torch.save(held, written)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(written.getvalue() + hashlib.sha256(written.getvalue()).digest())


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

    def test_another_error_of_the_disk_leaves_the_old_one(self, tmp_path: Path) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        folder.save(progress_of(1))
        (folder.path / "checkpoint.pt.writing").mkdir()
        with pytest.raises(BundleError) as raised:
            folder.save(progress_of(2))
        assert str(raised.value).endswith(
            "could not be written: is a directory; choose another out; an earlier checkpoint stays as it "
            "was."
        )
        assert folder.load().epoch == 1

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

    @pytest.mark.parametrize(
        "held",
        [{"epoch": 1}, [1], torch.zeros(2), {"fingerprint": "f", "epoch": 1, "new": 2}],
        ids=["dict", "list", "tensor", "another version"],
    )
    def test_of_another_program(self, tmp_path: Path, held: object) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        put(folder.file, held)
        with pytest.raises(ConfigError, match="of the first run, got others"):
            folder.load()
        assert folder.found()[0] == Progress()
        torch.save(held, folder.file)
        with pytest.raises(ConfigError, match="cannot read"):
            folder.load()

    @pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
    def test_a_bit_that_was_changed(self, tmp_path: Path, place: float) -> None:
        """torch reads the numbers of such a file without a word."""
        folder = WorkFolder(tmp_path / "m", "f")
        folder.save(progress_of())
        content = bytearray(folder.file.read_bytes())
        content[int(place * len(content))] ^= 1
        folder.file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"cannot read '.*checkpoint\.pt'; remove it and"):
            folder.load()
        done, said = folder.found()
        assert done == Progress()
        assert said.endswith("checkpoint.pt' is damaged: the training starts from the beginning")

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    def test_half_a_file(self, tmp_path: Path, share: float) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        folder.save(progress_of())
        content = (folder.path / "checkpoint.pt").read_bytes()
        (folder.path / "checkpoint.pt").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ConfigError, match=r"cannot read '.*checkpoint\.pt'; remove it and"):
            folder.load()

    def test_where_it_goes_on_is_told(self, tmp_path: Path) -> None:
        assert WorkFolder(tmp_path / "m", "f").found() == (Progress(), "")
        WorkFolder(tmp_path / "m", "f").save(progress_of())
        done, said = WorkFolder(tmp_path / "m", "f").found()
        assert equal(vars(done), vars(progress_of()))
        assert said == (
            f"the training goes on after epoch 2, where it was killed; remove '{tmp_path}/m.training' "
            "to train from the start"
        )
        done, said = WorkFolder(tmp_path / "m", "g").found()
        assert done == Progress()
        assert "is of other data or settings: the training starts from the beginning" in said

    def test_runs_no_code(self, tmp_path: Path) -> None:
        """A checkpoint is a pickle, read by the unpickler that knows tensors and plain values only."""

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (os.mkdir, (str(tmp_path / "evil"),))

        folder = WorkFolder(tmp_path / "m", "f")
        put(folder.file, {"fingerprint": "f", "epoch": Evil()})
        with pytest.raises(ConfigError, match="cannot read"):
            folder.load()
        assert not (tmp_path / "evil").exists()


class TestStopping:
    def test_a_stop_is_noted_until_the_next_checkpoint(self, tmp_path: Path) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        folder.stop()  # before the first checkpoint there is nothing to go on from
        assert not list(tmp_path.iterdir())
        folder.save(progress_of())
        assert not folder.is_stopped
        folder.stop()
        assert WorkFolder(tmp_path / "m", "f", 2).is_stopped
        folder.save(progress_of(3))
        assert not folder.is_stopped


class TestHolding:
    def test_one_training_at_a_time(self, tmp_path: Path) -> None:
        said = r"must be written by one process, got '.*m', into which another is training; wait"
        with holding(tmp_path / "m"):
            with pytest.raises(ConfigError, match=said), holding(tmp_path / "m"):
                pass
            with holding(tmp_path / "other"), holding(None):
                pass
            assert folder_of(tmp_path / "m").is_dir()
        with holding(tmp_path / "m"):
            pass
        assert not list(tmp_path.iterdir())

    def test_a_checkpoint_stays_and_nothing_else(self, tmp_path: Path) -> None:
        folder = WorkFolder(tmp_path / "m", "f", 1)
        with holding(tmp_path / "m"):
            folder.save(progress_of())
        assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoint-1.pt", "log.jsonl"]
        with holding(tmp_path / "m"):
            folder.remove()
            assert [p.name for p in folder.path.iterdir()] == ["lock"]
        assert not list(tmp_path.iterdir())

    def test_what_a_kill_leaves_is_taken_over(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "m")
        folder.mkdir()
        for name in ("lock", "stopped", "log.jsonl", "checkpoint-12.pt.writing"):
            (folder / name).write_text("half")
        with holding(tmp_path / "m"):
            pass
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("kind", ["file", "link", "folder"])
    def test_what_is_somebody_elses_is_left_alone(self, tmp_path: Path, kind: str) -> None:
        place = folder_of(tmp_path / "m")
        if kind == "file":
            place.write_text("mine")
        elif kind == "link":
            (tmp_path / "there").mkdir()
            place.symlink_to(tmp_path / "there")
        else:
            place.mkdir()
            (place / "notes.txt").write_text("mine")
        before = sorted(tmp_path.rglob("*"))
        said = r"must leave the name 'm\.training' free, got"
        with pytest.raises(ConfigError, match=said), holding(tmp_path / "m"):
            pass
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_full_disk_takes_no_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = WorkFolder(tmp_path / "m", "f")
        folder.save(progress_of())

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.open", full)
        said = r"the disk is full; .*; nothing was changed"
        with pytest.raises(BundleError, match=said), holding(tmp_path / "m"):
            pass
        monkeypatch.undo()
        assert folder.load().epoch == 2
