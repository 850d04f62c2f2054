"""What the model does: how its scores tell items apart, what its answers depend on, and its map."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from twotower.arrays import Bools, Floats
from twotower.data.dataset import Cases, Dataset, Part
from twotower.doctor.model_features import METRIC, Loss
from twotower.evaluation.evaluate_bundle import scorer_of
from twotower.report.charts import Dot, Line, Point, dot_plot, line_chart
from twotower.report.figures_reader import number, with_ends
from twotower.report.sections.methods import in_two_widths
from twotower.report.wording import Say, metric_name
from twotower.serving.map import NO_GROUP, colourings, items_on_map, landmarks_of
from twotower.serving.places import LANDMARKS, places_of
from twotower.serving.retriever import Retriever
from twotower.serving.titles import Titles, clean
from twotower.vocab import FIRST_ROW

MAX_QUERIES = 500
OTHERS = 50
"""Items that are drawn for each query beside its test items."""

MAX_SHOWN = 30
"""Features whose importance is drawn."""

_MAX_LABEL = 40
_MOST_BINS = 40
_ENDS = (0.5, 99.5)
"""Percentiles of all scores between which the chart is drawn."""


class Scores(NamedTuple):
    """The scores of some test queries.

    Args:
        targets: The scores of their test items.
        others: The scores of items that were sampled for them.
        above: Share of all other items that score lower than a test item, as a mean over test items.
    """

    targets: Floats
    others: Floats
    above: float


def test_scores(retriever: Retriever, dataset: Dataset) -> Scores | None:
    """Return the scores of test items and of others; None where the model knows no test query.

    Args:
        retriever: The opened bundle.
        dataset: The data set that it holds.
    """
    scorer = scorer_of(retriever, dataset)
    cases = dataset.cases(Part.TEST)
    known = np.flatnonzero(scorer.is_known(cases))
    rng = np.random.default_rng(0)
    cases = cases.take(np.sort(rng.permutation(known)[:MAX_QUERIES]))
    if not len(cases):
        return None
    scores = scorer.score(cases).float().cpu().numpy().astype(np.float64)
    may_be = _may_be(cases, dataset)
    targets: list[float] = []
    others: list[Floats] = []
    above: list[float] = []
    for place in range(len(cases)):
        wanted = cases.targets.of_one(place)
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
    for values, key in ((found.others, "scores_others"), (found.targets, "scores_targets")):
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        points = list(zip(middles.tolist(), shares.tolist(), strict=True))
        lines.append(Line(say(key), points, is_model=key == "scores_targets"))
    label = say("scores_chart", above=number(100 * found.above, 1))
    options: dict[str, Any] = {"title": say("score"), "from_zero": True, "whole_x": False}
    return in_two_widths(label, line_chart, lines, labels=0, with_dots=False, **options)


def _may_be(cases: Cases, dataset: Dataset) -> Bools:
    """Return which items may be an answer and are none of the test's: ``(n, num_item_rows)``."""
    may_be = np.ones((len(cases), dataset.items.ids.num_rows), np.bool_)
    may_be[:, :FIRST_ROW] = False
    if dataset.offered is not None:
        may_be &= dataset.offered
    left_out = [cases.targets] if dataset.repeats else [cases.targets, cases.histories]
    for each in left_out:
        may_be[each.owners, each.item_rows] = False
    return may_be


def importance_chart(losses: Sequence[Loss], say: Say) -> Markup | None:
    """Return the plot of what the answers lose without each input, largest first; None without any."""
    if not losses:
        return None
    ordered = sorted(losses, key=lambda loss: -loss.drop.value)[:MAX_SHOWN]
    dots = []
    for loss in ordered:
        side, _, column = loss.name.partition(".")
        name = say("history")
        if column:
            name = say("by_column", side=say(f"side_{side}"), column=clean(column, _MAX_LABEL))
        value, low, high = drop = loss.drop.as_json()
        dots.append(Dot(name, value, low, high, f"{name}: {with_ends(drop, 4)}", is_model=True))
    metric = metric_name(say, METRIC)
    label = say("importance_chart", metric=metric, values="; ".join(dot.tip for dot in dots))
    title = say("importance_x", metric=metric)
    return in_two_widths(label, dot_plot, dots, reference=0.0, title=title)


class ItemMap(NamedTuple):
    """Items in two dimensions.

    Args:
        points: Their places.
        column: The column that they are coloured by; None where no column tells groups apart.
        groups: The groups that have a colour, largest first.
    """

    points: Sequence[Point]
    column: str | None
    groups: Sequence[str]


def item_map(retriever: Retriever, titles: Titles) -> ItemMap | None:
    """Return the map of at most ``LANDMARKS`` items; None where fewer than three vectors differ.

    The same bundle always gives the same map, which its server draws, too.

    Args:
        retriever: The opened bundle.
        titles: The titles of its items.
    """
    contents = retriever.contents
    chosen = items_on_map(contents, LANDMARKS)
    places = places_of(contents.item_vectors.numpy()[chosen], landmarks_of(contents, chosen))
    if places is None:
        return None
    by_values = (each for each in colourings(contents.items, chosen) if not each.is_ordered)
    best = max(by_values, key=lambda each: each.explains(places), default=None)
    points = []
    for place, title in enumerate(titles.of(chosen + FIRST_ROW)):
        code = NO_GROUP if best is None else int(best.codes[place])
        group = None if code == NO_GROUP else code
        tip = title if best is None or group is None else f"{title} ({best.groups[group]})"
        points.append(Point(float(places[place, 0]), float(places[place, 1]), group, tip))
    return ItemMap(points, *((None, []) if best is None else (best.column, best.groups)))
