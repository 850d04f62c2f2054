"""Hard negatives and a memory of earlier batches, where all items are too many: what they give.

    python benchmarks/hard_negatives.py [tmall ...] [--seconds 180] [--seed 0] [--show] [--json]

Tmall's sessions, whose 40,727 items are more than the 20,000 up to which the default takes all. With the
default item tower, of which a drawn item costs next to nothing, and with a dear one: two hidden layers of
1,024, so that encoding the candidates is most of a step. Mixed (in-batch and uniform) against what might be
better:

- in-batch: no drawn item need be encoded;
- memory: the last batches' items and their vectors of then, which cost no encoding either;
- hard: a share of the drawn items is what the model ranked high for the batch's queries at the start of
  the epoch, at least ``loss.hard_margin`` below their own item.

Time, settings and intervals are those of ``objective.py``: each cell has three settings, chosen on
validation, and equal CPU time; mining counts. Differences are to ``mixed``, paired by query, with
Holm's procedure over the cells of a table.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

import objective

DEAR = "towers.item_hidden=[1024, 1024]"
MIXED = "mixed"


def _cell(tower: tuple[str, ...], negatives: str, field: str, *values: float) -> objective.Cell:
    fixed = ("loss.kind=softmax", f"loss.negatives={negatives}", *tower)
    return objective.Cell(fixed, field, values)


def cells_of(tower: tuple[str, ...]) -> dict[str, objective.Cell]:
    """Return what is compared on a tower, with what is set on it."""
    return {
        MIXED: _cell(tower, "mixed", "loss.num_negatives", 256, 1024, 4096),
        "in-batch": _cell(tower, "in-batch", "training.batch_size", 512, 1024, 2048),
        "memory": _cell(tower, "memory", "loss.memory_batches", 2, 4, 8),
        "hard": _cell(tower, "hard", "loss.hard_share", 0.25, 0.5, 0.75),
    }


TABLES = {
    "tmall": ("tmall", ()),
    "tmall, dear items": ("tmall", (DEAR,)),
}


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(TABLES))
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="CPU time of a cell's best setting"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print what is there, train nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    for table in given.names:
        name, tower = TABLES[table]
        results = {}
        for cell, what in cells_of(tower).items():
            found = objective.result_of(name, f"{cell} {' '.join(tower)}", what, given)
            if found is not None:
                results[cell] = found
        if results:
            objective.show(table, results, against=MIXED, as_json=given.json)


if __name__ == "__main__":
    main()
