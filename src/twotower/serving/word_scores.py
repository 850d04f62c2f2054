"""The words of items and queries, for BM25 beside the model."""

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from twotower.caller import argument
from twotower.errors import ArgumentError
from twotower.features.schema import texts_of
from twotower.index.fusion import FusedIndex
from twotower.index.lexical import LexicalIndex, LexicalSettings, Words
from twotower.serving.arguments import new_ids, plain
from twotower.serving.bundle import Contents, SideContents
from twotower.serving.queries import Described
from twotower.vocab import FIRST_ROW, as_keys


class Texts:
    """Reads the text columns of a bundle's queries and items.

    Args:
        contents: What the bundle holds. Assign the new contents here when the catalogue changes. Items that
            were read are not read again.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.settings = LexicalSettings.of_json(contents.metrics.get("words") or {})
        self._index: LexicalIndex | None = None

    @property
    def are_there(self) -> bool:
        """Whether both sides have text, and the bundle says how BM25 reads it."""
        sides = (self.contents.queries, self.contents.items)
        told = self.contents.metrics.get("words")
        return bool(told) and all(texts_of(side.transforms.features) for side in sides)

    def index(self, words: float) -> LexicalIndex:
        """Return the index of the items' words. The first call builds it.

        Args:
            words: The weight that the caller asked for, for messages.

        Raises:
            ValueError: Items have no text.
        """
        table = self.contents.items
        columns = _text_columns(table, words, "items")
        num_read = 0 if self._index is None else self._index.num_item_rows - FIRST_ROW
        if self._index is None or num_read < len(table.frame):
            new = table.frame.select(columns)[num_read:]
            of_items = self.settings.words_of_items(new.get_columns())
            if self._index is None:
                self._index = LexicalIndex(of_items, k1=self.settings.k1, b=self.settings.b)
            else:
                self._index = self._index.with_items(of_items)
        return self._index

    def fused(
        self, vectors: torch.Tensor, queries: Described, known: npt.NDArray[np.bool_], share: float
    ) -> tuple[FusedIndex, npt.NDArray[np.bool_]]:
        """Return an index that scores by vectors and words, and which queries it can answer.

        If the model knows nothing about a query, the words alone answer it; if they say nothing either, the
        vectors do.

        Args:
            vectors: ``(num_item_rows, dim)``, of the items.
            queries: The ``n`` queries.
            known: ``(n,)`` bool, whether the model knows anything about each query.
            share: The weight of the words, in [0, 1].

        Raises:
            ValueError: Queries or items have no text.
        """
        lexical, words = self.index(share), self.words_asked(queries, share)
        knows = np.array([lexical.knows(each) for each in words], np.bool_)
        shares = np.where(known, share, knows).astype(np.float32)
        weights = torch.from_numpy(shares)
        return FusedIndex(vectors, lexical, words, weights), known | knows

    def words_asked(self, asked: Described, share: float) -> Words:
        """Return the words of queries: of the given text, else the stored text, else the id.

        Args:
            asked: The queries.
            share: The weight that the caller asked for, for messages.

        Raises:
            ValueError: Queries have no text.
        """
        queries, told = self.contents.queries, asked.told
        columns = _text_columns(queries, share, "queries")
        places = pl.Series(queries.ids.rows_of(plain(told.ids)).astype(np.int64) - FIRST_ROW)
        known = pl.select(pl.when(places >= 0).then(places)).to_series()
        texts = []
        for name in columns:
            text = as_keys(queries.frame[name].gather(known)).cast(pl.String)
            if name == queries.id_column:
                text = new_ids(told.ids, name)[name]
            if told.features is not None and name in told.features.frame.columns:
                lines = pl.Series(told.features.lines_with[name])
                text = text.zip_with(~lines, as_keys(told.features.frame[name]).cast(pl.String))
            texts.append(text)
        return self.settings.words_of_queries(texts)


def _text_columns(table: SideContents, words: float, what: str) -> tuple[str, ...]:
    """Return the text columns of a side.

    Raises:
        ValueError: There are none.
    """
    texts = texts_of(table.transforms.features)
    if not texts:
        side = "item" if what == "items" else "query"
        raise ArgumentError(
            f"{argument('words')} must be 0 where {what} have no column of text, got {words}; train with "
            f"features.{side}.NAME = 'text'."
        )
    return texts
