"""BM25: which texts hold the rare words of the query."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from twotower.arrays import Bools, Float32s, Ints, Rows
from twotower.config import LANGUAGES
from twotower.errors import ArgumentError, check_positive
from twotower.features.languages import UNSTEMMED, stemmer, stop_words
from twotower.features.tokens import words_of
from twotower.vocab import FIRST_ROW, as_keys

Words = tuple[tuple[str, ...], ...]
"""The words of some queries."""


@dataclass(frozen=True, kw_only=True)
class LexicalSettings:
    """How BM25 reads texts and weighs words.

    Args:
        k1: Above 0; the larger, the more a word's repetition counts.
        b: In 0..1; the larger, the lower long texts score.
        languages: Column of the items -> the language that its words are stemmed by; of a column that is
            not named words stay as they are written. Those of a query are stemmed by all of these.
        drops_stop_words: Whether stop words count neither in a query, if it has other words, nor in the
            length of a text.

    Raises:
        ValueError: A setting is out of its range.
    """

    k1: float = 1.2
    b: float = 0.75
    languages: Mapping[str, str] = field(default_factory=dict)
    drops_stop_words: bool = False

    def __post_init__(self) -> None:
        check_positive(k1=self.k1)
        if not 0 <= self.b <= 1:
            raise ArgumentError(f"b must be in 0..1, got {self.b}.")
        for language in self.languages.values():
            if language not in LANGUAGES:
                known = ", ".join(LANGUAGES)
                raise ArgumentError(f"languages must be among {known}, got {language!r}.")

    @classmethod
    def of_json(cls, table: Mapping[str, Any]) -> "LexicalSettings":
        """Return what ``as_json`` wrote, out of a table that may hold more.

        An older bundle's table lacks all of it: its words were read as they stand, by the defaults.
        """
        told = {each.name: table[each.name] for each in fields(cls) if each.name in table}
        return cls(**{**told, "languages": dict(told.get("languages", {}))})

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def words_of_items(self, columns: Sequence[pl.Series]) -> "ItemWords":
        """Return the words of the items' texts, by the names of the columns."""
        parts = [_read(c, self.languages.get(c.name, UNSTEMMED)) for c in columns]
        lines = np.concatenate([np.zeros(0, np.int64), *(part.lines for part in parts)])
        words = pl.concat([pl.Series([], dtype=pl.String), *(part.words for part in parts)])
        counts = np.ones(len(lines), np.bool_)
        if self.drops_stop_words and parts:
            counts = ~np.concatenate([part.is_stop_word for part in parts])
        return ItemWords(lines, words, counts, len(columns[0]) if columns else 0)

    def words_of_queries(self, columns: Sequence[pl.Series]) -> Words:
        """Return the words of ``n`` queries' texts, some columns of each."""
        texts = joined(columns)
        languages = dict.fromkeys(self.languages.values()) or {UNSTEMMED: None}
        readings = [_read(texts, language) for language in languages]
        every = list(zip(*(reading.words.to_list() for reading in readings), strict=True))
        is_stop_word = np.all([reading.is_stop_word for reading in readings], axis=0)
        ends = np.searchsorted(readings[0].lines, np.arange(len(texts) + 1)).tolist()
        found = []
        for low, high in pairwise(ends):
            places = list(range(low, high))
            if self.drops_stop_words:
                places = [place for place in places if not is_stop_word[place]] or places
            # A word that two languages stem alike counts once.
            found.append(tuple(word for place in places for word in dict.fromkeys(every[place])))
        return tuple(found)


class ItemWords(NamedTuple):
    """The words of a catalogue, or of further items.

    Args:
        lines: ``(m,)`` int64, the item of each word, from 0; in any order.
        words: ``(m,)``.
        counts: ``(m,)`` bool, whether it counts in the length of its text.
        num_items: Number of items, with or without words.
    """

    lines: Ints
    words: pl.Series
    counts: Bools
    num_items: int

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]]) -> "ItemWords":
        """Return the words of one sequence an item, each of which counts."""
        lines = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        words = pl.Series([word for text in texts for word in text], dtype=pl.String)
        return cls(lines, words, np.ones(len(lines), np.bool_), len(texts))


