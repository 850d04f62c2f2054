"""A new film gets a few places of each answer, and a log of answers says what it is worth everywhere."""

import polars as pl

import twotower
from twotower import Cap, Diversify, Explore
from twotower.data.sources.movielens import fetch

films = fetch("movielens-100k")
events = films.interactions.filter(pl.col("user_id").cast(pl.Int64) <= 40)
trained = twotower.train(events, items=films.items, config={"training": {"epochs": 3}})
retriever = trained.retriever
users = sorted(events["user_id"].unique().to_list())

# 1. Films that nobody has seen get one place in ten; of the other places no genre has more than four.
rules = [Explore(0.1, seed=1), Cap("genres", 4), Diversify(0.2)]
answer = retriever.recommend(users[0], k=10, rules=rules)
for line in retriever.items(answer.item_ids).to_dicts():
    chance = answer.explored.get(line["movie_id"])
    print(line["title"], line["genres"], "" if chance is None else f"explored, {chance:.4f}")

# 2. Say that whoever is shown a film from before 1960 likes it. Over many seeds, each like divided by how
#    probable its film was to be drawn sums up to how many such films may be drawn.
likes = set(films.items.filter(pl.col("year") < 1960)["movie_id"])
sums = []
for seed in range(300):
    shown = retriever.recommend(users[0], k=10, rules=[Explore(0.5, seed=seed)]).explored
    sums.append(sum(1 / chance for item, chance in shown.items() if item in likes))
new = retriever.contents.popularity[2:] == 0
there = [i for i, is_new in zip(retriever.item_ids, new, strict=True) if is_new and i in likes]
print(f"estimated {sum(sums) / len(sums):.1f} new films from before 1960, there are {len(there)}")
