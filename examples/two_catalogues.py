"""Two catalogues, one query tower: who is known in one is answered in the other from the first day."""

import polars as pl

import twotower
from twotower.data.sources.movielens import fetch

films = fetch("movielens-100k")
items = films.items.with_columns(year=pl.col("title").str.extract(r"\((\d{4})\)").cast(pl.Int64))
events = films.interactions.filter(pl.col("user_id").cast(pl.Int64) <= 80)
events = events.join(items.select("movie_id", "year"), on="movie_id")
is_classic = pl.col("year") < 1990
# Every fifth person has never seen a classic.
is_new = is_classic & (pl.col("user_id").cast(pl.Int64) % 5 == 0)

trained = twotower.train_views(
    {
        "classics": twotower.View(events.filter(is_classic & ~is_new), items.filter(is_classic)),
        "recent": twotower.View(events.filter(~is_classic), items.filter(~is_classic)),
    },
    out="two-catalogues",
    config={"split": {"kind": "random"}, "training": {"epochs": 3}},
)
for name, view in trained.views.items():
    print(f"{name}: {view.figures['verdict']}")

views = twotower.open_views("two-catalogues")
classics, seen = views["classics"], views["recent"].history(5)[-3:]
print("Person 5 has seen", ", ".join(views["recent"].items(seen)["title"]))
answer = classics.recommend(5, k=3)  # not a classic is known of this person
print("and may like", ", ".join(classics.items(answer.item_ids)["title"]))
answer = classics.recommend(history=[f"recent:{film}" for film in seen], k=3)
print("From those alone,", ", ".join(classics.items(answer.item_ids)["title"]))
