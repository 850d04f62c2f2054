"""Ways to cut cases into groups: which targets each holds, and what it is called."""

import numpy as np
import polars as pl
import pytest

from twotower.data.dataset import Cases, Dataset, EntityTable, Interactions, Part
from twotower.errors import ConfigError
from twotower.evaluation.case_groups import CaseGroup, case_groups_of
from twotower.histories import Histories
from twotower.vocab import UNKNOWN_ROW, Vocabulary

DAY = 86_400.0


def world(
    *,
    train: list[tuple[int, int]],
    queries: dict[str, list[object]],
    items: dict[str, list[object]],
    labels: list[int] | None = None,
) -> Dataset:
    """Return a data set of training events (query, item); ids are line numbers."""
    query_frame = pl.DataFrame({"q": range(len(next(iter(queries.values()))))} | queries)
    item_frame = pl.DataFrame({"i": range(len(next(iter(items.values()))))} | items)
    rows = np.array([query + 2 for query, _ in train], np.int32)
    return Dataset(
        queries=EntityTable(Vocabulary(query_frame["q"]), query_frame, "q"),
        items=EntityTable(Vocabulary(item_frame["i"]), item_frame, "i"),
        interactions=Interactions(
            query_rows=rows,
            item_rows=np.array([item + 2 for _, item in train], np.int32),
            offsets=np.searchsorted(rows, np.arange(len(query_frame) + 3)).astype(np.int64),
            labels=None if labels is None else np.array(labels, np.float32),
        ),
        parts=np.full(len(train), Part.TRAIN, np.uint8),
        ordered=True,
        repeats=False,
        event_columns=query_frame.clear(),
    )


def cut(
    data: Dataset,
    targets: list[list[int]],
    by: list[str] | None,
    *,
    histories: list[int] | None = None,
    times: list[float] | None = None,
) -> list[CaseGroup]:
    """Return the cuts of one case a query, with targets and history lengths."""
    rows = [np.array([item + 2 for item in one], np.int32) for one in targets]
    lengths = histories or [0] * len(targets)
    cases = Cases(
        query_rows=np.arange(2, len(targets) + 2, dtype=np.int32),
        histories=Histories.of([np.full(n, 2, np.int32) for n in lengths]),
        targets=Histories.of(rows),
        times=None if times is None else np.array(times),
    )
    return case_groups_of(data, cases, cases.targets, by)


def groups(cuts: list[CaseGroup]) -> dict[str, list[int]]:
    return {one.label: np.flatnonzero(one.kept).tolist() for one in cuts}


PLAIN: dict[str, list[object]] = {"x": [0.5, 1.5, 2.5, 3.5]}


