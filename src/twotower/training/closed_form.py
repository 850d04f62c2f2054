"""A two-tower model in closed form: ids' embeddings from singular vectors, without a step of training."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from twotower.arrays import Bools, Float32s
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.features.encoders import CategoryEncoder, SideEncoder
from twotower.features.transforms import SideTransforms
from twotower.losses.loss_kinds import LOSSES
from twotower.processes.sharded_table import ShardedTable
from twotower.registry import resolved
from twotower.toml import toml_value
from twotower.towers.build import spectral_part
from twotower.towers.encoding import Encoding
from twotower.towers.history import EVER, Bag
from twotower.towers.model import ItemTower, QueryTower
from twotower.towers.spectral_part import SpectralPart
from twotower.training.choices_of_examples import text_kinds
from twotower.training.objective import MAX_VALIDATION_CASES
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW

if TYPE_CHECKING:
    from twotower.baselines.spectral import Spectral

SHARE_OF_RARE = 0.1
"""What an event with a rare item adds of the vector of a query without events. So little changes no
figure."""
START_LENGTH = 0.25
"""Root mean square of the lengths of the vectors that a training starts from."""
RIDGE = 0.01
"""Penalty of the regression that predicts an item's vector, as a share of the mean square of its inputs."""
_MOST_SCORES = 50_000_000_000
"""Scores of the validations by which a scale is chosen: with more they take longer than minutes."""
_VALIDATIONS = 20
_SPECTRAL = "twotower.baselines.spectral"  # imported when it is called, since it imports scipy


def no_closed_form(config: Config, dataset: Dataset, custom: Collection[str] = ()) -> str:
    """Return why settings cannot be those of a model in closed form, or nothing.

    Args:
        config: What the user set, with ``auto`` where that may be anything.
        dataset: The split data set.
        custom: Sides whose tower is the user's own.
    """
    towers = config.towers
    if custom:
        return "a tower is your own"
    if dataset.views:
        return "there are several views"
    if dataset.by_period:
        return "the test is of a later period"
    if config.features.query.get(dataset.queries.id_column) in text_kinds():
        return "a search is all in its text"
    if "id" not in config.features.item.get(dataset.items.id_column, "id").split("+"):
        return "the items are read by no id"
    if config.features.tune_sentences:
        return "features.tune_sentences is true"
    if config.loss.kind not in ("auto", "softmax"):
        return f"loss.kind is {config.loss.kind!r}"
    if config.loss.negatives not in ("auto", "all"):
        return f"loss.negatives is {config.loss.negatives!r}"
    allowed = {
        "history": ("auto", "bag"),
        "history_items": ("auto", "separate"),
        "query_hidden": (None, ()),
        "item_hidden": ((),),
        "item_id": ("on",),
        "query_id": ("auto", "off"),
        "block": ("skip",),
        "similarity": ("auto", "dot"),
        "temperature": (None,),
        "popularity": ("auto", "off"),
        "question_time": ("auto", "off"),
    }
    for name, values in allowed.items():
        value = getattr(towers, name)
        if value not in values:
            return f"towers.{name} is {toml_value(value)}".replace('"', "'")
    return ""


def no_part(config: Config, dataset: Dataset, custom: Collection[str] = ()) -> str:
    """Return why a closed form cannot be added to a trained model, or nothing; ``auto`` is replaced.

    Args:
        config: The settings of the training.
        dataset: The split data set.
        custom: Sides whose tower is the user's own.
    """
    if custom:
        return "a tower is your own"
    if dataset.views:
        return "there are several views"
    if config.towers.history == "none":
        return "no history is read"
    ids = config.features.item.get(dataset.items.id_column, "id").split("+")
    if "id" not in ids or config.towers.item_id == "off":
        return "the items are read by no id"
    if LOSSES[config.loss.kind].takes_labels:
        return f"loss.kind is {config.loss.kind!r}, whose scores are probabilities"
    return ""


def no_start(config: Config, dataset: Dataset, custom: Collection[str] = ()) -> str:
    """Return why a training cannot start from singular vectors, or nothing; the towers are decided.

    Args:
        config: The settings of the training.
        dataset: The split data set.
        custom: Sides whose tower is the user's own.
    """
    if config.training.solver == "spectral":
        return "training.solver is 'spectral'"
    return no_part(config, dataset, custom)


