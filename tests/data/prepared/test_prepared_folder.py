"""A test of prepared folders: they hold what the tables hold, grow by partitions, and survive a kill."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch

from sandbox import NoDiskError, small_disk, tree_of
from twotower.chinese import in_chinese
from twotower.config import Config
from twotower.data import assembly, input_files, mapped
from twotower.data.assembly import Preparation
from twotower.data.dataset import Dataset, Part
from twotower.data.input_files import MANIFEST
from twotower.data.preparation import prepare
from twotower.data.prepared import inputs, manifest, pieces
from twotower.data.prepared.folder import Prepared, prepare_folder
from twotower.data.prepared.manifest import read_manifest
from twotower.data.prepared.opening import open_prepared, read_prepared
from twotower.data.splits import split
from twotower.errors import ConfigError, DataError
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.training.callbacks import Callback
from twotower.training.pipeline import train
from twotower.training.trained import Trained

DAYS = ("2026-11-28", "2026-11-29", "2026-11-30")
EVENTS = 300


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few rows, so that small tables have many."""
    monkeypatch.setattr(input_files, "BLOCK_CELLS", 7 * 23)
    monkeypatch.setattr(pieces, "MERGED_EVENTS", 50)
    monkeypatch.setattr(assembly, "BLOCK_EVENTS", 50)


def events(num: int = EVENTS, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": pl.Series(rng.integers(0, 40, num)).cast(pl.String) + "-u",
            "item_id": rng.integers(0, 30, num),
            "timestamp": 1_700_000_000 + rng.integers(0, 200, num),
            "rating": rng.integers(1, 6, num),
            "times_played": np.where(rng.random(num) < 0.05, 5_000, rng.integers(1, 9, num)),
            "action": rng.choice(["view", "buy"], num),
            "place": rng.integers(1, 9, num),
        }
    )


