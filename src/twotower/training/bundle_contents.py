"""What a training leaves behind: the contents of its bundle, and digests of what it learnt from."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.config import IndexConfig
from twotower.data.dataset import KNOWN, Dataset, Interactions, Part
from twotower.data.views import qualified
from twotower.evaluation.figures import Figures
from twotower.features.schema import VIEW
from twotower.features.transforms import Sides, SideTransforms
from twotower.features.windows import WindowsEncoder
from twotower.histories import Histories
from twotower.serving.bundle import Contents, EventContents, SideContents
from twotower.training.card import model_card
from twotower.training.checkpoints import Progress
from twotower.training.objective import Objective
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW, Vocabulary, rows_of_lines


def fingerprint(trainer: Trainer) -> str:
    """Return the SHA-256 of all that makes two trainings the same: events, features, settings.

    The precision is left out, so that another machine can go on from a checkpoint, and so is the search of
    the items, which comes after the training.
    """
    dataset, config = trainer.dataset, trainer.config
    training = replace(config.training, precision="auto")
    config = replace(config, training=training, index=IndexConfig())
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
    for name, weights in trainer.trained.state_dict().items():
        digest.update(f"{name} {tuple(weights.shape)}".encode())
    return digest.hexdigest()


def data_digest(events: Interactions, parts: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256 of all events and of what each is used for."""
    digest = hashlib.sha256(np.ascontiguousarray(parts).tobytes())
    for column in (
        events.query_rows,
        events.item_rows,
        events.times,
        events.labels,
        events.weights,
        *(() if events.position_weights is None else (events.position_weights,)),
        events.is_target,
    ):
        digest.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
    if events.impressions is not None:
        digest.update(events.impressions.offsets.tobytes())
        digest.update(events.impressions.item_rows.tobytes())
    return digest.hexdigest()


def contents_of(
    objective: Objective,
    sides: Sides,
    figures: Figures,
    progress: Progress,
    *,
    histories: bool,
    custom: tuple[str, ...] = (),
    private: bool = False,
    dataset: Dataset | None = None,
) -> Contents:
    """Return what the bundle of a trained model holds.

    Args:
        objective: The data set that was learnt, and its model with the best weights.
        sides: The fitted features.
        figures: On the test part.
        progress: Of the training.
        histories: Whether the queries' histories and test items are kept.
        custom: Sides whose tower is the user's own.
        private: Whether the card says what the bundle cannot answer; ``without_queries`` makes it so.
        dataset: The data set as it was split, where the model learnt validation, too.
    """
    dataset = objective.dataset if dataset is None else dataset
    config = objective.config
    popularity = objective.popularity
    if dataset.offered is not None:
        popularity = np.where(dataset.offered, popularity, 0).astype(np.float32)
    positive = dataset.interactions.is_positive
    is_known = np.isin(dataset.parts, KNOWN) & dataset.interactions.is_read
    known = dataset.interactions.where(is_known)
    wanted = dataset.interactions.where((dataset.parts == Part.TEST) & positive)
    tests = dataset.part(Part.TEST)  # negatives, too, for the figures of labelled pairs
    tests = replace(tests, event_rows=None)  # no history has them
    if tests.is_target is not None:
        tests = tests.where(tests.is_target)
    events = dataset.interactions
    of_events = None
    if sides.event is not None:
        frame = dataset.event_columns.select(sides.event.columns).filter(pl.Series(is_known))
        known = replace(known, event_rows=rows_of_lines(len(frame)))
        of_events = EventContents(frame if histories else frame.clear(), sides.event)
    provenance = {
        "data": dataset.name,
        "events": len(events) if dataset.offered is None else int(positive.sum()),
        "queries": len(dataset.queries),
        "items": dataset.num_items,
        "sha256_of_events": data_digest(events, dataset.parts),
        "sha256_of_targets": _digest_of(wanted.histories()),
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
        custom=custom,
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


def _digest_of(sets: Histories) -> str:
    digest = hashlib.sha256(sets.offsets.tobytes())
    digest.update(sets.item_rows.tobytes())
    return digest.hexdigest()


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
