"""``twotower evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from twotower.cli.output import console, cutoffs, print_json
from twotower.errors import ConfigError

NAME = "evaluate"


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    test: Annotated[
        Path | None, typer.Option(help="Test events, in place of the bundle's own.")
    ] = None,
    query_column: Annotated[str | None, typer.Option(help="Query ids in --test.")] = None,
    item_column: Annotated[str | None, typer.Option(help="Item ids in --test.")] = None,
    k: Annotated[str, typer.Option("-k", help="Cut-offs.")] = "10,20,100",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank the whole catalogue for the test queries: the model beside popularity and ItemKNN.

    Example: twotower evaluate model -k 10,100
    """
    ks = cutoffs(k)
    if test is None and (query_column or item_column):
        flag = "--query-column" if query_column else "--item-column"
        raise ConfigError(f"{flag} must go with --test, got no --test.")
    from twotower.evaluation.bundles import evaluate_bundle
    from twotower.serving.retriever import Retriever
    from twotower.training.progress import all_figures_table

    figures = evaluate_bundle(
        Retriever.open(bundle), ks, test=test, query_column=query_column, item_column=item_column
    )
    if json:
        print_json(figures)
    else:
        console(json_wanted=False).print(all_figures_table(figures))
