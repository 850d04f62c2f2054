"""``twotower evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from twotower.cli.output import console, cutoffs, print_json

NAME = "evaluate"


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    test: Annotated[
        Path | None, typer.Option(help="Test events, in place of the bundle's own.")
    ] = None,
    k: Annotated[str, typer.Option("-k", help="Cut-offs.")] = "10,20,100",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank the whole catalogue for the test queries: the model beside popularity and ItemKNN.

    Example: twotower evaluate model -k 10,100
    """
    ks = cutoffs(k)
    from twotower.evaluation.compare import evaluate_bundle
    from twotower.serving.retriever import Retriever
    from twotower.training.progress import figures_table

    figures = evaluate_bundle(Retriever.open(bundle), ks, test=test)
    if json:
        print_json(figures)
    else:
        console(json_wanted=False).print(figures_table(figures))
