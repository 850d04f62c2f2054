"""Checkpoints, from which a training continues, in a working folder beside the future bundle.

A training that was killed continues when its command is repeated. One that Ctrl-C or ``minutes`` ended
wrote a bundle, and continues only with ``resume``: the file ``stopped`` says so.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from twotower.caller import argument
from twotower.errors import BundleError, ConfigError, OtherProcessError
from twotower.locks import locked
from twotower.processes.job import here
from twotower.training.checked_files import load_checked, save_checked
from twotower.training.sharded_checkpoints import load_rows, places_of, save_rows

_LOCK, _LOG, _STOPPED = "lock", "log.jsonl", "stopped"
_OURS = re.compile(
    rf"{_LOCK}|{re.escape(_LOG)}|{_STOPPED}|checkpoint(-\d+)?(\.pt(\.writing)?|-rows-\d+)"
)
"""Names of what a working folder holds."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, or of what its owner may use of it, that has no room left."""


@dataclass
class Progress:
    """How far a training has come.

    Args:
        epoch: Number of finished epochs.
        model: State of the model after them.
        optimizers: State of the optimizers after them.
        average: State of the averaged weights after them.
        streams: State of the estimated item frequencies of each view; empty if they are counted.
        best_model: State of the model with averaged weights at its best validation.
        best_metric: Its validation metric, or None before the first validation. While a closed form may be
            added to it, the metric by which epochs are compared; see ``Beside.counted``.
        best_epoch: The epoch of the best validation, counted from 1.
        epochs_since_best: Epochs since the best validation of the model alone.
        log: One record per epoch.
        rows: Name of the folder with the rows of tables that several processes keep, in a checkpoint.
    """

    epoch: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    optimizers: list[Any] = field(default_factory=list)
    average: list[Any] = field(default_factory=list)
    streams: list[dict[str, Any]] = field(default_factory=list)
    best_model: dict[str, Any] = field(default_factory=dict)
    best_metric: float | None = None
    best_epoch: int = 0
    epochs_since_best: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    rows: str = ""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the training, as the log's last record says then."""
        return bool(self.log) and self.log[-1].get("event") == "interrupted"

    def metric_alone(self, name: str) -> float | None:
        """Return the validation metric of the best weights without a closed form beside them."""
        if not self.best_epoch:
            return self.best_metric
        (best,) = (each for each in self.log if each.get("epoch") == self.best_epoch)
        return float(best[f"valid_{name}"])

    def interrupt(self) -> None:
        """Note that Ctrl-C ended the training."""
        self.log.append({"event": "interrupted", "after_epoch": self.epoch})


