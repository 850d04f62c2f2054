"""``twotower compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from twotower.cli.output import console, print_json
from twotower.errors import ConfigError

if TYPE_CHECKING:
    from twotower.evaluation.compare import Comparison
    from twotower.evaluation.slices import Slice

NAME = "compare"

_METRICS = ("hit_rate@10", "ndcg@10", "recall@10", "recall@100")


def command(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of two or more bundles.")],
    out: Annotated[Path | None, typer.Option(help="Write a page, an .html file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hold bundles against the first: settings, figures with intervals, slices won and lost.

    Example: twotower compare model-a model-b --out compare.html
    """
    if len(bundles) < 2:
        raise ConfigError(
            f"compare must be given at least two bundles, got only {str(bundles[0])!r}; "
            "name another after it."
        )
    if out is not None:
        _check_page(out)
    from twotower.evaluation.compare import compare_runs

    comparison = compare_runs(bundles)
    if out is not None:
        from twotower.evaluation.report import write_comparison

        write_comparison(comparison, out)
    screen = console(json_wanted=json)
    if json:
        print_json(comparison.as_json())
    else:
        for part in _parts(comparison):
            screen.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
    if out is not None:
        screen.print(f"Page: {out}", highlight=False, markup=False, soft_wrap=True)


def _check_page(path: Path) -> None:
    """Refuse a file that could not be written, before the work and not after it."""
    if path.suffix != ".html":
        raise ConfigError(f"--out must end in .html, got {str(path)!r}.")
    if path.is_dir():
        raise ConfigError(f"--out must be a file, got the folder {str(path)!r}; name a file in it.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"--out must be in a folder that exists, got {str(path)!r}; make it first."
        )


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
        parts.append(
            f"{run}: {len(won)} slices won and {len(lost)} lost of {comparison.num_slices} against "
            f"{comparison.runs[0]}; by chance alone, one in forty of each is to be expected."
        )
    return parts


def _figures_table(comparison: "Comparison") -> Table:
    """Return a line a run: its means, and below a later run's the differences with intervals."""
    seen = "removed" if comparison.seen_removed else "kept"
    table = Table(
        "",
        *_METRICS,
        title=(
            f"{comparison.queries:,} test queries, all {comparison.catalogue:,} items, seen {seen}"
        ),
        title_justify="left",
    )
    first = comparison.runs[0]
    for run in comparison.runs:
        means = comparison.intervals[run]
        table.add_row(escape(run), *(f"{means[metric].value:.4f}" for metric in _METRICS))
        if run != first:
            gaps = (comparison.differences[run][metric] for metric in _METRICS)
            cells = (f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})" for gap in gaps)
            table.add_row(f"  minus {escape(first)}", *cells)
    return table


def _settings_table(comparison: "Comparison") -> Table:
    table = Table(
        "setting",
        *map(escape, comparison.runs),
        "default",
        title="Settings that differ",
        title_justify="left",
    )
    for setting in comparison.settings:
        values = (setting.values[run] for run in comparison.runs)
        table.add_row(escape(setting.name), *map(_say, values), _say(setting.default))
    return table


def _slices_table(
    comparison: "Comparison", run: str, won: "tuple[Slice, ...]", lost: "tuple[Slice, ...]"
) -> Table:
    from twotower.evaluation.intervals import metric_name

    first = comparison.runs[0]
    metric = metric_name((*won, *lost)[0].metric)
    table = Table(
        "",
        f"{escape(run)} against {escape(first)}",
        "queries",
        f"{metric} minus {escape(first)}'s",
        title="Slices won and lost",
        title_justify="left",
    )
    for word, groups in (("won", won), ("lost", lost)):
        for group in groups:
            gap = group.differences[first]
            table.add_row(
                word,
                escape(group.name),
                f"{group.queries:,}",
                f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})",
            )
    return table


def _say(value: Any) -> str:
    from twotower.config import toml_value

    return "" if value is None else escape(toml_value(value))
