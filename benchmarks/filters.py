"""Filters: random ones against a naive reference, broken ones, and what a filtered search takes.

    python benchmarks/filters.py [--expressions 100000] [--seed 0] [--skip-speed]

First part: random expressions over a table with a column of every type, rendered to text in any style,
against the same conditions evaluated line by line in three-valued logic by ``tests/filter_expressions.py``;
and each text with a few characters or words broken, which must be read or be refused by a ``FilterError``,
and nothing else. Exits with 1 where a line differs or anything else is raised.

Second part: 200,000 items of 64 dimensions, one thread, the 10 best, queries one by one and 64 at a time,
where 50 %, 5 %, .5 % and .01 % of the items match. Beside the search without a filter stand the search with
all items scored and masked, the search as it is, and what a filter costs when it is first heard. The median
computing time of rounds that take turns.
"""

import random
import sys
import time
import traceback
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from common import milliseconds
from filter_expressions import FEATURES, broken, condition, rendered, table, truth
from twotower.errors import FilterError
from twotower.index.exact import ExactIndex
from twotower.index.filters import parse
from twotower.index.two_pass import exact_index
from twotower.vocab import FIRST_ROW

LINES, DEPTH = 24, 3
EXPRESSIONS_A_TABLE = 100
NUM_ITEMS, DIM, K = 200_000, 64, 10
SHARES = (0.5, 0.05, 0.005, 0.0001)
BATCHES = (1, 64)
ROUNDS = 15


class MaskingIndex(ExactIndex):
    """Scores every item, however few may be an answer."""

    scores_items_alone = False


def agreement(expressions: int, seed: int) -> int:
    """Print how random expressions fare; return how many were wrong."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    wrong = 0
    start = time.perf_counter()
    for number in range(expressions):
        if number % EXPRESSIONS_A_TABLE == 0:
            frame = table(rng, LINES)
            lines = frame.to_dicts()
        tree = condition(rng, DEPTH)
        text = rendered(rng, tree)
        truths = [truth(tree, line) for line in lines]
        counts.update(str(each) for each in truths)
        try:
            differ = parse(text).matches(frame, FEATURES).tolist() != [t is True for t in truths]
        except Exception:  # whatever it is, it is counted and shown
            traceback.print_exc()
            differ = True
        if differ:
            wrong += 1
            print(f"wrong: {text!r}")
        damaged = broken(rng, text)
        try:
            parse(damaged).matches(frame, FEATURES)
            counts["broken, read"] += 1
        except FilterError:
            counts["broken, refused"] += 1
        except Exception:  # the same
            traceback.print_exc()
            print(f"wrong: {damaged!r}")
            wrong += 1
    seconds = time.perf_counter() - start
    known = counts["True"] + counts["False"] + counts["None"]
    print(
        f"{expressions:,} expressions on {LINES} lines each ({counts['True'] / known:.0%} true, "
        f"{counts['False'] / known:.0%} false, {counts['None'] / known:.0%} unknown), as many broken texts "
        f"({counts['broken, refused']:,} refused, {counts['broken, read']:,} read): {wrong} wrong, "
        f"{seconds:.0f} s"
    )
    return wrong


def speed(seed: int) -> None:
    """Print what searches take."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    items = torch.randn(FIRST_ROW + NUM_ITEMS, DIM, generator=generator)
    frame = pl.DataFrame({"place": rng.permutation(NUM_ITEMS)})
    index, masking = exact_index(items, reserved_rows=2), MaskingIndex(items, reserved_rows=2)
    print(f"\n{NUM_ITEMS:,} items of {DIM} dimensions, the {K} best, milliseconds")
    print(
        f"{'queries':>8} {'share':>8} {'no filter':>10} {'masked':>8} {'filtered':>9} {'new filter':>11}"
    )
    for batch in BATCHES:
        queries = torch.randn(batch, DIM, generator=generator)
        for share in SHARES:
            text = f"place < {round(share * NUM_ITEMS)}"
            allowed = np.concatenate([np.zeros(FIRST_ROW, np.bool_), parse(text).matches(frame)])
            masked = masking.search(queries, K, allowed=allowed)
            found = index.search(queries, K, allowed=allowed)
            assert np.array_equal(found.item_rows, masked.item_rows)
            assert np.allclose(found.scores, masked.scores, rtol=1e-5, atol=1e-5)
            taken = milliseconds(
                {
                    "none": lambda queries=queries: index.search(queries, K),  # type: ignore[misc]
                    "masked": lambda q=queries, a=allowed: masking.search(q, K, allowed=a),  # type: ignore[misc]
                    "filtered": lambda q=queries, a=allowed: index.search(q, K, allowed=a),  # type: ignore[misc]
                    "new": lambda text=text: parse(text).matches(frame),  # type: ignore[misc]
                },
                ROUNDS,
            )
            print(
                f"{batch:>8} {share:>8} {taken['none']:>10.2f} {taken['masked']:>8.2f} "
                f"{taken['filtered']:>9.2f} {taken['new']:>11.2f}"
            )


def main() -> int:
    """Run both parts and return the exit code."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--expressions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-speed", action="store_true")
    arguments = parser.parse_args()
    wrong = agreement(arguments.expressions, arguments.seed)
    if not arguments.skip_speed:
        speed(arguments.seed)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
