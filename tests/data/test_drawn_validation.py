"""Validation that no file gives is drawn as the test was."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.chinese import in_chinese
from twotower.config import DataConfig, SplitConfig
from twotower.data.dataset import Dataset, Part
from twotower.data.drawn_validation import hold_out_validation, how_test_was_drawn
from twotower.data.preparation import prepare
from twotower.data.splits import split, with_order_as_asked
from twotower.errors import ConfigError

TRAIN, VALID, TEST = Part.TRAIN, Part.VALID, Part.TEST
QUERIES, EVENTS = 40, 20


def events(*, ties: bool = False) -> pl.DataFrame:
    """Forty queries of twenty events over the same year, some of them at equal times."""
    rng = np.random.default_rng(0)
    num = QUERIES * EVENTS
    times = rng.permutation(num) * 40_000 + 10**9
    return pl.DataFrame(
        {
            "user_id": np.arange(num) % QUERIES,
            "item_id": rng.integers(0, 60, num),
            "timestamp": times // (10**6 if ties else 1),
        }
    ).sort("user_id", "timestamp", maintain_order=True)


def held_of(dataset: Dataset, config: SplitConfig | None = None) -> Dataset:
    """Hold validation out, which must be told in both languages."""
    held = hold_out_validation(dataset, config or SplitConfig())
    assert in_chinese(held.notes[-2]) is not None
    return held


def given(frame: pl.DataFrame, is_test: pl.Expr, **config: Any) -> Dataset:
    marked = frame.with_columns(is_test.alias("test"))
    parts = {
        name: marked.filter(pl.col("test") == wanted).drop("test")
        for name, wanted in (("train", False), ("test", True))
    }
    return prepare(parts, config=DataConfig(**config)).dataset


FROM_END = pl.int_range(pl.len(), 0, -1).over("user_id")
LAST = FROM_END == 1
LAST_FIVE = FROM_END <= 5
LATER = pl.col("timestamp") >= pl.col("timestamp").quantile(0.9)
NEW = pl.col("user_id") % 5 == 0
ANYWHERE = pl.Series(np.random.default_rng(1).random(QUERIES * EVENTS) < 0.2)


@pytest.mark.parametrize("ties", [False, True])
def test_the_last_event_of_each_query_gives_the_parts_of_leave_last_out(ties: bool) -> None:
    frame = events(ties=ties)
    whole = split(prepare(frame).dataset)
    held = held_of(given(frame, LAST))
    assert held.parts.tolist() == whole.parts.tolist()
    assert (held.interactions.item_rows == whole.interactions.item_rows).all()
    assert held.ordered
    assert with_order_as_asked(held).ordered
    assert held.notes[-2] == (
        "Validation is drawn from training: the last events of each query (as the test was: 100% of the "
        "test events come after all training events of their query)."
    )


@pytest.mark.parametrize(
    ("is_test", "kind"),
    [
        (LAST, "leave-last-out"),
        (LAST_FIVE, "leave-last-out"),
        (LAST & (pl.col("user_id") < 8), "leave-last-out"),  # some queries alone
        (LATER, "temporal"),
        (LATER | (pl.col("user_id") == 3), "leave-last-out"),  # late, but for a new query
        (NEW, "cold-queries"),
        (pl.lit(ANYWHERE), "random"),
    ],
)
def test_how_the_test_was_drawn_is_told_by_its_events(is_test: pl.Expr, kind: str) -> None:
    assert how_test_was_drawn(given(events(), is_test))[0] == kind


def test_a_file_with_a_few_events_out_of_place_is_still_one_of_last_events() -> None:
    misplaced = (pl.col("user_id") < 3) & (FROM_END == 10)
    moved = (pl.col("user_id") < 12) & (FROM_END == 10)
    last = LAST & (pl.col("user_id") >= 3)
    assert how_test_was_drawn(given(events(), last | misplaced))[0] == "leave-last-out"
    last = LAST & (pl.col("user_id") >= 12)
    assert how_test_was_drawn(given(events(), last | moved))[0] == "random"


def test_validation_holds_no_more_last_events_than_the_test_has_of_the_query() -> None:
    dataset = given(events(), LAST_FIVE)
    held = held_of(dataset, SplitConfig(valid_fraction=0.2))
    owners, parts = held.interactions.query_rows, held.parts
    for row in np.unique(owners):
        own = parts[owners == row].tolist()
        assert own == [TRAIN] * 12 + [VALID] * 3 + [TEST] * 5  # a fifth of 15
    one = held_of(given(events(), LAST), SplitConfig(valid_fraction=0.2))
    assert (one.parts == VALID).sum() == QUERIES
    some = held_of(given(events(), LAST & (pl.col("user_id") < 8)))
    assert (some.parts == VALID).sum() == 8  # of the queries that the test asks about


def test_a_later_period_is_validated_on_the_latest_part_of_training() -> None:
    dataset = given(events(), LATER)
    held = held_of(dataset, SplitConfig(valid_fraction=0.25))
    times, parts = held.interactions.times, held.parts
    assert times is not None
    assert times[parts == TRAIN].max() < times[parts == VALID].min()
    assert (parts == VALID).sum() == pytest.approx(0.25 * (dataset.parts == TRAIN).sum(), abs=1)
    assert "the training events from " in held.notes[-2]
    assert with_order_as_asked(held).ordered


def test_new_queries_are_validated_on_whole_queries() -> None:
    held = held_of(given(events(), NEW))
    owners = held.interactions.query_rows
    asked = set(owners[held.parts == VALID])
    assert len(asked) == 3  # a tenth of the 32 of training
    assert not asked & set(owners[held.parts == TRAIN])
    assert "100% of the test queries have no training event" in held.notes[-2]


def test_events_from_anywhere_are_validated_at_random_and_have_no_order() -> None:
    held = held_of(given(events(), pl.lit(ANYWHERE)))
    assert "training events at random" in held.notes[-2]
    assert not with_order_as_asked(held).ordered


def test_equal_times_say_nothing_of_what_comes_last() -> None:
    """As after an import, all events of a query have one time; the test is a random one of them."""
    frame = events().with_columns(timestamp=pl.col("user_id") + 10**9)
    assert how_test_was_drawn(given(frame, pl.lit(ANYWHERE)))[0] == "random"


def test_the_order_of_the_file_is_read_where_it_is_stated() -> None:
    frame = events().drop("timestamp")
    assert how_test_was_drawn(given(frame, LAST))[0] == "random"
    held = held_of(given(frame, LAST, order="file"))
    assert (held.parts == VALID).sum() == QUERIES
    assert how_test_was_drawn(given(events(), LAST, order="none"))[0] == "random"


def test_a_stated_kind_is_how_validation_is_drawn() -> None:
    dataset = given(events(), LAST)
    for kind, share in (("random", 0.1), ("temporal", 0.1), ("cold-queries", 0.1)):
        held = held_of(dataset, SplitConfig(kind=kind))  # type: ignore[arg-type]
        assert f"(as split.kind = '{kind}' says)" in held.notes[-2]
        num_train = (dataset.parts == TRAIN).sum()
        assert (held.parts == VALID).sum() == pytest.approx(share * num_train, rel=0.1)
    cold = held_of(dataset, SplitConfig(kind="cold-items"))
    items = cold.interactions.item_rows
    assert not set(items[cold.parts == VALID]) & set(items[cold.parts == TRAIN])
    with pytest.raises(ConfigError, match=r"split\.kind must be 'random', .* 'leave-last-out'"):
        held_of(given(events().drop("timestamp"), LAST), SplitConfig(kind="leave-last-out"))


def test_what_is_too_little_for_last_events_is_drawn_at_random() -> None:
    """Each query of the test has one training event, which must stay."""
    few = FROM_END <= 2
    frame = pl.concat([events().filter(few & (pl.col("user_id") < 20)), events().filter(
        pl.col("user_id") >= 20)])  # fmt: skip
    dataset = given(frame, LAST & (pl.col("user_id") < 20), order="file")
    held = held_of(dataset)
    assert "(leave-last-out would leave a part empty)" in held.notes[-2]
    assert (held.parts == VALID).any()
