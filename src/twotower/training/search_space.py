"""Which settings ``tune`` searches on which data, and between what."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.errors import ArgumentError
from twotower.features.transforms import Sides
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.toml import parse_value, toml_value
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.training.choices import value_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEARCHED = (
    "training.learning_rate",
    "training.weight_decay",
    "training.batch_size",
    "towers.dim",
    "towers.query_hidden",
    "towers.dropout",
    "towers.id_dropout",
    "towers.history",
    "towers.history_length",
    "towers.similarity",
    "loss.label_smoothing",
    "loss.negatives",
    "loss.num_negatives",
)
"""Every setting that is searched on some data."""

_LEAST_HISTORY = 10


def held_back(given: Config, fixed: Collection[str] = ()) -> set[str]:
    """Return the settings of ``SEARCHED`` that the user decided, so that they are not searched.

    Args:
        given: What the user set; whatever differs from the defaults was meant.
        fixed: More of them, as ``section.field``.

    Raises:
        ValueError: A name of ``fixed`` is none that is searched.
    """
    unknown = sorted(set(fixed) - set(SEARCHED))
    if unknown:
        raise ArgumentError(f"fixed must be of {', '.join(SEARCHED)}, got {unknown[0]!r}.")
    stock = Config()
    return {name for name in SEARCHED if value_of(given, name) != value_of(stock, name)} | {*fixed}


def search_space(
    config: Config, dataset: Dataset, sides: Sides, *, without: Collection[str] = ()
) -> dict[str, "BaseDistribution"]:
    """Return the range of each setting that is searched; the default b lies in each.

    =============== ========================= ======================================================
    setting         range                     why
    =============== ========================= ======================================================
    learning_rate   b/5 to 5b, log            matters most, and its best moves with all the others
    weight_decay    b/100 to 10b, log         what keeps dense layers from learning by heart
    batch_size      b/2, b, 2b                steps an epoch against the noise of each
    dim             b/2 to 2b, steps of b/4   capacity, which costs time and memory in proportion
    query_hidden    none, b/2, b, 2b          from a linear mix to wider layers
    dropout         0 to 0.5, steps of 0.05   small data want more of it, large data none
    id_dropout      0 to 0.3, steps of 0.05   where items have features that can stand in for an id
    history         pooled, recency, mean     where events have an order and a history is read
    history_length  10 to 4b, log             the same; up to the longest history in training
    similarity      dot, cosine               for softmax without a stated temperature: cosine learns
                                              its own, and for dot the vectors' lengths are one
    label_smoothing 0 to 0.2, steps of 0.05   for softmax: what was clicked is not all that is liked
    negatives       mixed, uniform            where there are too many items for all
    num_negatives   b/4 to 4b, log            where negatives are drawn; up to the number of items
    =============== ========================= ======================================================

    Left out is what states the task and not the model (the split, the loss, the masks) and what only
    trades time (epochs, patience).

    Args:
        config: The default settings on this data, with no ``auto`` left.
        dataset: Split.
        sides: The fitted features.
        without: Settings that stay as they are in ``config``.
    """
    train = dataset.part(Part.TRAIN)
    positive = train.where(train.is_positive)
    longest = int(np.diff(positive.offsets).max())
    num_items = len(np.unique(positive.item_rows))
    has_history = dataset.ordered and config.towers.history != "none"
    loss, sampler = LOSSES[config.loss.kind], SAMPLERS[config.loss.negatives]
    applies = {
        "towers.id_dropout": any(t.feature.meaning != "id" for t in sides.item.transforms),
        "towers.query_hidden": config.towers.block != "tanh",
        "towers.history": has_history,
        "towers.history_length": has_history and longest > _LEAST_HISTORY,
        "towers.similarity": loss.ranks_all and config.towers.temperature is None,
        "loss.label_smoothing": "label_smoothing" in loss.arguments,
        "loss.negatives": loss.ranks_all and sampler.name == "mixed",
        "loss.num_negatives": sampler.draws and not sampler.needs,
    }
    most = {"towers.history_length": longest, "loss.num_negatives": num_items}
    return {
        name: _range(name, value_of(config, name), most.get(name, 0))
        for name in SEARCHED
        if name not in without and applies.get(name, True)
    }


def _range(name: str, b: Any, most: int) -> "BaseDistribution":
    """Return the range of one setting around its default."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match name:
        case "training.learning_rate":
            return FloatDistribution(b / 5, b * 5, log=True)
        case "training.weight_decay":
            return FloatDistribution(b / 100, b * 10, log=True)
        case "training.batch_size":
            return CategoricalDistribution([max(1, b // 2), b, b * 2])
        case "towers.dim":
            return IntDistribution(b // 2, b * 2, step=b // 4)
        case "towers.query_hidden":
            widths = [[], [w // 2 for w in b], list(b), [w * 2 for w in b]]
            return CategoricalDistribution([toml_value(each) for each in widths])
        case "towers.dropout":
            return FloatDistribution(0.0, 0.5, step=0.05)
        case "towers.id_dropout":
            return FloatDistribution(0.0, 0.3, step=0.05)
        case "towers.history":
            return CategoricalDistribution(HISTORY_ENCODERS.where(lambda each: each.is_tried))
        case "towers.history_length":
            return IntDistribution(_LEAST_HISTORY, max(b, min(b * 4, most)), log=True)
        case "towers.similarity":
            return CategoricalDistribution(["dot", "cosine"])
        case "loss.label_smoothing":
            return FloatDistribution(0.0, 0.2, step=0.05)
        case "loss.negatives":
            return CategoricalDistribution(SAMPLERS.where(lambda each: each.is_tried))
        case _:
            return IntDistribution(max(1, b // 4), max(b, min(b * 4, most)), log=True)


def say(name: str, distribution: "BaseDistribution") -> str:
    """Return a sentence on what is searched."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return f"{name} is one of {', '.join(map(str, distribution.choices))}"
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    steps = "evenly in its logarithm" if distribution.log else f"in steps of {distribution.step:g}"
    return f"{name} is from {distribution.low:g} to {distribution.high:g}, {steps}"


def to_param(value: Any) -> Any:
    """Return a value as a study holds it: a list as TOML."""
    return toml_value(value) if isinstance(value, tuple) else value


def from_param(param: Any) -> Any:
    """Return the value that ``to_param`` was given."""
    value = parse_value(param) if isinstance(param, str) else param
    return tuple(value) if isinstance(value, list) else param
