"""The race: what ``auto`` leaves open is trained both ways, and validation decides."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pytest

from twotower.config import Config
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.errors import ConfigError
from twotower.processes.job import Job
from twotower.serving.retriever import Retriever
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.heats import HEATS, IDS_FROM, RACE_FROM, open_heats
from twotower.training.pipeline import train, train_views
from twotower.training.race import EARLY, Entrant, _compared, record_of
from twotower.training.settings import value_of
from twotower.training.task import Task, View
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer, TrainingDivergedError
from twotower.training.tune import tune
from twotower.training.word_share import untrained_kept

T = TypeVar("T")
NUM_QUERIES, NUM_EVENTS = RACE_FROM + 4, 24
RACED = ("towers.query_id", "towers.history")


def loyal(
    seed: int, *, num_events: int = NUM_EVENTS, num_queries: int = NUM_QUERIES
) -> pl.DataFrame:
    """Return queries who each take items of one of 10 kinds, which a short history hardly tells.

    Every other event is of any kind, so of the one event that is read half the time nothing is learnt.
    """
    rng = np.random.default_rng(seed)
    kind = np.repeat(rng.integers(0, 10, num_queries), num_events)
    own = kind * 8 + rng.integers(0, 8, len(kind))
    other = rng.integers(0, 80, len(kind))
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_queries), num_events),
            "item_id": np.where(rng.random(len(kind)) < 0.5, own, other),
            "timestamp": 1.6e9 + np.arange(len(kind)) * 60.0,
        }
    )


SMALL: dict[str, Any] = {
    "towers": {"dim": 8, "history_length": 1, "question_time": "off", "similarity": "dot"},
    "training": {
        "solver": "gradient",
        "start": "random",
        "epochs": 5,
        "patience": 8,
        "batch_size": 128,
        "learning_rate": 0.02,
        "precision": "float32",
    },
    "data": {"repeats": "yes"},
    "loss": {"mask_known": False},
}


class Told(Callback):
    """Records all calls, and presses Ctrl-C or diverges in one phase, counted from 1."""

    def __init__(self, *, interrupt_in: int = 0, diverge_in: int = 0, in_epoch: int = 0) -> None:
        self.choices: list[tuple[str, ...]] = []
        self.phases: list[str] = []
        self.starts: list[int] = []
        self.epochs: list[int] = []
        self.interrupt_in, self.diverge_in, self.in_epoch = interrupt_in, diverge_in, in_epoch
        self.epoch = 0

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:
        self.choices.append(choices)
        self.config = config

    def on_phase(self, phase: str) -> None:
        self.phases += [phase] if phase.startswith(("training", "race")) else []

    def on_start(self, steps_per_epoch: int, progress: Any) -> None:  # noqa: ARG002
        self.starts.append(progress.epoch)
        self.epoch = progress.epoch

    def on_step(self, *given: Any) -> None:  # noqa: ARG002
        if self.epoch < self.in_epoch:
            return
        if len(self.phases) == self.interrupt_in:
            raise KeyboardInterrupt
        if len(self.phases) == self.diverge_in:
            raise TrainingDivergedError

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.epoch = record["epoch"]
        self.epochs.append(record["epoch"])


def log_of(trained: Trained) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trained.contents.log.splitlines()]


def curve_of(trained: Trained) -> list[float]:
    return [
        float(record["valid_ndcg@10"])
        for record in log_of(trained)
        if "epoch" in record and "loss" in record
    ]


def trained_as(told: Told | None = None, **more: Any) -> Trained:
    towers = {**SMALL["towers"], **more.pop("towers", {})}
    return train(loyal(0), config={**SMALL, "towers": towers}, progress=told, baselines=[], **more)


def trainer_of(values: Mapping[str, Any], seed: int = 0) -> Trainer:
    """Return the trainer of ``SMALL`` with some values of ``towers.``, by their name."""
    towers = {
        **SMALL["towers"],
        **{name.partition(".")[2]: value for name, value in values.items()},
    }
    training = {**SMALL["training"], "seed": seed}
    settings = Config.from_dict({**SMALL, "towers": towers, "training": training})
    task = Task.of(loyal(0), config=settings)
    config, _ = resolve(task.config, task.dataset)
    return Trainer(task.dataset, task.sides, config)


@cache
def best_alone(query_id: str, history: str, epochs: int) -> float:
    """Return the best validation of the first epochs of a training alone."""
    values = dict(zip(RACED, (query_id, history), strict=True))
    best = trainer_of(values).fit(pause=lambda done: done.epoch >= epochs).best_metric
    assert best is not None
    return best


@dataclass(frozen=True)
class Race:
    """A race, and two seeds of the winner, and what was told of them."""

    trained: Trained
    told: Told
    logger: Told


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Race:
    told, logger, out = Told(), Told(), tmp_path_factory.mktemp("race") / "model"
    return Race(trained_as(told, loggers=[logger], out=out, seeds=2), told, logger)


def test_each_heat_is_won_by_the_better_on_validation(race: Race) -> None:
    now = {"towers.query_id": "off", "towers.history": "pooled"}
    others = {"towers.query_id": "on", "towers.history": "transformer"}
    said = []
    for name, value in others.items():
        (most,) = (heat.epochs for heat in HEATS if heat.name == name)
        for epochs, share in (*EARLY, (most, 1.0)):
            figures = {
                each: best_alone(*{**now, name: each}.values(), epochs)
                for each in (now[name], value)
            }
            if epochs == most or min(figures.values()) < share * max(figures.values()):
                break
        now[name] = chosen = max(figures, key=lambda each: figures[each])
        (lost,) = set(figures) - {chosen}
        said.append(
            f"{name} = '{chosen}': after epoch {epochs} validation ndcg@10 is {figures[chosen]:.4f}, "
            f"{figures[lost]:.4f} with '{lost}'"
        )
    assert "after epoch 2" in said[0]
    assert "after epoch 3" in said[1]
    assert race.told.choices[1:3] == [(each,) for each in said]
    config = race.trained.contents.config
    assert {name: value_of(config, name) for name in RACED} == now
    assert config.towers.query_id == "on"  # one event does not tell what an id does
    assert race.told.config.towers == config.towers
    assert curve_of(race.trained) == pytest.approx(
        [record["valid_ndcg@10"] for record in trainer_of(now).fit().log]
    )


def test_the_race_is_told(race: Race) -> None:
    names = ", ".join(RACED)
    assert race.told.choices[0][-1] == f"{names}: validation decides, after up to 4 epochs of each"
    assert race.told.phases == [
        "race: towers.query_id = 'off', towers.history = 'pooled'",
        "race: towers.query_id = 'on'",
        "race: towers.query_id = 'on', towers.history = 'pooled'",
        "race: towers.history = 'transformer'",
        "training, seed 0 (1 of 2)",
        "training, seed 1 (2 of 2)",
    ]
    records = [record for record in log_of(race.trained) if record.get("event") == "race"]
    assert [record["setting"] for record in records] == list(RACED)
    config = race.trained.contents.config
    for record in records:
        assert record["chosen"] == value_of(config, record["setting"])
        assert record["chosen"] == max(record["compared"], key=lambda each: each["metric"])["value"]


def test_the_report_says_what_validation_decided(race: Race, tmp_path: Path) -> None:
    race.trained.report(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Settings that validation decided, by NDCG@10" in page
    for record in log_of(race.trained):
        if "event" in record:
            best, other = sorted(record["compared"], key=lambda each: -each["metric"])
            figures = (
                f"{best['value']}: {best['metric']:.4f}, {other['value']}: {other['metric']:.4f}"
            )
            words = f"{best['value']} ({figures} after epoch {record['epochs']})"
            assert f"<code>{record['setting']}</code></dt><dd>{words}</dd>" in page


def test_loggers_follow_the_winner_alone(race: Race) -> None:
    told, logger = race.told, race.logger
    assert told.starts == [0, 0, 2, 0, 3, 0]
    assert logger.starts == [3]
    assert logger.epochs == [4, 5]
    assert logger.choices == told.choices[:3]
    assert logger.config.towers == race.trained.contents.config.towers


def test_the_bundle_holds_the_winner(race: Race) -> None:
    assert race.trained.path is not None
    names = Retriever.open(race.trained.path).encoding.model.query_features
    assert names is not None
    assert "user_id" in names
    assert not race.trained.path.with_name("model.training").exists()


def test_what_is_set_does_not_race() -> None:
    told = Told()
    towers = {"history": "transformer", "query_id": "off"}
    trained = trained_as(told, towers=towers)
    assert told.phases == ["training"]
    assert len(told.choices) == 1
    assert not [record for record in log_of(trained) if "event" in record]


@pytest.mark.parametrize(("phase", "epoch"), [(1, 1), (2, 0), (3, 3), (4, 2), (5, 4)])
def test_an_interrupted_race_that_goes_on_has_the_same_end(
    race: Race, tmp_path: Path, phase: int, epoch: int
) -> None:
    out = tmp_path / "model"
    told = Told(interrupt_in=phase, in_epoch=epoch)
    stopped = trained_as(told, out=out)
    assert stopped.stopped_early
    assert len(told.phases) == phase
    assert (out / "manifest.json").is_file()
    told = Told()
    resumed = trained_as(told, out=out, resume=True)
    assert not resumed.stopped_early
    assert len(told.epochs) < len(race.told.epochs)
    assert curve_of(resumed) == curve_of(race.trained)
    assert resumed.figures["model"] == race.trained.figures["model"]
    assert not out.with_name("model.training").exists()


def test_checkpoints_of_losers_hold_no_weights(tmp_path: Path) -> None:
    trained_as(Told(interrupt_in=5, in_epoch=4), out=tmp_path / "model")
    sizes = sorted(path.stat().st_size for path in (tmp_path / "model.training").glob("*.pt"))
    assert len(sizes) == 3
    assert sizes[1] < sizes[2] / 5


def test_a_race_of_other_data_does_not_go_on(tmp_path: Path) -> None:
    out = tmp_path / "model"
    trained_as(Told(interrupt_in=3, in_epoch=1), out=out)
    with pytest.raises(Exception, match="must be given the data and the settings of the first run"):
        train(loyal(1), config=SMALL, out=out, resume=True, baselines=[])


def test_ctrl_c_keeps_the_best_so_far() -> None:
    told = Told(interrupt_in=2)
    trained = trained_as(told)
    assert told.choices[1] == ("towers.query_id = 'off': a training with 'on' was not finished",)
    assert trained.contents.config.towers.query_id == "off"
    assert trained.stopped_early
    assert max(curve_of(trained)) == best_alone("off", "pooled", 2)
    told = Told(interrupt_in=1)
    with pytest.raises(Exception, match="nothing was kept"):
        trained_as(told)
    assert told.starts == [0]


class Clock(Told):
    """A clock on which each step takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def on_step(self, *given: Any) -> None:  # noqa: ARG002
        self.seconds += 1.0


