"""Columns that are nearly the label itself, and honest ones beside them."""

import numpy as np
import polars as pl
import pytest

from twotower.data.dataset import Dataset
from twotower.data.preparation import prepare
from twotower.doctor.data_leaks import label_columns


def table(seed: int = 0, num: int = 2000) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": rng.integers(100, size=num),
            "item_id": rng.integers(50, size=num),
            "label": rng.integers(2, size=num),
            "position": rng.integers(10, size=num),
        }
    )


def dataset_of(events: pl.DataFrame, items: pl.DataFrame | None = None) -> Dataset:
    return prepare(events, items=items).dataset


def test_a_column_known_only_after_the_event_is_warned_of() -> None:
    label = pl.col("label") == 1
    events = table().with_columns(
        seconds=pl.when(label).then(30 + pl.col("position")).otherwise(None)
    )
    (finding,) = label_columns(dataset_of(events), ["label"])
    assert (finding.kind.id, finding.severity) == ("column-knows-label", "warning")
    assert (finding.facts["side"], finding.facts["column"]) == ("event", "seconds")
    assert finding.value == pytest.approx(1)
    assert "not fed for the event that is asked about" in finding.as_json()["why"]
    assert finding.as_json("zh")["what"].startswith("仅凭事件列 'seconds'")


def test_the_label_itself_and_honest_columns_are_not() -> None:
    assert not list(label_columns(dataset_of(table()), ["label"]))
    found = label_columns(dataset_of(table()), [])
    assert [finding.facts["column"] for finding in found] == ["label"]


def test_without_roles_columns_of_events_are_left_out() -> None:
    assert not list(label_columns(dataset_of(table().with_columns(copy="label"))))


def test_a_good_column_is_not_a_perfect_one() -> None:
    rng = np.random.default_rng(1)
    flipped = pl.Series(rng.random(2000) < 0.1)
    events = table().with_columns(guess=(pl.col("label") == 1) ^ flipped)
    assert not list(label_columns(dataset_of(events), ["label"]))


def test_a_column_of_items_that_knows_more_than_their_ids_is_an_error() -> None:
    # Each item has one label and occurs twice or so: ids say little, the column everything.
    rng = np.random.default_rng(0)
    items = pl.DataFrame({"item_id": range(1000), "kind": rng.integers(2, size=1000)})
    taken = rng.integers(1000, size=2000)
    events = pl.DataFrame(
        {
            "user_id": rng.integers(100, size=2000),
            "item_id": taken,
            "label": items["kind"].to_numpy()[taken],
        }
    )
    (finding,) = label_columns(dataset_of(events, items), ["label"])
    assert (finding.severity, finding.facts["side"], finding.facts["column"]) == (
        "error",
        "item",
        "kind",
    )


def test_where_ids_say_as_much_nothing_is_found() -> None:
    items = pl.DataFrame({"item_id": range(50), "kind": [i % 2 for i in range(50)]})
    events = table().with_columns(label=pl.col("item_id") % 2)
    assert not list(label_columns(dataset_of(events, items), ["label"]))


def test_a_unique_column_cannot_know_the_label() -> None:
    events = table().with_columns(key="k" + pl.int_range(pl.len()).cast(pl.String))
    assert not list(label_columns(dataset_of(events), ["label"]))


def test_without_negatives_nothing_is_said() -> None:
    assert not list(label_columns(dataset_of(table().drop("label")), []))