def is_quick_start(dataset: Dataset, width: int) -> bool:
    """Return whether the singular vectors that a training starts from take a minute at most."""
    train = dataset.part(Part.TRAIN)
    has_events = bool((train.is_read & (train.item_rows >= FIRST_ROW)).any())
    return has_events and bool(resolved(f"{_SPECTRAL}:is_quick")(train, width))


def is_quick(dataset: Dataset, width: int | None) -> bool:
    """Return whether the closed form of a width, or of any where that is None, takes minutes at most."""
    num_cases = min(MAX_VALIDATION_CASES, len(dataset.cases(Part.VALID)))
    if _VALIDATIONS * num_cases * dataset.num_items > _MOST_SCORES:
        return False
    train = dataset.part(Part.TRAIN)
    least = min(resolved(f"{_SPECTRAL}:WIDTHS")) if width is None else width
    return bool(resolved(f"{_SPECTRAL}:is_quick")(train, least))


def chosen(dataset: Dataset, width: int | None) -> "Spectral":
    """Return the closed form with the settings that validation prefers.

    Args:
        dataset: The split data set.
        width: Of the vectors; None chooses it, too.
    """
    found: Spectral = resolved(f"{_SPECTRAL}:choose_spectral")(dataset, width)
    return found


def fitted(dataset: Dataset, settings: Mapping[str, Any]) -> "Spectral":
    """Return the closed form of the training events, with settings as ``settings_of`` returns them."""
    kind = resolved(f"{_SPECTRAL}:Spectral")
    num_rows = dataset.items.ids.num_rows
    found: Spectral = kind.fit(dataset.part(Part.TRAIN), num_rows, **settings)
    return found


def settings_of(spectral: "Spectral") -> dict[str, Any]:
    """Return what ``Spectral.fit`` needs to be told."""
    return {name: getattr(spectral, name) for name in spectral.SETTINGS}


@torch.no_grad()
def fill(encoding: Encoding, spectral: "Spectral") -> None:
    """Set the weights of a model to those of the closed form.

    An event's embedding and an item's are the closed form's vectors, both scaled to a root mean square of 1
    over the trained items' lengths. All other features add nothing. A query without events gets the vector
    whose scores are nearest to the logarithm of the items' popularity, by least squares. Events with items
    too rare for an embedding of their own add a little of that vector, so that a history of such events
    alone is answered, too.

    Args:
        encoding: Of a model that ``no_closed_form`` has nothing against, at least as wide as ``spectral``.
        spectral: Fitted on the training events.

    Source: see ``Spectral``.
    """
    query_tower = cast("QueryTower", encoding.model.query_tower)
    item_tower = cast("ItemTower", encoding.model.item_tower)
    history = cast("Bag", query_tower.history)
    assert query_tower.items is not None
    for encoder in (query_tower.encoder, query_tower.events, query_tower.items, item_tower.encoder):
        for weight in () if encoder is None else encoder.parameters():
            weight.zero_()
    is_trained = spectral.spectrum.degrees > 0
    items = _scaled(spectral.item_vectors, is_trained)
    _put(item_tower.encoder, encoding, items)
    _put(query_tower.items, encoding, _scaled(spectral.history_vectors, is_trained))
    logs = np.log1p(spectral.spectrum.degrees[is_trained])
    start = np.linalg.lstsq(items[is_trained], logs - logs.mean(), rcond=None)[0]
    cast("Tensor", history.half_life).fill_(spectral.half_life or EVER)
    history.start.zero_()
    history.start[: len(start)] = torch.from_numpy(start)
    _table(query_tower.items).weight[UNKNOWN_ROW] = SHARE_OF_RARE * history.start


