"""A closed form beside the towers: the scores of both are added, and validation decides whether."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from trainers import Said
from twotower import Retriever, exports, train, tune
from twotower.baselines import history_matrices
from twotower.baselines.spectral import Spectral
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.errors import ConfigError
from twotower.histories import Histories
from twotower.report.sections.training import epoch_lines
from twotower.report.wording import speaker
from twotower.training import closed_form_sum
from twotower.training.best import add_better_part
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.closed_form import chosen
from twotower.training.closed_form_sum import WORTH, Beside, Sums, is_worth
from twotower.training.loggers import TensorBoardLogger
from twotower.training.notebook import NotebookProgress
from twotower.training.progress import ProgressBar
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW

WIDTH = 6


def walks(seed: int = 0, queries: int = 90) -> pl.DataFrame:
    """Queries take the items of one of five kinds, one after the other from a place of their own."""
    rng = np.random.default_rng(seed)
    rows = []
    for query in range(queries):
        kind, place = query % 5, int(rng.integers(0, 16))
        for step in range(8):
            item = (
                int(rng.integers(0, 80)) if rng.random() < 0.2 else kind * 16 + (place + step) % 16
            )
            rows.append((query, item, 1.6e9 + step * 3600.0 + query))
    return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


def settings(history: str = "pooled", **towers: Any) -> dict[str, Any]:
    of_towers = {"dim": 8, "history": history, "query_id": "off", "question_time": "off", **towers}
    training = {
        "epochs": 2,
        "batch_size": 128,
        "threads": 1,
        "precision": "float32",
        "start": "random",
    }
    return {"towers": of_towers, "training": training}


def trainer_of(config: dict[str, Any]) -> Trainer:
    task = Task.of(walks(), config=Config.from_dict(config))
    return Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])


def unit_length(vectors: np.ndarray[Any, Any], is_trained: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return vectors with a root mean square of 1 over the trained items' lengths."""
    square = (vectors[is_trained] ** 2).sum(axis=1).mean()
    return torch.from_numpy(vectors / np.sqrt(square))


@pytest.mark.parametrize(
    ("history", "similarity", "half_life"),
    [("pooled", "dot", 2.0), ("transformer", "cosine", None), ("bag", "dot", 1.0)],
)
def test_the_scores_are_added(history: str, similarity: str, half_life: float | None) -> None:
    trainer = trainer_of(settings(history, similarity=similarity))
    trainer.fit()
    dataset = trainer.dataset
    spectral = Spectral.fit(
        dataset.part(Part.TRAIN),
        dataset.items.ids.num_rows,
        width=WIDTH,
        query_power=0.5,
        item_power=0.25,
        popularity_power=0.0,
        place=3,
        half_life=half_life,
    )
    cases = dataset.cases(Part.TEST)
    before = trainer.scorer().score(cases)
    trainer.add(spectral, 0.3)
    assert trainer.config.towers.compared_width == 8 + WIDTH
    assert trainer.encoding.item_vectors().shape[1] == 8 + WIDTH
    history_of = history_matrices.decayed_histories(
        cases.histories, dataset.items.ids.num_rows, half_life
    )
    is_trained = spectral.spectrum.degrees > 0
    events = unit_length(spectral.history_vectors, is_trained)
    means = torch.from_numpy(history_of @ events.numpy() / history_of.sum(axis=1)[:, None])
    expected = before + 0.3 * means @ unit_length(spectral.item_vectors, is_trained).T
    own = (
        trainer.encoding.item_features["item"].long() >= FIRST_ROW
    )  # of one event there is no embedding
    seen = [bool(own[cases.histories.of_one(n)].all()) for n in range(len(cases))]
    assert sum(seen) > 60
    torch.testing.assert_close(
        trainer.scorer().score(cases)[seen][:, own],
        expected[seen][:, own].float(),
        rtol=1e-3,
        atol=1e-4,
    )
    trainer.remove_added()
    assert torch.equal(trainer.scorer().score(cases), before)
    assert trainer.config.towers.spectral_dim == 0


