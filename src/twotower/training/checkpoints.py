"""Checkpoints, from which ``--resume`` continues, in a working folder beside the future bundle."""

import errno
import json
import os
import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twotower.caller import argument
from twotower.errors import BundleError, ConfigError, OtherProcessError
from twotower.processes.job import here
from twotower.training.sharded_checkpoints import load_rows, places_of, save_rows


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
        best_metric: Its validation metric, or None before the first validation.
        best_epoch: The epoch of the best validation, counted from 1.
        epochs_since_best: Epochs since then.
        log: One record per epoch.
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

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the training, as the log's last record says then."""
        return bool(self.log) and self.log[-1].get("event") == "interrupted"

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
        self.path = out.with_name(out.name + ".training")
        self.file = self.path / (f"checkpoint-{place}.pt" if place else "checkpoint.pt")
        self.fingerprint = fingerprint
        self.model = model

    def load(self) -> Progress:
        """Return the progress that was saved; where several processes train, the first one reads it.

        Raises:
            ConfigError: There is none, it cannot be read, or it is of other data or settings.
        """
        saved = here().from_first(self._read)
        rows = saved.pop("rows", "")
        return Progress(**here().all_of(lambda: self._with_rows(saved, rows)))

    def _with_rows(self, saved: dict[str, Any], rows: str) -> dict[str, Any]:
        if self.model is None:
            return saved
        try:
            return load_rows(saved, self.model, self.path / rows)
        except (OSError, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"{argument('resume')} cannot read {str(self.path / rows)!r}; remove "
                f"{str(self.path)!r} and train from the start."
            ) from error

    def _read(self) -> dict[str, Any]:
        if not self.file.is_file():
            raise ConfigError(
                f"{argument('resume')} needs a checkpoint, got none at {str(self.path)!r}; "
                "train without it."
            )
        try:
            saved = torch.load(self.file, weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(
                f"{argument('resume')} cannot read {str(self.file)!r}; remove it and train from the start."
            ) from error
        if not isinstance(saved, dict) or saved.pop("fingerprint", None) != self.fingerprint:
            raise ConfigError(
                f"{argument('resume')} must be given the data and the settings of the first run, got "
                f"others; repeat that command, or train without {argument('resume')}."
            )
        return saved

    def load_if_fit(self) -> Progress:
        """Return the progress that was saved, or that of the start where there is none that fits."""
        try:
            return self.load()
        except (ConfigError, OtherProcessError):
            return Progress()

    def save(self, progress: Progress) -> None:
        """Write the progress; a reader finds the old one or the new one, never half.

        If the disk has no room for both, the old one is deleted first.

        Raises:
            BundleError: It cannot be written; the folder is gone then.
        """
        try:
            state = self._saved_rows(vars(progress))
            if not here().is_first:
                return
            try:
                self._write(state, progress.log)
            except (OSError, RuntimeError):
                self.file.unlink(missing_ok=True)
                self.file.with_name(f"{self.file.name}.writing").unlink(missing_ok=True)
                self._write(state, progress.log)
        except (OSError, RuntimeError) as error:
            self.remove()
            raise BundleError(
                f"the checkpoint {str(self.path)!r} could not be written: {_reason(error)}; "
                f"free some space or choose another {argument('out')}; nothing was left behind."
            ) from error

    def _saved_rows(self, state: dict[str, Any]) -> dict[str, Any]:
        """Write what each process keeps of tables, and return the rest; without such tables it is all."""
        places = {} if self.model is None else places_of(state, self.model)
        if not places:
            return state
        rows = f"{self.file.stem}-rows-{state['epoch']}"
        if here().is_first:
            self.path.mkdir(exist_ok=True)
            shutil.rmtree(self.path / rows, ignore_errors=True)
        return {**save_rows(state, places, self.path / rows), "rows": rows}

    def _write(self, state: dict[str, Any], log: list[dict[str, Any]]) -> None:
        self.path.mkdir(exist_ok=True)
        temporary = self.file.with_name(f"{self.file.name}.writing")
        with temporary.open("wb") as file:  # torch keeps an OSError as the cause only of open files
            torch.save({**state, "fingerprint": self.fingerprint}, file)
        os.replace(temporary, self.file)  # noqa: PTH105 - atomic on every system
        for old in self.path.glob(f"{self.file.stem}-rows-*"):
            if old.name != state.get("rows"):
                shutil.rmtree(old, ignore_errors=True)
        lines = "".join(json.dumps(record) + "\n" for record in log)
        (self.path / "log.jsonl").write_text(lines, encoding="utf-8", newline="\n")

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def _reason(error: BaseException | None) -> str:
    """Return what the system said: torch raises a RuntimeError of its own while handling that."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return "the disk is full" if error.errno == errno.ENOSPC else error.strerror.lower()
        error = error.__context__
    return "writing failed"
