"""What the second stage reads, worked by hand for four items; and laws that hold for any query."""

from dataclasses import replace
from math import log

import numpy as np
import numpy.typing as npt
import pytest
import torch

from second_stages import (
    DEPTH,
    ITEM_COLUMNS,
    NUM_ROWS,
    QUERY_COLUMNS,
    candidates_of,
    catalogue_of,
    memory_of,
)
from twotower.arrays import Float32s
from twotower.features.schema import Feature
from twotower.histories import Histories
from twotower.second_stage import inputs as module
from twotower.second_stage.follows import Follows
from twotower.second_stage.inputs import Candidates, Catalogue, Inputs, Memory, columns_of
from twotower.second_stage.item_times import ItemTimes
from twotower.second_stage.ranker import table_of
from twotower.vocab import FIRST_ROW, PADDING_ROW

NAN, INF = np.nan, np.inf

CATALOGUE = Catalogue(
    torch.tensor([[0, 0], [0, 0], [1, 0], [0, 2], [3, 4], [-1, 0]]).float(),
    {
        "kind": torch.tensor([0, 0, 2, 3, 3, 1], dtype=torch.int32),
        "tags": torch.tensor([[0, 0], [0, 0], [2, 3], [3, 0], [3, 2], [0, 0]], dtype=torch.int32),
        "price": torch.tensor([0, 0, 0.5, 1.5, 2.5, 3.5]),
        "year": torch.arange(36).reshape(6, 6).float(),
    },
)
COUNTS = np.array([0, 0, 3, 1, 7, 0], np.float32)


def asked(
    *histories: list[int], times: list[float] | None = None, at: list[float] | None = None
) -> Candidates:
    """Return queries with two candidates each, the items of rows 4 and 5."""
    num = len(histories)
    found = Histories.of([np.array(history, np.int32) for history in histories])
    moments = None if times is None else np.array(times, np.float64)
    ats = None if at is None else np.array(at, np.float64)
    return Candidates(
        np.array([[4, 5, PADDING_ROW]] * num, np.int32),
        np.array([[2, 1, -INF]] * num, np.float32),
        replace(found, times=moments, asked=ats),
        {
            "segment": np.full(num, 3, np.int32),
            "words": np.array([[4, 5]] * num, np.int32),
            "signal": np.array([[0.5, -0.5]] * num, np.float32),
        },
    )


def read(
    candidates: Candidates, memory: Memory | None = None, catalogue: Catalogue = CATALOGUE
) -> dict[str, Float32s]:
    memory = memory or Memory(COUNTS, None, None)
    return Inputs(memory, ITEM_COLUMNS, QUERY_COLUMNS).of(candidates, catalogue)


def is_near(found: Float32s, *expected: list[float]) -> None:
    """The numbers of the two candidates are those; the third one is padding."""
    np.testing.assert_allclose(found[:, :2], expected, rtol=1e-6, atol=1e-7)


def test_scores() -> None:
    found = read(asked([]))
    is_near(found["score"], [2, 1])
    is_near(found["place"], [0, 1])
    is_near(found["score_below_best"], [0, 1])
    is_near(found["score_above_next"], [1, NAN])
    np.testing.assert_allclose(found["score_standardised"][0, :2], [1, -1], rtol=1e-5)
    for name in found:
        if name.startswith("score"):
            assert np.isnan(found[name][0, 2])


def test_words() -> None:
    """Of equal scores the places are equal: how many candidates have a higher one."""
    words = np.array([[0.5, 2.5, 0], [1.5, 1.5, 0], [0, 0, 0], [0, 3, 0]], np.float32)
    found = read(replace(asked([], [], [], []), words=words))
    is_near(found["words"], [0.5, 2.5], [1.5, 1.5], [0, 0], [0, 3])
    is_near(found["words_place"], [1, 0], [0, 0], [0, 0], [1, 0])
    assert {"words", "words_place"}.isdisjoint(read(asked([])))
    assert all(each.dtype == np.float32 for each in found.values())


def test_similarities() -> None:
    """Of item 4 the cosines are 0.6 with row 2 and 0.8 with row 3; of item 5, -1 and 0."""
    found = read(asked([2, 3], [3, 2, 2, 2], []))
    is_near(found["similarity_most"], [0.8, 0], [0.8, 0], [NAN, NAN])
    is_near(found["similarity_most_age"], [0, 0], [3, 3], [NAN, NAN])
    is_near(found["similarity_last"], [0.8, 0], [0.6, -1], [NAN, NAN])
    is_near(found["similarity_mean"], [0.7, -0.5], [0.65, -0.75], [NAN, NAN])
    is_near(found["similarity_last_3"], [0.7, -0.5], [0.6, -1], [NAN, NAN])
    is_near(found["similarity_last_10"], [0.7, -0.5], [0.65, -0.75], [NAN, NAN])


