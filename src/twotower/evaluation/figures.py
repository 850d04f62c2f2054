"""The figures of a model and of the baselines, on the same cases, with intervals."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from twotower import html
from twotower.arrays import Float32s, Floats, distinct
from twotower.baselines.specs import BASELINES, Baselines, fit_baselines
from twotower.data.dataset import Cases, Dataset, Part
from twotower.data.splits import learnt_too
from twotower.errors import DataError
from twotower.evaluation import intervals
from twotower.evaluation.case_groups import check_names
from twotower.evaluation.exposure_metrics import exposure
from twotower.evaluation.known_events import by_known_events
from twotower.evaluation.metrics import METRICS, auc, log_loss, metric_name
from twotower.evaluation.ranking import Evaluation, Scorer, check_ks, evaluate_on
from twotower.evaluation.sampled_candidates import INFLATED
from twotower.evaluation.scorers import ModelScorer, Ranked, Served
from twotower.evaluation.slices import slices
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW, PADDING_ROW

KS = (10, 20, 100)
MAIN_METRIC = "ndcg@10"
"""The metric of verdicts, slices and the choice of a baseline's settings."""

OURS = {
    "model": "two-tower",
    "served": "two-tower as served",
    "ranked": "two-tower with ranking",
    "ranked_left_out": "with ranking, left out",
}
"""The model; with its share of BM25; and with a second stage behind either, kept by validation or not."""


def methods() -> dict[str, str]:
    """Return the display name of each method, in the order in which they are shown."""
    return OURS | {name: spec.label for name, spec in BASELINES.items()}


SUBJECTS = {
    "model": "The model",
    "served": "The model as served",
    "ranked": "The model with its second stage",
}
"""What sentences call the subject of a verdict; see ``subject_of``."""

SHOWN = {"hit_rate@10": "HR@10", "ndcg@10": "NDCG@10", "recall@100": "recall@100", "auc": "AUC"}
"""The most important metrics, and their display names."""

Figures = dict[str, Any]


class Measured(Figures):
    """Figures as ``measure`` returns them: a dictionary with a short repr, and a table in notebooks."""

    def __repr__(self) -> str:
        metrics = shown_metrics(self)
        metric = MAIN_METRIC if MAIN_METRIC in metrics else metrics[0]
        means = [
            f"{label} {self[name][metric]:.4f}"
            for name, label in methods().items()
            if name in self and metric in self[name]
        ]
        return f"Figures({SHOWN.get(metric, metric)}: {', '.join(means)})"

    def _repr_html_(self) -> str:
        metrics = shown_metrics(self)
        rows = [
            (label, *map(self[name].get, metrics))
            for name, label in methods().items()
            if name in self
        ]
        header = ("", *(SHOWN.get(metric, metric) for metric in metrics))
        protocol = self["protocol"]
        tested = (
            f"{protocol['queries']:,} {protocol['part']} queries, {protocol['catalogue']:,} items, "
            f"{protocol['ranking']} ranking"
        )
        return html.block(
            html.text(self["verdict"]),
            html.table(rows, header=header),
            html.text(tested, quiet=True),
        )


def shown_metrics(figures: Mapping[str, Any]) -> list[str]:
    """Return the most important metrics of figures, for short tables."""
    found = list(figures["model"])
    return [metric for metric in found if metric in SHOWN] or found[:4]


_CURVE_KS = (1, 2, 5, 10, 20, 50, 100)
_CURVES = ("ndcg", "recall", "hit_rate")
_EXPOSURE_K = 10
_REPLACED = "The second stage was replaced after this test; evaluate the bundle to measure it."
_OF_SLICES = ("hit_rate@10", "recall@100")
"""Further metrics of slices that were not asked for."""


