"""What a training leaves behind: the contents of its bundle, the model card, and digests of its data."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.caller import passing
from twotower.config import Config, IndexConfig, RerankConfig
from twotower.data.dataset import KNOWN, Dataset, Interactions, Part
from twotower.data.views import qualified
from twotower.evaluation.figures import Figures, methods
from twotower.evaluation.refit_notes import note
from twotower.features.schema import VIEW
from twotower.features.transforms import SideTransforms
from twotower.features.windows import WindowsEncoder
from twotower.processes.sharded_table import whole_shapes
from twotower.serving.bundle import Contents, EventContents, SideContents
from twotower.training.checkpoints import Progress
from twotower.training.objective import Objective
from twotower.training.private import LIMITS
from twotower.training.settings import with_values
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW, Vocabulary, rows_of_lines

_LIMITS = (
    "The model repeats what its data shows: what was popular there, and who is missing there. "
    "Its figures hold for queries like those of the test part, and say nothing of others."
)


def fingerprint(trainer: Trainer) -> str:
    """Return the SHA-256 of all that makes two trainings the same: events, features, settings, lessons.

    The precision is left out, so that another machine can go on from a checkpoint, and so are the search of
    the items and the second stage, which come after the training.
    """
    dataset, config = trainer.dataset, trainer.config
    config = replace(
        with_values(config, {"training.precision": "auto"}),
        index=IndexConfig(),
        rerank=RerankConfig(),
    )
    events = data_digest(dataset.interactions, dataset.parts)
    digest = hashlib.sha256((events + config.to_toml()).encode())
    for module in trainer.trained.modules():
        if isinstance(module, WindowsEncoder):  # its vectors are no weights, and all share them
            digest.update(module.vectors.cpu().numpy().tobytes())
            break
    for array in trainer.query_arrays.values():
        digest.update(array.tobytes())
    for tensor in (*trainer.item_features.values(), *(trainer.event_features or {}).values()):
        digest.update(tensor.cpu().numpy().tobytes())
    for name, shape in whole_shapes(trainer.trained).items():
        digest.update(f"{name} {shape}".encode())
    if trainer.lessons is not None:
        digest.update(trainer.lessons.digest.encode())
    return digest.hexdigest()


def data_digest(events: Interactions, parts: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256 of all events and of what each is used for."""
    arrays: list[npt.NDArray[Any] | None] = [parts, events.query_rows, events.item_rows]
    arrays += [events.times, events.labels, events.weights]
    if events.position_weights is not None:
        arrays.append(events.position_weights)
    arrays.append(events.is_target)
    if events.impressions is not None:
        arrays += [events.impressions.offsets, events.impressions.item_rows]
    return _digest_of(arrays)


