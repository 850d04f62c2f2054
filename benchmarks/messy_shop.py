"""A shop's export as it comes, beside the same shop as clean Parquet: the figures must be equal.

    python benchmarks/messy_shop.py [--queries 10000] [--keep FOLDER] [--json]

The shop is a synthetic world of 20 events a customer, dressed as an export: semicolons, decimal commas with
a currency sign, dd.mm.yyyy, Chinese names, kinds of event, lists of tags as JSON, HTML, numbers with
leading zeros, and items without a row. Both forms are trained with nothing set, in a process each; what the
first one prints is shown. Exits with 1 where a figure differs.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from common import report
from twotower.data.sources.synthetic import World, WorldConfig

NAMES = ("折叠椅", "台灯", "书架", "Stuhl", "Tisch", "Lampe", "羽绒服", "Jacke")
TAGS = ("新品", "打折", "包邮", "Sale", "限量")
KINDS = (("浏览", 0.8), ("加购", 0.13), ("购买", 0.07))
MISSING = 0.02
"""Share of the items that the table of items lacks."""


def money(values: pl.Series) -> pl.Series:
    """Return prices as a German shop writes them: 1.299,00 €."""
    texts = [f"{value:,.2f}" for value in values]
    swapped = [text.translate(str.maketrans(",.", ".,")) for text in texts]
    return pl.Series(values.name, [f"{text} €" for text in swapped])


def clean_shop(queries: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return events and items, each column in the type that it means."""
    world = World(WorldConfig(num_queries=queries, events_per_query=20))
    tables = world.generate()
    rng = np.random.default_rng(0)
    events, items = tables.interactions, tables.items
    n = len(items)
    number = [f"{value:06}" for value in items["item_id"].to_list()]
    names = rng.choice(NAMES, n).tolist()
    tags = [rng.choice(TAGS, rng.integers(1, 4), replace=False).tolist() for _ in range(n)]
    shop = pl.DataFrame(
        {
            "Artikelnummer": number,
            "商品名称": [f"{name} {place}" for place, name in enumerate(names)],
            "类目": items["category"].to_list(),
            "Preis": np.round(np.exp(rng.normal(4, 1.2, n)), 2),
            "标签": tags,
            "Beschreibung": [f"{name} & mehr für das ganze Haus" for name in names],
            "上架日期": pl.Series(rng.integers(19_000, 19_700, n, dtype=np.int32)).cast(pl.Date),
            "链接": [f"https://shop.example/p/{value}" for value in number],
        }
    )
    kinds = rng.choice([kind for kind, _ in KINDS], len(events), p=[share for _, share in KINDS])
    seconds = events["timestamp"].cast(pl.Int64)
    log = pl.DataFrame(
        {
            "会员编号": events["query_id"].cast(pl.Int64),
            "Artikelnummer": [f"{value:06}" for value in events["item_id"].to_list()],
            "Bestelldatum": pl.from_epoch(seconds, time_unit="s"),
            "行为类型": kinds,
        }
    )
    kept = rng.random(n) >= MISSING
    return log, shop.filter(pl.Series(kept))


def messy(log: pl.DataFrame, shop: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return both tables as the export writes them: everything is text."""
    written = log.with_columns(pl.col("Bestelldatum").dt.strftime("%d.%m.%Y %H:%M:%S"))
    lists = [json.dumps(tags, ensure_ascii=False) for tags in shop["标签"].to_list()]
    items = shop.with_columns(
        money(shop["Preis"]),
        pl.Series("标签", lists),
        Beschreibung=pl.format("<p>{}</p>", pl.col("Beschreibung").str.replace("&", "&amp;")),
        上架日期=pl.col("上架日期").dt.strftime("%d.%m.%Y"),
    )
    return written, items


def train(events: Path, items: Path, out: Path) -> str:
    """Train with nothing set, and return what was printed."""
    twotower = Path(sys.executable).with_name("twotower")
    tables = ["--interactions", str(events), "--items", str(items), "--out", str(out)]
    done = subprocess.run(
        [str(twotower), "train", *tables], check=True, text=True, stdout=subprocess.PIPE
    )
    return done.stdout


def figures_of(bundle: Path) -> dict[str, dict[str, float]]:
    """Return every mean of the model and of its baselines."""
    told: dict[str, Any] = json.loads((bundle / "metrics.json").read_text(encoding="utf-8"))
    return {name: told[name] for name in told["intervals"]}


def main() -> int:
    """Write both shops, train on both, and hold their figures against each other."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000, help="customers, 20 events each")
    parser.add_argument("--keep", type=Path, help="folder for tables, bundles and what was printed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        log, shop = clean_shop(options.queries)
        log.write_parquet(folder / "events.parquet")
        shop.write_parquet(folder / "items.parquet")
        written, items = messy(log, shop)
        written.write_csv(folder / "events.csv", separator=";")
        items.write_csv(folder / "items.csv", separator=";")
        found = {}
        for name, ending in (("messy", "csv"), ("clean", "parquet")):
            out = folder / name
            said = train(folder / f"events.{ending}", folder / f"items.{ending}", out)
            (folder / f"{name}.txt").write_text(said, encoding="utf-8")
            if name == "messy" and not options.json:
                print(said)
            found[name] = figures_of(out)
    names = [name for name in found["messy"]["model"] if name in ("recall@10", "ndcg@10")]
    rows = [
        {"method": method, "table": table, **{name: values[method].get(name) for name in names}}
        for method in found["clean"]
        for table, values in found.items()
    ]
    is_same = found["messy"] == found["clean"]
    notes = [f"{len(log):,} events, {len(shop):,} rows of items."]
    notes.append("Every figure is the same." if is_same else "Figures differ.")
    report("One shop, as it was exported and as it is", rows, as_json=options.json, notes=notes)
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
