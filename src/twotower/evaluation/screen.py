"""Figures as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from twotower.caller import passing
from twotower.evaluation.evaluate import METRICS
from twotower.evaluation.figures import MAIN_METRIC, METHODS, SHOWN
from twotower.evaluation.intervals import metric_name


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
        table.add_row(METHODS[name], *cells)
    return table


def all_figures_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Return every figure: a table a cut-off, what is beyond accuracy, intervals; a line a method."""
    groups: dict[str, list[str]] = {}
    for metric in figures["model"]:
        name, _, k = metric.partition("@")
        title = f"first {k}" if name in METRICS else "labelled pairs"
        if k and name not in METRICS:
            title = f"first {k}, else"
        groups.setdefault(title, []).append(metric)
    tables: list[Table] = []
    for title, metrics in groups.items():
        # Without padding at the edges it fits 80 columns.
        table = Table(title, title_justify="left", pad_edge=False)
        table.title = None if tables else _title(figures)
        for metric in metrics:
            table.add_column(metric.partition("@")[0].replace("_", " "))
        for method in _run(figures):
            cells = (_say(figures[method].get(metric)) for metric in metrics)
            table.add_row(METHODS[method], *cells)
        tables.append(table)
    return [*tables, _intervals_table(figures)]


def _intervals_table(figures: Mapping[str, Any]) -> Table:
    """Return the intervals of NDCG: a line a method, a column a cut-off."""
    metrics = [metric for metric in figures["model"] if metric.startswith("ndcg@")]
    table = Table("95 % interval of", *metrics, title_justify="left")
    for method in _run(figures):
        ends = (figures["intervals"][method][metric][1:] for metric in metrics)
        table.add_row(METHODS[method], *(f"{low:.4f} to {high:.4f}" for low, high in ends))
    return table


def slices_table(slices: Sequence[Mapping[str, Any]], baseline: str | None) -> Table:
    """Return a metric on each slice: a line a slice, with its count and interval.

    Args:
        slices: As ``Slice.as_json`` gives them, at least one.
        baseline: The baseline that the model is held against, or None.
    """
    metric = metric_name(slices[0]["metric"])
    table = Table("", "queries", metric, "95 % interval", title_justify="left")
    if baseline is not None:
        table.add_column(f"minus {METHODS[baseline]}")
    by = None
    for group in slices:
        if by not in (None, group["by"]):
            table.add_section()
        by = group["by"]
        value, low, high = group["intervals"]["model"]
        label = by if by == group["label"] else f"{by}: {group['label']}"
        few = " (few)" if group["small"] else ""
        cells = [f"{group['queries']:,}{few}", f"{value:.4f}", f"{low:.4f} to {high:.4f}"]
        if baseline is not None:
            value, low, high = group["differences"][baseline]
            cells.append(f"{value:+.4f} ({low:+.4f} to {high:+.4f})")
        table.add_row(label, *cells)
    return table


def footnotes(figures: Mapping[str, Any]) -> list[str]:
    """Return what must be read with the table: the verdict, what is amiss, what was left out."""
    protocol = figures["protocol"]
    notes = [figures["verdict"]] if "verdict" in figures else []
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
        notes.append(_of_words(figures["words"]))
    if "index" in figures:
        notes.append(index_note(figures["index"]))
    left_out = protocol.get("left_out", {})
    notes += [f"Left out: {METHODS[name]}, as {why}" for name, why in left_out.items()]
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


def _of_words(words: Mapping[str, Any]) -> str:
    (value, low, high), gap = words["test"], words["difference"]
    name = metric_name(words["metric"])
    if not words["share"]:
        return f"Words in common by BM25 beside the model did not help on validation ({name})."
    return (
        f"With {passing(words='auto')}, BM25 at a share of {words['share']:g} that validation chose, "
        f"{name} is {value:.4f} ({low:.4f} to {high:.4f}), {gap[0]:+.4f} ({gap[1]:+.4f} to {gap[2]:+.4f})."
    )


def _run(figures: Mapping[str, Any]) -> list[str]:
    return [name for name in METHODS if name in figures]


def _title(figures: Mapping[str, Any]) -> str:
    protocol = figures["protocol"]
    seen = "removed" if protocol["seen_removed"] else "kept"
    ranked = f"all {protocol['catalogue']:,} items"
    if protocol["ranking"] == "sampled":
        ranked = f"{protocol['candidates_a_query']:.0f} candidates each"
    view = f"{protocol['view']}: " if "view" in protocol else ""
    return f"{view}{protocol['queries']:,} {protocol['part']} queries, {ranked}, seen {seen}"


def _say(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.4f}"
