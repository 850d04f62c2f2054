"""``Ranker``: orders the candidates of a query by what trees learnt of their inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from twotower.arrays import Float32s
from twotower.extras import library
from twotower.second_stage.inputs import WORDS, Candidates, Catalogue, Inputs, Memory
from twotower.vocab import FIRST_ROW

EXTRA = "rank"
"""What installs LightGBM."""
_CANDIDATES_AT_ONCE = 51_200


@dataclass(frozen=True, eq=False)
class Ranker:
    """The second stage: trees over the inputs of each candidate.

    Args:
        trees: LightGBM's text format.
        names: The inputs, in the order of the trees.
        depth: How many candidates are ranked, at least 2.
        memory: What is remembered of the events.
        item_columns: Features of the items that are read.
        query_columns: Features of the queries that are read.
        figures: How it was chosen, as JSON values.
    """

    trees: str
    names: tuple[str, ...]
    depth: int
    memory: Memory
    item_columns: tuple[str, ...]
    query_columns: tuple[str, ...]
    figures: Mapping[str, Any]

    @property
    def reads_words(self) -> bool:
        """Whether the trees read the score by BM25."""
        return WORDS in self.names

    @property
    def is_kept(self) -> bool:
        """Whether answers are ranked by it."""
        return bool(self.figures["kept"])

    @cached_property
    def inputs(self) -> Inputs:
        """Makes what the trees read."""
        return Inputs(self.memory, self.item_columns, self.query_columns)

    @cached_property
    def _booster(self) -> Any:
        lightgbm = library("lightgbm", wanted_by="the second stage", extra=EXTRA)
        return lightgbm.Booster(model_str=self.trees)

    def values(self, candidates: Candidates, catalogue: Catalogue) -> Float32s:
        """Return what the trees say of each candidate, higher is better: ``(n, N)``, ``-inf`` if padded."""
        found = np.empty(candidates.item_rows.shape, np.float32)
        depth = candidates.item_rows.shape[1]
        step = max(1, _CANDIDATES_AT_ONCE // max(1, depth))
        for start in range(0, len(found), step):
            here = slice(start, start + step)
            part = Candidates(
                candidates.item_rows[here],
                candidates.scores[here],
                candidates.histories.take(here),
                {name: each[here] for name, each in candidates.query_features.items()},
                None if candidates.words is None else candidates.words[here],
            )
            read = self.inputs.of(part, catalogue)
            table = table_of(read, self.names)
            found[here] = self._booster.predict(table, num_threads=1).reshape(part.item_rows.shape)
        found[candidates.item_rows < FIRST_ROW] = -np.inf
        return found

    def contributions(
        self, candidates: Candidates, catalogue: Catalogue, place: int
    ) -> dict[str, tuple[float, float]]:
        """Return what each input does for one candidate of one query: its value, and its share.

        The shares add up to what the trees say of the candidate, less what they say on average.

        Args:
            candidates: Of one query.
            catalogue: See ``values``.
            place: Of the candidate among them.

        Source: Lundberg, Erion and Lee, arXiv:1802.03888 (Shapley values of trees, as LightGBM gives them).
        """
        table = table_of(self.inputs.of(candidates, catalogue), self.names)[place : place + 1]
        shares = self._booster.predict(table, pred_contrib=True, num_threads=1)[0]
        return {
            name: (float(value), float(share))
            for name, value, share in zip(self.names, table[0], shares, strict=False)
        }

    def rescored(self, candidates: Candidates, catalogue: Catalogue) -> Float32s:
        """Return the scores of the candidates in the order of the trees: ``(n, N)`` float32.

        The best candidate gets the highest score that the retriever gave to one of them, the next one the
        second highest, and so on; equal ones are set apart by the smallest step. So scores keep their
        scale, and items that are not candidates stay below.
        """
        return in_order_of(candidates.scores, self.values(candidates, catalogue))


def table_of(inputs: Mapping[str, Float32s], names: tuple[str, ...]) -> Float32s:
    """Return inputs as the trees read them: ``(n * N, len(names))`` float32."""
    return np.stack([inputs[name] for name in names], axis=2).reshape(-1, len(names))


def in_order_of(scores: Float32s, values: Float32s) -> Float32s:
    """Return the scores of each line, handed out again in the order of ``values``.

    They are all distinct, and above what the last one of ``scores`` was: a score is raised by the smallest
    step until it is above the next one. So an item that had the score of the last one stays below.

    Args:
        scores: ``(n, N)`` float32, descending; ``-inf`` where padded.
        values: ``(n, N)``, higher is better, ``-inf`` where padded. Of equal ones the first is better.
    """
    order = np.argsort(-values, axis=1, kind="stable")
    is_there, places = np.isfinite(scores), np.arange(scores.shape[1])
    # The bits of a float32 without its sign number all sizes: neighbours differ by 1.
    bits = scores.view(np.int32).astype(np.int64)
    numbers = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    numbers += places == is_there.sum(axis=1, keepdims=True) - 1
    raised = np.maximum.accumulate((numbers + places)[:, ::-1], axis=1)[:, ::-1] - places
    sizes = np.abs(raised).astype(np.int32).view(np.float32)
    steps = np.where(is_there, np.copysign(sizes, raised), np.float32(-np.inf))
    found = np.empty_like(scores)
    np.put_along_axis(found, order, steps.astype(np.float32), axis=1)
    return found
