"""How far the model's scores tell what happened next from everything else."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from twotower.data.dataset import Cases, Dataset, Part
from twotower.evaluation.evaluate_bundle import scorer_of
from twotower.report.charts import Line, line_chart
from twotower.report.figures_reader import number
from twotower.report.sections.methods import in_two_widths
from twotower.report.wording import Say
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW

MAX_QUERIES = 500
OTHERS = 50
"""Items that are drawn for each query beside its test items."""

_MOST_BINS = 40
_ENDS = (0.5, 99.5)
"""Percentiles of all scores between which the chart is drawn."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of some test queries.

    Args:
        targets: Of their test items.
        others: Of items that were drawn for them.
        above: Share of all other items that a test item is above, in the mean over test items.
    """

    targets: npt.NDArray[np.float64]
    others: npt.NDArray[np.float64]
    above: float


def test_scores(retriever: Retriever, dataset: Dataset) -> Scores | None:
    """Return the scores of test items and of others; None where no test query is known to the model.

    Args:
        retriever: The opened bundle.
        dataset: The data set that it remembers.
    """
    scorer = scorer_of(retriever, dataset)
    cases = dataset.cases(Part.TEST)
    features = {name: v[cases.query_rows] for name, v in retriever.query_features.items()}
    known = np.flatnonzero(scorer.encoding.is_known(features, cases.histories))
    rng = np.random.default_rng(0)
    cases = cases.take(np.sort(rng.permutation(known)[:MAX_QUERIES]))
    if not len(cases):
        return None
    scores = scorer.score(cases).float().cpu().numpy().astype(np.float64)
    may_be = _may_be(cases, dataset)
    targets: list[float] = []
    others: list[npt.NDArray[np.float64]] = []
    above: list[float] = []
    for place in range(len(cases)):
        wanted = cases.targets.take(np.array([place])).item_rows
        candidates = scores[place, may_be[place]]
        if not len(candidates):
            continue
        for score in scores[place, wanted[wanted >= FIRST_ROW]]:
            targets.append(float(score))
            above.append(float((candidates < score).mean() + (candidates == score).mean() / 2))
        others.append(rng.choice(candidates, min(OTHERS, len(candidates)), replace=False))
    if not targets:
        return None
    return Scores(np.array(targets), np.concatenate(others), float(np.mean(above)))


def scores_chart(found: Scores, say: Say) -> Markup:
    """Return the chart of both distributions."""
    low, high = np.percentile(np.concatenate([found.targets, found.others]), _ENDS)
    num_bins = min(_MOST_BINS, 5 + int(np.sqrt(len(found.targets))))
    edges = np.linspace(low, high if high > low else low + 1, num_bins + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    lines = []
    for values, name, is_model in (
        (found.others, say("scores_others"), False),
        (found.targets, say("scores_targets"), True),
    ):
        counts, _ = np.histogram(values, edges)
        shares = 100 * counts / len(values)
        points = list(zip(middles.tolist(), shares.tolist(), strict=True))
        lines.append(Line(name, points, is_model=is_model))
    return in_two_widths(
        say("scores_chart", above=number(100 * found.above, 1)),
        line_chart,
        lines,
        label_width=0,
        title=say("score"),
        from_zero=True,
        whole_x=False,
        with_dots=False,
    )


def _may_be(cases: Cases, dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Return which items may be an answer and are none of the test's: ``(n, num_item_rows)``."""
    may_be = np.ones((len(cases), dataset.items.ids.num_rows), np.bool_)
    may_be[:, :FIRST_ROW] = False
    if dataset.offered is not None:
        may_be &= dataset.offered
    left_out = [cases.targets] if dataset.repeats else [cases.targets, cases.histories]
    for each in left_out:
        may_be[np.repeat(np.arange(len(cases)), each.lengths), each.item_rows] = False
    return may_be
