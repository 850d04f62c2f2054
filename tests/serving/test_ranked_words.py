"""A second stage reads BM25 where both sides have text: the same numbers wherever it is read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rings import NUM_ITEMS, QUICK, ring_events, texts_of
from twotower import rerank, train
from twotower.data.dataset import Part
from twotower.errors import BundleError
from twotower.evaluation.evaluate_bundle import base_of, dataset_of, ranked_of, scorer_of
from twotower.evaluation.scorers import Served
from twotower.features.transforms import Sides
from twotower.second_stage import ranker as module
from twotower.second_stage.inputs import Candidates
from twotower.second_stage.ranker import Ranker
from twotower.serving.bundle import Contents, write_bundle
from twotower.serving.retriever import Retriever
from twotower.training.second_stage import remembering, with_second_stage
from twotower.training.trained import Trained
from twotower.vocab import FIRST_ROW

WORDS = ("words", "words_place")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Trained:
    events = ring_events(200, 10, jumps=0.3)
    return train(
        events,
        config={**QUICK, "rerank": {"use": "on", "candidates": 30}},
        baselines=[],
        progress=None,
        out=tmp_path_factory.mktemp("words") / "model",
        **texts_of(events),
    )


@pytest.fixture
def own(trained: Trained) -> Retriever:
    assert trained.path is not None
    return Retriever.open(trained.path)


def names_of(contents: Contents) -> tuple[str, ...]:
    assert contents.ranker is not None
    return contents.ranker.names


def measured(retriever: Retriever) -> tuple[Candidates, list[Any], list[float]]:
    """Return the candidates of the test as an evaluation reads them, their queries and when they ask."""
    dataset = dataset_of(retriever)
    cases = dataset.cases(Part.TEST)
    ranked = ranked_of(retriever, dataset, base_of(retriever, dataset))
    assert ranked is not None
    assert cases.times is not None
    found = ranked.candidates(ranked.base.score(cases).float().cpu().clone(), cases)
    return found, dataset.queries.ids.ids_of(cases.query_rows).to_list(), cases.times.tolist()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Candidates]:
    """The candidates that a second stage ranked, in the order of the calls."""
    found = list[Candidates]()
    values = Ranker.values

    def spy(self: Ranker, candidates: Candidates, catalogue: Any) -> Any:
        found.append(candidates)
        return values(self, candidates, catalogue)

    monkeypatch.setattr(Ranker, "values", spy)
    return found


def changed(retriever: Retriever) -> None:
    """Add an item, replace another one with other words, and delete a third one."""
    retriever.upsert_items([{"item": 900, "title": "w3 w4 w5"}, {"item": 7, "title": "w20 w21"}])
    retriever.delete_items([9])


def with_share(contents: Contents, share: float) -> Contents:
    words = {**contents.metrics["words"], "share": share}
    return replace(contents, metrics={**contents.metrics, "words": words})


@pytest.mark.parametrize("share", [None, 0.0])
@pytest.mark.parametrize("live", [False, True])
def test_an_answer_reads_what_an_evaluation_reads(
    own: Retriever,
    read: list[Candidates],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    share: float | None,
    live: bool,
) -> None:
    """With the bundle's share of the words and without one; of items that came later, too."""
    monkeypatch.setattr(module, "_CANDIDATES_AT_ONCE", 7 * 30)
    assert own.share_of_words > 0
    if share is not None:
        own = Retriever(with_share(own.contents, share))
    if live:
        changed(own)
        own.save(tmp_path / "changed")
        own = Retriever.open(tmp_path / "changed")
    expected, ids, times = measured(own)
    assert expected.words is not None
    read.clear()  # a bundle that is opened is tried
    own.recommend(ids, k=5, at=times)
    (found,) = read
    np.testing.assert_array_equal(found.item_rows, expected.item_rows)
    np.testing.assert_array_equal(found.words, expected.words)
    assert (expected.words > 0).any(axis=1).all()
    assert (expected.words == 0).any(axis=1).all()


def test_items_that_were_added_or_replaced_have_their_own_words(
    own: Retriever, read: list[Candidates]
) -> None:
    changed(own)
    dataset, base = dataset_of(own), base_of(own, dataset_of(own))
    cases = dataset.cases(Part.TEST)
    ids = dataset.queries.ids.ids_of(cases.query_rows).to_list()
    own.recommend(ids, k=5, at=1.7e9)
    (found,) = read
    assert isinstance(base, Served)
    expected = base.bm25.index.scores_of(base.bm25.words_of(cases), found.item_rows)
    np.testing.assert_array_equal(found.words, expected)
    for row in own.contents.items.ids.rows_of([900, 7]):
        assert row >= NUM_ITEMS + FIRST_ROW
        assert (expected[found.item_rows == row] > 0).any()
    own.recommend(features={"said": "w21"}, history=[3], k=60, at=1.7e9)
    last = read[-1]
    assert last.words is not None
    named = own.contents.items.ids.ids_of(last.item_rows[last.words > 0]).to_list()
    assert sorted(named) == [7, 20, 21]


