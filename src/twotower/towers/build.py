"""The model that a configuration describes."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from twotower.config import TowersConfig
from twotower.errors import ConfigError
from twotower.features.base import Transform
from twotower.features.encoders import SideEncoder, start_alike
from twotower.features.schema import Side
from twotower.features.transforms import SideTransforms
from twotower.features.tuned import sentence_encoder_of
from twotower.processes.sharded_table import numbers_kept
from twotower.towers.history import HistoryEncoder
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.towers.layers import SinceLast, SkipMLP, TanhMLP
from twotower.towers.model import CustomTower, ItemTower, QueryTower, TwoTower
from twotower.towers.popularity import PopularityPrior
from twotower.towers.question_time import QuestionTime
from twotower.towers.spectral_part import SpectralPart


def build_model(
    config: TowersConfig,
    query_transforms: SideTransforms,
    item_transforms: SideTransforms,
    *,
    event_transforms: SideTransforms | None = None,
    query_tower: nn.Module | None = None,
    item_tower: nn.Module | None = None,
    sparse: bool = False,
    pretrained: bool = False,
) -> TwoTower:
    """Return a model with fresh weights.

    Args:
        config: Concrete settings: nothing is ``auto`` any more.
        query_transforms: The query side's fitted features.
        item_transforms: The item side's.
        event_transforms: Those of the events of a history; None where none are read.
        query_tower: A module of the user's own in the query tower's place.
        item_tower: One in the item tower's place.
        sparse: Whether large embedding tables of the item side have sparse gradients. Those of the
            query side always have: no step touches all queries.
        pretrained: Whether a sentence encoder that is tuned starts from its pretrained weights; without
            it they must be loaded, as those of a bundle are.

    Raises:
        BundleError: The sentence encoder of a bundle cannot be built.
        ConfigError: A tower would read nothing at all, or the sentence encoder cannot be trained here.
        MissingExtraError: The extra ``text`` is not installed where a feature needs it.
    """

    def encoder_of(
        transforms: SideTransforms,
        hidden: Sequence[int] = (),
        *,
        use_id: bool = True,
        sparse: bool = True,
    ) -> SideEncoder:
        width = hidden[0] if config.block == "tanh" and hidden else config.width
        encoder = SideEncoder(
            transforms,
            width,
            id_dropout=config.id_dropout,
            use_id=use_id,
            sparse=sparse,
            sentences=sentences,
        )
        encoders.append((transforms, encoder))
        return encoder

    encoders: list[tuple[SideTransforms, SideEncoder]] = []
    sentences = sentence_encoder_of(
        (*query_transforms.transforms, *item_transforms.transforms), pretrained=pretrained
    )

    item_id, query_id = config.item_id == "on", config.query_id == "on"
    if item_tower is not None:
        items: nn.Module = CustomTower(item_tower, _own_features(item_transforms, "item"), "item")
    else:
        if not _is_fed(item_transforms, with_id=item_id):
            raise ConfigError(
                "the item tower must read something, got no feature and no id; "
                "state another kind than 'shown' in features.item, or set towers.item_id = 'on'."
            )
        encoder = encoder_of(item_transforms, config.item_hidden, use_id=item_id, sparse=sparse)
        items = ItemTower(encoder, _block(config, config.item_hidden), config.width)
    reads_id = item_tower is None and item_id and "id" in _meanings(item_transforms)
    if config.history_items == "ids" and not reads_id:
        raise ConfigError(
            "towers.history_items must not be 'ids' where the item tower reads no id; use 'tower' or "
            "'separate'."
        )
    if query_tower is not None:
        queries: nn.Module = CustomTower(
            query_tower, _own_features(query_transforms, "query"), "query"
        )
    else:
        is_fed = _is_fed(query_transforms, with_id=query_id)
        history = _history_encoder(config)
        if not is_fed and history is None:
            raise ConfigError(
                "the query tower must read something, got no feature, no history and no id; "
                "set towers.query_id = 'on' or towers.history = 'mean'."
            )
        events = own_items = None
        if history is not None and event_transforms is not None:
            events = encoder_of(event_transforms)
        if history is not None and config.history_items == "separate":
            own_items = encoder_of(item_transforms, use_id=item_id)
        reads_times = history is not None and HISTORY_ENCODERS[config.history].reads_times
        queries = QueryTower(
            encoder_of(query_transforms, config.query_widths, use_id=query_id) if is_fed else None,
            history,
            config.width,
            _block(config, config.query_widths),
            events=events,
            items=own_items,
            since=SinceLast(config.width, config.id_dropout) if reads_times else None,
            question_time=(
                QuestionTime(config.width, config.id_dropout)
                if config.question_time == "on"
                else None
            ),
        )
    start_alike(encoders)
    prior = _popularity(item_transforms) if config.popularity == "on" else None
    model = _two_tower(config, queries, items, sentences, prior)
    if config.spectral_dim:
        model.spectral = spectral_part(item_transforms, config.spectral_dim, config.width)
    return model


def least_weights(
    config: TowersConfig, num_items: int, num_queries: int, custom: Collection[Side] = ()
) -> tuple[int, int]:
    """Return how many numbers the embeddings of ids and the layers have, without building them.

    Other features come on top, so a model has at least these. Of tables that several processes keep, the
    share of this one counts.

    Args:
        config: Concrete settings.
        num_items: Items in the catalogue.
        num_queries: Queries.
        custom: Sides that have a module of the user's own in place of these.
    """
    tables: list[int] = []
    parts: list[nn.Module | None] = []
    with torch.device("meta"):  # shapes alone
        if "query" not in custom:
            tables.append(num_queries * (config.query_id == "on"))
            has_own = config.history != "none" and config.history_items == "separate"
            tables.append(num_items * has_own)
            parts += [_history_encoder(config), _block(config, config.query_widths)]
        if "item" not in custom:
            tables.append(num_items * (config.item_id == "on"))
            parts.append(_block(config, config.item_hidden))
    layers = sum(
        weight.numel() for part in parts if part is not None for weight in part.parameters()
    )
    return sum(numbers_kept(rows, config.width) for rows in tables), layers


def of_another_view(model: TwoTower, config: TowersConfig) -> TwoTower:
    """Return a model that shares the query tower and all features, with layers of its own for its items.

    Args:
        model: Built in, on both sides.
        config: What it was built of.

    Source: Elkahky et al., WWW 2015, section 3 (MV-DNN: one query tower, an item tower for each view).
        Differs: what is known of an item is encoded once, since every view's histories read it, too.
    """
    assert isinstance(model.item_tower, ItemTower)
    own = ItemTower(model.item_tower.encoder, _block(config, config.item_hidden), config.width)
    return _two_tower(config, model.query_tower, own, model.sentences)


def _two_tower(
    config: TowersConfig,
    queries: nn.Module,
    items: nn.Module,
    sentences: nn.Module | None,
    popularity: PopularityPrior | None = None,
) -> TwoTower:
    return TwoTower(
        queries,
        items,
        similarity=config.similarity,
        temperature=config.temperature,
        history_ids=config.history_items == "ids",
        sentences=sentences,
        popularity=popularity,
    )


def trained_together(models: Sequence[TwoTower]) -> nn.Module:
    """Return a module that holds each weight of models that share some of them once."""
    if len(models) == 1:
        return models[0]
    return nn.ModuleList([models[0], *(_Own(model) for model in models[1:])])


class _Own(nn.Module):
    """What a model has for itself that shares its query tower and its features."""

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        assert isinstance(model.item_tower, ItemTower)
        self.block = model.item_tower.block
        if isinstance(model.log_temperature, nn.Parameter):
            self.log_temperature = model.log_temperature
        else:
            self.register_buffer("log_temperature", model.log_temperature)


def _block(config: TowersConfig, hidden: Sequence[int]) -> nn.Module | None:
    if not hidden:
        return None
    if config.block == "tanh":
        return TanhMLP((*hidden, config.width), config.dropout)
    return SkipMLP(config.width, hidden, config.dropout)


def spectral_part(transforms: SideTransforms, width: int, dim: int) -> SpectralPart:
    """Return what a closed form adds to vectors of ``dim``, with zeros, over the rows of the items' ids.

    Raises:
        ConfigError: The items have no id.
    """
    ids = _ids_of(transforms)
    if ids is None:
        raise ConfigError(f"towers.spectral_dim must be 0 where the items have no id, got {width}.")
    return SpectralPart(ids.own_vocabulary().num_rows, width, dim, ids.feature.name)


def _popularity(transforms: SideTransforms) -> PopularityPrior:
    """Return a prior over the rows of the items' ids."""
    ids = _ids_of(transforms)
    if ids is None:
        raise ConfigError("towers.popularity must be 'off' where the items have no id, got 'on'.")
    return PopularityPrior(ids.own_vocabulary().num_rows, ids.feature.name)


def _ids_of(transforms: SideTransforms) -> Transform | None:
    return next((t for t in transforms.transforms if t.feature.meaning == "id"), None)


def _history_encoder(config: TowersConfig) -> HistoryEncoder | None:
    if config.history == "none":
        return None
    spec = HISTORY_ENCODERS[config.history]
    return spec.build(config.width, config.dropout, config.events_read)


def _meanings(transforms: SideTransforms) -> set[str]:
    return {transform.feature.meaning for transform in transforms.transforms}


def _is_fed(transforms: SideTransforms, *, with_id: bool) -> bool:
    return bool(_meanings(transforms) - (set() if with_id else {"id"}))


def _own_features(transforms: SideTransforms, side: str) -> list[str]:
    fed = [t.feature for t in transforms.transforms if t.feature.meaning != "id"]
    # Rows of words are for our own encoders, which know what they weigh and mean.
    names = [f.name for f in fed if f.spec.fits_own_towers or f.reason == "stated"]
    if not names:
        raise ConfigError(
            f"your own {side} tower must have features to read, got none beside the id; "
            f"give the {side} side a table with columns, or state kinds in features.{side}."
        )
    return names
