"""Which baselines there are, why one is left out, and what each says of its settings."""

import json
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from twotower.baselines import ease, spectral
from twotower.baselines.ease import choose_ease
from twotower.baselines.popularity import Popularity
from twotower.baselines.specs import (
    BASELINES,
    PopularWhenCold,
    check_baselines,
    fit_baselines,
)
from twotower.chinese import in_chinese
from twotower.config import DataConfig, SplitConfig
from twotower.data.dataset import Cases, Dataset, Part
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.splits import split
from twotower.errors import ConfigError, MissingExtraError
from twotower.extras import install
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW

KEYS = ["popularity", "recent_popularity", "item_knn", "ease", "spectral", "als", "bm25", "random"]


@pytest.fixture(scope="module")
def dataset(small_world: SyntheticTables) -> Dataset:
    tables = small_world
    prepared = prepare(tables.interactions, items=tables.items, queries=tables.queries)
    return split(prepared.dataset)


def test_auto_takes_what_fits_in_order_and_says_why_not(dataset: Dataset) -> None:
    found = fit_baselines(dataset)
    assert list(BASELINES) == KEYS
    assert list(found.scorers) == list(found.settings) == [key for key in KEYS if key != "bm25"]
    assert found.left_out == {
        "bm25": "bm25 must have text on both sides, got no column of text for a query."
    }
    assert json.loads(json.dumps(found.settings)) == found.settings
    for key in ("recent_popularity", "item_knn", "ease", "spectral", "als"):
        assert found.settings[key]["chosen_on"] == "valid"
    assert set(found.settings["ease"]) == {
        "regularization",
        "half_life",
        "pair_half_life",
        "chosen_on",
    }


def test_settings_are_those_of_the_scorer(dataset: Dataset) -> None:
    found = fit_baselines(dataset, ("ease", "random"), seed=3)
    assert list(found.scorers) == ["ease", "random"]
    assert found.settings["ease"]["regularization"] == choose_ease(dataset).regularization
    assert found.settings["random"] == {"seed": 3}
    assert found.left_out == {}


def test_without_times_or_order(small_world: SyntheticTables) -> None:
    frame = small_world.interactions.drop("timestamp")
    found = fit_baselines(split(prepare(frame, config=DataConfig(order="none")).dataset))
    assert "recent_popularity must have times" in found.left_out["recent_popularity"]
    assert found.settings["item_knn"]["half_life"] is None
    with pytest.raises(ConfigError, match="recent_popularity must have times of events, got none"):
        fit_baselines(
            split(prepare(frame, config=DataConfig(order="none")).dataset), ["recent_popularity"]
        )


