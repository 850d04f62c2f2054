"""What a step beyond one dot product costs and gives on Beauty: NDCG@10 against milliseconds a query.

    python benchmarks/quality_and_time.py [--seed 0] [--queries 300] [--chart FILE.svg] [--json]

The default is trained, alone and with a second stage over its 100 best items, and so is the student that
learns from it. The same bundle gets a second stage over 500. Each way answers the same random known
queries one by one, in turns, with one thread; the median of the processor time is shown. The test is
ranked over the whole catalogue.

Trained bundles are kept under ``benchmarks/out/bundles``.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

import public_sets
from common import OUT, milliseconds, report
from twotower.config import Config
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.report.plot import plot_of
from twotower.report.svg import MODEL, QUIET
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.rerank import rerank

NAME, MAIN, TIME = "beauty", "ndcg@10", "ms a query"


def bundles(seed: int) -> dict[str, Path]:
    """Return the bundle of each way, trained where it is not there yet."""
    place = OUT / "bundles"
    place.mkdir(parents=True, exist_ok=True)
    ranked, student, deep = (
        place / f"{NAME}-{seed}-{way}" for way in ("ranked-100", "student", "ranked-500")
    )
    data = public_sets.read(NAME)
    settings = [f"training.seed={seed}", "training.threads=1"]

    def trained(out: Path, **given: Any) -> None:
        if not (out / "manifest.json").is_file():
            train(
                data.interactions,
                items=data.items,
                queries=data.queries,
                out=out,
                config=Config.from_dict(data.settings).with_settings(settings),
                baselines=["popularity"],
                progress=None,
                **given,
            )

    trained(ranked, rerank="on")
    trained(student, teacher=ranked)
    if not (deep / "manifest.json").is_file():
        rerank(ranked, out=deep, candidates=500, force=True, progress=None)
    return {
        "two towers": ranked,
        "student": student,
        "ranked, 100": ranked,
        "ranked, 500": deep,
    }


def asking(retriever: Retriever, queries: Iterator[Any], *, ranks: bool) -> Callable[[], object]:
    """Return what answers the next query."""
    return lambda: retriever.recommend(next(queries), k=10, rerank=ranks)


def chart(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a Vega-Lite chart of quality against time, a labelled point for each way."""
    most = 1.3 * max(row[TIME] for row in rows)  # with room for the label of the slowest
    across = {"scale": {"domain": [0, most]}, "title": "milliseconds a query"}
    up = {"scale": {"zero": False, "padding": 20}}
    place = {
        "x": {"field": TIME, "type": "quantitative", **across},
        "y": {"field": "NDCG@10", "type": "quantitative", **up},
    }
    text = {"type": "text", "align": "center", "dy": -13, "color": QUIET}
    return {
        "width": 480,
        "height": 260,
        "data": {"values": [{**row, "name": row[""]} for row in rows]},
        "encoding": place,
        "layer": [
            {"mark": {"type": "circle", "size": 90, "color": MODEL, "opacity": 0.99}},
            {"mark": text, "encoding": {"text": {"field": "name"}}},
        ],
    }


def main() -> None:
    """Train what is missing, measure, print, and draw."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--chart", type=Path, help="where to draw the chart")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ways, quality = {}, {}
    for name, path in bundles(given.seed).items():
        retriever, ranks = Retriever.open(path), name.startswith("ranked")
        figures = evaluate_bundle(retriever, baselines=[])
        quality[name] = figures["ranked" if ranks else "model"][MAIN]
        drawn = np.random.default_rng(0).choice(retriever.query_ids, given.queries)
        ways[name] = partial(asking, retriever, ranks=ranks)(cycle(drawn.tolist()))
    taken = milliseconds(ways, given.queries)
    rows = [{"": name, "NDCG@10": quality[name], TIME: taken[name]} for name in ways]
    if given.chart is not None:
        label = "NDCG@10 on Beauty against milliseconds a query, one after the other on one core."
        plot_of(chart(rows), label).save(given.chart)
    report(f"{NAME}, seed {given.seed}: one query after the other", rows, as_json=given.json)


if __name__ == "__main__":
    main()
