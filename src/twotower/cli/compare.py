"""``twotower compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

import twotower
from twotower.cli.output import console, print_json, say
from twotower.errors import ConfigError

if TYPE_CHECKING:
    from twotower.evaluation.compare import Comparison
    from twotower.evaluation.intervals import Interval
    from twotower.evaluation.slices import Slice


_METRICS = ("hit_rate@10", "ndcg@10", "recall@10", "recall@100")


def command(bundles: list[Path], *, out: Path | None = None, json: bool = False) -> None:
    """Hold bundles against the first: settings, figures with intervals, slices won and lost.

    Example: twotower compare model-a model-b --out compare.html

    Args:
        bundles: Folders of two or more bundles.
        out: Write one HTML page there.
    """
    if len(bundles) < 2:
        raise ConfigError(
            f"compare must be given at least two bundles, got only {str(bundles[0])!r}; "
            "name another after it."
        )
    if out is not None:
        from twotower.report.html_files import check_page

        check_page(out)
    comparison = twotower.compare_runs(bundles)
    if out is not None:
        from twotower.report.comparison import write_comparison

        write_comparison(comparison, out)
    screen = console(json_wanted=json)
    if json:
        print_json(comparison.as_json())
    else:
        for part in _parts(comparison):
            screen.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
    if out is not None:
        say(screen, f"Page: {out}")


def _parts(comparison: "Comparison") -> list[Table | str]:
    """Return what is printed, in order."""
    parts: list[Table | str] = [_figures_table(comparison), *comparison.verdicts.values()]
    if comparison.settings:
        parts.append(_settings_table(comparison))
    else:
        parts.append("The runs have the same settings.")
    for run in comparison.runs[1:]:
        won, lost = comparison.won[run], comparison.lost[run]
        if won or lost:
            parts.append(_slices_table(comparison, run, won, lost))
        if comparison.num_slices:
            parts.append(
                f"{run}: {len(won)} slices won and {len(lost)} lost of {comparison.num_slices} against "
                f"{comparison.runs[0]}; by chance alone, one in forty of each is to be expected."
            )
    return parts


def _figures_table(comparison: "Comparison") -> Table:
    """Return a line a run: its means, and below a later run's the differences with intervals."""
    seen = "removed" if comparison.seen_removed else "kept"
    title = f"{comparison.queries:,} test queries, all {comparison.catalogue:,} items, seen {seen}"
    table = Table("", *_METRICS, title=title, title_justify="left")
    first = comparison.runs[0]
    for run in comparison.runs:
        means = comparison.intervals[run]
        table.add_row(run, *(f"{means[metric].value:.4f}" for metric in _METRICS))
        if run != first:
            gaps = comparison.differences[run]
            table.add_row(f"  minus {first}", *(_gap(gaps[metric]) for metric in _METRICS))
    return table


def _settings_table(comparison: "Comparison") -> Table:
    columns = ("setting", *comparison.runs, "default")
    table = Table(*columns, title="Settings that differ", title_justify="left")
    for setting in comparison.settings:
        values = (setting.values[run] for run in comparison.runs)
        table.add_row(setting.name, *map(_say, values), _say(setting.default))
    return table


def _slices_table(
    comparison: "Comparison", run: str, won: "tuple[Slice, ...]", lost: "tuple[Slice, ...]"
) -> Table:
    from twotower.evaluation.metrics import metric_name

    first = comparison.runs[0]
    metric = metric_name((*won, *lost)[0].metric)
    columns = ("", f"{run} against {first}", "queries", f"{metric} minus {first}'s")
    table = Table(*columns, title="Slices won and lost", title_justify="left")
    for word, groups in (("won", won), ("lost", lost)):
        for group in groups:
            gap = _gap(group.differences[first])
            table.add_row(word, group.name, f"{group.queries:,}", gap)
    return table


def _gap(found: "Interval") -> str:
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _say(value: Any) -> str:
    from twotower.toml import toml_value

    return "" if value is None else toml_value(value)