@torch.no_grad()
def start_ids(encoding: Encoding, dataset: Dataset) -> None:
    """Let the embeddings of items' ids start from the leading singular vectors.

    Items and events that share an embedding get the closed form's vectors of items; where a history has
    embeddings of its own, they get its vectors of events. Their lengths have a root mean square of
    ``START_LENGTH``. Items without a training event keep their random numbers, and so do the dimensions
    beyond the rank of the matrix.

    Args:
        encoding: Of a model that ``no_start`` has nothing against, as it was built.
        dataset: Its training events are read, and no others.

    Source: see ``Spectral``. Differs: its settings are those from which a choice begins, since steps
        change the vectors anyway.
    """
    item_encoder = cast("ItemTower", encoding.model.item_tower).encoder
    of_events = cast("QueryTower", encoding.model.query_tower).items
    spectral: Spectral = resolved(f"{_SPECTRAL}:unchosen")(dataset, item_encoder.dim)
    is_trained = spectral.spectrum.degrees > 0
    _put(
        item_encoder,
        encoding,
        START_LENGTH * _scaled(spectral.item_vectors, is_trained),
        is_trained,
    )
    if of_events is not None:
        events = START_LENGTH * _scaled(spectral.history_vectors, is_trained)
        _put(of_events, encoding, events, is_trained)


@torch.no_grad()
def part_of(
    encoding: Encoding, item_transforms: SideTransforms, spectral: "Spectral"
) -> SpectralPart:
    """Return what a closed form adds to the vectors of a model, on a scale of its own.

    Args:
        encoding: Of the model, without such a part.
        item_transforms: Its items' features, the id among them.
        spectral: Fitted on the training events.

    Returns:
        The part, whose vectors of items and of events have a root mean square of 1 over the trained items'
        lengths. For an item without an embedding of its own, a linear regression predicts the vector from
        the tower's; as an event it has zeros.
    """
    vectors = encoding.item_vectors().cpu()
    part = spectral_part(item_transforms, spectral.width, vectors.shape[1])
    rows = encoding.item_features[part.feature].long().cpu()
    is_known = rows >= FIRST_ROW
    is_trained = spectral.spectrum.degrees > 0
    items = torch.from_numpy(_scaled(spectral.item_vectors, is_trained))
    part.items[rows[is_known]] = items[is_known]
    events = torch.from_numpy(_scaled(spectral.history_vectors, is_trained))
    part.events[rows[is_known]] = events[is_known]
    own = is_known & torch.from_numpy(is_trained)
    if own.any():
        part.expected[:], part.items[UNKNOWN_ROW] = _regression(vectors[own], items[own])
    cast("Tensor", part.bag.half_life).fill_(spectral.half_life or EVER)
    return part.to(encoding.device)


def _regression(given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes and the constant of a linear regression, with a slight ridge.

    Args:
        given: ``(n, dim)``.
        wanted: ``(n, width)``.

    Returns:
        ``(dim, width)`` and ``(width,)`` float32.
    """
    x, y = given.double(), wanted.double()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x
    ridge = RIDGE * float(gram.diagonal().mean()) or 1.0
    slopes = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), x.T @ y)
    return slopes.float(), (mean_y - mean_x @ slopes).float()


def _scaled(vectors: Float32s, is_trained: Bools) -> Float32s:
    """Return vectors whose lengths have a root mean square of 1 over the trained items."""
    square = float((vectors[is_trained] ** 2).sum(axis=1).mean()) if is_trained.any() else 0.0
    return vectors / np.float32(np.sqrt(square) or 1.0)


def _put(
    encoder: SideEncoder, encoding: Encoding, vectors: Float32s, is_given: Bools | None = None
) -> None:
    """Write one vector an item row into the table of an encoder's id; those not given stay as they are."""
    assert encoder.id_place is not None
    rows: Tensor = encoding.item_features[encoder.names[encoder.id_place]].long()
    is_put = rows >= FIRST_ROW
    if is_given is not None:
        is_put &= torch.from_numpy(is_given).to(rows.device)
    found = torch.from_numpy(vectors).to(rows.device)[is_put]
    table = _table(encoder)
    if isinstance(table, ShardedTable):
        table.put(rows[is_put], found)
    else:
        table.weight[rows[is_put], : vectors.shape[1]] = found


def _table(encoder: SideEncoder) -> nn.Embedding | ShardedTable:
    """Return the table of an encoder's id."""
    assert encoder.id_place is not None
    return cast("CategoryEncoder", encoder.encoders[encoder.id_place]).table
