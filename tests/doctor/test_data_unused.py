"""The doctor says what training does not use."""

from typing import Any

import polars as pl
import pytest

from twotower.data.sources.synthetic import SyntheticTables
from twotower.doctor.diagnosis import diagnose_data


def told(world: SyntheticTables, events: pl.DataFrame, **tables: Any) -> dict[str, dict[str, Any]]:
    given = {"items": world.items, "queries": world.queries, **tables}
    found = diagnose_data(events, **given)
    return {finding.kind.id: finding.as_json() for finding in found}


def test_nothing_is_said_of_whole_tables(tiny_world: SyntheticTables) -> None:
    mine = {"unstated-event-kinds", "ids-without-a-row", "unused-columns"}
    assert not mine & set(told(tiny_world, tiny_world.interactions))


def test_columns_that_nothing_reads(tiny_world: SyntheticTables) -> None:
    kinds = pl.int_range(pl.len()) % 4 == 0
    events = tiny_world.interactions.with_columns(
        city=pl.lit("Bonn"), action=pl.when(kinds).then(pl.lit("buy")).otherwise(pl.lit("view"))
    )
    items = tiny_world.items.with_columns(
        page=pl.format("https://shop.example/{}", pl.int_range(pl.len()))
    )
    found = told(tiny_world, events, items=items)
    assert found["unused-columns"]["severity"] == "info"
    assert found["unused-columns"]["what"] == (
        "Columns of the interactions that are not used (2): 'city' (its name says no role; "
        "features.event.city lets histories read it), 'action' (it seems to name kinds of event; "
        "event_column tells them apart)."
    )
    kinds_told = found["unstated-event-kinds"]
    assert kinds_told["severity"] == "warning"
    assert "2 kinds of event: view 7" in kinds_told["what"]
    assert "event_column='action' with target_events='buy'" in kinds_told["do"]
    assert "of the item table" in found["shown-only-columns"]["what"]
    assert "(1): 'page'" in found["shown-only-columns"]["what"]


@pytest.mark.parametrize(("kept", "severity"), [(0.5, "warning"), (0.99, "info")])
def test_ids_without_a_row(tiny_world: SyntheticTables, kept: float, severity: str) -> None:
    events = tiny_world.interactions
    counts = events["item_id"].value_counts(sort=True)["item_id"]
    left = counts.head(int(len(counts) * kept))
    items = tiny_world.items.filter(pl.col("item_id").is_in(left.implode()))
    found = told(tiny_world, events, items=items)["ids-without-a-row"]
    gone = events.filter(~pl.col("item_id").is_in(left.implode()))
    assert found["severity"] == severity
    assert found["value"] == pytest.approx(len(gone) / len(events))
    assert f"{gone['item_id'].n_unique()} of the {len(counts)} items" in found["what"]
