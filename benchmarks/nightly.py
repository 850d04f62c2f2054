"""Nightly updates against training anew: recall on the day after, cost, and yesterday's index.

    python benchmarks/nightly.py [synthetic-world movielens-1m] [--nights 14] [--anew-every 1] [--json]

The events are put in the order of time and cut into periods of equal size, one for each night. All before
them trains the first bundle (``train --refit-all``). Then, night by night:

- ``update`` learns the period, and its model is tested on the next one: all events of each query that
  is known by then, its history as of the end of the night.
- A training anew learns all events so far, for as many epochs as the first training chose. It is one
  training with all settings stated: ``train`` itself, with its choice of epochs, costs twice as much.
- A planted bad day has the items of the period shuffled among its events. It must be refused.

In the synthetic world a tenth of the items appears during the nights, with all their columns; in
MovieLens-1M, the items that nobody rated before do. Cosines are between the vectors of yesterday and of
today, of the items that had an event before. The recall of yesterday's index is over the 100 best of all
items of today, new ones included. Finished nights are kept under ``benchmarks/out/``.
"""

import json
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import twotower
from common import cached, digest_of, report
from twotower.config import Config
from twotower.data.dataset import Cases, Dataset, Part
from twotower.data.sources.movielens import fetch
from twotower.data.sources.synthetic import World, WorldConfig, births
from twotower.evaluation.evaluate_bundle import scorer_of
from twotower.evaluation.ranking import Scorer, evaluate
from twotower.evaluation.scorers import ModelScorer
from twotower.histories import Histories
from twotower.serving.loading import with_reserved_rows
from twotower.serving.retriever import Retriever
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW, Vocabulary

WORLD, MOVIELENS = "synthetic-world", "movielens-1m"
NIGHTS, SHARE, BORN = 14, 0.01, 0.1
SETTINGS = {
    WORLD: ["towers.similarity=cosine"],
    MOVIELENS: ["towers.similarity=cosine", "training.epochs=4"],
}
METHODS = ("model", "yesterday", "popularity")
STATED = [
    "training.solver=gradient",
    "training.threads=1",
    "towers.history=pooled",
    "towers.query_id=off",
    "towers.question_time=off",
    "split.kind=leave-last-out",
]
"""With these, no race and no closed form comes on top of the training."""


@dataclass(frozen=True, eq=False)
class Days:
    """A data set in periods.

    Args:
        events: What came before the nights, then one table a night, then the period after the last.
        items: The items' table.
        queries: The queries' table, or None.
        first_seen: ``(I,)`` the night in which each item appears, 0 for those that are there at the start.
        query: Column of the query ids.
        item: Column of the item ids.
    """

    events: Sequence[pl.DataFrame]
    items: pl.DataFrame
    queries: pl.DataFrame | None
    first_seen: pl.Series
    query: str
    item: str

    def up_to(self, night: int) -> pl.DataFrame:
        """Return all events up to a night, that night included."""
        return pl.concat(self.events[: night + 1])

    def items_of(self, *nights: int) -> pl.DataFrame:
        """Return the lines of the items that appear in these nights."""
        return self.items.filter(self.first_seen.is_in(nights))