class LexicalIndex:
    """Scores every item by the words that its text shares with a query's; items can be added.

    With ``tf`` the occurrences of a word in the item's text of ``length`` words, and ``df`` the
    number of the ``N`` items that have it::

        score  = sum over words of the query's text of idf * tf / (tf + k1 * (1 - b + b * length / mean))
        idf    = log(1 + (N - df + 0.5) / (df + 0.5))

    A word that occurs twice in the query counts twice. An index to which items were added equals one that
    was built from all of them: it keeps counts, in parts that are merged when a later part has grown to
    half of the one before.

    Args:
        items: Their words. The reserved rows have none.
        k1: See ``LexicalSettings``.
        b: The same.

    Raises:
        ValueError: A setting is out of its range.

    Source: Robertson and Zaragoza, 2009, section 3; the variant without a factor ``k1 + 1`` and with
        an idf that is never negative is Lucene's. O'Neil et al., The log-structured merge-tree, 1996.
    """

    def __init__(self, items: ItemWords, *, k1: float = 1.2, b: float = 0.75) -> None:
        self.settings = LexicalSettings(k1=k1, b=b)
        self._lengths = np.zeros(FIRST_ROW, np.float32)
        self._parts: tuple[_Part, ...] = ()
        self._add(items)

    def with_settings(self, *, k1: float, b: float) -> "LexicalIndex":
        """Return the same items by other settings; their counts are shared."""
        other = self._copied()
        other.settings = replace(self.settings, k1=k1, b=b)
        return other

    def with_items(self, items: ItemWords) -> "LexicalIndex":
        """Return the index with further items, whose rows come after those that are there."""
        grown = self._copied()
        grown._add(items)
        return grown

    @property
    def num_item_rows(self) -> int:
        """Number of item rows, the reserved ones included."""
        return len(self._lengths)

    def knows(self, words: Sequence[str]) -> bool:
        """Return whether an item has one of the words."""
        return any(word in part.places for word in words for part in self._parts)

    def scores(self, queries: Sequence[Sequence[str]]) -> torch.Tensor:
        """Return the score of each item row for the words of each query: ``(n, num_item_rows)`` float32."""
        scores = np.zeros((len(queries), self.num_item_rows), np.float32)
        for line, words in zip(scores, queries, strict=True):
            for rows, added in self._added(words):
                line[rows] += added
        return torch.from_numpy(scores)

    def scores_of(self, queries: Sequence[Sequence[str]], item_rows: Rows) -> Float32s:
        """Return the numbers that ``scores`` has for some items of each query: ``(n, N)`` float32.

        Args:
            queries: The words of ``n`` queries.
            item_rows: ``(n, N)``; reserved rows score 0.
        """
        scores = np.zeros(item_rows.shape, np.float32)
        for line, wanted, words in zip(scores, item_rows, queries, strict=True):
            for rows, added in self._added(words):
                places = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
                line += np.where(rows[places] == wanted, added[places], np.float32(0))
        return scores

    def _added(self, words: Sequence[str]) -> Iterator[tuple[Rows, Float32s]]:
        """Yield the rows of each word of a query, ascending, and what it adds to their scores."""
        num_items = self.num_item_rows - FIRST_ROW
        for word, times in Counter(words).items():
            found = [part.of(word) for part in self._parts if word in part.places]
            df = sum(len(rows) for rows, _ in found)
            idf = times * np.log(1 + (num_items - df + 0.5) / (df + 0.5))
            for rows, counts in found:
                yield rows, np.float32(idf) * counts / (counts + self._saturation[rows])

    @cached_property
    def _saturation(self) -> Float32s:
        """Of each row, the count of a word at which half of its idf is reached."""
        real = self._lengths[FIRST_ROW:]
        mean = float(real.mean(dtype=np.float64)) if real.any() else 1.0
        k1, b = self.settings.k1, self.settings.b
        return (k1 * (1 - b + b * self._lengths / mean)).astype(np.float32)

    def _add(self, items: ItemWords) -> None:
        first = len(self._lengths)
        lengths = np.bincount(items.lines[items.counts], minlength=items.num_items)
        self._lengths = np.append(self._lengths, lengths.astype(np.float32))
        parts = list(self._parts)
        if len(items.words):
            frame = pl.DataFrame({"word": items.words, "row": (items.lines + first)})
            parts.append(_Part(frame.group_by("word", "row").agg(count=pl.len())))
        while len(parts) > 1 and 2 * len(parts[-1]) >= len(parts[-2]):
            last = parts.pop()
            parts[-1] = _Part(pl.concat([parts[-1].frame(), last.frame()]))
        self._parts = tuple(parts)

    def _copied(self) -> "LexicalIndex":
        other = copy(self)
        vars(other).pop("_saturation", None)  # it depends on the settings and on all items
        return other


class _Part:
    """How often words stand in the texts of some items, word by word.

    Args:
        frame: ``word``, ``row``, ``count``: one line a word and an item that has it.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        frame = frame.sort("word", "row")
        runs = frame["word"].rle()
        self.rows = frame["row"].to_numpy().astype(np.int32)
        self.counts = frame["count"].to_numpy().astype(np.float32)
        self.ends = runs.struct.field("len").to_numpy().cumsum(dtype=np.int64)
        self.places = {word: place for place, word in enumerate(runs.struct.field("value"))}

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, word: str) -> tuple[Rows, Float32s]:
        """Return the rows that have a word of this part, and how often."""
        place = self.places[word]
        here = slice(int(self.ends[place - 1]) if place else 0, int(self.ends[place]))
        return self.rows[here], self.counts[here]

    def frame(self) -> pl.DataFrame:
        """Return what this was made of."""
        words = pl.Series(list(self.places), dtype=pl.String)
        places = np.repeat(np.arange(len(words)), np.diff(self.ends, prepend=0))
        return pl.DataFrame({"word": words.gather(places), "row": self.rows, "count": self.counts})


class _Reading(NamedTuple):
    lines: Ints
    words: pl.Series
    is_stop_word: Bools


def _read(texts: pl.Series, language: str) -> _Reading:
    stem = stemmer(language)
    lines, words = words_of(texts, stem)
    light = pl.Series(list({stem(word) for word in stop_words(language)}), dtype=pl.String)
    return _Reading(lines, words, words.is_in(light.implode()).to_numpy())


def joined(columns: Sequence[pl.Series]) -> pl.Series:
    """Return the texts of some columns as one, line by line; missing ones are empty."""
    strings = [as_keys(column).cast(pl.String).fill_null("") for column in columns]
    frame = pl.DataFrame([column.rename(str(i)) for i, column in enumerate(strings)])
    return frame.select(pl.concat_str(pl.all(), separator=" ")).to_series()
