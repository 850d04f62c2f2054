"""How the items of a trained model are searched: the index is built, and held against exact search."""

import timeit
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from twotower.arrays import Bools, Floats
from twotower.baselines.validation import thinned
from twotower.config import Config
from twotower.data.dataset import Cases, Dataset, Part
from twotower.errors import MissingExtraError
from twotower.evaluation.intervals import mean_intervals
from twotower.evaluation.scorers import ModelScorer
from twotower.extras import library
from twotower.index.approximate import ApproximateIndex
from twotower.index.base import Index
from twotower.index.lists import divided
from twotower.index.tuning import tuned
from twotower.index.two_pass import exact_index
from twotower.serving.bundle import Contents
from twotower.serving.loading import with_reserved_rows
from twotower.training.settings import with_values
from twotower.vocab import FIRST_ROW, PADDING_ROW

APPROXIMATE_FROM = 500_000
"""Items from which ``auto`` tries an approximate index. Below, exact search takes about a millisecond on
one core, no more than what else an answer over HTTP takes, and nothing is missed."""
MOST_QUERIES = 2_048
"""Queries that an index is tuned on and measured with, half each."""
KS = (10, 100)
"""How many of the best items the recall is measured on."""
TIMED = 64
"""Queries that are asked one by one to tell how fast both indexes are; nothing is decided by that."""


def check_index(config: Config) -> None:
    """Refuse, before the training, an index that could not be built after it.

    Raises:
        MissingExtraError: An approximate index is wanted, and the extra ``ann`` is not installed.
    """
    if config.index.kind == "approximate":
        library("faiss", wanted_by="index.kind = 'approximate'", extra="ann")


def indexed(
    contents: Contents, scorer: ModelScorer, dataset: Dataset
) -> tuple[Contents, tuple[str, ...]]:
    """Return the contents with their index and its figures, and in words what was decided, if anything.

    The index is tuned on one half of the validation queries and measured on the other one. Figures of
    evaluation stay those of exact rankings.

    Args:
        contents: Of the bundle; ``metrics`` gets an entry ``index`` where search is approximate.
        scorer: Its model.
        dataset: Split.
    """
    wanted = contents.config.index
    if wanted.kind == "exact" or (wanted.kind == "auto" and dataset.num_items < APPROXIMATE_FROM):
        return _exact(contents), ()
    try:
        library("faiss", wanted_by="approximate search", extra="ann")
    except MissingExtraError as error:
        return _exact(contents), (f"index.kind = 'exact': {error}",)
    part = Part.VALID if len(dataset.cases(Part.VALID)) else Part.TEST
    queries = _vectors_of(thinned(dataset.cases(part), MOST_QUERIES), scorer)
    if len(queries) < 2 and contents.lists is not None:  # of the bundle that is updated
        return replace(contents, lists=contents.lists.holding(contents.item_vectors.float())), ()
    if len(queries) < 2:
        reason = "there are no queries that an approximate index could be tuned on"
        return _exact(contents), (f"index.kind = 'exact': {reason}",)
    vectors = with_reserved_rows(contents.item_vectors.float())
    lists = tuned(divided(vectors), vectors, queries[::2], wanted.recall)
    index, others, offered = ApproximateIndex(vectors, lists), queries[1::2], dataset.offered
    num_offered = dataset.num_items if offered is None else int(offered[FIRST_ROW:].sum())
    if wanted.kind == "auto" and not index.is_quicker(KS[-1], num_offered):
        reason = f"at a recall of {wanted.recall:g} an approximate index is no faster"
        return _exact(contents), (f"index.kind = 'exact': {reason}",)
    exact = exact_index(vectors, reserved_rows=FIRST_ROW)
    asked = others[:TIMED]
    rates = {"exact": _rate(exact, asked, offered), "approximate": _rate(index, asked, offered)}
    found = {str(k): recalls(index, exact, others, k, offered) for k in KS}
    figures: dict[str, Any] = {
        "kind": "approximate",
        "target": wanted.recall,
        "recall": {k: interval.as_json() for k, interval in mean_intervals(found).items()},
        "queries": len(others),
        "part": "validation" if part == Part.VALID else "test",
        "lists": len(lists),
        "probes": {str(depth): probes for depth, probes in lists.probes.items()},
        "scan": "half precision" if lists.levels is None else "4 bits",
        "rescored": {str(depth): number for depth, number in lists.rescored.items()},
        "bytes_per_item": round(index.bytes_per_item, 1),
        "queries_per_second": rates,
    }
    contents.metrics["index"] = figures  # type: ignore[index]  # the figures of the training have it, too
    reason = f"{lists.probes[min(lists.probes)]} of {len(lists)} lists hold the 100 best"
    return replace(_with_kind(contents, "approximate"), lists=lists), (
        f"index.kind = 'approximate': of {dataset.num_items:,} items in lists, {reason}",
    )


def recalls(index: Index, exact: Index, queries: Tensor, k: int, allowed: Bools | None) -> Floats:
    """Return of each query which share of its ``k`` best items an index finds: ``(Q,)`` in [0, 1].

    Args:
        index: To measure.
        exact: To hold it against.
        queries: ``(Q, dim)`` float32.
        k: At least 1.
        allowed: As ``Index.search`` takes it.
    """
    shares = []
    for part in torch.split(queries, 64):
        found = index.search(part, k, allowed=allowed).item_rows
        best = exact.search(part, k, allowed=allowed).item_rows
        for mine, theirs in zip(found, best, strict=True):
            real = theirs[theirs != PADDING_ROW]
            shares.append(np.isin(real, mine).mean() if len(real) else 1.0)
    return np.array(shares, np.float64)


def _exact(contents: Contents) -> Contents:
    """Return the contents without the lists and figures that a bundle before an update had."""
    contents.metrics.pop("index", None)  # type: ignore[attr-defined]  # as above
    return replace(_with_kind(contents, "exact"), lists=None)


def _with_kind(contents: Contents, kind: Literal["exact", "approximate"]) -> Contents:
    return replace(contents, config=with_values(contents.config, {"index.kind": kind}))


def _vectors_of(cases: Cases, scorer: ModelScorer) -> Tensor:
    """Return the vectors of the queries that the model knows something of, ``(n, dim)``."""
    arrays = {name: values[cases.query_rows] for name, values in scorer.query_features.items()}
    vectors = scorer.encoding.query_vectors(arrays, cases.questions).float().cpu()
    return vectors[torch.from_numpy(scorer.encoding.is_known(arrays, cases.histories))]


def _rate(index: Index, queries: Tensor, allowed: Bools | None) -> float:
    """Return how many queries a second are answered one by one: the best of three runs."""

    def ask() -> None:
        for query in torch.split(queries, 1):
            index.search(query, KS[-1], allowed=allowed)

    return len(queries) / min(timeit.repeat(ask, number=1, repeat=3))
