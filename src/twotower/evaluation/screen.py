"""Figures as tables for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.table import Table

from twotower.evaluation.figures import MAIN_METRIC, OURS, SHOWN, methods, shown_metrics, subject_of
from twotower.evaluation.metrics import METRICS, metric_name
from twotower.evaluation.refit_notes import is_before, note


def method_label(figures: Mapping[str, Any], method: str) -> str:
    """Return what a method is called on a screen; a model whose figures are of another one before it."""
    before = ", before" if method in OURS and is_before(figures) else ""
    return methods()[method] + before


def figures_table(figures: Mapping[str, Any]) -> Table:
    """Return the most important figures: one line per method, one column per metric."""
    run, intervals = _run(figures), figures.get("intervals", {})
    columns = {"": [method_label(figures, name) for name in run]}
    for metric in shown_metrics(figures):
        columns[SHOWN.get(metric, metric)] = [_say(figures[name].get(metric)) for name in run]
        if metric == MAIN_METRIC and intervals:
            columns["95 % interval"] = [_ends(intervals[name][metric]) for name in run]
    return _table(columns, title=_title(figures))


def update_table(update: Mapping[str, Any]) -> Table:
    """Return the figures of an update: the new model, yesterday's and popularity, one line each."""
    names = {"model": "new model", "yesterday": "yesterday's model", "popularity": "popularity"}
    columns = {"": list(names.values())}
    for metric in SHOWN:
        if metric in update["model"]:
            columns[SHOWN[metric]] = [_say(update[name][metric]) for name in names]
    gaps = update["differences"]
    columns[f"new model's {SHOWN[MAIN_METRIC]} minus this one's (95 % interval)"] = [
        "",
        *(
            f"{gaps[n][MAIN_METRIC][0]:+.4f} ({_ends(gaps[n][MAIN_METRIC])})"
            for n in list(names)[1:]
        ),
    ]
    return _table(columns, title=f"The last event of {update['queries']:,} queries of the day")


