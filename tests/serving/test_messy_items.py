"""A bundle trained on messy tables reads later values as training read the cells."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from damaged_bundles import seal
from servers import running
from twotower.errors import ArgumentError, BundleError
from twotower.serving.client import Client
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.trained import Trained

ITEMS = 24


def item_table() -> pl.DataFrame:
    tags = ['["新品","打折"]', '["热卖"]', "[]"]
    return pl.DataFrame(
        {
            "item_id": [f"p{n}" for n in range(ITEMS)],
            "价格": [f"1.{n:03},50 €" if n else "on request" for n in range(ITEMS)],
            "tags": [tags[n % 3] for n in range(ITEMS)],
            "added": [f"{n + 1:02}.05.2024" for n in range(ITEMS)],
            "body": [f"<p>Item <b>{n}</b> &amp; more</p>" for n in range(ITEMS)],
            "picture": [f"https://a.test/{n}.jpg" for n in range(ITEMS)],
        }
    )


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    rng = np.random.default_rng(0)
    pairs = [(q, item) for q in range(40) for item in rng.choice(ITEMS, 5, replace=False)]
    interactions = pl.DataFrame(
        {
            "user_id": [f"u{q}" for q, _ in pairs],
            "item_id": [f"p{item}" for _, item in pairs],
            "timestamp": [1_700_000_000 + n for n in range(len(pairs))],
            "paid": [f"{n % 7},5" for n in range(len(pairs))],
        }
    )
    queries = pl.DataFrame(
        {
            "user_id": [f"u{q}" for q in range(40)],
            "income": [f"{q % 9},{q % 7}00 €" for q in range(40)],
        }
    )
    folder = tmp_path_factory.mktemp("messy")
    config = {
        "training": {"epochs": 1, "batch_size": 64, "solver": "gradient"},
        "towers": {"dim": 8},
        "features": {"event": {"paid": "number"}},
    }
    return train(
        interactions, items=item_table(), queries=queries, out=folder / "model", config=config
    )


@pytest.fixture
def retriever(messy: Trained) -> Retriever:
    assert messy.path is not None
    return Retriever.open(messy.path)


def forms_of(retriever: Retriever) -> dict[str, tuple[str, str]]:
    sides = (retriever.contents.items, retriever.contents.queries, retriever.contents.events)
    return {f.name: (f.kind, f.form) for side in sides if side for f in side.transforms.features}


def test_the_bundle_knows_the_forms_and_holds_what_the_cells_mean(retriever: Retriever) -> None:
    assert forms_of(retriever) == {
        "item_id": ("id", ""),
        "价格": ("number", "number.comma.EUR"),
        "tags": ("tags", "list"),
        "added": ("time", "date"),
        "body": ("text", "html"),
        "picture": ("shown", "image"),
        "user_id": ("id", ""),
        "income": ("number", "number.comma.EUR"),
        "paid": ("number", "number.comma"),
    }
    line = retriever.contents.items.frame.row(by_predicate=pl.col("item_id") == "p1", named=True)
    assert (line["价格"], line["tags"], line["body"]) == (1001.5, ["热卖"], "Item 1 & more")
    notes = retriever.contents.provenance["notes"]
    assert any("1 of 24 cells do not read as numbers" in note for note in notes)


def test_a_filter_reads_what_the_cells_mean(retriever: Retriever) -> None:
    def found(text: str) -> set[str]:
        told = retriever.recommend("u1", k=ITEMS, filter=text, exclude_seen=False)
        return set(map(str, told.item_ids))

    assert found('tags has "新品"') == {f"p{n}" for n in range(0, ITEMS, 3)}
    assert found("`价格` > 1010 and `价格` < 1012") == {"p10", "p11"}
    assert found('added < "2024-05-03"') == {"p0", "p1"}


def test_an_item_that_comes_later_is_read_as_in_training(retriever: Retriever) -> None:
    line = item_table().row(5, named=True)
    vectors = retriever.encode_items(["p5"])
    assert np.allclose(retriever.encode_items(features=[line]), vectors, atol=1e-6)
    clean = retriever.contents.items.frame.row(by_predicate=pl.col("item_id") == "p5", named=True)
    assert np.allclose(retriever.encode_items(features=[clean]), vectors, atol=1e-6)
    other = {**line, "item_id": "x", "价格": "2 €", "tags": ["Neu"]}
    assert np.allclose(retriever.encode_items(features=[line, other])[:1], vectors, atol=1e-6)
    retriever.upsert_items(
        [{**line, "item_id": "new", "价格": "1.005,50 €"}, {**clean, "item_id": "old"}]
    )
    new, old = retriever.contents.items.frame.tail(2).drop("item_id").rows()
    assert new == old
    found = retriever.recommend("u1", k=ITEMS, filter="`价格` = 1005.5", exclude_seen=False)
    assert set(found.item_ids) == {"p5", "new", "old"}


def test_a_number_beside_text_keeps_its_value(retriever: Retriever) -> None:
    retriever.upsert_items([{"item_id": "a", "价格": 1.234}, {"item_id": "b", "价格": "1.234 €"}])
    frame = retriever.contents.items.frame.tail(2)
    assert frame["价格"].to_list() == [1.234, 1234.0]


def test_what_cannot_be_read_is_refused_and_what_says_nothing_is_missing(
    retriever: Retriever,
) -> None:
    message = r"价格 must hold Float64, or text of the form 'number.comma.EUR', got '\$5'"
    with pytest.raises(ArgumentError, match=message):
        retriever.upsert_items([{"item_id": "new", "价格": "$5"}])
    with pytest.raises(ArgumentError, match=r"tags must hold List\(String\).* got '新品'"):
        retriever.upsert_items([{"item_id": "new", "tags": "新品"}])
    retriever.upsert_items([{"item_id": "new", "价格": "n/a", "added": "2024-05-06"}])
    assert retriever.contents.items.frame["价格"][-1] is None


def test_features_of_queries_and_events_are_read_by_their_forms(retriever: Retriever) -> None:
    def told(income: object, paid: object) -> npt.NDArray[np.float32]:
        history = [{"item_id": "p1", "paid": paid}]
        return retriever.encode_queries(features={"income": income}, history=history)

    assert np.array_equal(told("4,5 €", "3,5"), told(4.5, 3.5))
    assert not np.array_equal(told("4,5 €", "3,5"), told(7.5, 3.5))
    assert not np.array_equal(told("4,5 €", "3,5"), told(4.5, 6.5))


def test_the_figures_are_those_of_the_clean_table(messy: Trained, retriever: Retriever) -> None:
    frame = retriever.contents.items.frame
    transforms = retriever.contents.items.transforms
    ids = frame["item_id"]
    raw = ids.to_frame().join(item_table(), on="item_id", how="left", maintain_order="left")
    once, twice = transforms.apply(raw), transforms.apply(frame)
    assert all(np.array_equal(once[name], twice[name]) for name in once)


def test_a_server_reads_them_too(messy: Trained, tmp_path: Path) -> None:
    assert messy.path is not None
    journal = str(tmp_path / "changes")
    with (
        running(messy.path, journal=journal, token="secret") as url,
        Client(url, token="secret") as client,
    ):
        client.upsert_items([{"item_id": "a", "价格": 1.234}, {"item_id": "b", "价格": "1.234 €"}])
        found = client.recommend("u1", k=3, filter="`价格` < 2", exclude_seen=False)
        assert found.item_ids == ["a"]


def test_a_form_that_nobody_knows_is_refused(messy: Trained, tmp_path: Path) -> None:
    retriever = messy.retriever
    retriever.save(tmp_path / "copy")
    schema = tmp_path / "copy" / "schema.toml"
    schema.write_text(schema.read_text().replace('"number.comma.EUR"', '"number.semicolon"'))
    seal(tmp_path / "copy")
    with pytest.raises(BundleError, match="described as no column can be"):
        Retriever.open(tmp_path / "copy")
