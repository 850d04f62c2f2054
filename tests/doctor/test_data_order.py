"""An order that says something, one that says nothing, and too little to tell."""

import numpy as np
import polars as pl
import pytest

from twotower.config import DataConfig
from twotower.data.dataset import Dataset
from twotower.data.preparation import prepare
from twotower.doctor.data_events import order_evidence, order_statistics, shuffled_order


def chains(num_queries: int, *, shuffled: bool, seed: int = 0) -> pl.DataFrame:
    """Queries that walk over a ring of 50 items, mostly one step on at a time."""
    rng = np.random.default_rng(seed)
    steps = np.where(
        rng.random((num_queries, 10)) < 0.7, 1, rng.integers(50, size=(num_queries, 10))
    )
    rows = steps.cumsum(axis=1) + rng.integers(50, size=(num_queries, 1))
    times = np.tile(np.arange(10), (num_queries, 1))
    if shuffled:
        times = rng.permuted(times, axis=1)
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(num_queries), 10),
            "item_id": (rows % 50).reshape(-1),
            "timestamp": times.reshape(-1),
        }
    )


def dataset_of(frame: pl.DataFrame, order: str = "auto") -> Dataset:
    return prepare(frame, config=DataConfig(order=order)).dataset  # type: ignore[arg-type]


def test_both_statistics_worked_by_hand() -> None:
    # Sequences 1 2 1 2 | 1 2 2 2: the transition 1 to 2 comes three times, which is three pairs, 2 to 1
    # once; 2 to 2 is none, and neither is 2 to 1 across the end of the first sequence.
    rows = np.array([1, 2, 1, 2, 1, 2, 2, 2], np.int32)
    follows = np.array([True, True, True, False, True, True, True])
    places = np.array([-0.4, -0.1, 0.1, 0.4, -0.3, 0.0, 0.1, 0.2])
    recurring, spread = order_statistics(rows, follows, places)
    assert recurring == 3
    # Item 1 stands at -0.6 in all three events, item 2 at 0.6 in all five.
    assert spread == pytest.approx(0.36 / 3 + 0.36 / 5)


def test_a_real_order_is_far_from_shuffled_ones() -> None:
    dataset = dataset_of(chains(600, shuffled=False))
    evidence = order_evidence(dataset.interactions)
    assert evidence.adjacent > 20
    assert evidence.is_enough
    assert not list(shuffled_order(dataset))


def test_shuffled_times_are_found_with_both_figures() -> None:
    (finding,) = shuffled_order(dataset_of(chains(600, shuffled=True)))
    assert finding.severity == "warning"
    assert finding.value == max(finding.facts["adjacent"], finding.facts["position"]) < 3
    assert f"{finding.facts['adjacent']:.1f}" in finding.as_json()["what"]


def test_what_comes_early_and_what_late_is_an_order_too() -> None:
    # The first half of each sequence is of other items than the second, in any order within.
    rng = np.random.default_rng(0)
    items = np.concatenate(
        [rng.integers(30, size=(600, 5)), rng.integers(30, 60, size=(600, 5))], axis=1
    )
    frame = chains(600, shuffled=False).with_columns(item_id=pl.Series(items.reshape(-1)))
    assert order_evidence(dataset_of(frame).interactions).position > 20


def test_items_at_one_moment_have_no_order_even_if_the_file_has() -> None:
    frame = chains(600, shuffled=False).with_columns(timestamp=pl.lit(7))
    evidence = order_evidence(dataset_of(frame).interactions)
    assert max(evidence.adjacent, evidence.position) < 3


def test_the_order_of_the_file_is_judged_where_it_was_stated() -> None:
    frame = chains(600, shuffled=False).drop("timestamp")
    assert not list(shuffled_order(dataset_of(frame, "file")))
    mixed = frame.sample(fraction=1, shuffle=True, seed=1)
    assert len(list(shuffled_order(dataset_of(mixed, "file")))) == 1
    assert not list(shuffled_order(dataset_of(mixed)))  # has no order to be judged


def test_of_few_events_nothing_is_said() -> None:
    dataset = dataset_of(chains(100, shuffled=True))
    assert not order_evidence(dataset.interactions).is_enough
    assert not list(shuffled_order(dataset))


def test_a_large_table_is_sampled_by_whole_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.doctor.data_events.MAX_EVENTS", 1_000)
    evidence = order_evidence(dataset_of(chains(600, shuffled=False)).interactions)
    assert evidence.events == 1_000
    assert evidence.adjacent > 5


def test_chance_is_rarely_taken_for_an_order() -> None:
    dataset = [dataset_of(chains(60, shuffled=True, seed=seed)) for seed in range(30)]
    found = [order_evidence(d.interactions, seed=7) for d in dataset]
    assert sum(max(e.adjacent, e.position) >= 3 for e in found) <= 2
    assert abs(np.mean([e.adjacent for e in found])) < 1
