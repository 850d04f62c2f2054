"""A bundle whose lists are scanned by 4-bit codes: written, opened, changed, damaged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twotower.errors import BundleError
from twotower.index.lists import Lists, divided
from twotower.serving.content_checks import check_lists
from twotower.serving.retriever import Retriever


@pytest.fixture
def coded(tiny_bundle: Any, tmp_path: Path) -> Retriever:
    """The tiny bundle with an index of eight lists, all searched, opened again."""
    exact = Retriever.open(tiny_bundle)
    vectors = exact.index.item_vectors
    peak = float(vectors.abs().max())
    levels = torch.linspace(-peak, peak, 16).repeat(vectors.shape[1], 1)
    lists = divided(vectors, 8)
    lists = replace(lists, probes={100: len(lists)}, levels=levels, rescored={100: 180})
    Retriever(replace(exact.contents, lists=lists)).save(tmp_path / "model")
    return Retriever.open(tmp_path / "model")


def test_a_bundle_opens_with_the_same_levels(coded: Retriever, tiny_bundle: Any) -> None:
    lists = coded.contents.lists
    assert lists is not None
    assert lists.levels is not None
    assert lists.levels.shape == (coded.index.item_vectors.shape[1], 16)
    assert lists.rescored == {100: 180}
    assert not coded.index.is_exact
    for query in (1, 2, 3):
        exact = Retriever.open(tiny_bundle).recommend(query)
        assert coded.recommend(query).item_ids == exact.item_ids


def test_items_are_added_replaced_and_deleted(coded: Retriever) -> None:
    (best,) = coded.recommend(1, k=1, exclude_seen=False).item_ids
    lines = coded.contents.items.frame.rows(named=True)
    (like,) = (line for line in lines if line["item_id"] == best)
    coded.upsert_items([{**like, "item_id": 9_001}])
    assert 9_001 in coded.recommend(1, k=100, exclude_seen=False).item_ids
    coded.delete_items([9_001, best])
    found = coded.recommend(1, k=100, exclude_seen=False).item_ids
    assert len(found) == 100
    assert not {9_001, best} & set(found)


def test_damaged_bytes_are_refused(coded: Retriever, tmp_path: Path) -> None:
    path = tmp_path / "model" / "index" / "lists.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"lists\.safetensors"):
        Retriever.open(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"levels": torch.zeros(2, 15)}, r"levels of the index must be"),
        ({"levels": torch.full((2, 16), np.nan)}, "levels of the index must hold finite"),
        ({"levels": None}, "an index without levels must not say"),
        ({"rescored": {}}, "must say for each depth what is scored again"),
        ({"rescored": {100: 100}}, "scored again must be more than 100, got 100"),
        ({"rescored": {100: "900"}}, "scored again must be more than 100, got '900'"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], reason: str) -> None:
    whole = Lists(
        torch.ones(3, 2),
        torch.ones(3),
        np.zeros(9, np.int32),
        {100: 2},
        torch.ones(2, 16),
        {100: 200},
    )
    check_lists(whole, 9, 2)
    with pytest.raises(ValueError, match=reason):
        check_lists(replace(whole, **changes), 9, 2)


def test_index_json_says_what_is_scored_again(coded: Retriever, tmp_path: Path) -> None:
    described = json.loads((tmp_path / "model" / "index" / "index.json").read_text())
    assert described == {
        "kind": "approximate",
        "probes": {"100": len(coded.contents.lists or [])},
        "rescored": {"100": 180},
    }
