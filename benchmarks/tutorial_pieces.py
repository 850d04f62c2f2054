"""What each piece that tutorials leave out is worth, on MovieLens-100K: one row a piece.

    python benchmarks/tutorial_pieces.py [--seeds 0,1,2] [--rows a,b] [--quick] [--json]

Every row is a training through ``twotower.train`` on ids alone, with the same split (leave-last-out),
width, learning rate, batches and early stopping; only the settings that are printed with the row differ:

- a: the tutorials' way: ids, cosine put straight into the sigmoid, BCE, one random negative;
- b: a, and the cosine is divided by a learnt temperature;
- c: b, and softmax over every item instead of BCE;
- i, j: b, and softmax over the batch's items instead of BCE, without and with the correction for how
  often an item is in a batch;
- d: c, and the query tower reads the history instead of an id;
- e: the library's defaults, which also read the tables' features.

Printed for each: what a tutorial prints (the loss of the first and of the best epoch; the accuracy of
telling a test item from one random unseen item by the sign of the score, and the share of these pairs
that are in the right order), and what counts (HR@10, NDCG@10 and recall@100 over the whole catalogue;
the mean popularity percentile of the first ten, where 50 is an item at random and 100 the most popular).

One negative *a query*, as tutorials draw it, cannot be set: negatives are drawn a batch and shared by its
queries. Rows a and b draw as many as a batch has queries; the loss takes their mean, so it has the
expectation of one random negative a query, with less noise. The loss of a pair is the sum of both
halves, twice what ``BCEWithLogitsLoss`` says of the two as examples.

A finished row is kept under ``benchmarks/out``; after a change of the code use ``--again``. ``--quick``
trains two epochs.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from common import add_training_arguments, cached, digest_of, report, training_facts
from twotower import Config, train
from twotower.data.dataset import Cases, Part
from twotower.data.sources.movielens import MovieLensTables, fetch
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.evaluation.ranking import rank
from twotower.evaluation.scorers import ModelScorer
from twotower.training.trained import Trained
from twotower.vocab import FIRST_ROW

NAME = "movielens-100k"
BATCH_SIZE = 512

IDS = ("towers.query_id=on", "towers.history=none", "towers.similarity=cosine")
BCE = ("loss.kind=bce", "loss.negatives=uniform", f"loss.num_negatives={BATCH_SIZE}")
SOFTMAX = ("loss.kind=softmax", "loss.negatives=all")
IN_BATCH = ("loss.kind=softmax", "loss.negatives=in-batch")


@dataclass(frozen=True)
class Piece:
    """A row.

    Args:
        meaning: What it stands for.
        settings: Beside those that are equal in all rows.
        features: Whether the tables' features are read.
    """

    meaning: str
    settings: tuple[str, ...]
    features: bool = False


PIECES = {
    "a": Piece("the tutorials' way", (*IDS, *BCE, "towers.temperature=1.0")),
    "b": Piece("and a learnt temperature", (*IDS, *BCE)),
    "c": Piece("and softmax over every item", (*IDS, *SOFTMAX)),
    "i": Piece("or in-batch, uncorrected", (*IDS, *IN_BATCH, "loss.correct_log_q=false")),
    "j": Piece("or in-batch, corrected", (*IDS, *IN_BATCH)),
    "d": Piece("c, and the history", ("towers.query_id=off", "towers.similarity=cosine", *SOFTMAX)),
    "e": Piece("the defaults", (), features=True),
}


def run(piece: Piece, tables: MovieLensTables, config: Config) -> dict[str, Any]:
    """Return the figures of one row and one seed."""
    trained = train(
        tables.interactions,
        items=tables.items if piece.features else None,
        queries=tables.queries if piece.features else None,
        config=config,
        name=NAME,
    )
    facts = training_facts(trained.contents)
    model = trained.figures["model"]
    return {
        "first loss": facts["losses"][0],
        "loss": facts["losses"][facts["best_epoch"] - 1],
        **printed_by_tutorials(trained),
        "HR@10": model["hit_rate@10"],
        "NDCG@10": model["ndcg@10"],
        "recall@100": model["recall@100"],
        "popularity percentile": popularity_percentile(trained),
        "epochs": facts["epochs"],
        "seconds": facts["training_seconds"],
    }


def scorer_of(trained: Trained) -> tuple[ModelScorer, Cases]:
    """Return the trained model as a scorer, and its test cases."""
    retriever = trained.retriever
    scorer = ModelScorer(
        retriever.encoding,
        retriever.query_features,
        retriever.contents.popularity,
        retriever.index.item_vectors,
    )
    return scorer, dataset_of(retriever).cases(Part.TEST)


def printed_by_tutorials(trained: Trained, seed: int = 0) -> dict[str, float]:
    """Return accuracy and order of pairs of a test item and an unseen item at random."""
    scorer, cases = scorer_of(trained)
    scores = scorer.score(cases).cpu().numpy()
    lines = np.arange(len(cases))
    unseen = np.ones(scores.shape, np.bool_)
    unseen[:, :FIRST_ROW] = False
    unseen[np.repeat(lines, cases.histories.lengths), cases.histories.item_rows] = False
    targets = cases.targets.item_rows  # one a case
    unseen[lines, targets] = False
    lottery = np.random.default_rng(seed).random(scores.shape)
    drawn = np.where(unseen, lottery, -1.0).argmax(axis=1)
    positive, negative = scores[lines, targets], scores[lines, drawn]
    return {
        "accuracy": float((positive > 0).mean() + (negative <= 0).mean()) / 2,
        "pairs in order": float((positive > negative).mean()),
    }


def popularity_percentile(trained: Trained, k: int = 10) -> float:
    """Return the mean popularity percentile of the first ``k`` items of all test queries."""
    scorer, cases = scorer_of(trained)
    counts: npt.NDArray[np.float32] = trained.contents.popularity
    percentiles = np.zeros(len(counts))
    known = counts[FIRST_ROW:]
    percentiles[FIRST_ROW:] = 100 * (rankdata(known) - 0.5) / len(known)
    return float(percentiles[rank(scorer, cases, k, num_item_rows=len(counts)).item_rows].mean())


def main() -> None:
    """Train, or read what was trained, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(PIECES), help="which rows")
    parser.add_argument("--quick", action="store_true", help="two epochs")
    add_training_arguments(parser)
    given = parser.parse_args()
    tables = fetch(NAME)
    rows, notes = [], []
    for letter in given.rows.split(","):
        piece = PIECES[letter]
        settings = [f"training.batch_size={BATCH_SIZE}", f"training.threads={given.threads}"]
        settings += [*piece.settings, *given.set, *(["training.epochs=2"] if given.quick else [])]
        results = []
        for seed in given.seeds.split(","):
            config = Config().with_settings([*settings, f"training.seed={seed}"])
            key = f"pieces-{letter}-seed{seed}-{digest_of(config)}"
            results.append(cached(key, partial(run, piece, tables, config), again=given.again))
        mean = {name: float(np.mean([r[name] for r in results])) for name in results[0]}
        rows.append({"": letter, "piece": piece.meaning, **mean})
        set_here = " ".join([*piece.settings, *given.set])
        notes.append(f"{letter}: {set_here or 'nothing'} (beside what is equal in all rows)")
    report(
        f"{NAME}, leave-last-out, mean of seeds {given.seeds}",
        rows,
        as_json=given.json,
        notes=notes,
    )


if __name__ == "__main__":
    main()
