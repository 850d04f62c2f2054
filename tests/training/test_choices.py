"""What ``auto`` becomes, the sentence that says so, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.config import Config
from twotower.data.dataset import Dataset
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.errors import ConfigError
from twotower.training import choices, choices_of_examples
from twotower.training.choices import resolve

Settings = dict[str, dict[str, Any]]


def dataset_of(
    *, ordered: bool = True, labels: bool = False, events: int = 8, items: int = 20
) -> Dataset:
    rng = np.random.default_rng(0)
    queries = 40
    frame = pl.DataFrame(
        {
            "query_id": np.repeat(np.arange(queries), events),
            "item_id": np.concatenate([rng.permutation(20)[:events] for _ in range(queries)]),
            "timestamp": 1_500_000_000 + np.arange(queries * events),
        }
    )
    if labels:
        frame = frame.with_columns(label=pl.Series([1, 0] * (queries * events // 2)))
    frame = frame if ordered else frame.drop("timestamp")
    return split(prepare(frame, items=pl.DataFrame({"item_id": np.arange(items)})).dataset)


@pytest.fixture(scope="module")
def ordered() -> Dataset:
    return dataset_of()


def resolved(
    dataset: Dataset, settings: Settings | None = None, custom: tuple[str, ...] = ()
) -> tuple[Config, tuple[str, ...]]:
    return resolve(Config.from_dict(settings or {}), dataset, custom=custom)


class TestAuto:
    def test_nothing_is_left_of_it(self, ordered: Dataset) -> None:
        config, said = resolved(ordered)
        assert "auto" not in (
            config.towers.history,
            config.towers.query_id,
            config.towers.similarity,
            config.training.examples,
            config.loss.kind,
            config.loss.negatives,
        )
        assert config.training.batch_size is not None
        assert config.training.weight_decay == 0.1
        assert config.training.precision in ("float32", "bfloat16")
        said = tuple(s for s in said if "precision" not in s)  # it depends on the machine
        names = [sentence.split(" = ")[0] for sentence in said]
        assert names == [
            "towers.history",
            "towers.query_id",
            "towers.question_time",
            "loss.kind",
            "loss.negatives",
            "training.batch_size",
        ]
        assert all(": " in sentence for sentence in said)

    def test_is_settled_after_once(self, ordered: Dataset) -> None:
        config, _ = resolved(ordered)
        assert resolve(config, ordered) == (config, ())

    def test_what_is_set_stays(self, ordered: Dataset) -> None:
        settings: Settings = {
            "towers": {
                "dim": 64,
                "spectral_dim": 0,
                "history": "mean",
                "question_time": "off",
                "popularity": "off",
                "query_id": "on",
                "similarity": "cosine",
                "query_hidden": [8],
                "history_items": "ids",
                "history_length": 9,
            },
            "loss": {"kind": "bce", "negatives": "mixed", "num_negatives": 9},
            "training": {
                "next_events": 1,
                "gap_days": 0.0,
                "solver": "gradient",
                "start": "random",
                "batch_size": 7,
                "learning_rate": 0.004,
                "table_optimizer": "adagrad",
                "table_learning_rate": 0.1,
                "precision": "float32",
                "examples": "pairs",
                "weight_decay": 0.3,
            },
        }
        config, said = resolved(ordered, settings)
        assert config == Config.from_dict(settings)
        assert not said

    @pytest.mark.parametrize(("is_ordered", "history"), [(True, "pooled"), (False, "bag")])
    def test_history(self, is_ordered: bool, history: str) -> None:
        config, said = resolved(dataset_of(ordered=is_ordered))
        assert config.towers.history == history
        assert config.training.weight_decay == 0.1  # whatever the order, where there is one view
        assert any("have an order" if is_ordered else "have no order" in s for s in said)

    @pytest.mark.parametrize(("history", "query_id"), [("mean", "off"), ("none", "on")])
    def test_an_id_of_its_own_where_there_is_no_history(
        self, ordered: Dataset, history: str, query_id: str
    ) -> None:
        assert resolved(ordered, {"towers": {"history": history}})[0].towers.query_id == query_id

    def test_directions_where_no_id_is_read(self, ordered: Dataset) -> None:
        towers = {"query_id": "off", "item_id": "off", "history": "none"}
        config, said = resolved(ordered, {"towers": towers})
        assert config.towers.similarity == "cosine"
        assert "towers.similarity = 'cosine': both sides are read by their features alone" in said
        for name, other in (("query_id", "on"), ("item_id", "on"), ("history", "mean")):
            found, _ = resolved(ordered, {"towers": towers | {name: other}})
            assert found.towers.similarity == "dot"

    @pytest.mark.parametrize(
        ("limit", "settings", "similarity"),
        [
            (40, {}, "cosine"),
            (41, {}, "dot"),
            (40, {"loss": {"kind": "bpr"}}, "dot"),
            (40, {"towers": {"temperature": 0.5}}, "dot"),
            (40, {"towers": {"similarity": "dot"}}, "dot"),
        ],
    )
    def test_directions_where_many_ask(
        self,
        ordered: Dataset,
        monkeypatch: pytest.MonkeyPatch,
        limit: int,
        settings: Settings,
        similarity: str,
    ) -> None:
        monkeypatch.setattr("twotower.training.choices.COSINE_FROM", limit)
        config, said = resolved(ordered, settings)
        assert config.towers.similarity == similarity
        sentence = "towers.similarity = 'cosine': 40 queries to learn from"
        assert (sentence in said) == (similarity == "cosine")
        assert resolved(ordered, settings, custom=("item",))[0].towers.similarity == "dot"

    @pytest.mark.parametrize(
        ("kind", "limit", "negatives"),
        [
            ("softmax", 20, "all"),
            ("softmax", 19, "mixed"),
            ("bce", 20, "uniform"),
            ("bce", 19, "uniform"),
        ],
    )
    def test_negatives_by_the_size_of_the_catalogue(
        self,
        ordered: Dataset,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
        limit: int,
        negatives: str,
    ) -> None:
        """Items that no training event names do not count: they are no candidates."""
        monkeypatch.setattr("twotower.training.choices_of_examples.ALL_ITEMS_UP_TO", limit)
        config, said = resolved(ordered, {"loss": {"kind": kind}})
        assert config.loss.negatives == negatives
        assert any(s.startswith(f"loss.negatives = {negatives!r}: ") for s in said)

    @pytest.mark.parametrize(("copies", "size"), [(1, 128), (1_000, 1024), (200, 256)])
    def test_batch_size_grows_with_the_events(
        self, ordered: Dataset, copies: int, size: int
    ) -> None:
        """A two-hundredth of the 240 training events a copy, as a power of 2, from 128 to 1,024."""
        events = ordered.interactions
        many = replace(
            events,
            query_rows=np.tile(events.query_rows, copies),
            item_rows=np.tile(events.item_rows, copies),
            times=None,
            offsets=events.offsets * copies,
        )
        dataset = replace(ordered, interactions=many, parts=np.tile(ordered.parts, copies))
        config, _ = resolved(dataset)
        assert config.training.batch_size == size

    def test_whole_histories_are_not_each_others_negatives(
        self, ordered: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("twotower.training.choices_of_examples.ALL_ITEMS_UP_TO", 3)
        for history, negatives in (("transformer", "popularity"), ("pooled", "mixed")):
            config, _ = resolved(ordered, {"towers": {"history": history}})
            assert config.loss.negatives == negatives
        stream = {"towers": {"history": "gru"}, "loss": {"frequencies": "stream"}}
        assert resolved(ordered, stream)[0].loss.negatives == "mixed"

    @pytest.mark.parametrize(("length", "size"), [(50, 1024), (2, 256)])
    def test_batch_size_of_whole_histories_is_that_of_128(
        self, ordered: Dataset, length: int, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each of 40 queries has 6 training events, of which a window reads ``length`` at most."""
        monkeypatch.setattr(
            "twotower.training.choices_of_examples.STEPS", 0.1
        )  # as if there were many events
        towers = {"history": "transformer", "history_length": length}
        config, said = resolved(ordered, {"towers": towers})
        assert config.training.batch_size == size
        assert any("about 128 histories of" in sentence for sentence in said)

    @pytest.mark.parametrize(("steps", "size"), [(100, 128), (1, 256), (0.5, 512)])
    def test_few_events_make_smaller_batches_of_whole_histories(
        self, ordered: Dataset, steps: float, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("twotower.training.choices_of_examples.STEPS", steps)
        config, said = resolved(ordered, {"towers": {"history": "transformer"}})
        assert config.training.batch_size == size
        assert any("240 training events are few" in sentence for sentence in said)

    def test_known_items_are_no_mask_where_items_come_again(self, ordered: Dataset) -> None:
        config, said = resolved(replace(ordered, repeats=True))
        assert not config.loss.mask_known
        assert "loss.mask_known = false: items may come again" in said
        assert resolved(ordered)[0].loss.mask_known


class TestOwnTowers:
    def test_a_query_tower_reads_features_only(self, ordered: Dataset) -> None:
        config, said = resolved(ordered, custom=("query",))
        assert (config.towers.history, config.towers.query_id) == ("none", "off")
        assert not any("towers" in s for s in said)

    def test_an_item_tower_leaves_the_query_side_as_it_is(self, ordered: Dataset) -> None:
        assert resolved(ordered, custom=("item",))[0].towers == resolved(ordered)[0].towers

    @pytest.mark.parametrize("history", ["mean", "recency", "pooled"])
    def test_a_history_beside_it_is_refused(self, ordered: Dataset, history: str) -> None:
        with pytest.raises(ConfigError, match=f"beside a query tower of your own, got '{history}'"):
            resolved(ordered, {"towers": {"history": history}}, custom=("query",))
        resolved(ordered, {"towers": {"history": "none"}}, custom=("query",))


class TestRefusals:
    def test_labels_that_are_not_there(self, ordered: Dataset) -> None:
        settings: Settings = {"loss": {"kind": "bce", "negatives": "labels"}}
        with pytest.raises(
            ConfigError, match="go with a column of 0/1 labels, got none; pass label_column="
        ):
            resolved(ordered, settings)
        config, _ = resolved(dataset_of(labels=True), settings)
        assert config.loss.negatives == "labels"

    @pytest.mark.parametrize(
        ("loss", "towers", "message"),
        [
            ({"negatives": "impressions"}, {}, "go with a column of what was shown, got none"),
            ({"kind": "bpr", "negatives": "labels"}, {}, "go with a column of 0/1 labels"),
            ({"kind": "gbce", "negatives": "all"}, {}, "must be 'uniform' or 'per-query' for gbce"),
            ({"kind": "gbce", "negatives": "labels"}, {}, "for gbce, .* got 'labels'"),
            ({"kind": "bpr", "negatives": "memory"}, {}, "must not be 'memory' for bpr"),
            ({"kind": "bpr", "label_smoothing": 0.1}, {}, "must be 0 for bpr, got 0.1"),
            (
                {"negatives": "popularity", "frequencies": "stream"},
                {},
                "must be 'counts' for popularity",
            ),
            ({}, {"history": "none", "examples": "prefixes"}, "where towers.history is 'none'"),
            ({"kind": "bce"}, {"examples": "prefixes"}, "where labels and impressions are read"),
            ({"negatives": "labels"}, {"examples": "prefixes"}, "where labels and impressions are"),
            ({}, {"temperature_end": 0.2}, "beside the towers.temperature .* got 0.2 alone"),
        ],
    )
    def test_what_does_not_go_together(
        self, ordered: Dataset, loss: Settings, towers: Settings, message: str
    ) -> None:
        training = {key: towers[key] for key in ("examples",) if key in towers}
        towers = {key: value for key, value in towers.items() if key not in training}
        with pytest.raises(ConfigError, match=message):
            resolved(ordered, {"loss": loss, "towers": towers, "training": training})

    def test_prefixes_of_events_without_an_order(self) -> None:
        with pytest.raises(ConfigError, match="where the events have no order; use 'pairs'"):
            resolved(dataset_of(ordered=False), {"training": {"examples": "prefixes"}})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"towers": {"history": "none"}}, "where towers.history is 'none'"),
            ({"loss": {"kind": "bpr"}}, "where loss.kind is 'bpr', which scores one item a query"),
            (
                {"loss": {"negatives": "mixed"}},
                "where loss.negatives is 'mixed': all items must be",
            ),
        ],
    )
    def test_sets_need_all_items_as_candidates(self, settings: Settings, message: str) -> None:
        sets = {"training": {"examples": "sets"}}
        with pytest.raises(ConfigError, match=f"{message}.*; use 'pairs'"):
            resolved(dataset_of(ordered=False), {**settings, **sets})
        config, _ = resolved(dataset_of(ordered=False), settings)
        assert config.training.examples == "pairs"

    def test_sets_of_events_in_an_order(self, ordered: Dataset) -> None:
        with pytest.raises(ConfigError, match="where the events have an order; use 'pairs'"):
            resolved(ordered, {"training": {"examples": "sets"}})

    def test_too_many_items_for_sets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choices_of_examples, "SETS_UP_TO", 3)
        config, _ = resolved(dataset_of(ordered=False), {})
        assert config.training.examples == "pairs"
        assert config.towers.history_items == "tower"
        assert config.towers.query_hidden == (256,)

    def test_next_events_need_a_history_in_order(self, ordered: Dataset) -> None:
        training = {"next_events": 3}
        with pytest.raises(ConfigError, match="must be 1 where there is no history, got 3"):
            resolved(ordered, {"towers": {"history": "none"}, "training": training})
        with pytest.raises(ConfigError, match="must be 1 where the events have no order, got 3"):
            resolved(dataset_of(ordered=False), {"training": training})

    @pytest.mark.parametrize(
        ("history", "examples"),
        [
            ("sasrec", "prefixes"),
            ("transformer", "prefixes"),
            ("gru", "prefixes"),
            ("pooled", "pairs"),
        ],
    )
    def test_examples_by_the_history(self, ordered: Dataset, history: str, examples: str) -> None:
        config, _ = resolved(ordered, {"towers": {"history": history}})
        assert config.training.examples == examples


