"""Training, evaluation and serving say the same: features bit for bit, rankings, figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from servers import running
from twotower.data.dataset import Part
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.splits import split
from twotower.evaluation.evaluate_bundle import dataset_of, evaluate_bundle
from twotower.evaluation.ranking import rank
from twotower.evaluation.scorers import ModelScorer
from twotower.features.base import FeatureArrays
from twotower.features.schema import infer_features
from twotower.features.transforms import SideTransforms
from twotower.index.base import Found
from twotower.serving.client import Client
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.trained import Trained

TOLERANCE = 1e-5
QUICK: dict[str, dict[str, Any]] = {
    "towers": {"dim": 8},
    "training": {"epochs": 1, "batch_size": 64},
}


def rankings(trained: Trained, opened: Retriever | Client, k: int) -> tuple[list[Any], Found]:
    """Return the opened bundle's answers, and the ranking that the evaluation of training saw."""
    in_memory = trained.retriever
    dataset = dataset_of(in_memory)
    cases = dataset.cases(Part.TEST)
    scorer = ModelScorer(
        in_memory.encoding, in_memory.query_features, in_memory.contents.popularity
    )
    found = rank(
        scorer,
        cases,
        k,
        num_item_rows=dataset.items.ids.num_rows,
        remove_seen=not dataset.repeats,
    )
    queries = dataset.queries.ids.ids_of(cases.query_rows).to_list()
    at = cases.times.tolist() if dataset.ordered and cases.times is not None else None
    return list(opened.recommend(queries, k=k, at=at)), found


def check_same(answers: list[Any], found: Found, ids_of: Callable[[Any], pl.Series]) -> None:
    """Check that both name the same items, save swaps of scores within the tolerance."""
    assert len(answers) == len(found.item_rows)
    for answer, rows, scores in zip(answers, found.item_rows, found.scores, strict=True):
        real = rows > 0
        expected = ids_of(rows[real]).to_list()
        assert len(answer.item_ids) == len(expected)
        assert answer.scores == pytest.approx(scores[real], abs=TOLERANCE)
        score_of = dict(zip(expected, scores[real].tolist(), strict=True))
        last = scores[real][-1]
        for place, (mine, theirs) in enumerate(zip(answer.item_ids, expected, strict=True)):
            if mine != theirs:  # only among equals, or at the end among those just cut off
                there = score_of.get(mine, last)
                assert abs(there - scores[place]) <= TOLERANCE


class TestTinyWorld:
    def test_top_100_of_every_test_query(
        self, tiny_trained: Trained, tiny_retriever: Retriever
    ) -> None:
        answers, found = rankings(tiny_trained, tiny_retriever, 100)
        assert len(answers) == 300
        assert all(len(answer) == 100 for answer in answers)
        check_same(answers, found, tiny_retriever.contents.items.ids.ids_of)

    def test_one_query_at_a_time(self, tiny_trained: Trained, tiny_retriever: Retriever) -> None:
        _, found = rankings(tiny_trained, tiny_retriever, 100)
        for query in range(1, 301, 23):
            line = slice(query - 1, query)
            check_same(
                [tiny_retriever.recommend(query, k=100)],
                Found(found.item_rows[line], found.scores[line]),
                tiny_retriever.contents.items.ids.ids_of,
            )

    def test_over_http(
        self, tiny_trained: Trained, tiny_bundle: Path, tiny_retriever: Retriever
    ) -> None:
        ids_of = tiny_retriever.contents.items.ids.ids_of
        with running(tiny_bundle, max_k=150, batch=16) as address, Client(address) as client:
            answers, found = rankings(tiny_trained, client, 150)
            assert len(answers) == 300
            check_same(answers, found, ids_of)
            for query in range(1, 301, 23):
                line = slice(query - 1, query)
                alone = client.recommend(query, k=150)
                check_same([alone], Found(found.item_rows[line], found.scores[line]), ids_of)

    def test_figures_are_exactly_those_of_training(
        self, tiny_trained: Trained, tiny_retriever: Retriever
    ) -> None:
        assert (
            evaluate_bundle(tiny_retriever)
            == tiny_trained.figures
            == tiny_retriever.contents.metrics
        )

    def test_item_vectors_are_what_the_model_computes(self, tiny_retriever: Retriever) -> None:
        computed = tiny_retriever.encoding.item_vectors()
        assert torch.equal(computed[2:], tiny_retriever.contents.item_vectors)
        assert not computed[:2].any()

    def test_both_sides_features_bit_for_bit(
        self, tiny_trained: Trained, tiny_retriever: Retriever, tiny_world: SyntheticTables
    ) -> None:
        prepared = prepare(
            tiny_world.interactions, items=tiny_world.items, queries=tiny_world.queries
        )
        check_features(tiny_trained, tiny_retriever, split(prepared.dataset))


