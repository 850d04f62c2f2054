"""``twotower evaluate``."""

from pathlib import Path

import twotower
from twotower.cli import options
from twotower.cli.output import console, cutoffs, print_json, say
from twotower.errors import ConfigError, check_least


def command(
    bundle: Path,
    *,
    test: Path | None = None,
    test_sessions: Path | None = None,
    query_column: str | None = None,
    item_column: str | None = None,
    k: str = "10,20,100",
    baselines: str = "auto",
    slice_by: list[str] | None = None,
    negatives: int | None = None,
    candidates: Path | None = None,
    json: bool = False,
) -> None:
    """Rank the whole catalogue for the test queries: the model and the baselines.

    Example: twotower evaluate model -k 10,100 --slice-by cold_items

    Args:
        test: Test events that replace those of the bundle.
        test_sessions: New sessions to test on; the model predicts the last event of each.
        query_column: Query ids in --test, --test-sessions, --candidates.
        item_column: Item ids in --test, --test-sessions, --candidates.
        k: Cut-offs.
        slice_by: Show the figures by activity, cold_items, ..., or any column.
        negatives: Rank the targets among so many random items. Inflated.
        candidates: Rank only the items that this table has. Inflated.
    """
    ks = cutoffs(k)
    given = (test, test_sessions, candidates)
    if all(table is None for table in given) and (query_column or item_column):
        flag = "--query-column" if query_column else "--item-column"
        raise ConfigError(
            f"{flag} must go with --test, --test-sessions or --candidates, got neither."
        )
    check_least(1, negatives=negatives)
    from twotower.evaluation.screen import all_figures_tables, footnotes, slices_tables
    from twotower.training.progress import ProgressBar

    bar = ProgressBar(console(json_wanted=True))  # beside what is printed
    figures = twotower.evaluate_bundle(
        twotower.Retriever.open(bundle),
        ks,
        test=test,
        test_sessions=test_sessions,
        query_column=query_column,
        item_column=item_column,
        baselines=options.baselines_of(baselines),
        negatives=negatives,
        candidates=candidates,
        slice_by=slice_by or None,
        tell=bar.on_phase,
    )
    bar.on_end()
    if json:
        print_json(figures)
        return
    screen = console(json_wanted=False)
    if "warning" in figures["protocol"]:
        screen.print(figures["protocol"]["warning"], soft_wrap=True)
    for table in all_figures_tables(figures):
        screen.print(table)
    if slice_by:
        for table in slices_tables(figures["slices"], figures["strongest_baseline"]):
            screen.print(table)
    say(screen, *footnotes(figures))
