"""A bundle with a second stage teaches a student, and says nothing of what would not be honest."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from sandbox import run_command
from twotower import Retriever, Trained, train
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.errors import BundleError, ConfigError, DataError, MissingExtraError
from twotower.losses.distillation import listwise_distillation
from twotower.second_stage.item_times import ItemTimes
from twotower.training import teaching
from twotower.training.bundle_contents import fingerprint
from twotower.training.choices import resolve
from twotower.training.lessons import Lessons
from twotower.training.several_processes import check_settings
from twotower.training.task import Task
from twotower.training.teaching import Teacher, moments_of
from twotower.training.trainer import Trainer
from twotower.vocab import PADDING_ROW, Vocabulary

NUM_ITEMS, NUM_QUERIES, LENGTH = 40, 200, 8
QUICK: dict[str, Any] = {
    "towers": {"dim": 8, "history": "attention", "query_id": "off", "question_time": "off"},
    "training": {
        "epochs": 3,
        "batch_size": 64,
        "learning_rate": 0.01,
        "solver": "gradient",
        "precision": "float32",
    },
    "loss": {"negatives": "all"},
    "data": {"repeats": "no"},
}


def walks() -> pl.DataFrame:
    """Return events that go round a ring of items, a step or a few at a time."""
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 4, (NUM_QUERIES, LENGTH))
    items = (rng.integers(NUM_ITEMS, size=(NUM_QUERIES, 1)) + np.cumsum(steps, axis=1)) % NUM_ITEMS
    return pl.DataFrame(
        {
            "user": np.repeat(np.arange(NUM_QUERIES), LENGTH),
            "item": items.ravel(),
            "timestamp": np.tile(np.arange(LENGTH) * 3600, NUM_QUERIES),
        }
    )


def trained(events: pl.DataFrame | None = None, **more: Any) -> Trained:
    config = {**QUICK, **more.pop("config", {})}
    events = walks() if events is None else events
    return train(events, **{"config": config, "baselines": ["popularity"], **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("teaching")
    trained(out=folder / "ranked", config={"rerank": {"candidates": 20}}, rerank="on")
    return folder


@pytest.fixture(scope="module")
def task() -> Task:
    return Task.of(walks(), config=Config.of(QUICK))


@pytest.fixture(scope="module")
def lessons(folder: Path, task: Task) -> Lessons:
    return Teacher.of(folder / "ranked").lessons(task.dataset)


def student(task: Task, lessons: Lessons | None, **teacher: float) -> Trainer:
    config = Config.of({**QUICK, "teacher": teacher})
    settings, _ = resolve(replace(task.config, teacher=config.teacher), task.dataset)
    return Trainer(task.dataset, task.sides, settings, lessons=lessons)


def distance(trainer: Trainer, lessons: Lessons) -> float:
    """Return how far the rankings of a student are from those of its teacher."""
    scorer = trainer.scorer()
    features = {name: each[lessons.query_rows] for name, each in scorer.query_features.items()}
    vectors = scorer.encoding.query_vectors(features, lessons.histories)
    items = scorer.item_vectors[torch.from_numpy(lessons.item_rows).long()]
    scores = (items @ vectors[:, :, None]).squeeze(2) / trainer.model.temperature.detach()
    temperature = trainer.config.teacher.temperature
    values = torch.from_numpy(lessons.values)
    return float(listwise_distillation(scores, values, temperature=temperature))


def test_a_student_comes_nearer_to_its_teacher(task: Task, lessons: Lessons) -> None:
    alone = student(task, None)
    alone.fit()
    found = {}
    for weight in (1.0, 5.0):
        taught = student(task, lessons, weight=weight)
        taught.fit()
        found[weight] = distance(taught, lessons)
    assert found[5.0] < found[1.0] < distance(alone, lessons)


def test_each_setting_changes_the_weights(task: Task, lessons: Lessons) -> None:
    found = []
    for settings in ({}, {"weight": 2.0}, {"temperature": 2.0}):
        taught = student(task, lessons, **settings)
        taught.fit(epochs=1)
        found.append(taught.scorer().item_vectors)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[1], found[2])


def test_lessons_are_of_training_moments_and_without_what_the_query_is_known_to_have(
    task: Task, lessons: Lessons
) -> None:
    dataset = task.dataset
    train = dataset.part(Part.TRAIN)
    lengths = np.diff(train.offsets)
    assert len(lessons) == (lengths[lengths > 0] - 1).sum()  # all moments but the first of each
    held = lessons.histories
    assert (held.lengths >= 1).all()
    assert (held.lengths < lengths[lessons.query_rows]).all()  # never the moment of validation
    for place in range(0, len(lessons), 37):
        row = lessons.query_rows[place]
        events = train.item_rows[train.offsets[row] : train.offsets[row + 1]]
        assert held.of_one(place).tolist() == events[: held.lengths[place]].tolist()
        candidates = lessons.item_rows[place]
        assert not set(candidates.tolist()) & set(events.tolist())
        assert held.asked is not None
        assert train.times is not None
        assert held.asked[place] == train.times[train.offsets[row] + held.lengths[place]]
    assert (np.isfinite(lessons.values) == (lessons.item_rows != PADDING_ROW)).all()
    assert lessons.item_rows.dtype == np.int32
    assert lessons.values.dtype == np.float32


def test_the_moments_are_spread_where_there_are_many(
    task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, _ = moments_of(task.dataset, 100)
    assert len(cases) == 100
    assert len(np.unique(cases.query_rows)) > 90
    monkeypatch.setattr(teaching, "MOST_MOMENTS", 50)
    found = Teacher.of(folder / "ranked").lessons(task.dataset)
    assert len(found) == 50


def test_validation_is_nothing_that_the_teacher_reads(folder: Path, task: Task) -> None:
    """The bundle's second stage remembers validation events; lessons tell of training events alone."""
    dataset, teacher = task.dataset, Teacher.of(folder / "ranked")
    found = teacher.lessons(dataset).digest
    parts = np.where(dataset.parts == Part.TRAIN, Part.TRAIN, Part.UNUSED).astype(np.uint8)
    assert teacher.lessons(replace(dataset, parts=parts)).digest == found
    contents, train = teacher.retriever.contents, dataset.part(Part.TRAIN)
    assert contents.ranker is not None
    assert train.times is not None
    memory = replace(
        contents.ranker.memory, times=ItemTimes.fit(train.item_rows[:9], train.times[:9])
    )
    ranker = replace(contents.ranker, memory=memory)
    teacher.retriever.contents = replace(contents, ranker=ranker)
    assert teacher.lessons(dataset).digest == found