def _digest_of(arrays: Iterable[npt.NDArray[Any] | None]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def contents_of(
    trainer: Trainer,
    objective: Objective,
    figures: Figures,
    progress: Progress,
    *,
    histories: bool,
    private: bool = False,
    dataset: Dataset | None = None,
) -> Contents:
    """Return what the bundle of a trained model holds.

    Args:
        trainer: With the features, and the towers of the user's own.
        objective: One of the trainer's, with its model and the best weights.
        figures: On the test part.
        progress: Of the training.
        histories: Whether the queries' histories and test items are kept.
        private: Whether the card says what the bundle cannot answer; ``without_queries`` makes it so.
        dataset: The data set as it was split, where the model learnt validation, too.
    """
    dataset = objective.dataset if dataset is None else dataset
    config, sides = trainer.config, trainer.sides
    popularity = objective.popularity
    if dataset.offered is not None:
        popularity = np.where(dataset.offered, popularity, 0).astype(np.float32)
    events = dataset.interactions
    is_known = np.isin(dataset.parts, KNOWN) & events.is_read
    known = events.where(is_known)
    targets = events.where((dataset.parts == Part.TEST) & events.is_positive).histories()
    # Negatives, too, for the figures of labelled pairs; no history has the rows of these events.
    tests = replace(dataset.part(Part.TEST), event_rows=None)
    if tests.is_target is not None:
        tests = tests.where(tests.is_target)
    of_events = None
    if sides.event is not None:
        frame = dataset.event_columns.select(sides.event.columns).filter(pl.Series(is_known))
        known = replace(known, event_rows=rows_of_lines(len(frame)))
        of_events = EventContents(frame if histories else frame.clear(), sides.event)
    provenance = {
        "data": dataset.name,
        "events": len(events) if dataset.offered is None else int(events.is_positive.sum()),
        "queries": len(dataset.queries),
        "items": dataset.num_items,
        "sha256_of_events": data_digest(events, dataset.parts),
        "sha256_of_targets": _digest_of([targets.offsets, targets.item_rows]),
        "notes": list(dataset.notes),
        "best_epoch": progress.best_epoch,
        "device": str(objective.encoding.device),
    }
    return Contents(
        config=config,
        queries=_queries_of(dataset, sides.query, figures),
        items=SideContents(
            dataset.items.ids, dataset.items.id_column, dataset.items.frame, sides.item
        ),
        weights=objective.model.state_dict(),
        item_vectors=objective.encoding.item_vectors()[FIRST_ROW:].cpu(),
        popularity=popularity,
        histories=known.histories() if histories else None,
        history_parts=dataset.parts[is_known] if histories else None,
        history_weights=known.weights if histories else None,
        history_is_target=known.is_target if histories else None,
        targets=tests.histories() if histories else None,
        target_labels=tests.labels if histories else None,
        metrics=figures,
        custom=trainer.custom,
        ordered=dataset.ordered,
        repeats=dataset.repeats,
        provenance=provenance,
        log="".join(json.dumps(record) + "\n" for record in progress.log),
        card=model_card(dataset, config, figures, private=private),
        events=of_events,
    )


def _queries_of(dataset: Dataset, transforms: SideTransforms, figures: Figures) -> SideContents:
    """Return the queries with the columns that the model reads and those that the figures are cut by.

    Nothing in a bundle uses another column, which may be a name or an address.
    """
    table = dataset.queries
    used = {table.id_column, *(transform.feature.source for transform in transforms.transforms)}
    used |= {group["by"].removeprefix("query.") for group in figures["slices"]}
    columns = [name for name in table.frame.columns if name in used]
    features = tuple(feature for feature in transforms.features if feature.source in used)
    kept = SideTransforms(features, transforms.transforms)
    return SideContents(table.ids, table.id_column, table.frame.select(columns), kept)


def of_view(contents: Contents, name: str) -> Contents:
    """Return what the bundle of one view holds: its own items have their own ids."""
    items = contents.items
    key = items.id_column
    is_own = items.frame[VIEW] == name
    own = items.frame[key].filter(is_own).str.strip_prefix(f"{name}:")
    renamed = dict(zip(qualified(own, name), own, strict=True))

    def as_called(ids: pl.Series) -> pl.Series:
        return ids.replace(renamed)

    transforms = SideTransforms(
        items.transforms.features,
        tuple(
            type(each)(each.feature, Vocabulary(as_called(each.own_vocabulary().ids)), each.numbers)
            if each.feature.meaning == "id"
            else each
            for each in items.transforms.transforms
        ),
    )
    frame = items.frame.with_columns(as_called(items.frame[key]))
    return replace(
        contents,
        items=SideContents(Vocabulary(as_called(items.ids.ids)), key, frame, transforms),
        view=name,
    )


def model_card(dataset: Dataset, config: Config, figures: Figures, *, private: bool = False) -> str:
    """Return Markdown: what the model was trained on, how good it is, what it is not for.

    Args:
        dataset: What it was trained on.
        config: The settings.
        figures: On the test part.
        private: Whether the bundle is private, which the card then explains.
    """
    from twotower.evaluation.screen import method_label, second_stage_note  # it imports rich

    protocol = figures["protocol"]
    metrics = [m for m in ("hit_rate@10", "ndcg@10", "recall@100") if m in figures["model"]]
    table = ["| | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    for name in methods():
        if name in figures:
            intervals = figures["intervals"][name]
            cells = [method_label(figures, name)]
            cells += ["{:.4f} ({:.4f} to {:.4f})".format(*intervals[m]) for m in metrics]
            table.append(f"| {' | '.join(cells)} |")
    seen = "removed" if protocol["seen_removed"] else "kept"
    said = note(figures)
    paragraphs = [
        f"# Two-tower model of {dataset.name}",
        (
            f"Ranks {protocol['catalogue']:,} items for a query by the dot product of two vectors of "
            f"width {config.towers.compared_width}."
        ),
        "## Figures",
        *([] if said is None else [said]),
        (
            f"{protocol['queries']:,} queries of the {protocol['part']} part, ranking the whole "
            f"catalogue; seen items {seen}. 95 % intervals by bootstrap over queries."
        ),
        "\n".join(table),
        figures["verdict"],
        *([second_stage_note(figures)] if "second_stage" in figures else []),
        "## Data",
        "\n".join(f"- {note}" for note in dataset.notes),
        "## Limits",
        _LIMITS,
    ]
    if private:
        paragraphs += [
            "## What this bundle cannot answer",
            f"This bundle was trained with `{passing(private=True)}`: it holds nothing of any one query.",
            "\n".join(f"- {limit}" for limit in LIMITS),
        ]
    return "\n\n".join(paragraphs) + "\n"
