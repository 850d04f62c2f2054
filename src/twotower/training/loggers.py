"""Trainings written down for TensorBoard and for MLflow, through the calls that a ``Callback`` gets."""

import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from twotower.config import Config
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset
from twotower.errors import ConfigError
from twotower.evaluation.figures import Figures
from twotower.evaluation.refit_notes import note
from twotower.extras import library
from twotower.features.schema import Feature
from twotower.training.callbacks import STEPS_A_READING, Callback
from twotower.training.checkpoints import Progress
from twotower.training.settings import DECIDED_LAST

_PARAMS_A_CALL = 100  # what MLflow takes at once


class _Logger(Callback, ABC):
    """Turns the calls of a training into numbers and texts; where they go is a subclass's affair.

    Nothing is written before the training starts, so that data or settings that are refused leave no
    empty run behind. The step of a number counts batches from the start of the training, also where it
    goes on from a checkpoint.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._settings: dict[str, Any] = {}
        self._steps_per_epoch = 0
        self._has_begun = False
        self._epoch = 0

    def on_data(
        self, dataset: Dataset, decisions: tuple[Decision, ...], features: tuple[Feature, ...]
    ) -> None:
        """Note what the data is, and which column is what."""
        counts = f"{dataset.name}: {dataset.sizes}"
        columns = [
            f"{d.column}: {d.role or 'not used'} ({d.reason})" for d in decisions if d.column
        ]
        fed = [f"{f.side} {f.name}: {f.described} ({f.reason})" for f in features]
        self._texts["data"] = "\n".join((counts, *columns, *fed, *dataset.notes))

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:
        """Note the settings, and why every ``auto`` became what it is."""
        said = (self._texts.get("choices"), *choices)
        self._texts |= {"choices": "\n".join(filter(None, said)), "config": config.to_toml()}
        self._settings = config.to_flat()

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None:
        """Open the run and write down what was noted."""
        self._steps_per_epoch, self._epoch = steps_per_epoch, progress.epoch
        self._begin()
        for (
            record
        ) in progress.log:  # epochs before: of a race, or of a training that was interrupted
            if "epoch" in record:
                self.on_epoch(record)

    def _begin(self) -> None:
        self._has_begun = True
        self._open()
        self._parameters({n: each for n, each in self._settings.items() if n not in DECIDED_LAST})
        for name, text in self._texts.items():
            self._text(name, text)

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:  # noqa: ARG002
        """Write the loss of every twentieth batch."""
        if step % STEPS_A_READING == 0:
            at = self._epoch * self._steps_per_epoch + step
            self._scalars({"train/loss_of_batch": loss()}, at)

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Write the epoch's means."""
        self._epoch = int(record["epoch"])
        names = {key: f"train/{key}" for key in ("loss", "temperature", "examples_per_second")}
        names |= {k: f"valid/{k.removeprefix('valid_')}" for k in record if k.startswith("valid_")}
        found = {name: float(record[key]) for key, name in names.items() if key in record}
        if (beside := record.get("closed_form")) is not None:
            found["valid/with_closed_form"] = float(beside["metric"])
        self._scalars(found, self._epoch * self._steps_per_epoch)

    def on_end(self) -> None:
        """Close the run as one that failed; figures that come yet open it again."""
        self._close("FAILED")

    def on_figures(self, figures: Figures, stopped_early: bool) -> None:
        """Write the figures of the model and of the baselines, and what they say."""
        if not self._has_begun:  # it was interrupted in the race
            self._begin()
        part = figures["protocol"]["part"]
        found: dict[str, float] = {}
        for method, metrics in figures.items():
            if method in ("protocol", "refit") or not isinstance(metrics, Mapping):
                continue
            prefix = part if method == "model" else f"{part}/{method}"
            # The intervals, curves and sentences beside the methods are not numbers.
            for metric, value in metrics.items():
                if isinstance(value, Real):
                    found[f"{prefix}/{metric}"] = float(value)
        self._scalars(found, self._epoch * self._steps_per_epoch)
        for name in ("choices", "config"):
            if name in self._texts:  # validation may have decided more since the start
                self._text(name, self._texts[name])
        self._parameters({n: each for n, each in self._settings.items() if n in DECIDED_LAST})
        if "verdict" in figures:
            self._text("verdict", figures["verdict"])
        said = note(figures)
        if said is not None:
            self._text("refit", said)
        self._close("KILLED" if stopped_early else "FINISHED")

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _parameters(self, settings: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _scalars(self, values: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def _text(self, name: str, text: str) -> None: ...

    @abstractmethod
    def _close(self, status: str) -> None: ...


class TensorBoardLogger(_Logger):
    """Writes a training as event files that TensorBoard shows.

    Scalars: ``train/loss_of_batch`` every twentieth step, ``train/loss``, ``train/temperature``,
    ``train/examples_per_second`` and ``valid/METRIC`` at the end of each epoch, ``test/METRIC`` of the
    model and ``test/BASELINE/METRIC`` of the baselines at the end. Data, choices, settings and verdict
    become texts.

    Args:
        folder: Where the files go; it is made. TensorBoard shows the folders beside each other, so that
            each training wants its own.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        library("tensorboard", wanted_by="TensorBoardLogger", extra="tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.folder = Path(folder)
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def _open(self) -> None:
        self._writer = self._make(str(self.folder))

    def _parameters(self, settings: Mapping[str, Any]) -> None:
        """Write nothing: the text of the configuration has them."""

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _text(self, name: str, text: str) -> None:
        shown = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown: as it stands
        self._writer.add_text(name, shown)

    def _close(self, status: str) -> None:  # noqa: ARG002 - event files have no status
        if self._writer is not None:
            self._writer.close()  # it opens another file where more comes


class MLflowLogger(_Logger):
    """Writes a training as a run of MLflow.

    The metrics are the scalars of ``TensorBoardLogger``, where ``ndcg@10`` is ``ndcg_at_10``, as MLflow
    refuses ``@``; one that is NaN or infinite is left out. The settings become parameters, such as
    ``loss.kind``; those that validation decides after the training follow with the figures. Data, choices,
    verdict and the whole configuration become tags of at most 5,000 characters. A run that broke off is
    FAILED; one that was interrupted and kept its best weights is KILLED.

    Args:
        experiment: Its name, made where there is none; None is MLflow's default experiment.
        uri: Of the tracking server or store; None is that of the environment variable
            ``MLFLOW_TRACKING_URI``. mlflow-skinny, what the extra installs, has no local store.
        run_name: What the run is called; None lets MLflow name it.

    Raises:
        MissingExtraError: MLflow is not installed.
        ConfigError: The store at ``uri`` cannot be used, or no server is named.
    """

    def __init__(
        self, experiment: str | None = None, *, uri: str | None = None, run_name: str | None = None
    ) -> None:
        super().__init__()
        library("mlflow", wanted_by="MLflowLogger", extra="mlflow")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._metric, self._param = Metric, Param
        self._run_name, self._run_id = run_name, ""
        try:
            self._client = MlflowClient(uri)
            if experiment is None:
                self._experiment_id = self._client.get_experiment("0").experiment_id
            elif known := self._client.get_experiment_by_name(experiment):
                self._experiment_id = known.experiment_id
            else:
                self._experiment_id = self._client.create_experiment(experiment)
        except (MlflowException, ImportError) as error:
            named = os.environ.get("MLFLOW_TRACKING_URI")
            if uri is None and not named:
                raise ConfigError(
                    "MLflow must have a running tracking server, got no uri and no environment variable "
                    "MLFLOW_TRACKING_URI, and mlflow-skinny has no local store; set "
                    "MLFLOW_TRACKING_URI to a server, such as http://localhost:5000."
                ) from error
            reason = str(error).partition(". ")[0].strip().rstrip(".")
            place = f"MLFLOW_TRACKING_URI={named!r}" if uri is None else repr(uri)
            raise ConfigError(
                f"the store of MLflow must be one that it can use, got from {place}: {reason}; "
                "name a tracking server, such as http://localhost:5000."
            ) from error

    def _open(self) -> None:
        run = self._client.create_run(self._experiment_id, run_name=self._run_name)
        self._run_id = run.info.run_id

    def _parameters(self, settings: Mapping[str, Any]) -> None:
        # Features are named after columns, as many as there are and as they are called.
        params = [
            self._param(name, str(value))
            for name, value in settings.items()
            if not name.startswith(("features.query.", "features.item."))
        ]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self._client.log_batch(self._run_id, params=params[start : start + _PARAMS_A_CALL])

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [
            # MLflow takes letters, digits, `_-. /` and no `@`.
            self._metric(re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_")), value, now, step)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _text(self, name: str, text: str) -> None:
        self._client.set_tag(self._run_id, name, text[:5000])

    def _close(self, status: str) -> None:
        if self._run_id:
            self._client.set_terminated(self._run_id, status)
