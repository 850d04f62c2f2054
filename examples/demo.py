"""Train on MovieLens-100K, stand beside the baselines, recommend films to one user: ``make demo``.

Without a network it says so and runs on a synthetic world, whose items are made up.
"""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

import twotower
from twotower.data.sources import movielens
from twotower.data.sources.carriers import FetchError
from twotower.data.sources.movielens import MovieLensTables
from twotower.data.sources.synthetic import SyntheticTables, World, WorldConfig

SHOWN = 10  # titles in each column
WORLD = WorldConfig(num_items=200, num_clusters=10, num_queries=120, events_per_query=20)


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo/model"), help="the bundle's folder")
    parser.add_argument("--from-dir", type=Path, help="a copy of MovieLens-100K from GroupLens")
    options = parser.parse_args()
    screen = Console(highlight=False, markup=False)
    try:
        tables, name = obtain(screen, options.from_dir)
        options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
        trained = twotower.train(
            tables.interactions,
            items=tables.items,
            queries=tables.queries,
            out=options.out,
            progress="bar",
            name=name,
        )
    except (twotower.TwoTowerError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    query_id, item_id = tables.interactions.row(0)[:2]
    screen.print()
    screen.print(beside(trained.retriever, query_id, name))
    screen.print(f"\nThe bundle is at {options.out}. Three commands to try next:", soft_wrap=True)
    twotower_here = os.path.relpath(Path(sys.executable).with_name("twotower"))
    for command in (
        f"recommend {options.out} --query {query_id}",
        f"similar {options.out} --item {item_id}",
        f"serve {options.out}",  # a page to try it on, and JSON over HTTP
    ):
        screen.print(f"  {twotower_here} {command}", soft_wrap=True)
    page = options.out.with_name(f"{options.out.name}.report.html")
    trained.report(page)
    screen.print(f"The report, to open in a browser, is at {page}", soft_wrap=True)
    return 0


def obtain(screen: Console, from_dir: Path | None) -> tuple[MovieLensTables | SyntheticTables, str]:
    """Return MovieLens-100K and its name; where it cannot be fetched, a world that says what it is."""
    try:
        films = movielens.fetch("movielens-100k", from_dir=from_dir)
    except FetchError as error:
        screen.print(f"This demo runs on a SYNTHETIC world with made-up items, because {error}\n")
        return World(WORLD).generate(), "a SYNTHETIC world with made-up items"
    if not movielens.terms_were_shown():
        screen.print(movielens.terms(), "\n")
        movielens.mark_terms_shown()
    return films, "MovieLens-100K"


def beside(retriever: twotower.Retriever, query_id: int, name: str) -> Table:
    """Return what a user watched last, the newest first, beside what is recommended."""
    found = retriever.recommend(query_id, k=SHOWN).item_ids
    watched = retriever.history(query_id)[: -len(found) - 1 : -1]
    columns = f"user {query_id} watched last", "and may like"
    table = Table(*columns, title=f"From {name}", title_justify="left")
    for pair in zip(titles(retriever, watched), titles(retriever, found), strict=True):
        table.add_row(*map(Text, pair))
    return table


def titles(retriever: twotower.Retriever, item_ids: list[int | str]) -> list[str]:
    """Return ``SHOWN`` titles; what there is none for is empty."""
    known: list[str] = retriever.items(item_ids)["title"].to_list()
    return known + [""] * (SHOWN - len(known))


if __name__ == "__main__":
    sys.exit(main())