def test_items_in_another_order_have_the_same_lessons(folder: Path, task: Task) -> None:
    events = walks().with_columns(pl.col("item").cast(pl.String))  # sorted as texts
    other = Task.of(events, config=Config.of(QUICK)).dataset
    assert other.items.ids.ids.cast(pl.Int64).to_list() != task.dataset.items.ids.ids.to_list()
    teacher = Teacher.of(folder / "ranked")
    of_both = []
    for dataset in (task.dataset, other):
        teacher.check(dataset)
        found = teacher.lessons(dataset)
        rows = found.item_rows.ravel()
        ids = dataset.items.ids.ids_of(rows).cast(pl.Int64).to_list()
        held = dataset.items.ids.ids_of(found.histories.item_rows).cast(pl.Int64).to_list()
        of_both.append((ids, held, found.values.tolist()))
    assert of_both[0] == of_both[1]


def test_an_epoch_holds_each_lesson_once_in_an_order_of_its_own(lessons: Lessons) -> None:
    orders = []
    for epoch in (0, 1, 0):
        of_steps = lessons.epoch(epoch, 7, seed=0, length=50)
        batches = [each for each in of_steps if each is not None]
        assert len(batches) == 7
        assert max(len(b.values) for b in batches) - min(len(b.values) for b in batches) <= 1
        orders.append(np.concatenate([each.values for each in batches]))
    assert np.array_equal(orders[0], orders[2])
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(np.sort(orders[0].sum(1)), np.sort(orders[1].sum(1)))


def test_fewer_lessons_than_steps(task: Task, lessons: Lessons) -> None:
    few = Lessons(
        lessons.query_rows[:3],
        lessons.histories.take(slice(3)),
        lessons.item_rows[:3],
        lessons.values[:3],
    )
    assert sum(each is not None for each in few.epoch(0, 10, seed=0, length=50)) == 3
    student(task, few).fit(epochs=1)


def test_a_training_that_goes_on_ends_alike(task: Task, lessons: Lessons) -> None:
    whole = student(task, lessons)
    whole.fit()
    progress = student(task, lessons).fit(pause=lambda done: done.epoch == 1)
    assert progress.epoch == 1
    rest = student(task, lessons)
    rest.fit(progress=progress)
    assert torch.equal(whole.scorer().item_vectors, rest.scorer().item_vectors)


