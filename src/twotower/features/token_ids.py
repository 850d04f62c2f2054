"""Text as token ids of a sentence encoder that is trained within the towers."""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import polars as pl

from twotower.arrays import Bools, Float32s, Rows
from twotower.features.architecture import Architecture
from twotower.features.base import Numbers, Transform
from twotower.features.schema import Feature
from twotower.features.sentences import texts_of
from twotower.vocab import PADDING_ROW, Vocabulary

LEAST_TOKENS = 128
"""What is kept of every text, however short those of the tables are, if the encoder reads as much."""
_LINES = 2_000


class TokenIdsTransform(Transform):
    """Strings -> ``(n, width)`` int32 token ids, each one higher, padded with 0; missing is all padding.

    ``width`` is the number of tokens of the table's longest text, at least ``LEAST_TOKENS`` and at most
    what the encoder reads; of a longer text the tokenizer keeps the beginning.

    Args:
        feature: What it transforms, with ``tuned``.
        vocabulary: None: the tokenizer has one of its own.
        numbers: ``width``.
        architecture: Of the encoder.
    """

    def __init__(
        self,
        feature: Feature,
        vocabulary: Vocabulary | None,
        numbers: Numbers,
        architecture: Architecture,
    ) -> None:
        super().__init__(feature, vocabulary, numbers)
        self.architecture = architecture

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "TokenIdsTransform":  # noqa: ARG003
        """Return the transform with the width that all texts need.

        Raises:
            ConfigError: The encoder cannot be loaded, or not be trained here.
            MissingExtraError: ``sentence-transformers`` is not installed.
        """
        architecture = Architecture.of(feature.encoder)
        most = architecture.max_length
        fitted = cls(feature, None, {"width": np.array([most], np.float64)}, architecture)
        texts = texts_of(values).drop_nulls().unique()
        lengths = [len(ids) for start in _starts(texts) for ids in fitted._ids(texts, start)]
        width = min(most, max(LEAST_TOKENS, *lengths, 0))
        return cls(feature, None, {"width": np.array([width], np.float64)}, architecture)

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        self._check_parts(bounds={"width": (1, self.architecture.max_length)}, width=(1,))

    def apply(self, values: pl.Series) -> Rows:
        """Return the token ids of each text, in their order.

        Raises:
            MissingExtraError: ``tokenizers`` is not installed.
        """
        texts = texts_of(values)
        result = np.full((len(texts), self.most_tokens), PADDING_ROW, np.int32)
        lines = np.flatnonzero(texts.is_not_null().to_numpy())
        texts = texts.drop_nulls()
        for start in _starts(texts):
            ids = self._ids(texts, start)
            lengths = np.fromiter(map(len, ids), np.int64, len(ids))
            is_token = np.arange(result.shape[1]) < lengths[:, None]
            piece = np.full(is_token.shape, PADDING_ROW, np.int32)
            flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
            piece[is_token] = flat + 1  # the id 0 is a token of its own
            result[lines[start : start + len(ids)]] = piece
        return result

    def is_known(self, values: Rows | Float32s) -> Bools:
        """Return which lines have a text."""
        return np.asarray((values != PADDING_ROW).any(axis=1))

    def _ids(self, texts: pl.Series, start: int) -> Sequence[Sequence[int]]:
        made = self.architecture
        prefixed = [made.prefix + text for text in texts[start : start + _LINES].to_list()]
        if made.is_lowered:
            prefixed = [text.lower() for text in prefixed]
        return [encoding.ids for encoding in self.tokenizer.encode_batch(prefixed)]

    @property
    def most_tokens(self) -> int:
        """Most tokens of a text that are read here."""
        return int(self.numbers["width"][0])

    @cached_property
    def tokenizer(self) -> Any:
        """What cuts texts into tokens; see ``Architecture.build_tokenizer``."""
        return self.architecture.build_tokenizer(self.most_tokens)


def _starts(texts: pl.Series) -> range:
    return range(0, len(texts), _LINES)
