"""Figures as tables for a terminal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from twotower.evaluation.figures import MAIN_METRIC, SHOWN, methods, subject_of
from twotower.evaluation.intervals import metric_name
from twotower.evaluation.metrics import METRICS
from twotower.evaluation.refit_notes import is_before, note


def method_label(figures: Mapping[str, Any], method: str) -> str:
    """Return what a method is called on a screen; a model whose figures are of another one before it."""
    before = ", before" if method in ("model", "served") and is_before(figures) else ""
    return methods()[method] + before


def figures_table(figures: Mapping[str, Any]) -> Table:
    """Return the figures that say most: a line a method, a column a metric."""
    metrics = [m for m in figures["model"] if m in SHOWN] or list(figures["model"])[:4]
    intervals = figures.get("intervals", {})
    table = Table("", title=_title(figures), title_justify="left")
    for metric in metrics:
        table.add_column(SHOWN.get(metric, metric))
        if metric == MAIN_METRIC and intervals:
            table.add_column("95 % interval")
    for name in _run(figures):
        cells = []
        for metric in metrics:
            cells.append(_say(figures[name].get(metric)))
            if metric == MAIN_METRIC and intervals:
                _, low, high = intervals[name][metric]
                cells.append(f"{low:.4f} to {high:.4f}")
        table.add_row(method_label(figures, name), *cells)
    return table


def all_figures_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Return every figure: a table a cut-off, what is beyond accuracy, intervals; a line a method."""
    tables: list[Table] = []
    for title, metrics in _by_cutoff(figures["model"]).items():
        # Without padding at the edges it fits 80 columns.
        table = Table(title, title_justify="left", pad_edge=False)
        table.title = None if tables else _title(figures)
        for metric in metrics:
            table.add_column(metric.partition("@")[0].replace("_", " "))
        for method in _run(figures):
            cells = (_say(figures[method].get(metric)) for metric in metrics)
            table.add_row(method_label(figures, method), *cells)
        tables.append(table)
    return [*tables, _intervals_table(figures)]


def _by_cutoff(metrics: Iterable[str]) -> dict[str, list[str]]:
    """Return the metrics that stand in one table, by its title."""
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        name, _, k = metric.partition("@")
        title = f"first {k}" if name in METRICS else "labelled pairs"
        if k and name not in METRICS:
            title = f"first {k}, else"
        groups.setdefault(title, []).append(metric)
    return groups


def _intervals_table(figures: Mapping[str, Any]) -> Table:
    """Return the intervals of NDCG: a line a method, a column a cut-off."""
    metrics = [metric for metric in figures["model"] if metric.startswith("ndcg@")]
    table = Table("95 % interval of", *metrics, title_justify="left")
    for method in _run(figures):
        ends = (figures["intervals"][method][metric][1:] for metric in metrics)
        table.add_row(
            method_label(figures, method), *(f"{low:.4f} to {high:.4f}" for low, high in ends)
        )
    return table


def slices_tables(slices: Sequence[Mapping[str, Any]], baseline: str | None) -> list[Table]:
    """Return a metric on each slice with its interval, then every further one, a table a cut-off.

    Args:
        slices: As ``Slice.as_json`` gives them, at least one.
        baseline: The baseline that the model is held against, or None.
    """
    main = slices[0]["metric"]
    table = Table("", "queries", metric_name(main), "95 % interval", title_justify="left")
    if baseline is not None:
        table.add_column(f"minus {methods()[baseline]}")

    def cells(group: Mapping[str, Any]) -> list[str]:
        value, low, high = group["intervals"][subject_of(group["intervals"])]
        few = " (few)" if group["small"] else ""
        found = [f"{group['queries']:,}{few}", f"{value:.4f}", f"{low:.4f} to {high:.4f}"]
        if baseline is not None:
            value, low, high = group["differences"][baseline]
            found.append(f"{value:+.4f} ({low:+.4f} to {high:+.4f})")
        return found

    _add_slices(table, slices, cells)
    tables = [table]
    further = slices[0]["means"].get(subject_of(slices[0]["means"]), {})
    for title, metrics in _by_cutoff(further).items():
        names = (metric.partition("@")[0].replace("_", " ") for metric in metrics)
        table = Table(title, *names, title_justify="left", pad_edge=False)

        def means(group: Mapping[str, Any], metrics: Sequence[str] = metrics) -> list[str]:
            return [
                _say(group["means"][subject_of(group["means"])].get(metric)) for metric in metrics
            ]

        _add_slices(table, slices, means)
        tables.append(table)
    return tables


def _add_slices(
    table: Table,
    slices: Sequence[Mapping[str, Any]],
    cells: Callable[[Mapping[str, Any]], Sequence[str]],
) -> None:
    """Add a line a slice, those of one cut together."""
    by = None
    for group in slices:
        if by not in (None, group["by"]):
            table.add_section()
        by = group["by"]
        label = by if by == group["label"] else f"{by}: {group['label']}"
        table.add_row(label, *cells(group))


def footnotes(figures: Mapping[str, Any]) -> list[str]:
    """Return what must be read with the table: the verdict, what is amiss, what was left out."""
    protocol = figures["protocol"]
    notes = [figures["verdict"]] if "verdict" in figures else []
    said = note(figures)
    notes += [] if said is None else [said]
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
    for metric, spread in figures.get("seeds", {}).items():
        if metric == MAIN_METRIC:
            notes.append(
                f"Over {len(spread['values'])} seeds the model's {metric_name(metric)} is "
                f"{spread['mean']:.4f}, standard deviation {spread['sd']:.4f}."
            )
    if "words" in figures:
        notes.append(_of_words(figures))
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
    rates = index["queries_per_second"]
    return (
        f"Search is approximate: it finds {value:.4f} ({low:.4f} to {high:.4f}) of the 100 best items of "
        f"{index['queries']:,} {index['part']} queries, {index['target']:g} being wanted, "
        f"{rates['approximate'] / rates['exact']:.1f} times as fast as exact search. "
        "The figures above are of exact rankings."
    )


def _of_words(figures: Mapping[str, Any]) -> str:
    words, name = figures["words"], metric_name(MAIN_METRIC)
    if not words["share"]:
        return f"Served without BM25, which did not help beside the model on validation ({name})."
    chosen = "that validation chose" if "valid" in words else "without validation to choose it by"
    said = f"As served, BM25 has a share of {words['share']:g} beside the model, {chosen}"
    if "served" not in figures:  # an older bundle measured it by itself
        return f"{said}."
    value, low, high = figures["differences"]["model"][MAIN_METRIC]
    return f"{said}: {value:+.4f} {name} ({low:+.4f} to {high:+.4f})."


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


def _say(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.4f}"