@cache
def days_of(name: str) -> Days:
    """Return a data set, cut into periods."""
    rng = np.random.default_rng(9)
    if name == WORLD:
        tables = World(WorldConfig(num_queries=10_000, events_per_query=25)).generate()
        events, items, queries = tables.interactions, tables.items, tables.queries
        query, item = "query_id", "item_id"
    else:
        films = fetch(MOVIELENS)
        events, items, queries = films.interactions, films.items, films.queries
        query, item = "user_id", "movie_id"
    events = events.sort("timestamp", maintain_order=True)
    size = int(len(events) * SHARE)
    periods = np.maximum((np.arange(len(events)) - len(events)) // size + NIGHTS + 2, 0)
    if name == WORLD:
        seen = births(len(items), BORN, NIGHTS, rng)
    else:
        first = (
            events.select(pl.col(item), night=pl.Series(periods))
            .group_by(item)
            .agg(pl.min("night"))
        )
        found = items.select(item).join(first, on=item, how="left", maintain_order="left")["night"]
        seen = found.fill_null(0).to_numpy()
    first_seen = pl.Series(seen)
    born_in = items.select(pl.col(item), seen=first_seen)
    nights = events.select(pl.col(item)).join(born_in, on=item, how="left", maintain_order="left")[
        "seen"
    ]
    is_there = periods >= nights.to_numpy()  # no event before an item appears
    cut = [events.filter(pl.Series(is_there & (periods == night))) for night in range(NIGHTS + 2)]
    return Days(cut, items, queries, first_seen, query, item)


def config_of(name: str) -> Config:
    """Return the settings of every training."""
    return Config().with_settings([*STATED, *SETTINGS[name]])


def cases_of(
    days: Days, night: int, queries: Vocabulary, items: Vocabulary, known: Histories
) -> Cases:
    """Return the test of a night: the events of the next period, of the queries that are known by then."""
    after = days.events[night + 1]
    rows, targets = queries.rows_of(after[days.query]), items.rows_of(after[days.item])
    times, kept = after["timestamp"].to_numpy().astype(np.float64), rows >= FIRST_ROW
    asking, owners = np.unique(rows[kept], return_inverse=True)
    first = np.full(len(asking), np.inf)
    np.minimum.at(first, owners, times[kept])
    wanted = Histories.of_pairs(owners, targets[kept], len(asking))
    return Cases(asking.astype(np.int32), known.take(asking), wanted, first)


def tested(scorer: Scorer, cases: Cases, items: Vocabulary) -> dict[str, float]:
    """Return the metrics of a model on the period after a night."""
    found = evaluate(scorer, cases, (10, 100), num_item_rows=items.num_rows).mean()
    return {"queries": len(cases), **{m: found[m] for m in ("ndcg@10", "recall@100")}}


def first_bundle(name: str, folder: Path) -> Path:
    """Return the bundle of all that came before the nights."""
    days, path = days_of(name), folder / "night-00"
    if not path.is_dir():
        twotower.train(
            days.events[0],
            items=days.items_of(0),
            queries=days.queries,
            config=config_of(name),
            refit="all",
            baselines=("popularity",),
            out=path,
            progress=None,
        )
    return path


def anew(name: str, night: int, epochs: int) -> dict[str, Any]:
    """Return the test of a model that was trained on all events up to a night, and its cost."""
    days, config, started = days_of(name), config_of(name), time.process_time()
    events, items = days.up_to(night), days.items_of(*range(night + 1))
    task = Task.of(events, items=items, queries=days.queries, config=config)
    settings, _ = resolve(task.config, task.dataset)
    every = task.learning("all")
    trainer = Trainer(every.dataset, every.sides, settings)
    trainer.fit(epochs=epochs)
    seconds = time.process_time() - started
    dataset: Dataset = every.dataset
    known = dataset.part(Part.TRAIN).histories()
    cases = cases_of(days, night, dataset.queries.ids, dataset.items.ids, known)
    return {"seconds": seconds, **tested(trainer.scorer(), cases, dataset.items.ids)}


def updated(name: str, night: int, folder: Path) -> dict[str, Any]:
    """Return the test of the model that ``update`` makes of the night before's bundle, and its cost."""
    days, before = days_of(name), folder / f"night-{night - 1:02}"
    out, events = folder / f"night-{night:02}", days.events[night]
    items = days.items_of(night)
    given: dict[str, Any] = {"items": items if len(items) else None, "progress": None}
    if days.queries is not None:
        of_day = days.queries.filter(days.queries[days.query].is_in(events[days.query].implode()))
        given["queries"] = of_day
    started = time.process_time()
    found = twotower.update(before, events, out=out, force=True, **given)
    seconds = time.process_time() - started
    shuffled = events[days.item].sample(fraction=1.0, shuffle=True, seed=night)
    bad = twotower.update(before, events.with_columns(shuffled), **given)
    retriever, contents = found.retriever, found.contents
    assert contents.histories is not None
    cases = cases_of(days, night, contents.queries.ids, contents.items.ids, contents.histories)
    scorer = scorer_of(retriever)
    old = Retriever.open(before).contents
    return {
        "seconds": seconds,
        **tested(scorer, cases, contents.items.ids),
        "check": {method: found.figures[method]["ndcg@10"] for method in METHODS},
        "difference": found.figures["differences"]["yesterday"]["ndcg@10"],
        "lead": found.figures["lead"],
        "asked": found.figures["queries"],
        "refused": list(found.check.reasons),
        "bad_refused": list(bad.refused),
        "new_items": found.figures["new_items"],
        **stability(scorer, cases, old.item_vectors, old.popularity),
    }


def all_nights(name: str, num: int, folder: Path) -> dict[str, Any]:
    """Return ``updated`` of each night: each begins with the bundle of the night before."""
    return {"nights": [updated(name, night, folder) for night in range(1, num + 1)]}


def stability(
    scorer: ModelScorer, cases: Cases, before: torch.Tensor, counts: np.ndarray
) -> dict[str, float]:
    """Return how near vectors are to yesterday's, and what yesterday's index finds of today's best."""
    now, then = scorer.item_vectors, with_reserved_rows(before)
    had_events = torch.from_numpy(np.flatnonzero(counts > 0))
    cosines = torch.nn.functional.cosine_similarity(now[had_events], then[had_events])
    queries = scorer.query_vectors(cases)
    best = [(queries @ vectors[FIRST_ROW:].T).topk(100).indices.numpy() for vectors in (now, then)]
    shares = [np.isin(mine, theirs).mean() for mine, theirs in zip(*best, strict=True)]
    return {
        "cosine": float(cosines.mean()),
        "least_cosine": float(cosines.min()),
        "unchanged": float((now[had_events] == then[had_events]).all(dim=1).float().mean()),
        "recall_of_old_index": float(np.mean(shares)),
    }


def main() -> None:
    """Run what is not kept, and print a table for each data set and one of its nights."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[WORLD, MOVIELENS])
    parser.add_argument("--nights", type=int, default=NIGHTS)
    parser.add_argument("--anew-every", type=int, default=1, help="nights between trainings anew")
    parser.add_argument("--again", action="store_true", help="compute finished nights again")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        key = f"nightly/{name}-{digest_of(config_of(name))}"
        with tempfile.TemporaryDirectory() as place:
            first = first_bundle(name, Path(place))
            epochs = json.loads((first / "manifest.json").read_text("utf-8"))["provenance"][
                "best_epoch"
            ]
            nights = range(1, given.nights + 1)
            updates = cached(
                f"{key}-{given.nights}",
                partial(all_nights, name, given.nights, Path(place)),
                again=given.again,
            )["nights"]
        trained = {
            night: cached(
                f"{key}-anew-{night}", partial(anew, name, night, epochs), again=given.again
            )
            for night in nights
            if (night - 1) % given.anew_every == 0
        }
        show(name, updates, trained, as_json=given.json)


def show(
    name: str, updates: list[dict[str, Any]], trained: dict[int, dict[str, Any]], *, as_json: bool
) -> None:
    """Print the tables of a data set."""
    both = [updates[night - 1] for night in trained]
    rows = [
        {
            "": title,
            "recall@100": np.mean([run["recall@100"] for run in runs]),
            "NDCG@10": np.mean([run["ndcg@10"] for run in runs]),
            "processor s a night": np.mean([run["seconds"] for run in runs]),
        }
        for title, runs in (("update", both), ("training anew", list(trained.values())))
    ]
    refused = sum(bool(night["refused"]) for night in updates)
    bad = sum(bool(night["bad_refused"]) for night in updates)
    report(
        f"{name}: the mean of {len(trained)} nights, each tested on the period after it",
        rows,
        as_json=as_json,
        notes=[f"{refused} of {len(updates)} good days are refused, and {bad} shuffled ones."],
    )
    report(
        f"{name}: night by night",
        [
            {
                "night": place,
                "queries": night["asked"],
                "new items": night["new_items"],
                "new model": night["check"]["model"],
                "yesterday": night["check"]["yesterday"],
                "popularity": night["check"]["popularity"],
                "lead": night["lead"][0],
                "cosine": night["cosine"],
                "unchanged": night["unchanged"],
                "old index": night["recall_of_old_index"],
                "recall@100": night["recall@100"],
            }
            for place, night in enumerate(updates, 1)
        ],
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