def measure(
    model: ModelScorer,
    dataset: Dataset,
    ks: Sequence[int] = KS,
    *,
    part: Part = Part.TEST,
    calibrated: bool = False,
    baselines: Literal["auto"] | Sequence[str] = "auto",
    ahead: Baselines | None = None,
    served: Served | None = None,
    ranked: Ranked | None = None,
    cases: Cases | None = None,
    candidates: Histories | None = None,
    slice_by: Sequence[str] | None = None,
    tell: Callable[[str], None] = lambda _: None,
    refit: bool = False,
) -> Measured:
    """Return the figures of the model and of the baselines on one part.

    Args:
        model: The trained model.
        dataset: Split.
        ks: Cut-offs.
        part: ``TEST`` or ``VALID``.
        calibrated: Whether the model's scores are log-odds, so that a log loss is meaningful.
        baselines: Their keys; ``"auto"`` takes all that suit the data. See ``fit_baselines``.
        ahead: Those of them that were fitted or left out already.
        served: The model with its share of BM25, if it is served so.
        ranked: Either of them with a second stage, if one was fitted.
        cases: The cases; by default one for each query of the part. A query may have several.
        candidates: The items to rank for each case, instead of the whole catalogue; see ``evaluate``.
        slice_by: How to group the cases, with every metric of each group. None takes every known grouping,
            with a few metrics. See ``slices``.
        tell: Called with the name of each phase when it begins: a baseline, the evaluation.
        refit: Whether the model was refitted on the validation events, too. The baselines then are as well;
            their settings are still chosen on validation before that.

    Returns:
        Plain values, ready for JSON, under these keys: ``model``, ``served`` if BM25 has a share,
        ``ranked`` or ``ranked_left_out`` if a second stage was fitted, and the key of each baseline, each
        with its metrics (``{"ndcg@10": 0.13, ...}``);
        ``intervals`` (method, metric: ``[mean, low, high]``); ``differences`` (every other method, metric:
        the mean of ``subject_of`` them, minus that method's, paired, in the same form);
        ``strongest_baseline``, its key or None; ``verdict``, a sentence about it, and ``verdicts``
        about each; ``curves`` (metric, method: one mean for each of ``k``); ``slices`` (see
        ``Slice.as_json``); ``known_events`` (see ``by_known_events``; absent if undefined);
        ``second_stage`` (how it was chosen, and what the best order of its candidates would reach where the
        whole catalogue is ranked; absent without one);
        ``protocol``: what was ranked, the number of queries, the baselines' settings, and which were
        left out and why.
    """
    cases = dataset.cases(part) if cases is None else cases
    check_ks(ks)
    check_names(dataset, slice_by)
    if not len(cases):
        raise DataError(
            f"the {part.name.lower()} events must hold a positive of a known query, got none; choose a "
            "split that leaves some, such as split.kind=random, or pass other test events."
        )
    chosen = served.bm25 if served is not None and served.chosen else None
    among = None if ahead is None else set(BASELINES.keys()) - ahead.keys
    fitted = fit_baselines(
        dataset, baselines, bm25=chosen, cases=cases, refit=refit, among=among, tell=tell
    )
    if ahead is not None:
        fitted = ahead.joined(fitted)
    tell("evaluation")
    if refit:
        dataset = learnt_too(dataset, "valid")
    scorers: dict[str, Scorer] = {"model": model}
    if served is not None and served.share:
        scorers["served"] = served
    if ranked is not None:
        scorers["ranked" if ranked.ranker.is_kept else "ranked_left_out"] = ranked
    scorers |= fitted.scorers
    before = subject_of(set(scorers) - {"ranked"})
    # Of what a second stage orders, all its candidates are needed, which may be many.
    depths = {} if ranked is None else {before: (ranked.ranker.depth,)}
    found = {
        name: evaluate_on(
            dataset,
            scorer,
            cases,
            tuple(dict.fromkeys((*ks, *_CURVE_KS, *depths.get(name, ())))),
            candidates=candidates,
        )
        for name, scorer in scorers.items()
    }
    metrics = [f"{name}@{k}" for k in ks for name in METRICS]
    means = {name: evaluation.mean() for name, evaluation in found.items()}
    figures = Measured({name: {m: mean[m] for m in metrics} for name, mean in means.items()})
    if candidates is None:
        for name, values in _exposures(model, dataset, found).items():
            figures[name] |= values
    pairs, labelled = _labelled(model, dataset, part, calibrated=calibrated)
    figures["model"] |= labelled
    figures |= _comparison(found, metrics)
    figures["curves"] = {"k": list(_CURVE_KS)} | {
        metric: {name: [mean[f"{metric}@{k}"] for k in _CURVE_KS] for name, mean in means.items()}
        for metric in _CURVES
    }
    further = [m for m in metrics if slice_by is not None or m in _OF_SLICES]
    subject = subject_of(found)
    cut = slices(found, dataset, metric=MAIN_METRIC, further=further, by=slice_by, model=subject)
    figures["slices"] = [group.as_json() for group in cut]
    if candidates is None:
        known = by_known_events(scorers, dataset, part, MAIN_METRIC)
        figures |= {} if known is None else {"known_events": known}
    figures["protocol"] = _protocol(dataset, part, found["model"], candidates) | {
        "settings": fitted.settings,
        "left_out": fitted.left_out,
    }
    if labelled:
        figures["protocol"]["labelled_pairs"] = pairs
    if served is not None:
        figures["words"] = served.as_json()
    if ranked is not None:
        figures["second_stage"] = dict(ranked.ranker.figures) | {"depth": ranked.ranker.depth}
        if candidates is None:  # else a second stage sees few of the ranked items
            ceiling = ceiling_of(found[before], ranked.ranker.depth)
            figures["second_stage"]["ceiling"] = ceiling
    return figures


