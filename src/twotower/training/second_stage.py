"""The second stage behind a trained model: fitted on validation, and kept where it helps there."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.arrays import Bools, Float32s, Floats, distinct
from twotower.baselines.validation import thinned
from twotower.caller import argument
from twotower.config import Config
from twotower.data.dataset import Cases, Dataset, Part
from twotower.errors import ConfigError, MissingExtraError
from twotower.evaluation.figures import MAIN_METRIC
from twotower.evaluation.intervals import difference_intervals
from twotower.evaluation.metrics import METRICS, metric_name
from twotower.evaluation.scorers import ModelScorer, Ranked, Served
from twotower.extras import library
from twotower.features.transforms import Sides
from twotower.second_stage.follows import Follows
from twotower.second_stage.inputs import Memory, columns_of
from twotower.second_stage.item_times import ItemTimes
from twotower.second_stage.ranker import EXTRA, Ranker, table_of
from twotower.second_stage.trees import plain_trees
from twotower.vocab import FIRST_ROW

MOST_CASES = 20_000
"""Validation queries that it learns from, evenly spaced."""
_MOST_CANDIDATES = 10_000_000  # of all queries that it learns from: each is about 40 numbers
LEAST_CASES = 100
"""Validation queries with a relevant item among the candidates, below which it is not fitted."""
FOLDS = 3
ROUNDS = (25, 50, 100, 200)
"""Numbers of trees that are tried."""
PARAMETERS: dict[str, Any] = {
    "objective": "lambdarank",
    "lambdarank_truncation_level": 20,
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 100,
    "lambda_l2": 10.0,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "seed": 0,
    "verbose": -1,
}
"""Of LightGBM; the same for every data set."""
_K = 10
_AT_ONCE = 512  # cases whose candidates are found in one call, or as few as these hold:
_CELLS = 2**24  # scores, or inputs
_INPUTS = 40  # of a candidate, about


@dataclass(frozen=True, eq=False)
class _Examples:
    """The inputs of all candidates of some queries, and which of them are relevant.

    Args:
        table: ``(n * N, num_inputs)`` float32.
        is_relevant: ``(n, N)`` bool.
        is_there: ``(n, N)`` bool, whether there is a candidate.
        ideal: ``(n,)`` relevant items of each query, found or not.
        weights: ``(n,)`` with which means count each query, see ``Cases``; None counts all alike.
    """

    table: Float32s
    is_relevant: Bools
    is_there: Bools
    ideal: npt.NDArray[np.int64]
    weights: Floats | None

    @property
    def is_learnt(self) -> Bools:
        """Whether a query has a relevant candidate: ``(n,)``. The others teach nothing."""
        return np.asarray(self.is_relevant.any(axis=1))

    def lines(self, queries: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Return the lines of the table that hold the candidates of some queries."""
        depth = self.is_there.shape[1]
        every = (queries[:, None] * depth + np.arange(depth)).ravel()
        return np.asarray(every[self.is_there[queries].ravel()])

    def quality(self, values: Float32s, queries: npt.NDArray[np.integer]) -> Floats:
        """Return NDCG@10 of some queries if their candidates are ordered by ``values``: ``(n,)``."""
        values = np.where(self.is_there[queries], values, -np.inf)
        order = np.argsort(-values, axis=1, kind="stable")
        hits = np.take_along_axis(self.is_relevant[queries], order, axis=1)
        return METRICS["ndcg"].at_k(hits, self.ideal[queries], _K)

    def mean(self, quality: Floats) -> float:
        """Return the mean over all queries, by their weights."""
        return float(np.average(quality, weights=self.weights))


def check_second_stage(config: Config, *, private: bool = False) -> None:
    """Refuse, before the training, a second stage that could not be fitted after it.

    Raises:
        ConfigError: The bundle is to be private.
        MissingExtraError: It is ``"on"``, and the extra ``rank`` is not installed.
    """
    if config.rerank.use == "off":
        return
    if private:
        raise ConfigError(
            f"rerank.use must be 'off' for a private bundle, got {config.rerank.use!r}: a second stage "
            f"remembers which items followed which, and when; leave out {argument('private')} or "
            f"{argument('rerank')}."
        )
    if config.rerank.use == "on":
        library("lightgbm", wanted_by="rerank.use = 'on'", extra=EXTRA)


