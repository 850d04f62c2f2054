"""Candidates of the sampled protocol: drawn, and read from a file."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from twotower.data.columns import Role
from twotower.data.dataset import Cases, Interactions
from twotower.errors import DataError
from twotower.evaluation.sampled_candidates import (
    INFLATED,
    labelled_candidates,
    random_candidates,
    read_candidates,
)
from twotower.histories import Histories
from twotower.vocab import Vocabulary


def ragged(sets: list[list[int]]) -> Histories:
    return Histories.of([np.array(items, np.int32) for items in sets])


def lists(sets: Histories) -> list[list[int]]:
    return [sets.take(np.array([case])).item_rows.tolist() for case in range(len(sets))]


QUERIES = Vocabulary(pl.Series(["ann", "bob", "cyd"]))  # rows 2, 3, 4
ITEMS = Vocabulary(pl.Series([10, 20, 30, 40, 50]))  # rows 2..6
# cyd has seen 10; right are 20 for ann (and one unknown item), 30 and 40 for cyd
CASES = Cases(np.array([4, 2], np.int32), ragged([[2], []]), ragged([[4, 5], [3, 1]]))


def test_drawn_ones_are_new_to_the_query() -> None:
    found = lists(random_candidates(CASES, 1, num_item_rows=7))
    # A set for each target: cyd's 30 and 40, ann's 20, and her unknown one, which cannot be ranked.
    assert [len(items) for items in found] == [2, 2, 2, 1]
    # cyd can be given 20 and 50 alone, and neither of his targets beside the other
    assert found[0] in ([3, 4], [4, 6])
    assert found[1] in ([3, 5], [5, 6])
    assert 3 in found[2]
    assert 1 not in found[3]
    everything = lists(random_candidates(CASES, 2, num_item_rows=7))
    assert everything[:2] == [[3, 4, 6], [3, 5, 6]]


def test_each_row_of_the_test_has_a_draw_of_its_own() -> None:
    cases = Cases(np.array([4], np.int32), ragged([[2]]), ragged([[4, 5, 9]]))
    rows = cases.by_target()
    assert rows.query_rows.tolist() == [4, 4, 4]
    assert lists(rows.targets) == [[4], [5], [9]]
    assert lists(rows.histories) == [[2], [2], [2]]
    drawn = lists(random_candidates(cases, 20, num_item_rows=100))
    others = [set(items) - {4, 5, 9} for items in drawn]
    assert [set(items) & {4, 5, 9} for items in drawn] == [{4}, {5}, {9}]
    assert len({frozenset(items) for items in others}) == 3
    assert all(len(items) == 20 for items in others)


def test_drawn_ones_are_uniform() -> None:
    n = 20_000
    same = np.zeros(n, np.int64)
    histories, targets = ragged([[3, 7, 3]]).take(same), ragged([[5]]).take(same)
    cases = Cases(np.arange(2, n + 2, dtype=np.int32), histories, targets)
    drawn = random_candidates(cases, 2, num_item_rows=10, seed=1)
    shares = np.bincount(drawn.item_rows, minlength=10) / n
    assert shares[[0, 1, 3, 7]].tolist() == [0, 0, 0, 0]
    assert shares[5] == 1
    # five free items, two of them drawn; the standard error is .0035
    np.testing.assert_allclose(shares[[2, 4, 6, 8, 9]], 2 / 5, atol=0.015)


def test_a_draw_belongs_to_its_query_and_seed() -> None:
    rng = np.random.default_rng(0)
    sets = [rng.choice(np.arange(2, 60), 3, replace=False).tolist() for _ in range(20)]
    cases = Cases(np.arange(2, 22, dtype=np.int32), Histories.empty(20), ragged(sets))
    whole = lists(random_candidates(cases, 9, num_item_rows=60, seed=3))
    order = rng.permutation(20)[:7]
    some = random_candidates(cases.take(order), 9, num_item_rows=60, seed=3)
    assert lists(some) == [whole[3 * case + row] for case in order for row in range(3)]
    assert lists(random_candidates(cases, 9, num_item_rows=60, seed=4)) != whole
    assert {len(candidates) for candidates in whole} == {10}


def test_what_a_query_has_a_label_for() -> None:
    """cyd's 20 has a label 0, and his 30 one beside a label 1; bob, who is asked nothing, dislikes 50."""
    events = Interactions(
        query_rows=np.array([2, 3, 4, 4, 4, 4], np.int32),
        item_rows=np.array([3, 6, 3, 4, 4, 5], np.int32),
        offsets=np.array([0, 0, 0, 1, 2, 6]),
        labels=np.array([1, 0, 0, 0, 1, 1], np.float32),
    )
    assert lists(labelled_candidates(CASES, events)) == [[3, 4, 5], [3]]


