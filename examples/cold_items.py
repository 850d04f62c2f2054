"""Items without a single event: how good their answers are, measured first, and then one that is new."""

import polars as pl

import twotower
from twotower.data.sources.movielens import fetch

films = fetch("movielens-100k")
events = films.interactions.filter(pl.col("user_id").cast(pl.Int64) <= 60)

# 1. A tenth of the films has no training event, and the test asks for those alone.
config = {"split": {"kind": "cold-items"}, "training": {"epochs": 6}}
measured = twotower.train(events, items=films.items, config=config)
for method in ("model", "popularity", "item_knn"):
    print(f"{method:>10}: recall@100 of unseen films {measured.figures[method]['recall@100']:.3f}")

# 2. A film that comes after training needs its columns, and no training.
retriever = measured.retriever
new = {"title": "Alien Planet", "genres": "Action|Sci-Fi|Thriller"}
vector = retriever.encode_items(features=new)
users = list(range(1, 61))
scores = retriever.encode_queries(users) @ vector.T
best = [users[line] for line in scores[:, 0].argsort()[::-1][:3]]
for user in best:
    last = retriever.items(retriever.history(user)[-3:])["title"].to_list()
    print(f"{new['title']} is shown to {user} first, who watched {', '.join(last)}")
