"""Two runs of one split side by side; another split is refused, whatever differs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import BundleError, DataError
from twotower.evaluation.compare import Comparison, compare_runs, order_of_same_test
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.evaluation.ranking import evaluate
from twotower.evaluation.scorers import ModelScorer
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.trained import Trained

QUICK: dict[str, dict[str, Any]] = {
    "towers": {"dim": 4},
    "training": {"epochs": 1, "batch_size": 128, "solver": "gradient", "start": "random"},
}


def trained(tables: SyntheticTables, **changes: Any) -> Retriever:
    given: dict[str, Any] = {"items": tables.items, "queries": tables.queries, "config": QUICK}
    return train(**({"interactions": tables.interactions} | given | changes)).retriever


def as_texts(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.col("^(query|item)_id$").cast(pl.String))


def bought(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["query_id", "item_id", "time"], orient="row")


def events(num_queries: int = 6) -> list[tuple[int, int, int]]:
    """Each of the queries takes five of eight items, one after the other."""
    return [
        (query, 10 + (query + step) % 8, 1_000_000 + step)
        for query in range(num_queries)
        for step in range(5)
    ]


def run_of(rows: list[tuple[int, int, int]], **changes: Any) -> Retriever:
    settings: dict[str, Any] = {"config": QUICK, "items": pl.DataFrame({"item_id": range(10, 18)})}
    return train(bought(rows), **(settings | changes)).retriever


@pytest.fixture(scope="module")
def narrow(tiny_world: SyntheticTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another training on the tiny world, its ids as texts, which have other rows: 10 before 9."""
    out = tmp_path_factory.mktemp("narrow") / "narrow"
    train(
        as_texts(tiny_world.interactions),
        items=as_texts(tiny_world.items),
        queries=as_texts(tiny_world.queries),
        config={
            **QUICK,
            "towers": {"dim": 4, "history": "pooled", "query_id": "off", "question_time": "off"},
        },
        out=out,
    )
    return out


@pytest.fixture(scope="module")
def found(tiny_bundle: Path, narrow: Path) -> Comparison:
    return compare_runs([tiny_bundle, narrow])


class TestFigures:
    def test_means_are_those_of_each_run_by_itself(
        self, found: Comparison, tiny_bundle: Path, narrow: Path
    ) -> None:
        assert found.runs == ("model", "narrow")
        for name, path in (("model", tiny_bundle), ("narrow", narrow)):
            metrics = Retriever.open(path).contents.metrics["model"]
            for metric in ("ndcg@10", "hit_rate@10", "recall@100"):
                assert found.intervals[name][metric].value == pytest.approx(metrics[metric])

    def test_differences_are_paired_by_query_id(
        self, found: Comparison, tiny_bundle: Path, narrow: Path
    ) -> None:
        values: list[dict[str, float]] = []
        for path in (tiny_bundle, narrow):
            retriever = Retriever.open(path)
            data = dataset_of(retriever)
            cases = data.cases(Part.TEST)
            scorer = ModelScorer(
                retriever.encoding, retriever.query_features, retriever.contents.popularity
            )
            one = evaluate(scorer, cases, (10,), num_item_rows=data.items.ids.num_rows)
            ids = data.queries.ids.ids_of(cases.query_rows).cast(pl.String).to_list()
            values.append(dict(zip(ids, one.values["ndcg@10"].tolist(), strict=True)))
        first, later = values
        gaps = np.array([later[query] - first[query] for query in first])
        gap = found.differences["narrow"]["ndcg@10"]
        assert gap.value == pytest.approx(gaps.mean())
        # A paired interval is about as wide as the differences of one query tell.
        assert gap.high - gap.low == pytest.approx(
            2 * 1.96 * gaps.std() / len(gaps) ** 0.5, rel=0.1
        )

    def test_the_verdict_names_both(self, found: Comparison) -> None:
        gap = found.differences["narrow"]["ndcg@10"]
        assert gap.high < 0  # four dimensions and one epoch against sixteen and two
        assert found.verdicts["narrow"] == (
            f"narrow loses to model by {-gap.value:.3f} NDCG@10 "
            f"(95 % interval {-gap.high:.3f} to {-gap.low:.3f})."
        )

    def test_a_run_against_itself_differs_by_nothing(self, tiny_bundle: Path) -> None:
        same = compare_runs([tiny_bundle, tiny_bundle])
        assert same.runs == ("model", "model (2)")
        later = "model (2)"
        assert same.differences[later]["ndcg@10"].value == 0
        assert same.verdicts[later].startswith("model (2) cannot be told apart from model: ")
        assert not same.settings
        assert not same.won[later]
        assert not same.lost[later]

    def test_the_slices_are_the_same_from_either_side(
        self, tiny_trained: Trained, narrow: Path
    ) -> None:
        """The slices of a later run are read off its own ranking, in the first run's rows."""
        ours = compare_runs([narrow, tiny_trained.retriever], names=["a", "b"])
        theirs = compare_runs([tiny_trained.retriever, narrow], names=["b", "a"])
        assert ours.num_slices == theirs.num_slices
        assert {s.name for s in ours.won["b"]} == {s.name for s in theirs.lost["a"]}
        assert ours.won["b"]
        for mine in ours.won["b"]:
            (other,) = [s for s in theirs.lost["a"] if (s.by, s.label) == (mine.by, mine.label)]
            assert mine.differences["a"].value == pytest.approx(-other.differences["b"].value)
            assert mine.intervals["b"].value == pytest.approx(other.intervals["b"].value)