def test_errors_of_draws() -> None:
    with pytest.raises(ValueError, match=r"n must be at least 1, got 0"):
        random_candidates(CASES, 0, num_item_rows=7)
    with pytest.raises(ValueError, match=r"seed must be at least 0, got -1"):
        random_candidates(CASES, 1, num_item_rows=7, seed=-1)
    with pytest.raises(ValueError, match=r"got 3 where query row 4 has 2; lower it"):
        random_candidates(CASES, 3, num_item_rows=7)
    with pytest.raises(ValueError, match=r"got 3 where query 'cyd' has 2; lower it"):
        random_candidates(CASES, 3, num_item_rows=7, query_ids=QUERIES)


EXPECTED = [[3, 4, 5], [3, 6]]  # cyd, ann


def test_one_row_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "candidates.csv"
    path.write_text("user_id,item_id\ncyd,40\nann,50\ncyd,30\nann,20\nbob,10\ncyd,20\nann,20\n")
    assert lists(read_candidates(path, CASES, QUERIES, ITEMS)) == EXPECTED


@pytest.mark.parametrize("separator", [" ", ", ", "|", " | "])
def test_one_row_a_query(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "candidates.tsv"
    rows = (("cyd", "20", "30", "40"), ("bob", "50"), ("ann", "20", "50", "20"))
    lines = [f"{query}\t{separator.join(items)}" for query, *items in rows]
    path.write_text("\n".join(["user_id\titem_id", *lines]))
    assert lists(read_candidates(path, CASES, QUERIES, ITEMS)) == EXPECTED


def test_lists(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    rows: list[dict[str, object]] = [
        {"who": "cyd", "what": [20, 30, 40]},
        {"who": "ann", "what": [20, 50]},
        {"who": "bob", "what": []},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found = read_candidates(path, CASES, QUERIES, ITEMS, {Role.QUERY: "who", Role.ITEM: "what"})
    assert lists(found) == EXPECTED


def test_an_id_with_a_space_stays_whole() -> None:
    items = Vocabulary(pl.Series(["a b", "c"]))
    cases = Cases(np.array([2], np.int32), Histories.empty(1), ragged([[2]]))
    frame = pl.DataFrame({"query": ["ann", "ann"], "item_id": ["a b", "c"]})
    assert lists(read_candidates(frame, cases, QUERIES, items)) == [[2, 3]]


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (
            "cyd 30 cyd 40 ann 20 ann 60",
            r"item ids .* got 1 rows .* of them 60; .* item_column='NAME'",
        ),
        (
            "cyd 30 cyd 40 ann 20 dee 20",
            r"query ids .* got 1 rows .* 'dee'; .* query_column='NAME'",
        ),
        ("ann 20 ann 50", r"every query of the test, got no row for 1 of 2, .* of them 'cyd'"),
        ("cyd 20 cyd 40 ann 50", r"got none of 30 for query 'cyd' \(2 are missing in all\); add"),
    ],
)
def test_refusals(pairs: str, sentence: str) -> None:
    words = pairs.split()
    frame = pl.DataFrame({"user_id": words[::2], "item_id": [int(word) for word in words[1::2]]})
    with pytest.raises(DataError, match=sentence):
        read_candidates(frame, CASES, QUERIES, ITEMS)


def test_a_missing_item_is_refused() -> None:
    for items in ([30, None], ["30 40", None], [[30], None]):
        frame = pl.DataFrame({"user_id": ["cyd", "ann"], "item_id": items})
        told = r"an item id in every row of column 'item_id', got 1 null .* item_column='NAME'"
        with pytest.raises(DataError, match=told) as refusal:
            read_candidates(frame, CASES, QUERIES, ITEMS)
        assert "drop_null_ids" not in str(refusal.value)  # that is an option of training alone


@pytest.mark.parametrize(
    ("columns", "stated", "sentence"),
    [
        (["who", "item_id"], {}, r"query id: a column of candidates .* query_column='NAME'"),
        (["user_id", "what"], {}, r"item id: a column of candidates .* item_column='NAME'"),
        (["user_id", "item_id"], {Role.QUERY: "who"}, r"query_column must name a column of"),
        (["user_id", "item_id"], {Role.ITEM: "what"}, r"item_column must name a column of"),
    ],
)
def test_columns_are_named_by_their_options(
    columns: list[str], stated: dict[Role, str], sentence: str
) -> None:
    frame = pl.DataFrame([["ann"], [20]], schema=columns)
    with pytest.raises(DataError, match=sentence):
        read_candidates(frame, CASES, QUERIES, ITEMS, stated)


def test_columns_that_are_not_asked_for_may_hold_anything() -> None:
    frame = pl.DataFrame(
        {
            "user_id": ["cyd", "cyd", "cyd", "ann", "ann"],
            "item_id": [20, 30, 40, 20, 50],
            "timestamp": ["soon", "soon", "soon", "soon", "soon"],
            "rating": ["1", "2", "3", "4", "good"],
        }
    )
    assert lists(read_candidates(frame, CASES, QUERIES, ITEMS)) == EXPECTED


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"candidates '.*none.csv' must be a file"):
        read_candidates(tmp_path / "none.csv", CASES, QUERIES, ITEMS)


def test_the_sentence_says_it() -> None:
    assert "inflated" in INFLATED
    assert "full ranking" in INFLATED
