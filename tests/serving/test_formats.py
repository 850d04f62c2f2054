"""Every format of a bundle that was ever written still opens: ``golden`` holds one of each."""

from pathlib import Path
from zipfile import ZipFile

import pytest

from twotower.serving.manifest import FORMAT_VERSION
from twotower.serving.retriever import Retriever

GOLDEN = Path(__file__).parent / "golden"


def test_there_is_a_bundle_of_each_format() -> None:
    expected = {f"format-{version}.zip" for version in range(1, FORMAT_VERSION + 1)}
    assert {file.name for file in GOLDEN.iterdir()} == expected


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_a_bundle_of_an_earlier_version_answers_as_it_did(version: int, tmp_path: Path) -> None:
    """Written at a76162f, on another machine: 24 items, of which one is gone in format 2.

    Format 3 is format 1 with a second stage of two small trees, which were written by hand.
    """
    with ZipFile(GOLDEN / f"format-{version}.zip") as kept:
        kept.extractall(tmp_path / "model")
    retriever = Retriever.open(tmp_path / "model")
    assert retriever.contents.num_items == {1: 24, 2: 23, 3: 24}[version]
    first = retriever.contents.queries.ids.ids[0]
    assert retriever.recommend(first, k=3, rerank=False).item_ids == [14, 12, 5]
    ranked = [10, 8, 11] if version == 3 else [14, 12, 5]
    assert retriever.recommend(first, k=3).item_ids == ranked
    assert len(retriever.history(first)) == 5
    assert len(retriever.recommend_all(k=2)) == 60
