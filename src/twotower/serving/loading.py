"""Loading the model of a bundle, with its weights and its catalogue."""

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import torch
from torch import nn

from twotower.errors import ArgumentError, BundleError, MissingExtraError
from twotower.features.tuned import TokenIdsTransform
from twotower.serving.bundle import NOT_AS_WRITTEN, Contents
from twotower.towers.build import build_model
from twotower.towers.encoding import Encoding, to_tensors
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.towers.model import TwoTower
from twotower.vocab import FIRST_ROW


def encoding_of(
    contents: Contents, towers: Mapping[str, nn.Module | None], device: torch.device, path: Path
) -> Encoding:
    """Return the model of a bundle with its catalogue; see ``Retriever`` for the errors.

    Args:
        contents: What the bundle holds.
        towers: Side -> the user's own tower of that side, or None.
        device: Of the model.
        path: Where the bundle came from, for messages.
    """
    for side, module in towers.items():
        needed = side in contents.custom
        if needed and module is None:
            raise BundleError(
                f"the bundle {str(path)!r} was trained with a {side} tower of your own, and "
                f"bundles hold no code; pass it: Retriever.open(path, {side}_tower=...)."
            )
        if not needed and module is not None:
            raise BundleError(
                f"{side}_tower must not be given: the bundle {str(path)!r} has a built-in one."
            )
    try:
        _check_sizes(contents)
        with torch.random.fork_rng(devices=[]):  # the random weights are replaced below
            model = build_model(
                contents.config.towers,
                contents.queries.transforms,
                contents.items.transforms,
                event_transforms=None if contents.events is None else contents.events.transforms,
                query_tower=towers["query"],
                item_tower=towers["item"],
            )
    except (BundleError, MissingExtraError):
        raise
    except NOT_AS_WRITTEN as error:
        if contents.custom:  # the error may come from the given modules
            raise
        raise BundleError(
            f"the settings of the bundle {str(path)!r} must be those of its weights: {error}"
        ) from error
    try:
        model.load_state_dict(dict(contents.weights))
    except RuntimeError as error:
        problem = str(error).strip().splitlines()[-1].strip()
        raise BundleError(
            f"the towers must be those that the bundle {str(path)!r} was trained with: {problem}"
        ) from error
    model.to(device).eval()
    return encoding_over(
        model, contents, None if contents.events is None else contents.events.frame, device
    )


def encoding_over(
    model: TwoTower, contents: Contents, events: pl.DataFrame | None, device: torch.device
) -> Encoding:
    """Return a model with the features of its items and of the events of histories.

    Args:
        model: On the device.
        contents: With the items and all fitted transforms.
        events: What the model reads of events, a line for each; unused where it reads nothing of them.
        device: Of the features.
    """
    items, event_features = contents.items, None
    if contents.events is not None and events is not None:
        event_features = to_tensors(contents.events.transforms.apply_to_rows(events), device)
    return Encoding(
        model,
        to_tensors(items.transforms.apply_to_rows(items.frame), device),
        contents.queries.transforms,
        contents.config.towers.events_read,
        device,
        event_features,
    )


def _check_sizes(contents: Contents) -> None:
    """Refuse settings of a model that is larger than its weights, before memory is allocated for it.

    Raises:
        ValueError: The model would be larger, or the item vectors have another width.
    """
    towers, width = contents.config.towers, contents.item_vectors.shape[1]
    held = {size for tensor in contents.weights.values() for size in tensor.shape}
    wanted: dict[str, tuple[int, ...]] = {}
    if not contents.custom:
        if towers.compared_width != width:
            more = f" and towers.spectral_dim {towers.spectral_dim}" if towers.spectral_dim else ""
            raise ArgumentError(
                f"towers.dim is {towers.width}{more}, and the item vectors have {width} numbers"
            )
        wanted["dim"] = (towers.width,)
        wanted["spectral_dim"] = (towers.spectral_dim,) if towers.spectral_dim else ()
    if "query" not in contents.custom:
        wanted["query_hidden"] = towers.query_widths
        if towers.history in HISTORY_ENCODERS and HISTORY_ENCODERS[towers.history].has_places:
            wanted["history_length"] = (towers.events_read,)
    if "item" not in contents.custom:
        wanted["item_hidden"] = towers.item_hidden
    for name, sizes in wanted.items():
        for size in sizes:
            if size not in held:
                raise ArgumentError(f"towers.{name} is {size}, which no weights have")
    most = max(len(contents.weights), *held, 0)
    sides = (contents.queries.transforms, contents.items.transforms)
    for transform in (t for side in sides for t in side.transforms):
        if isinstance(transform, TokenIdsTransform):
            settings = json.loads(transform.architecture.transformer)
            for name, value in settings.items():
                is_size = name.endswith(("_size", "_dim")) or name.startswith("num_")
                if is_size and isinstance(value, int) and value > most:
                    raise ArgumentError(f"{name} in transformer.json is {value}, above {most}")


def with_reserved_rows(item_vectors: torch.Tensor) -> torch.Tensor:
    """Return the vectors of all item rows: ``(num_item_rows, dim)``, zero in the reserved rows.

    If the reserved rows precede the vectors in memory, as in a memory-mapped bundle, nothing is copied, and
    all processes that serve the bundle share its pages.

    Args:
        item_vectors: ``(I, dim)``, without the reserved rows.
    """
    num_items, dim = item_vectors.shape
    start = item_vectors.storage_offset() - FIRST_ROW * dim
    if item_vectors.is_contiguous() and start >= 0:
        rows = item_vectors.as_strided((FIRST_ROW + num_items, dim), (dim, 1), start)
        if not rows[:FIRST_ROW].any():
            return rows
    return torch.cat([item_vectors.new_zeros(FIRST_ROW, dim), item_vectors])
