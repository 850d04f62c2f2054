"""A bundle with a second stage gives the ranking that is measured, under all options of an answer."""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from damaged_bundles import BadBundle, at_random, content, seal, tensors, text, use
from twotower import Boost, Cap, Diversify, Explore
from twotower.data.dataset import Cases, Dataset, Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import BundleError, MissingExtraError
from twotower.evaluation.evaluate_bundle import (
    dataset_of,
    evaluate_bundle,
    ranked_of,
    scorer_of,
)
from twotower.evaluation.ranking import evaluate_on
from twotower.evaluation.scorers import ModelScorer
from twotower.second_stage.ranker import Ranker
from twotower.serving import reranking
from twotower.serving.arguments import queries_of
from twotower.serving.bundle import open_bundle, write_bundle
from twotower.serving.journaled import with_own_rows
from twotower.serving.retriever import Retriever
from twotower.serving.session import Session
from twotower.training.pipeline import train
from twotower.training.trained import Trained
from twotower.vocab import PADDING_ROW

DEPTH = 40
SETTINGS = {
    "training": {"epochs": 1, "batch_size": 256, "precision": "float32", "solver": "gradient"},
    "towers": {"dim": 8, "history": "pooled", "query_id": "off", "question_time": "off"},
    "rerank": {"use": "on", "candidates": DEPTH},
}


@pytest.fixture(scope="module")
def trained(tiny_world: SyntheticTables, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(
        tiny_world.interactions,
        items=tiny_world.items,
        queries=tiny_world.queries,
        out=tmp_path_factory.mktemp("ranked") / "model",
        config=SETTINGS,
        baselines=[],
    )


@pytest.fixture(scope="module")
def bundle(trained: Trained) -> Path:
    assert trained.path is not None
    return trained.path


@pytest.fixture(scope="module")
def retriever(bundle: Path) -> Retriever:
    return Retriever.open(bundle)


@pytest.fixture
def own(bundle: Path) -> Retriever:
    """One of the test's own, which it may write to."""
    return Retriever.open(bundle)


def ranker_of(retriever: Retriever) -> Ranker:
    assert retriever.contents.ranker is not None
    return retriever.contents.ranker


def asked(retriever: Retriever) -> tuple[Dataset, Cases, list[Any], list[float]]:
    """Return the test cases of a bundle, with the ids of their queries and the moments of the questions."""
    dataset = dataset_of(retriever)
    cases = dataset.cases(Part.TEST)
    assert cases.times is not None
    ids = dataset.queries.ids.ids_of(cases.query_rows).to_list()
    return dataset, cases, ids, cases.times.tolist()


def measured(retriever: Retriever, base: ModelScorer, k: int) -> list[list[Any]]:
    """Return the ids of the ``k`` best items of each test case, as they are measured."""
    dataset, cases, _, _ = asked(retriever)
    scorer = ranked_of(retriever, dataset, base) or base
    rows = evaluate_on(dataset, scorer, cases, (k,)).ranking.item_rows[:, :k]
    ids = retriever.contents.items.ids
    return [ids.ids_of(line[line != PADDING_ROW]).to_list() for line in rows]


def line_of(retriever: Retriever, item_id: int) -> dict[str, Any]:
    return retriever.items([item_id]).row(0, named=True)


# --------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("k", [10, DEPTH, 120, 200])
def test_the_answers_are_what_is_measured(retriever: Retriever, k: int) -> None:
    dataset, _, ids, times = asked(retriever)
    expected = measured(retriever, scorer_of(retriever, dataset), k)
    answers = retriever.recommend(ids, k=k, at=times)
    assert [answer.item_ids for answer in answers] == expected
    assert all(answer.scores == sorted(answer.scores, reverse=True) for answer in answers)
    alone = retriever.recommend(ids[5], k=k, at=times[5])
    assert alone.item_ids == expected[5]


def test_the_figures_are_those_of_the_training(trained: Trained, bundle: Path) -> None:
    figures = evaluate_bundle(bundle)
    for name in ("model", "ranked"):
        assert figures[name]["ndcg@10"] == pytest.approx(trained.figures[name]["ndcg@10"])
    assert figures["second_stage"] == trained.figures["second_stage"]
    assert figures["ranked"]["ndcg@10"] > figures["model"]["ndcg@10"] + 0.02


def test_without_it_the_order_is_that_of_the_towers(bundle: Path, retriever: Retriever) -> None:
    _, _, ids, times = asked(retriever)
    bare = Retriever(replace(open_bundle(bundle), ranker=None))
    expected = bare.recommend(ids, k=15, at=times)
    answers = retriever.recommend(ids, k=15, at=times, rerank=False)
    assert [each.item_ids for each in answers] == [each.item_ids for each in expected]
    assert [each.scores for each in answers] == [each.scores for each in expected]
    ranked = retriever.recommend(ids, k=DEPTH, at=times)
    first = retriever.recommend(ids, k=DEPTH, at=times, rerank=False)
    for one, other in zip(ranked, first, strict=True):
        assert set(one.item_ids) == set(other.item_ids)
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6)
    assert (
        sum(one.item_ids != other.item_ids for one, other in zip(ranked, first, strict=True)) > 250
    )


