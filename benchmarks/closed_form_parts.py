"""What each part of the closed form is worth on validation, on public data sets without an order.

    python benchmarks/closed_form_parts.py [book-crossing lastfm-lightgcn ...] [--json]

``as chosen`` has the settings that validation prefers (``choose_spectral``). In each other row one part is
taken away and the rest stays as it is: the width above 64, the powers that scale the matrix, the damping of
popular items, and the filter of the ridge regression (its penalty is then that of the last dimension).
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import replace
from typing import Any

from common import report
from strong_baselines import task
from twotower.baselines.spectral import Spectral, choose_spectral
from twotower.baselines.validation import Validation
from twotower.config import WIDTH
from twotower.data.dataset import Part

NAMES = (
    "book-crossing",
    "lastfm-lightgcn",
    "movielens-100k-random",
    "ml-latest-small-random",
    "lastfm-sequences-random",
    "beauty-random",
)


def row_of(name: str) -> dict[str, Any]:
    """Return validation NDCG@10 as chosen, and without each part."""
    dataset = task(name).dataset
    validation, chosen = Validation.of(dataset), choose_spectral(dataset)
    unscaled = Spectral.fit(
        dataset.part(Part.TRAIN),
        dataset.items.ids.num_rows,
        width=chosen.width,
        rounds=chosen.rounds,
        query_power=0.0,
        item_power=0.0,
        popularity_power=0.0,
        place=chosen.place,
        half_life=None,
    )
    ways = {
        "as chosen": chosen,
        f"width {WIDTH}": replace(chosen, width=min(WIDTH, chosen.width)),
        "no powers": unscaled,
        "no damping": replace(chosen, popularity_power=chosen.item_power),
        "no filter": replace(chosen, place=chosen.width - 1),
    }
    of_chosen = {part: getattr(chosen, part) for part in ("width", "rounds", "query_power")}
    of_chosen |= {part: getattr(chosen, part) for part in ("item_power", "popularity_power")}
    said = ", ".join(f"{part} {value:g}" for part, value in of_chosen.items())
    figures = {way: validation.quality(scorer) for way, scorer in ways.items()}
    return {"": name, **figures, "chosen": f"{said}, place {chosen.place}"}


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows = [row_of(name) for name in given.names]
    report("Parts of the closed form, validation NDCG@10", rows, as_json=given.json)


if __name__ == "__main__":
    main()
