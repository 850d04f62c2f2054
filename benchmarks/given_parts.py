"""MovieLens given as train and test, without validation, beside leave-last-out of the whole table.

    python benchmarks/given_parts.py [movielens-100k movielens-1m] [--train] [--refit]

Each user's last event by time, those at one second in the order of the file, is the test file. Validation
is then drawn as the test was (decision 0036). Compared are the digests of all events with their parts, and
the fingerprints of the two trainings: events, features, settings, shapes of weights. Where they are equal
the trainings are the same. ``--train`` trains on the two files, ``--refit`` on validation, too.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

import polars as pl

from twotower import Config, train
from twotower.data.sources.movielens import MOVIELENS, fetch
from twotower.data.tables import Table
from twotower.training.bundle_contents import data_digest, fingerprint
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer

SHOWN = ("hit_rate@10", "ndcg@10", "recall@100")


def last_events_apart(events: pl.DataFrame) -> dict[str, Table]:
    """Return the last event of each user as ``test``, and the others as ``train``."""
    numbered = events.with_row_index("line")
    in_order = numbered.sort("user_id", "timestamp", "line", maintain_order=True)
    last = in_order.group_by("user_id", maintain_order=True).tail(1)["line"]
    is_last = numbered["line"].is_in(last.implode())
    return {"train": events.filter(~is_last), "test": events.filter(is_last)}


def main() -> None:
    """Compare, and train on wish."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=MOVIELENS)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--refit", action="store_true")
    given = parser.parse_args()
    for name in given.names:
        tables = fetch(name)
        parts = last_events_apart(tables.interactions)
        found = []
        for table in (parts, tables.interactions):
            task = Task.of(table, items=tables.items, queries=tables.queries, config=Config())
            config, _ = resolve(task.config, task.dataset)
            digest = data_digest(task.dataset.interactions, task.dataset.parts)
            found.append((digest, fingerprint(Trainer(task.dataset, task.sides, config))))
        same = ["equal" if one == other else "DIFFERENT" for one, other in zip(*found, strict=True)]
        print(f"{name}: events and parts {same[0]}, trainings {same[1]}")
        if given.train or given.refit:
            trained = train(
                parts,
                items=tables.items,
                queries=tables.queries,
                config={"training": {"threads": 1}},
                baselines=["popularity"],
                refit=given.refit,
                progress="bar",
            )
            told = trained.figures["intervals"]["model"]
            print({metric: [round(value, 4) for value in told[metric]] for metric in SHOWN})


if __name__ == "__main__":
    main()