@pytest.mark.parametrize("history", ["pooled", "transformer", "gru"])
def test_a_bundle_answers_as_it_was_evaluated(history: str, tmp_path: Path) -> None:
    frame = walks().with_columns(rating=pl.col("item") % 5)
    config = settings(history, spectral_dim=WIDTH) | {
        "features": {"event": {"rating": "categorical"}}
    }
    found = train(frame, config=config, out=tmp_path / "m", baselines=[])
    assert found.contents.config.towers.spectral_dim == WIDTH
    assert found.contents.item_vectors.shape[1] == 8 + WIDTH
    opened = Retriever.open(tmp_path / "m")
    asked = list(range(0, 90, 7))
    for mine, its in zip(found.retriever.recommend(asked), opened.recommend(asked), strict=True):
        assert (mine.item_ids, mine.scores) == (its.item_ids, its.scores)

    events = [{"item": item, "rating": item % 5} for item in (3, 4, 20, 5)]
    encoding, state = opened.encoding, None
    rows = opened.contents.items.ids.rows_of([event["item"] for event in events])
    features = {name: values[:1] for name, values in opened.query_features.items()}
    assert opened.contents.events is not None
    of_events = opened.contents.events.transforms.apply_to_rows(
        pl.DataFrame({"rating": [event["rating"] for event in events]})
    )
    for place, row in enumerate(rows):
        event = {
            n: torch.from_numpy(v[FIRST_ROW + place :][:1].copy()) for n, v in of_events.items()
        }
        vector, state = encoding.next_query_vector(features, int(row), None, state, event)
    whole = opened.encode_queries(history=[events])
    np.testing.assert_allclose(vector.numpy(), whole, rtol=1e-4, atol=1e-5)

    if history != "pooled":
        return
    pytest.importorskip("onnxruntime")
    exports.export_onnx(
        opened, tmp_path / "onnx"
    )  # compares the vectors of both towers with torch's


def test_new_items_have_what_is_expected_and_queries_without_events_none_of_it() -> None:
    found = train(walks(), config=settings(spectral_dim=WIDTH), baselines=[])
    retriever = found.retriever
    with pytest.warns(UserWarning, match="vector of an unknown item"):
        retriever.upsert_items(pl.DataFrame({"item": [999]}))
    new, known = (retriever.encode_items(ids) for ids in ([999], list(range(80))))
    given = np.hstack([known[:, :8], np.ones((80, 1))])
    fitted = np.linalg.lstsq(given, known[:, 8:], rcond=None)[0]
    expected = np.hstack([new[:, :8], np.ones((1, 1))]) @ fitted
    np.testing.assert_allclose(new[:, 8:], expected, rtol=0.1, atol=0.01)
    assert np.abs(new[:, 8:]).max() > 0.001
    empty = retriever.encoding.query_vectors(
        {name: values[:1] for name, values in retriever.query_features.items()}, Histories.empty(1)
    )
    assert not empty[0, 8:].any()


def test_one_that_helps_is_added_at_the_best_scale() -> None:
    trainer = trainer_of(settings("mean", dim=1))
    done, told = trainer.fit(), Said()
    trained, spectral = trainer.validate(), chosen(trainer.dataset, WIDTH)
    add_better_part(Config(), trainer, done, (spectral,), told)
    assert trainer.config.towers.spectral_dim == WIDTH
    assert trainer.added is not None
    found = trainer.added["scale"]
    metric = trainer.validate()
    assert done.best_metric == metric > trained
    record = done.log[0]
    assert (record["setting"], record["chosen"]) == ("towers.spectral_dim", WIDTH)
    assert record["compared"] == [
        {"value": 0, "metric": trained},
        {"value": WIDTH, "metric": metric},
    ]
    lead = f"towers.spectral_dim = {WIDTH}: validation ndcg@10 is {metric:.4f} with a closed form"
    assert told.said == [f"{lead} beside the towers, {trained:.4f} without; vectors have 7 numbers"]
    trainer.add(spectral, found / 2)  # the scale before
    assert trainer.validate() <= metric