class TestBuiltIn:
    def test_cold_items_have_no_positive_training_event(self) -> None:
        data = world(train=[(0, 0), (0, 1)], labels=[1, 0], queries=PLAIN, items=PLAIN)
        found = cut(data, [[0, 1], [2]], ["cold_items"])
        assert groups(found) == {"cold": [1, 2], "warm": [0]}
        assert {one.side for one in found} == {"item"}

    def test_an_unknown_item_is_cold(self) -> None:
        data = world(train=[(0, 0)], queries=PLAIN, items=PLAIN)
        unknown = UNKNOWN_ROW - 2
        assert groups(cut(data, [[0], [unknown]], ["cold_items"])) == {"cold": [1], "warm": [0]}

    def test_cold_queries_with_all_their_targets(self) -> None:
        data = world(train=[(0, 0)], queries=PLAIN, items=PLAIN)
        found = cut(data, [[0], [1, 2]], ["cold_queries"])
        assert groups(found) == {"cold": [1, 2], "warm": [0]}

    def test_popularity_in_thirds_of_the_events(self) -> None:
        """Events 6, 3, 2, 1 of 12: the first half is item 0's, item 1 begins in the middle third,
        item 2 at 9/12 in the last."""
        counts = (6, 3, 2, 1)
        train = [(0, item) for item, n in enumerate(counts) for _ in range(n)]
        data = world(train=train, queries=PLAIN, items=PLAIN)
        found = cut(data, [[0, 1, 2, 3]], ["item_popularity"])
        assert groups(found) == {"head": [0], "middle": [1], "tail": [2, 3]}
        assert [(one.low, one.high, one.unit) for one in found] == [
            (6, 6, "events"),
            (3, 3, "events"),
            (1, 2, "events"),
        ]

    def test_equally_popular_items_stay_together(self) -> None:
        data = world(train=[(0, item) for item in range(4)], queries=PLAIN, items=PLAIN)
        assert groups(cut(data, [[0, 1, 2, 3]], ["item_popularity"])) == {"head": [0, 1, 2, 3]}

    def test_activity_in_quarters_of_the_queries(self) -> None:
        train = [(query, 0) for query in range(4) for _ in range(query * 10 + 1)]
        data = world(train=train, queries=PLAIN, items=PLAIN)
        found = cut(data, [[1]] * 4, ["activity"])
        assert groups(found) == {
            "1 event": [0],
            "11 events": [1],
            "21 events": [2],
            "31 events": [3],
        }

    def test_history_length_is_that_of_the_case(self) -> None:
        data = world(train=[(0, 0)], queries=PLAIN, items=PLAIN)
        found = cut(data, [[1]] * 4, ["history_length"], histories=[5, 5, 5, 1200])
        assert groups(found) == {"5 events": [0, 1, 2], "1,200 events": [3]}

    @pytest.mark.parametrize(
        ("step", "unit", "label"),
        [(30 * DAY, "day", "2001-09-09"), (3600.0, "minute", "2001-09-09 01:46")],
    )
    def test_time_is_shown_as_finely_as_it_spreads(
        self, step: float, unit: str, label: str
    ) -> None:
        data = world(train=[(0, 0)], queries=PLAIN, items=PLAIN)
        times = [1e9 + place * step for place in range(4)]
        found = cut(data, [[1]] * 4, ["time"], times=times)
        assert (found[0].label, found[0].unit) == (label, unit)
        assert [(one.low, one.high) for one in found] == [(t, t) for t in times]

    @pytest.mark.parametrize("times", [None, [np.inf] * 4])
    def test_events_without_times(self, times: list[float] | None) -> None:
        data = world(train=[(0, 0)], queries=PLAIN, items=PLAIN)
        with pytest.raises(ConfigError, match="got 'time' of events without times"):
            cut(data, [[1]] * 4, ["time"], times=times)
        assert "time" not in {one.by for one in cut(data, [[1]] * 4, None, times=times)}


class TestColumns:
    def test_numbers_in_quarters_and_what_is_missing(self) -> None:
        values: list[object] = [1.0, 2.0, 3.0, 4.0, 5.5, 6.0, 7.0, 8.0, None]
        data = world(train=[(0, 0)], queries={"age": values}, items=PLAIN)
        found = cut(data, [[0]] * 9, ["age"])
        assert groups(found) == {
            "1 to 2": [0, 1],
            "3 to 4": [2, 3],
            "5.5 to 6": [4, 5],
            "7 to 8": [6, 7],
            "(missing)": [8],
        }
        assert (found[2].low, found[2].high, found[2].unit) == (5.5, 6.0, "number")
        assert (found[-1].low, found[-1].unit) == (None, None)
        assert {one.by for one in found} == {"query.age"}

    def test_a_moment(self) -> None:
        days: list[object] = ["2024-01-01", "2024-03-01", "2024-06-01", "2024-09-30"]
        data = world(train=[(0, 0)], queries=PLAIN, items={"released": days})
        found = cut(data, [[0, 1, 2, 3]], ["released"])
        assert [one.label for one in found] == days
        assert found[0].unit == "day"
        assert found[0].low == np.datetime64("2024-01-01", "s").astype(np.int64)

    def test_an_item_belongs_to_each_of_its_tags(self) -> None:
        tags: list[object] = [["drama", "war"], ["war"], ["drama"], None]
        data = world(train=[(0, 0)], queries=PLAIN, items={"genres": tags})
        found = cut(data, [[0, 1], [2, 3]], ["genres"])
        assert groups(found) == {"drama": [0, 2], "war": [0, 1], "(missing)": [3]}

    def test_tags_in_a_string(self) -> None:
        tags: list[object] = ["drama|war", "drama|war", "war|crime", "crime|drama"] * 3
        data = world(train=[(0, 0)], queries=PLAIN, items={"genres": tags})
        found = cut(data, [[0, 1, 2, 3]], ["genres"])
        assert groups(found) == {"drama": [0, 1, 3], "war": [0, 1, 2], "crime": [2, 3]}

    def test_a_dozen_values_and_the_rest(self) -> None:
        towns: list[object] = [f"t{place:02}" for place in range(20) for _ in range(2)]
        data = world(train=[(0, 0)], queries={"town": towns}, items=PLAIN)
        found = cut(data, [[0]] * 40, ["town"])
        assert [one.label for one in found] == [f"t{place:02}" for place in range(12)] + ["(other)"]
        assert groups(found)["(other)"] == list(range(24, 40))

    def test_a_thirteenth_value_is_shown_rather_than_called_other(self) -> None:
        towns: list[object] = [f"t{place:02}" for place in range(13) for _ in range(2)]
        data = world(train=[(0, 0)], queries={"town": towns}, items=PLAIN)
        assert "(other)" not in groups(cut(data, [[0]] * 26, ["town"]))

    def test_an_unknown_item_has_no_value(self) -> None:
        data = world(train=[(0, 0)], queries=PLAIN, items={"kind": ["a", "b", "a", "b"]})
        found = cut(data, [[0], [UNKNOWN_ROW - 2]], ["kind"])
        assert groups(found) == {"a": [0], "(missing)": [1]}

    def test_of_both_sides_where_both_have_it(self) -> None:
        kinds: dict[str, list[object]] = {"kind": ["a", "b", "a", "b"]}
        data = world(train=[(0, 0)], queries=kinds, items=kinds)
        assert {one.by for one in cut(data, [[0], [1]], ["kind"])} == {"query.kind", "item.kind"}
        assert {one.by for one in cut(data, [[0], [1]], ["item.kind"])} == {"item.kind"}

    def test_a_name_that_stands_twice_is_cut_once(self) -> None:
        data = world(train=[(0, 0)], queries=PLAIN, items={"kind": ["a", "b", "a", "b"]})
        assert len(cut(data, [[0], [1]], ["kind", "kind"])) == 2


