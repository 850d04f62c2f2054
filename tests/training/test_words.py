"""The share of the words in common that validation chooses, and what it is worth."""

from itertools import product

import numpy as np
import polars as pl
import pytest

from twotower import recipe, train
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.evaluation.screen import footnotes
from twotower.training.pipeline import Trained

CALLED = {"sneakers": "shoes", "cap": "hat", "jacket": "coat", "shawl": "scarf", "mitts": "gloves"}
COLOURS = ("red", "blue", "green", "black", "white", "yellow")


@pytest.fixture(scope="module")
def trained() -> Trained:
    pairs = pl.DataFrame(
        [
            (f"{colour} {thing} {size}", f"{CALLED[thing]} in {colour}, size {size}")
            for colour, thing, size in product(COLOURS, CALLED, range(30, 36))
        ],
        schema=["query", "document"],
        orient="row",
    )
    quick = [
        "training.epochs=1",
        "split.seed=1",
        "training.batch_size=32",
        "training.threads=1",
        "towers.dim=32",
    ]
    return train(pairs, config=recipe("search").with_settings(quick))


def test_the_best_share_on_validation_is_kept_and_told(trained: Trained) -> None:
    words = trained.figures["words"]
    assert words["share"] in [place / 10 for place in range(1, 11)]
    without, with_words = words["valid"]
    assert with_words >= without
    cases = trained.dataset.cases(Part.TEST)
    for share, wanted in ((words["share"], words["test"][0]), (0.0, None)):
        gains = []
        for line, row in enumerate(cases.query_rows):
            query = trained.dataset.queries.ids.ids_of(np.array([row]))[0]
            found = trained.retriever.recommend(query, k=10, words=share).item_ids
            rows = trained.dataset.items.ids.rows_of(found)
            (target,) = cases.targets.take(slice(line, line + 1)).item_rows
            place = np.flatnonzero(rows == target)
            gains.append(1 / np.log2(place[0] + 2) if len(place) else 0.0)
        if wanted is None:
            wanted = words["test"][0] - words["difference"][0]
        assert np.mean(gains) == pytest.approx(wanted, abs=1e-6)
    (note,) = [note for note in footnotes(trained.figures) if "BM25 " in note and "share" in note]
    assert f"at a share of {words['share']:g} that validation chose" in note


def test_auto_is_that_share(trained: Trained) -> None:
    retriever = trained.retriever
    share = trained.figures["words"]["share"]
    asked = ["red sneakers 31", "a blue scarf"]
    auto, stated = (retriever.recommend(asked, k=5, words=w) for w in ("auto", share))
    assert [a.item_ids for a in auto] == [a.item_ids for a in stated]
    for wrong in ("some", 1.5, -0.1):
        with pytest.raises(ValueError, match=f"words must be 'auto' or in .0, 1., got {wrong!r}"):
            retriever.recommend("red", words=wrong)  # type: ignore[arg-type]


def test_where_a_side_has_no_text_there_is_none(small_world: SyntheticTables) -> None:
    plain = train(small_world.interactions, config={"training": {"epochs": 1}})
    assert "words" not in plain.figures
    with pytest.raises(ValueError, match="words must be a number where the bundle knows no share"):
        plain.retriever.recommend(1, words="auto")
