"""``index_items``: a bundle that searches texts which nobody has searched yet."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from twotower.baselines.bm25 import TextColumns, choose_bm25
from twotower.config import Config
from twotower.data.dataset import Dataset, EntityTable, Interactions
from twotower.data.preparation import catalogue_of
from twotower.data.tables import Table
from twotower.errors import ArgumentError, ConfigError
from twotower.evaluation.scorers import ModelScorer, Served
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.features.schema import Feature, infer_features, kinds_of, texts_of
from twotower.features.transforms import Sides, SideTransforms
from twotower.histories import Histories
from twotower.index.lexical import joined
from twotower.recipes import recipe
from twotower.runtime import choose_device
from twotower.serving.bundle import Contents, SideContents, check_output, write_bundle
from twotower.serving.retriever import Retriever
from twotower.training.choices import resolve
from twotower.training.settings import with_values
from twotower.training.task import name_of
from twotower.training.trainer import untrained
from twotower.vocab import FIRST_ROW, Vocabulary

QUERY = "query"
"""Column of the queries, which are their text."""
SHARE_OF_TOKENS = 0.9
"""Share of BM25 beside towers that know of two words only whether they share letters."""
SHARE_OF_SENTENCES = 0.3
"""The same beside a pretrained sentence encoder."""


def index_items(
    items: Table,
    *,
    text: Sequence[str] = (),
    out: str | Path | None = None,
    config: Config | Mapping[str, object] | str | Path | None = None,
    name: str | None = None,
) -> Retriever:
    """Return a retriever that searches items by their texts, without any training; write it as a bundle.

    Queries are texts. They are answered by BM25, at a share that is the same for all data, beside towers
    that nobody has trained: at their start words and trigrams that two texts share match, or with
    ``features.text = "sentence"`` the vectors of a pretrained encoder. Other columns are shown and can be
    filtered by.

    Args:
        items: A file or a frame with an id and columns of text.
        text: Columns that are read; without any, every column that reads as text.
        out: Where to write the bundle; None keeps it in memory.
        config: Settings; without any those of the recipe ``search``. Those of a training are not read.
        name: What the data is called in reports; by default the file's name.

    Raises:
        DataError: The table cannot be used as it is.
        ConfigError: A column of ``text`` is none, no column reads as text, or a setting is wrong.
        BundleError: ``out`` cannot be written, or the sentence encoder cannot be built.
        MissingExtraError: The extra ``text`` is not installed where a sentence encoder is to be used.
    """
    if isinstance(text, str):
        raise ArgumentError(f"text must be a sequence of columns, got the string {text!r}.")
    settings = recipe("search") if config is None else Config.of(config)
    target = None if out is None else check_output(out)
    table, notes = catalogue_of(items, settings.data, settings.features)
    settings, features = _of_items(table, text, settings)
    kind = settings.features.text
    lines = joined([table.frame[column] for column in texts_of(features)]).rename(QUERY)
    is_pretrained = FEATURE_KINDS[kind].knows_all_rows
    learnt = lines.clear() if is_pretrained else lines  # it has nothing to learn of them
    of_queries = infer_features(
        learnt.to_frame(), "query", QUERY, {QUERY: kind}, settings=settings.features
    )
    each, least = np.ones(len(table), np.int64), settings.features.min_count
    sides = Sides(
        SideTransforms.fit(of_queries, learnt.to_frame(), each[: len(learnt)], least),
        SideTransforms.fit(features, table.frame, each, least),
    )
    dataset = _without_events(table, name or name_of(items))
    settings, _ = resolve(settings, dataset)
    (encoding,) = untrained(dataset, sides, settings, choose_device(settings.training.device))
    queries = sides.query.apply_to_rows(dataset.queries.frame)
    scorer = ModelScorer(encoding, queries, np.zeros(dataset.items.ids.num_rows, np.float32))
    columns = TextColumns(texts_of(of_queries), texts_of(features))
    bm25 = choose_bm25(dataset, columns, language=settings.features.language)
    share = SHARE_OF_SENTENCES if is_pretrained else SHARE_OF_TOKENS
    contents = _contents(dataset, sides, settings, Served(scorer, bm25, share, {}), notes)
    if target is not None:
        write_bundle(target, contents)
    return Retriever(contents, path=target or "")


def _of_items(
    table: EntityTable, text: Sequence[str], settings: Config
) -> tuple[Config, tuple[Feature, ...]]:
    """Return the settings and the features of items of which texts alone are read.

    Raises:
        ConfigError: A column is none, or none reads as text.
    """
    of_text = settings.features.text
    stated = {**settings.features.item, **dict.fromkeys(text, of_text)}
    features = infer_features(
        table.frame,
        "item",
        table.id_column,
        stated,
        key_text=not text,
        settings=settings.features,
        forms=table.forms,
    )
    read = [f for f in features if f.meaning == "text" and (not text or f.source in text)]
    if not read:
        columns = ", ".join(table.frame.columns)
        raise ConfigError(
            f"items must have a column of text, got none among {columns}; name those that are one by text."
        )
    kept = tuple(f if f in read else replace(f, kind="shown") for f in features)
    towers = replace(settings.towers, history="none", query_id="off", item_id="off")
    kinds = replace(settings.features, item=kinds_of(kept), query={QUERY: of_text}, event={})
    return replace(settings, towers=towers, features=kinds), kept


def _without_events(table: EntityTable, name: str) -> Dataset:
    nothing = pl.Series(QUERY, [], dtype=pl.String)
    none = np.zeros(0, np.int32)
    return Dataset(
        queries=EntityTable(Vocabulary(nothing), nothing.to_frame(), QUERY),
        items=table,
        interactions=Interactions(none, none, np.zeros(FIRST_ROW + 1, np.int64)),
        parts=np.zeros(0, np.uint8),
        ordered=False,
        repeats=True,
        event_columns=pl.DataFrame(),
        name=Path(name).name,
    )


def _contents(
    dataset: Dataset, sides: Sides, settings: Config, served: Served, notes: tuple[str, ...]
) -> Contents:
    queries, items, encoding = dataset.queries, dataset.items, served.model.encoding
    empty = Histories.empty(queries.ids.num_rows)
    said = (
        f"{len(items):,} items, searched by {', '.join(served.bm25.columns.item)}; nothing was learnt, and "
        "nothing is known of how good the answers are."
    )
    card = (
        f"# Search of {dataset.name}\n\nAn untrained two-tower model of width {settings.towers.width}, and "
        f"BM25 at a share of {served.share:g} beside it: {said}\n\n`twotower evaluate` says how good it "
        "is, if it is given searches whose right items are known.\n"
    )
    return Contents(
        config=with_values(settings, {"index.kind": "exact"}),
        queries=SideContents(queries.ids, queries.id_column, queries.frame, sides.query),
        items=SideContents(items.ids, items.id_column, items.frame, sides.item),
        weights=encoding.model.state_dict(),
        item_vectors=served.model.item_vectors[FIRST_ROW:].cpu(),
        popularity=served.model.popularity.numpy(),
        histories=empty,
        history_parts=np.zeros(0, np.uint8),
        targets=empty,
        metrics={"words": served.as_json()},
        ordered=dataset.ordered,
        repeats=dataset.repeats,
        provenance={
            "data": dataset.name,
            "events": 0,
            "queries": 0,
            "items": len(items),
            "notes": [*notes, said],
            "best_epoch": 0,
            "device": str(encoding.device),
        },
        card=card,
    )