def with_second_stage(
    base: ModelScorer | Served, dataset: Dataset, sides: Sides, config: Config
) -> tuple[Ranked | None, tuple[str, ...]]:
    """Return the model with a second stage, and in words what was decided.

    It learns from the candidates of validation queries, whose answers the model has not learnt: on the
    candidates of its own training queries, an item's score says above all that the pair was learnt. Each
    third is ranked by trees of the other two; the number of trees is that of the best NDCG@10, and the
    second stage is kept if the paired interval of its difference lies above zero, or if it is ``"on"``.
    Means count each query by its weight, as everywhere on validation.

    Args:
        base: The model, or the model with BM25 beside it.
        dataset: Split.
        sides: The features of the model.
        config: Its settings.
    """
    try:
        library("lightgbm", wanted_by="a second stage", extra=EXTRA)
    except MissingExtraError as error:
        return None, (f"rerank.use = 'off': {error}",)
    model = base.model if isinstance(base, Served) else base
    cases = dataset.cases(Part.VALID)
    depth = min(config.rerank.candidates, dataset.items.ids.num_rows)
    most = min(MOST_CASES, _MOST_CANDIDATES // depth)
    cases = thinned(cases.take(np.flatnonzero(model.is_known(cases))), most)
    ranked = Ranked(
        base,
        _untrained(dataset, sides, config.rerank.candidates),
        not dataset.repeats,
        dataset.offered,
    )
    if not len(cases):
        return _left_out(0)
    examples, names = _examples(ranked, cases)
    learnt = np.flatnonzero(examples.is_learnt)
    if len(learnt) < LEAST_CASES:
        return _left_out(len(learnt))
    rounds, found = _held_out(examples, names)
    everyone = np.arange(len(cases))
    by_model = -np.broadcast_to(np.arange(examples.is_there.shape[1]), examples.is_there.shape)
    before = examples.quality(by_model.astype(np.float32), everyone)
    both = ({MAIN_METRIC: values} for values in (found, before))
    gap = difference_intervals(*both, weights=examples.weights)[MAIN_METRIC]
    is_kept = config.rerank.use == "on" or gap.low > 0
    trees = _fitted(examples, names, learnt, rounds)
    figures: dict[str, Any] = {
        "queries": len(cases),
        "learnt": len(learnt),
        "trees": rounds,
        "valid": [examples.mean(before), examples.mean(found)],
        "difference": gap.as_json(),
        "kept": bool(is_kept),
    }
    ranker = replace(ranked.ranker, trees=trees, names=tuple(names), figures=figures)
    without, with_it = figures["valid"]
    said = (
        f"{metric_name(MAIN_METRIC)} on validation queries that it did not learn: {without:.4f} "
        f"without and {with_it:.4f} with it, difference {gap.value:+.4f} ({gap.low:+.4f} to "
        f"{gap.high:+.4f})"
    )
    use = "on" if is_kept else "off"
    return replace(ranked, ranker=ranker), (f"rerank.use = {use!r}: {said}",)


def _left_out(num: int) -> tuple[None, tuple[str, ...]]:
    """Return that there is no second stage, since too few queries could teach it."""
    said = (
        f"the second stage must learn from {LEAST_CASES} validation queries with a relevant candidate, got "
        f"{num}"
    )
    return None, (f"rerank.use = 'off': {said}",)


def remembering(ranker: Ranker, dataset: Dataset, *parts: Part) -> Ranker:
    """Return a second stage that remembers the events which are known when it answers.

    What follows what stays as the trees learnt it: the last events of validation queries are their answers.

    Args:
        ranker: Of ``with_second_stage``.
        dataset: With all items of the ranker, in their rows, and possibly more after them.
        parts: What is known.
    """
    known = _memory(dataset, *parts)
    memory = replace(ranker.memory, counts=known.counts, times=known.times)
    return replace(ranker, memory=memory)


def _memory(dataset: Dataset, *parts: Part) -> Memory:
    """Return what is remembered of the positive events of some parts, without what follows what."""
    events = dataset.positives(*parts)
    counts = np.bincount(events.item_rows, minlength=dataset.items.ids.num_rows)
    times = None if events.times is None else ItemTimes.fit(events.item_rows, events.times)
    return Memory(counts.astype(np.float32), None, times)


def _untrained(dataset: Dataset, sides: Sides, depth: int) -> Ranker:
    """Return a second stage that remembers the training events, without trees."""
    memory = _memory(dataset, Part.TRAIN)
    if dataset.ordered:
        train = dataset.positives(Part.TRAIN)
        follows = Follows.fit(train.offsets, train.item_rows, dataset.items.ids.num_rows)
        memory = replace(memory, follows=follows)
    item, query = columns_of(sides.item.features, sides.query.features)
    return Ranker("", (), depth, memory, tuple(item), tuple(query), {})


def _examples(ranked: Ranked, cases: Cases) -> tuple[_Examples, list[str]]:
    """Return the examples of some cases, and the names of their inputs."""
    names: list[str] = []
    tables, rows = [], []
    num_rows = ranked.model.encoding.num_item_rows
    step = max(1, min(_AT_ONCE, _CELLS // max(num_rows, _INPUTS * ranked.ranker.depth)))
    for start in range(0, len(cases), step):
        part = cases.take(slice(start, start + step))
        found = ranked.candidates(ranked.base.score(part).float().cpu().clone(), part)
        inputs = ranked.ranker.inputs.of(found, ranked.catalogue)
        names = list(inputs)
        tables.append(table_of(inputs, tuple(names)))
        rows.append(found.item_rows)
    item_rows = np.concatenate(rows)
    owners = cases.targets.owners.astype(np.int64)
    targets = distinct(owners * num_rows + cases.targets.item_rows)
    keys = np.arange(len(cases))[:, None] * num_rows + item_rows
    examples = _Examples(
        table=np.concatenate(tables),
        is_relevant=np.isin(keys, targets) & (item_rows >= FIRST_ROW),
        is_there=item_rows >= FIRST_ROW,
        ideal=np.bincount(targets // num_rows, minlength=len(cases)),
        weights=None if cases.weights is None or not cases.weights.any() else cases.weights,
    )
    return examples, names


def _held_out(examples: _Examples, names: list[str]) -> tuple[int, Floats]:
    """Return the best number of trees, and NDCG@10 of each query by trees that did not learn it."""
    num, depth = examples.is_there.shape
    fold_of = np.empty(
        num, np.int64
    )  # the queries that teach are dealt out first, so that each has some
    fold_of[np.argsort(~examples.is_learnt, kind="stable")] = np.arange(num) % FOLDS
    found = {rounds: np.zeros(num) for rounds in ROUNDS}
    for fold in range(FOLDS):
        inside, outside = fold_of != fold, np.flatnonzero(fold_of == fold)
        booster = _trees(examples, names, np.flatnonzero(inside & examples.is_learnt), max(ROUNDS))
        lines = (outside[:, None] * depth + np.arange(depth)).ravel()
        for rounds in ROUNDS:
            values = booster.predict(examples.table[lines], num_iteration=rounds, num_threads=1)
            found[rounds][outside] = examples.quality(values.reshape(-1, depth), outside)
    best = max(ROUNDS, key=lambda rounds: examples.mean(found[rounds]))
    return best, found[best]


def _fitted(
    examples: _Examples, names: list[str], queries: npt.NDArray[np.integer], rounds: int
) -> str:
    return plain_trees(_trees(examples, names, queries, rounds).model_to_string(), len(names))


def _trees(
    examples: _Examples, names: list[str], queries: npt.NDArray[np.integer], rounds: int
) -> Any:
    lightgbm = library("lightgbm", wanted_by="the second stage", extra=EXTRA)
    sizes = examples.is_there[queries].sum(axis=1)
    relevant = examples.is_relevant.ravel()
    lines = examples.lines(queries)
    data = lightgbm.Dataset(
        examples.table[lines],
        relevant[lines].astype(np.int32),
        group=sizes,
        feature_name=[f"input_{place}" for place in range(len(names))],
        params={"verbose": -1},
    )
    return lightgbm.train(PARAMETERS, data, rounds)