class TestNumbers:
    @pytest.mark.parametrize(
        ("negatives", "num"), [("mixed", 1024), ("uniform", 1024), ("per-query", 128)]
    )
    def test_negatives_are_counted_a_batch_or_a_query(
        self, ordered: Dataset, negatives: str, num: int
    ) -> None:
        assert resolved(ordered, {"loss": {"negatives": negatives}})[0].loss.num_negatives == num

    def test_few_pairs_of_texts_get_smaller_steps(
        self, ordered: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kinds = {"query": {"query_id": "text"}, "item": {"item_id": "text"}}
        alone = {"history": "none", "query_id": "off", "item_id": "off"}
        of_texts: Settings = {"features": kinds, "towers": alone}
        config, said = resolved(ordered, of_texts)
        assert config.training.learning_rate == 0.0005
        assert any("training.learning_rate = 0.0005: 240 pairs" in each for each in said)
        monkeypatch.setattr(choices, "MANY_PAIRS", 240)
        assert resolved(ordered, of_texts)[0].training.learning_rate == 0.002
        for other in ({}, {"features": kinds}, {"towers": {**alone, "item_id": "on"}}):
            assert resolved(ordered, other)[0].training.learning_rate == 0.006
        stated: Settings = {**of_texts, "training": {"learning_rate": 0.01}}
        assert resolved(ordered, stated)[0].training.learning_rate == 0.01

    def test_long_texts_are_not_all_encoded_in_each_step(
        self, ordered: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(choices_of_examples, "ALL_TOKENS_UP_TO", 20 * 200)

        def negatives(text: str, kind: str) -> tuple[str, str]:
            frame = ordered.items.frame.with_columns(body=pl.lit(text))
            dataset = replace(ordered, items=replace(ordered.items, frame=frame))
            config, said = resolved(dataset, {"features": {"item": {"body": kind}}})
            return config.loss.negatives, next(s for s in said if s.startswith("loss.negatives"))

        assert negatives("five words of a title", "text")[0] == "all"
        assert negatives("a long text " * 200, "shown")[0] == "all"
        assert negatives("a long text " * 200, "sentence")[0] == "all"
        chosen, said = negatives("a long text " * 200, "text")
        assert chosen == "mixed"
        assert "20 items have 5,120 tokens, too many to encode in each step" in said

    def test_a_large_table_gets_the_optimizer_with_the_small_state(self, ordered: Dataset) -> None:
        small, _ = resolved(ordered, {"towers": {"query_id": "on"}})
        assert small.training.table_optimizer == "adam"
        wide: Settings = {"towers": {"dim": 2**14}}
        fits = dataset_of(items=2**12)
        assert resolved(fits, wide)[0].training.table_optimizer == "adam"
        large, said = resolved(dataset_of(items=2**12 + 1), wide)
        assert large.training.table_optimizer == "adagrad"
        assert any(s.startswith("training.table_optimizer = 'adagrad': ") for s in said)
        assert small.training.table_learning_rate is None
        assert large.training.table_learning_rate == 0.06
