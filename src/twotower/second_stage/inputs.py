"""What the second stage reads of a query and a candidate: one column of numbers for each.

All of it is known before the query is asked, and none of it needs another model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twotower.arrays import Float32s, Floats, Rows
from twotower.features.base import FeatureArrays
from twotower.features.schema import Feature
from twotower.histories import Histories, last_windows
from twotower.second_stage.follows import Follows
from twotower.second_stage.item_times import SHARES, ItemTimes
from twotower.vocab import FIRST_ROW, PADDING_ROW

Array = npt.NDArray[Any]

WORDS = "words"
"""The input that is the score by BM25."""
_RECENT = 50
"""Events of a history that a candidate is held against."""
_NEWEST = (3, 10)
_POPULARITY_OF = 10  # newest events whose popularity is looked up
_MEANINGS = ("categorical", "tags", "number", "time")
"""Of the features of both sides that are read."""
_MOST_NUMBERS = 4  # columns of a feature of numbers
_CELLS = 2**22  # of similarities that are held at once


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best items of ``n`` queries, as the retriever found them.

    Args:
        item_rows: ``(n, N)`` int32, best first; ``PADDING_ROW`` where there are fewer.
        scores: ``(n, N)`` float32, ``-inf`` where padded.
        histories: Of the queries, with the times of their questions.
        query_features: ``n`` lines of each feature of the queries.
        words: ``(n, N)`` float32 their scores by BM25, 0 where they share no word with the query; None
            where a side has no text.
    """

    item_rows: Rows
    scores: Float32s
    histories: Histories
    query_features: FeatureArrays
    words: Float32s | None = None

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.item_rows)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What is known of the items now.

    Args:
        vectors: ``(num_item_rows, dim)`` of the item tower.
        features: One tensor for each feature of the items, over all rows.
        first_rows: ``(num_item_rows,)`` int32, the row under which each item was known when it was first
            there; None where items have one row each.
    """

    vectors: torch.Tensor
    features: Mapping[str, torch.Tensor]
    first_rows: Rows | None = None


@dataclass(frozen=True, eq=False)
class Memory:
    """What the second stage remembers of the events, as of the end of what was known.

    Args:
        counts: ``(num_item_rows,)`` float32 events of each item.
        follows: Which items follow which; None where events have no order.
        times: When the events of each item were; None where they have no times.
    """

    counts: Float32s
    follows: Follows | None
    times: ItemTimes | None


def columns_of(item: Sequence[Feature], query: Sequence[Feature]) -> tuple[list[str], list[str]]:
    """Return the names of the features of both sides that the second stage reads."""
    both = [[f.name for f in side if f.meaning in _MEANINGS] for side in (item, query)]
    return both[0], both[1]


class Inputs:
    """Makes the inputs of the second stage.

    Args:
        memory: Of the events.
        item_columns: Names of the features of the items that are read.
        query_columns: The same of the queries.
    """

    def __init__(
        self, memory: Memory, item_columns: Sequence[str], query_columns: Sequence[str]
    ) -> None:
        self.memory = memory
        self.item_columns, self.query_columns = list(item_columns), list(query_columns)

    def of(self, candidates: Candidates, catalogue: Catalogue) -> dict[str, Float32s]:
        """Return the inputs by name: ``(n, N)`` float32 each, NaN where nothing is known.

        The names and their order depend on the memory, the columns, and whether both sides have text.
        """
        windows, rows = last_windows(candidates.histories, _RECENT), candidates.item_rows
        found = _of_scores(candidates)
        if candidates.words is not None:
            found |= _of_words(candidates.words)
        found |= _similarities(rows, windows.rows, catalogue.vectors)
        recent = windows.rows
        if catalogue.first_rows is not None:
            rows, recent = catalogue.first_rows[rows], catalogue.first_rows[recent]
        if self.memory.follows is not None:
            near, following = self.memory.follows.after(recent, rows)
            found |= {"follows_recent": near, "follows_last": following}
        found |= self._popularity(rows, recent, candidates.histories.asked)
        found |= _of_history(rows, recent, windows.times, candidates.histories)
        for name in self.item_columns:
            values = catalogue.features[name].cpu().numpy()
            found |= _of_item_column(name, values, candidates.item_rows, windows.rows)
        for name in self.query_columns:
            found |= _of_query_column(name, candidates.query_features[name], rows.shape[1])
        return found

    def _popularity(self, rows: Rows, recent: Rows, asked: Floats | None) -> dict[str, Float32s]:
        """Return how many events the candidates have, and whether these are getting more."""
        times, recent = self.memory.times, recent[:, -_POPULARITY_OF:]
        moments = np.full(len(rows), np.inf)
        if asked is not None:
            moments = np.where(np.isfinite(asked), asked, np.inf)
        if times is None:
            total, of_events = (_looked_up(self.memory.counts, each) for each in (rows, recent))
        else:
            known = times.as_of(rows, moments)
            total, of_events = known.total, times.events_before(recent, moments)
        total = np.log1p(total)
        is_there = recent != PADDING_ROW
        mean = np.where(is_there, np.log1p(of_events), 0).sum(1) / np.maximum(is_there.sum(1), 1)
        found = {
            "events": total,
            "events_of_history": _alike(mean, rows),
            "events_against_history": total - mean[:, None].astype(np.float32),
        }
        if times is not None:
            found["item_age"] = known.ages
            for place, share in enumerate(SHARES):
                lately = np.log1p(known.recent[..., place])
                found[f"events_{round(1 / share)}th"] = lately
                found[f"trend_{round(1 / share)}th"] = lately - total
        return found


def _looked_up(values: Float32s, rows: Rows) -> Float32s:
    """Return the values of item rows, 0 for those that came later."""
    known = rows < len(values)
    return np.where(known, values[np.where(known, rows, 0)], np.float32(0))


def _alike(values: Array, rows: Rows) -> Float32s:
    """Return one value a query, for each of its candidates."""
    return np.broadcast_to(values.astype(np.float32)[:, None], rows.shape)


def _of_scores(candidates: Candidates) -> dict[str, Float32s]:
    """Return what the scores say: alone, against the best, and against the other candidates."""
    is_there = candidates.item_rows >= FIRST_ROW
    scores = np.where(is_there, candidates.scores, np.nan).astype(np.float32)
    num = np.maximum(is_there.sum(1, keepdims=True), 1)
    mean = np.where(is_there, scores, 0).sum(1, keepdims=True) / num
    variance = np.where(is_there, (scores - mean) ** 2, 0).sum(1, keepdims=True) / num
    behind = np.full(scores.shape, np.nan, np.float32)
    behind[:, :-1] = scores[:, :-1] - scores[:, 1:]
    places = np.broadcast_to(np.arange(scores.shape[1], dtype=np.float32), scores.shape)
    standardised = (scores - mean) / (np.sqrt(variance) + 1e-6)
    return {
        "score": scores,
        "place": places,
        "score_below_best": scores[:, :1] - scores,
        "score_above_next": behind,
        "score_standardised": standardised.astype(np.float32),
    }


def _of_words(scores: Float32s) -> dict[str, Float32s]:
    """Return the scores by BM25, and how many candidates have a higher one."""
    order = np.sort(-scores, axis=1)
    places = [np.searchsorted(line, -own) for line, own in zip(order, scores, strict=True)]
    return {
        WORDS: scores,
        "words_place": np.asarray(places, np.float32).reshape(scores.shape),
    }


def _similarities(rows: Rows, recent: Rows, vectors: torch.Tensor) -> dict[str, Float32s]:
    """Return the cosines of each candidate with the recent events of the history."""
    shape = rows.shape
    names = ("most", "mean", "last", *(f"last_{n}" for n in _NEWEST), "most_age")
    found = {f"similarity_{name}": np.full(shape, np.nan, np.float32) for name in names}
    width = max(1, int((recent != PADDING_ROW).sum(1).max(initial=0)))
    recent = recent[:, -width:]
    step = max(1, _CELLS // (shape[1] * width))
    for start in range(0, len(rows), step):
        here = slice(start, start + step)
        items, events = (
            torch.nn.functional.normalize(_vectors_of(vectors, each[here]), dim=2)
            for each in (rows, recent)
        )
        cosines = torch.bmm(items, events.transpose(1, 2)).cpu().numpy()
        is_event = (recent[here] != PADDING_ROW)[:, None, :]
        has_event = is_event.any(2)
        masked = np.where(is_event, cosines, -np.inf)
        most = masked.max(2)
        found["similarity_most"][here] = np.where(has_event, most, np.nan)
        age = width - 1 - masked.argmax(2)
        found["similarity_most_age"][here] = np.where(has_event, age, np.nan)
        found["similarity_last"][here] = np.where(has_event, cosines[..., -1], np.nan)
        for name, newest in (("mean", width), *((f"last_{n}", n) for n in _NEWEST)):
            counted = is_event[..., -newest:]
            sums = np.where(counted, cosines[..., -newest:], 0).sum(2)
            means = sums / np.maximum(counted.sum(2), 1)
            found[f"similarity_{name}"][here] = np.where(has_event, means, np.nan)
    return found


def _vectors_of(vectors: torch.Tensor, rows: Rows) -> torch.Tensor:
    flat = torch.from_numpy(rows.ravel().astype(np.int64)).to(vectors.device)
    return vectors[flat].float().reshape(*rows.shape, -1)


def _of_history(
    rows: Rows, recent: Rows, times: Floats | None, histories: Histories
) -> dict[str, Float32s]:
    """Return how long the history is, when it ended, and where the candidate occurs in it."""
    is_same = recent[:, None, :] == rows[:, :, None]
    is_same &= (rows >= FIRST_ROW)[:, :, None]
    seen = is_same.sum(2)
    newest = np.argmax(is_same[..., ::-1], axis=2)
    found = {
        "history_length": _alike(histories.lengths, rows),
        "times_seen": seen.astype(np.float32),
        "last_seen_age": np.where(seen > 0, newest, np.nan).astype(np.float32),
    }
    if times is not None and histories.asked is not None:
        is_known = np.isfinite(histories.asked) & (recent[:, -1] != PADDING_ROW)
        since = np.where(is_known, histories.asked - times[:, -1], np.nan)
        found["seconds_since_history"] = _alike(since, rows)
    else:
        found["seconds_since_history"] = np.full(rows.shape, np.nan, np.float32)
    return found


def _of_item_column(name: str, values: Array, rows: Rows, recent: Rows) -> dict[str, Float32s]:
    """Return the numbers of a column of the items; of categories and tags, how usual they are here.

    ``in_history`` is the mean, over the values of the candidate, of the share of events in the history that
    have the value.
    """
    if not np.issubdtype(values.dtype, np.integer):
        columns = values[:, None] if values.ndim == 1 else values[:, :_MOST_NUMBERS]
        return {f"item.{name}.{n}": columns[:, n][rows] for n in range(columns.shape[1])}
    own = values if values.ndim == 2 else values[:, None]
    num, width = len(rows), own.shape[1]
    # How many events of the history have each value, as a sorted list of pairs of a query and a value.
    held = own[recent].reshape(num, recent.shape[1] * width).astype(np.int64)
    keys = (np.arange(num)[:, None] << 32 | held)[held >= FIRST_ROW]
    pairs, counts = np.unique(keys, return_counts=True)
    wanted = own[rows].astype(np.int64)
    looked = np.arange(num)[:, None, None] << 32 | wanted
    at = np.minimum(np.searchsorted(pairs, looked), max(0, len(pairs) - 1))
    shared = np.zeros((*rows.shape, width), np.float32)
    if len(pairs):
        is_found = (pairs[at] == looked) & (wanted >= FIRST_ROW)
        shared = np.where(is_found, counts[at], 0).astype(np.float32)
    events = np.maximum((recent != PADDING_ROW).sum(1), 1)[:, None]
    known = np.maximum((wanted >= FIRST_ROW).sum(2), 1)
    found = {f"item.{name}.in_history": (shared.sum(2) / known / events).astype(np.float32)}
    if values.ndim == 1:
        found[f"item.{name}"] = values[rows].astype(np.float32)
    return found


def _of_query_column(name: str, values: Array, width: int) -> dict[str, Float32s]:
    """Return the numbers of a column of the queries; rows of categories as they are."""
    columns = values[:, None] if values.ndim == 1 else values[:, :_MOST_NUMBERS]
    if np.issubdtype(values.dtype, np.integer) and values.ndim == 2:
        columns = columns[:, :1]
    return {
        f"query.{name}.{n}": np.repeat(columns[:, n : n + 1].astype(np.float32), width, axis=1)
        for n in range(columns.shape[1])
    }