class WorkFolder:
    """The folder ``OUT.training``, with the checkpoint and the log of an unfinished training.

    Args:
        out: The future folder of the bundle.
        fingerprint: Of the data and the settings; only a training with the same fingerprint can continue.
        place: Of the training among several that race, from 0. Each has a checkpoint of its own.
        model: That is trained, where several processes may keep rows of its tables, each its own.
    """

    def __init__(
        self, out: Path, fingerprint: str, place: int = 0, *, model: nn.Module | None = None
    ) -> None:
        self.path = folder_of(out)
        self.file = self.path / (f"checkpoint-{place}.pt" if place else "checkpoint.pt")
        self.fingerprint = fingerprint
        self.model = model

    @property
    def is_stopped(self) -> bool:
        """Whether Ctrl-C or ``minutes`` ended the training whose checkpoint is there, with a bundle."""
        return (self.path / _STOPPED).is_file()

    def load(self) -> Progress:
        """Return the progress that was saved; where several processes train, the first one reads it.

        Raises:
            ConfigError: There is none, it cannot be read, or it is of other data or settings.
        """
        return self._with_rows(here().from_first(self._loaded))

    def _with_rows(self, progress: Progress) -> Progress:
        """Return a progress with the rows that this process keeps, or with all where it is alone."""
        model, rows = self.model, progress.rows
        if model is None:
            return progress

        def load() -> Progress:
            try:
                return Progress(**load_rows(vars(progress), model, self.path / rows))
            except (OSError, RuntimeError, KeyError, BundleError) as error:
                raise ConfigError(
                    f"{argument('resume')} cannot read {str(self.path / rows)!r}; remove "
                    f"{str(self.path)!r} and train from the start."
                ) from error

        return replace(here().all_of(load), rows="")

    def _loaded(self) -> Progress:
        if not self.file.is_file():
            raise ConfigError(
                f"{argument('resume')} needs a checkpoint, got none at {str(self.path)!r}; "
                "train without it."
            )
        saved = load_checked(self.file)
        if saved is None:
            raise ConfigError(
                f"{argument('resume')} cannot read {str(self.file)!r}; remove it and train from the start."
            )
        progress = self._of_this_training(saved)
        if progress is None:
            raise ConfigError(
                f"{argument('resume')} must be given the data and the settings of the first run, got "
                f"others; repeat that command, or train without {argument('resume')}."
            )
        return progress

    def found(self) -> tuple[Progress, str]:
        """Return the progress that was saved, and a sentence about it.

        Where there is none, or none that fits, it is that of the start. The sentence is empty if there is
        no file.
        """
        progress, said = here().from_first(self._found)
        try:
            return self._with_rows(progress), said
        except (ConfigError, OtherProcessError):
            return Progress(), self._damaged()

    def _damaged(self) -> str:
        return f"'{self.file}' is damaged: the training starts from the beginning"

    def _found(self) -> tuple[Progress, str]:
        if not self.file.is_file():
            return Progress(), ""
        saved = load_checked(self.file)
        if saved is None:
            return Progress(), self._damaged()
        progress = self._of_this_training(saved)
        if progress is None:
            said = "is of other data or settings: the training starts from the beginning"
            return Progress(), f"'{self.file}' {said}"
        return progress, (
            f"the training goes on after epoch {progress.epoch}, where it was killed; remove "
            f"'{self.path}' to train from the start"
        )

    def _of_this_training(self, saved: Any) -> Progress | None:
        """Return the progress in a checkpoint; None if it is of another training or another version."""
        if not isinstance(saved, dict) or saved.pop("fingerprint", None) != self.fingerprint:
            return None
        return Progress(**saved) if saved.keys() == vars(Progress()).keys() else None

    def save(self, progress: Progress) -> None:
        """Write the progress; a reader finds the old one or the new one, never half.

        If the disk has no room for both, the old one is deleted first. Where several processes train, all
        call it at once; if one of them is lost, the old one stays.

        Raises:
            BundleError: It cannot be written. On a full disk the folder is empty or gone then; else the old
                one stays.
            OtherProcessError: Another process could not write its part, with the same result.
        """
        job = here()
        try:
            self._write(progress)
        except (BundleError, OtherProcessError) as error:
            if not any(job.objects(_is_of_full_disk(error))):
                raise
            if job.is_first:
                self._delete()
            try:
                self._write(progress)
            except (BundleError, OtherProcessError):
                if job.is_first:
                    self.remove()
                raise

    def _write(self, progress: Progress) -> None:
        """Write the rows that each process keeps, and then the rest, which names their folder."""
        job, state = here(), vars(progress)
        places = {} if self.model is None else places_of(state, self.model)

        def write_rows(folder: Path) -> dict[str, Any]:
            with _unwritable(self.path):
                return save_rows(state, places, folder)

        if places:
            rows = job.from_first(self._new_rows)
            state = {**job.all_of(lambda: write_rows(self.path / rows)), "rows": rows}
        job.from_first(lambda: self._write_rest(state, progress.log))

    def _new_rows(self) -> str:
        """Make a folder for rows. Those that the checkpoint names stay until there is another."""
        with _unwritable(self.path):
            self.path.mkdir(exist_ok=True)
            last = max((int(each.name.rpartition("-")[2]) for each in self._rows()), default=0)
            rows = self.path / f"{self.file.stem}-rows-{last + 1}"
            rows.mkdir()
        return rows.name

    def _rows(self) -> list[Path]:
        """Return the folders of rows."""
        return list(self.path.glob(f"{self.file.stem}-rows-*"))

    def _write_rest(self, state: dict[str, Any], log: list[dict[str, Any]]) -> None:
        with _unwritable(self.path):
            self.path.mkdir(exist_ok=True)
            temporary = self.file.with_name(f"{self.file.name}.writing")
            save_checked({**state, "fingerprint": self.fingerprint}, temporary)
            os.replace(temporary, self.file)  # noqa: PTH105 - atomic on every system
            (self.path / _STOPPED).unlink(missing_ok=True)
            for old in self._rows():
                if old.name != state["rows"]:
                    shutil.rmtree(old, ignore_errors=True)
            lines = "".join(json.dumps(record) + "\n" for record in log)
            (self.path / _LOG).write_text(lines, encoding="utf-8", newline="\n")

    def _delete(self) -> None:
        """Delete the checkpoint, whole and half written, as far as the system allows it."""
        for name in (self.file.name, f"{self.file.name}.writing"):
            with suppress(OSError):
                self.file.with_name(name).unlink(missing_ok=True)
        for rows in self._rows():
            shutil.rmtree(rows, ignore_errors=True)

    def stop(self) -> None:
        """Note that the training was ended on purpose, with a bundle: it continues only with ``resume``."""
        with suppress(OSError):  # a full disk: then it continues by itself
            if self.file.is_file():
                (self.path / _STOPPED).touch()

    def remove(self) -> None:
        """Delete what is in the folder, and the folder itself unless a process holds it."""
        _empty(self.path)


