"""What every split must obey, however it divides the events."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twotower.config import DataConfig, SplitConfig
from twotower.data.dataset import Dataset, Part
from twotower.data.drawn_validation import hold_out_validation
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.errors import DataError

# Each split on data of the kind that it is for: how events are ordered, and whether time says so.
SPLITS: dict[str, tuple[str, str]] = {
    "leave-last-out, by time": ("leave-last-out", "time"),
    "leave-last-out, by file": ("leave-last-out", "file"),
    "random, ordered": ("random", "time"),
    "random, without order": ("random", "none"),
    "temporal, ordered": ("temporal", "time"),
    "temporal, without order": ("temporal", "none"),
    "cold-items": ("cold-items", "time"),
    "given, ordered": ("given", "time"),
    "given, without order": ("given", "none"),
}


def splits(names: Iterable[str]) -> pytest.MarkDecorator:
    chosen = {name: SPLITS[name] for name in names}
    return pytest.mark.parametrize(("kind", "order"), chosen.values(), ids=list(chosen))


every_split = splits(SPLITS)
seeds = st.integers(0, 2**31)


def some_events(seed: int, *, distinct_times: bool = False) -> pl.DataFrame:
    """Return from 1 to 200 events, with negatives, repeats and (or not) ties in time."""
    rng = np.random.default_rng(seed)
    num, num_queries, num_items = rng.integers(1, [200, 20, 30], endpoint=True)
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, num_queries, num),
            "item_id": rng.integers(0, num_items, num),
            "timestamp": rng.permutation(num) if distinct_times else rng.integers(0, 40, num),
            "label": (rng.random(num) < 0.8).astype(np.int64),
            "given": rng.choice(["train", "train", "test"], num),
            "place": np.arange(num),
        }
    )


def parted(frame: pl.DataFrame, kind: str, order: Any, seed: int = 0) -> Dataset:
    """Return the split data set; skip the example where the data are too few for it."""
    config = DataConfig(order=order)
    catalogue = pl.DataFrame({"item_id": np.arange(31)})
    try:
        if kind != "given":
            dataset = prepare(frame, items=catalogue, config=config).dataset
            return split(dataset, SplitConfig(kind=kind, seed=seed))  # type: ignore[arg-type]
        parts = {str(part): rows for (part,), rows in frame.group_by("given", maintain_order=True)}
        if len(parts) < 2:
            raise DataError("the given split must leave test rows.")
        given_parts = prepare(parts, items=catalogue, config=config).dataset
        return hold_out_validation(given_parts, SplitConfig(seed=seed))
    except DataError as error:
        told = ("split must leave", "must hold a positive")
        assert any(words in str(error) for words in told)  # noqa: PT017 - other refusals are bugs
        assume(False)
        raise


def rows_of(dataset: Dataset) -> pl.DataFrame:
    """Return one line an event: ids, time, label, part, and its place in the table."""
    events = dataset.interactions
    return dataset.event_columns.select("timestamp", "place").with_columns(
        user_id=dataset.queries.ids.ids_of(events.query_rows),
        item_id=dataset.items.ids.ids_of(events.item_rows),
        query_row=pl.Series(events.query_rows),
        item_row=pl.Series(events.item_rows),
        positive=pl.Series(events.is_positive),
        part=pl.Series(dataset.parts),
    )


@every_split
@given(seed=seeds)
def test_parts_share_out_the_events(kind: str, order: str, seed: int) -> None:
    frame = some_events(seed)
    rows = rows_of(parted(frame, kind, order))
    columns = ["place", "user_id", "item_id", "timestamp"]
    assert rows.select(columns).sort("place").rows() == frame.select(columns).rows()
    assert rows["part"].is_in([Part.TRAIN, Part.VALID, Part.TEST]).all()


@every_split
@given(seed=seeds)
def test_no_part_is_without_positives(kind: str, order: str, seed: int) -> None:
    dataset = parted(some_events(seed), kind, order)
    for part in (Part.TRAIN, Part.VALID, Part.TEST):
        assert dataset.part(part).is_positive.any()
    assert len(dataset.cases(Part.VALID))
    assert len(dataset.cases(Part.TEST))


@every_split
@given(seed=seeds)
def test_targets_are_the_positives_of_the_part_and_never_negatives(
    kind: str, order: str, seed: int
) -> None:
    dataset = parted(some_events(seed), kind, order)
    rows = rows_of(dataset)
    for part in (Part.VALID, Part.TEST):
        cases = dataset.cases(part)
        wanted = rows.filter((pl.col("part") == part) & pl.col("positive"))
        assert sorted(set(wanted["query_row"])) == cases.query_rows.tolist()
        for place, query in enumerate(cases.query_rows):
            start, end = cases.targets.offsets[place : place + 2]
            targets = cases.targets.item_rows[start:end].tolist()
            assert targets
            assert targets == sorted(set(wanted.filter(pl.col("query_row") == query)["item_row"]))


@every_split
@given(seed=seeds)
def test_histories_hold_the_positives_of_earlier_parts_only(
    kind: str, order: str, seed: int
) -> None:
    dataset = parted(some_events(seed), kind, order)
    rows = rows_of(dataset).filter("positive")
    for part in (Part.VALID, Part.TEST):
        cases = dataset.cases(part)
        for place, query in enumerate(cases.query_rows):
            start, end = cases.histories.offsets[place : place + 2]
            known = rows.filter((pl.col("query_row") == query) & (pl.col("part") < part))
            assert cases.histories.item_rows[start:end].tolist() == known["item_row"].to_list()


@splits(name for name in SPLITS if name.startswith(("leave-last-out", "temporal")))
@given(seed=seeds)
def test_no_history_looks_past_a_target(kind: str, order: str, seed: int) -> None:
    # The other splits hold out events wherever they stand.
    rows = rows_of(parted(some_events(seed), kind, order)).filter("positive")
    # When events happened: at a time, and within it in the table's order.
    moments = [
        (0 if order == "file" else t, p) for t, p in rows.select("timestamp", "place").rows()
    ]
    parts, queries = rows["part"].to_list(), rows["query_row"].to_list()
    everyone = kind == "temporal"
    for part in (Part.VALID, Part.TEST):
        for query in set(queries):
            here = [n for n, owner in enumerate(queries) if everyone or owner == query]
            known = [moments[n] for n in here if parts[n] < part]
            wanted = [moments[n] for n in here if parts[n] == part]
            if known and wanted:
                assert max(known) < min(wanted)


@every_split
@given(seed=seeds, split_seed=st.integers(0, 5))
def test_equal_seeds_give_equal_splits(kind: str, order: str, seed: int, split_seed: int) -> None:
    frame = some_events(seed)
    one, other = (parted(frame, kind, order, split_seed) for _ in range(2))
    assert one.parts.tolist() == other.parts.tolist()
    assert one.notes == other.notes


@pytest.mark.parametrize("kind", ["random", "cold-items", "given"])
def test_other_seeds_give_other_splits(kind: str) -> None:
    frame = pl.DataFrame(
        {
            "user_id": [n % 10 for n in range(200)],
            "item_id": [n % 30 for n in range(200)],
            "timestamp": range(200),
            "given": ["train", "train", "test", "train"] * 50,
        }
    )
    found = {parted(frame, kind, "time", seed).parts.tobytes() for seed in range(4)}
    assert len(found) == 4


@splits(name for name in SPLITS if "by file" not in name)
@given(seed=seeds, shuffle=seeds)
def test_the_order_of_a_tables_rows_does_not_move_an_event(
    kind: str, order: str, seed: int, shuffle: int
) -> None:
    frame = some_events(seed, distinct_times=True)
    found = [
        Counter(
            rows_of(parted(rows, kind, order))
            .select("user_id", "item_id", "timestamp", "positive", "part")
            .rows()
        )
        for rows in (frame, frame.sample(fraction=1.0, shuffle=True, seed=shuffle))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["random", "cold-items", "given"])
@given(shuffle=seeds)
def test_without_times_a_pair_stays_where_it_is(kind: str, shuffle: int) -> None:
    pairs = [(query, item) for query in range(6) for item in range(query, query + 7)]
    frame = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row").with_columns(
        given=pl.Series(["train", "train", "test"] * 14)
    )

    def part_of(rows: pl.DataFrame) -> dict[Any, int]:
        dataset = parted(rows, kind, "auto")
        events = dataset.interactions
        keys = zip(events.query_rows.tolist(), events.item_rows.tolist(), strict=True)
        return dict(zip(keys, dataset.parts.tolist(), strict=True))

    assert part_of(frame) == part_of(frame.sample(fraction=1.0, shuffle=True, seed=shuffle))
