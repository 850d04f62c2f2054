"""Columns that know the future are found, and those that were made from the past are not."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from twotower.config import SplitConfig
from twotower.data.dataset import Dataset
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables, World, WorldConfig
from twotower.data.splits import split
from twotower.doctor.data_leaks import leaking_item_columns, leaking_query_columns
from twotower.doctor.findings import Finding


@pytest.fixture(scope="module")
def world() -> SyntheticTables:
    """600 queries whose next cluster depends on the last one; 300 items."""
    config = WorldConfig(
        num_items=300, num_clusters=12, num_personas=4, num_queries=600, events_per_query=12, seed=5
    )
    return World(config).generate()


def with_column(world: SyntheticTables, make: Callable[[pl.DataFrame], pl.Expr]) -> list[Finding]:
    """Return what is found where queries have a column made of their events, in order."""
    events = world.interactions.join(
        world.items.select("item_id", "category"), on="item_id", maintain_order="left"
    )
    own = events.group_by("query_id").agg(own=make(events))
    queries = world.queries.join(own, on="query_id", how="left")
    return list(leaking_query_columns(dataset_of(world, queries=queries)))


def dataset_of(
    world: SyntheticTables,
    *,
    items: pl.DataFrame | None = None,
    queries: pl.DataFrame | None = None,
    kind: str = "leave-last-out",
) -> Dataset:
    tables = prepare(
        world.interactions,
        items=world.items if items is None else items,
        queries=world.queries if queries is None else queries,
    )
    return split(tables.dataset, SplitConfig(kind=kind))  # type: ignore[arg-type]


def opaque(column: pl.Expr) -> pl.Expr:
    return "code " + column.str.extract(r"(\d+)").str.to_integer().mul(7).mod(97).cast(pl.String)


class TestQueryColumns:
    def test_the_worlds_own_columns_are_clean(self, world: SyntheticTables) -> None:
        for kind in ("leave-last-out", "random", "temporal"):
            assert not list(leaking_query_columns(dataset_of(world, kind=kind)))

    def test_the_targets_category_under_other_names(self, world: SyntheticTables) -> None:
        (finding,) = with_column(world, lambda _: opaque(pl.col("category").last()))
        assert (finding.kind.id, finding.severity) == ("leaking-query-feature", "error")
        assert (finding.facts["column"], finding.facts["label"]) == ("own", "category")
        assert finding.facts["here"] == 1
        assert finding.value == pytest.approx(1 - finding.facts["expected"])
        assert "100.0%" in finding.as_json()["what"]

    def test_the_targets_id_as_a_number(self, world: SyntheticTables) -> None:
        (finding,) = with_column(world, lambda _: pl.col("item_id").last())
        assert (finding.kind.id, finding.severity) == ("feature-names-target", "error")
        assert finding.facts["label"] == "item_id"
        assert finding.facts["here"] == 1
        assert "100.0%" in finding.as_json("zh")["what"]

    @pytest.mark.parametrize("is_opaque", [True, False])
    def test_a_summary_of_the_history_is_none_though_it_foretells_the_target(
        self, is_opaque: bool
    ) -> None:
        # Events spread over six kinds, but the last one before the test says the target's kind.
        rng = np.random.default_rng(0)
        kinds = rng.integers(6, size=(800, 8))
        kinds[:, -1] = np.where(rng.random(800) < 0.9, kinds[:, -2], kinds[:, -1])
        drawn = kinds * 10 + rng.integers(10, size=kinds.shape)
        events = pl.DataFrame(
            {
                "user_id": np.repeat(np.arange(800), 8),
                "item_id": drawn.reshape(-1),
                "timestamp": np.tile(np.arange(8), 800),
            }
        )
        items = pl.DataFrame({"item_id": range(60), "kind": [f"kind-{i // 10}" for i in range(60)]})
        prefix = "code-" if is_opaque else "kind-"

        def found(place: int) -> list[Finding]:
            own = [f"{prefix}{kind}" for kind in kinds[:, place]]
            queries = pl.DataFrame({"user_id": range(800), "own": own})
            prepared = prepare(events, items=items, queries=queries).dataset
            return list(leaking_query_columns(split(prepared)))

        assert found(-2) == []
        assert len(found(-1)) == 1

    @pytest.mark.parametrize("place", [-2, -3])
    def test_what_was_last_seen_before_the_test_is_no_leak(
        self, world: SyntheticTables, place: int
    ) -> None:
        assert with_column(world, lambda _: opaque(pl.col("category").get(place))) == []
        assert with_column(world, lambda _: pl.col("item_id").get(place)) == []

    def test_the_favourite_of_the_past_is_no_leak(self, world: SyntheticTables) -> None:
        past = pl.col("category").head(10)
        assert with_column(world, lambda _: past.mode().sort().first()) == []

    def test_a_value_of_its_own_for_each_query_says_nothing(self, world: SyntheticTables) -> None:
        assert with_column(world, lambda _: "q" + pl.col("category").len().cast(pl.String)) == []
        queries = world.queries.with_columns(key="q" + pl.col("query_id").cast(pl.String))
        assert not list(leaking_query_columns(dataset_of(world, queries=queries)))

    def test_the_figure_is_that_of_pairs_counted_one_by_one(self) -> None:
        # Groups a and b of 60 queries each; the test target is 0 in a and 1 in b, but for 10 in each.
        # Training is even, and the last event before the test is always the same.
        queries, rows = range(120), []
        group = ["a" if q < 60 else "b" for q in queries]
        target = [int((q % 60 < 10) != (group[q] == "b")) for q in queries]
        for q in queries:
            rows += [(q, 0, 1), (q, 1, 2), (q, 9, 3), (q, 2 + target[q], 4)]
        # Items 2 and 3 must be in training, as evenly for a as for b.
        rows += [(q, 2 + q % 2, 0) for q in queries]
        frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        table = pl.DataFrame({"user_id": queries, "group": group})
        dataset = split(prepare(frame, queries=table).dataset)
        (finding,) = leaking_query_columns(dataset)

        def agreement(same_group: bool) -> float:
            shares = []
            for q in queries:
                others = [p for p in queries if p != q and (not same_group or group[p] == group[q])]
                shares.append(Counter(target[p] == target[q] for p in others)[True] / len(others))
            return float(np.mean(shares))

        assert finding.kind.id == "leaking-query-feature"
        assert finding.value == pytest.approx(agreement(True) - agreement(False), abs=0.002)
        assert finding.facts["here"] == pytest.approx(agreement(True))

    def test_too_few_targets_say_nothing(self, world: SyntheticTables) -> None:
        few = world.interactions.filter(pl.col("query_id") <= 90)
        small = SyntheticTables(few, world.items, world.queries.head(90))
        assert with_column(small, lambda _: pl.col("item_id").last()) == []


class TestItemColumns:
    def test_the_worlds_own_columns_are_clean(self, world: SyntheticTables) -> None:
        for kind in ("leave-last-out", "random", "temporal"):
            assert not list(leaking_item_columns(dataset_of(world, kind=kind)))

    def test_counts_that_include_the_test(self, world: SyntheticTables) -> None:
        counts = world.interactions.group_by("item_id").agg(sold=pl.len())
        items = world.items.join(counts, on="item_id", how="left").with_columns(
            pl.col("sold").fill_null(0)
        )
        (finding,) = leaking_item_columns(dataset_of(world, items=items))
        assert (finding.kind.id, finding.facts["column"]) == ("leaking-item-feature", "sold")
        assert finding.value > 0.5
        assert f"{finding.value:.2f}" in finding.as_json()["what"]

    def test_counts_of_the_test_alone_are_an_error(self, world: SyntheticTables) -> None:
        last = world.interactions.group_by("query_id").last()
        counts = last.group_by("item_id").agg(rank=-pl.len().cast(pl.Int64))
        items = world.items.join(counts, on="item_id", how="left").with_columns(
            pl.col("rank").fill_null(0)
        )
        (finding,) = leaking_item_columns(dataset_of(world, items=items))
        assert finding.severity == "error"
        assert finding.value == pytest.approx(-1)

    def test_counts_of_the_past_are_no_leak(self, world: SyntheticTables) -> None:
        past = world.interactions.group_by("query_id").head(11)
        counts = past.group_by("item_id").agg(sold=pl.len())
        items = world.items.join(counts, on="item_id", how="left")
        assert not list(leaking_item_columns(dataset_of(world, items=items)))

    def test_dates_that_are_times_of_the_test(self, world: SyntheticTables) -> None:
        last = world.interactions.group_by("query_id").last()
        counts = last.group_by("item_id").agg(n=pl.len())
        items = world.items.join(counts, on="item_id", how="left").select(
            "item_id", day=pl.date(2020, 1, 1) + pl.duration(days=pl.col("n").fill_null(0))
        )
        (finding,) = leaking_item_columns(dataset_of(world, items=items))
        assert finding.value == pytest.approx(1)