def write_days(frame: pl.DataFrame, folder: Path, days: tuple[str, ...] = DAYS) -> Path:
    """Write the rows in their order to a file a day, and return the folder."""
    size = -(-len(frame) // len(days))
    for place, day in enumerate(days):
        (folder / f"day={day}").mkdir(parents=True)
        frame[place * size : (place + 1) * size].write_parquet(folder / f"day={day}" / "x.parquet")
    return folder


def items() -> pl.DataFrame:
    """A line for most items and for some that have no event."""
    return pl.DataFrame({"item_id": range(5, 35), "title": [f"item {n}" for n in range(5, 35)]})


def assert_same(one: Preparation, other: Preparation) -> None:
    for name, column in vars(other.dataset.interactions).items():
        found = getattr(one.dataset.interactions, name)
        assert (found is None) == (column is None), name
        if column is not None:
            assert found.dtype == column.dtype, name
            assert np.array_equal(found, column), name
    for mine, theirs in zip(one.dataset.sides.values(), other.dataset.sides.values(), strict=True):
        assert mine.ids == theirs.ids
        assert mine.frame.equals(theirs.frame)
        assert (mine.id_column, mine.forms) == (theirs.id_column, theirs.forms)
    assert np.array_equal(one.dataset.parts, other.dataset.parts)
    for name in ("ordered", "repeats"):
        assert getattr(one.dataset, name) == getattr(other.dataset, name)
    assert said(one) == said(other)
    for name in ("is_split", "is_rated", "config"):
        assert getattr(one, name) == getattr(other, name)


def said(preparation: Preparation) -> set[str]:
    """Return the notes without what the first rows alone decide: shares of kinds of event."""
    notes = (note for note in preparation.dataset.notes if "say how the columns" not in note)
    return {re.sub(r"\((buy|view) .*%\)", "", note) for note in notes}


CASES: dict[str, dict[str, Any]] = {
    "nothing set": {},
    "the order of the file": {"data": {"order": "file"}},
    "no order": {"data": {"order": "none"}},
    "a threshold": {"data": {"positive_threshold": 4.0}},
    "weights": {"data": {"weight_column": "times_played"}},
    "kinds of event": {
        "data": {
            "event_column": "action",
            "target_events": ["buy"],
            "weight_column": "times_played",
            "positive_threshold": 3.0,
        }
    },
    "positions": {"data": {"position_column": "place", "order": "none"}},
}


class TestTheSameAsTheTable:
    @pytest.mark.parametrize("case", CASES)
    def test_of_files_with_settings(self, tmp_path: Path, case: str) -> None:
        config = Config.from_dict(CASES[case])
        frame = events()
        folder = write_days(frame, tmp_path / "events")
        items().write_parquet(tmp_path / "items.parquet")
        found = prepare_folder(
            folder, items=tmp_path / "items.parquet", out=tmp_path / "data", config=config
        )
        assert found.num_events == EVENTS
        expected = prepare(frame, items=items(), config=config.data, name="data")
        assert_same(open_prepared(tmp_path / "data"), expected)
        assert not (tmp_path / "data.preparing").exists()

    def test_with_rows_that_lack_an_id(self, tmp_path: Path) -> None:
        hole = pl.when(pl.int_range(pl.len()) % 7 != 3).then("user_id")
        frame = events().with_columns(user_id=hole)
        folder = write_days(frame, tmp_path / "events")
        found = prepare_folder(folder, out=tmp_path / "data", drop_null_ids=True)
        config = Config.from_dict({"data": {"drop_null_ids": True}}).data
        assert_same(open_prepared(tmp_path / "data"), prepare(frame, config=config, name="data"))
        (partition,) = found.manifest.partitions
        assert partition.left_out == {"without an id": frame["user_id"].null_count()}
        assert partition.rows == partition.events + sum(partition.left_out.values())

    def test_with_a_file_without_any_id(self, tmp_path: Path) -> None:
        frame = events()
        later = pl.int_range(pl.len()) >= 100
        frame = frame.with_columns(user_id=pl.when(later).then("user_id"))
        folder = write_days(frame, tmp_path / "events")
        prepare_folder(folder, out=tmp_path / "data", drop_null_ids=True)
        config = Config.from_dict({"data": {"drop_null_ids": True}}).data
        assert_same(open_prepared(tmp_path / "data"), prepare(frame, config=config, name="data"))

    @pytest.mark.parametrize("rows", [40, 10**6])
    def test_the_first_rows_of_several_files_decide(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
    ) -> None:
        """The first file has ratings of 1 alone, which by themselves were labels."""
        monkeypatch.setattr(inputs, "SAMPLE_ROWS", rows)
        is_first = pl.int_range(pl.len()) < 10
        frame = events().with_columns(rating=pl.when(is_first).then(1).otherwise("rating"))
        folder = write_days(frame, tmp_path / "events")
        prepare_folder(folder, out=tmp_path / "data")
        found, expected = open_prepared(tmp_path / "data"), prepare(frame, name="data")
        assert_same(found, expected)
        told = [note for note in found.dataset.notes if "say how the columns" in note]
        assert bool(told) == (rows == 40)
        assert all(in_chinese(note) for note in told)
        if not told:
            own = [each for each in found.decisions if each.column != "day"]
            assert own == list(expected.decisions)

    @pytest.mark.parametrize("test", ["test", "test_sessions"])
    def test_with_parts_that_files_give(self, tmp_path: Path, test: str) -> None:
        new = pl.col("user_id") + "-new" if test == "test_sessions" else pl.col("user_id")
        tables = {"train": events(), test: events(60, seed=1).with_columns(user_id=new)}
        paths = {name: tmp_path / f"{name}.parquet" for name in tables}
        for name, frame in tables.items():
            frame.write_parquet(paths[name])
        prepare_folder(paths, out=tmp_path / "data")
        assert_same(open_prepared(tmp_path / "data"), prepare(tables, name="data"))

    def test_with_ids_that_are_numbers_in_one_table_and_strings_in_another(
        self, tmp_path: Path
    ) -> None:
        written = items().with_columns(pl.col("item_id").cast(pl.String))
        written.write_parquet(tmp_path / "items.parquet")
        folder = write_days(events(), tmp_path / "events")
        prepare_folder(folder, items=tmp_path / "items.parquet", out=tmp_path / "data")
        expected = prepare(events(), items=written, name="data")
        found = open_prepared(tmp_path / "data")
        assert found.dataset.items.ids == expected.dataset.items.ids
        assert found.dataset.items.frame.equals(expected.dataset.items.frame)

    def test_with_csv(self, tmp_path: Path) -> None:
        (tmp_path / "events").mkdir()
        events()[:200].write_csv(tmp_path / "events" / "0.csv")
        events()[200:].write_csv(tmp_path / "events" / "1.csv")
        prepare_folder(tmp_path / "events", out=tmp_path / "data")
        assert_same(open_prepared(tmp_path / "data"), prepare(events(), name="data"))

    def test_columns_of_events_that_features_name(self, tmp_path: Path) -> None:
        prepare_folder(write_days(events(), tmp_path / "events"), out=tmp_path / "data")
        features = Config.from_dict({"features": {"event": {"rating": "number"}}}).features
        found = open_prepared(tmp_path / "data", features=features).dataset.event_columns
        assert found.equals(prepare(events()).dataset.event_columns.select("rating"))

    def test_many_events_stay_on_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prepare_folder(write_days(events(), tmp_path / "events"), out=tmp_path / "data")
        assert not isinstance(
            open_prepared(tmp_path / "data").dataset.interactions.times, np.memmap
        )
        monkeypatch.setattr(mapped, "MAPPED_FROM", EVENTS)
        found = open_prepared(tmp_path / "data")
        assert isinstance(found.dataset.interactions.times, np.memmap)
        assert_same(found, prepare(events(), name="data"))


def by_id(dataset: Dataset) -> dict[str, list[tuple[Any, float]]]:
    """Return the history of each query, with ids in place of rows."""
    found, known = {}, dataset.interactions
    assert known.times is not None
    ids = dataset.items.ids.ids_of(np.asarray(known.item_rows)).to_list()
    for place, query in enumerate(dataset.queries.ids.ids, start=2):
        of_query = slice(known.offsets[place], known.offsets[place + 1])
        found[query] = list(zip(ids[of_query], known.times[of_query].tolist(), strict=True))
    return found


class TestManyFiles:
    def test_pieces_need_not_all_be_open(self, tmp_path: Path) -> None:
        frame, folder = events(), tmp_path / "events"
        folder.mkdir()
        for place in range(100):
            frame[place * 3 : place * 3 + 3].write_parquet(folder / f"{place:03}.parquet")
        used = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - names alone
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, hard))
        try:
            prepare_folder(folder, out=tmp_path / "data")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert by_id(open_prepared(tmp_path / "data").dataset) == by_id(prepare(frame).dataset)

    def test_no_piece_is_lost_from_the_file_100_000_on(self) -> None:
        names = ("100000-00000", "99999-100000", "99999-00000")
        found = [folder.name for folder in pieces.in_order(map(Path, names))]
        assert found == ["99999-00000", "99999-100000", "100000-00000"]