def check_features(trained: Trained, opened: Retriever, dataset: Any) -> None:
    """Check the retriever's features of each row against those fitted anew, as training does."""
    events = dataset.part(Part.TRAIN)
    events = events.where(events.is_positive)
    sides: tuple[Any, ...] = (
        ("query", dataset.queries, events.query_rows),
        ("item", dataset.items, events.item_rows),
    )
    for side, table, rows in sides:
        contents = opened.contents.queries if side == "query" else opened.contents.items
        given = getattr(opened.contents.config.features, side)
        features = infer_features(table.frame, side, table.id_column, given)
        counts = np.bincount(rows, minlength=table.ids.num_rows)[2:]
        fitted = SideTransforms.fit(
            features, table.frame, counts, trained.contents.config.features.min_count
        )
        expected = fitted.apply_to_rows(table.frame)
        served = contents.transforms.apply_to_rows(contents.frame)
        check_equal(expected, served)
        if side == "query":
            check_equal(expected, opened.query_features)
        # One line at a time, as a caller gives it.
        for place in range(0, len(table.frame), 37):
            line = contents.transforms.apply(contents.frame[place])
            check_equal({k: v[place + 2 : place + 3] for k, v in expected.items()}, line)


def check_equal(a: FeatureArrays, b: FeatureArrays) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.fixture(scope="module")
def every_kind(small_world: SyntheticTables) -> SyntheticTables:
    """A world whose tables hold every kind of feature, with missing and awkward values."""
    rng = np.random.default_rng(6)

    def columns(n: int) -> list[pl.Series]:
        holes = rng.random(n) < 0.2
        skewed = np.exp(rng.normal(3, 2, n))
        skewed[holes] = np.nan
        days = pl.Series(rng.integers(0, 9_000, n)).cast(pl.Date)
        texts = [["a", "b", "类别", "🎬 x", None][i] for i in rng.integers(0, 5, n)]
        tags = [["a", "b|c", "c|d|e", "", None][i] for i in rng.integers(0, 5, n)]
        return [
            pl.Series("skewed", skewed),
            pl.Series("whole", rng.integers(-5, 10**6, n)),
            pl.Series("born", days.to_list(), dtype=pl.Date),
            pl.Series(
                "said",
                [None if h else d.strftime("%Y-%m-%d") for h, d in zip(holes, days, strict=True)],
            ),
            pl.Series("kind", texts),
            pl.Series("flag", [None if h else bool(i % 2) for i, h in enumerate(holes)]),
            pl.Series("tag list", [None if h else ["x", str(i % 3)] for i, h in enumerate(holes)]),
            pl.Series("tag text", tags),
            pl.Series("vector", [None if h else rng.normal(size=3).tolist() for h in holes]),
        ]

    return SyntheticTables(
        small_world.interactions,
        small_world.items.with_columns(columns(60)),
        small_world.queries.with_columns(columns(80)),
    )


