"""Train, write, open, compare: does the opened bundle rank as the evaluation did, on MovieLens-100K?

    python benchmarks/parity.py [--epochs 3] [--json]

For every test query the bundle, opened from disk and asked one query at a time by its id, must give the
top 100 that the evaluation ranked with the model in memory, save swaps of scores within 1e-5; and the
features that the retriever computes for each row must equal those of training bit for bit. Exits with 1
if either does not hold.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from common import report
from twotower import Config, Retriever
from twotower.data.dataset import Dataset, Part
from twotower.data.prepare import prepare
from twotower.data.sources.movielens import fetch
from twotower.data.splits import split
from twotower.evaluation.bundles import dataset_of
from twotower.evaluation.evaluate import rank
from twotower.evaluation.scorers import ModelScorer
from twotower.features.schema import infer_features
from twotower.features.transforms import SideTransforms
from twotower.training.pipeline import train
from twotower.vocab import FIRST_ROW, PADDING_ROW

K = 100
TOLERANCE = 1e-5


def main() -> None:
    """Run the comparison and exit with 0 if both hold."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="of the training")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    films = fetch("movielens-100k")
    config = Config().with_settings([f"training.epochs={options.epochs}"])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        trained = train(
            films.interactions, items=films.items, queries=films.queries, out=path, config=config
        )
        opened = Retriever.open(path)
    memory = trained.retriever
    dataset = dataset_of(memory)
    cases = dataset.cases(Part.TEST)
    scorer = ModelScorer(memory.encoding, memory.query_features, memory.contents.popularity)
    found = rank(scorer, cases, K, num_item_rows=dataset.items.ids.num_rows)
    same = swapped = different = 0
    widest = 0.0
    for query, rows, scores in zip(
        dataset.queries.ids.ids_of(cases.query_rows), found.item_rows, found.scores, strict=True
    ):
        answer = opened.recommend(query, k=K)
        real = rows != PADDING_ROW
        expected = dataset.items.ids.ids_of(rows[real]).to_list()
        gap = float(np.abs(np.array(answer.scores) - scores[real]).max())
        widest = max(widest, gap)
        if answer.item_ids == expected:
            same += 1
        elif gap <= TOLERANCE:  # position by position, so only equal scores changed places
            swapped += 1
        else:
            different += 1

    prepared = prepare(films.interactions, items=films.items, queries=films.queries)
    columns, equal = equal_features(opened, split(prepared.dataset))
    row = {
        "test queries": len(cases),
        "same top 100": same,
        "swaps within 1e-5": swapped,
        "different": different,
        "largest score gap": widest,
        "feature columns": columns,
        "equal bit for bit": equal,
    }
    report("MovieLens-100K, the opened bundle against training", [row], as_json=options.json)
    sys.exit(0 if not different and equal == columns else 1)


def equal_features(opened: Retriever, dataset: Dataset) -> tuple[int, int]:
    """Return how many feature columns there are, and how many equal those fitted anew on training."""
    events = dataset.part(Part.TRAIN)
    config, contents = opened.contents.config, opened.contents
    columns = equal = 0
    for side, table, rows, stored in (
        ("query", dataset.queries, events.query_rows, contents.queries),
        ("item", dataset.items, events.item_rows, contents.items),
    ):
        features = infer_features(
            table.frame, "query" if side == "query" else "item", table.id_column, {}
        )
        counts = np.bincount(rows, minlength=table.ids.num_rows)[FIRST_ROW:]
        fitted = SideTransforms.fit(features, table.frame, counts, config.features.min_count)
        fresh = fitted.apply_to_rows(table.frame)
        served = stored.transforms.apply_to_rows(stored.frame)
        columns += len(fresh)
        equal += sum(
            values.dtype == served[name].dtype and np.array_equal(values, served[name])
            for name, values in fresh.items()
        )
    return columns, equal


if __name__ == "__main__":
    main()
