"""The index of a bundle: which it is, what it finds, and that it is the same after opening."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
import torch

from servers import running
from trainers import without_baselines
from twotower.cli import app
from twotower.config import IndexConfig
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import BundleError, MissingExtraError
from twotower.evaluation.evaluate_bundle import evaluate_bundle, scorer_of
from twotower.evaluation.screen import index_note
from twotower.extras import install
from twotower.index import approximate as approximate_module
from twotower.index.approximate import ApproximateIndex
from twotower.index.exact import ExactIndex
from twotower.index.tuning import tuned
from twotower.report.sections import model as model_section
from twotower.serving.bundle import Contents, open_bundle, write_bundle
from twotower.serving.retriever import Retriever
from twotower.serving.server.engine import Answered, Engine, Question
from twotower.training import indexing
from twotower.training.pipeline import train
from twotower.training.trained import Trained

QUICK: dict[str, dict[str, Any]] = {
    "training": {"epochs": 2, "batch_size": 256, "solver": "gradient"},
    "towers": {"dim": 8, "history": "pooled", "query_id": "off", "question_time": "off"},
}


def question(query_id: int, k: int) -> Question:
    nothing: dict[str, Any] = dict.fromkeys(f.name for f in fields(Question) if f.name != "ignored")
    return Question(
        **{**nothing, "query_id": query_id, "k": k, "words": 0.0, "strict": False, "rules": ()}
    )


def trained(tables: SyntheticTables, out: Path | None = None, **index: Any) -> Trained:
    config = {**QUICK, "index": index}
    return train(
        tables.interactions,
        items=tables.items,
        queries=tables.queries,
        out=out,
        config=config,
        baselines=["popularity"],
    )


@pytest.fixture(scope="module")
def many_items(tiny_world: SyntheticTables) -> SyntheticTables:
    """The tiny world's events with a catalogue of 3,000 items, most of them new, told apart by numbers."""
    rng = np.random.default_rng(0)
    ids = tiny_world.items["item_id"]
    ids = pl.concat([ids, pl.Series("item_id", range(10_000, 13_000 - len(ids)), ids.dtype)])
    columns = {f"number {place}": rng.normal(size=len(ids)) for place in range(6)}
    return replace(tiny_world, items=pl.DataFrame({"item_id": ids, **columns}))


