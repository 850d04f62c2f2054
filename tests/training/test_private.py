"""What ``--private`` keeps out of a bundle and its report: planted values are sought in every byte."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sandbox import run_command
from tiny_vectors import write_vectors
from twotower import Config, Retriever, View, exports, train_views
from twotower.data.dataset import EntityTable
from twotower.doctor.diagnosis import diagnose_bundle
from twotower.errors import BundleError, ConfigError
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.features.base import Transform
from twotower.features.schema import Feature
from twotower.features.sentences import SentenceTransform
from twotower.features.transforms import CategoryTransform, SideTransforms, TagsTransform
from twotower.serving.bundle import open_bundle
from twotower.training.pipeline import train
from twotower.training.private import (
    LEAST_QUERIES,
    LIMITS,
    groups_of_many,
    of_many_queries,
    private_settings,
    read_columns,
    without_queries,
)
from twotower.vocab import Vocabulary

NUM_QUERIES, NUM_ITEMS, NUM_EVENTS = 60, 20, 7
FIRST_MOMENT = 1_500_000_017
SETTINGS = (
    *(
        "--set",
        "training.epochs=1",
        "--set",
        "training.batch_size=64",
        "--set",
        "training.solver=gradient",
        "--set",
        "towers.dim=8",
    ),
    *("--set", "towers.question_time=off"),
    *("--set", "features.query.religion=shown", "--set", "features.event.device=categorical"),
)
PLANTED = {
    "an id": "uid-7f3a31",
    "an address in a column that is not read": "anna.q@mail.example",
    "a value of a column that is not read and cuts the figures": "zoroastrian",
    "a category of two queries": "rarecityxq",
    "a tag of two queries": "raretagxq",
    "a word of two texts": "raresurnamexq",
    "a category of one query's many events": "raredevicexq",
}
"""What is planted, and the text that is looked for."""


def moment(query: int, step: int) -> int:
    return FIRST_MOMENT + 86_400 * step + 61 * query


def tables(folder: Path) -> None:
    """Write tables of which each planted value stands in one query or in two."""
    ids = [f"uid-{7_000_000 + 9_173 * query:x}" for query in range(NUM_QUERIES)]
    ids[5] = PLANTED["an id"]
    events = [
        {
            "user_id": ids[query],
            "item_id": f"item-{(query + 3 * step) % NUM_ITEMS}",
            "timestamp": moment(query, step),
            "device": "raredevicexq" if query == 5 else ("phone", "laptop")[step % 2],
        }
        for query in range(NUM_QUERIES)
        for step in range(NUM_EVENTS)
    ]
    rare = [query in (5, 6) for query in range(NUM_QUERIES)]
    queries = {
        "user_id": ids,
        "email": [f"{'anna.q' if q == 5 else f'u{q}'}@mail.example" for q in range(NUM_QUERIES)],
        "religion": ["zoroastrian" if q == 5 else ("a", "b")[q % 2] for q in range(NUM_QUERIES)],
        "city": ["rarecityxq" if rare[q] else ("Ulm", "Bonn")[q % 2] for q in range(NUM_QUERIES)],
        "tags": [
            "raretagxq|books" if rare[q] else ("books|films", "films|games")[q % 2]
            for q in range(NUM_QUERIES)
        ],
        "about": [
            f"reads books number {'raresurnamexq' if rare[q] else f'word{q}'}"
            for q in range(NUM_QUERIES)
        ],
        "age": [20.5 + query for query in range(NUM_QUERIES)],
    }
    pl.DataFrame(events).write_csv(folder / "events.csv")
    pl.DataFrame(queries).write_csv(folder / "queries.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables."""
    made = tmp_path_factory.mktemp("people")
    tables(made)
    return made


@dataclass(frozen=True)
class Made:
    """What a training left: its bundle, its report, and what it said on the screen."""

    bundle: Path
    page: Path
    said: str


