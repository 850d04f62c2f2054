"""Columns that hold nothing, one value or a key, and columns as groups."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.config import FeaturesConfig
from twotower.data.dataset import EntityTable
from twotower.doctor.data_columns import codes_of, columns, described, text_of
from twotower.doctor.findings import Finding
from twotower.vocab import Vocabulary


def table_of(**values: Any) -> EntityTable:
    num = len(next(iter(values.values())))
    frame = pl.DataFrame({"item_id": range(num), **values})
    return EntityTable(Vocabulary(frame["item_id"]), frame, "item_id")


def found_in(values: Any, **stated: Any) -> list[Finding]:
    findings = list(columns(table_of(x=values), "item", FeaturesConfig(item=stated)))
    for finding in findings:
        assert "'x'" in finding.as_json()["what"]
        assert finding.as_json("zh")["what"].startswith("物品列")
    return findings


def ids_of(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind.id, finding.severity) for finding in findings]


def test_one_value_everywhere_is_a_warning() -> None:
    (finding,) = found_in(["a"] * 100)
    assert (finding.kind.id, finding.severity, finding.value) == ("constant-feature", "warning", 1)
    assert finding.facts["most"] == "'a'"


def test_one_value_nearly_everywhere_is_noted_with_that_value() -> None:
    (finding,) = found_in([*[7] * 198, 1, 2])
    assert (finding.severity, finding.value, finding.facts["most"]) == ("info", 0.99, "7")


def test_one_value_mostly_is_fine() -> None:
    assert found_in(["a"] * 95 + ["b"] * 5) == []


def test_missing_rows_do_not_make_a_column_less_constant() -> None:
    assert ids_of(found_in(["a"] * 60 + [None] * 40)) == [("constant-feature", "warning")]


@pytest.mark.parametrize(
    "values",
    [
        [1.5, 2.5] * 10 + [None] * 20,
        [1.5, 2.5] * 10 + [float("nan")] * 20,
        ["a", "b"] * 10 + ["", " "] * 10,
        [["a"], ["b"]] * 10 + [[], None] * 10,
        [[0.5, 0.5], [0.5, 1.0]] * 10 + [None] * 20,
    ],
)
def test_half_missing_is_a_warning_whatever_the_type(values: list[Any]) -> None:
    (finding,) = found_in(values)
    assert (finding.kind.id, finding.severity, finding.value) == (
        "mostly-missing-feature",
        "warning",
        0.5,
    )


def test_a_column_that_is_read_twice_is_told_once() -> None:
    table = table_of(x=["red car", "a boat"] * 5 + [None] * 20)
    stated = FeaturesConfig(item={"x": "windows"}, word_vectors="vectors.txt")
    (finding,) = columns(table, "item", stated)
    assert (finding.kind.id, finding.facts["column"]) == ("mostly-missing-feature", "x")


def test_no_value_at_all() -> None:
    assert ids_of(found_in([None] * 30)) == [("mostly-missing-feature", "warning")]


def test_a_key_is_a_warning_where_it_is_fed() -> None:
    codes = [f"sku-{i}" for i in range(100)]
    assert ids_of(found_in(codes)) == []  # shown only: nothing learns it by heart
    assert ids_of(found_in(codes, x="categorical")) == [("unique-feature", "warning")]
    assert ids_of(found_in(list(range(100)))) == []
    assert ids_of(found_in(list(range(100)), x="number")) == [("unique-feature", "warning")]


def test_titles_and_measures_are_unique_by_nature() -> None:
    assert found_in([f"Part {i}" for i in range(100)]) == []
    assert found_in([i / 7 for i in range(100)]) == []


def test_tiny_tables_are_left_alone() -> None:
    assert found_in(["a"] * 19) == []


def test_lists_are_equal_as_sets() -> None:
    codes = codes_of(pl.Series([["a", "b"], ["b", "a"], ["a"], [], None]))
    assert codes is not None
    assert codes.tolist() == [codes[0], codes[0], codes[2], -1, -1]
    assert codes[0] != codes[2]


def test_equal_values_get_equal_codes() -> None:
    codes = codes_of(pl.Series(["b", "a", None, "b", " "]))
    assert codes is not None
    assert codes.tolist() == [1, 0, -1, 1, -1]


def test_numbers_that_seldom_recur_are_cut_into_quantiles_only_on_wish() -> None:
    numbers = pl.Series(np.random.default_rng(0).permutation(640) / 7)
    binned, exact = codes_of(numbers), codes_of(numbers, bins=False)
    assert binned is not None and exact is not None  # noqa: PT018 - one fact, for the type checker
    assert np.bincount(binned).tolist() == [20] * 32
    assert len(np.unique(exact)) == 640
    assert (binned[numbers.arg_sort().to_numpy()] == np.repeat(np.arange(32), 20)).all()


def test_strings_are_never_cut() -> None:
    codes = codes_of(pl.Series([f"t{i}" for i in range(100)]))
    assert codes is not None
    assert len(np.unique(codes)) == 100


def test_vectors_have_no_groups() -> None:
    assert codes_of(pl.Series([[0.5, 1.0], [0.5, 1.0]])) is None
    assert codes_of(pl.Series([{"a": 1}])) is None


def test_text_of_numbers_and_strings_compares() -> None:
    whole, strings = text_of(pl.Series([1, None])), text_of(pl.Series([" 1 ", " "]))
    assert whole is not None and strings is not None  # noqa: PT018 - one fact, for the type checker
    assert whole.to_list() == strings.to_list() == ["1", None]
    assert text_of(pl.Series([1.5])) is None


def test_the_id_is_no_description() -> None:
    assert described(table_of(x=[1], y=[2])) == ["x", "y"]