class TestEveryKindOfFeature:
    @pytest.fixture(scope="class")
    @staticmethod
    def both(
        every_kind: SyntheticTables, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Trained, Retriever]:
        out = tmp_path_factory.mktemp("kinds") / "m"
        trained = train(
            every_kind.interactions,
            items=every_kind.items,
            queries=every_kind.queries,
            out=out,
            config={**QUICK, "towers": {"dim": 8, "query_hidden": [8], "item_hidden": [8]}},
        )
        return trained, Retriever.open(out)

    def test_all_kinds_are_fed(self, both: tuple[Trained, Retriever]) -> None:
        kinds = {f.kind for f in both[1].contents.items.transforms.features}
        assert kinds == {"id", "text", "categorical", "number", "tags", "time", "vector"}

    def test_features_bit_for_bit(
        self, both: tuple[Trained, Retriever], every_kind: SyntheticTables
    ) -> None:
        prepared = prepare(
            every_kind.interactions, items=every_kind.items, queries=every_kind.queries
        )
        check_features(*both, split(prepared.dataset))

    def test_rankings_and_figures(self, both: tuple[Trained, Retriever]) -> None:
        trained, opened = both
        answers, found = rankings(trained, opened, 40)
        check_same(answers, found, opened.contents.items.ids.ids_of)
        assert evaluate_bundle(opened) == trained.figures

    def test_lines_as_python_values_give_the_same_features(
        self, both: tuple[Trained, Retriever], every_kind: SyntheticTables
    ) -> None:
        """What a caller types in a dictionary is read as the table's cell was."""
        opened = both[1]
        vectors = opened.encode_queries(every_kind.queries["query_id"].to_list())
        for place in range(0, 80, 9):
            line = every_kind.queries.row(place, named=True)
            query = line.pop("query_id")
            own = every_kind.interactions.filter(query_id=query).sort("timestamp")
            events = [
                {"item_id": item, "time": time}
                for item, time in own.select("item_id", "timestamp").head(-1).iter_rows()
            ]
            told = opened.encode_queries(features=line, history=events)
            assert np.allclose(told[0], vectors[place], atol=1e-5), line


class TestOtherSettings:
    @pytest.mark.parametrize(
        "settings",
        [
            {"towers": {"dim": 8, "similarity": "cosine"}},
            {"towers": {"dim": 8, "history": "none"}},
            {"towers": {"dim": 8, "history": "recency", "query_id": "on"}},
            {"towers": {"dim": 8, "question_time": "on"}},
            {"loss": {"negatives": "mixed", "num_negatives": 16}},
            {"loss": {"kind": "bce"}},
            {"split": {"kind": "random"}},
            {"split": {"kind": "temporal"}},
            {"data": {"repeats": "yes"}},
        ],
        ids=str,
    )
    def test_rankings_and_figures(
        self, small_world: SyntheticTables, tmp_path: Path, settings: dict[str, dict[str, Any]]
    ) -> None:
        # The baselines know neither towers nor losses.
        baselines: Any = "auto" if settings.keys() & {"split", "data"} else []
        trained = train(
            small_world.interactions,
            items=small_world.items,
            queries=small_world.queries,
            out=tmp_path / "m",
            config={**QUICK, **settings},
            baselines=baselines,
        )
        opened = Retriever.open(tmp_path / "m")
        answers, found = rankings(trained, opened, 30)
        check_same(answers, found, opened.contents.items.ids.ids_of)
        assert evaluate_bundle(opened, baselines=baselines) == trained.figures

    def test_ids_alone(self, small_world: SyntheticTables, tmp_path: Path) -> None:
        trained = train(small_world.interactions, out=tmp_path / "m", config=QUICK)
        opened = Retriever.open(tmp_path / "m")
        answers, found = rankings(trained, opened, 30)
        check_same(answers, found, opened.contents.items.ids.ids_of)
        assert evaluate_bundle(opened) == trained.figures