def trained_by(folder: Path, out: str, *options: str) -> Made:
    given = ("--interactions", "events.csv", "--queries", "queries.csv", "--out", out)
    outcome = run_command(("train", *given, *SETTINGS, *options), folder)
    assert outcome.code == 0, outcome
    return Made(folder / out, folder / f"{out}.report.html", outcome.out)


@pytest.fixture(scope="module")
def private(folder: Path) -> Made:
    """A private training of them."""
    return trained_by(folder, "private", "--private")


@pytest.fixture(scope="module")
def usual(folder: Path) -> Made:
    """The same without the option."""
    return trained_by(folder, "usual")


@pytest.fixture(scope="module")
def retriever(folder: Path, private: Made) -> Retriever:
    return Retriever.open(private.bundle)


def bytes_of(path: Path) -> Iterator[bytes]:
    """Yield each file below a path as it is, and each table decoded, since Arrow may compress."""
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        yield file.read_bytes()
        if file.suffix == ".arrow":
            yield json.dumps(pl.read_ipc(file.read_bytes()).to_dict(as_series=False)).encode()
        if file.suffix in (".json", ".html", ".jsonl"):
            yield file.read_text("utf-8").encode("utf-16-le")


def holds(path: Path, text: str) -> bool:
    looked_for = (text.encode(), text.encode("utf-16-le"))
    return any(word in content for content in bytes_of(path) for word in looked_for)


def holds_moments(path: Path) -> bool:
    """Return whether the time of an event stands somewhere, as a float, an integer or in words."""
    written = []
    for query in range(NUM_QUERIES):
        for step in range(NUM_EVENTS):
            at = moment(query, step)
            written += [struct.pack("<d", at), struct.pack("<q", at), str(at).encode()]
    everything = b"\0".join(bytes_of(path))
    return any(one in everything for one in written)


class TestBytes:
    @pytest.mark.parametrize("what", PLANTED)
    def test_no_byte_of_a_private_bundle_or_report_is_of_one_query(
        self, private: Made, what: str
    ) -> None:
        assert not holds(private.bundle, PLANTED[what])
        assert not holds(private.page, PLANTED[what])

    def test_nor_is_any_id_or_moment(self, folder: Path, private: Made) -> None:
        ids = pl.read_csv(folder / "queries.csv")["user_id"].to_list()
        everything = b"\0".join((*bytes_of(private.bundle), *bytes_of(private.page)))
        assert [id_ for id_ in ids if id_.encode() in everything] == []
        assert not holds_moments(private.bundle)
        assert not holds_moments(private.page)

    def test_a_search_of_all_bytes_finds_them_in_the_usual_bundle(
        self, folder: Path, usual: Made
    ) -> None:
        unread = "an address in a column that is not read"
        found = {what for what, text in PLANTED.items() if holds(usual.bundle, text)}
        assert found == PLANTED.keys() - {unread}
        assert holds_moments(usual.bundle)
        ids = pl.read_csv(folder / "queries.csv")["user_id"].to_list()
        page = usual.page.read_text("utf-8")
        assert sum(id_ in page for id_ in ids) == 10
        assert "keep this page as safe as the data" in page

    def test_nothing_else_is_left_beside_it(self, private: Made) -> None:
        left = {path.name for path in private.bundle.parent.glob("*private*")}
        assert left == {"private", "private.report.html"}


class TestUsualBundle:
    def test_holds_the_columns_that_are_read_or_cut_the_figures(self, usual: Made) -> None:
        queries = open_bundle(usual.bundle).queries
        read = ["city", "tags", "about", "age"]
        assert queries.frame.columns == ["user_id", "religion", *read]
        assert [f.name for f in queries.transforms.features] == ["user_id", "religion", *read]

    def test_is_evaluated_again_with_the_same_groups(self, usual: Made) -> None:
        opened = Retriever.open(usual.bundle)
        again = evaluate_bundle(opened, baselines=())
        before = opened.contents.metrics["slices"]
        assert [(g["by"], g["label"]) for g in again["slices"]] == [
            (g["by"], g["label"]) for g in before
        ]
        assert any(group["by"] == "query.religion" for group in before)

    def test_is_looked_at_by_the_doctor(self, usual: Made) -> None:
        found = diagnose_bundle(Retriever.open(usual.bundle))
        assert "email" not in str([finding.as_json("en") for finding in found])


