"""What a retriever answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from twotower.errors import MissingExtraError
from twotower.serving.arguments import Id

Basis = Literal["model", "popularity"]


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The answer to one query, best first, or in the order that rules made.

    Args:
        query_id: The query's id, or None where it was described without one.
        item_ids: At most ``k`` ids.
        scores: Their dot products, or numbers of training events where ``basis`` is popularity.
        basis: ``"model"``, or ``"popularity"`` where nothing that the model reads is known of the
            query.
        explored: The items that were drawn at random, each with how probable that was; None where nothing
            was to be explored. See ``rules.kinds.Explore``.
        notes: Sentences on what was asked and found nothing: values of a filter that no item has, ids of
            the history that are not known.
    """

    query_id: Id | None
    item_ids: list[Id]
    scores: list[float]
    basis: Basis
    explored: Mapping[Id, float] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of items."""
        return len(self.item_ids)


@dataclass(frozen=True, eq=False)
class Recommendations(Sequence[Recommendation]):
    """The answers to several queries, in their order."""

    answers: tuple[Recommendation, ...]
    items: pl.DataFrame
    item_column: str

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.answers)

    def __getitem__(self, position: Any) -> Any:
        return self.answers[position]

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.answers)

    def to_polars(self) -> pl.DataFrame:
        """Return one line an answer: query_id, rank, item id, score, basis, the item's columns.

        Where something was to be explored, ``propensity`` is there, too: of the items that were.
        """
        counts = [len(answer) for answer in self.answers]
        ids: list[object] = [item for answer in self.answers for item in answer.item_ids]
        key = pl.Series(self.item_column, ids, dtype=self.items[self.item_column].dtype)
        details = key.to_frame().join(
            self.items, on=self.item_column, how="left", maintain_order="left"
        )
        is_explored = any(answer.explored is not None for answer in self.answers)
        own = ("query_id", "rank", "score", "basis", *(("propensity",) if is_explored else ()))
        lines = pl.DataFrame(
            {
                "query_id": pl.Series(
                    [
                        a.query_id
                        for a, n in zip(self.answers, counts, strict=True)
                        for _ in range(n)
                    ],
                    strict=False,
                ),
                "rank": pl.Series([r for n in counts for r in range(1, n + 1)], dtype=pl.Int32),
                "item_id" if self.item_column in own else self.item_column: key,
                "score": pl.Series([s for a in self.answers for s in a.scores], dtype=pl.Float32),
                "basis": pl.Series(
                    [a.basis for a, n in zip(self.answers, counts, strict=True) for _ in range(n)],
                    dtype=pl.String,
                ),
            }
        )
        if is_explored:
            drawn = [(a.explored or {}).get(item) for a in self.answers for item in a.item_ids]
            lines = lines.with_columns(propensity=pl.Series(drawn, dtype=pl.Float64))
        return lines.hstack([c for c in details if c.name not in lines.columns])

    def to_pandas(self) -> Any:
        """Return ``to_polars`` as a pandas frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            return self.to_polars().to_pandas()
        except ImportError as error:
            raise MissingExtraError(
                "pandas frames need pandas and pyarrow; run `pip install 'twotower[pandas]'`."
            ) from error
