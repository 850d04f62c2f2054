"""``twotower similar``."""

from typing import Annotated

import typer

from twotower.cli import options
from twotower.cli.output import console, print_json, say
from twotower.cli.recommend import answer_table, as_json
from twotower.errors import ConfigError


def command(
    bundle: options.Bundle,
    item: Annotated[str, typer.Option(help="Id of an item.")],
    k: Annotated[int, typer.Option("-k", help="Number of items.")] = 10,
    filter_: options.Filter = None,
    json: options.Json = False,
) -> None:
    """List the items whose vectors point in the direction most like that of one item.

    Example: twotower similar model --item 50
    """
    if k < 1:
        raise ConfigError(f"-k must be at least 1, got {k}.")
    from twotower.serving.retriever import Retriever

    retriever = Retriever.open(bundle)
    answer = retriever.similar_items(item, k, filter=filter_)
    if json:
        print_json(as_json(retriever, answer, of="item"))
        return
    screen = console(json_wanted=False)
    screen.print(answer_table(retriever, answer, score="cosine"))
    say(screen, *answer.notes)