class TestPrivateBundle:
    def test_says_on_the_screen_and_in_its_card_what_it_cannot_answer(self, private: Made) -> None:
        card = (private.bundle / "MODEL_CARD.md").read_text("utf-8")
        for limit in LIMITS:
            assert limit in private.said
            assert limit in card

    def test_the_usual_one_does_not(self, usual: Made) -> None:
        assert "private" not in usual.said
        assert "cannot answer" not in (usual.bundle / "MODEL_CARD.md").read_text("utf-8")

    def test_the_report_numbers_its_examples(self, private: Made) -> None:
        page = private.page.read_text("utf-8")
        for place in range(1, 11):
            assert f"<h3><bdi>Query {place}</bdi></h3>" in page  # and no column beside it
        assert "the numbers say nothing of their ids" in page
        assert "keep this page as safe as the data" not in page

    def test_no_figure_and_no_feature_is_of_a_column_that_is_not_read(
        self, retriever: Retriever
    ) -> None:
        cut_by = {group["by"] for group in retriever.contents.metrics["slices"]}
        assert {by for by in cut_by if by.startswith("query.")} == {"query.city", "query.tags"}
        names = [feature.name for feature in retriever.contents.queries.transforms.features]
        assert names == ["user_id", "city", "tags", "about", "age"]

    def test_a_known_id_is_as_unknown_as_any(self, retriever: Retriever) -> None:
        assert retriever.contents.is_private
        assert retriever.recommend(PLANTED["an id"]).basis == "popularity"
        assert retriever.history(PLANTED["an id"]) == []

    def test_features_and_histories_are_answered_as_before(
        self, folder: Path, private: Made, retriever: Retriever
    ) -> None:
        config = Config.from_toml(private.bundle / "config.toml")
        trained = train(
            folder / "events.csv", queries=folder / "queries.csv", config=config, private=True
        )
        assert trained.before is not None
        rows = [5, 17]
        ids = trained.before.queries.ids.ids.gather(rows).to_list()
        lines = trained.before.queries.frame[rows].drop("user_id").to_dicts()
        known = Retriever(trained.before)
        histories = [known.history(id_) for id_ in ids]
        answers = retriever.recommend(features=lines, history=histories, k=5)
        assert [answer.basis for answer in answers] == ["model", "model"]
        for one, other in zip(
            known.recommend(features=lines, history=histories, k=5), answers, strict=True
        ):
            assert one.item_ids == other.item_ids
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)

    def test_a_rare_value_is_read_as_unknown(self, retriever: Retriever) -> None:
        rare, new, common = (
            retriever.encode_queries(features={"city": city})
            for city in ("rarecityxq", "a new city", "Ulm")
        )
        np.testing.assert_array_equal(rare, new)
        assert not np.array_equal(rare, common)

    def test_the_command_line_says_why_an_id_is_unknown(self, folder: Path, private: Made) -> None:
        outcome = run_command(
            ("recommend", str(private.bundle), "--query", PLANTED["an id"]), folder
        )
        assert outcome.code == 0
        assert "The bundle is private and knows no query by its id" in outcome.out
        outcome = run_command(("inspect", str(private.bundle), "--json"), folder)
        described = json.loads(outcome.out)
        assert (described["private"], described["queries"]) == (True, 0)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("recommend", "--all", "--out", "all.csv"), "must hold queries"),
            (("evaluate",), "must hold histories"),
            (("compare", "private"), "must hold histories"),
        ],
    )
    def test_what_needs_its_queries_is_refused(
        self, private: Made, arguments: tuple[str, ...], said: str
    ) -> None:
        command, *rest = arguments
        outcome = run_command((command, private.bundle.name, *rest), private.bundle.parent)
        assert outcome.code == 2
        assert said in outcome.err
        assert "--private" in outcome.err
        assert "Traceback" not in outcome.err

    def test_the_doctor_says_what_it_could_not_look_at(self, retriever: Retriever) -> None:
        ids = [finding.as_json("en")["id"] for finding in diagnose_bundle(retriever)]
        assert "not-looked-at" in ids

    @pytest.mark.parametrize("export", [exports.export_parquet, exports.export_npy])
    def test_exports_hold_items_alone(
        self, retriever: Retriever, tmp_path: Path, export: Any
    ) -> None:
        exported = export(retriever, tmp_path / "out")
        assert (exported.num_items, exported.num_queries) == (NUM_ITEMS, 0)

    def test_a_snapshot_is_private_too(self, retriever: Retriever, tmp_path: Path) -> None:
        retriever.save(tmp_path / "again")
        assert open_bundle(tmp_path / "again").is_private
        assert not holds(tmp_path / "again", "uid-")