class TestByItself:
    def test_what_gives_one_group_is_left_out(self) -> None:
        """All items are warm, all queries too, and nothing has a time."""
        train = [(query, item) for query in range(4) for item in range(4)]
        data = world(train=train, queries=PLAIN, items={"kind": ["a", "b", "a", "b"]})
        assert {one.by for one in cut(data, [[0, 1], [1]], None)} == {"item.kind"}

    def test_only_columns_of_few_values(self) -> None:
        many: list[object] = [f"v{place}" for place in range(60) for _ in range(2)]
        few: list[object] = [f"v{place % 2}" for place in range(120)]
        data = world(train=[(0, 0)], queries={"many": many, "few": few}, items=PLAIN)
        found = {one.by for one in cut(data, [[0]] * 120, None)}
        assert "query.few" in found
        assert "query.many" not in found

    @pytest.mark.parametrize(("lengths", "stays"), [([1, 2, 3, 4], False), ([4, 1, 1, 1], True)])
    def test_history_length_where_it_says_more_than_activity(
        self, lengths: list[int], stays: bool
    ) -> None:
        train = [(query, 0) for query in range(4) for _ in range(query)]
        data = world(train=train, queries=PLAIN, items=PLAIN)
        found = {one.by for one in cut(data, [[1]] * 4, None, histories=lengths)}
        assert "activity" in found
        assert ("history_length" in found) is stays


class TestRefused:
    data = world(train=[(0, 0)], queries={"age": [1, 2]}, items={"genre": ["a", "b"]})

    @pytest.mark.parametrize(
        ("name", "near"),
        [("genres", "genre"), ("cold_item", "cold_items"), ("item.genr", "item.genre")],
    )
    def test_the_nearest_name_is_told(self, name: str, near: str) -> None:
        with pytest.raises(ConfigError, match=rf"got '{name}'; did you mean '{near}'\?"):
            cut(self.data, [[0]], [name])

    def test_all_names_where_none_is_near(self) -> None:
        with pytest.raises(
            ConfigError, match=r"got 'zzz'; there are .*time, query\.age, item\.genre"
        ):
            cut(self.data, [[0]], ["zzz"])

    def test_the_id_is_no_column_to_cut_by(self) -> None:
        with pytest.raises(
            ConfigError, match=r"slice_by must name a built-in cut or a column, got 'item\.i'"
        ):
            cut(self.data, [[0]], ["item.i"])

    def test_a_string_in_place_of_a_list(self) -> None:
        with pytest.raises(ValueError, match=r"slice_by must be a list .* got the string 'genre'"):
            cut(self.data, [[0]], "genre")  # type: ignore[arg-type]

    def test_vectors(self) -> None:
        data = world(train=[(0, 0)], queries=PLAIN, items={"v": [[1.0, 2.0], [0.5, 1.0]]})
        with pytest.raises(ConfigError, match=r"single values or tags, got the vectors 'item\.v'"):
            cut(data, [[0]], ["v"])
