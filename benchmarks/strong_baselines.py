"""The default model beside every baseline that fits, on seven public data sets, with intervals.

    python benchmarks/strong_baselines.py [beauty lastfm-lightgcn ...] [--bundles FOLDER] [--json]

Nothing is set for the model but what the data set's protocol asks for (``public_sets.py``) and one thread.
The whole catalogue is ranked. The settings of the baselines are chosen on validation. A model is trained
where FOLDER holds no bundle of that name, and evaluated from its bundle in any case. ``--part valid``
looks at the validation part instead; decisions are taken there.
"""

import json
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import public_sets
from common import OUT, report, training_facts
from twotower import train
from twotower.data.dataset import Part
from twotower.evaluation.evaluate_bundle import dataset_of, scorer_of
from twotower.evaluation.figures import measure, methods
from twotower.serving.retriever import Retriever

NAMES = (
    "movielens-100k",
    "movielens-1m",
    "ml-latest-small",
    "lastfm-sequences",
    "lastfm-lightgcn",
    "beauty",
    "book-crossing",
)
SHOWN = ("hit_rate@10", "ndcg@10", "recall@20", "ndcg@20", "recall@100")


def obtain(name: str, folder: Path) -> Retriever:
    """Return the default model of a data set, trained where it is not there yet."""
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        tables = public_sets.read(name)
        train(
            tables.interactions,
            items=tables.items,
            queries=tables.queries,
            config={**tables.settings, "training": {"threads": 1}},
            out=folder / name,
            name=name,
        )
    return Retriever.open(folder / name)


def lines(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line a method, the best NDCG@10 first, with intervals of the first two metrics."""
    rows = []
    for method, label in methods().items():
        if method not in figures:
            continue
        row: dict[str, Any] = {"": label}
        for metric in SHOWN:
            value, low, high = figures["intervals"][method][metric]
            row[metric] = value
            if metric in SHOWN[:2]:
                row[f"{metric}, 95 %"] = f"{low:.4f} to {high:.4f}"
        rows.append(row)
    return sorted(rows, key=lambda row: -float(row["ndcg@10"]))


def main() -> None:
    """Train what is missing, evaluate, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--bundles", type=Path, default=OUT / "bundles")
    parser.add_argument("--part", choices=("valid", "test"), default="test")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    for name in given.names:
        retriever = obtain(name, given.bundles)
        started = time.perf_counter()
        figures = measure(
            scorer_of(retriever), dataset_of(retriever), part=Part[given.part.upper()]
        )
        protocol = figures["protocol"]
        report(
            f"{name}: {protocol['queries']:,} {protocol['part']} queries, "
            f"{protocol['catalogue']:,} items ranked",
            lines(figures),
            as_json=given.json,
            notes=[
                figures["verdict"],
                f"Chosen on validation: {json.dumps(protocol['settings'])}",
                *(
                    f"Left out: {methods()[key]}, {why}"
                    for key, why in protocol["left_out"].items()
                ),
                "Trained for {epochs} epochs in {training_seconds:.0f} s.".format(
                    **training_facts(retriever.contents)
                ),
                f"Baselines fitted and all evaluated in {time.perf_counter() - started:.0f} s.",
            ],
        )


if __name__ == "__main__":
    main()
