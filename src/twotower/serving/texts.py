"""The words of a bundle's items, and of queries that are asked about: for BM25 beside the model."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.caller import argument
from twotower.errors import ArgumentError
from twotower.features.schema import TEXTS
from twotower.index.lexical import LexicalIndex, Words, words_of_texts
from twotower.serving.arguments import GivenFeatures, Id, new_ids
from twotower.serving.bundle import Contents, SideContents
from twotower.vocab import FIRST_ROW, as_keys


class Texts:
    """Reads the columns of text of a bundle's two sides.

    Args:
        contents: What the bundle holds.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self._index: LexicalIndex | None = None

    def index(self, words: float) -> LexicalIndex:
        """Return the index of the items' words, which is made when it is first asked for.

        Args:
            words: The share that was asked for, for messages.

        Raises:
            MissingExtraError: ``bm25s`` is not installed.
            ValueError: Items have no text.
        """
        if self._index is None:
            table = self.contents.items
            columns = _text_columns(table, words, "items")
            of_items = words_of_texts([table.frame[name] for name in columns])
            self._index = LexicalIndex((((),) * FIRST_ROW) + of_items)
        return self._index

    def words_asked(
        self,
        ids: Sequence[Id | None],
        rows: npt.NDArray[np.int32],
        given: GivenFeatures | None,
        words: float,
    ) -> Words:
        """Return the words of ``n`` queries' texts: what is given, else what is stored, else a new id.

        Args:
            ids: ``n`` ids, or None.
            rows: ``(n,)`` their rows.
            given: What a caller told of them.
            words: The share that was asked for, for messages.

        Raises:
            ValueError: Queries have no text.
        """
        queries = self.contents.queries
        columns = _text_columns(queries, words, "queries")
        places = pl.Series(rows.astype(np.int64) - FIRST_ROW)
        known = pl.select(pl.when(places >= 0).then(places)).to_series()
        texts = []
        for name in columns:
            text = as_keys(queries.frame[name].gather(known)).cast(pl.String)
            if name == queries.id_column:
                text = new_ids(ids, name)[name]
            if given is not None and name in given.frame.columns:
                lines = pl.Series(given.lines_with[name])
                text = text.zip_with(~lines, as_keys(given.frame[name]).cast(pl.String))
            texts.append(text)
        return words_of_texts(texts)


def _text_columns(table: SideContents, words: float, what: str) -> list[str]:
    """Return the columns of a side that are read as text.

    Raises:
        ValueError: There is none.
    """
    texts = [f.source for f in table.transforms.features if f.kind in TEXTS]
    if not texts:
        side = "item" if what == "items" else "query"
        raise ArgumentError(
            f"{argument('words')} must be 0 where {what} have no column of text, got {words}; train with "
            f"features.{side}.NAME = 'text'."
        )
    return list(dict.fromkeys(texts))