@pytest.mark.parametrize("history", ["mean", "transformer"])
def test_sums_have_the_metrics_of_models_with_the_closed_form(
    history: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(settings(history))
    trainer.fit()
    spectral, scales = chosen(trainer.dataset, WIDTH), (0.1, 3.0, 20.0)
    expected = []
    for scale in scales:
        trainer.add(spectral, scale)
        expected.append(trainer.validate())
    monkeypatch.setattr(closed_form_sum, "_SCORES", 1_000)  # in several parts
    assert Sums(trainer, spectral).metrics(scales) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) == len(scales)
    # The model knows nothing of queries without events: popularity answers them at every scale.
    objective = trainer.objectives[0]
    histories = Histories.empty(len(objective.valid))
    objective.valid = replace(objective.valid, histories=histories)
    first, *others = Sums(trainer, spectral).metrics(scales)
    assert others == [first, first] == [trainer.validate()] * 2


def test_one_that_does_not_help_is_not_added() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (q, (int(p) + s) % 20, 1.6e9 + s)
        for q, p in enumerate(rng.integers(0, 20, 150))
        for s in range(8)
    ]
    frame = pl.DataFrame(
        rows, schema=["user", "item", "timestamp"], orient="row"
    )  # always the next item
    config = settings("transformer", dim=16)
    config["training"] |= {"epochs": 20, "patience": 20, "learning_rate": 0.02}
    told = Said()
    found = train(frame, config=config, baselines=[], progress=told)
    assert found.contents.config.towers.spectral_dim == 0
    assert found.contents.item_vectors.shape[1] == 16
    assert told.said[-1].startswith("towers.spectral_dim = 0: validation ndcg@10 is ")


def test_a_wide_one_must_be_better_by_one_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # Many small groups of items, which a narrow model cannot hold, in any order.
    rows = [(q, 5 * (q % 300) + int(item)) for q in range(1200) for item in rng.permutation(5)]
    frame = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    config = settings("mean", dim=1, similarity="dot") | {"data": {"order": "file"}}
    found = train(frame, config=config, baselines=[])
    wide = found.contents.config.towers.spectral_dim
    assert wide is not None
    assert wide > 64
    task = Task.of(frame, config=Config.from_dict(config))
    trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
    trainer.fit(epochs=1)
    part = chosen(trainer.dataset, None)
    assert part.width == wide
    beside = Beside((replace(part, width=64), part))
    alone = trainer.validate()
    ahead = beside.judge(trainer, alone, None)
    assert ahead["width"] == wide
    assert trainer.validate() == alone  # nothing stays added
    monkeypatch.setattr(closed_form_sum, "WORTH", 100.0)
    assert beside.judge(trainer, alone, None)["width"] == 64


@pytest.mark.parametrize("is_stated", [False, True])
def test_the_best_epoch_is_that_of_what_is_served(is_stated: bool) -> None:
    trainer = trainer_of(settings("transformer", dim=2))
    beside = Beside((chosen(trainer.dataset, WIDTH),), is_stated)
    trainer.beside = beside
    trainer.config = replace(
        trainer.config, training=replace(trainer.config.training, epochs=6, patience=6)
    )
    done = trainer.fit()
    sums = [record["closed_form"]["metric"] for record in done.log]
    alone = [record["valid_ndcg@10"] for record in done.log]
    assert np.argmax(alone) != np.argmax(sums)
    counted = sums if is_stated else [max(a, s / WORTH) for a, s in zip(alone, sums, strict=True)]
    assert done.best_epoch == 1 + np.argmax(counted)
    assert done.best_metric == max(counted)
    best = done.log[done.best_epoch - 1]
    assert done.metric_alone("ndcg@10") == best["valid_ndcg@10"] == trainer.validate()
    sums_again = Sums(trainer, beside.parts[0])
    share = best["closed_form"]["share"]
    assert sums_again.metrics([share * sums_again.unit]) == [best["closed_form"]["metric"]]
    add_better_part(Config(), trainer, done, beside.parts, Said())
    assert done.best_metric is not None
    assert done.best_metric >= best["closed_form"]["metric"]


