"""Train, write, open, compare: does the opened bundle rank as the evaluation did, on MovieLens-100K?

    python benchmarks/parity.py [--epochs 3] [--json]

For every test query the bundle, opened from disk and asked one query at a time by its id, must give the
top 100 that the evaluation ranked with the model in memory, save swaps of scores within 1e-5; a server of
it, asked over HTTP one at a time and many at once, must give the same of the top 1,000, which is the most
that a server gives; and the features that the retriever computes for each row must equal those of training
bit for bit. Exits with 1 if any of these does not hold.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from common import report
from processes import free_port
from server import TWOTOWER, served
from twotower import Config, Retriever
from twotower.data.dataset import Dataset, Part
from twotower.data.preparation import prepare
from twotower.data.sources.movielens import fetch
from twotower.data.splits import split
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.evaluation.ranking import rank
from twotower.evaluation.scorers import ModelScorer
from twotower.features.schema import infer_features
from twotower.features.transforms import SideTransforms
from twotower.index.base import Found
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import Id
from twotower.serving.client import Client
from twotower.serving.server.options import ServerSettings
from twotower.training.pipeline import train
from twotower.vocab import FIRST_ROW, PADDING_ROW

K = 100
TOLERANCE = 1e-5


def main() -> None:
    """Run the comparison and exit with 0 if both hold."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, help="of the training, in place of the default")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    films = fetch("movielens-100k")
    epochs = [] if options.epochs is None else [f"training.epochs={options.epochs}"]
    config = Config().with_settings(epochs)
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
        most = ServerSettings(bundle="").max_k
        found = rank(scorer, cases, most, num_item_rows=dataset.items.ids.num_rows)
        queries: list[Id] = dataset.queries.ids.ids_of(cases.query_rows).to_list()
        ids_of = dataset.items.ids.ids_of
        rows = [
            {
                "asked": "the bundle, one at a time",
                **compared([opened.recommend(query, k=K) for query in queries], found, K, ids_of),
            }
        ]
        port = free_port()
        command = [str(TWOTOWER), "serve", str(path), "--port", str(port)]
        with served(command, port), Client(f"http://127.0.0.1:{port}", timeout=60) as client:
            alone = [client.recommend(query, k=most) for query in queries]
            rows.append({"asked": "HTTP, one at a time", **compared(alone, found, most, ids_of)})
            together = list(client.recommend(queries, k=most))
            rows.append({"asked": "HTTP, many at once", **compared(together, found, most, ids_of)})
    report("MovieLens-100K, what is served against the evaluation", rows, as_json=options.json)

    prepared = prepare(films.interactions, items=films.items, queries=films.queries)
    columns, equal = equal_features(opened, split(prepared.dataset))
    features = {"feature columns": columns, "equal bit for bit": equal}
    report("its features against those of training", [features], as_json=options.json)
    is_same = not any(row["different"] for row in rows) and equal == columns
    sys.exit(0 if is_same else 1)


def compared(
    answers: Sequence[Recommendation],
    found: Found,
    k: int,
    ids_of: Callable[[npt.NDArray[np.int32]], pl.Series],
) -> dict[str, Any]:
    """Return how many answers are those of a ranking, and how far their scores are from its.

    Args:
        answers: One a query.
        found: The ranking, at least ``k`` items a query.
        k: How many items were asked for.
        ids_of: Ids of item rows.
    """
    same = swapped = different = 0
    widest = 0.0
    lengths = []
    for answer, all_rows, all_scores in zip(answers, found.item_rows, found.scores, strict=True):
        rows, scores = all_rows[:k], all_scores[:k]
        real = rows != PADDING_ROW
        expected = ids_of(rows[real]).to_list()
        lengths.append(len(expected))
        if len(answer.item_ids) != len(expected):
            different += 1
            continue
        gap = float(np.abs(np.array(answer.scores) - scores[real]).max())
        widest = max(widest, gap)
        if answer.item_ids == expected:
            same += 1
        elif gap <= TOLERANCE and are_swaps(answer.item_ids, expected, scores[real]):
            swapped += 1
        else:
            different += 1
    return {
        "queries": len(answers),
        "k": k,
        "items": sum(lengths),
        "same": same,
        "swaps within 1e-5": swapped,
        "different": different,
        "largest score gap": f"{widest:.1e}",
    }


def are_swaps(given: Sequence[Id], expected: Sequence[Id], scores: npt.NDArray[np.float32]) -> bool:
    """Return whether items only changed places with others of their score, those just cut off included."""
    score_of = dict(zip(expected, scores.tolist(), strict=True))
    last = float(scores[-1])
    gaps = (
        abs(score_of.get(item, last) - float(own)) for item, own in zip(given, scores, strict=True)
    )
    return max(gaps, default=0.0) <= TOLERANCE


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