class TestSettings:
    def test_what_differs_with_its_default(self, found: Comparison) -> None:
        settings = {setting.name: setting for setting in found.settings}
        assert settings["towers.dim"].values == {"model": 16, "narrow": 4}
        assert settings["towers.dim"].default is None
        assert settings["training.epochs"].values == {"model": 2, "narrow": 1}
        assert "towers.history" not in settings
        assert "query_tower" not in settings
        assert "training events" not in settings

    def test_a_column_that_only_one_run_read(self) -> None:
        items = pl.DataFrame({"item_id": range(10, 18), "kind": list("aabbaabb")})
        both = compare_runs([run_of(events(), items=items), run_of(events())], names=["a", "b"])
        (setting,) = [s for s in both.settings if s.name.startswith("features.item.kind")]
        assert setting.values == {"a": "categorical", "b": None}
        assert setting.default is None

    def test_more_to_learn_from_is_told(self) -> None:
        more = [*events(), *((50, 10 + step, 1_000_000 + step) for step in range(5))]
        given = {"train": bought([e for e in events() if e[2] < 1_000_004])}
        test = bought([e for e in events() if e[2] == 1_000_004])
        items = pl.DataFrame({"item_id": range(10, 18)})
        few = train({**given, "test": test}, items=items, config=QUICK).retriever
        given = {"train": bought([e for e in more if e[2] < 1_000_004 or e[0] == 50])}
        many = train({**given, "test": test}, items=items, config=QUICK).retriever
        both = compare_runs([few, many], names=["few", "many"])
        (setting,) = [s for s in both.settings if s.name == "training events"]
        assert setting.values["many"] > setting.values["few"]


class TestAsJson:
    def test_is_plain_and_complete(self, found: Comparison) -> None:
        read = json.loads(json.dumps(found.as_json()))
        assert read["runs"] == ["model", "narrow"]
        gap = found.differences["narrow"]["ndcg@10"]
        assert read["differences"]["narrow"]["ndcg@10"] == [gap.value, gap.low, gap.high]
        assert read["intervals"].keys() == {"model", "narrow"}
        dim = next(setting for setting in read["settings"] if setting["name"] == "towers.dim")
        assert dim == {"name": "towers.dim", "default": None, "values": {"model": 16, "narrow": 4}}
        slices = read["slices"]["narrow"]
        assert len(slices["won"]) + len(slices["lost"]) <= slices["looked_at"]
        assert {"by", "label", "queries", "differences"} <= slices["lost"][0].keys()
        assert read["protocol"]["queries"] == 300
        assert read["protocol"]["catalogue"] == 200
        assert read["protocol"]["seen_removed"] is True


class TestNames:
    def test_folders_of_one_name_are_told_by_their_paths(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        link = tmp_path / "model"
        link.symlink_to(tiny_bundle)
        assert compare_runs([tiny_bundle, link]).runs == (str(tiny_bundle), str(link))

    @pytest.mark.parametrize("names", [["a"], ["a", "a"]])
    def test_other_than_one_distinct_name_a_bundle(
        self, names: list[str], tiny_retriever: Retriever
    ) -> None:
        with pytest.raises(ValueError, match=r"names must be 2 distinct ones.* got \['a'"):
            compare_runs([tiny_retriever, tiny_retriever], names=names)


class TestRefused:
    def refusal(self, a: Retriever, b: Retriever) -> str:
        with pytest.raises(DataError) as caught:
            compare_runs([a, b], names=["a", "b"])
        return str(caught.value)

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls) -> Retriever:
        return run_of(events())

    def test_one_bundle(self, tiny_bundle: Path) -> None:
        with pytest.raises(ValueError, match="bundles must be at least two, got 1"):
            compare_runs([tiny_bundle])

    def test_another_catalogue(self, base: Retriever) -> None:
        items = pl.DataFrame({"item_id": [*range(10, 18), 97, 98, 99, 100]})
        message = self.refusal(base, run_of(events(), items=items))
        assert "same catalogue" in message
        assert "4 only in 'b' (97, 98, 99, ...)" in message
        assert "only in 'a'" not in message

    def test_other_test_queries(self, base: Retriever) -> None:
        message = self.refusal(base, run_of(events(5)))
        assert "same split" in message
        assert "differ in the test queries: 1 only in 'a' (5);" in message

    def test_other_targets(self, base: Retriever) -> None:
        swapped = [(q, i, 2_000_000 - t if q == 3 else t) for q, i, t in events()]
        message = self.refusal(base, run_of(swapped))
        assert "differ in the test items of 1 of 6 test queries (3);" in message

    def test_other_histories(self, base: Retriever) -> None:
        rows = events()
        rows[1] = (0, 17, 1_000_001)  # query 0 had item 11 there
        message = self.refusal(base, run_of(rows))
        assert "differ in the histories of 1 of 6 test queries (0);" in message

    def test_seen_items_removed_in_one(self, base: Retriever) -> None:
        other = run_of(events(), config=QUICK | {"data": {"repeats": "yes"}})
        message = self.refusal(base, other)
        assert "got 'b', which may answer with them, and 'a', which may not" in message
        assert "data.repeats" in message

    def test_a_bundle_without_histories(self, base: Retriever) -> None:
        with pytest.raises(BundleError, match="must hold histories"):
            compare_runs([base, run_of(events(), histories=False)])


def test_cases_are_matched_by_id() -> None:
    """Queries 7 to 12 have rows in the order 10, 11, 12, 7, 8, 9 as texts."""
    rows = [(query + 7, item - 3, time) for query, item, time in events()]
    numbers = run_of(rows, items=pl.DataFrame({"item_id": range(7, 15)}))
    texts = train(
        as_texts(bought(rows)),
        items=as_texts(pl.DataFrame({"item_id": range(7, 15)})),
        config=QUICK,
    ).retriever
    order = order_of_same_test(dataset_of(numbers), dataset_of(texts), names=("a", "b"))
    assert order.tolist() == [3, 4, 5, 0, 1, 2]