def test_an_epoch_is_shown_with_the_sum(tmp_path: Path) -> None:
    record: dict[str, Any] = {
        "epoch": 1,
        "loss": 1.5,
        "examples_per_second": 10.0,
        "valid_ndcg@10": 0.25,
    }
    record["closed_form"] = {"metric": 0.375, "width": 64, "share": 0.1}
    screen, notebook = Console(file=StringIO(), width=80), NotebookProgress()
    logger = TensorBoardLogger(tmp_path)
    for each in (ProgressBar(screen), notebook, logger):
        each.on_start(9, Progress())
        each.on_epoch(record)
        each.on_end()
    assert isinstance(screen.file, StringIO)
    line, *_ = screen.file.getvalue().splitlines()
    assert line.endswith("  validation ndcg@10 0.2500, sum 0.3750")
    assert "validation ndcg@10 0.3750 in epoch 1" in notebook.page()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [point.value for point in events.Scalars("valid/with_closed_form")] == [0.375]
    lines = epoch_lines([record, {**record, "epoch": 2}], 1, speaker("en"))
    assert [line.title for line in lines][1:] == [
        "Validation NDCG@10",
        "Validation, with a closed form",
    ]
    assert "0.375 at the epoch kept" in lines[2].label


class Stop(Callback):
    """Presses Ctrl-C in the second epoch, or while the closed form is compared."""

    def __init__(self, phase: str) -> None:
        self.phase, self.epochs = phase, 0

    def on_epoch(self, record: dict[str, Any]) -> None:  # noqa: ARG002
        self.epochs += 1

    def on_step(self, *given: Any) -> None:  # noqa: ARG002
        if self.epochs and self.phase == "training":
            raise KeyboardInterrupt

    def on_phase(self, phase: str) -> None:
        if phase == self.phase != "training":
            raise KeyboardInterrupt


@pytest.mark.parametrize("phase", ["training", "the closed form beside it"])
def test_ctrl_c_keeps_the_towers_alone(phase: str, tmp_path: Path) -> None:
    config, out = settings(spectral_dim=WIDTH), tmp_path / "m"
    found = train(walks(), config=config, out=out, baselines=[], progress=Stop(phase))
    assert found.stopped_early
    assert Retriever.open(out).contents.config.towers.spectral_dim == 0
    again = train(walks(), config=config, out=out, baselines=[], resume=True)
    assert again.contents.config.towers.spectral_dim == WIDTH
    assert again.figures == train(walks(), config=config, baselines=[]).figures


@pytest.mark.parametrize(
    "off", [{"towers": {"spectral_dim": 0}}, {"training": {"solver": "gradient"}}]
)
def test_it_can_be_left_out(off: dict[str, Any]) -> None:
    config = settings("mean", dim=1)
    config = {name: {**config[name], **off.get(name, {})} for name in config}
    found = train(walks(), config=config, baselines=[])
    assert found.contents.config.towers.spectral_dim == 0
    assert found.contents.item_vectors.shape[1] == 1


def test_other_seeds_and_more_events_have_it_too() -> None:
    config = settings(spectral_dim=WIDTH)
    once = train(walks(), config=config, baselines=[])
    found = train(walks(), config=config, baselines=[], seeds=2, refit=True)
    assert found.contents.item_vectors.shape[1] == 8 + WIDTH
    assert len(found.figures["seeds"]["ndcg@10"]["values"]) == 2
    ours, theirs = (each.contents.weights["spectral.items"] for each in (once, found))
    assert ours.shape[1] == theirs.shape[1] == WIDTH
    assert not torch.equal(ours[:80], theirs[:80])  # found anew, with the events of validation
    ratio = float(theirs.norm() / ours.norm())
    assert ratio == pytest.approx(1.0, abs=0.1)  # on the same scale


