"""``twotower explain``."""

from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

import twotower
from twotower.cli.output import console, ids, print_json
from twotower.cli.recommend import described, moment_of

_MOST_EVENTS = 5
_MOST_INPUTS = 10


def command(
    bundle: Path,
    *,
    item: str,
    query: str | None = None,
    history: str | None = None,
    features: str | None = None,
    at: str | None = None,
    json: bool = False,
) -> None:
    """Say what each feature and each event does for the score of one query and one item.

    Example: twotower explain model --query 42 --item 50

    Args:
        item: Id of an item.
    """
    told, moment = described(features), moment_of(at)
    from twotower.serving.titles import Titles

    retriever = twotower.Retriever.open(bundle)
    events = None if history is None else ids(history)
    found = retriever.explain(query, item, features=told, history=events, at=moment)
    if json:
        print_json(asdict(found))
        return
    table = Table("", "", "value", "contribution", title=f"score {found.score:.4f}")
    shown = [part for part in found.parts if part.side != "history"]
    of_events = [part for part in found.parts if part.side == "history"]
    names = [part.name for part in of_events]
    titles = Titles(retriever.contents.items)
    called = names if titles.column is None else titles.of(retriever.known_item_rows(names))
    for part in shown:
        value = "" if part.value is None else str(part.value)
        table.add_row(part.side, Text(part.name), Text(value), f"{part.contribution:+.4f}")
    for place, part in enumerate(of_events):
        if place < _MOST_EVENTS or place >= len(of_events) - 2:
            title = "" if titles.column is None else called[place]
            table.add_row("event", Text(part.name), Text(title), f"{part.contribution:+.4f}")
        elif place == _MOST_EVENTS:
            table.add_row("", "...", f"{len(of_events) - _MOST_EVENTS - 2} events between", "")
    screen = console(json_wanted=False)
    screen.print(table)
    screen.print("A contribution is the score minus the score without it; they need not add up.")
    if found.ranking:
        moved = Table("second stage", "value", "contribution")
        largest = sorted(found.ranking, key=lambda part: -abs(part.contribution))[:_MOST_INPUTS]
        for part in sorted(largest, key=lambda part: -part.contribution):
            value = "" if part.value is None else f"{part.value:.4g}"
            moved.add_row(Text(part.name), value, f"{part.contribution:+.4f}")
        screen.print(moved)
        screen.print(
            "These add up, with those of the other inputs, to what the trees say of the item."
        )