def ceiling_of(found: Evaluation, depth: int) -> dict[str, float]:
    """Return the main metric if the relevant among the first items came first, and how many those are."""
    owners, rows = found.cases.targets.owners, found.cases.targets.item_rows
    pairs = distinct(owners.astype(np.int64) << 32 | rows)
    num_relevant = np.bincount(pairs >> 32, minlength=len(found.cases))
    recall = f"recall@{depth}"
    hits = np.rint(found.values[recall] * num_relevant)
    name, k = MAIN_METRIC.split("@")
    is_hit = np.arange(int(k)) < hits[:, None]
    best = METRICS[name].at_k(is_hit, num_relevant, int(k))
    return {MAIN_METRIC: float(best.mean()), recall: float(found.values[recall].mean())}


def without_second_stage(figures: Mapping[str, Any]) -> Figures:
    """Return figures as they are kept where another second stage takes the place of a measured one.

    What only that one was compared by is left out: it says nothing of the model.
    """
    gone = ("ranked", "ranked_left_out")

    def kept(found: Any) -> Any:
        if isinstance(found, Mapping):
            return {name: kept(each) for name, each in found.items() if name not in gone}
        return [kept(each) for each in found] if isinstance(found, list) else found

    found = {name: each for name, each in figures.items() if name not in (*gone, "second_stage")}
    for name in ("intervals", "differences", "curves", "slices"):
        if name in found:
            found[name] = kept(found[name])
    if "ranked" in figures:
        found |= {"differences": {}, "slices": [], "verdicts": {}, "verdict": _REPLACED}
    return found


def subject_of(methods: Collection[str]) -> str:
    """Return the method that verdicts are about: as the bundle answers."""
    return next(name for name in reversed(SUBJECTS) if name in methods)


