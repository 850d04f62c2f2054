"""The model of a bundle over grown vocabularies."""

from collections.abc import Iterator

import torch
from torch import Tensor

from twotower.data.dataset import Dataset
from twotower.features.encoders import SideEncoder
from twotower.features.schema import Side
from twotower.features.transforms import SideTransforms
from twotower.runtime import choose_device
from twotower.serving.bundle import Contents
from twotower.serving.loading import encoding_over
from twotower.towers.build import build_model
from twotower.towers.encoding import Encoding, evaluating
from twotower.towers.model import ItemTower, QueryTower, TwoTower
from twotower.vocab import UNKNOWN_ROW, Vocabulary


def grown_encoding(before: Contents, grown: Contents, dataset: Dataset) -> Encoding:
    """Return the model of a bundle with a row for each id of the grown vocabularies.

    A new row is that of an unknown id, so the model answers for new ids as it did before they were known.

    Args:
        before: Of the bundle as it was, with its weights.
        grown: Of the bundle with all ids.
        dataset: All its events.
    """
    device = choose_device(grown.config.training.device)
    event_transforms = None if grown.events is None else grown.events.transforms
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced below
        model = build_model(
            grown.config.towers,
            grown.queries.transforms,
            grown.items.transforms,
            event_transforms=event_transforms,
        )
    model.load_state_dict(_with_rows(before, grown, model))
    model.to(device).eval()
    encoding = encoding_over(model, grown, dataset.event_columns, device)
    predict_closed_form(encoding, before)
    return encoding


@torch.no_grad()
def predict_closed_form(encoding: Encoding, before: Contents) -> None:
    """Predict what a closed form adds to new items from the vectors of their towers, as of unknown ones.

    Args:
        encoding: Of a model that may have such a part.
        before: Of the bundle whose items are not new.
    """
    model, known = encoding.model, _ids_of(before.items.transforms)
    part, model.spectral = model.spectral, None
    if part is not None and known is not None:
        rows = encoding.item_features[part.feature].long()
        is_new = rows >= known.num_rows
        if is_new.any():
            with evaluating(model):
                vectors = model.encode_items(encoding.features_of(is_new.nonzero()[:, 0]))
            part.items[rows[is_new]] = part.items[UNKNOWN_ROW] + vectors @ part.expected
    model.spectral = part


def encoders_of_ids(model: TwoTower) -> Iterator[tuple[Side, str, SideEncoder]]:
    """Yield the encoders of a model that read an id: their side, their name in the model, themselves."""
    items, queries = model.item_tower, model.query_tower
    found: list[tuple[Side, str, SideEncoder | None]] = []
    if isinstance(items, ItemTower):
        found.append(("item", "item_tower.encoder", items.encoder))
    if isinstance(queries, QueryTower):
        found.append(("query", "query_tower.encoder", queries.encoder))
        found.append(("item", "query_tower.items", queries.items))
    for side, name, encoder in found:
        if encoder is not None and encoder.id_place is not None:
            yield side, name, encoder


def _with_rows(before: Contents, grown: Contents, model: TwoTower) -> dict[str, Tensor]:
    """Return the weights of a bundle with the rows of the grown vocabularies of ids."""
    weights = dict(before.weights)
    sides = {"query": (before.queries, grown.queries), "item": (before.items, grown.items)}
    rows = {}
    for side, (old, new) in sides.items():
        known, wanted = _ids_of(old.transforms), _ids_of(new.transforms)
        if known is not None and wanted is not None:
            rows[side] = torch.from_numpy(known.rows_of_all(wanted.ids)).long()
    tables = [
        (side, f"{name}.encoders.{encoder.id_place}.table.weight")
        for side, name, encoder in encoders_of_ids(model)
    ]
    tables += [
        ("item", name) for name in ("popularity.column", "spectral.items", "spectral.events")
    ]
    for side, name in tables:
        if name in weights:
            weights[name] = weights[name][rows[side]]
    return weights


def _ids_of(transforms: SideTransforms) -> Vocabulary | None:
    """Return the vocabulary of a side's id; None where the id is no feature."""
    return next(
        (t.own_vocabulary() for t in transforms.transforms if t.feature.meaning == "id"), None
    )
