"""Baselines that are fitted while the model trains: the same as after it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from typing import Any

import polars as pl
import pytest
import torch

from servers import PATIENCE
from twotower.baselines.random_order import RandomOrder
from twotower.baselines.specs import BASELINES, BaselineSpec, Fitting, Settings, fit_baselines
from twotower.baselines.validation import Validation
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.splits import split
from twotower.errors import ConfigError
from twotower.evaluation.ranking import Scorer
from twotower.training import baselines_ahead
from twotower.training.baselines_ahead import BaselinesAhead, Keys
from twotower.training.callbacks import Callback
from twotower.training.pipeline import train, train_views
from twotower.training.task import View
from twotower.training.trained import Trained


def of_threads(num: int) -> Config:
    return Config.from_dict({"training": {"threads": num, "epochs": 2}, "towers": {"dim": 8}})


@pytest.fixture(scope="module")
def dataset(small_world: SyntheticTables) -> Dataset:
    tables = small_world
    prepared = prepare(tables.interactions, items=tables.items, queries=tables.queries)
    return split(prepared.dataset)


def started(
    dataset: Dataset, keys: Keys = "auto", *, num: int = 2, refit: bool = False
) -> BaselinesAhead:
    ahead = BaselinesAhead(keys, refit=refit)
    ahead.on_data(dataset)
    ahead.on_choices((), of_threads(num))
    ahead.on_start()
    return ahead


def test_they_are_those_that_are_fitted_afterwards_and_bm25_waits(dataset: Dataset) -> None:
    phases: list[str] = []
    found = started(dataset).fitted(0, refit=False, tell=phases.append)
    assert found is not None
    later = fit_baselines(dataset)
    assert found.keys == later.keys - {"bm25"}
    assert found.settings == later.settings
    cases = dataset.cases(Part.TEST)
    for key, scorer in found.scorers.items():
        assert torch.equal(scorer.score(cases), later.scorers[key].score(cases)), key
    assert phases == [f"baseline {BASELINES[key].label}" for key in found.scorers]
    rest = fit_baselines(dataset, among=set(BASELINES) - found.keys)
    whole = found.joined(rest)
    assert (list(whole.scorers), list(whole.left_out)) == (list(later.scorers), ["bm25"])


def test_a_refit_gets_those_that_learnt_the_validation_events(dataset: Dataset) -> None:
    found = started(dataset, ["popularity"], refit=True).fitted(0, refit=True)
    assert found is not None
    later = fit_baselines(dataset, ["popularity"], refit=True).scorers["popularity"]
    cases = dataset.cases(Part.TEST)
    assert torch.equal(found.scorers["popularity"].score(cases), later.score(cases))


def test_an_interrupted_refit_gets_others(dataset: Dataset) -> None:
    assert started(dataset, ["popularity"], refit=True).fitted(0, refit=False) is None


def test_one_thread_trains_before_it_fits(dataset: Dataset) -> None:
    assert started(dataset, num=1).fitted(0, refit=False) is None


def test_they_wait_where_memory_is_short(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines_ahead, "available_bytes", lambda: 100_000.0)
    assert started(dataset).fitted(0, refit=False) is None
    assert started(dataset, ["popularity"]).fitted(0, refit=False) is not None


def test_an_error_of_a_named_baseline_comes_out() -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 2], "item_id": [1, 2, 3, 2, 3, 1]})
    ahead = started(split(prepare(frame).dataset), ["popularity", "recent_popularity"])
    with pytest.raises(ConfigError, match="recent_popularity"):
        ahead.fitted(0, refit=False)


class Names(Callback):
    """Notes which threads there are when the first step is done, and raises an error where it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.of_threads: set[str] = set()
        self.error = error

    def on_step(self, *_: Any) -> None:
        self.of_threads |= {each.name for each in threading.enumerate()}
        if self.error is not None:
            raise self.error


@contextmanager
def endless() -> Iterator[None]:
    """Let there be a baseline that goes on trying settings, like one of a large catalogue."""

    is_over = threading.Event()

    def fit(told: Fitting) -> tuple[Scorer, Settings]:
        seeds = takewhile(lambda _: not is_over.is_set(), count())
        tried = (RandomOrder(told.num_rows, seed) for seed in seeds)
        return Validation.of(told.dataset).best(tried), {}

    BASELINES.register(BaselineSpec("endless", "endless", "endless", fit))
    try:
        yield
    finally:
        is_over.set()
        BASELINES.unregister("endless")


def test_a_training_that_fails_leaves_no_thread(small_world: SyntheticTables) -> None:
    names = Names(ValueError("a step failed"))
    with endless():
        with pytest.raises(ValueError, match="a step failed"):
            train(
                small_world.interactions,
                config=of_threads(2),
                baselines=["endless"],
                loggers=[names],
            )
        for thread in threading.enumerate():
            if thread.name == "baselines":
                thread.join(PATIENCE)
                assert not thread.is_alive()
    assert "baselines" in names.of_threads


def test_a_budget_is_for_the_training_alone(small_world: SyntheticTables) -> None:
    names = Names()
    events = small_world.interactions
    train(events, config=of_threads(2), minutes=60, baselines=["ease"], loggers=[names])
    assert "baselines" not in names.of_threads


def test_weights_and_figures_are_those_of_one_thread(small_world: SyntheticTables) -> None:
    def trained(num: int) -> Trained:
        tables = small_world
        return train(tables.interactions, items=tables.items, config=of_threads(num), progress=None)

    one, two = trained(1), trained(2)
    assert one.figures == two.figures
    for mine, other in zip(vectors_of(one), vectors_of(two), strict=True):
        assert torch.equal(mine, other)


def vectors_of(trained: Trained) -> tuple[torch.Tensor, ...]:
    return trained.contents.item_vectors, torch.from_numpy(trained.retriever.encode_queries([3, 4]))


def test_each_view_has_its_own(small_world: SyntheticTables) -> None:
    events = small_world.interactions
    views = {"one": View(events[::2]), "two": View(events[1::2])}
    one, two = (
        train_views(
            views, config=of_threads(num), baselines=["popularity", "random"], progress=None
        )
        for num in (1, 2)
    )
    for name in views:
        assert one[name].figures["popularity"] == two[name].figures["popularity"]
    assert one["one"].figures["popularity"] != one["two"].figures["popularity"]