def _comparison(found: Mapping[str, Evaluation], metrics: Sequence[str]) -> Figures:
    """Return the intervals, the paired differences, and the verdicts."""
    shown = dict.fromkeys([*metrics, MAIN_METRIC])
    ours, owners = subject_of(found), found["model"].cases.owners
    others = [name for name in found if name != ours]

    def flat(names: Iterable[str], of: str | None = None) -> dict[str, Floats]:
        return {f"{name}/{m}": found[of or name].values[m] for name in names for m in shown}

    def nested(flat: Mapping[str, intervals.Interval], names: Iterable[str]) -> Figures:
        return {name: {m: flat[f"{name}/{m}"].as_json() for m in metrics} for name in names}

    # All in one call: the draws of the bootstrap are the same for each method.
    means = intervals.mean_intervals(flat(found), owners=owners)
    gaps = intervals.difference_intervals(flat(others, ours), flat(others), owners=owners)
    subject = SUBJECTS[ours]
    main = metric_name(MAIN_METRIC)
    sentences = {
        name: f"{subject} {intervals.verdict(spec.label, main, gaps[f'{name}/{MAIN_METRIC}'])}."
        for name, spec in BASELINES.items()
        if name in found
    }
    strongest = max(sentences, key=lambda name: means[f"{name}/{MAIN_METRIC}"].value, default=None)
    return {
        "intervals": nested(means, found),
        "differences": nested(gaps, others),
        "strongest_baseline": strongest,
        "verdict": "No baseline was run." if strongest is None else sentences[strongest],
        "verdicts": sentences,
    }


def _exposures(
    model: ModelScorer, dataset: Dataset, found: Mapping[str, Evaluation]
) -> dict[str, dict[str, float]]:
    """Return the metrics beyond accuracy of each method; diversity is by the model's item vectors."""
    train = dataset.positives(Part.TRAIN)
    popularity = np.bincount(train.item_rows, minlength=dataset.items.ids.num_rows)
    vectors = model.item_vectors.float().cpu().numpy()
    # The catalogue is the items that can be recommended.
    kept = np.ones(len(popularity), np.bool_)
    if dataset.offered is not None:
        kept[FIRST_ROW:] = dataset.offered[FIRST_ROW:]
    place = np.where(kept, np.cumsum(kept) - 1, PADDING_ROW).astype(np.int32)
    return {
        name: exposure(
            place[evaluation.ranking.item_rows],
            _EXPOSURE_K,
            popularity=popularity[kept],
            item_vectors=vectors[kept],
            targets=place[evaluation.cases.targets.item_rows],
        )
        for name, evaluation in found.items()
    }


def _protocol(
    dataset: Dataset, part: Part, found: Evaluation, candidates: Histories | None
) -> dict[str, Any]:
    cases = found.cases
    protocol: dict[str, Any] = {
        "part": part.name.lower(),
        "queries": len(distinct(cases.query_rows)),
        "targets": len(cases.targets.item_rows),
        "targets_that_cannot_be_found": {
            "seen": found.num_seen_targets,
            "absent": found.num_absent_targets,
        },
        "catalogue": dataset.num_items,
        "ranking": "full",
        "seen_removed": not dataset.repeats,
    }
    if cases.owners is not None:
        protocol["rows"] = len(cases)  # the means are over these
    if candidates is not None:
        protocol |= {
            "ranking": "sampled",
            "candidates_a_query": float(candidates.lengths.mean()),
            "warning": INFLATED,
        }
    return protocol


def _labelled(
    model: ModelScorer, dataset: Dataset, part: Part, *, calibrated: bool
) -> tuple[list[int], dict[str, float]]:
    """Return the numbers of scored and of all labelled pairs, with the AUC and the log loss.

    Only queries with a case are scored: those with a positive event in the part.
    """
    events = dataset.part(part)
    if events.is_target is not None:
        events = events.where(events.is_target)
    if events.labels is None or not 0 < events.labels.mean() < 1:
        return [], {}
    cases = dataset.cases(part)
    case_of = np.full(dataset.queries.ids.num_rows, -1, np.int64)
    case_of[cases.query_rows] = np.arange(len(cases))
    kept = case_of[events.query_rows] >= 0
    labels: Float32s = events.labels[kept]
    if not 0 < labels.mean() < 1:
        return [], {}
    scores = model.score_pairs(cases, case_of[events.query_rows[kept]], events.item_rows[kept])
    result = {"auc": auc(scores, labels)}
    if calibrated:
        temperature = float(model.encoding.model.temperature.detach())
        result["log_loss"] = log_loss(scores / temperature, labels)
    return [len(labels), len(events)], result