def test_only_the_last_fifty_events_are_read() -> None:
    found = read(asked([4] * 3 + [2] * 50))
    is_near(found["similarity_most"], [0.6, -1])
    is_near(found["times_seen"], [0, 0])
    is_near(found["history_length"], [53, 53])


def test_the_history() -> None:
    times = [100.0, 160.0, 10.0, 20.0, 30.0]
    found = read(asked([2, 3], [5, 4, 5], [], times=times, at=[200.0, NAN, 50.0]))
    is_near(found["history_length"], [2, 2], [3, 3], [0, 0])
    is_near(found["times_seen"], [0, 0], [1, 2], [0, 0])
    is_near(found["last_seen_age"], [NAN, NAN], [1, 0], [NAN, NAN])
    is_near(found["seconds_since_history"], [40, 40], [NAN, NAN], [NAN, NAN])
    assert found["times_seen"][:, 2].tolist() == [0, 0, 0]  # what is padded is no item


@pytest.mark.parametrize("at", [INF, -INF, NAN])
def test_an_unknown_moment_is_after_all_events(at: float) -> None:
    rows, times = np.array([4, 4, 5], np.int32), np.array([10.0, 20.0, 30.0])
    memory = Memory(COUNTS, None, ItemTimes.fit(rows, times))
    found = read(asked([2], times=[5.0], at=[at]), memory)
    is_near(found["seconds_since_history"], [NAN, NAN])
    is_near(found["events"], [log(3), log(2)])


def test_popularity_without_times() -> None:
    found = read(asked([2, 3], []))
    of_history = (log(4) + log(2)) / 2
    is_near(found["events"], [log(8), 0], [log(8), 0])
    is_near(found["events_of_history"], [of_history] * 2, [0, 0])
    is_near(found["events_against_history"], [log(8) - of_history, -of_history], [log(8), 0])
    assert "item_age" not in found


def test_popularity_at_a_moment() -> None:
    rows = np.array([2, 4, 4, 4, 5], np.int32)
    times = ItemTimes.fit(rows, np.array([0.0, 100.0, 249.0, 256.0, 200.0]))
    found = read(asked([2], [2], times=[50.0, 50.0], at=[250.0, 1e6]), Memory(COUNTS, None, times))
    is_near(found["events"], [log(3), log(2)], [log(4), log(2)])
    is_near(found["events_of_history"], [log(2)] * 2, [log(2)] * 2)
    # In the last 4 seconds, and in the last 64.
    is_near(found["events_64th"], [log(2), 0], [log(2), 0])
    is_near(found["events_4th"], [log(2), log(2)], [log(3), log(2)])
    is_near(found["trend_64th"], [log(2) - log(3), -log(2)], [log(2) - log(4), -log(2)])
    is_near(found["item_age"], [150 / 256, 50 / 256], [156 / 256, 56 / 256])


def test_what_follows() -> None:
    follows = Follows.fit(np.array([0, 3, 5]), np.array([2, 3, 4, 3, 5], np.int32), 6)
    found = read(asked([2, 3], []), Memory(COUNTS, follows, None))
    weights = 0.5**0.25 * 0.7 / 36**0.5 + 1 / 42**0.5, 1 / 42**0.5
    is_near(found["follows_recent"], list(weights), [0, 0])
    is_near(found["follows_last"], [1 / 42**0.5] * 2, [0, 0])


def test_columns_of_the_items() -> None:
    found = read(asked([2, 3], []))
    is_near(found["item.kind"], [3, 1], [3, 1])
    is_near(found["item.kind.in_history"], [0.5, 0], [0, 0])  # row 1 is an unknown value
    # Of item 4, one tag is that of both events, the other one that of one event.
    is_near(found["item.tags.in_history"], [0.75, 0], [0, 0])
    is_near(found["item.price.0"], [2.5, 3.5], [2.5, 3.5])
    is_near(found["item.year.3"], [27, 33], [27, 33])
    assert {"item.tags", "item.year.4"}.isdisjoint(found)  # of numbers there are at most four


def test_columns_of_the_queries() -> None:
    found = read(asked([2, 3]))
    assert {name: found[name][0].tolist() for name in found if name.startswith("query.")} == {
        "query.segment.0": [3, 3, 3],
        "query.words.0": [4, 4, 4],
        "query.signal.0": [0.5, 0.5, 0.5],
        "query.signal.1": [-0.5, -0.5, -0.5],
    }


