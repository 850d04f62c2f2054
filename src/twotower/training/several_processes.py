"""What several processes that train one model must agree on, before the first step."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np
import polars as pl
import torch

from twotower.caller import argument
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.errors import ConfigError
from twotower.processes.job import here
from twotower.training.bundle_contents import data_digest, fingerprint
from twotower.training.task import Task
from twotower.training.trainer import Trainer


def check_settings(config: Config, *, minutes: float | None, has_teacher: bool) -> None:
    """Refuse what several processes can't do together.

    Raises:
        ConfigError: A clock would decide when each of them ends, or there is nothing to share.
    """
    if minutes is not None:
        raise ConfigError(
            f"{argument('minutes')} must be left out where several processes train, got {minutes:g}; set "
            "training.epochs."
        )
    if has_teacher:
        raise ConfigError(
            f"{argument('teacher')} must be left out where several processes train, got one; start it "
            "without torchrun."
        )
    if config.training.solver == "spectral":
        raise ConfigError(
            "training.solver must not be 'spectral' where several processes train: the closed form is "
            "computed by one; start it without torchrun."
        )


def check_alike(task: Task) -> None:
    """Refuse processes that read different events or have different settings.

    Raises:
        ConfigError: Settings, versions of libraries or events differ, or there are fewer events than
            processes; the first process has it.
        OtherProcessError: The same in the other processes.
    """
    job = here()
    dataset = task.dataset
    of_all = job.objects(
        {
            "settings": task.config.to_toml(),
            "version of twotower": version("twotower"),
            "version of torch": torch.__version__.partition("+")[0],
            "version of numpy": np.__version__,
            "version of polars": pl.__version__,
            "events": data_digest(dataset.interactions, dataset.parts),
        }
    )
    num = int((dataset.parts == Part.TRAIN).sum())

    def check() -> None:
        _check_equal(of_all)
        if num < job.size:
            raise ConfigError(
                f"training must have an event for each process, got {num:,} events and {job.size} "
                "processes; start fewer processes."
            )

    job.all_of(check)


def check_same_features(trainer: Trainer) -> None:
    """Refuse processes whose tables of items or queries differ.

    Raises:
        ConfigError: The features differ; the first process has it.
        OtherProcessError: The same in the other processes.
    """
    job = here()
    of_all = job.objects({"items and queries": fingerprint(trainer)})
    job.all_of(lambda: _check_equal(of_all))


def _check_equal(of_all: Sequence[Mapping[str, str]]) -> None:
    """Refuse differences between what each process has, by its name."""
    for rank, given in enumerate(of_all):
        for name, text in given.items():
            if text != of_all[0][name]:
                first, other = (_short(name, each) for each in (of_all[0][name], text))
                raise ConfigError(
                    f"all processes must have the same {name}, got {first} in process 0 and {other} in "
                    f"process {rank}; start all of them with one command on equal machines."
                )


def _short(name: str, text: str) -> str:
    """Return versions as they are, and the first digits of the digest of anything longer."""
    if name.startswith("version"):
        return text
    return f"digest {hashlib.sha256(text.encode()).hexdigest()[:12]}"
