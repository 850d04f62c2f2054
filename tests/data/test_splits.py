from collections import Counter, defaultdict
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.config import DataConfig, SplitConfig
from twotower.data.dataset import Dataset, Interactions, Part
from twotower.data.drawn_validation import hold_out_validation
from twotower.data.preparation import prepare
from twotower.data.splits import (
    cold_items,
    cold_queries,
    leave_last_out,
    random_per_query,
    split,
    temporal,
    with_order_as_asked,
)
from twotower.errors import ConfigError, DataError

TRAIN, VALID, TEST = int(Part.TRAIN), int(Part.VALID), int(Part.TEST)

# (query row, label); events stand in time order.
labelled_events = st.lists(
    st.tuples(st.integers(2, 5), st.integers(0, 1)), min_size=1, max_size=30
).map(lambda rows: sorted(rows, key=itemgetter(0)))


def events_of(
    query_rows: list[int],
    *,
    items: list[int] | None = None,
    times: list[float] | None = None,
    labels: list[int] | None = None,
) -> Interactions:
    owners = np.array(query_rows, np.int32)
    num = len(owners)
    return Interactions(
        query_rows=owners,
        item_rows=np.array(range(2, num + 2) if items is None else items, np.int32),
        offsets=np.searchsorted(owners, np.arange(owners.max(initial=2) + 2)).astype(np.int64),
        times=None if times is None else np.array(times, np.float64),
        labels=None if labels is None else np.array(labels, np.float32),
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def dataset_of(*, order: Any = "auto", **columns: Any) -> Dataset:
    return prepare(pl.DataFrame(columns), config=DataConfig(order=order)).dataset


def some(num_queries: int = 20, per_query: int = 10, **config: Any) -> Dataset:
    num = num_queries * per_query
    return dataset_of(
        user_id=[row % num_queries for row in range(num)],
        item_id=[row * 7 % 40 for row in range(num)],
        timestamp=range(num),
        **config,
    )


# --- leave-last-out ---


def test_the_last_positive_is_for_test_and_the_one_before_for_validation() -> None:
    # Query 2 has four positives, 3 has two, 4 one, 5 none.
    owners = [2, 2, 2, 2, 3, 3, 4, 5, 5]
    labels = [1, 1, 1, 1, 1, 1, 1, 0, 0]
    parts = [TRAIN, TRAIN, VALID, TEST, TRAIN, TEST, TRAIN, TRAIN, TRAIN]
    assert leave_last_out(events_of(owners, labels=labels)).tolist() == parts


def test_negatives_go_where_their_moment_falls() -> None:
    labels = [0, 1, 0, 1, 0, 1, 0]
    parts = [TRAIN, TRAIN, TRAIN, VALID, VALID, TEST, TEST]
    assert leave_last_out(events_of([2] * 7, labels=labels)).tolist() == parts


@given(rows=labelled_events)
def test_leave_last_out_is_what_a_loop_over_each_query_gives(rows: list[tuple[int, int]]) -> None:
    expected = []
    for place, (query, _) in enumerate(rows):
        own = [p for p, (owner, label) in enumerate(rows) if owner == query and label == 1]
        part = TRAIN
        if len(own) >= 2 and place >= own[-1]:
            part = TEST
        elif len(own) >= 3 and place >= own[-2]:
            part = VALID
        expected.append(part)
    events = events_of([row[0] for row in rows], labels=[row[1] for row in rows])
    assert leave_last_out(events).tolist() == expected


# --- random per query ---


def counts_of(parts: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    found = Counter(parts[mask].tolist())
    return found[TRAIN], found[VALID], found[TEST]


@pytest.mark.parametrize(
    ("size", "test", "valid", "expected"),
    [
        (10, 0.2, 0.1, (7, 1, 2)),
        (5, 0.5, 0.1, (1, 1, 3)),  # 2.5 and 0.5 are rounded up
        (4, 0.1, 0.1, (2, 1, 1)),  # at least one each
        (3, 0.2, 0.1, (1, 1, 1)),
        (3, 0.9, 0.05, (1, 0, 2)),  # one stays in train, whatever is asked for
        (2, 0.5, 0.1, (1, 0, 1)),
        (2, 0.2, 0.1, (2, 0, 0)),
        (1, 0.9, 0.05, (1, 0, 0)),
        (10, 0.0, 0.1, (9, 1, 0)),
    ],
)
def test_each_query_gives_its_share(
    size: int, test: float, valid: float, expected: tuple[int, int, int]
) -> None:
    # The other query has enough events for all parts.
    owners = np.array([2] * size + [3] * 20)
    parts = random_per_query(events_of(owners.tolist()), test, valid, rng())
    assert counts_of(parts, owners == 2) == expected


@given(
    rows=labelled_events,
    test=st.floats(0.01, 0.6),
    valid=st.floats(0.01, 0.39),
    seed=st.integers(0, 2**31),
)
def test_positives_and_negatives_are_drawn_apart(
    rows: list[tuple[int, int]], test: float, valid: float, seed: int
) -> None:
    rows = [*rows, *[(6, label) for label in (0, 1) for _ in range(10)]]
    owners, labels = np.array(rows).T
    events = events_of(owners.tolist(), labels=labels.tolist())
    parts = random_per_query(events, test, valid, rng(seed))
    for query in set(owners.tolist()):
        for label in (0, 1):
            mask = (owners == query) & (labels == label)
            size = int(mask.sum())
            least = 1 if size >= 3 else 0
            num_test = min(max(int(test * size + 0.5), least), size - 1) if size > 1 else 0
            num_valid = min(max(int(valid * size + 0.5), least), size - 1 - num_test)
            num_valid = max(num_valid, 0) if size > 1 else 0
            expected = (size - num_test - num_valid, num_valid, num_test)
            assert counts_of(parts, mask) == expected


def test_every_event_of_a_query_is_as_likely_as_another_to_be_held_out() -> None:
    events = events_of([2] * 10)
    drawn = np.zeros(10)
    for seed in range(2000):
        drawn += random_per_query(events, 0.2, 0.1, rng(seed)) == TEST
    # 2,000 draws of 2 in 10: the standard deviation of each count is 17.9.
    assert np.abs(drawn - 400).max() < 5 * 17.9


def test_queries_with_single_events_are_split_as_one() -> None:
    # Search queries with one clicked document each: no query could give a share of its own.
    events = events_of(list(range(2, 102)))
    parts = random_per_query(events, 0.2, 0.1, rng())
    assert counts_of(parts, np.ones(100, np.bool_)) == (70, 10, 20)
    both = random_per_query(events_of([*range(2, 52), *range(2, 52)][:100]), 0.2, 0.1, rng())
    assert Counter(both.tolist()) == {TRAIN: 70, VALID: 10, TEST: 20}
    given_test = random_per_query(events, 0.0, 0.1, rng())
    assert counts_of(given_test, np.ones(100, np.bool_)) == (90, 10, 0)


def test_a_table_of_single_clicks_needs_no_configuration() -> None:
    dataset = split(
        dataset_of(query=[f"q{n}" for n in range(50)], doc_id=[n % 7 for n in range(50)])
    )
    assert Counter(dataset.parts.tolist()) == {TRAIN: 35, VALID: 5, TEST: 10}


# --- temporal ---


def test_two_moments_cut_all_queries_alike() -> None:
    times = [0, 5, 9, 1, 2, 3, 4, 6, 7, 8]
    parts = temporal(events_of([2] * 3 + [3] * 7, times=list(map(float, times))), 0.2, 0.1)
    expected = [TEST if t >= 8 else VALID if t >= 7 else TRAIN for t in times]
    assert parts.tolist() == expected


@given(
    times=st.lists(st.integers(0, 6), min_size=2, max_size=40),
    test=st.floats(0.01, 0.5),
    valid=st.floats(0.01, 0.49),
)
def test_events_of_one_moment_are_never_torn_apart(
    times: list[int], test: float, valid: float
) -> None:
    parts = temporal(events_of([2] * len(times), times=list(map(float, times))), test, valid)
    parts_of = defaultdict(set)
    for time, part in zip(times, parts.tolist(), strict=True):
        parts_of[time].add(part)
    assert all(len(found) == 1 for found in parts_of.values())
    in_time = [min(parts_of[time]) for time in sorted(parts_of)]
    assert in_time == sorted(in_time)
    assert in_time[-1] == TEST


# --- cold items ---


@given(
    items=st.lists(st.integers(2, 30), min_size=3, max_size=60),
    test=st.floats(0.01, 0.4),
    valid=st.floats(0.01, 0.4),
    seed=st.integers(0, 2**31),
)
def test_all_events_of_an_item_are_in_one_part(
    items: list[int], test: float, valid: float, seed: int
) -> None:
    parts = cold_items(events_of([2] * len(items), items=items), test, valid, rng(seed))
    part_of: dict[int, set[int]] = defaultdict(set)
    for item, part in zip(items, parts.tolist(), strict=True):
        part_of[item].add(part)
    assert all(len(found) == 1 for found in part_of.values())
    found = Counter(part for parts_of_item in part_of.values() for part in parts_of_item)
    if len(part_of) >= 3:
        assert found[TEST] == max(1, round(test * len(part_of)))
        assert found[VALID] == max(1, round(valid * len(part_of)))


def test_which_items_are_cold_does_not_hang_on_their_popularity() -> None:
    items = [2] * 50 + list(range(3, 12))
    drawn = Counter[int]()
    for seed in range(1000):
        parts = cold_items(events_of([2] * len(items), items=items), 0.1, 0.1, rng(seed))
        drawn.update(set(np.array(items)[parts == TEST].tolist()))
    # 1 of 10 items in each of 1,000 draws: the standard deviation of each count is 9.5.
    assert set(drawn) == set(items)
    assert all(abs(count - 100) < 5 * 9.5 for count in drawn.values())


# --- cold queries ---


@given(
    queries=st.lists(st.integers(2, 30), min_size=3, max_size=60).map(sorted),
    liked=st.integers(0, 2**31),
    test=st.floats(0.01, 0.4),
    valid=st.floats(0.01, 0.4),
    seed=st.integers(0, 2**31),
)
def test_all_events_of_a_query_are_in_one_part(
    queries: list[int], liked: int, test: float, valid: float, seed: int
) -> None:
    """Whoever likes nothing can be asked nothing, and is learnt from."""
    labels = (rng(liked).random(len(queries)) < 0.6).astype(int).tolist()
    events = events_of(queries, labels=labels)
    parts = cold_queries(events, test, valid, rng(seed))
    part_of: dict[int, set[int]] = defaultdict(set)
    for query, part in zip(queries, parts.tolist(), strict=True):
        part_of[query].add(part)
    assert all(len(found) == 1 for found in part_of.values())
    who_likes = {query for query, label in zip(queries, labels, strict=True) if label}
    assert all(part_of[query] == {TRAIN} for query in set(queries) - who_likes)
    found = Counter(part for query in who_likes for part in part_of[query])
    if len(who_likes) >= 3:
        assert found[TEST] == max(1, round(test * len(who_likes)))
        assert found[VALID] == max(1, round(valid * len(who_likes)))


def test_which_queries_are_cold_does_not_hang_on_how_much_they_ask() -> None:
    queries = [2] * 50 + list(range(3, 12))
    drawn = Counter[int]()
    for seed in range(1000):
        parts = cold_queries(events_of(queries), 0.1, 0.1, rng(seed))
        drawn.update(set(np.array(queries)[parts == TEST].tolist()))
    assert set(drawn) == set(queries)
    assert all(abs(count - 100) < 5 * 9.5 for count in drawn.values())  # as of items


# --- given files ---


def from_files(train: dict[str, Any], test: dict[str, Any], **more: dict[str, Any]) -> Dataset:
    tables = {"train": train, "test": test} | more
    return prepare({part: pl.DataFrame(columns) for part, columns in tables.items()}).dataset


def test_a_tenth_of_each_querys_training_events_becomes_validation() -> None:
    train = {"user_id": [q for q in range(6) for _ in range(20)], "item_id": [*range(20)] * 6}
    dataset = from_files(train, {"user_id": [0, 9], "item_id": [21, 2]})
    held = hold_out_validation(dataset, SplitConfig())
    owners = dataset.interactions.query_rows
    assert (held.parts[dataset.parts == TEST] == TEST).all()
    for query in range(2, 8):
        counts = counts_of(held.parts, (owners == query) & (dataset.parts == TRAIN))
        assert counts == (18, 2, 0)
    assert held.notes[-1].startswith("Split given: train 108 ")
    more = hold_out_validation(dataset, SplitConfig(valid_fraction=0.3))
    assert (more.parts == VALID).sum() == 36
    other = hold_out_validation(dataset, SplitConfig(seed=1))
    assert (other.parts != held.parts).any()
    assert (dataset.parts == VALID).sum() == 0


def test_given_validation_rows_are_kept() -> None:
    some_rows = {"user_id": [1, 1, 1, 2], "item_id": [1, 2, 3, 4]}
    dataset = from_files(some_rows, some_rows, valid=some_rows)
    held = hold_out_validation(dataset, SplitConfig())
    assert held.parts.tolist() == dataset.parts.tolist()


def test_a_tenth_of_the_training_queries_becomes_validation_where_they_are_to_be_cold() -> None:
    train = {"user_id": [q for q in range(40) for _ in range(5)], "item_id": [*range(5)] * 40}
    dataset = from_files(train, {"user_id": [0, 1], "item_id": [1, 2]})
    held = hold_out_validation(dataset, SplitConfig(kind="cold-queries"))
    assert Counter(held.parts.tolist()) == {TRAIN: 180, VALID: 20, TEST: 2}
    rows = held.interactions.query_rows
    assert not set(rows[held.parts == TRAIN]) & set(rows[held.parts == VALID])


def test_validation_is_found_where_each_query_has_one_training_event() -> None:
    train = {"query": [f"q{n}" for n in range(40)], "doc_id": [n % 9 for n in range(40)]}
    held = hold_out_validation(from_files(train, train), SplitConfig())
    assert Counter(held.parts.tolist()) == {TRAIN: 36, VALID: 4, TEST: 40}


# --- which split, and what it says ---


def test_auto_is_leave_last_out_with_an_order_and_random_without() -> None:
    ordered, without = some(), some(order="none")
    assert split(ordered).notes[-1].startswith("Split leave-last-out: ")
    assert (split(ordered).parts == leave_last_out(ordered.interactions)).all()
    assert split(without).notes[-1].startswith("Split random: ")


def test_a_split_says_what_it_left() -> None:
    dataset = dataset_of(
        user_id=[1, 1, 1, 1, 2, 2], item_id=["a", "b", "c", "d", "a", "b"], timestamp=range(6)
    )
    (note,) = split(dataset).notes
    assert note == (
        "Split leave-last-out: train 3 positive events of 2 queries and 2 items; "
        "valid 1 positive events of 1 queries and 1 items (1 of them cold); "
        "test 2 positive events of 2 queries and 2 items (1 of them cold)."
    )
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("config", "default", "valid_share"),
    [
        (SplitConfig(kind="random"), 0.2, 0.1),
        (SplitConfig(kind="temporal"), 0.1, 0.1),
        (SplitConfig(kind="random", test_fraction=0.5, valid_fraction=0.2), 0.5, 0.2),
        (SplitConfig(kind="temporal", test_fraction=0.3, valid_fraction=0.2), 0.3, 0.2),
    ],
)
def test_fractions_are_shares_of_the_events(
    config: SplitConfig, default: float, valid_share: float
) -> None:
    parts = split(some(), config).parts
    assert (parts == TEST).mean() == pytest.approx(default, abs=0.011)
    assert (parts == VALID).mean() == pytest.approx(valid_share, abs=0.011)


def test_kinds_that_need_an_order_or_times_are_refused_without() -> None:
    unordered = dataset_of(user_id=[1, 1, 1], item_id=[1, 2, 3])
    with pytest.raises(ConfigError, match=r"split\.kind must be 'random', .* got 'leave-last-out'"):
        split(unordered, SplitConfig(kind="leave-last-out"))
    with pytest.raises(ConfigError, match=r"split\.kind must not be 'temporal' .*time_column"):
        split(unordered, SplitConfig(kind="temporal"))
    # Times that do not give the order still cut in time.
    assert split(some(order="none"), SplitConfig(kind="temporal")).notes


@pytest.mark.parametrize("kind", ["random", "temporal", "cold-items", "cold-queries"])
def test_a_default_test_share_counts_towards_the_sum(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"must stay below 1, got 0\.[12] \+ 0\.95; lower"):
        split(some(), SplitConfig(kind=kind, valid_fraction=0.95))
    assert split(some(), SplitConfig(valid_fraction=0.95)).notes  # leave-last-out takes no share


@pytest.mark.parametrize(
    ("dataset", "kind", "lacks"),
    [
        (dataset_of(user_id=[1, 2], item_id=[1, 2], timestamp=[1, 2]), "auto", "test"),
        (dataset_of(user_id=[1, 1], item_id=[1, 2], timestamp=[1, 2]), "auto", "validation"),
        (dataset_of(user_id=[1, 1], item_id=[1, 2], timestamp=[5, 5]), "temporal", "training"),
        (
            dataset_of(user_id=[1] * 20, item_id=range(20), timestamp=[1] * 10 + [2] * 10),
            "temporal",
            "validation",
        ),
        (dataset_of(user_id=[1, 1], item_id=[1, 2]), "cold-items", "training"),
        (dataset_of(user_id=[1, 2], item_id=[1, 2]), "cold-queries", "training"),
        (dataset_of(user_id=[1, 1], item_id=[1, 2]), "random", "test"),
    ],
)
def test_a_split_that_leaves_a_part_empty_is_refused(
    dataset: Dataset, kind: Any, lacks: str
) -> None:
    with pytest.raises(
        DataError, match=rf"split must leave {lacks} (rows|events), got no"
    ) as caught:
        split(dataset, SplitConfig(kind=kind))
    assert "another" in str(caught.value)


def test_a_part_of_negatives_alone_counts_as_empty() -> None:
    events = {"user_id": [1, 1, 1], "item_id": [1, 2, 3], "label": [1, 1, 1]}
    negatives = {"user_id": [1, 2], "item_id": [2, 3], "label": [0, 0]}
    with pytest.raises(DataError, match="the given split must leave test rows, got no positive"):
        hold_out_validation(from_files(events, negatives), SplitConfig())
    with pytest.raises(DataError, match="the given split must leave validation rows, got no pos"):
        hold_out_validation(from_files(events, events, valid=negatives), SplitConfig())


# --- whether the order counts ---


@pytest.mark.parametrize(
    ("kind", "ordered"),
    [("leave-last-out", True), ("temporal", True), ("random", False)],
)
def test_a_history_has_an_order_where_the_split_asks_for_what_comes_last(
    kind: Any, ordered: bool
) -> None:
    dataset = with_order_as_asked(split(some(), SplitConfig(kind=kind)))
    assert dataset.ordered == ordered
    said = [note for note in dataset.notes if "without an order" in note]
    assert len(said) == (not ordered)


def test_the_share_of_what_is_asked_for_before_a_training_event() -> None:
    dataset = dataset_of(user_id=[1, 1, 1, 2, 2, 2], item_id=[1, 2, 3, 1, 2, 3], timestamp=range(6))
    one_of_two = dataset.with_parts(np.array([VALID, TRAIN, TEST, TRAIN, VALID, TEST]), "")
    assert with_order_as_asked(one_of_two) is one_of_two
    both = dataset.with_parts(np.array([VALID, TRAIN, TEST, VALID, TRAIN, TEST]), "")
    assert not with_order_as_asked(both).ordered
    assert "100% of the validation events" in with_order_as_asked(both).notes[-1]
