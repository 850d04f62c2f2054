"""A search over products from clicks: no id is learnt, so new products and new searches are answered."""

from itertools import product

import polars as pl

import twotower

CALLED = {"sneakers": "running shoes", "rucksack": "backpack", "pullover": "sweater", "cap": "hat"}
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "purple")
FOR = ("kids", "women", "men", "hiking", "winter", "travel")

# People click on the right product, whatever they call it; "hiking rucksack" was never searched for.
clicks = pl.DataFrame(
    [
        (f"{colour} {word} for {who}", f"{CALLED[word].title()}, {colour}, {who}")
        for colour, word, who in product(COLOURS, CALLED, FOR)
        if (word, who) != ("rucksack", "hiking")
    ],
    schema=["query", "document"],
    orient="row",
)
catalogue = pl.DataFrame(
    {"document": [f"{n.title()}, {c}, {w}" for c, n, w in product(COLOURS, CALLED.values(), FOR)]}
)

config = twotower.recipe("search").with_settings(["training.batch_size=32", "training.epochs=30"])
trained = twotower.train(clicks, items=catalogue, config=config, out="search-model")
print("NDCG@10 on searches held out:", round(trained.figures["model"]["ndcg@10"], 3))
print("BM25 there:", round(trained.figures["bm25"]["ndcg@10"], 3))

retriever = twotower.Retriever.open("search-model")
for search in ("hiking rucksack, green", "gren hikng ruksack"):
    print(search, "->", retriever.recommend(search, k=3, words="auto").item_ids)
