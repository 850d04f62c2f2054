"""Items without a single event: how good their answers are, measured first, and then one that is new."""

import polars as pl

import twotower
from twotower.data.sources.movielens import fetch

films = fetch("movielens-100k")
events = films.interactions.filter(pl.col("user_id").cast(pl.Int64) <= 100)

# 1. A tenth of the films has no training event, and the test asks for those alone.
config = {"split": {"kind": "cold-items"}, "training": {"epochs": 6}}
measured = twotower.train(events, items=films.items, config=config)
for method in ("model", "popularity", "item_knn"):
    print(f"{method:>10}: recall@100 of unseen films {measured.figures[method]['recall@100']:.3f}")

# 2. A film that comes after training needs its columns, and no training.
trained = twotower.train(events, items=films.items, config={"training": {"epochs": 3}})
new = {"title": "Alien Planet", "genres": "Action|Sci-Fi|Thriller"}
vector = trained.retriever.encode_items(features=new)
users = list(range(1, 101))
scores = trained.retriever.encode_queries(users) @ vector.T
best = [users[line] for line in scores[:, 0].argsort()[::-1][:3]]
for user in best:
    last = trained.retriever.items(trained.retriever.history(user)[-3:])["title"].to_list()
    print(f"{new['title']} is shown to {user} first, who watched {', '.join(last)}")