def all_figures_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Return every figure: a table per cut-off, then those beyond accuracy, then intervals."""
    run = _run(figures)
    labels = [method_label(figures, name) for name in run]
    tables: list[Table] = []
    for title, metrics in _by_cutoff(figures["model"]).items():
        cells = {_short(m): [_say(figures[name].get(m)) for name in run] for m in metrics}
        above = None if tables else _title(figures)
        # Without padding at the edges it fits 80 columns.
        tables.append(_table({title: labels, **cells}, title=above, pad_edge=False))
    ndcg = [metric for metric in figures["model"] if metric.startswith("ndcg@")]
    ends = {m: [_ends(figures["intervals"][name][m]) for name in run] for m in ndcg}
    return [*tables, _table({"95 % interval of": labels, **ends})]


def slices_tables(slices: Sequence[Mapping[str, Any]], baseline: str | None) -> list[Table]:
    """Return a metric on each slice with its interval, then every further one, a table per cut-off.

    Args:
        slices: As ``Slice.as_json`` gives them, at least one.
        baseline: The baseline that the model is compared with, or None.
    """
    labels = [s["by"] if s["by"] == s["label"] else f"{s['by']}: {s['label']}" for s in slices]
    sections = [n for n, (s, after) in enumerate(pairwise(slices)) if s["by"] != after["by"]]
    subject = subject_of(slices[0]["intervals"])
    found = [s["intervals"][subject] for s in slices]
    columns = {
        "": labels,
        "queries": [f"{s['queries']:,}{' (few)' if s['small'] else ''}" for s in slices],
        metric_name(slices[0]["metric"]): [_say(value) for value, _, _ in found],
        "95 % interval": [_ends(interval) for interval in found],
    }
    if baseline is not None:
        columns[f"minus {methods()[baseline]}"] = [
            f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
            for value, low, high in (s["differences"][baseline] for s in slices)
        ]
    tables = [_table(columns, sections)]
    means = [s["means"].get(subject, {}) for s in slices]
    for title, metrics in _by_cutoff(means[0]).items():
        cells = {_short(metric): [_say(each.get(metric)) for each in means] for metric in metrics}
        tables.append(_table({title: labels, **cells}, sections, pad_edge=False))
    return tables


def _table(
    columns: Mapping[str, Sequence[str]], sections: Sequence[int] = (), **options: Any
) -> Table:
    """Return a table of columns by their headers, with a rule below the lines of ``sections``."""
    table = Table(*columns, title_justify="left", **options)
    for number, cells in enumerate(zip(*columns.values(), strict=True)):
        table.add_row(*cells, end_section=number in sections)
    return table


def _by_cutoff(metrics: Iterable[str]) -> dict[str, list[str]]:
    """Return the metrics of each table, by its title."""
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        name, _, k = metric.partition("@")
        title = f"first {k}" if name in METRICS else "labelled pairs"
        if k and name not in METRICS:
            title = f"first {k}, else"
        groups.setdefault(title, []).append(metric)
    return groups


def footnotes(figures: Mapping[str, Any]) -> list[str]:
    """Return what must be read with the table: the verdict, what is amiss, what was left out."""
    protocol = figures["protocol"]
    notes = [figures["verdict"]] if "verdict" in figures else []
    notes += filter(None, [note(figures)])
    notes += protocol.get("notes", [])
    lost = protocol["targets_that_cannot_be_found"]
    if lost["seen"] or lost["absent"]:
        notes.append(
            f"{lost['seen'] + lost['absent']:,} of {protocol['targets']:,} relevant items cannot be "
            f"found: {lost['seen']:,} stand in the history of their query, {lost['absent']:,} are not in "
            "the catalogue. They count as misses."
        )
    if "labelled_pairs" in protocol:
        used, all_pairs = protocol["labelled_pairs"]
        notes.append(
            f"AUC is over {used:,} of {all_pairs:,} labelled pairs, of queries with a positive."
        )
    spread = figures.get("seeds", {}).get(MAIN_METRIC)
    if spread is not None:
        notes.append(
            f"Over {len(spread['values'])} seeds the model's {metric_name(MAIN_METRIC)} is "
            f"{spread['mean']:.4f}, standard deviation {spread['sd']:.4f}."
        )
    if "words" in figures:
        notes.append(_of_words(figures))
    if "second_stage" in figures:
        notes.append(second_stage_note(figures))
    if "index" in figures:
        notes.append(index_note(figures["index"]))
    left_out = protocol.get("left_out", {})
    notes += [f"Left out: {methods()[name]}, as {why}" for name, why in left_out.items()]
    return notes


def index_note(index: Mapping[str, Any]) -> str:
    """Return what an approximate index finds of what scoring every item does.

    Args:
        index: As ``training.indexing.indexed`` gives it.
    """
    value, low, high = index["recall"]["100"]
    rates, bytes_each = index["queries_per_second"], index.get("bytes_per_item")
    memory = ""
    if bytes_each is not None:  # bundles of earlier versions do not know
        memory = f"Beside the vectors it keeps {bytes_each:.0f} bytes an item in memory. "
    return (
        f"Search is approximate: it finds {value:.4f} ({low:.4f} to {high:.4f}) of the 100 best items of "
        f"{index['queries']:,} {index['part']} queries (target: {index['target']:g}), and is "
        f"{rates['approximate'] / rates['exact']:.1f} times as fast as exact search. {memory}"
        "The figures above are of exact rankings."
    )


def second_stage_note(figures: Mapping[str, Any]) -> str:
    """Return what a second stage changes, and what the best order of its candidates would reach.

    Args:
        figures: Of a training or an evaluation, with ``second_stage``.
    """
    told, name = figures["second_stage"], metric_name(MAIN_METRIC)
    if not told["kept"]:
        value, low, high = told["difference"]
        return (
            f"A second stage was left out: on validation it changes {name} by {value:+.4f} "
            f"({low:+.4f} to {high:+.4f})."
        )
    if "ranked" not in figures:
        value, low, high = told["difference"]
        return (
            f"The second stage changes {name} by {value:+.4f} ({low:+.4f} to {high:+.4f}) on queries "
            "that it did not learn."
        )
    before = subject_of(set(_run(figures)) - {"ranked"})
    metric = _main_metric(figures)
    value, low, high = figures["differences"][before][metric]
    name = metric_name(metric)
    said = f"The second stage changes {name} by {value:+.4f} ({low:+.4f} to {high:+.4f})."
    if "ceiling" not in told or metric != MAIN_METRIC:
        return said
    best = f"The best order of its {told['depth']:,} candidates would reach"
    return f"{said} {best} {told['ceiling'][MAIN_METRIC]:.4f}."


def _of_words(figures: Mapping[str, Any]) -> str:
    words, name = figures["words"], metric_name(MAIN_METRIC)
    if not words["share"]:
        return f"Served without BM25, which did not help beside the model on validation ({name})."
    chosen = "that validation chose" if "valid" in words else "without validation to choose it by"
    said = f"As served, BM25 has a share of {words['share']:g} beside the model, {chosen}"
    # An older bundle measured it by itself; the differences may be those of a second stage.
    if subject_of(_run(figures)) != "served":
        return f"{said}."
    metric = _main_metric(figures)
    value, low, high = figures["differences"]["model"][metric]
    return f"{said}: {value:+.4f} {metric_name(metric)} ({low:+.4f} to {high:+.4f})."


def _main_metric(figures: Mapping[str, Any]) -> str:
    """Return the main metric, or the same at another cut-off where figures have that one alone."""
    found, (name, _) = figures["model"], MAIN_METRIC.split("@")
    return MAIN_METRIC if MAIN_METRIC in found else next(m for m in found if m.startswith(name))


def _run(figures: Mapping[str, Any]) -> list[str]:
    return [name for name in methods() if name in figures]


def _title(figures: Mapping[str, Any]) -> str:
    protocol = figures["protocol"]
    seen = "removed" if protocol["seen_removed"] else "kept"
    ranked = f"all {protocol['catalogue']:,} items"
    if protocol["ranking"] == "sampled":
        ranked = f"{protocol['candidates_a_query']:.0f} candidates each"
    view = f"{protocol['view']}: " if "view" in protocol else ""
    asked = f"{protocol['queries']:,} {protocol['part']} queries"
    if "rows" in protocol:
        asked = f"{protocol['rows']:,} {protocol['part']} rows of {protocol['queries']:,} queries"
    return f"{view}{asked}, {ranked}, seen {seen}"


def _short(metric: str) -> str:
    return metric.partition("@")[0].replace("_", " ")


def _ends(interval: Sequence[float]) -> str:
    _, low, high = interval
    return f"{low:.4f} to {high:.4f}"


def _say(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.4f}"