class TestSettings:
    def test_an_embedding_of_ids_is_refused(self) -> None:
        config = Config.from_dict({"towers": {"query_id": "on"}})
        with pytest.raises(ConfigError, match=r"towers.query_id must be 'auto' or 'off'.*got 'on'"):
            private_settings(config)

    def test_none_is_trained(self, private: Made) -> None:
        assert private_settings(Config()).towers.query_id == "off"
        assert open_bundle(private.bundle).config.towers.query_id == "off"


class TestRareValues:
    def test_values_are_counted_by_query_and_not_by_line(self) -> None:
        """Ten queries have ``many``, one has ``mine`` in ten lines, nine have ``nine``."""
        owners = np.array([*range(10), *([3] * 10), *range(9)])
        values = ["many"] * 10 + ["mine"] * 10 + ["nine"] * 9
        frame = pl.DataFrame({"kind": values, "tags": [[value, "all"] for value in values]})
        features = (
            Feature("kind", "event", "categorical", "stated"),
            Feature("tags", "event", "tags", "stated"),
        )
        fitted = SideTransforms.fit(features, frame, np.ones(len(frame), np.int64), 1)
        category, tags = of_many_queries(fitted, frame, owners).transforms
        assert isinstance(category, CategoryTransform)
        assert isinstance(tags, TagsTransform)
        assert category.own_vocabulary().ids.to_list() == ["many"]
        assert tags.own_vocabulary().ids.to_list() == ["all", "many"]

    def test_a_tokens_weight_stays_its_own(self) -> None:
        texts = pl.DataFrame({"about": ["red blue"] * 12 + ["red green"] * 3})
        feature = Feature("about", "query", "words", "stated")
        fitted = SideTransforms.fit((feature,), texts, np.ones(15, np.int64), 2)
        kept = of_many_queries(fitted, texts, np.arange(15))
        before, after = fitted.transforms[0], kept.transforms[0]
        tokens = after.own_vocabulary().ids
        assert "green" in before.own_vocabulary().ids.to_list()
        assert "green" not in tokens.to_list()
        rows = before.own_vocabulary().rows_of(tokens)
        np.testing.assert_array_equal(after.numbers["weights"][2:], before.numbers["weights"][rows])
        assert len(after.apply(texts["about"])) == 15

    @pytest.mark.parametrize("kind", ["windows", "buckets"])
    def test_how_much_a_rare_word_weighs_tells_nothing(self, kind: str, tmp_path: Path) -> None:
        """``boat`` is one query's word, ``snow`` is nobody's."""
        texts = pl.DataFrame({"about": ["red car"] * 12 + ["red boat"]})
        options: dict[str, Any] = {"buckets": 5000}
        if kind == "windows":
            options = {"encoder": write_vectors(tmp_path / "vectors.txt")}
        feature = Feature(
            "about", "query", "windows" if kind == "windows" else "words", "stated", **options
        )
        fitted = SideTransforms.fit((feature,), texts, np.ones(13, np.int64), 1)
        before, after = (
            fitted.transforms[0],
            of_many_queries(fitted, texts, np.arange(13)).transforms[0],
        )

        def weight(transform: Transform, word: str) -> float:
            (rows,) = transform.apply(pl.Series([word]))
            return float(transform.numbers["weights"][rows[rows > 0].astype(np.int64)].mean())

        assert weight(before, "boat") < weight(before, "snow")
        assert weight(after, "boat") == weight(after, "snow")
        assert weight(after, "car") == weight(before, "car")
        after.check()

    def test_groups_of_few_and_bounds_are_left_out(self) -> None:
        def group(by: str, queries: int, low: float | None = None) -> dict[str, object]:
            return {"by": by, "queries": queries, "low": low}

        kept = [group("all", 3), group("activity", 3, 1.0), group("query.city", LEAST_QUERIES)]
        gone = [group("query.city", LEAST_QUERIES - 1), group("query.age", 99, 18.0)]
        figures: dict[str, Any] = {"slices": [*kept, *gone, group("time", 99, 1.5e9)]}
        groups_of_many(figures)
        assert figures["slices"] == kept


