"""What is understood of thirty messy tables, without a setting."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from messy_tables import LOGS, ROWS, TABLES, Messy, MessyLog
from twotower.data.columns import find_roles
from twotower.data.tables import read_table
from twotower.data.times import times_in_seconds
from twotower.features.schema import Feature, ReadForms, infer_features, read_table_forms


@dataclass(frozen=True)
class Understood:
    """A table as its file was read, and what is inferred of it."""

    table: Messy
    frame: pl.DataFrame
    key: str
    told: ReadForms
    inferred: tuple[Feature, ...]


@pytest.fixture(scope="module", params=TABLES, ids=lambda table: table.name)
def understood(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Understood:
    path = tmp_path_factory.mktemp("messy") / "table.csv"
    path.write_text(request.param.csv, encoding="utf-8")
    frame = read_table(path, what="items")
    key = frame.columns[0]
    told = read_table_forms(frame, "item", key, {})
    return Understood(request.param, frame, key, told, infer_features(frame, "item", key, {}))


def test_there_are_thirty_tables() -> None:
    names = [each.name for each in (*TABLES, *LOGS)]
    assert len(set(names)) == len(names) >= 30


def test_each_column_of_a_messy_table_is_understood(understood: Understood) -> None:
    table, key, told = understood.table, understood.key, understood.told
    assert len(understood.frame) == ROWS
    features = infer_features(told.frame, "item", key, {}, forms=told.forms)
    found = {f.name: ":".join(filter(None, (f.kind, f.form))) for f in features if f.name != key}
    assert found == {name: kind for name, kind in table.columns.items() if name != key}
    assert told.notes == ()
    for name, value in table.first.items():
        read = told.frame[name].to_list()[0]
        assert (read.isoformat() if isinstance(read, datetime) else read) == value
    # The same is understood of the table before its cells are read, and of the one that a bundle keeps.
    assert understood.inferred == features
    kept = infer_features(told.frame, "item", key, {})
    assert [f.kind for f in kept] == [f.kind for f in features]


def test_what_was_inferred_may_be_stated(understood: Understood) -> None:
    frame, key, inferred = understood.frame, understood.key, understood.inferred
    kinds = {f.name: f.kind for f in inferred}
    stated = infer_features(frame, "item", key, kinds)
    assert [(f.name, f.kind, f.form) for f in stated] == [
        (f.name, f.kind, f.form) for f in inferred
    ]
    assert read_table_forms(frame, "item", key, kinds).frame.equals(understood.told.frame)


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_each_column_of_a_messy_log_has_its_role(log: MessyLog, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(log.text.strip() + "\n", encoding="utf-8")
    frame = read_table(path)
    given = {} if "query" in log.roles else {"query": frame.columns[0]}
    roles = find_roles(frame, given=given)  # type: ignore[arg-type]
    found = {str(d.role): d.column for d in roles.decisions if d.column is not None}
    assert found == {**log.roles, **given}
    if log.first_time is not None:
        assert isinstance(roles.time, str)
        assert times_in_seconds(frame[roles.time], what="time")[0] == log.first_time


def test_every_cell_reads_alone_as_among_others() -> None:
    for table in TABLES:
        frame = pl.read_csv(table.csv.encode(), infer_schema=False, separator=_separator(table.csv))
        told = read_table_forms(frame, "item", frame.columns[0], {})
        for name, form in told.forms.items():
            together = told.frame[name]
            for row in (0, 1, ROWS - 1):
                alone = form.read(frame[name][row : row + 1])
                assert alone.equals(together[row : row + 1], null_equal=True), (table.name, name)


def _separator(text: str) -> str:
    header = text.split("\n", 1)[0]
    return ";" if ";" in header else ","