def test_the_minutes_end_a_race_as_ctrl_c_does(
    race: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    clock = Clock()
    monkeypatch.setattr("twotower.training.callbacks.time", clock)
    with pytest.raises(
        ConfigError, match=r"enough for an epoch and its validation, got 0\.05; give"
    ):
        trained_as(clock, out=out, minutes=0.05)
    assert not list(tmp_path.iterdir())
    assert clock.seconds == 3

    clock = Clock()
    monkeypatch.setattr("twotower.training.callbacks.time", clock)
    steps = trainer_of({}).steps_per_epoch
    trained = trained_as(clock, out=out, minutes=(2 * steps + 3) / 60)
    assert trained.stopped_early
    assert clock.epochs == [1, 2]
    assert clock.phases[-1] == "race: towers.query_id = 'on'"
    assert clock.choices[-1][0].startswith(
        "minutes: the time was up after epoch 2; the best weights"
    )
    resumed = trained_as(out=out, resume=True)
    assert curve_of(resumed) == curve_of(race.trained)


def test_minutes_are_of_one_seed() -> None:
    with pytest.raises(ValueError, match="minutes must be left out where seeds is above 1, got 2"):
        trained_as(minutes=2.0, seeds=2)
    with pytest.raises(ValueError, match="minutes must be finite and above 0, got 0"):
        trained_as(minutes=0)


def test_stopped_twice_in_the_race_the_best_weights_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "model"
    once = trained_as(Told(interrupt_in=2), out=out)
    twice = trained_as(Told(interrupt_in=1), out=out, resume=True)
    assert twice.stopped_early
    assert twice.figures["model"] == once.figures["model"]


def test_stopped_in_the_race_a_logger_gets_the_figures(tmp_path: Path) -> None:
    folder = tmp_path / "board"
    trained = trained_as(Told(interrupt_in=2), tensorboard=folder)
    assert trained.stopped_early
    assert list(folder.rglob("events.*"))


def entrants(*curves: list[float]) -> list[Entrant]:
    """Return entrants of a race whose validation was as given."""
    made = []
    for curve in curves:
        entrant = Entrant(trainer_of({}), None, 0)
        log = [{"epoch": n, "valid_ndcg@10": found} for n, found in enumerate(curve, 1)]
        entrant.progress = Progress(epoch=len(curve), log=log)
        made.append(entrant)
    return made


@pytest.mark.parametrize(
    ("one", "two", "epochs"),
    [
        ([0.11, 0.20, 0.20, 0.21], [0.15, 0.15], 1),
        ([0.15, 0.15, 0.19, 0.19], [0.11], 1),
        ([0.12, 0.13, 0.20, 0.21], [0.15, 0.15, 0.15, 0.16], 2),
        ([0.12, 0.14, 0.20, 0.21], [0.15, 0.15, 0.18, 0.22, 0.30], 3),
        ([0.12, 0.14, 0.20, 0.21], [0.15, 0.15, 0.195, 0.22, 0.30], 4),
        ([0.15, 0.15, 0.19, 0.19], [0.12, 0.13], 2),
        ([0.15, 0.15, 0.19, 0.19], [0.12, 0.14, 0.18], 3),
    ],
)
def test_an_early_end_is_found_again_whatever_was_trained_since(
    one: list[float], two: list[float], epochs: int
) -> None:
    best, other = entrants(one, two)
    assert _compared(best, other, 4, Callback()) == epochs
    assert len(other.progress.log) == len(two)  # nothing more was trained


class Heavy(Told):
    """A machine that has no memory for the second training."""

    def on_start(self, steps_per_epoch: int, progress: Any) -> None:
        super().on_start(steps_per_epoch, progress)
        if len(self.phases) == 2:
            raise ConfigError("memory must hold the transformer.")


def test_settings_that_do_not_fit_lose() -> None:
    told = Heavy()
    trained = trained_as(told, towers={"query_id": "off"})
    said = "towers.history = 'pooled': a training with 'transformer' was not possible: memory must"
    assert told.choices[1] == (f"{said} hold the transformer.",)
    assert len(curve_of(trained)) == 5


class OneOfTwo(Job):
    """A process whose other one is well."""

    def all_of(self, compute: Callable[[], T]) -> T:
        """Return what this one computes."""
        return compute()


def test_one_process_without_memory_for_a_step_does_not_go_on_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others are in the middle of that step, and would wait for it for hours."""
    monkeypatch.setattr("twotower.training.race.here", lambda: OneOfTwo(0, 2))
    with pytest.raises(ConfigError, match="memory must hold the transformer"):
        trained_as(Heavy(), towers={"query_id": "off"})


def test_ctrl_c_in_a_heat_ends_the_race_though_the_next_wants_more_epochs() -> None:
    told = Told(interrupt_in=2)
    trained = trained_as(told)
    assert trained.stopped_early
    assert len(curve_of(trained)) == 2
    assert len(told.phases) == 2


def periods() -> pl.DataFrame:
    """Return events of a few days a query, among which nothing but popularity is to be learnt."""
    rng = np.random.default_rng(0)
    num_queries, num_events = 500, 12
    start = np.repeat(rng.random(num_queries) * 1e7, num_events)
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_queries), num_events),
            "item_id": np.minimum(rng.geometric(0.05, len(start)), 59),
            "timestamp": 1.6e9 + start + rng.random(len(start)) * 1e6,
        }
    )


def test_stopped_in_the_race_of_a_cut_in_time_new_queries_are_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("twotower.training.heats.RACE_FROM", 20)
    training = {"epochs": 4, "batch_size": 256, "gap_days": 0}
    config = {"towers": {"dim": 8}, "training": training}
    told = Told(interrupt_in=2)
    stopped = train(periods(), config=config, split="temporal", progress=told, baselines=[])
    assert stopped.stopped_early
    assert told.phases[-1] == "race: towers.history = 'transformer'"
    assert any("queries without events: " in said for (said, *_) in told.choices)


def test_a_start_that_was_kept_is_told_beside_a_race() -> None:
    race = record_of("towers.history", {"pooled": 0.2, "transformer": 0.1}, epochs=4)
    log = [race, {"event": "untrained", "start": 0.3, "best_of_training": 0.2}, {"epoch": 1}]
    said = untrained_kept(Progress(best_metric=0.3, log=log), "ndcg@10")
    assert "whose validation ndcg@10 of 0.3000 no epoch reached (at best 0.2000)" in said


def test_views_race_for_a_linear_mix_and_its_width() -> None:
    rng = np.random.default_rng(0)
    views = {
        name: View(
            pl.DataFrame(
                {"user_id": np.repeat(np.arange(150), 8), "item_id": rng.integers(0, 40, 1200)}
            )
        )
        for name in ("books", "films")
    }
    told = Told()
    config = {"training": {"epochs": 2, "batch_size": 256, "threads": 1}}
    trained = train_views(views, config=config, progress=told, baselines=[])
    assert told.phases[1:3] == [
        "race: towers.query_hidden = []" if value == "" else f"race: towers.dim = {value}"
        for value in ("", "128")
    ]
    towers = trained.views["books"].contents.config.towers
    assert [said.split(":")[0] for (said,) in told.choices[1:3]] == [
        f"towers.query_hidden = {list(towers.query_widths)}",
        f"towers.dim = {towers.dim}",
    ]


def test_the_closed_form_is_tried_after_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("twotower.training.callbacks.time", clock)
    frame = loyal(0).drop("timestamp").unique(["user_id", "item_id"], maintain_order=True)
    config = {"training": {"epochs": 50, "threads": 1}, "towers": {"dim": 8}}
    train(frame, config=config, progress=clock, baselines=[], minutes=3.0)
    assert any(said.startswith("training.solver = ") for (said, *_) in clock.choices)
    assert any("minutes: the time was up after epoch" in said for (said, *_) in clock.choices)


def test_settings_that_diverge_lose() -> None:
    told = Told(diverge_in=2)
    trained = trained_as(told, towers={"query_id": "off"})
    assert told.choices[1] == ("towers.history = 'pooled': a training with 'transformer' diverged",)
    assert trained.contents.config.towers.history == "pooled"
    assert len(curve_of(trained)) == 5


TIME = ("towers.question_time",)
ENCODERS, IDS = ("towers.history",), ("towers.query_id",)


@pytest.mark.parametrize(
    ("settings", "more", "expected"),
    [
        ({}, {}, ENCODERS + IDS),
        ({"towers": {"question_time": "auto"}}, {}, TIME + ENCODERS + IDS),
        ({}, {"num_queries": RACE_FROM - 1}, ()),
        ({}, {"num_events": IDS_FROM}, ENCODERS),  # two of them are held out
        ({"towers": {"query_id": "off"}}, {}, ENCODERS),
        ({"towers": {"query_id": "on"}}, {}, ENCODERS),
        ({"towers": {"history": "none"}}, {}, ()),
        ({"towers": {"history": "transformer"}}, {}, IDS),
        ({"towers": {"history": "gru"}}, {}, IDS),
        ({"loss": {"kind": "bce"}}, {}, IDS),  # labels are read event by event
        ({"towers": {"history_length": 201}}, {}, IDS),
        ({"data": {"order": "none"}}, {}, ()),
    ],
    ids=str,
)
def test_what_is_open(settings: Any, more: Any, expected: tuple[str, ...]) -> None:
    towers = {"question_time": "off", **settings.get("towers", {})}
    config = Config.from_dict({**settings, "towers": towers})
    dataset = split(prepare(loyal(1, **more), config=config.data).dataset, config.split)
    heats = open_heats(config, resolve(config, dataset)[0], dataset)
    assert {heat.name for heat in heats} == set(expected)
    epochs = [heat.epochs for heat in heats]
    assert epochs == sorted(epochs)  # who loses has not been trained for longer than its heat


def test_new_sessions_have_no_ids() -> None:
    later = loyal(2).with_columns(pl.col("user_id") + 1000)
    told = Told()
    train({"train": loyal(0), "test_sessions": later}, config=SMALL, progress=told, baselines=[])
    assert not any("query_id" in phase for phase in told.phases)


def test_the_seeds_after_the_first_train_what_was_chosen(race: Race) -> None:
    spread = race.trained.figures["seeds"]
    assert len(spread["ndcg@10"]["values"]) == 2
    assert race.told.phases[-1] == "training, seed 1 (2 of 2)"


@pytest.mark.parametrize("is_useful", [True, False])
def test_the_time_of_the_question_stays_where_it_helps(*, is_useful: bool) -> None:
    """Each query takes the item of the hour; or, where that is no use, at last that of another hour."""
    rng = np.random.default_rng(0)
    num_queries, num_events = 200, 8
    hours = rng.integers(0, 24, num_queries * num_events)
    days = np.tile(np.arange(num_events), num_queries)
    items = hours if is_useful else (hours + 12 * (days >= num_events - 2)) % 24
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_queries), num_events),
            "item_id": items,
            "timestamp": 1.6e9 // 86400 * 86400 + days * 86400.0 + hours * 3600.0,
        }
    )
    towers = {"dim": 8, "history": "pooled", "similarity": "dot", "query_id": "off"}
    training = {"epochs": 4, "batch_size": 128, "learning_rate": 0.02, "solver": "gradient"}
    config = {"towers": towers, "training": training, "data": {"repeats": "yes"}}
    told = Told()
    trained = train(frame, config=config, progress=told, baselines=[])
    expected = "on" if is_useful else "off"
    assert trained.contents.config.towers.question_time == expected
    (said,) = told.choices[1]
    assert said.startswith(f"towers.question_time = '{expected}': after ")
    assert said.endswith("if it is not read" if is_useful else "with 'on'")
    assert ("race: towers.question_time = 'off'" in told.phases) == (not is_useful)
    assert [each["setting"] for each in log_of(trained) if each.get("event") == "race"] == [
        "towers.question_time"
    ]
    has_weights = any("question_time" in name for name in trained.contents.weights)
    assert has_weights == is_useful
    last = float(frame.filter(pl.col("user_id") == 3)["timestamp"][-1])
    times = last + 3600.0, last + 7 * 3600.0
    answers = [trained.retriever.recommend(3, k=5, at=at).item_ids for at in times]
    assert (answers[0] != answers[1]) == is_useful


class OneTrial(Told):
    """Presses Ctrl-C after a trial."""

    def on_trial(self, trial: Any) -> None:  # noqa: ARG002
        raise KeyboardInterrupt


def test_a_search_starts_from_the_winner(race: Race, tmp_path: Path) -> None:
    config = {**SMALL, "training": {**SMALL["training"], "epochs": 4}}
    out = tmp_path / "model"
    told = OneTrial()
    tuned = tune(loyal(0), config=config, out=out, progress=told)
    winner = race.trained.contents.config.towers
    assert tuned.default.towers == winner
    assert tuned.trained.contents.config.towers == winner
    assert [said.split(":")[0] for (said,) in told.choices[:2]] == [
        f"towers.query_id = '{winner.query_id}'",
        f"towers.history = '{winner.history}'",
    ]
    told = OneTrial()
    again = tune(loyal(0), config=config, out=out, resume=True, progress=told)
    assert not [phase for phase in told.phases if phase.startswith("race")]
    assert again.default == tuned.default


def test_a_search_that_ends_in_the_race_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Exception, match="Interrupted in the race before the first trial"):
        tune(loyal(0), config=SMALL, out=tmp_path / "model", progress=Told(interrupt_in=2))
    clock = Clock()
    monkeypatch.setattr("twotower.training.callbacks.time", clock)
    monkeypatch.setattr("twotower.training.tune.time", clock)
    with pytest.raises(
        ConfigError, match=r"enough for an epoch and its validation, got 0\.05; give"
    ):
        tune(loyal(0), config=SMALL, out=tmp_path / "model", minutes=0.05, progress=clock)
    assert not list(tmp_path.iterdir())
