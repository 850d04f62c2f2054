"""``twotower rerank``."""

from pathlib import Path

import typer

import twotower
from twotower.cli import exits, output


def command(
    bundle: Path,
    *,
    interactions: Path | None = None,
    out: Path,
    candidates: int = 100,
    journal: Path | None = None,
    force: bool = False,
    json: bool = False,
) -> None:
    """Add a second stage to a bundle, as a new bundle: trees that put its best items in order.

    If it does not help on events that neither the model nor the trees have learnt, no bundle is written:
    the exit code is 3.

    Example: twotower rerank model --out model-ranked

    Args:
        bundle: Folder of the bundle.
        interactions: Table of later events; by default the validation events of the bundle.
        out: Folder of the new bundle.
        candidates: How many of the best items the trees put in order.
        journal: File of a server's changes; BUNDLE.journal, if it is there.
        force: Write the bundle even if the second stage does not help.
        json: Print the figures of the second stage as JSON.
    """
    screen = output.console(json_wanted=json)

    from twotower.evaluation.screen import second_stage_note
    from twotower.training.progress import ProgressBar

    found = twotower.rerank(
        bundle,
        interactions,
        out=out,
        candidates=candidates,
        journal=journal,
        force=force,
        progress=ProgressBar(screen),
    )
    if json:
        output.print_json(found.figures | {"refused": found.refused})
    if found.refused is not None:
        output.say(screen, found.refused, "No bundle was written; --force writes it all the same.")
        raise typer.Exit(exits.FOUND)
    if not json:
        output.say(screen, second_stage_note(found.contents.metrics))
    output.say(screen, f"The bundle is at {out}; twotower evaluate {out} measures it.")