def test_another_teacher_is_another_training(task: Task, lessons: Lessons) -> None:
    other = replace(lessons, values=lessons.values * 2)
    prints = {fingerprint(student(task, each)) for each in (None, lessons, other)}
    assert len(prints) == 3


def test_the_bundle_says_who_taught_it(folder: Path, tmp_path: Path) -> None:
    taught = trained(teacher=folder / "ranked", out=tmp_path / "student")
    told = json.loads((tmp_path / "student" / "manifest.json").read_text())["provenance"]
    assert told["teacher"]["bundle"] == "ranked"
    assert len(told["teacher"]["sha256_of_manifest"]) == 64
    assert told["teacher"]["moments"] == NUM_QUERIES * (LENGTH - 3)
    note = f"Taught by the bundle 'ranked' (sha256 {told['teacher']['sha256_of_manifest'][:12]})."
    assert note in told["notes"]
    assert f"- {note}" in (tmp_path / "student" / "MODEL_CARD.md").read_text()
    assert taught.contents.ranker is None
    assert not (tmp_path / "student" / "ranker").exists()


def test_a_teacher_in_memory_and_of_other_events_is_told(folder: Path) -> None:
    teacher = Retriever(Retriever.open(folder / "ranked").contents)
    events = walks().filter(pl.col("user") != 3)
    taught = trained(events, teacher=teacher, refit=True)
    assert "sha256_of_manifest" not in taught.contents.provenance["teacher"]
    (note,) = (n for n in taught.contents.provenance["notes"] if n.startswith("Taught"))
    assert note.endswith(
        "which learnt other events or another split: the figures are too high if it learnt events of the "
        "test."
    )


def refused(folder: Path, teacher: Any, kind: type[Exception], match: str, **more: Any) -> None:
    with pytest.raises(kind, match=match):
        trained(teacher=teacher, out=folder / "none", **more)
    assert not list(folder.glob("none*"))


def test_who_cannot_teach(folder: Path, tmp_path: Path) -> None:
    def changed(**changes: Any) -> Retriever:
        retriever = Retriever.open(folder / "ranked")
        retriever.contents = replace(retriever.contents, **changes)
        return retriever

    contents = Retriever.open(folder / "ranked").contents
    says = r"teacher must be a bundle with a second stage, got 'ranked' without one; add it with"
    refused(tmp_path, changed(ranker=None), BundleError, says)
    nobody = replace(contents.queries, ids=Vocabulary(pl.Series([], dtype=pl.Int64)))
    refused(tmp_path, changed(queries=nobody), BundleError, r"got 'ranked', which is private")
    for learnt in ("valid", "all"):
        metrics = {**contents.metrics, "refit": {"learnt": learnt}}
        says = r"must not have learnt the events after its training part, got 'ranked', which was"
        refused(tmp_path, changed(metrics=metrics), BundleError, says)
    refused(tmp_path, tmp_path / "nothing", BundleError, "nothing")


def test_whom_it_cannot_teach(folder: Path, tmp_path: Path) -> None:
    teacher = folder / "ranked"
    says = (
        r"must have the items of the training, got 40 items for 39; train the teacher on the same"
    )
    refused(tmp_path, teacher, DataError, says, events=walks().filter(pl.col("item") != 7))
    says = r"got 40 items for 40, such as 99, which the teacher lacks; train"
    events = walks().with_columns(pl.col("item").replace(7, 99))
    refused(tmp_path, teacher, DataError, says, events=events)
    says = r"teacher reads the column 'user' of the queries, which must be in the training's tables"
    refused(tmp_path, teacher, DataError, says, events=walks().rename({"user": "user_id"}))


def test_without_lightgbm(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    says = r"needs the library 'lightgbm'; install it with pip install .*\[rank\]'"
    refused(tmp_path, folder / "ranked", MissingExtraError, says)


def test_several_processes_have_no_teacher() -> None:
    with pytest.raises(ConfigError, match="teacher must be left out where several processes train"):
        check_settings(Config(), minutes=None, has_teacher=True)


def test_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    walks().write_csv(folder / "events.csv")
    settings = [f"{s}.{n}={v}" for s, own in QUICK.items() for n, v in own.items()]
    outcome = run_command(
        (
            *("train", "--interactions", "events.csv", "--out", "student", "--teacher", "ranked"),
            *("--baselines", "none", *(part for each in settings for part in ("--set", each))),
        ),
        folder,
    )
    assert outcome.code == 0, outcome.err
    assert Retriever.open(folder / "student").contents.provenance["teacher"]["bundle"] == "ranked"
