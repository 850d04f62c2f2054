"""Search by words: keys that are text, searches that were never seen, recipes, and fusion with BM25."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tiny_vectors import write_vectors
from twotower import Config, ConfigError, Retriever, evaluate_bundle, recipe
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.features.encoders import TextEncoder
from twotower.recipes import RECIPES
from twotower.towers.layers import TanhMLP
from twotower.towers.model import ItemTower, QueryTower
from twotower.training.bundle_contents import fingerprint
from twotower.training.choices import resolve
from twotower.training.pipeline import train
from twotower.training.task import Task
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer

SUBJECTS = ["dog", "cat", "car", "boat", "tree", "piano", "mountain", "bread", "river", "house"]
WAYS = ["a picture of a {}", "one {} alone", "where is the {}", "the old {}", "buy a {} online"]
PLACES = ["in the garden", "by the sea", "at night"]


def clicks() -> pl.DataFrame:
    """Return searches, each with the pages about its subject."""
    return pl.DataFrame(
        [
            (way.format(subject), f"everything about the {subject} {place}")
            for way in WAYS
            for subject in SUBJECTS
            for place in PLACES
        ],
        schema=["query", "document"],
        orient="row",
    ).sample(fraction=1.0, shuffle=True, seed=0)


def trained_with(config: Config | dict[str, Any], *, epochs: int = 12, **more: Any) -> Trained:
    tree = Config.of(config).with_settings(
        [
            f"training.epochs={epochs}",
            f"training.patience={epochs}",
            "training.batch_size=32",
            "training.learning_rate=0.01",
        ]
    )
    return train(clicks(), config=tree, **more)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    out = tmp_path_factory.mktemp("search") / "model"
    trained_with(recipe("search"), out=out)
    return Retriever.open(out)


def test_a_key_that_is_text_is_read_both_ways_and_has_no_history(searched: Retriever) -> None:
    config = searched.contents.config
    assert config.features.query == {"query": "id+text"}
    assert config.features.item == {"document": "id+text"}
    assert config.towers.history == "none"
    assert searched.contents.repeats, "a search is answered with what it was clicked for before"
    known = "the old boat"
    assert set(searched.recommend(known, k=3).item_ids) & set(searched.history(known))
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", ["user {}", "John Smith {}", "张三{}"])
def test_who_has_a_name_and_a_history_is_no_search(name: str) -> None:
    rng = np.random.default_rng(0)
    events = pl.DataFrame(
        {
            "user": [name.format(i // 8) for i in range(400)],
            "item": rng.integers(0, 20, 400),
        }
    )
    prepared = prepare(events)
    assert not prepared.dataset.has_searches
    with_times = prepare(clicks().with_columns(timestamp=pl.int_range(pl.len())))
    assert not with_times.dataset.has_searches, "what has an order may be a session"
    assert prepare(clicks()).dataset.has_searches


def test_a_recipe_reads_short_and_timed_searches() -> None:
    short = clicks().with_columns(
        pl.col("query").str.split(" ").list.last(), timestamp=pl.int_range(pl.len())
    )
    trained = train(short, config=recipe("search").with_settings(["training.epochs=1"]))
    assert trained.contents.config.features.query == {"query": "id+text"}
    assert trained.contents.repeats


@pytest.mark.parametrize("query", ["cats!", "CAT?", "my Cat and I", "piano"])
def test_a_search_that_was_never_seen_is_answered(searched: Retriever, query: str) -> None:
    answer = searched.recommend(query, k=1)
    subject = "cat" if "cat" in query.lower() else "piano"
    assert answer.basis == "model"
    assert f"the {subject} " in str(answer.item_ids[0])
    described = searched.recommend(features={"query": query}, k=1)
    assert described.item_ids == answer.item_ids


def test_several_searches_known_and_new(searched: Retriever) -> None:
    both = ["the old boat", "boats?", "the old boat"]
    answers = searched.recommend(both, k=2)
    assert answers[0].item_ids == answers[2].item_ids
    alone = [searched.recommend(query, k=2).item_ids for query in both]
    assert [answer.item_ids for answer in answers] == alone


@pytest.mark.parametrize(
    "query", ["", "...", "x" * 1_000_000, "\ud800 cat", "cat\0dog", "混合 mixed сло́во", "zzzqqq"]
)
def test_no_text_makes_it_fail(searched: Retriever, query: str) -> None:
    assert len(searched.recommend(query, k=3)) == 3
    assert len(searched.recommend(features={"query": query}, k=3)) == 3
    says_something = query.startswith(("\ud800 cat", "cat"))
    with nullcontext() if says_something else pytest.warns(UserWarning, match="have no feature"):
        vectors = searched.encode_items(features=[{"document": query}])
    assert np.isfinite(vectors).all()


def test_a_new_document_is_read_by_its_words(searched: Retriever) -> None:
    new = searched.encode_items(features=[{"document": "a poem about my cat"}])
    vectors = searched.encode_items()
    best = int((vectors @ new[0]).argmax())
    assert "the cat " in searched.contents.items.ids.ids[best]


def test_new_searches_can_be_the_test(searched: Retriever) -> None:
    places = [("cats?", "cat"), ("piano!!", "piano"), ("the old boat", "boat")]
    asked = pl.DataFrame(
        [(query, f"everything about the {subject} at night") for query, subject in places],
        schema=["query", "document"],
        orient="row",
    )
    figures = evaluate_bundle(searched, test=asked, baselines=["popularity"])
    assert figures["protocol"]["queries"] == 3
    assert figures["model"]["hit_rate@10"] == 1.0


class TestWords:
    def test_all_words_alone_is_bm25(self, searched: Retriever) -> None:
        answer = searched.recommend("everything at night", k=3, words=1.0)
        assert all(str(document).endswith("at night") for document in answer.item_ids)
        assert answer.scores[0] == 1.0

    def test_between_it_is_the_convex_sum(self, searched: Retriever) -> None:
        query = "the cat at night"
        num = len(searched.contents.items.ids)
        dense, lexical = (
            dict(zip(found.item_ids, found.scores, strict=True))
            for found in (
                searched.recommend(query, k=num),
                searched.recommend(query, k=num, words=1),
            )
        )
        low, high = min(dense.values()), max(dense.values())
        for item, score in zip(*_answer(searched, query, 0.25, num), strict=True):
            expected = 0.75 * (dense[item] - low) / (high - low) + 0.25 * lexical[item]
            assert score == pytest.approx(expected, abs=1e-5)

    def test_what_the_model_does_not_know_is_found_by_its_words(self) -> None:
        rare = pl.DataFrame({"document": ["page of Quuxley"]})
        pages = pl.concat([clicks().select("document").unique(), rare])
        settings = recipe("search").with_settings(["training.epochs=1"])
        retriever = train(clicks(), items=pages, config=settings).retriever
        assert retriever.recommend("quuxley", k=1).basis == "popularity"
        found = retriever.recommend("quuxley", k=1, words=0.2)
        assert (found.basis, found.item_ids) == ("model", ["page of Quuxley"])

    def test_odd_values_are_read_as_the_model_reads_them(self, searched: Retriever) -> None:
        for value in (["cat", "dog"], b"cat", 3, None, object()):
            assert len(searched.recommend(features={"query": value}, k=2, words=0.5)) == 2

    def test_filters_hold(self, searched: Retriever) -> None:
        best = searched.recommend("the cat at night", words=0.5).item_ids
        others = searched.recommend("the cat at night", words=0.5, without=best[:1]).item_ids
        assert others[:9] == best[1:]

    @pytest.mark.parametrize("words", [-0.1, 1.1, float("nan")])
    def test_a_share_out_of_range_is_refused(self, searched: Retriever, words: float) -> None:
        with pytest.raises(ValueError, match=r"words must be 'auto' or in \[0, 1\], got"):
            searched.recommend("cat", words=words)

    def test_without_text_it_is_refused(self, tiny_trained: Trained) -> None:
        with pytest.raises(
            ValueError, match=r"words must be 0 where queries have no column of text"
        ):
            tiny_trained.retriever.recommend(1, words=0.5)


def _answer(
    retriever: Retriever, query: str, words: float, k: int
) -> tuple[list[Any], list[float]]:
    found = retriever.recommend(query, k=k, words=words)
    return found.item_ids, found.scores


def test_what_a_search_is_known_to_want_is_no_negative_of_it() -> None:
    """Each search wants ten pages; told apart by a softmax their loss would be ln 7 or more in training."""
    wanted = pl.DataFrame(
        [
            (f"all about {subject}", f"the {subject} on page {number} of ours")
            for subject in SUBJECTS
            for number in range(10)
        ],
        schema=["query", "document"],
        orient="row",
    )

    def least_loss(*, masked: bool) -> float:
        settings = {
            "loss": {"negatives": "all", "mask_known": masked},
            "training": {"epochs": 20, "patience": 20, "batch_size": 16, "examples": "pairs"},
        }
        task = Task.of(wanted, config=Config.from_dict(settings))
        trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
        return float(min(line["loss"] for line in trainer.fit().log))

    assert least_loss(masked=True) < 1.0 < 1.9 < least_loss(masked=False)


def test_the_recipe_of_dssm_is_its_towers() -> None:
    trained = trained_with(recipe("dssm"), epochs=25)
    model = trained.retriever.encoding.model
    for tower in (model.query_tower, model.item_tower):
        assert isinstance(tower, (QueryTower, ItemTower))
        assert isinstance(tower.block, TanhMLP)
        assert [tuple(p.shape) for p in tower.block.parameters()][1::2] == [(300, 300), (128, 300)]
        assert tower.encoder is not None
        (encoder,) = tower.encoder.encoders
        assert isinstance(encoder, TextEncoder)
        assert encoder.table.weight.shape[1] == 300
    transforms = trained.contents.items.transforms.transforms
    assert [t.feature.kind for t in transforms] == ["id", "trigrams"]
    assert trained.contents.config.loss.num_negatives == 4
    assert trained.figures["model"]["hit_rate@10"] > 0.9
    assert "piano" in str(trained.retriever.recommend("the pianno", k=1).item_ids[0])


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_a_configuration(name: str) -> None:
    assert Config.from_dict(recipe(name).to_dict()) == recipe(name)


def test_a_recipe_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe must be one of dssm, search, got 'bert'"):
        recipe("bert")


def test_buckets_and_kinds_reach_the_features(tmp_path: Path) -> None:
    settings = {"features": {"text_buckets": 500, "text": "words"}}
    trained = trained_with(settings, out=tmp_path / "model", epochs=1)
    (_, text) = trained.contents.items.transforms.transforms
    assert (text.feature.kind, text.feature.buckets, text.vocabulary) == ("words", 500, None)
    again = Retriever.open(tmp_path / "model")
    assert again.recommend("cat", k=3).item_ids == trained.retriever.recommend("cat", k=3).item_ids


def test_windows_are_read_beside_the_text_and_their_words_are_in_the_bundle(tmp_path: Path) -> None:
    vectors = [f"{word} {' '.join(map(str, np.eye(10)[i]))}" for i, word in enumerate(SUBJECTS)]
    lines = [*vectors, vectors[1].replace("cat", "tiger")]  # training has no tiger
    (tmp_path / "vectors.txt").write_text("\n".join(lines))
    path = str(tmp_path / "vectors.txt")
    config = recipe("search").with_settings(
        ["features.text=windows", f"features.word_vectors={path}"]
    )
    trained = trained_with(config, out=tmp_path / "model")
    for table in (trained.contents.queries, trained.contents.items):
        assert [t.feature.kind for t in table.transforms.transforms] == ["id", "text", "windows"]
    assert trained.contents.config.features.item == {"document": "id+text"}
    (tmp_path / "vectors.txt").unlink()
    again = Retriever.open(tmp_path / "model")
    for query in ("the old boat", "where is the tiger"):
        found, wanted = again.recommend(query, k=3), trained.retriever.recommend(query, k=3)
        assert (found.item_ids, found.scores) == (wanted.item_ids, wanted.scores)
    assert "the cat " in str(again.recommend("where is the tiger", k=1).item_ids[0])
    assert "the cat " in str(again.recommend("cats and a cat", k=1, words=0.5).item_ids[0])
    assert len(list((tmp_path / "model" / "words").iterdir())) == 2


@pytest.mark.parametrize(
    ("features", "told"),
    [
        ({"text": "windows"}, r"word_vectors must be stated where features.query.query is read by"),
        (
            {"word_vectors": "x.txt"},
            "word_vectors must go with a column of kind 'windows', got 'x.txt'",
        ),
        ({"sentence_encoder": "x"}, "sentence_encoder must go with a column of kind 'sentence'"),
        ({"text": "windows", "word_vectors": "none.txt"}, "must be a text file .* no such file"),
    ],
)
def test_what_text_is_read_with_and_how_go_together(features: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        trained_with({"features": features})


def test_layers_of_tanh_may_differ_in_width() -> None:
    towers = {"block": "tanh", "query_hidden": [30], "item_hidden": [20], "history": "none"}
    trained = trained_with({"towers": towers}, epochs=1)
    assert len(trained.retriever.recommend("cat", k=3)) == 3


def test_items_without_ids_are_told_apart_by_their_features_alone() -> None:
    trained = trained_with({"towers": {"item_id": "off"}}, epochs=1)
    tower = trained.retriever.encoding.model.item_tower
    assert isinstance(tower, ItemTower)
    assert tower.encoder.names == ["document as text"]


def test_events_may_be_read_by_windows(tmp_path: Path, small_world: SyntheticTables) -> None:
    vectors = write_vectors(tmp_path / "vectors.txt")
    told = small_world.interactions.with_columns(
        said=pl.Series(["red car", "snow", None] * len(small_world.interactions)).head(
            len(small_world.interactions)
        )
    )
    features = {"event": {"said": "windows"}, "word_vectors": vectors}
    config = {"features": features, "training": {"epochs": 1}, "towers": {"history": "mean"}}
    train(told, items=small_world.items, config=config, out=tmp_path / "model")
    retriever = Retriever.open(tmp_path / "model")
    assert retriever.contents.events is not None
    assert [t.feature.kind for t in retriever.contents.events.transforms.transforms] == [
        "text",
        "windows",
    ]

    def vector(said: str) -> Any:
        return retriever.encode_queries(history=[{"item_id": 1, "said": said}])

    assert np.abs(vector("crimson") - vector("snow")).max() > 1e-4, "by their vectors alone"
    with pytest.raises(ValueError, match=r"columns of features.event \(said\), got 'rating'"):
        retriever.session(1).add(2, rating=3)


def test_other_vectors_are_another_training(tmp_path: Path) -> None:
    def digest_with(number: float) -> str:
        lines = [f"{subject} {number} {place}" for place, subject in enumerate(SUBJECTS)]
        (tmp_path / "vectors.txt").write_text("\n".join(lines))
        config = recipe("search").with_settings(
            ["features.text=windows", f"features.word_vectors={tmp_path / 'vectors.txt'}"]
        )
        task = Task.of(clicks(), config=config)
        resolved, _ = resolve(task.config, task.dataset)
        return fingerprint(Trainer(task.dataset, task.sides, resolved))

    assert digest_with(1.25) == digest_with(1.25) != digest_with(2.5)