def test_which_columns_are_read() -> None:
    def features(side: str) -> list[Feature]:
        kinds = ("id", "categorical", "tags", "number", "text", "shown", "time")
        return [Feature(f"{side} {kind}", side, kind, "") for kind in kinds]  # type: ignore[arg-type]

    kept = ("categorical", "tags", "number", "time")
    found = columns_of(features("item"), features("query"))
    assert found == tuple([f"{side} {kind}" for kind in kept] for side in ("item", "query"))


MEMORY = memory_of()


@pytest.mark.parametrize(
    "memory", [MEMORY, replace(MEMORY, times=None), Memory(MEMORY.counts, None, None)]
)
def test_names_and_types_depend_on_no_query(memory: Memory) -> None:
    """Nor does one warn, whatever is missing."""
    inputs, catalogue = Inputs(memory, ITEM_COLUMNS, QUERY_COLUMNS), catalogue_of()
    many = candidates_of(30)
    names = list(inputs.of(many, catalogue))
    bare = replace(many, histories=replace(many.histories, times=None, asked=None))
    nothing = replace(
        many,
        item_rows=np.zeros_like(many.item_rows),
        scores=np.full_like(many.scores, -INF),
        histories=Histories.empty(30),
    )
    for given in (many, bare, nothing, candidates_of(0), candidates_of(1)):
        found = inputs.of(given, catalogue)
        assert list(found) == names
        for values in found.values():
            assert values.dtype == np.float32
            assert values.shape == (len(given), DEPTH)
            assert not np.isinf(values).any()
        assert table_of(found, tuple(names)).dtype == np.float32


def test_few_similarities_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, catalogue = candidates_of(30), catalogue_of()
    expected = read(candidates, memory_of(), catalogue)
    monkeypatch.setattr(module, "_CELLS", 1)
    for name, values in read(candidates, memory_of(), catalogue).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6, err_msg=name)


def grown(catalogue: Catalogue, replaced: npt.NDArray[np.int32], num_new: int) -> Catalogue:
    """Return a catalogue with a row more for each replaced row, alike but its price, and with new rows."""
    new = np.arange(NUM_ROWS + len(replaced), NUM_ROWS + len(replaced) + num_new)
    copied = torch.from_numpy(np.concatenate([np.arange(NUM_ROWS), replaced, replaced[:num_new]]))
    features = {name: values[copied].clone() for name, values in catalogue.features.items()}
    features["price"][NUM_ROWS:] += 100
    first = np.concatenate([copied[: NUM_ROWS + len(replaced)].numpy(), new]).astype(np.int32)
    return Catalogue(catalogue.vectors[copied], features, first)


def test_a_replaced_item_keeps_what_is_remembered() -> None:
    """Its columns and its vector are the new ones; what is remembered is that of its first row."""
    catalogue, candidates = catalogue_of(), candidates_of(30)
    replaced = np.arange(FIRST_ROW, 20, dtype=np.int32)
    newest = np.arange(NUM_ROWS, dtype=np.int32)
    newest[replaced] = NUM_ROWS + np.arange(len(replaced))
    moved = replace(
        candidates,
        item_rows=newest[candidates.item_rows],
        histories=replace(candidates.histories, item_rows=newest[candidates.histories.item_rows]),
    )
    expected = read(candidates, memory_of(), catalogue)
    found = read(moved, memory_of(), grown(catalogue, replaced, 0))
    is_replaced = np.isin(candidates.item_rows, replaced)
    assert is_replaced.any()
    for name, values in found.items():
        if name.startswith("item.price"):
            np.testing.assert_allclose(values, expected[name] + 100 * is_replaced, atol=1e-4)
        else:
            np.testing.assert_allclose(values, expected[name], atol=1e-6, err_msg=name)


def test_of_a_new_item_nothing_is_remembered() -> None:
    catalogue = grown(catalogue_of(), np.arange(FIRST_ROW, 20, dtype=np.int32), 5)
    candidates = candidates_of(10)
    rows = np.arange(len(catalogue.vectors) - 5, len(catalogue.vectors), dtype=np.int32)
    candidates.item_rows[:, :5] = rows
    candidates.scores[:, :5] = 3
    found = read(candidates, memory_of(), catalogue)
    for name in ("events", "events_4th", "follows_recent", "follows_last", "times_seen"):
        assert not found[name][:, :5].any()
    assert np.isnan(found["item_age"][:, :5]).all()
    assert np.isfinite(found["similarity_most"][1, :5]).all()
    assert (found["item.price.0"][:, :5] > 50).all()