def test_what_reads_histories_is_left_out_where_all_queries_are_new(
    small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(small_world.interactions).dataset
    new = split(prepared, SplitConfig(kind="cold-queries"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("what cannot answer is not fitted")

    with monkeypatch.context() as patch:
        for key in BASELINES.where(lambda each: each.reads_histories):
            patch.setattr(f"twotower.baselines.{key}.choose_{key}", never)
        found = fit_baselines(new)
    assert list(found.scorers) == ["popularity", "recent_popularity", "random"]
    assert found.left_out["ease"] == (
        "ease must have histories to go by, got none: all 16 queries are new."
    )
    assert in_chinese(found.left_out["ease"]) == "ease 需要历史，但全部 16 个查询都是新的。"
    for key in BASELINES.where(lambda each: each.reads_histories):
        for refuse in (fit_baselines, check_baselines):
            with pytest.raises(ConfigError, match=f"{key} must have histories to go by, got none"):
                refuse(new, [key])
    parts = new.parts.copy()
    parts[np.flatnonzero(parts == Part.TEST)[0]] = Part.TRAIN  # one query that is known is enough
    assert "item_knn" in fit_baselines(replace(new, parts=parts), ["item_knn"]).scorers


def test_named_baselines_are_checked_before_anything_is_fitted(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_baselines(dataset, "auto")
    check_baselines(dataset, ["ease", "spectral", "als", "item_knn", "recent_popularity"])
    with pytest.raises(ConfigError, match="bm25 must have text on both sides"):
        check_baselines(dataset, ["popularity", "bm25"])
    without = replace(dataset, interactions=replace(dataset.interactions, times=None))
    with pytest.raises(ConfigError, match="recent_popularity must have times of events, got none"):
        check_baselines(without, ["recent_popularity"])
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(MissingExtraError, match="als needs the library 'implicit'"):
        check_baselines(dataset, ["als"])
    monkeypatch.setattr(ease, "available_bytes", lambda: 100.0)
    with pytest.raises(ConfigError, match=r"EASE needs 0\.0 GB for"):
        check_baselines(dataset, ["ease"])


def test_without_validation_nothing_is_chosen(dataset: Dataset) -> None:
    parts = np.where(dataset.parts == Part.VALID, Part.TRAIN, dataset.parts)
    found = fit_baselines(dataset.with_parts(parts, ""))
    assert found.settings["als"]["chosen_on"] is None
    assert found.settings["item_knn"]["neighbours"] == 200


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["item-knn"], r"got 'item-knn'; did you mean 'item_knn'\?"),
        (["popularity", "Ease"], r"got 'Ease'; did you mean 'ease'\?"),
        (["zzz"], r"got 'zzz'\.$"),
        ("ease", "must be 'auto' or a sequence of keys, got 'ease'"),
    ],
)
def test_an_unknown_key_is_told_the_nearest(
    dataset: Dataset, given: str | list[str], hint: str
) -> None:
    with pytest.raises(ConfigError, match=f"^baselines .*{hint}"):
        fit_baselines(dataset, given)


@pytest.mark.parametrize(("key", "module"), [("als", "implicit.cpu.als")])
def test_a_missing_library_names_its_extra(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, key: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    dataset = with_text(dataset)
    told = rf"{key} needs the library '{module.split('.')[0]}'.* pip install .*\[baselines\]'"
    with pytest.raises(MissingExtraError, match=told):
        fit_baselines(dataset, [key])
    left_out = fit_baselines(dataset).left_out
    assert list(left_out) == [key]
    assert install("baselines") in left_out[key]


def with_text(dataset: Dataset) -> Dataset:
    """Give every query and item a text of two words that tells one from the other."""

    def side(table: pl.DataFrame) -> pl.DataFrame:
        return table.with_columns(
            words=pl.Series([f"word w{n % 7} x{n}" for n in range(len(table))])
        )

    return replace(
        dataset,
        queries=replace(dataset.queries, frame=side(dataset.queries.frame)),
        items=replace(dataset.items, frame=side(dataset.items.frame)),
    )


def test_bm25_names_its_columns(dataset: Dataset) -> None:
    settings = fit_baselines(with_text(dataset), ["bm25"]).settings["bm25"]
    assert (settings["query_columns"], settings["item_columns"]) == (["words"], ["title", "words"])


def test_a_slow_inverse_is_for_those_who_ask(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ease, "_AUTO_ITEMS", 40)
    told = "EASE takes more than ten minutes for 55 items; name it to have it all the same."
    assert fit_baselines(dataset).left_out["ease"] == told
    assert list(fit_baselines(dataset, ["ease"]).scorers) == ["ease"]


@pytest.mark.parametrize(
    ("key", "name", "limit"),
    [
        ("item_knn", "ItemKNN", "item_knn._MOST_PAIRS"),
        ("item_knn", "ItemKNN", "item_knn._MOST_BYTES"),
        ("als", "ALS", "als._MOST_WORK"),
    ],
)
def test_what_needs_too_much_is_for_those_who_ask(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, key: str, name: str, limit: str
) -> None:
    keys = ["popularity", key]
    assert not fit_baselines(dataset).left_out.keys() & {key}
    monkeypatch.setattr(f"twotower.baselines.{limit}", 1_000.0)
    told = fit_baselines(dataset).left_out[key]
    assert told.startswith(f"{name} takes more than ten minutes ")
    assert told.endswith("; name it to have it all the same.")
    assert str(in_chinese(told)).endswith("仍想要它，请写出它的名字。")
    assert list(fit_baselines(dataset, keys).scorers) == keys


def test_a_slow_decomposition_is_for_those_who_ask(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectral, "_MOST_WORK", 1e5)
    told = fit_baselines(dataset).left_out["spectral"]
    count = len(dataset.part(Part.TRAIN))
    assert told == (
        f"spectral takes more than ten minutes for {count:,} events; name it to have it all the same."
    )
    assert in_chinese(told) == (
        f"对 {count:,} 个事件，谱分解需要十分钟以上；仍想要它，请写出它的名字。"
    )
    found = fit_baselines(dataset, ["spectral"])
    assert found.settings["spectral"]["width"] <= 64  # the narrowest


@pytest.mark.parametrize("key", ["als", "random"])
def test_the_seed_is_used(dataset: Dataset, key: str) -> None:
    cases = dataset.cases(Part.TEST)
    one, other = (
        fit_baselines(dataset, [key], seed=seed).scorers[key].score(cases) for seed in (0, 1)
    )
    assert not one.equal(other)


@pytest.mark.parametrize("key", ["item_knn", "ease", "spectral", "als"])
def test_a_query_of_which_nothing_is_known_is_answered_by_popularity(
    dataset: Dataset, key: str
) -> None:
    found = fit_baselines(dataset, ["popularity", key])
    cases = dataset.cases(Part.TEST).take(slice(0, 4))
    first = cases.histories.take(slice(0, 1)).item_rows
    nothing, unknown = np.zeros(0, np.int32), np.array([UNKNOWN_ROW], np.int32)
    cases = replace(cases, histories=Histories.of([first, nothing, first, unknown]))
    popular, got = (found.scorers[name].score(cases) for name in ("popularity", key))
    assert got[1].tolist() == got[3].tolist() == popular[1].tolist()
    assert got[0].tolist() == got[2].tolist() != popular[0].tolist()


def test_a_query_that_shares_no_word_with_any_item_is_answered_by_popularity(
    dataset: Dataset,
) -> None:
    dataset = with_text(dataset)
    cases = dataset.cases(Part.TEST).take(slice(0, 2))
    place = int(cases.query_rows[0]) - FIRST_ROW
    words = dataset.queries.frame["words"].to_list()
    words[place] = "nothing alike"
    frame = dataset.queries.frame.with_columns(words=pl.Series(words))
    dataset = replace(dataset, queries=replace(dataset.queries, frame=frame))
    found = fit_baselines(dataset, ["popularity", "bm25"])
    popular, got = (found.scorers[key].score(cases) for key in ("popularity", "bm25"))
    assert got[0].tolist() == popular[0].tolist()
    assert got[1].tolist() != popular[1].tolist()


def test_before_the_first_training_event_popularity_answers(dataset: Dataset) -> None:
    found = fit_baselines(dataset, ["popularity", "recent_popularity"])
    cases = dataset.cases(Part.TEST).take(slice(0, 2))
    cases = replace(cases, times=np.array([0.0, np.nan]))
    popular, got = (found.scorers[key].score(cases) for key in ("popularity", "recent_popularity"))
    assert got[0].tolist() == popular[0].tolist()
    assert got[1].tolist() != popular[1].tolist()


class Says:
    """Scores every case as it is told."""

    def __init__(self, *scores: float) -> None:
        self.scores = torch.tensor(scores)

    def score(self, cases: Cases) -> torch.Tensor:
        return self.scores.repeat(len(cases), 1)


@pytest.mark.parametrize(
    ("said", "is_cold"),
    [
        ((0.0, 0.0, 0.5, 0.5, 0.5), True),
        ((9.0, 8.0, 0.0, 0.0, 0.0), True),
        ((0.0, 0.0, 0.5, 0.5, 0.4), False),
    ],
)
def test_cold_is_where_all_items_score_the_same(
    dataset: Dataset, said: tuple[float, ...], is_cold: bool
) -> None:
    popularity = Popularity(np.array([0, 0, 3, 1, 2], np.float32))
    cases = dataset.cases(Part.TEST).take(slice(0, 2))
    got = PopularWhenCold(Says(*said), popularity).score(cases)
    assert got.equal(popularity.score(cases) if is_cold else Says(*said).score(cases))


@pytest.mark.parametrize(("last", "is_cold"), [(0.5, True), (0.4, False)])
def test_cold_is_seen_at_the_last_of_many_items(
    dataset: Dataset, last: float, is_cold: bool
) -> None:
    said = Says(*[0.5] * 2_000, last)
    popularity = Popularity(np.arange(2_001, dtype=np.float32))
    cases = dataset.cases(Part.TEST).take(slice(0, 2))
    got = PopularWhenCold(said, popularity).score(cases)
    assert got.equal(popularity.score(cases) if is_cold else said.score(cases))
