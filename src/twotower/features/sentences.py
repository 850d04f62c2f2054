"""Text as the vectors of a pretrained sentence encoder, which stays as it is."""

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import cache
from typing import Any

import numpy as np
import polars as pl

from twotower.arrays import Float32s
from twotower.errors import BundleError, ConfigError, MissingExtraError
from twotower.extras import install, library
from twotower.features.base import Transform
from twotower.features.schema import Feature
from twotower.runtime import cache_folder
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW, Vocabulary, as_keys

PROBE = "Two towers make one match."
"""Text by whose vector an encoder is known again."""
SAME = 0.02
"""How far that vector may be from what it was in training; other machines round otherwise."""
_BATCH = 1_024
_LEAST_VERSION = 6  # earlier ones trust the code in any local folder, whatever they are told


class SentenceTransform(Transform):
    """Strings -> ``(n, width)`` float32 unit vectors of a pretrained encoder; missing is the zero vector.

    The vectors of all texts of the table are kept, so that a bundle needs the encoder for new texts
    alone. Its own weights are not trained; a linear map of the tower is.

    Source: Reimers and Gurevych, EMNLP 2019 (Sentence-BERT).
    """

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "SentenceTransform":  # noqa: ARG003
        """Return the texts with their vectors.

        Raises:
            ConfigError: The encoder cannot be loaded.
            MissingExtraError: ``sentence-transformers`` is not installed.
        """
        texts = texts_of(values).drop_nulls().unique().sort()
        probe = probe_of(feature.encoder)
        vectors = encoded(feature.encoder, texts.to_list())
        return cls(feature, Vocabulary(texts), {"probe": probe, "vectors": vectors})

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        known, width = self.vocabulary, self.width
        num_texts = 0 if known is None else len(known)
        self._check_parts(has_vocabulary=True, probe=(1, width), vectors=(num_texts, width))

    def apply(self, values: pl.Series) -> Float32s:
        """Return the vector of each text.

        Raises:
            BundleError: A text is new, and the encoder is not the one that was trained with.
            MissingExtraError: A text is new, and ``sentence-transformers`` is not installed.
        """
        texts = texts_of(values)
        rows = self.own_vocabulary().rows_of(texts)
        result = np.zeros((len(texts), self.width), np.float32)
        known = rows > UNKNOWN_ROW
        result[known] = self.numbers["vectors"][rows[known] - FIRST_ROW]
        is_new = rows == UNKNOWN_ROW
        if is_new.any():
            self._check_encoder()
            result[is_new] = encoded(
                self.feature.encoder, texts.filter(pl.Series(is_new)).to_list()
            )
        return result

    @property
    def width(self) -> int:
        """Width of the encoder's vectors."""
        return int(self.numbers["probe"].shape[1])

    def _check_encoder(self) -> None:
        found, before = probe_of(self.feature.encoder), self.numbers["probe"]
        if found.shape != before.shape:
            raise BundleError(
                f"the sentence encoder {self.feature.encoder!r} must give vectors of {before.shape[1]} "
                f"numbers, as when {self.feature.name!r} was trained on, got {found.shape[1]}; install "
                "the one of then, or train again."
            )
        distance = float(np.abs(found - before).max())
        if distance > SAME:
            raise BundleError(
                f"the sentence encoder {self.feature.encoder!r} must be the one that "
                f"{self.feature.name!r} was trained with, got vectors that differ by {distance:.2f}; "
                "install the one of then, or train again."
            )


def encoded(encoder: str, texts: Sequence[str]) -> Float32s:
    """Return the unit vectors of texts: ``(n, width)`` float32, from the cache where they are there.

    The cache is a file for each encoder under ``cache_folder() / "sentences"``, keyed by the SHA-256 of
    the text; without a place to write it everything is computed.

    Raises:
        ConfigError: The encoder cannot be loaded.
        MissingExtraError: ``sentence-transformers`` is not installed.
    """
    model = load_encoder(encoder)
    with closing(_cache_of(encoder)) as cache:
        found = _kept(cache, texts)
        new = [text for text in dict.fromkeys(texts) if text not in found]
        is_writable = True
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            vectors = _computed(model, batch)
            found.update(zip(batch, vectors, strict=True))
            rows = [(_digest(t), v.tobytes()) for t, v in zip(batch, vectors, strict=True)]
            try:
                if is_writable:
                    with cache:
                        cache.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", rows)
            except sqlite3.Error:
                is_writable = False  # a locked file is waited for once
    if not texts:
        return np.zeros((0, probe_of(encoder).shape[1]), np.float32)
    return np.stack([found[text] for text in texts])


@cache
def load_encoder(encoder: str) -> Any:
    """Return a pretrained encoder of ``sentence-transformers``; it is loaded once and left as it is.

    A bundle of somebody else may name any folder, so no code that lies in one is ever run.

    Raises:
        ConfigError: It cannot be loaded, or not without code of its own.
        MissingExtraError: ``sentence-transformers`` is not installed, or is too old to refuse such code.
    """
    wanted_by = f"the sentence encoder {encoder!r}"
    sentence_transformers = library("sentence_transformers", wanted_by=wanted_by, extra="text")
    version = str(sentence_transformers.__version__)
    if int(version.partition(".")[0]) < _LEAST_VERSION:
        raise MissingExtraError(
            f"{wanted_by} needs sentence-transformers {_LEAST_VERSION} or newer, got {version}, which runs "
            f"code that lies in an encoder's folder; {install('text')}."
        )
    logging = library("transformers.utils.logging", wanted_by=wanted_by, extra="text")
    had_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return sentence_transformers.SentenceTransformer(encoder, trust_remote_code=False)
    except Exception as error:  # the library raises whatever its own libraries raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            "features.sentence_encoder must be the folder or the name of a sentence encoder, got "
            f"{encoder!r}: {reason[0]}"
        ) from error
    finally:
        if had_bar:
            logging.enable_progress_bar()


@cache
def probe_of(encoder: str) -> Float32s:
    """Return the vector by which an encoder is known again: ``(1, width)``."""
    return _computed(load_encoder(encoder), [PROBE])


def _computed(model: Any, texts: list[str]) -> Float32s:
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, np.float32)


def _cache_of(encoder: str) -> sqlite3.Connection:
    """Return the table of an encoder's vectors by their text's digest, in memory where no file can be."""
    name = hashlib.sha256(encoder.encode() + probe_of(encoder).tobytes()).hexdigest()
    folder = cache_folder() / "sentences"
    table = "CREATE TABLE IF NOT EXISTS kept (text BLOB PRIMARY KEY, vector BLOB)"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(folder / f"{name[:16]}.sqlite", timeout=60)
        database.execute(table)
    except (OSError, sqlite3.Error):
        database = sqlite3.connect(":memory:")
        database.execute(table)
    return database


def _kept(cache: sqlite3.Connection, texts: Iterable[str]) -> dict[str, Float32s]:
    found: dict[str, Float32s] = {}
    try:
        for text in texts:
            query = cache.execute("SELECT vector FROM kept WHERE text = ?", (_digest(text),))
            if row := query.fetchone():
                found[text] = np.frombuffer(row[0], np.float32)
    except sqlite3.Error:
        return {}
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def texts_of(values: pl.Series) -> pl.Series:
    """Return strings without space around them, null where nothing is left."""
    strings = as_keys(values).cast(pl.String).str.strip_chars()
    return pl.select(pl.when(strings != "").then(strings)).to_series()
