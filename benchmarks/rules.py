"""Rules: what they cost in accuracy, what they give, and how long they take.

    python benchmarks/rules.py [--bundle FOLDER] [--seeds 5] [--skip-speed] [--json]

First part: MovieLens-100K, a bundle of ``make demo``, or one that is trained now with nothing set. Every
query is asked for its 10 best by each set of rules: NDCG@10 of its last film with the 95 % interval of the
paired difference to no rules, how unlike the films of an answer are (1 minus the mean cosine), how many
genres they have, how many of the catalogue's films are shown at all, and how many films of an answer are
from 1997 on. Exploration is the mean of several seeds: ``new`` are the films without a training event,
``any`` the whole catalogue.

Second part: 200,000 items more, one thread, 10 places, queries one by one and 64 at a time:
milliseconds a call, the median computing time of rounds that take turns.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

import twotower
from common import OUT, Row, milliseconds, report
from twotower import Boost, Cap, Diversify, Explore, Retriever
from twotower.data.sources.movielens import fetch
from twotower.evaluation.exposure_metrics import exposure
from twotower.evaluation.intervals import difference_intervals
from twotower.evaluation.metrics import ndcg_at_k
from twotower.rules.kinds import Rule
from twotower.serving.bundle import Contents
from twotower.serving.live_items import with_lines
from twotower.vocab import FIRST_ROW, PADDING_ROW

K = 10
RECENT = "year >= 1997"
SETS: dict[str, list[Rule]] = {
    "no rules": [],
    "Explore(.1), new": [Explore(0.1)],
    "Explore(.2), new": [Explore(0.2)],
    "Explore(.1), any": [Explore(0.1, filter="movie_id > 0")],
    "Explore(.2), any": [Explore(0.2, filter="movie_id > 0")],
    "Diversify(.1)": [Diversify(0.1)],
    "Diversify(.3)": [Diversify(0.3)],
    "Diversify(.5)": [Diversify(0.5)],
    "Diversify(.7)": [Diversify(0.7)],
    "Cap(genres, 5)": [Cap("genres", 5)],
    "Cap(genres, 3)": [Cap("genres", 3)],
    "Cap(genres, 2)": [Cap("genres", 2)],
    "Boost(1997 on, .25)": [Boost(RECENT, 0.25)],
    "Boost(1997 on, .5)": [Boost(RECENT, 0.5)],
    "Boost(1997 on, 1)": [Boost(RECENT, 1.0)],
}
NUM_ITEMS, ROUNDS = 200_000, 15


def bundle_of(folder: Path) -> Retriever:
    """Return the retriever of a bundle, which is trained where there is none."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        films = fetch("movielens-100k")
        twotower.train(films.interactions, items=films.items, queries=films.queries, out=folder)
    return Retriever.open(folder)


def seeded(rules: list[Rule], seed: int) -> list[Rule]:
    """Return rules whose chance is that of another seed."""
    return [replace(rule, seed=seed) if isinstance(rule, Explore) else rule for rule in rules]


def accuracy(retriever: Retriever, seeds: int) -> list[Row]:
    """Return a line for each set of rules."""
    contents = retriever.contents
    ids = contents.queries.ids.ids.to_list()
    assert contents.targets is not None
    targets = [
        contents.targets.item_rows[low:high]
        for low, high in zip(
            contents.targets.offsets[FIRST_ROW:-1],
            contents.targets.offsets[FIRST_ROW + 1 :],
            strict=True,
        )
    ]
    asked = [place for place, each in enumerate(targets) if len(each)]
    frame = contents.items.frame
    genres = frame["genres"].to_list()
    is_recent = (frame["year"] >= 1997).fill_null(value=False).to_numpy()
    vectors = torch.cat(
        [torch.zeros(FIRST_ROW, contents.item_vectors.shape[1]), contents.item_vectors]
    )
    rows: list[Row] = []
    without = np.zeros(0)
    for name, rules in SETS.items():
        gains, others = [], []
        for seed in range(seeds if any(isinstance(rule, Explore) for rule in rules) else 1):
            answers = retriever.recommend(
                [ids[place] for place in asked], k=K, rules=seeded(rules, seed)
            )
            shown = np.full((len(asked), K), PADDING_ROW, np.int32)
            for line, answer in enumerate(answers):
                shown[line, : len(answer)] = contents.items.ids.rows_of(answer.item_ids)
            is_hit = np.array(
                [np.isin(line, targets[place]) for line, place in zip(shown, asked, strict=True)]
            )
            counts = np.array([len(targets[place]) for place in asked])
            gains.append(ndcg_at_k(is_hit, counts, K))
            told = exposure(
                shown,
                K,
                popularity=contents.popularity,
                targets=np.concatenate(targets),
                item_vectors=vectors.numpy(),
            )
            of_genres = [
                len(
                    {
                        genre
                        for row in line[line >= FIRST_ROW]
                        for genre in genres[row - FIRST_ROW] or []
                    }
                )
                for line in shown
            ]
            recent = is_recent[np.maximum(shown - FIRST_ROW, 0)] & (shown >= FIRST_ROW)
            others.append(
                (
                    told[f"diversity@{K}"],
                    float(np.mean(of_genres)),
                    told[f"coverage@{K}"],
                    float(recent.sum(axis=1).mean()),
                )
            )
        mean = np.mean(gains, axis=0)
        without = without if rules else mean
        gap = difference_intervals({"": mean}, {"": without})[""]
        unlike, covered, coverage, new = np.mean(others, axis=0)
        rows.append(
            {
                "rules": name,
                f"NDCG@{K}": float(mean.mean()),
                "difference": f"{gap.value:+.4f} ({gap.low:+.4f}, {gap.high:+.4f})"
                if rules
                else "",
                "kept": f"{mean.mean() / without.mean():.0%}",
                "unlikeness": float(unlike),
                "genres": float(covered),
                "catalogue shown": f"{coverage:.1%}",
                "1997 on": float(new),
            }
        )
    return rows


