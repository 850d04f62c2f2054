"""Search as it is served, nothing set: against BM25, and BM25 against an engine that stems.

    python benchmarks/search_as_served.py [few wikiqa zero-shot bm25] [--seeds 2] [--encoder]

``few``: the first 500, 2,000 and 8,000 pairs of captions as one table, and ``wikiqa`` the pairs of its
training part; a fifth of the searches is the test. Printed is the paired 95 % interval of NDCG@10, the
model as it is served less BM25, whose reading, k1 and b are chosen on the same validation.

``zero-shot``: ``index_items`` on the documents of Cranfield and on the sentences of WikiQA, asked all
queries of the test; with ``--encoder`` also with the pretrained sentence encoder of ``text_search.py``.

``bm25``: words as they stand, stemmed, and stemmed without stop words, and what validation chooses of
these, beside FTS5 of SQLite without and with its Porter stemmer, whose k1 and b are fixed.
"""

import re
import sqlite3
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import torch

import public_sets
from common import report
from text_search import BS, K1S, Lexical, Questions, collection_of, encoder, questions_of
from twotower import evaluate_bundle, index_items, recipe, train
from twotower.evaluation.intervals import mean_intervals
from twotower.features.languages import language_of
from twotower.index.lexical import LexicalSettings

Row = dict[str, Any]
CAPTIONS = (500, 2_000, 8_000)


def pairs_of(name: str) -> tuple[pl.DataFrame, list[str]]:
    """Return a table of searches and right documents, and the settings that name its columns."""
    read = public_sets.read("wikiqa") if name == "wikiqa" else public_sets.captions()
    assert isinstance(read.interactions, Mapping)
    frame = pl.DataFrame(read.interactions["train"])
    if name != "wikiqa":
        return frame.head(int(name)), []
    return frame, ["data.query_column=question", "data.item_column=sentence"]


def trained(name: str, seed: int) -> Row:
    """Return what a training on a table came to."""
    pairs, columns = pairs_of(name)
    seeds = [f"training.seed={seed}", f"split.seed={seed}", "training.threads=1"]
    found = train(pairs, config=recipe("search").with_settings([*seeds, *columns])).figures
    return {"": f"{name}, seed {seed}", **_against_bm25(found)}


def zero_shot(name: str, *, with_encoder: bool) -> Row:
    """Return how good an index of documents is that nobody has searched yet."""
    documents, asked = collection_of(name), questions_of(name, "test")
    config = recipe("search")
    if with_encoder:
        told = ["features.text=sentence", f"features.sentence_encoder={encoder()}"]
        config = config.with_settings(told)
    items = pl.DataFrame({"item_id": range(len(documents)), "text": documents})
    retriever = index_items(items, text=["text"], config=config)
    place = {text: number for number, text in enumerate(documents)}
    right = [
        (asked.queries[line], place[asked.documents[column]])
        for line, column in zip(*asked.gains.nonzero(), strict=True)
    ]
    judged = pl.DataFrame(right, schema=["query", "item_id"], orient="row")
    found = evaluate_bundle(retriever, test=judged, baselines=["bm25"])
    how = "sentences" if with_encoder else "tokens"
    return {"": f"{name}, {how}", **_against_bm25(found)}


def _against_bm25(figures: Mapping[str, Any]) -> Row:
    subject = "served" if "served" in figures else "model"
    value, low, high = figures["differences"]["bm25"]["ndcg@10"]
    return {
        "share": figures["words"]["share"],
        "model": f"{figures['model']['ndcg@10']:.4f}",
        "as served": f"{figures[subject]['ndcg@10']:.4f}",
        "BM25": f"{figures['bm25']['ndcg@10']:.4f}",
        "difference": f"{value:+.4f} ({low:+.4f} to {high:+.4f})",
    }


def bm25(name: str) -> Iterator[Row]:
    """Yield a line a way to read words, chosen by MAP on validation, and those of the engine."""
    collection, test = collection_of(name), questions_of(name, "test")
    language = language_of(pl.Series(collection))
    stemmed = LexicalSettings(languages={"text": language})
    ways = {
        "words as they stand": [LexicalSettings()],
        "stemmed": [stemmed],
        "stemmed, no stop words": [replace(stemmed, drops_stop_words=True)],
    }
    ways["chosen"] = [each for way in reversed(ways.values()) for each in way]
    valid = None if name == "cranfield" else questions_of(name, "valid")
    for label, readings in ways.items():
        best = Lexical(collection, readings[0])
        if valid is not None:
            tried = [
                Lexical(collection, replace(r, k1=k1, b=b))
                for r in readings
                for k1 in K1S
                for b in BS
            ]
            best = max(tried, key=lambda each: _map(each, valid))
        told = f"{best.settings.k1:g}, {best.settings.b:g}"
        scores = best.scores(test.queries, test.documents)
        yield {"": f"{name}: {label}", "k1, b": told, **_measured(test, scores)}
    for label in ("unicode61", "porter unicode61"):
        scores = fts5(collection, test.queries, test.documents, label)
        yield {"": f"{name}: SQLite FTS5, {label}", "k1, b": "1.2, 0.75", **_measured(test, scores)}


def fts5(
    collection: Sequence[str], queries: Sequence[str], documents: Sequence[str], tokenizer: str
) -> torch.Tensor:
    """Return the scores of SQLite's full-text search: ``(queries, documents)``."""
    base = sqlite3.connect(":memory:")
    base.execute(f"create virtual table texts using fts5(body, tokenize = '{tokenizer}')")
    base.executemany("insert into texts (rowid, body) values (?, ?)", enumerate(collection))
    scores = torch.zeros(len(queries), len(collection))
    for line, query in enumerate(queries):
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
        if words:
            told = "select rowid, bm25(texts) from texts where texts match ?"
            for place, score in base.execute(told, (words,)):
                scores[line, place] = -score
    place_of = {text: place for place, text in enumerate(collection)}
    return scores[:, [place_of[text] for text in documents]]


def _map(lexical: Lexical, asked: Questions) -> float:
    found = asked.measured(lexical.scores(asked.queries, asked.documents))
    return float(found["map"].mean())


def _measured(asked: Questions, scores: torch.Tensor) -> Row:
    found = asked.measured(scores)
    shown = mean_intervals({name: found[name] for name in ("map", "ndcg@10")})
    return {name: f"{i.value:.3f} ({i.low:.3f}, {i.high:.3f})" for name, i in shown.items()}


def main() -> None:
    """Measure, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    names = ("few", "wikiqa", "zero-shot", "bm25")
    parser.add_argument("names", nargs="*", choices=names, default=names)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--encoder", action="store_true")
    given = parser.parse_args()
    tables = {"few": [str(count) for count in CAPTIONS], "wikiqa": ["wikiqa"]}
    for name in given.names:
        if name in tables:
            rows = [trained(table, seed) for table in tables[name] for seed in range(given.seeds)]
        elif name == "zero-shot":
            hows = (False, True) if given.encoder else (False,)
            rows = [
                zero_shot(each, with_encoder=how)
                for each in ("cranfield", "wikiqa")
                for how in hows
            ]
        else:
            sets = ("cranfield", "wikiqa", "captions 1-2", "captions 2-1")
            rows = [row for each in sets for row in bm25(each)]
        report(name, rows, as_json=False)


if __name__ == "__main__":
    main()
