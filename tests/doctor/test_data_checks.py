"""All checks together: on files, frames and bundles, and in which order."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.doctor.diagnosis import diagnose_data, diagnose_dataset
from twotower.doctor.findings import KINDS, Finding
from twotower.errors import ConfigError, DataError
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.serving.retriever import Retriever


def ids_of(findings: list[Finding]) -> list[str]:
    return [finding.kind.id for finding in findings]


def test_a_clean_world_has_no_warning(tiny_world: SyntheticTables) -> None:
    found = diagnose_data(
        tiny_world.interactions, items=tiny_world.items, queries=tiny_world.queries
    )
    assert {finding.severity for finding in found} <= {"info"}


def test_the_worst_comes_first(tiny_world: SyntheticTables) -> None:
    events = pl.concat([tiny_world.interactions] * 2).sample(fraction=1, shuffle=True, seed=0)
    queries = tiny_world.queries.with_columns(country=pl.lit("nl"))
    found = diagnose_data(events, items=tiny_world.items, queries=queries)
    assert ids_of(found)[:1] == ["duplicate-events"]
    assert {"constant-feature", "events-out-of-order"} <= set(ids_of(found))
    ranks = [("error", "warning", "info").index(finding.severity) for finding in found]
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2}


def test_files_and_frames_are_the_same(tiny_world: SyntheticTables, tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    events = tiny_world.interactions.reverse()
    events.write_csv(path)
    assert ids_of(diagnose_data(path)) == ids_of(diagnose_data(events))


def test_a_given_test_before_its_training(tiny_world: SyntheticTables) -> None:
    place = pl.int_range(pl.len()).over("query_id")
    parts = {
        "train": tiny_world.interactions.filter(place > 0),
        "test": tiny_world.interactions.filter(place == 0),
    }
    (finding, *_) = diagnose_data(parts)
    assert (finding.kind.id, finding.severity, finding.value) == ("test-before-train", "error", 1)
    random = diagnose_data(tiny_world.interactions, config={"split": {"kind": "random"}})
    assert next(f for f in random if f.kind.id == "test-before-train").severity == "warning"


def test_a_table_that_is_read_in_file_order_against_its_times(tiny_world: SyntheticTables) -> None:
    settings = {"data": {"order": "file"}}
    found = diagnose_data(tiny_world.interactions.reverse(), config=settings)
    finding = next(f for f in found if f.kind.id == "events-out-of-order")
    assert finding.severity == "warning"
    assert finding.value == pytest.approx(11 / 12)  # all but the earliest of each query


def test_rows_without_an_id_do_not_disturb(tiny_world: SyntheticTables) -> None:
    lacking = tiny_world.interactions.head(1).with_columns(item_id=pl.lit(None, pl.Int32))
    nobody = tiny_world.interactions.head(1).with_columns(query_id=pl.lit(None, pl.Int32))
    events = pl.concat([tiny_world.interactions, lacking, nobody])
    settings = {"data": {"drop_null_ids": True}}
    assert ids_of(diagnose_data(events, config=settings)) == ids_of(
        diagnose_data(tiny_world.interactions)
    )


def test_bad_input_is_refused_as_in_training(tiny_world: SyntheticTables, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no-such\.csv"):
        diagnose_data(tmp_path / "no-such.csv")
    with pytest.raises(ConfigError, match="given files must be train, one of test"):
        diagnose_data({"train": tiny_world.interactions})
    with pytest.raises(ConfigError, match="did you mean 'kind'"):
        diagnose_data(tiny_world.interactions, config={"split": {"kin": "random"}})
    with pytest.raises(DataError, match="must leave test rows"):
        diagnose_data(pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2]}))


def test_an_unsplit_data_set_has_no_test(tiny_world: SyntheticTables) -> None:
    dataset = prepare(tiny_world.interactions).dataset
    assert ids_of(diagnose_dataset(dataset))[0] == "empty-test"


def test_what_is_known_after_the_event_is_looked_for_in_tables() -> None:
    rng = np.random.default_rng(0)
    events = pl.DataFrame(
        {
            "user_id": rng.integers(50, size=1000),
            "item_id": rng.integers(40, size=1000),
            "timestamp": rng.permutation(1000),
            "clicked": rng.integers(2, size=1000),
        }
    ).with_columns(seconds=pl.col("clicked") * 7.5)
    found = diagnose_data(events)
    assert [f.facts["column"] for f in found if f.kind.id == "column-knows-label"] == ["seconds"]


def test_a_bundles_own_data_are_as_clean_as_its_tables(tiny_retriever: Retriever) -> None:
    dataset = dataset_of(tiny_retriever)
    found = diagnose_dataset(dataset, config=tiny_retriever.contents.config)
    assert {finding.severity for finding in found} <= {"info"}


def test_every_kind_has_an_id_of_its_own_and_both_languages() -> None:
    assert len({kind.id for kind in KINDS.values()}) == 42
    for kind in KINDS.values():
        assert kind.id == kind.id.lower().replace("_", "-").replace(" ", "-")
        assert any("一" <= letter <= "鿿" for letter in kind.zh.what)
    for kind in list(KINDS.values())[: list(KINDS).index("loss-at-chance")]:  # those of data
        assert "{value" in kind.en.what + "{value" * (kind.id in SAID_BY_FACTS)


SAID_BY_FACTS = {"leaking-query-feature", "feature-names-target", "shuffled-order", "empty-test"}


def test_a_table_of_searches_is_checked() -> None:
    frame = pl.DataFrame(
        {
            "query": [f"search number {i // 2} of many" for i in range(80)],
            "document": [f"page number {i % 40} of ours" for i in range(80)],
        }
    )
    items = frame.select("document").unique().with_columns(note=pl.lit("the same"))
    dataset = prepare(frame, items=items).dataset
    assert "constant-feature" in ids_of(diagnose_dataset(dataset))


class TestPositions:
    """100 searches, 40 documents each shown once or at two places; a click in four."""

    def found(self, *, moved: bool, far: int = 1, **columns: pl.Expr) -> list[Finding]:
        line = pl.int_range(0, 4000)
        place = line % 20 + (line // 2000 * 3 if moved else 0)
        frame = pl.select(
            query=(line % 2000) // 20,
            doc=(line % 2000) % 20,
            position=place + far,
            click=(line * 7 % 4 == 0).cast(pl.Int8),
        ).with_columns(**columns)
        config = {"data": {"position_column": "position"}}
        found = diagnose_data(frame, config=config)
        return [finding for finding in found if finding.kind.id.startswith("position")]

    def test_estimated_ones_are_told_with_the_share_of_clicks_that_are_cut(self) -> None:
        (finding,) = self.found(moved=True)
        assert (finding.kind.id, finding.severity) == ("position-weights", "info")
        assert "is estimated from" in finding.as_json("en")["what"]
        assert "第 1 位 1, " in finding.as_json("zh")["what"]

    def test_positions_that_never_vary_are_told(self) -> None:
        """By 1 / position, what is at 11 or later is cut, unless the first is at 11, too."""
        (finding,) = self.found(moved=False)
        assert self.found(moved=False, far=11)[0].value == 0
        assert (finding.kind.id, finding.severity) == ("positions-assumed", "warning")
        assert 0.2 < finding.value < 0.6
        assert (
            "no item with a click was shown to a query at two positions"
            in finding.as_json("en")["what"]
        )

    def test_clicks_alone_say_nothing_of_positions(self) -> None:
        (finding,) = self.found(moved=True, click=pl.lit(1))
        assert (finding.kind.id, finding.severity) == ("positions-assumed", "warning")
        assert "there is no label 0" in finding.as_json("en")["what"]

    def test_without_positions_nothing_is_told(self, tiny_world: SyntheticTables) -> None:
        found = diagnose_data(tiny_world.interactions)
        assert not [finding for finding in found if finding.kind.id.startswith("position")]