def large(retriever: Retriever) -> Retriever:
    """Return a retriever of many random items, each with a year, a maker and a few tags."""
    contents = retriever.contents
    rng = np.random.default_rng(0)
    tags = [f"tag {n}" for n in range(30)]
    lines = pl.DataFrame(
        {
            "movie_id": np.arange(10_000, 10_000 + NUM_ITEMS),
            "year": rng.integers(1950, 2000, NUM_ITEMS),
            "genres": [[tags[n] for n in each] for each in rng.integers(0, 30, (NUM_ITEMS, 3))],
        }
    )
    schema = contents.items.frame.schema
    lines = lines.select(
        (lines[name] if name in lines.columns else pl.Series(name, [None] * NUM_ITEMS)).cast(dtype)
        for name, dtype in schema.items()
    )
    grown: Contents = with_lines(contents, lines)
    drawn = torch.from_numpy(rng.normal(size=(NUM_ITEMS, contents.item_vectors.shape[1])))
    scale = contents.item_vectors.std()
    vectors = torch.cat([contents.item_vectors, drawn.float() * scale])
    return Retriever(replace(grown, item_vectors=vectors, gone=None))


def speed(retriever: Retriever) -> list[Row]:
    """Return what an answer takes with each rule."""
    ids: list[Any] = retriever.contents.queries.ids.ids.to_list()
    sets: dict[str, list[Rule]] = {
        "no rules": [],
        "one boost (6 % of the items)": [Boost(RECENT, 0.5)],
        "three boosts": [
            Boost(RECENT, 0.5),
            Boost("year < 1960", -1),
            Boost("genres has 'tag 1'", 1),
        ],
        "Cap(genres, 2)": [Cap("genres", 2)],
        "Diversify(.3)": [Diversify(0.3)],
        "Cap and Diversify": [Cap("genres", 2), Diversify(0.3)],
        "Explore(.1)": [Explore(0.1)],
        "all of these": [Boost(RECENT, 0.5), Cap("genres", 2), Diversify(0.3), Explore(0.1)],
    }
    columns: dict[str, dict[str, float]] = {}
    for batch in (1, 64):
        asked = ids[:batch]
        columns[f"{batch} at once"] = milliseconds(
            {name: _asking(retriever, asked, rules) for name, rules in sets.items()}, ROUNDS
        )
    return [
        {"rules": name, **{column: times[name] for column, times in columns.items()}}
        for name in sets
    ]


def _asking(retriever: Retriever, ids: list[Any], rules: list[Rule]) -> Callable[[], object]:
    return lambda: retriever.recommend(ids, k=K, rules=rules)


def main() -> None:
    """Print both tables."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=OUT / "rules" / "movielens-100k")
    parser.add_argument("--seeds", type=int, default=5, help="of the exploration")
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    retriever = bundle_of(given.bundle)
    counts: npt.NDArray[np.float32] = retriever.contents.popularity[FIRST_ROW:]
    notes = [f"{int((counts == 0).sum())} of {len(counts):,} films have no training event."]
    title = f"movielens-100k, {K} places"
    report(title, accuracy(retriever, given.seeds), as_json=given.json, notes=notes)
    if not given.skip_speed:
        many = large(retriever)
        dim = many.contents.item_vectors.shape[1]
        title = f"{many.contents.num_items:,} items, {dim} dimensions, {K} places, milliseconds"
        report(title, speed(many), as_json=given.json)


if __name__ == "__main__":
    main()
