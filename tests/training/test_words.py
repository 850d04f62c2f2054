"""The share of the words in common that validation chooses, and what it is worth."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sandbox import run_command
from twotower import recipe, train
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.evaluation.screen import footnotes
from twotower.serving.bundle import write_bundle
from twotower.serving.retriever import Retriever
from twotower.training.trained import Trained

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


def test_the_best_share_on_validation_is_kept_and_served(trained: Trained) -> None:
    figures, words = trained.figures, trained.figures["words"]
    assert words["share"] in [place / 10 for place in range(1, 11)]
    without, with_words = words["valid"]
    assert with_words >= without
    cases = trained.dataset.cases(Part.TEST)
    for how, method in (
        ({}, "served"),
        ({"words": words["share"]}, "served"),
        ({"words": 0}, "model"),
    ):
        gains = []
        for line, row in enumerate(cases.query_rows):
            query = trained.dataset.queries.ids.ids_of(np.array([row]))[0]
            found = trained.retriever.recommend(query, k=10, **how).item_ids
            rows = trained.dataset.items.ids.rows_of(found)
            (target,) = cases.targets.take(slice(line, line + 1)).item_rows
            place = np.flatnonzero(rows == target)
            gains.append(1 / np.log2(place[0] + 2) if len(place) else 0.0)
        assert np.mean(gains) == pytest.approx(figures[method]["ndcg@10"], abs=1e-6)
    (note,) = [note for note in footnotes(figures) if "BM25 has a share" in note]
    gap = figures["differences"]["model"]["ndcg@10"]
    assert f"a share of {words['share']:g} beside the model, that validation chose: " in note
    assert gap[0] == pytest.approx(figures["served"]["ndcg@10"] - figures["model"]["ndcg@10"])


def test_the_verdict_is_about_what_is_served(trained: Trained) -> None:
    figures = trained.figures
    assert figures["verdict"].startswith("The model as served ")
    gap = figures["differences"]["bm25"]["ndcg@10"][0]
    assert gap == pytest.approx(figures["served"]["ndcg@10"] - figures["bm25"]["ndcg@10"])
    assert "model" not in figures["verdicts"]
    assert figures["strongest_baseline"] in figures["verdicts"]
    for group in figures["slices"]:
        assert {"served", "model"} <= set(group["intervals"])
        assert "model" in group["differences"]
    assert "| two-tower as served |" in trained.contents.card
    assert figures["verdict"] in trained.contents.card


def test_a_bundle_is_evaluated_as_it_is_served(trained: Trained) -> None:
    again = evaluate_bundle(trained.retriever, baselines=["bm25"])
    for method in ("model", "served", "bm25"):
        assert again[method]["ndcg@10"] == pytest.approx(trained.figures[method]["ndcg@10"])
    settings = again["protocol"]["settings"]["bm25"]
    assert {name: settings[name] for name in ("k1", "b", "languages")} == {
        name: trained.figures["words"][name] for name in ("k1", "b", "languages")
    }


def test_what_is_served_is_bm25_as_validation_chose_it(trained: Trained) -> None:
    contents = trained.contents
    changed = {**trained.figures["words"], "share": 1.0, "k1": 0.1, "b": 0.0}
    changed |= {"languages": {}, "drops_stop_words": False}
    other = Retriever(replace(contents, metrics={**contents.metrics, "words": changed}))
    scores = []
    for retriever in (Retriever(contents), other):
        retriever.upsert_items([{"document": "red red red scarf, more red than any other"}])
        scores.append(retriever.recommend("a red shawl", k=99, words=1.0).scores)
    assert scores[0] != scores[1]


def test_an_older_bundle_has_a_share_alone(trained: Trained) -> None:
    figures = {name: value for name, value in trained.figures.items() if name != "served"}
    figures["words"] = {"share": 1.0, "metric": "ndcg@10", "test": [0.1, 0.0, 0.2]}
    old = Retriever(replace(trained.contents, metrics=figures))
    assert old.recommend("red", k=3).scores[0] == 1.0
    assert any(note.startswith("As served, BM25 has a share of 1 ") for note in footnotes(figures))


def test_auto_is_that_share(trained: Trained) -> None:
    retriever = trained.retriever
    share = trained.figures["words"]["share"]
    asked = ["red sneakers 31", "a blue scarf"]
    auto, stated = (retriever.recommend(asked, k=5, words=w) for w in ("auto", share))
    assert [a.item_ids for a in auto] == [a.item_ids for a in stated]
    session = retriever.session(asked[0])
    assert session.recommend(5).item_ids == auto[0].item_ids
    alone = retriever.recommend(asked[0], k=5, words=0)
    assert session.recommend(5, words=0).scores == alone.scores != auto[0].scores
    everyone = retriever.recommend_all(2)
    line = everyone.row(0, named=True)
    best = retriever.recommend(line["query_id"], k=1)
    assert (line["document"], line["score"]) == (best.item_ids[0], pytest.approx(best.scores[0]))
    plain = retriever.recommend_all(2, words=0)
    assert plain["score"].to_list() != everyone["score"].to_list()
    for wrong in ("some", 1.5, -0.1):
        with pytest.raises(ValueError, match=f"words must be 'auto' or in .0, 1., got {wrong!r}"):
            retriever.recommend("red", words=wrong)  # type: ignore[arg-type]


def test_where_a_side_has_no_text_there_is_none(small_world: SyntheticTables) -> None:
    plain = train(small_world.interactions, config={"training": {"epochs": 1}})
    assert "words" not in plain.figures
    assert "served" not in plain.figures
    answers = (plain.retriever.recommend(1, words=words) for words in ("auto", 0.0))
    assert next(answers).scores == next(answers).scores


def test_items_that_come_later_are_found_by_their_words(trained: Trained) -> None:
    retriever = Retriever(trained.contents)
    query = "purple zeppelin"
    assert retriever.recommend("red sneakers", k=1).basis == "model"
    for number in range(3):
        retriever.upsert_items([{"document": f"zeppelin number {number}"}])
    assert str(retriever.recommend(query, k=1, words=1.0).item_ids[0]).startswith("zeppelin")
    retriever.upsert_items([{"document": "purple zeppelin"}])
    assert retriever.recommend(query, k=1).item_ids == ["purple zeppelin"]
    retriever.delete_items(["purple zeppelin"])
    assert str(retriever.recommend(query, k=1).item_ids[0]).startswith("zeppelin number")


def test_a_search_of_which_nothing_is_known_is_answered_by_what_is_popular(
    trained: Trained,
) -> None:
    counts = trained.contents.popularity[2:]
    popular = trained.contents.items.ids.ids[int(counts.argmax())]
    asked = pl.DataFrame({"query": ["猫"], "document": [popular]})
    figures = evaluate_bundle(trained.retriever, test=asked, baselines=["popularity"])
    assert figures["served"] == pytest.approx(figures["model"])
    assert figures["served"]["mrr@10"] == figures["popularity"]["mrr@10"] == 1.0
    assert trained.retriever.recommend("猫", k=1).item_ids == [popular]


def test_words_of_the_command_line(trained: Trained, tmp_path: Path) -> None:
    write_bundle(tmp_path / "m", trained.contents)
    tables = []
    for more in ((), ("--words", "auto"), ("--words", "0")):
        done = run_command(("recommend", "m", "--all", "--out", "all.csv", *more), tmp_path)
        assert done.code == 0, done.err
        tables.append(pl.read_csv(tmp_path / "all.csv")["score"].to_list())
    assert tables[0] == tables[1] != tables[2]
