"""``twotower similar``."""

from pathlib import Path

import twotower
from twotower.cli.output import console, print_json, say
from twotower.cli.recommend import answer_table, as_json
from twotower.errors import check_least


def command(
    bundle: Path, *, item: str, k: int = 10, filter_: str | None = None, json: bool = False
) -> None:
    """List the items whose vectors point in the direction most like that of one item.

    Example: twotower similar model --item 50

    Args:
        item: Id of an item.
        k: Number of items.
    """
    check_least(1, k=k)

    retriever = twotower.Retriever.open(bundle)
    answer = retriever.similar_items(item, k, filter=filter_)
    if json:
        print_json(as_json(retriever, answer, of="item"))
        return
    screen = console(json_wanted=False)
    screen.print(answer_table(retriever, answer, score="cosine"))
    say(screen, *answer.notes)