def test_all_queries(retriever: Retriever) -> None:
    at = 1_700_000_000
    frame = retriever.recommend_all(5, at=at)
    answers = retriever.recommend(retriever.query_ids, k=5, at=at)
    assert frame["item_id"].to_list() == [item for each in answers for item in each.item_ids]
    assert (
        frame["item_id"].to_list()
        != retriever.recommend_all(5, at=at, rerank=False)["item_id"].to_list()
    )


def test_a_session_is_ranked_as_its_history(retriever: Retriever) -> None:
    """At any moment, whenever the session began."""
    dataset, cases, ids, times = asked(retriever)
    own = cases.histories.take(slice(3, 4))
    assert own.times is not None
    events = [
        {"item_id": item, "time": time}
        for item, time in zip(
            dataset.items.ids.ids_of(own.item_rows).to_list(), own.times.tolist(), strict=True
        )
    ]
    session = Session(retriever, retriever.queries.described(queries_of(ids[3], history=[])))
    stated: dict[str, Any] = {"history": events, "exclude_seen": False, "k": DEPTH}
    for place, event in enumerate(events, 1):
        session.add(event["item_id"], event["time"])
        for gap in (60.0, 1e6):
            at = event["time"] + gap
            answer = retriever.recommend(ids[3], **{**stated, "history": events[:place]}, at=at)
            found = session.recommend(DEPTH, exclude_seen=False, at=at)
            assert found.item_ids == answer.item_ids
    known = retriever.session(ids[3])
    assert (
        known.recommend(DEPTH, at=times[3]).item_ids
        == measured(retriever, scorer_of(retriever, dataset), DEPTH)[3]
    )