def test_a_session_reads_them(own: Retriever, read: list[Candidates]) -> None:
    one = own.recommend(5, k=5, at=1.7e9)
    other = own.session(5).recommend(k=5, at=1.7e9)
    assert one.item_ids == other.item_ids
    first, second = read
    np.testing.assert_array_equal(first.words, second.words)
    assert first.words is not None
    assert first.words.any()


def words_of(read: list[Candidates], own: Retriever, **query: Any) -> Any:
    query = {"history": [3, 4, 5], **query}
    own.recommend(k=5, **query)
    return read.pop().words


def test_the_words_of_the_question_are_read(own: Retriever, read: list[Candidates]) -> None:
    """Those that are given, and none where there are none."""
    assert not words_of(read, own).any()
    assert not words_of(read, own, features={"said": ""}).any()
    assert not words_of(read, own, features={"said": "nothing of it"}).any()
    given = words_of(read, own, features={"said": "w6"})
    assert (given > 0).sum() == 1  # items 5, which is in the history, and 6 have the word
    assert words_of(read, own, query_id=5).any()


def test_an_explanation_says_them(own: Retriever) -> None:
    expected, ids, times = measured(own)
    assert expected.words is not None
    item_ids = own.contents.items.ids.ids_of(expected.item_rows.ravel()).to_list()
    found = own.explain(ids[3], item_ids[3 * 30 + 2], at=times[3])
    told = {part.name: part.value for part in found.ranking if part.name in WORDS}
    assert told
    place = float((expected.words[3] > expected.words[3, 2]).sum())
    assert told.items() <= {"words": float(expected.words[3, 2]), "words_place": place}.items()


def test_one_that_is_added_to_a_bundle_reads_them(trained: Trained, read: list[Candidates]) -> None:
    contents = replace(trained.contents, ranker=None)
    found = rerank(Retriever(contents), candidates=30, progress=None)
    assert set(WORDS) <= set(names_of(found.contents))
    assert found.contents.ranker is not None
    assert trained.contents.ranker is not None
    assert found.contents.ranker.trees == trained.contents.ranker.trees
    expected, ids, times = measured(found.retriever)
    read.clear()
    found.retriever.recommend(ids, k=5, at=times)
    np.testing.assert_array_equal(read[0].words, expected.words)


def test_without_text_of_the_queries_there_is_nothing_to_read(one_thread: None) -> None:
    events = ring_events(200, 10, jumps=0.3)
    config = {**QUICK, "rerank": {"use": "on", "candidates": 30}}
    items = texts_of(events)["items"]
    found = train(events, items=items, config=config, baselines=[], progress=None)
    assert set(WORDS).isdisjoint(names_of(found.contents))
    assert found.retriever.recommend(5, k=5).item_ids


def test_an_older_one_that_does_not_read_them_still_answers(
    trained: Trained, tmp_path: Path, read: list[Candidates]
) -> None:
    contents, dataset = trained.contents, trained.dataset
    sides = Sides(query=contents.queries.transforms, item=contents.items.transforms)
    found, _ = with_second_stage(scorer_of(trained.retriever), dataset, sides, contents.config)
    assert found is not None
    ranker = remembering(found.ranker, dataset, Part.TRAIN, Part.VALID)
    write_bundle(tmp_path / "model", replace(contents, ranker=ranker))
    again = Retriever.open(tmp_path / "model")
    assert set(WORDS).isdisjoint(names_of(again.contents))
    read.clear()
    assert len(again.recommend([5, 6], k=5)[0]) == 5
    assert read[0].words is None
    expected, ids, times = measured(again)
    assert expected.words is not None  # which are not read
    best = [each.item_ids for each in again.recommend(ids, k=5, at=times)]
    dataset = dataset_of(again)
    ranked = ranked_of(again, dataset, base_of(again, dataset))
    assert ranked is not None
    rescored = ranked.ranker.rescored(expected, ranked.catalogue)
    rows = np.take_along_axis(expected.item_rows, np.argsort(-rescored, axis=1)[:, :5], axis=1)
    items = again.contents.items.ids
    assert [items.ids_of(line).to_list() for line in rows] == best


def test_a_bundle_that_cannot_make_them_is_refused(trained: Trained) -> None:
    metrics = {name: each for name, each in trained.contents.metrics.items() if name != "words"}
    contents = replace(trained.contents, metrics=metrics)
    with pytest.raises(BundleError, match=r"reads 'words', which nothing makes; train it again"):
        Retriever(contents)


def test_trees_that_read_words_can_teach(trained: Trained) -> None:
    events = ring_events(200, 10, jumps=0.3)
    student = train(
        events, config=QUICK, baselines=[], progress=None, teacher=trained, **texts_of(events)
    )
    assert student.contents.ranker is None
    assert student.contents.provenance["teacher"]["moments"] > 0