def test_a_bundle_trains_again_from_its_settings() -> None:
    first = train(walks(), config=settings(spectral_dim=WIDTH), baselines=[])
    again = train(walks(), config=first.contents.config, baselines=[])
    assert torch.equal(first.contents.item_vectors, again.contents.item_vectors)
    assert first.figures == again.figures


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"towers": {"history": "none", "query_id": "on"}}, "no history is read"),
        ({"loss": {"kind": "bce"}}, "loss.kind is 'bce', whose scores are probabilities"),
        ({"training": {"solver": "spectral"}}, "training.solver is 'spectral'"),
        ({"features": {"item": {"item": "text"}}}, "the items are read by no id"),
    ],
)
def test_where_it_cannot_be_is_said(changed: dict[str, Any], reason: str) -> None:
    config: dict[str, Any] = {"towers": {"spectral_dim": 4}}
    for name, values in changed.items():
        config[name] = {**config.get(name, {}), **values}
    task = Task.of(walks(), config=Config.from_dict(config))
    with pytest.raises(ConfigError, match=f"towers.spectral_dim must be 0 where {reason}, got 4"):
        resolve(task.config, task.dataset)


def test_towers_that_read_texts_on_both_sides_have_it_too() -> None:
    items = pl.DataFrame(
        {"item": list(range(80)), "title": [f"kind {n // 16} no {n}" for n in range(80)]}
    )
    queries = pl.DataFrame(
        {"user": list(range(90)), "about": [f"likes kind {n % 5}" for n in range(90)]}
    )
    config = settings(spectral_dim=WIDTH)
    config["features"] = {"item": {"title": "text"}, "query": {"about": "text"}}
    found = train(walks(), items=items, queries=queries, config=config, baselines=[])
    assert found.contents.config.towers.spectral_dim == WIDTH
    assert found.contents.item_vectors.shape[1] == 8 + WIDTH


def test_what_is_worth_it() -> None:
    assert not is_worth(0.0, 0.0)
    assert not is_worth(0.2, 0.199)
    assert is_worth(0.1, 0.0)
    assert is_worth(0.2, 0.198)


def test_a_stated_width_shrinks_with_the_data() -> None:
    told = Said()
    found = train(walks(), config=settings(spectral_dim=500), baselines=[], progress=told)
    width = found.contents.config.towers.spectral_dim
    assert width == found.contents.item_vectors.shape[1] - 8 <= 80
    assert told.said[-1].endswith("numbers, since the data have no more singular vectors")


def test_one_that_does_not_fit_into_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> None:
        raise MemoryError

    for place in ("part_of", "chosen"):
        told = Said()
        with monkeypatch.context() as patched:
            patched.setattr(f"twotower.training.closed_form.{place}", fails)
            patched.setattr(
                "twotower.training.best.chosen_closed_form", fails if place == "chosen" else chosen
            )
            found = train(walks(), config=settings(), baselines=[], progress=told)
        assert found.contents.config.towers.spectral_dim == 0
        assert any(
            said.startswith("towers.spectral_dim = 0: training must fit") for said in told.said
        )


class OneTrial(Stop):
    """A clock that is over after one trial."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def on_trial(self, trial: Any) -> None:  # noqa: ARG002
        self.now += 1e6


def test_a_search_has_it_too_or_keeps_the_best_trial_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    found = []
    for phase in ("the closed form", "none"):
        told = OneTrial(phase)
        monkeypatch.setattr("twotower.training.tune.time", told)
        config = settings("mean", dim=1)
        found.append(tune(walks(), out=tmp_path / phase, config=config, progress=told))
    stopped, whole = found
    assert stopped.stopped_early
    assert stopped.trained.contents.config.towers.spectral_dim == 0
    assert not whole.stopped_early
    assert whole.changed["towers.spectral_dim"] == (
        0,
        whole.trained.contents.config.towers.spectral_dim,
    )
    (trial,) = whole.trials
    assert trial.metric is not None
    assert whole.trained.contents.provenance["tuning"]["validation"] > trial.metric
