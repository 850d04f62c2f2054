"""The public data sets that the benchmarks read, each as the tables that ``twotower.train`` takes.

MovieLens-100K and -1M come from the package index. The others are read from a folder that is not part
of this project, ``../shared/data`` unless the environment variable ``TWOTOWER_DATA`` names another.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from twotower.data.sources import movielens

LAST_SHARED = 2178
"""The last of the users of ``cdrib`` who are the same person in both domains."""
DATA = Path(os.environ.get("TWOTOWER_DATA", "../shared/data"))


@dataclass(frozen=True)
class PublicSet:
    """Tables of one data set, and the settings that its protocol asks for.

    Args:
        interactions: One table, or the given parts.
        items: The items' table, if there is one.
        queries: The queries' table, if there is one.
        settings: What differs from the defaults because of the data, never because of the model.
    """

    interactions: pl.DataFrame | Mapping[str, pl.DataFrame]
    items: pl.DataFrame | None = None
    queries: pl.DataFrame | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def read(name: str) -> PublicSet:
    """Return one of ``SETS``; ``NAME-random`` is one without its order, split at random."""
    found = SETS[name.removesuffix("-random")]()
    if not name.endswith("-random"):
        return found
    return replace(found, settings={"split": {"kind": "random"}})


def _lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding=encoding) as lines:
        yield from (line.rstrip("\n") for line in lines)


def _movielens(name: str) -> PublicSet:
    tables = movielens.fetch(name)
    return PublicSet(tables.interactions, tables.items, tables.queries)


def _shuffled(data: PublicSet) -> PublicSet:
    """Return a set with its lines in a random order, which decides between events of one second."""
    assert isinstance(data.interactions, pl.DataFrame)
    return replace(data, interactions=data.interactions.sample(fraction=1.0, shuffle=True, seed=0))


def _latest_small() -> PublicSet:
    folder = DATA / "ml-latest-small"
    return PublicSet(pl.read_csv(folder / "ratings.csv"), pl.read_csv(folder / "movies.csv"))


def _sequences(name: str) -> PublicSet:
    """A line a user: the user and its items in order, without times; attributes of the items."""
    folder = DATA / "s3rec-sequences"
    users, items = [], []
    for line in _lines(folder / f"{name}.txt"):
        user, *sequence = line.split()
        users += [int(user)] * len(sequence)
        items += [int(item) for item in sequence]
    attributes = json.loads((folder / f"{name}_item2attributes.json").read_text("utf-8"))
    return PublicSet(
        pl.DataFrame({"user": users, "item": items}),
        pl.DataFrame(
            {
                "item": [int(item) for item in attributes],
                "attributes": [[str(number) for number in row] for row in attributes.values()],
            }
        ),
        settings={"data": {"order": "file"}},
    )


def _lightgcn_lastfm() -> PublicSet:
    folder = DATA / "lightgcn-lastfm"

    def events(file: str) -> pl.DataFrame:
        rows = [[int(float(cell)) for cell in line.split()] for line in _lines(folder / file)]
        return pl.DataFrame(rows, schema=["user", "artist", "count"], orient="row")

    return PublicSet({"train": events("data1.txt"), "test": events("test1.txt")})


def _book_crossing() -> PublicSet:
    """Books read, without times; the titles hold a few broken rows, which lose their last columns."""
    folder = DATA / "bookcrossing-caserec"
    events = [line.split("\t")[:2] for line in _lines(folder / "book_history.dat.gz")][1:]
    books = [line.split("\t")[:6] for line in _lines(folder / "items_info.dat.gz", "latin-1")][1:]
    users = [line.split("\t")[:3] for line in _lines(folder / "users_info.dat.gz", "latin-1")][1:]
    interactions = pl.DataFrame(
        {
            "user": [int(user) for user, _ in events],
            "item": [int(item) for _, item in events],
        }
    )
    items = pl.DataFrame(
        {
            "item": [int(book[0]) for book in books],
            "title": [book[2] for book in books],
            "author": [book[3] for book in books],
            "year": [int(book[4]) if book[4].isdigit() else None for book in books],
            "publisher": [book[5] for book in books],
        }
    )
    queries = pl.DataFrame(
        {
            "user": [int(user[0]) for user in users],
            "country": [user[1].rsplit(",", 1)[-1].strip() for user in users],
            "age": [int(user[2]) if user[2].strip().isdigit() else None for user in users],
        }
    )
    return PublicSet(interactions, items, queries, settings={"split": {"kind": "random"}})


def _tmall() -> PublicSet:
    """Sessions of clicks in order; each line of the test is a new session and its next item."""
    folder = DATA / "gcegnn-Tmall"
    learnt = [line.split() for line in _lines(folder / "train_sessions.txt.gz")]
    asked = [line.split() for line in _lines(folder / "test_prefix_target.txt.gz")]

    def events(sessions: list[list[str]], first: int) -> pl.DataFrame:
        numbers = pl.Series("session", range(first, first + len(sessions)))
        items = pl.Series("item", sessions)
        return pl.DataFrame([numbers, items]).explode("item").cast(pl.Int64)

    return PublicSet({"train": events(learnt, 0), "test_sessions": events(asked, len(learnt))})


def pair_of_domains(name: str) -> dict[str, PublicSet]:
    """Return the two views of ``disencdr`` (``sport``, ``phone``) or of ``cdrib`` (``game``, ``video``).

    In ``disencdr`` all users are in both. In ``cdrib`` those up to 2,178 are, of which the last two blocks
    have no training event in one of them; larger numbers are other people in each, and are renamed.
    """
    first, second = {"disencdr": ("sport", "phone"), "cdrib": ("game", "video")}[name]
    found = {}
    for view, other in ((first, second), (second, first)):
        parts = {}
        for file in sorted((DATA / name / f"{view}_{other}").glob("*.txt.gz")):
            rows = [line.split()[:2] for line in _lines(file)]
            is_shared = name == "disencdr"
            users = [u if is_shared or int(u) <= LAST_SHARED else f"{view} {u}" for u, _ in rows]
            parts[file.name.split(".")[0]] = pl.DataFrame(
                {"user": users, "item": [item for _, item in rows]}
            )
        found[view] = PublicSet(parts)
    return found


def captions(*, reverse: bool = False) -> PublicSet:
    """Two captions of one picture each: the first is the query, the second the document, or the reverse."""
    folder = DATA / "multi30k" / "task2-captions"
    first, second = ("2", "1") if reverse else ("1", "2")

    def pairs(part: str) -> pl.DataFrame:
        queries, documents = (
            list(_lines(folder / f"{part}.{number}.en.gz")) for number in (first, second)
        )
        return pl.DataFrame({"query": queries, "document": documents})

    return PublicSet({"train": pairs("train"), "valid": pairs("val"), "test": pairs("test_2016")})


def _wikiqa() -> PublicSet:
    """Questions, each with sentences of which some answer it."""
    folder = DATA / "wikiqa"

    def pairs(part: str) -> pl.DataFrame:
        columns = {"question": "a.toks", "sentence": "b.toks", "label": "sim.txt"}
        frame = pl.DataFrame({name: list(_lines(folder / part / f)) for name, f in columns.items()})
        return frame.with_columns(pl.col("label").cast(pl.Int64))

    return PublicSet(
        {"train": pairs("train"), "valid": pairs("dev"), "test": pairs("test")},
        settings={"data": {"query_column": "question", "item_column": "sentence"}},
    )


def cranfield() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return documents (``document``, ``text``), queries (``query``, ``text``) and judgements.

    Queries are numbered as they stand in their file, which is what the judgements count by. A judgement's
    ``gain`` is 4 for a complete answer down to 1 for minimum interest.
    """
    folder = DATA / "cranfield"
    documents = _smart(folder / "cran.all.1400")
    queries = _smart(folder / "cran.qry")
    rows = [line.split() for line in _lines(folder / "cranqrel") if line.strip()]
    judgements = pl.DataFrame(
        [(int(query), int(document), int(code)) for query, document, code in rows],
        schema=["query", "document", "code"],
        orient="row",
    ).filter(pl.col("code").is_between(1, 4))
    return (
        pl.DataFrame({"document": range(1, len(documents) + 1), "text": documents}),
        pl.DataFrame({"query": range(1, len(queries) + 1), "text": queries}),
        judgements.with_columns(gain=5 - pl.col("code")),
    )


def _smart(path: Path) -> list[str]:
    """Return title and text of each entry of a file in SMART's format."""
    entries: list[list[str]] = []
    field = ""
    for line in _lines(path, "latin-1"):
        if line.startswith("."):
            field = line[1:2]
            if field == "I":
                entries.append([])
        elif field in "TW":
            entries[-1].append(line.strip())
    return [" ".join(lines) for lines in entries]


SETS: dict[str, Callable[[], PublicSet]] = {
    "movielens-100k": lambda: _movielens("movielens-100k"),
    "movielens-1m": lambda: _movielens("movielens-1m"),
    "movielens-1m-shuffled": lambda: _shuffled(_movielens("movielens-1m")),
    "ml-latest-small": _latest_small,
    "lastfm-sequences": lambda: _sequences("LastFM"),
    "lastfm-lightgcn": _lightgcn_lastfm,
    "beauty": lambda: _sequences("Beauty"),
    "book-crossing": _book_crossing,
    "tmall": _tmall,
    "captions": captions,
    "wikiqa": _wikiqa,
}