@pytest.fixture(scope="module")
def approximate(
    many_items: SyntheticTables, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Trained:
    out = tmp_path_factory.mktemp("approximate") / "model"
    return trained(many_items, out, kind="approximate", recall=0.8)


@pytest.fixture
def retriever(approximate: Trained) -> Retriever:
    """One of the test's own, which it may write to."""
    assert approximate.path is not None
    return Retriever.open(approximate.path)


def test_what_was_measured_is_in_the_figures(approximate: Trained) -> None:
    figures = approximate.figures["index"]
    assert figures == approximate.contents.metrics["index"]
    assert figures["kind"] == "approximate"
    assert figures["target"] == 0.8
    value, low, high = figures["recall"]["100"]
    assert 0.77 < low <= value <= high < 0.95
    assert figures["probes"]["100"] < figures["lists"]
    said = index_note(figures)
    assert f"finds {value:.4f} ({low:.4f} to {high:.4f}) of the 100 best items" in said
    assert "validation queries (target: 0.8)" in said
    assert f" {figures['bytes_per_item']:.0f} bytes an item " in said
    older = {key: each for key, each in figures.items() if key != "bytes_per_item"}
    assert " bytes " not in index_note(older)


def test_the_recall_is_that_of_queries_it_was_not_tuned_on(retriever: Retriever) -> None:
    """Measured again by hand, over all queries as they are asked."""
    contents = retriever.contents
    queries = torch.from_numpy(retriever.encode_queries(contents.queries.ids.ids.to_list()))
    found = retriever.index.search(queries, 100).item_rows
    best = ExactIndex(retriever.index.item_vectors, reserved_rows=2).search(queries, 100).item_rows
    again = np.mean([np.isin(b, a).mean() for a, b in zip(found, best, strict=True)])
    assert retriever.index_recall == pytest.approx(again, abs=0.05)


def test_one_half_of_the_queries_tunes_it(approximate: Trained) -> None:
    retriever, lists = approximate.retriever, approximate.contents.lists
    assert lists is not None
    cases = approximate.dataset.cases(Part.VALID)
    scorer = scorer_of(retriever, approximate.dataset)
    arrays = {name: values[cases.query_rows] for name, values in scorer.query_features.items()}
    queries = scorer.encoding.query_vectors(arrays, cases.questions)
    assert len(queries[1::2]) == approximate.figures["index"]["queries"]
    again = tuned(lists, retriever.index.item_vectors, queries[::2], 0.8)
    assert again.probes == lists.probes


def test_a_bundle_opens_with_the_same_index(approximate: Trained, retriever: Retriever) -> None:
    given, read = approximate.contents.lists, retriever.contents.lists
    assert given is not None
    assert read is not None
    assert torch.equal(given.centres, read.centres)
    assert torch.equal(given.spreads, read.spreads)
    assert np.array_equal(given.list_of, read.list_of)
    assert given.probes == read.probes
    assert not retriever.index.is_exact
    assert retriever.contents.config.index.kind == "approximate"
    for query in (1, 2, 3):
        mine, its = retriever.recommend(query), approximate.retriever.recommend(query)
        assert (mine.item_ids, mine.scores) == (its.item_ids, its.scores)


def test_figures_are_of_exact_rankings(approximate: Trained) -> None:
    again = evaluate_bundle(approximate.retriever, baselines=())
    assert again["model"] == approximate.figures["model"]


def test_two_trainings_find_the_same(approximate: Trained, many_items: SyntheticTables) -> None:
    config = {**QUICK, "index": {"kind": "approximate", "recall": 0.8}}
    contents, trainer = without_baselines(
        many_items.interactions, config, items=many_items.items, queries=many_items.queries
    )
    again = indexing.indexed(contents, trainer.scorer(), trainer.dataset)[0].lists
    assert again is not None
    assert approximate.contents.lists is not None
    assert np.array_equal(again.list_of, approximate.contents.lists.list_of)
    assert again.probes == approximate.contents.lists.probes


def test_items_come_and_go(retriever: Retriever) -> None:
    (best, *_) = retriever.recommend(5, k=1).item_ids
    twin = retriever.contents.items.frame.filter(item_id=best).row(0, named=True)
    retriever.upsert_items([{**twin, "item_id": 9001}])
    everything = retriever.contents.num_items
    assert 9001 in retriever.recommend(5, k=everything).item_ids
    retriever.delete_items([best])
    retriever.upsert_items([{**twin, "item_id": 9001, "number 1": 0.1}])
    for k in (50, everything):
        found = retriever.recommend(5, k=k).item_ids
        assert best not in found
        assert found.count(9001) <= 1
        assert len(found) == min(k, everything - 1 - len(set(retriever.history(5)) - {best}))


def test_a_small_catalogue_is_searched_exactly(tiny_trained: Trained) -> None:
    assert tiny_trained.contents.lists is None
    assert tiny_trained.contents.config.index.kind == "exact"
    assert "index" not in tiny_trained.figures
    assert tiny_trained.retriever.index_recall == 1.0


def test_auto_keeps_exact_search_where_it_is_no_slower(
    small_world: SyntheticTables,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As it is with 60 items, were they many enough to try."""
    monkeypatch.setattr(indexing, "APPROXIMATE_FROM", 1)
    tables = small_world
    found = train(tables.interactions, items=tables.items, config=QUICK, progress="bar")
    assert found.contents.lists is None
    assert found.contents.config.index.kind == "exact"
    said = " ".join(capsys.readouterr().out.split())
    assert "at a recall of 0.99 an approximate index is no faster" in said


@pytest.mark.parametrize("busy_with", ["exact", "approximate"])
def test_auto_takes_an_approximate_index_where_counts_say_so_whatever_a_clock_says(
    approximate: Trained, monkeypatch: pytest.MonkeyPatch, busy_with: str
) -> None:
    """A machine that is busy while either is timed changes nothing."""

    def rate(index: Any, *_: object) -> float:
        is_slow = isinstance(index, ApproximateIndex) == (busy_with == "approximate")
        return 10.0 if is_slow else 1_000.0

    def decided() -> Contents:
        contents, dataset = approximate.contents, approximate.dataset
        auto = replace(contents.config, index=IndexConfig(kind="auto", recall=0.8))
        undecided = replace(contents, config=auto, metrics=dict(contents.metrics), lists=None)
        found, _ = indexing.indexed(undecided, scorer_of(approximate.retriever, dataset), dataset)
        return found

    monkeypatch.setattr(indexing, "_rate", rate)
    monkeypatch.setattr(indexing, "APPROXIMATE_FROM", 3_000)
    assert decided().config.index.kind == "exact"  # asking once costs more than scoring 3,000 items
    monkeypatch.setattr(approximate_module, "_ASKING", 0.0)  # as little as beside many more items
    found = decided()
    assert found.config.index.kind == "approximate"
    assert found.lists is not None
    assert approximate.contents.lists is not None
    assert found.lists.probes == approximate.contents.lists.probes
    monkeypatch.setattr(indexing, "APPROXIMATE_FROM", 3_001)
    assert decided().config.index.kind == "exact"


def test_without_faiss_auto_is_exact_and_says_how_to_be_faster(
    small_world: SyntheticTables,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(indexing, "APPROXIMATE_FROM", 1)
    monkeypatch.setitem(sys.modules, "faiss", None)
    tables = small_world
    found = train(tables.interactions, items=tables.items, config=QUICK, progress="bar")
    assert found.contents.lists is None
    said = " ".join(capsys.readouterr().out.split())
    assert install("ann") in said


def test_without_faiss_an_approximate_index_is_refused_before_the_training(
    small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"index.kind = 'approximate' needs .*\[ann\]"):
        trained(small_world, tmp_path / "model", kind="approximate")
    assert not list(tmp_path.iterdir())


def test_a_bundle_opens_without_faiss(
    approximate: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert approximate.path is not None
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.warns(UserWarning, match="Search is exact"):
        retriever = Retriever.open(approximate.path)
    assert retriever.index.is_exact
    assert retriever.index_recall == 1.0
    assert len(retriever.recommend(1)) == 10


def test_lists_of_other_items_are_no_bundle(approximate: Trained, tmp_path: Path) -> None:
    lists = approximate.contents.lists
    assert lists is not None
    wrong = replace(lists, list_of=lists.list_of[:-1])
    write_bundle(tmp_path / "model", replace(approximate.contents, lists=wrong))
    with pytest.raises(BundleError, match="items of the index must be 3000 int32, got 2999"):
        open_bundle(tmp_path / "model")


def test_the_folder_holds_lists_and_no_library_s_own_file(approximate: Trained) -> None:
    assert approximate.path is not None
    folder = approximate.path / "index"
    assert sorted(p.name for p in folder.iterdir()) == ["index.json", "lists.safetensors"]
    assert json.loads((folder / "index.json").read_text())["kind"] == "approximate"


def test_a_server_asks_apart_what_reaches_to_another_depth(
    approximate: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an answer to few would depend on who asks for many at the same time."""
    assert approximate.path is not None
    engine, asked = Engine(approximate.path), []
    real = Retriever.recommend

    def noted(retriever: Retriever, *args: Any, **given: Any) -> Any:
        asked.append(given["k"])
        return real(retriever, *args, **given)

    monkeypatch.setattr(Retriever, "recommend", noted)
    questions = [question(query, k) for query, k in ((1, 10), (2, 101), (3, 100), (4, 200))]
    answers = engine.answer(questions)
    assert sorted(asked) == [100, 200]
    assert [len(each.answer) for each in answers if isinstance(each, Answered)][:1] == [10]


def test_the_recall_is_told_everywhere(
    approximate: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_section, "LANDMARKS", 50)  # a map of 1,000 takes seconds
    assert approximate.path is not None
    value, low, high = approximate.figures["index"]["recall"]["100"]
    with running(approximate.path) as address:
        assert f"twotower_index_recall {value}" in httpx.get(f"{address}/metrics").text
    app(["inspect", str(approximate.path)], standalone_mode=False)
    assert index_note(approximate.figures["index"]) in capsys.readouterr().out
    app(["inspect", str(approximate.path), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["index"] == "approximate"
    approximate.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert f"approximate: it finds {value:.4f} ({low:.4f} to {high:.4f}) of the 100 best" in page


def test_the_command_line_says_which_recall(
    tiny_world: SyntheticTables, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_world.interactions.write_csv(tmp_path / "events.csv")
    given = ["--interactions", str(tmp_path / "events.csv"), "--out", str(tmp_path / "model")]
    settings = ["--set", "index.kind=approximate", "--set", "towers.dim=4", "--recall", "0.8"]
    app(
        ["train", *given, *settings, "--set", "training.epochs=1", "--json"],
        standalone_mode=False,
    )
    out = capsys.readouterr()
    assert json.loads(out.out)["index"]["target"] == 0.8
    assert "index.kind = 'approximate': of 178 items in lists," in " ".join(out.err.split())
    assert open_bundle(tmp_path / "model").config.index.recall == 0.8