def test_the_moment_of_a_session_reaches_the_second_stage(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    whole = Ranker.rescored

    def spy(self: Ranker, candidates: Any, catalogue: Any) -> Any:
        seen.append(candidates.histories.asked)
        return whole(self, candidates, catalogue)

    monkeypatch.setattr(Ranker, "rescored", spy)
    session = retriever.session(history=[{"item_id": 5, "time": 1e9}])
    session.recommend(at=2e9)
    session.add(6, 1.5e9)
    session.recommend(at=2e9)
    assert [each.tolist() for each in seen] == [[2e9], [2e9]]


# --------------------------------------------------------------------------- what nothing is known of


def test_a_query_of_which_nothing_is_known_is_not_ranked(retriever: Retriever) -> None:
    answer = retriever.recommend(features={}, k=20)
    assert answer.basis == "popularity"
    assert answer.item_ids == retriever.recommend(features={}, k=20, rerank=False).item_ids


def test_nor_is_one_that_a_prior_answers(tiny_world: SyntheticTables) -> None:
    """As it is measured: the trees learnt from queries of which the model knew something."""
    towers = {**SETTINGS["towers"], "popularity": "on"}
    config = {**SETTINGS, "towers": towers}
    found = train(tiny_world.interactions, config=config, baselines=[]).retriever
    assert found.contents.ranker is not None
    assert found.encoding.model.popularity is not None
    dataset, _, ids, times = asked(found)
    answers = found.recommend([*ids, "nobody"], k=10, at=[*times, times[0]])
    assert [each.item_ids for each in answers[:-1]] == measured(
        found, scorer_of(found, dataset), 10
    )
    plain = found.recommend([*ids, "nobody"], k=10, at=[*times, times[0]], rerank=False)
    assert answers[0].item_ids != plain[0].item_ids
    assert answers[-1].item_ids == plain[-1].item_ids


# --------------------------------------------------------------------------- filters, rules, live items


def test_filters_leave_k_answers(retriever: Retriever) -> None:
    chosen = list(range(1, 60))
    for options in (
        {"filter": "item_id <= 59"},
        {"among": chosen},
        {"without": list(range(60, 201))},
    ):
        answer = retriever.recommend(7, k=45, exclude_seen=False, at=1.7e9, **options)
        assert len(answer) == 45
        assert set(answer.item_ids) <= set(chosen)
        first = retriever.recommend(
            7, k=DEPTH, exclude_seen=False, at=1.7e9, rerank=False, **options
        )
        assert set(answer.item_ids[:DEPTH]) == set(first.item_ids)
        assert answer.item_ids[:DEPTH] != first.item_ids
    assert len(retriever.recommend(7, k=200, exclude_seen=False)) == 200
    assert len(retriever.recommend(7, k=10, filter="item_id = 3", exclude_seen=False)) == 1


def test_rules_come_after_it(retriever: Retriever) -> None:
    plain = retriever.recommend(7, k=200, exclude_seen=False, at=1.7e9)
    category = dict(
        zip(retriever.item_ids, retriever.items(retriever.item_ids)["category"], strict=True)
    )

    def answer(*rules: Any, k: int = 15) -> list[Any]:
        found = retriever.recommend(7, k=k, exclude_seen=False, at=1.7e9, rules=rules)
        assert len(found) == k
        return found.item_ids

    capped: list[Any] = []
    for item in plain.item_ids:
        if sum(category[other] == category[item] for other in capped) < 2:
            capped.append(item)
    assert answer(Cap("category", 2)) == capped[:15]
    lifted = [item for item in plain.item_ids if category[item] == "category-3"]
    assert answer(Boost("category = 'category-3'", 50), k=10) == lifted[:10]
    assert answer(Diversify(0.0)) == plain.item_ids[:15]
    assert answer(Diversify(0.5))[0] == plain.item_ids[0]
    explored = retriever.recommend(7, k=15, rules=[Explore(0.3, filter="item_id < 30")], at=1.7e9)
    assert len(set(explored.item_ids)) == 15


def test_an_item_that_is_added_is_ranked(own: Retriever) -> None:
    _, _, ids, times = asked(own)
    own.upsert_items([{**line_of(own, item), "item_id": item + 1000} for item in (1, 2, 3)])
    before = own.recommend(ids, k=DEPTH, at=times, rerank=False)
    answers = own.recommend(ids, k=DEPTH, at=times)
    places = [
        (one.item_ids.index(item), other.item_ids.index(item))
        for one, other in zip(answers, before, strict=True)
        for item in one.item_ids
        if item > 1000
    ]
    assert len(places) > 20
    assert any(ranked != first for ranked, first in places)


def test_an_item_that_is_replaced_by_itself_changes_no_answer(own: Retriever) -> None:
    _, _, ids, times = asked(own)
    expected = own.recommend(ids, k=DEPTH, at=times)
    own.upsert_items([line_of(own, item) for item in range(1, 150)])
    found = own.recommend(ids, k=DEPTH, at=times)
    # The new rows come last, so that items of equal scores may change their places.
    for one, other in zip(found, expected, strict=True):
        assert set(one.item_ids) == set(other.item_ids)
    assert [each.item_ids[:10] for each in found] == [each.item_ids[:10] for each in expected]


def test_it_is_measured_with_what_is_remembered_of_replaced_items(own: Retriever) -> None:
    _, _, ids, times = asked(own)
    own.upsert_items(own.contents.items.frame)
    settled = with_own_rows(own)
    dataset, _, _, _ = asked(settled)
    expected = measured(settled, scorer_of(settled, dataset), 10)
    answers = own.recommend(ids, k=10, at=times)
    assert sum(a.item_ids == b for a, b in zip(answers, expected, strict=True)) > 290


@pytest.mark.parametrize("changed", [False, True])
def test_saved_and_opened_again_it_answers_the_same(
    own: Retriever, tmp_path: Path, changed: bool
) -> None:
    _, _, ids, times = asked(own)
    if changed:
        own.upsert_items([{**line_of(own, 5), "item_id": 1005}, {**line_of(own, 9), "signal": 3.0}])
        own.delete_items([17, 18])
    own.save(tmp_path / "again")
    again = Retriever.open(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["format_version"] == 3
    for k in (10, 60):
        one, other = (each.recommend(ids, k=k, at=times) for each in (own, again))
        assert [each.item_ids for each in one] == [each.item_ids for each in other]
        for mine, its in zip(one, other, strict=True):
            np.testing.assert_allclose(mine.scores, its.scores, rtol=1e-5)


@pytest.mark.parametrize(("gone", "version"), [(False, 1), (True, 2)])
def test_a_bundle_without_one_keeps_its_older_format(
    bundle: Path, tmp_path: Path, gone: bool, version: int
) -> None:
    contents = replace(open_bundle(bundle), ranker=None)
    if gone:
        rows = np.zeros(contents.items.ids.num_rows, np.bool_)
        rows[7] = True
        contents = replace(contents, gone=rows)
    write_bundle(tmp_path / "model", contents)
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["format_version"] == version
    assert not any(name.startswith("ranker/") for name in manifest["files"])
    assert json.loads((bundle / "manifest.json").read_text())["format_version"] == 3


def test_many_queries_are_ranked_a_few_at_a_time(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each query has all its candidates, even for an answer of few items."""
    sizes: list[int] = []
    whole = Ranker.rescored

    def spy(self: Ranker, candidates: Any, catalogue: Any) -> Any:
        sizes.append(candidates.item_rows.size)
        return whole(self, candidates, catalogue)

    expected = retriever.recommend(retriever.query_ids, k=1, at=1.7e9)
    monkeypatch.setattr(reranking, "_CHUNK_CELLS", 30 * DEPTH)
    monkeypatch.setattr(Ranker, "rescored", spy)
    found = retriever.recommend(retriever.query_ids, k=1, at=1.7e9)
    assert [each.item_ids for each in found] == [each.item_ids for each in expected]
    assert max(sizes) <= 30 * DEPTH


# --------------------------------------------------------------------------- hostile files


def _tree(key: str, value: object) -> Any:
    """Return the damage that changes an entry of the description."""

    def damage(folder: Path) -> None:
        file = folder / "ranker/ranker.json"
        held = json.loads(file.read_text())
        held[key] = value
        file.write_text(json.dumps(held))

    return damage


def _put(key: str, change: Any) -> Any:
    return tensors(MEMORY, lambda held: held.update({key: change(held[key])}))


def _set(key: str, place: int, value: float) -> Any:
    return tensors(MEMORY, lambda held: held[key].view(-1).__setitem__(place, value))


TREES, DESCRIBED, MEMORY = "ranker/trees.txt", "ranker/ranker.json", "ranker/memory.safetensors"
NUM_ROWS = 202
DAMAGES: Sequence[BadBundle] = (
    BadBundle("no description", "must hold an object", content(DESCRIBED, "[]")),
    BadBundle("a number as inputs", "promises", _tree("inputs", 7)),
    BadBundle("no inputs", "inputs", _tree("inputs", [])),
    BadBundle("fewer inputs", "must read 2 inputs", _tree("inputs", ["score", "place"])),
    BadBundle(
        "an input that nothing makes", "'magic', which nothing", text(DESCRIBED, "place", "magic")
    ),
    BadBundle("a depth of one", "candidates must be at least 2", _tree("depth", 1)),
    BadBundle("a depth of true", "candidates must be a whole number", _tree("depth", True)),
    BadBundle("a depth without end", "candidates must be at most", _tree("depth", 10**12)),
    BadBundle("columns of nobody", "no column of the bundle", _tree("item_columns", ["magic"])),
    BadBundle("columns that are ids", "no column of the bundle", _tree("query_columns", ["query_id"])),
    BadBundle("no columns", "promises", _tree("item_columns", None)),
    BadBundle("figures that are a list", "figures of the second stage", _tree("figures", [])),
    BadBundle("figures of nothing", "figures of the second stage", _tree("figures", {})),
    BadBundle("it was left out", "figures of the second stage", _tree("figures", {"kept": False})),
    BadBundle("no span", "span of the second stage", _tree("span", 0)),
    BadBundle("a span that is NaN", "span of the second stage", _tree("span", float("nan"))),
    BadBundle("no first moment", "span of the second stage", _tree("first", float("inf"))),
    BadBundle("a span of a list", "promises", _tree("span", [1])),
    BadBundle("no trees", "promises", content(TREES, "")),
    BadBundle("another input", "that there are", text(TREES, r"split_feature=\d+", "split_feature=999")),
    BadBundle("a tree in a circle", "downwards", text(TREES, r"left_child=\S+", "left_child=0")),
    BadBundle("a tree by categories", "split by numbers", text(TREES, "num_cat=0", "num_cat=1")),
    BadBundle("a leaf too few", "must have", text(TREES, r"leaf_value=\S+ ", "leaf_value=")),
    BadBundle("a leaf that is NaN", "finite numbers", text(TREES, r"leaf_value=\S+", "leaf_value=nan")),
    BadBundle("counts below 0", "counts of the second stage must be at least 0", _set("counts", 3, -1)),
    BadBundle("counts that are NaN", "must hold finite", _set("counts", 3, np.nan)),
    BadBundle("counts of more items", "counts 404 rows", _put("counts", lambda v: torch.cat([v, v]))),
    BadBundle("counts in float64", "must be any float32", _put("counts", torch.Tensor.double)),
    BadBundle("no counts", "promises", tensors(MEMORY, lambda held: held.pop("counts"))),
    BadBundle("times that fall", "must be ascending", _put("times.keys", lambda v: v.flip(0))),
    BadBundle("times of other items", "of known rows", _set("times.keys", -1, NUM_ROWS << 32)),
    BadBundle("times below 0", "must be at least 0", _set("times.keys", 0, -1)),
    BadBundle("no times at all", "must be any int64", _put("times.keys", lambda v: v[:0])),
    BadBundle("lost times", "'item_age', which", tensors(MEMORY, lambda held: held.pop("times.keys"))),
    BadBundle("followers of other items", "must be at most 201", _set("follows.item_rows", 0, NUM_ROWS)),
    BadBundle("followers below 0", "must be at least 0", _set("follows.item_rows", 0, -1)),
    BadBundle("offsets that fall", "must rise from 0", _set("follows.offsets", 5, 0)),
    BadBundle("offsets too far", "must be at most", _set("follows.offsets", 5, 10**9)),
    BadBundle("offsets that end early", "must rise from 0", _put("follows.offsets", lambda v: v[:-3])),
    BadBundle("offsets of more", "must rise", _put("follows.offsets", lambda v: torch.cat([v, v[-1:]]))),
    BadBundle("weights that are NaN", "weights of what follows", _set("follows.near", 0, np.nan)),
    BadBundle("weights too few", "weights of what follows", _put("follows.next", lambda v: v[1:])),
    BadBundle("weights that are lost", "promises", tensors(MEMORY, lambda held: held.pop("follows.next"))),
    BadBundle("half a number", "promises", _put("counts", torch.Tensor.bfloat16)),
)  # fmt: skip


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "model"))


def test_the_sound_one_answers(copy: Path) -> None:
    seal(copy)
    assert use(copy) is None


@pytest.mark.parametrize("bad", DAMAGES, ids=lambda bad: bad.name)
def test_what_is_wrong_is_said_when_it_is_opened(bad: BadBundle, copy: Path) -> None:
    bad.damage(copy)
    seal(copy)
    with pytest.raises(BundleError, match=bad.says) as raised:
        Retriever.open(copy)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [TREES, MEMORY])
def test_every_file_must_be_listed(copy: Path, name: str) -> None:
    seal(copy, lambda entries: entries["files"].pop(name))
    with pytest.raises(BundleError, match=f"does not list {name}"):
        Retriever.open(copy)


def test_without_its_description_there_is_none(copy: Path) -> None:
    seal(copy, lambda entries: entries["files"].pop(DESCRIBED))
    assert open_bundle(copy).ranker is None


@pytest.mark.parametrize("seed", range(60))
def test_at_random_it_is_refused_or_answers(seed: int, copy: Path) -> None:
    said = at_random(copy, seed, "ranker/")
    refusal = use(copy)
    assert refusal is None or "\n" not in refusal, said


@pytest.mark.parametrize("items_left", [True, False])
def test_an_input_that_nothing_makes_is_found_without_items(copy: Path, items_left: bool) -> None:
    """They may be added later."""
    text(DESCRIBED, "place", "magic")(copy)
    seal(copy)
    contents = open_bundle(copy)
    if not items_left:
        contents = replace(contents, gone=np.ones(contents.items.ids.num_rows, np.bool_))
    with pytest.raises(BundleError, match=r"reads 'magic', which nothing makes; train it again\.$"):
        Retriever(contents)


def test_a_missing_lightgbm_says_what_to_install(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    says = r"the second stage needs the library 'lightgbm'; install it with pip install .*\[rank\]'"
    with pytest.raises(MissingExtraError, match=says) as raised:
        Retriever.open(bundle)
    assert re.fullmatch(r"[^\n]+\.", str(raised.value))
    assert open_bundle(bundle).ranker is not None  # it is needed to rank


def test_an_explanation_adds_up_to_what_the_trees_say(retriever: Retriever) -> None:
    best = retriever.recommend(7, k=DEPTH)
    sums = []
    for item in best.item_ids[:6]:
        found = retriever.explain(7, item)
        assert {part.side for part in found.ranking} == {"ranking"}
        shares = [part.contribution for part in found.ranking]
        assert shares == sorted(shares, reverse=True)
        sums.append(sum(shares))
        rows = found.to_polars()
        assert (rows["side"] == "ranking").sum() == len(found.ranking)
    assert sums == sorted(sums, reverse=True)  # in the order of the answer
    assert len(set(sums)) > 1
    last = retriever.recommend(7, k=DEPTH + 5, rerank=False).item_ids[-1]
    assert retriever.explain(7, last).ranking == ()
    assert retriever.explain(None, best.item_ids[0], features={}).ranking == ()
