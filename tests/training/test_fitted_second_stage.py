"""When there is a second stage: what it needs is looked at before the training, and too little is said."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers import Said, trainer_of
from twotower.baselines.validation import thinned
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import MissingExtraError
from twotower.training import second_stage
from twotower.training.pipeline import train
from twotower.training.second_stage import with_second_stage

QUICK: dict[str, dict[str, Any]] = {
    "training": {"epochs": 1, "batch_size": 64, "solver": "gradient"},
    "towers": {"dim": 8},
}


def using(use: str, **more: Any) -> dict[str, dict[str, Any]]:
    return {**QUICK, "rerank": {"use": use, **more}}


def test_without_lightgbm_one_that_is_wanted_is_refused_before_the_training(
    small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    says = (
        r"rerank.use = 'on' needs the library 'lightgbm'; install it with pip install .*\[rank\]'"
    )
    said = Said()
    with pytest.raises(MissingExtraError, match=says):
        train(
            small_world.interactions,
            config=using("on"),
            baselines=[],
            out=tmp_path / "model",
            loggers=[said],
        )
    assert not said.said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("installed", [True, False])
def test_auto_does_without_and_says_why(
    small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    said = Said()
    if not installed:
        monkeypatch.setitem(sys.modules, "lightgbm", None)
    found = train(small_world.interactions, config=using("auto"), baselines=[], loggers=[said])
    assert found.contents.ranker is None
    assert {"ranked", "ranked_left_out", "second_stage"}.isdisjoint(found.figures)
    (why,) = (each for each in said.said if each.startswith("rerank.use = 'off': "))
    if installed:
        assert "from 100 validation queries with a relevant candidate, got " in why
    else:
        assert "a second stage needs the library 'lightgbm'; install it with pip install" in why


@pytest.mark.parametrize("use", ["auto", "on"])
def test_without_any_validation_query(small_world: SyntheticTables, use: str) -> None:
    trainer = trainer_of(small_world)
    parts = np.where(trainer.dataset.parts == Part.VALID, Part.TRAIN, trainer.dataset.parts)
    dataset = replace(trainer.dataset, parts=parts.astype(np.uint8))
    assert not len(dataset.cases(Part.VALID))
    arguments = (trainer.scorer(), dataset, trainer.sides, Config.of(using(use)))
    found, (why,) = with_second_stage(*arguments)
    assert found is None
    assert "from 100 validation queries with a relevant candidate, got 0" in why


@pytest.mark.parametrize("candidates", [2, 7, 500])
def test_any_number_of_candidates(
    small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    """Fewer than an answer has, and more than there are items."""
    monkeypatch.setattr(second_stage, "LEAST_CASES", 1)
    monkeypatch.setitem(second_stage.PARAMETERS, "min_data_in_leaf", 5)
    found = train(
        small_world.interactions,
        items=small_world.items,
        config=using("on", candidates=candidates),
        baselines=[],
    )
    ranker = found.contents.ranker
    assert ranker is not None
    assert ranker.depth == candidates
    assert ranker.figures["queries"] == 80
    answers = found.retriever.recommend([3, 4], k=12)
    first = found.retriever.recommend([3, 4], k=12, rerank=False)
    for one, other in zip(answers, first, strict=True):
        assert len(one) == 12
        if candidates < 12:
            assert set(one.item_ids[:candidates]) == set(other.item_ids[:candidates])
            assert one.item_ids[candidates:] == other.item_ids[candidates:]


@pytest.mark.parametrize(("candidates", "cells"), [(7, None), (7, 700), (20, 20 * 40)])
def test_large_tables_are_read_in_parts_and_thinned(
    small_world: SyntheticTables,
    monkeypatch: pytest.MonkeyPatch,
    candidates: int,
    cells: int | None,
) -> None:
    """However many items there are to score, and however many candidates a query has."""
    monkeypatch.setattr(second_stage, "LEAST_CASES", 1)
    monkeypatch.setattr(second_stage, "_MOST_CANDIDATES", 400)
    if cells is not None:
        monkeypatch.setattr(second_stage, "_CELLS", cells)
    trainer = trainer_of(small_world)
    scorer, asked = trainer.scorer(), list[int]()
    score = type(scorer).score

    def counted(self: Any, cases: Any) -> Any:
        asked.append(len(cases))
        return score(self, cases)

    monkeypatch.setattr(type(scorer), "score", counted)
    config = Config.of(using("on", candidates=candidates))
    found, _ = with_second_stage(scorer, trainer.dataset, trainer.sides, config)
    assert found is not None
    assert found.ranker.figures["queries"] == sum(asked)
    assert sum(asked) == len(thinned(trainer.dataset.cases(Part.VALID), 400 // candidates))
    if cells is not None:
        most = max(trainer.dataset.items.ids.num_rows, 40 * candidates)
        assert max(asked) <= max(1, cells // most)


def test_the_choice_counts_queries_by_their_weights(
    small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures, their interval, and the number of trees."""
    monkeypatch.setattr(second_stage, "LEAST_CASES", 1)
    monkeypatch.setitem(second_stage.PARAMETERS, "min_data_in_leaf", 5)
    trainer = trainer_of(small_world, {"training": {"start": "random"}})
    dataset = trainer.dataset
    cases = dataset.cases(Part.VALID)
    num = len(cases)
    config, rounds = Config.of(using("auto", candidates=20)), second_stage.ROUNDS

    def figures(weights: Any, tried: tuple[int, ...] = rounds) -> Any:
        monkeypatch.setattr(second_stage, "ROUNDS", tried)
        monkeypatch.setattr(type(dataset), "cases", lambda *_: replace(cases, weights=weights))
        found, (said,) = with_second_stage(trainer.scorer(), dataset, trainer.sides, config)
        assert found is not None
        without, with_it = found.ranker.figures["valid"]
        assert f"{without:.4f} without and {with_it:.4f} with it" in said
        gap = found.ranker.figures["difference"]
        assert gap[0] == pytest.approx(with_it - without)
        assert found.ranker.figures["kept"] == (gap[1] > 0)
        return found.ranker.figures

    alike = figures(None)
    same = figures(np.full(num, 0.3))
    for name in ("valid", "difference", "trees"):
        assert same[name] == pytest.approx(alike[name])
    assert figures(np.zeros(num)) == alike
    few = (np.arange(num) % 9 == 0).astype(np.float64)
    halves = [figures(weights)["valid"][0] for weights in (few, 1 - few)]
    assert halves[0] != pytest.approx(halves[1])
    assert alike["valid"][0] == pytest.approx(
        np.average(halves, weights=[few.sum(), num - few.sum()])
    )
    of_few = {tried: figures(few, (tried,))["valid"][1] for tried in rounds}
    chosen = figures(few)
    assert chosen["trees"] == max(rounds, key=of_few.__getitem__) != alike["trees"]
    assert chosen["valid"][1] == max(of_few.values())
    assert np.diff(chosen["difference"][1:]) > np.diff(
        alike["difference"][1:]
    )  # of nine times fewer