def test_texts_that_a_sentence_encoder_read_are_left_out(tiny_retriever: Retriever) -> None:
    feature = Feature("about", "query", "sentence", "stated", encoder="an encoder")
    texts = Vocabulary(pl.Series(["my secret", "your secret"]))
    numbers = {"probe": np.ones((1, 4), np.float32), "vectors": np.ones((2, 4), np.float32)}
    contents = tiny_retriever.contents
    read = SideTransforms((feature,), (SentenceTransform(feature, texts, numbers),))
    contents = replace(contents, queries=replace(contents.queries, transforms=read))
    (left,) = without_queries(contents).queries.transforms.transforms
    assert len(left.own_vocabulary()) == 0
    assert left.numbers["vectors"].shape == (0, 4)
    assert left.width == 4


def test_bundles_of_several_views_are_private_too(folder: Path, tmp_path: Path) -> None:
    events = pl.read_csv(folder / "events.csv")
    is_book = events["item_id"].str.ends_with("5")
    views = {"books": View(events.filter(is_book)), "films": View(events.filter(~is_book))}
    config = {"training": {"epochs": 1, "solver": "gradient"}, "towers": {"dim": 4}}
    trained = train_views(views, out=tmp_path / "views", config=config, private=True)
    assert not holds(tmp_path / "views", "uid-")
    opened = Retriever.open(tmp_path / "views" / "films")
    assert opened.contents.is_private
    assert opened.recommend(history=["item-1", "books:item-5"], k=3).basis == "model"
    assert trained["films"].before is not None
    assert len(trained["films"].before.queries.ids) == NUM_QUERIES


def test_paths_of_views_are_names_alone(tiny_retriever: Retriever) -> None:
    views = [
        {
            "name": name,
            "interactions": f"/home/anna/{name}.csv",
            "items": f"/home/anna/{name}-items.csv",
        }
        for name in ("films", "books")
    ]
    config = Config.from_dict({"views": views})
    left = without_queries(replace(tiny_retriever.contents, config=config)).config
    assert "anna" not in left.to_toml()
    assert left.views[0].interactions == "films.csv"


def test_a_key_that_is_a_feature_keeps_its_column() -> None:
    frame = pl.DataFrame({"q": ["a b", "c d"], "name": ["x", "y"]})
    table = EntityTable(Vocabulary(frame["q"]), frame, "q")
    text = Feature("q as text", "query", "words", "stated", column="q")
    fitted = SideTransforms.fit((text,), frame, np.ones(2, np.int64), 1)
    assert read_columns(table, fitted).frame.columns == ["q"]


def test_a_private_bundle_is_told_by_the_error_of_all(tiny_retriever: Retriever) -> None:
    private = Retriever(without_queries(tiny_retriever.contents))
    with pytest.raises(BundleError, match=r"must hold queries.*private=True"):
        private.recommend_all(k=3)