@contextmanager
def holding(out: Path | None) -> Iterator[None]:
    """Hold the folder ``OUT.training`` for one training; at the end only a checkpoint stays in it.

    Args:
        out: The future folder of the bundle; None holds nothing.

    Raises:
        ConfigError: Another process trains there, or somebody else's folder has that name.
        BundleError: The folder cannot be made.
    """
    if out is None:
        yield
        return
    folder = folder_of(out.resolve())
    if folder.is_symlink() or (folder.exists() and not _is_ours(folder)):
        raise ConfigError(
            f"{argument('out')} must leave the name {folder.name!r} free, got '{folder}', which is not "
            f"ours; rename it, or choose another {argument('out')}."
        )
    with _unwritable(folder, "nothing was changed"):
        try:
            folder.mkdir(exist_ok=True)
            lock = locked(folder / _LOCK)
        except OSError:
            with suppress(OSError):  # it holds an earlier checkpoint
                folder.rmdir()
            raise
    if lock is None:
        raise ConfigError(
            f"{argument('out')} must be written by one process, got '{out}', into which another is "
            f"training; wait for it, or choose another {argument('out')}."
        )
    try:
        yield
    finally:
        if not any(folder.glob("*.pt")):
            _empty(folder)
        with suppress(OSError):
            (folder / _LOCK).unlink()
        os.close(lock)
        with suppress(OSError):  # it holds a checkpoint, or is gone
            folder.rmdir()


def folder_of(out: Path) -> Path:
    """Return the working folder of a future bundle."""
    return out.with_name(out.name + ".training")


def _is_ours(folder: Path) -> bool:
    try:
        return all(_OURS.fullmatch(each.name) for each in folder.iterdir())
    except OSError:  # a file, or a folder that cannot be read
        return False


def _empty(folder: Path) -> None:
    """Delete what a working folder holds but for the lock, and the folder where nothing is left."""
    with suppress(OSError):
        for entry in list(folder.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                entry.unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def _unwritable(folder: Path, left: str = "") -> Iterator[None]:
    """Say why a checkpoint could not be written, and what became of it.

    Raises:
        BundleError: It could not.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        of_system = _of_system(error)
        reason = "writing failed"
        if of_system is not None and of_system.strerror:
            reason = of_system.strerror.lower()
        advice = f"choose another {argument('out')}"
        if of_system is not None and of_system.errno in _FULL:
            reason = "the disk is full" if of_system.errno == errno.ENOSPC else reason
            advice, left = f"free some space or {advice}", left or "nothing was left behind"
        left = left or "an earlier checkpoint stays as it was"
        raise BundleError(
            f"the checkpoint {str(folder)!r} could not be written: {reason}; {advice}; {left}."
        ) from error


def _of_system(error: BaseException | None) -> OSError | None:
    """Return the system's error behind another: torch raises a RuntimeError while it handles that."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_of_full_disk(error: BaseException) -> bool:
    """Return whether the disk, or the share of it that its owner may use, was full."""
    found = _of_system(error)
    return found is not None and found.errno in _FULL
