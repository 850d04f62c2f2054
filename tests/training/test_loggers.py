"""A training as TensorBoard and MLflow have it, read back with their own readers."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from twotower.config import Config
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import ConfigError, MissingExtraError
from twotower.training.callbacks import Callback, Callbacks
from twotower.training.checkpoints import Progress
from twotower.training.loggers import MLflowLogger, TensorBoardLogger
from twotower.training.pipeline import train
from twotower.training.trained import Trained

CONFIG: dict[str, dict[str, Any]] = {
    "towers": {"dim": 4},
    "training": {"epochs": 2, "batch_size": 16, "solver": "gradient"},
}
VERDICT = "The model beats ItemKNN by 0.021 NDCG@10 (95 % interval 0.015 to 0.027)."


def fit(tables: SyntheticTables, teller: Callback) -> Trained:
    return train(
        tables.interactions,
        items=tables.items,
        queries=tables.queries,
        config=CONFIG,
        progress=teller,
        name="a small world",
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder that MLflow keeps runs in without a server or a data base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        yield tmp_path_factory.mktemp("mlflow").as_uri()


@pytest.fixture(scope="module")
def run(
    small_world: SyntheticTables, store: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trained, EventAccumulator, Run, MlflowClient]:
    """One training told to both at once."""
    folder = tmp_path_factory.mktemp("board") / "run"
    board, flow = TensorBoardLogger(folder), MLflowLogger("small", uri=store, run_name="first")
    trained = fit(small_world, Callbacks([board, flow]))
    events = EventAccumulator(str(folder))
    events.Reload()
    client = MlflowClient(store)
    (found,) = runs_of(client, "small")
    return trained, events, found, client


def runs_of(client: MlflowClient, experiment: str) -> list[Run]:
    known = client.get_experiment_by_name(experiment)
    assert known is not None
    return list(client.search_runs([known.experiment_id]))


def text_of(events: EventAccumulator, name: str) -> str:
    return str(events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode())


Ran = tuple[Trained, EventAccumulator, Run, MlflowClient]


class TestTensorBoard:
    def test_a_loss_and_a_validation_for_each_epoch(self, run: Ran) -> None:
        trained, events, _, _ = run
        log = [json.loads(line) for line in trained.contents.log.splitlines()]
        losses = events.Scalars("train/loss")
        assert [point.value for point in losses] == pytest.approx([r["loss"] for r in log])
        steps_per_epoch = losses[0].step
        assert [point.step for point in losses] == [steps_per_epoch, 2 * steps_per_epoch]
        valid = events.Scalars("valid/ndcg@10")
        assert [p.value for p in valid] == pytest.approx([r["valid_ndcg@10"] for r in log])

    def test_the_loss_of_every_twentieth_batch(self, run: Ran) -> None:
        _, events, _, _ = run
        per_epoch = events.Scalars("train/loss")[0].step
        steps = [point.step for point in events.Scalars("train/loss_of_batch")]
        assert per_epoch > 20
        expected = [*range(0, per_epoch, 20), *range(per_epoch, 2 * per_epoch, 20)]
        assert steps == expected

    def test_the_figures_of_each_method(self, run: Ran) -> None:
        trained, events, _, _ = run
        (point,) = events.Scalars("test/ndcg@10")
        assert point.value == pytest.approx(trained.figures["model"]["ndcg@10"])
        (point,) = events.Scalars("test/item_knn/recall@100")
        assert point.value == pytest.approx(trained.figures["item_knn"]["recall@100"])
        tests = [tag for tag in events.Tags()["scalars"] if tag.startswith("test/")]
        assert not any("interval" in tag or "curve" in tag or "protocol" in tag for tag in tests)

    def test_texts(self, run: Ran) -> None:
        _, events, _, _ = run
        assert "a small world: 640 events, 80 queries, 60 items" in text_of(events, "data")
        assert "item_id: item" in text_of(events, "data")
        assert "dim = 4" in text_of(events, "config")
        assert text_of(events, "choices").strip()


class TestMLflow:
    def test_metrics_without_the_sign_that_it_refuses(self, run: Ran) -> None:
        trained, _, found, client = run
        metrics = found.data.metrics
        assert metrics["test/ndcg_at_10"] == pytest.approx(trained.figures["model"]["ndcg@10"])
        assert metrics["test/popularity/recall_at_100"] == pytest.approx(
            trained.figures["popularity"]["recall@100"]
        )
        history = client.get_metric_history(found.info.run_id, "valid/ndcg_at_10")
        assert len(history) == 2
        assert history[1].step == 2 * history[0].step > 0

    def test_settings_are_parameters_and_columns_are_not(self, run: Ran) -> None:
        _, _, found, _ = run
        assert found.data.params["towers.dim"] == "4"
        assert found.data.params["training.epochs"] == "2"
        assert found.data.params["features.min_count"] == "2"
        assert not any(name.startswith("features.item") for name in found.data.params)
        assert "[features.item]" in found.data.tags["config"]

    def test_the_run_is_named_finished_and_described(self, run: Ran) -> None:
        _, _, found, _ = run
        assert found.info.run_name == "first"
        assert found.info.status == "FINISHED"
        assert "640 events" in found.data.tags["data"]
        assert "dim = 4" in found.data.tags["config"]

    def test_a_second_training_is_a_second_run(self, store: str) -> None:
        logger = MLflowLogger("twice", uri=store)
        told(logger)
        told(MLflowLogger("twice", uri=store))
        assert len(runs_of(MlflowClient(store), "twice")) == 2

    def test_a_training_that_fails(self, store: str) -> None:
        logger = MLflowLogger("failing", uri=store)
        logger.on_start(10, Progress())
        logger.on_end()
        (found,) = runs_of(MlflowClient(store), "failing")
        assert found.info.status == "FAILED"

    def test_an_interrupted_one_keeps_its_figures(self, store: str) -> None:
        told(MLflowLogger("interrupted", uri=store), stopped_early=True)
        (found,) = runs_of(MlflowClient(store), "interrupted")
        assert found.info.status == "KILLED"
        assert found.data.metrics["test/ndcg_at_10"] == 0.5
        assert found.data.tags["verdict"] == VERDICT

    def test_a_setting_that_is_decided_last_is_a_parameter_as_it_was_decided(
        self, store: str
    ) -> None:
        logger = MLflowLogger("late", uri=store)
        logger.on_choices((), Config().with_settings(["towers.spectral_dim=0"]))
        logger.on_start(10, Progress())
        logger.on_choices((), Config().with_settings(["towers.spectral_dim=64"]))
        logger.on_figures({"model": {}, "protocol": {"part": "test"}}, stopped_early=False)
        (found,) = runs_of(MlflowClient(store), "late")
        assert found.data.params["towers.spectral_dim"] == "64"

    def test_data_that_are_refused_leave_no_run(self, store: str) -> None:
        logger = MLflowLogger("refused", uri=store)
        logger.on_choices(("a choice",), Config())
        logger.on_end()
        assert runs_of(MlflowClient(store), "refused") == []

    def test_names_of_any_column_and_figures_that_are_no_number(self, store: str) -> None:
        logger = MLflowLogger("odd", uri=store)
        logger.on_start(10, Progress())
        figures = {
            "model": {"auc ($)": 0.7, "log_loss": float("nan")},
            "protocol": {"part": "test"},
        }
        logger.on_figures(figures, stopped_early=False)
        (found,) = runs_of(MlflowClient(store), "odd")
        assert found.data.metrics == {"test/auc ___": 0.7}

    def test_a_store_that_cannot_be_used(self) -> None:
        with pytest.raises(ConfigError, match=r"store of MLflow .* got from 'nonsense://x'"):
            MLflowLogger(uri="nonsense://x")

    def test_a_place_of_the_environment_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://y")
        with pytest.raises(ConfigError, match=r"from MLFLOW_TRACKING_URI='nonsense://y'"):
            MLflowLogger()

    def test_without_a_place_it_asks_for_a_server(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        # Its local store is there as soon as another extra brings SQLAlchemy.
        for name in ("sqlalchemy", "mlflow.store.tracking.sqlalchemy_store"):
            monkeypatch.setitem(sys.modules, name, None)
        told = (
            r"running tracking server, .*mlflow-skinny has no local store; set MLFLOW_TRACKING_URI"
        )
        with pytest.raises(ConfigError, match=told):
            MLflowLogger()


def told(teller: Callback, *, stopped_early: bool = False) -> None:
    """Tell of a training of one epoch without doing it."""
    teller.on_start(10, Progress())
    teller.on_step(0, lambda: 2.0, 16)
    teller.on_epoch({"epoch": 1, "loss": 1.5, "valid_ndcg@10": 0.25})
    teller.on_end()
    teller.on_figures(
        {
            "model": {"ndcg@10": 0.5},
            "intervals": {"model": {"ndcg@10": [0.5, 0.4, 0.6]}},
            "curves": {"k": [1, 2], "ndcg": {"model": [0.1, 0.2]}},
            "verdict": VERDICT,
            "protocol": {"part": "test", "queries": 3},
        },
        stopped_early,
    )


def test_a_training_that_goes_on_counts_from_its_start(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.on_start(10, Progress(epoch=3))
    logger.on_step(0, lambda: 2.0, 16)
    logger.on_epoch({"epoch": 4, "loss": 1.5, "valid_ndcg@10": 0.25})
    logger.on_end()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss_of_batch")] == [30]
    assert [point.step for point in events.Scalars("train/loss")] == [40]


def test_a_loss_is_read_only_when_it_is_written(tmp_path: Path) -> None:
    """Reading it waits for the device."""
    reads = 0

    def loss() -> float:
        nonlocal reads
        reads += 1
        return 1.0

    logger = TensorBoardLogger(tmp_path)
    logger.on_start(100, Progress())
    for step in range(41):
        logger.on_step(step, loss, 16)
    logger.on_end()
    assert reads == 3


def test_an_end_before_a_start_writes_nothing(tmp_path: Path) -> None:
    TensorBoardLogger(tmp_path / "run").on_end()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("tensorboard", "tensorboard", lambda: TensorBoardLogger("board")),
        ("mlflow", "mlflow", MLflowLogger),
    ],
)
def test_a_library_that_is_not_installed(
    module: str, extra: str, make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install .*\[{extra}\]'"):
        make()


class Listener(Callback):
    """Notes the name of every call."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *_: self.heard.append(name)


def test_callbacks_pass_every_call_on_to_all() -> None:
    first, second = Listener(), Listener()
    tellers: Any = Callbacks([first, second])
    calls: dict[str, tuple[Any, ...]] = {
        "on_data": (None, (), ()),
        "on_choices": ((), Config()),
        "on_phase": ("training",),
        "on_start": (1, Progress()),
        "on_step": (0, float, 1),
        "on_epoch": ({},),
        "on_end": (),
        "on_figures": ({}, False),
        "on_trial": (None,),
        "on_trials": ((), Config()),
    }
    assert set(calls) == {name for name in vars(Callback) if name.startswith("on_")}
    for name, arguments in calls.items():
        getattr(tellers, name)(*arguments)
    assert first.heard == second.heard == list(calls)