class TestAppend:
    @pytest.fixture
    def days(self, tmp_path: Path) -> list[Path]:
        folder = write_days(events(), tmp_path / "events")
        return [folder / f"day={day}" for day in DAYS]

    def test_day_by_day_is_as_all_at_once(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        first = open_prepared(tmp_path / "data").dataset
        for day in days[1:]:
            found = prepare_folder(day, out=tmp_path / "data", append=True)
            assert found.is_changed
        assert found.num_events == EVENTS
        grown = open_prepared(tmp_path / "data").dataset
        assert by_id(grown) == by_id(prepare(events()).dataset)
        # Ids keep their rows: new ones come after them.
        for before, after in zip(first.sides.values(), grown.sides.values(), strict=True):
            assert after.ids.ids[: len(before)].equals(before.ids.ids)
        assert len(grown.queries) > len(first.queries)

    def test_other_columns_of_a_later_day_are_read_by_groups_of_rows(
        self, tmp_path: Path, days: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pieces, "MERGED_EVENTS", 1000)
        monkeypatch.setattr(pieces, "GROUP_ROWS", 16)
        prepare_folder(days[0], out=tmp_path / "data")
        prepare_folder(days[1], out=tmp_path / "data", append=True)
        prepare_folder(days[2], out=tmp_path / "data", append=True)
        slices: list[tuple[int, int]] = []
        collect = pl.LazyFrame.collect

        def seen(frame: pl.LazyFrame, **options: Any) -> pl.DataFrame:
            found: pl.DataFrame = collect(frame, **options)
            slices.append(found.shape)
            return found

        monkeypatch.setattr(pl.LazyFrame, "collect", seen)
        table = read_prepared(tmp_path / "data")
        heights = [rows for rows, width in slices if width > 1]
        # The first day is in the order of the merge, and the table is read whole at the end.
        assert sorted(heights)[-2:] == [EVENTS // 3, EVENTS]
        assert max(sorted(heights)[:-2]) == 16
        columns = [name for name in table.columns if name != "day"]
        rows = table.select(sorted(columns)).rows()
        assert sorted(rows) == sorted(events().select(sorted(columns)).rows())

    def test_the_old_partition_is_not_written_again(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        for path in (tmp_path / "data" / "0000").rglob("*.npy"):
            path.write_bytes(b"nobody reads this")
        before = tree_of(tmp_path / "data" / "0000")
        prepare_folder(days[1], out=tmp_path / "data", append=True)
        assert tree_of(tmp_path / "data" / "0000") == before

    def test_the_same_day_twice_changes_nothing(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        prepare_folder(days[1], out=tmp_path / "data", append=True)
        before = tree_of(tmp_path / "data")
        for again in (days[1], days[1].parent / "*" / "x.parquet"):
            shutil.rmtree(days[2], ignore_errors=True)
            assert not prepare_folder(again, out=tmp_path / "data", append=True).is_changed
        assert tree_of(tmp_path / "data") == before

    def test_only_files_that_are_new_are_read(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0].parent, out=tmp_path / "data")
        extra = days[0].parent / "day=2026-12-01"
        extra.mkdir()
        events(20, seed=3).write_parquet(extra / "x.parquet")
        found = prepare_folder(days[0].parent, out=tmp_path / "data", append=True)
        assert [part.events for part in found.manifest.partitions] == [EVENTS, 20]

    def test_a_late_day_takes_its_place_in_time(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[2], out=tmp_path / "data")
        prepare_folder(days[0], out=tmp_path / "data", append=True)
        times = open_prepared(tmp_path / "data").dataset.interactions.times
        offsets = open_prepared(tmp_path / "data").dataset.interactions.offsets
        assert times is not None
        inner = np.setdiff1d(np.arange(1, len(times)), offsets)
        assert (np.diff(times)[inner - 1] >= 0).all()

    def test_the_newest_line_of_an_item_counts(self, tmp_path: Path, days: list[Path]) -> None:
        items().write_parquet(tmp_path / "old.parquet")
        newer = pl.DataFrame({"item_id": [7, 99], "title": ["renamed", "new"]})
        newer.write_parquet(tmp_path / "new.parquet")
        prepare_folder(days[0], items=tmp_path / "old.parquet", out=tmp_path / "data")
        prepare_folder(days[1], items=tmp_path / "new.parquet", out=tmp_path / "data", append=True)
        table = open_prepared(tmp_path / "data").dataset.items.frame
        titles = dict(table.select("item_id", "title").rows())
        assert (titles[7], titles[99], titles[8]) == ("renamed", "new", "item 8")

    def test_the_merge_is_kept_until_a_day_comes(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        prepare_folder(days[1], out=tmp_path / "data", append=True)
        open_prepared(tmp_path / "data")
        (kept,) = (tmp_path / "data").glob("merged-*")
        made = kept.stat().st_mtime_ns
        open_prepared(tmp_path / "data")
        assert kept.stat().st_mtime_ns == made
        prepare_folder(days[2], out=tmp_path / "data", append=True)
        open_prepared(tmp_path / "data")
        (other,) = (tmp_path / "data").glob("merged-*")
        assert other != kept

    def test_a_disk_to_be_read_alone_is_read(
        self, tmp_path: Path, days: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The merge, and what is cut out of it, then go to the temporary folder."""
        monkeypatch.setattr(mapped, "MAPPED_FROM", 10)
        with ExitStack() as stack:
            try:
                stack.enter_context(small_disk(tmp_path, 8 << 20))
            except NoDiskError as error:
                pytest.skip(str(error))
            data = tmp_path / "disk" / "data"
            prepare_folder(days[0], out=data)
            prepare_folder(days[1], out=data, append=True)
            subprocess.run(["mount", "-o", "remount,ro", str(data.parent)], check=True)
            before = tree_of(data)
            dataset = split(open_prepared(data).dataset)
            train = dataset.part(Part.TRAIN)
            assert isinstance(train.item_rows, np.memmap)
            assert tree_of(data) == before
            expected = split(prepare(events()[:200]).dataset)
            assert len(train) == len(expected.part(Part.TRAIN))
            del dataset, train

    def test_a_damaged_merge_is_made_again(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        prepare_folder(days[1], out=tmp_path / "data", append=True)
        expected = by_id(open_prepared(tmp_path / "data").dataset)
        (kept,) = (tmp_path / "data").glob("merged-*")
        flip(kept / "events" / "item_rows.npy")
        assert by_id(open_prepared(tmp_path / "data").dataset) == expected

    def test_other_columns_are_refused(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        other = days[0].with_name("day=2026-12-01")
        other.mkdir()
        events(9).drop("rating").write_parquet(other / "x.parquet")
        before = tree_of(tmp_path)
        with pytest.raises(DataError, match=r"x\.parquet' must have the columns .* no 'rating'"):
            prepare_folder(other, out=tmp_path / "data", append=True)
        assert tree_of(tmp_path) == before

    def test_a_file_that_changed_is_refused(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        events(9).write_parquet(days[0] / "x.parquet")
        with pytest.raises(DataError, match="must be as it was when it was prepared"):
            prepare_folder(days[0], out=tmp_path / "data", append=True)

    def test_equal_bytes_of_another_day_are_another_file(
        self, tmp_path: Path, days: list[Path]
    ) -> None:
        shutil.copy(days[0] / "x.parquet", days[1] / "x.parquet")
        prepare_folder(days[0], out=tmp_path / "data")
        assert prepare_folder(days[1], out=tmp_path / "data", append=True).num_events == 200

    def test_a_file_that_changed_is_known_by_any_path(
        self, tmp_path: Path, days: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(days[0].parent)
        prepare_folder(days[0].name, out=tmp_path / "data")
        events(9).write_parquet(days[0] / "x.parquet")
        with pytest.raises(DataError, match="must be as it was when it was prepared"):
            prepare_folder(days[0], out=tmp_path / "data", append=True)

    def test_folders_with_other_keys_are_refused(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        events(9).write_parquet(tmp_path / "x.parquet")
        with pytest.raises(DataError, match="the keys of the prepared folder, day, got none"):
            prepare_folder(tmp_path / "x.parquet", out=tmp_path / "data", append=True)

    @pytest.mark.parametrize("is_split", [True, False])
    def test_parts_stay_what_they_were(
        self, tmp_path: Path, days: list[Path], is_split: bool
    ) -> None:
        paths: dict[str, str | Path] = {"train": days[0], "test": days[1]}
        first, second = (paths, days[2]) if is_split else (days[2], paths)
        prepare_folder(first, out=tmp_path / "data")
        with pytest.raises(DataError, match="prepare all files anew"):
            prepare_folder(second, out=tmp_path / "data", append=True)

    def test_a_day_without_a_row_changes_nothing(self, tmp_path: Path, days: list[Path]) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        before = tree_of(tmp_path / "data")
        events(9).clear().write_parquet(days[1] / "x.parquet")
        assert not prepare_folder(days[1], out=tmp_path / "data", append=True).is_changed
        assert tree_of(tmp_path / "data") == before
        assert not (tmp_path / "data.preparing").exists()

    def test_a_table_of_items_alone_is_refused(self, tmp_path: Path, days: list[Path]) -> None:
        items().write_parquet(tmp_path / "items.parquet")
        prepare_folder(days[0], out=tmp_path / "data")
        with pytest.raises(ConfigError, match="must add events beside tables of items"):
            prepare_folder(
                days[0], items=tmp_path / "items.parquet", out=tmp_path / "data", append=True
            )

    def test_columns_of_a_side_keep_to_types_that_go_together(
        self, tmp_path: Path, days: list[Path]
    ) -> None:
        data, tables = tmp_path / "data", [tmp_path / f"{place}.parquet" for place in range(3)]
        tagged = items().with_columns(tags=pl.concat_list("title"), price=1.5)
        for table, changes in zip(tables, ({}, {"price": "2"}, {"tags": "a"}), strict=True):
            tagged.with_columns(**{k: pl.lit(v) for k, v in changes.items()}).write_parquet(table)
        prepare_folder(days[0], items=tables[0], out=data)
        prepare_folder(days[1], items=tables[1], out=data, append=True)
        before = tree_of(data)
        with pytest.raises(DataError, match=r"items must have 'tags' of the type .* got String"):
            prepare_folder(days[2], items=tables[2], out=data, append=True)
        assert tree_of(data) == before
        found = open_prepared(data).dataset.items.frame
        assert found.filter(pl.col("item_id") == 7)["price"].to_list() == ["2"]

    @pytest.mark.parametrize("first_type", [pl.String, pl.Int64])
    def test_types_of_ids_are_those_of_the_first_partition(
        self, tmp_path: Path, days: list[Path], first_type: type[pl.DataType]
    ) -> None:
        """A table of items with ids as strings makes all ids strings."""
        written = items().with_columns(pl.col("item_id").cast(first_type))
        written.write_parquet(tmp_path / "items.parquet")
        other = pl.Int64 if first_type == pl.String else pl.String
        items().with_columns(pl.col("item_id").cast(other)).write_parquet(tmp_path / "more.parquet")
        prepare_folder(days[0], items=tmp_path / "items.parquet", out=tmp_path / "data")
        prepare_folder(days[1], items=tmp_path / "more.parquet", out=tmp_path / "data", append=True)
        prepare_folder(days[2], out=tmp_path / "data", append=True)
        dataset = open_prepared(tmp_path / "data").dataset
        assert dataset.items.ids.ids.dtype == first_type
        assert len(dataset.interactions) == EVENTS

    def test_ids_that_cannot_have_that_type_are_refused(
        self, tmp_path: Path, days: list[Path]
    ) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        odd = pl.DataFrame({"item_id": ["1", "seven"], "title": ["x", "y"]})
        odd.write_parquet(tmp_path / "items.parquet")
        with pytest.raises(DataError, match=r"must be of the type Int64 .* got 'seven'"):
            prepare_folder(
                days[1], items=tmp_path / "items.parquet", out=tmp_path / "data", append=True
            )

    def test_keys_of_tables_may_have_other_names(self, tmp_path: Path, days: list[Path]) -> None:
        items().write_parquet(tmp_path / "old.parquet")
        newer = items().rename({"item_id": "id"}).with_columns(title=pl.lit("renamed"))
        newer.write_parquet(tmp_path / "new.parquet")
        prepare_folder(days[0], items=tmp_path / "old.parquet", out=tmp_path / "data")
        prepare_folder(days[1], items=tmp_path / "new.parquet", out=tmp_path / "data", append=True)
        table = open_prepared(tmp_path / "data").dataset.items
        assert table.id_column == "item_id"
        assert set(table.frame["title"].drop_nulls()) == {"renamed"}

    def test_a_call_that_comes_second_sees_what_the_first_added(
        self, tmp_path: Path, days: list[Path]
    ) -> None:
        """The manifest is read while nobody else can write it."""
        prepare_folder(days[0], out=tmp_path / "data")
        told: list[Prepared | str] = []

        def disturb(said: str) -> None:
            told.append(said)
            with pytest.raises(ConfigError, match="which another is preparing"):
                prepare_folder(days[2], out=tmp_path / "data", append=True)

        prepare_folder(days[1], out=tmp_path / "data", append=True, tell=disturb)
        assert told
        assert prepare_folder(days[2], out=tmp_path / "data", append=True).num_events == EVENTS

    @pytest.mark.parametrize(
        ("given", "error", "said"),
        [
            ({"order": "none"}, ConfigError, "data.order must be 'auto', as the folder"),
            ({"order": "auto"}, None, ""),
        ],
    )
    def test_settings_are_those_of_the_folder(
        self,
        tmp_path: Path,
        days: list[Path],
        given: dict[str, str],
        error: type[Exception] | None,
        said: str,
    ) -> None:
        prepare_folder(days[0], out=tmp_path / "data")
        again: Callable[[], Prepared] = lambda: prepare_folder(  # noqa: E731
            days[1], out=tmp_path / "data", append=True, config={"data": given}
        )
        if error is None:
            assert again().is_changed
            return
        with pytest.raises(error, match=said):
            again()

    def test_needs_a_prepared_folder(self, tmp_path: Path, days: list[Path]) -> None:
        with pytest.raises(ConfigError, match="must go with a prepared folder"):
            prepare_folder(days[0], out=tmp_path / "data", append=True)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class TestDamage:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        items().write_parquet(tmp_path / "items.parquet")
        folder = write_days(events(), tmp_path / "events")
        prepare_folder(folder, items=tmp_path / "items.parquet", out=tmp_path / "data")
        return tmp_path / "data"

    def test_each_file_is_checked(self, data: Path) -> None:
        names = [name for name, content in tree_of(data).items() if content is not None]
        assert len(names) > 8
        for name in names:
            whole = (data / name).read_bytes()
            flip(data / name)
            with pytest.raises(DataError, match=r"must be whole|must be a prepared|of version"):
                open_prepared(data)
            (data / name).unlink()
            if name != MANIFEST:
                with pytest.raises(DataError, match="must be whole"):
                    open_prepared(data)
            (data / name).write_bytes(whole)
        open_prepared(data)

    def test_another_version_is_refused(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(manifest, "FORMAT", 2)
        with pytest.raises(
            DataError, match="must be of version 2, got 1; prepare the tables again"
        ):
            open_prepared(data)

    def test_another_programs_manifest_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / MANIFEST).write_text(json.dumps({"name": "something else"}))
        with pytest.raises(DataError, match="got another manifest"):
            open_prepared(tmp_path)

    def test_other_settings_are_refused(self, data: Path) -> None:
        other = Config.from_dict({"data": {"order": "none"}}).data
        with pytest.raises(ConfigError, match=r"data\.order must be 'auto', as the folder"):
            open_prepared(data, config=other)

    def test_tables_beside_it_are_refused(self, data: Path) -> None:
        with pytest.raises(ConfigError, match="items must not be given with a prepared folder"):
            prepare(data, items=items())


class TestWholeOrAbsent:
    def test_a_folder_that_is_there_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        with pytest.raises(ConfigError, match="out must be new"):
            prepare_folder(write_days(events(), tmp_path / "events"), out=tmp_path / "data")

    def test_the_same_call_again_changes_nothing(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")
        prepare_folder(folder, out=tmp_path / "data")
        before = tree_of(tmp_path)
        assert not prepare_folder(folder, out=tmp_path / "data").is_changed
        assert tree_of(tmp_path) == before

    @pytest.mark.parametrize("size", [60, 700, 2_000])
    def test_a_disk_that_is_full_leaves_nothing(self, tmp_path: Path, size: int) -> None:
        """The system lets no file grow above ``size``: each size stops at another kind of file."""
        folder = write_days(events(), tmp_path / "events")
        before = tree_of(tmp_path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(DataError, match=r"could not be written: .*nothing was left behind"):
                prepare_folder(folder, out=tmp_path / "data")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert tree_of(tmp_path) == before

    @pytest.mark.parametrize(
        ("column", "said"),
        [
            (pl.when(pl.col("place") < 9).then("user_id"), r"data row \d+"),
            (pl.lit(""), "all null or empty"),
        ],
    )
    def test_a_bad_row_leaves_nothing(self, tmp_path: Path, column: pl.Expr, said: str) -> None:
        bad = events(100, seed=5).with_columns(
            user_id=pl.when(pl.int_range(pl.len()) == 90).then(None).otherwise(column)
        )
        folder = write_days(events(), tmp_path / "events")
        bad.write_parquet(folder / f"day={DAYS[2]}" / "y.parquet")
        before = tree_of(tmp_path)
        for out in (tmp_path / "data", None):
            with pytest.raises(DataError, match=rf"y\.parquet': .*{said}"):
                prepare_folder(folder, out=out)
        assert tree_of(tmp_path) == before

    def test_a_bad_row_is_named_by_its_number_in_the_file(self, tmp_path: Path) -> None:
        is_bad = pl.int_range(pl.len()) == 77
        frame = events(100).with_columns(timestamp=pl.when(~is_bad).then("timestamp"))
        frame.write_parquet(tmp_path / "x.parquet")
        with pytest.raises(DataError, match=r"got null in data row 78;"):
            prepare_folder(tmp_path / "x.parquet", out=None)

    def test_a_kill_before_the_lock_is_there_or_after_it_is_gone(self, tmp_path: Path) -> None:
        """The folder is made before its lock; at the end it is moved away before anything is removed."""
        folder = write_days(events(), tmp_path / "events")
        (tmp_path / "data.preparing").mkdir()
        (tmp_path / ".data.preparing.writing-abcdefgh" / "new").mkdir(parents=True)
        (tmp_path / ".data.preparing.writing-abcdefgh" / ".twotower-lock").touch()
        prepare_folder(folder, out=tmp_path / "data")
        assert {path.name for path in tmp_path.iterdir()} == {"events", "data"}

    def test_what_is_not_ours_stays(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")
        (tmp_path / "data.preparing").mkdir()
        (tmp_path / "data.preparing" / "thesis.txt").write_text("mine")
        before = tree_of(tmp_path)
        with pytest.raises(ConfigError, match="which is not ours"):
            prepare_folder(folder, out=tmp_path / "data")
        assert tree_of(tmp_path) == before

    def test_a_file_that_changes_while_it_is_read_is_refused(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")

        def disturb(said: str) -> None:
            if said.startswith("2 of 3"):
                events(9).write_parquet(folder / f"day={DAYS[1]}" / "x.parquet")

        with pytest.raises(DataError, match="must not change while it is read"):
            prepare_folder(folder, out=tmp_path / "data", tell=disturb)
        assert not (tmp_path / "data").exists()

    def test_a_bad_table_of_items_is_told_before_the_events_are_read(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")
        pl.concat([items(), items()]).write_parquet(tmp_path / "items.parquet")
        told: list[str] = []
        for out in (tmp_path / "data", None):
            with pytest.raises(DataError, match="items must have one row an id"):
                prepare_folder(folder, items=tmp_path / "items.parquet", out=out, tell=told.append)
        assert not told

    def test_items_of_another_shop_are_refused(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")
        items().with_columns(pl.col("item_id") + 500).write_parquet(tmp_path / "items.parquet")
        for out in (tmp_path / "data", None):
            with pytest.raises(DataError, match="items must share ids with the interactions"):
                prepare_folder(folder, items=tmp_path / "items.parquet", out=out)

    def test_an_append_that_cannot_be_written_leaves_the_folder_as_it_was(
        self, tmp_path: Path
    ) -> None:
        folder = write_days(events(), tmp_path / "events")
        prepare_folder(folder / f"day={DAYS[0]}", out=tmp_path / "data")
        before = tree_of(tmp_path)
        size = (tmp_path / "data" / MANIFEST).stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
        try:
            with pytest.raises(DataError, match=r"could not be written: .*it is as it was"):
                prepare_folder(folder, out=tmp_path / "data", append=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert tree_of(tmp_path) == before

    def test_what_a_kill_after_the_last_write_left_is_removed(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")
        prepare_folder(folder, out=tmp_path / "data")
        work = tmp_path / "data.preparing"
        (work / "pieces").mkdir(parents=True)
        (work / "lock").touch()
        assert not prepare_folder(folder, out=tmp_path / "data").is_changed
        assert not work.exists()

    def test_a_folder_within_the_events_is_refused(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")
        with pytest.raises(ConfigError, match="must be outside the folder of events"):
            prepare_folder(folder, out=folder / "data")

    def test_another_process_is_not_disturbed(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")
        (tmp_path / "data.preparing").mkdir()
        (tmp_path / "data.preparing" / "lock").touch()
        holds = (
            "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
            "print(flush=True); sys.stdin.read()"
        )
        lock = str(tmp_path / "data.preparing" / "lock")
        with subprocess.Popen(
            [sys.executable, "-c", holds, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(ConfigError, match="which another is preparing"):
                prepare_folder(folder, out=tmp_path / "data")
            other.communicate()
        prepare_folder(folder, out=tmp_path / "data")


KILLED = """
import os, signal, sys
from twotower.data import input_files
from twotower.data.prepared import pieces
from twotower.data.prepared.folder import prepare_folder

left = int(sys.argv[1])

def kill(event, arguments):
    global left
    is_write = event in ("os.rename", "shutil.rmtree", "os.mkdir")
    is_write |= event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
    left -= is_write
    if is_write and left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

input_files.BLOCK_CELLS, pieces.MERGED_EVENTS = 7 * 23, 50
sys.addaudithook(kill)
prepare_folder(sys.argv[2], out=sys.argv[3], append=sys.argv[4] == "append")
print(left)
"""


@pytest.mark.parametrize("call", ["new", "append"])
def test_a_call_that_is_killed_goes_on(tmp_path: Path, call: str) -> None:
    """It is killed before one write of many, at places that are spread over the whole call."""
    folder = write_days(events(), tmp_path / "events")
    whole, out = tmp_path / "whole", tmp_path / "data"
    first = folder / f"day={DAYS[0]}"
    if call == "append":
        for each in (whole, out):
            prepare_folder(first, out=each)
    expected = prepare_folder(folder, out=whole, append=call == "append")

    def killed_at(place: int) -> str:
        """Kill a call before its write of that number, and return how many were left if it ended."""
        command = [sys.executable, "-c", KILLED, str(place), str(folder), str(out), call]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.stdout

    place, ended = 3, ""
    while not ended:
        ended = killed_at(place)
        place = 2 * place + 7
    assert place > 50
    found = prepare_folder(folder, out=out, append=call == "append")
    assert found.num_events == expected.num_events
    assert tree_of(out) == tree_of(whole)
    assert not (tmp_path / "data.preparing").exists()
    assert read_manifest(out).partitions == read_manifest(whole).partitions


class TestLargeTables:
    """``train`` prepares a table by itself where it has many rows."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "training": {"solver": "gradient", "epochs": 1, "batch_size": 64, "precision": "float32"},
        "towers": {"dim": 8, "history": "pooled", "question_time": "off", "query_id": "off"},
    }

    def trained(self, source: Path, out: Path | None, **more: Any) -> Trained:
        return train(
            source, out=out, config=self.SETTINGS, baselines=["popularity"], progress=None, **more
        )

    @pytest.mark.parametrize("is_written", [True, False])
    def test_are_prepared_and_leave_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
    ) -> None:
        folder = write_days(events(), tmp_path / "events")
        expected = self.trained(folder, None)
        items().write_parquet(tmp_path / "items.parquet")
        monkeypatch.setattr(mapped, "MAPPED_FROM", EVENTS)
        phases: list[str] = []

        class Watch(Callback):
            def on_phase(self, phase: str) -> None:
                phases.append(phase)

        out = tmp_path / "model" if is_written else None
        found = train(
            folder, out=out, config=self.SETTINGS, baselines=["popularity"], progress=Watch()
        )
        assert "sorting the events into" in phases[0]
        assert isinstance(found.dataset.interactions.item_rows, np.memmap)
        assert found.dataset.name == expected.dataset.name == "events"
        # Batches are other ones, since they are read by blocks.
        assert found.figures["popularity"] == expected.figures["popularity"]
        assert {path.name for path in tmp_path.iterdir()} - {"model", "model.html"} == {
            "events",
            "items.parquet",
        }

    def test_a_training_that_was_stopped_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mapped, "MAPPED_FROM", EVENTS)
        folder, out = write_days(events(), tmp_path / "events"), tmp_path / "model"
        config = Config.from_dict(self.SETTINGS).with_settings(["training.epochs=2"])

        class Stop(Callback):
            def on_epoch(self, record: dict[str, Any]) -> None:  # noqa: ARG002
                raise KeyboardInterrupt

        stopped = train(folder, out=out, config=config, baselines=[], progress=Stop())
        assert stopped.stopped_early
        assert (tmp_path / "model.training-data" / MANIFEST).is_file()
        done = train(folder, out=out, config=config, baselines=[], progress=None, resume=True)
        assert not done.stopped_early
        assert {path.name for path in tmp_path.iterdir()} == {"events", "model"}

    def test_fewer_rows_are_read_as_they_are(self, tmp_path: Path) -> None:
        found = self.trained(write_days(events(), tmp_path / "events"), None)
        assert not isinstance(found.dataset.interactions.item_rows, np.memmap)

    def test_a_prepared_folder_gives_the_same_model(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")
        prepare_folder(folder, out=tmp_path / "data")
        one, other = self.trained(folder, None), self.trained(tmp_path / "data", None)
        for name, weights in one.retriever.contents.weights.items():
            assert torch.equal(weights, other.retriever.contents.weights[name])

    def test_a_prepared_folder_is_test_events(self, tmp_path: Path) -> None:
        folder = write_days(events(), tmp_path / "events")
        trained = self.trained(folder, None)
        later = write_days(events(80, seed=7), tmp_path / "later")
        prepare_folder(later / f"day={DAYS[0]}", out=tmp_path / "data")
        prepare_folder(later, out=tmp_path / "data", append=True)
        assert read_prepared(tmp_path / "data").height == 80
        found, expected = (
            evaluate_bundle(trained.retriever, test=each, baselines=["popularity"])["model"]
            for each in (tmp_path / "data", later)
        )
        assert found == expected
