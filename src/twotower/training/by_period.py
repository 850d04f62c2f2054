"""What a test of a later period asks for: all that follows a moment, of known queries and of new ones."""

import numpy as np

from twotower.arrays import Floats
from twotower.baselines.popularity import RecentPopularity
from twotower.baselines.validation import Validation
from twotower.config import Config
from twotower.data.dataset import Dataset, Interactions, Part
from twotower.errors import ConfigError
from twotower.losses.samplers import SAMPLERS
from twotower.training.settings import Choices

DAY = 86_400.0
SHARES = (1000.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
"""Half-lives that are tried, as shares of the time from the first training event to the last; by the first
nothing fades."""


def choose_for_period(
    choices: Choices, dataset: Dataset, train: Interactions, custom: tuple[str, ...]
) -> None:
    """Decide the task of training and the prior by popularity; towers and loss are decided.

    Args:
        choices: The settings.
        dataset: The split data set.
        train: Its positive training events.
        custom: Sides whose tower is the user's own.

    Raises:
        ConfigError: A prior by popularity is wanted where there can be none.
    """
    config = choices.config
    if dataset.by_period and config.split.kind != "temporal":
        choices.decide("split.kind", "temporal")  # a bundle is evaluated as it was trained
    if config.training.next_events is None:
        num, why = 1, ""
        if dataset.by_period and dataset.ordered and config.towers.history != "none":
            num = max(1, int(np.diff(train.offsets).max(initial=1)))
            why = "the test asks for all that follows"
        choices.decide("training.next_events", num, why)
    _choose_gap(choices, dataset)
    hindrance = _hindrance(config, dataset, custom)
    towers = config.towers
    if towers.popularity == "on" and hindrance:
        raise ConfigError(f"towers.popularity must be 'off' or 'auto' where {hindrance}, got 'on'.")
    if towers.popularity == "auto":
        is_on = dataset.by_period and not hindrance
        why = "the test asks new queries, too, at a later time" if is_on else ""
        choices.decide("towers.popularity", "on" if is_on else "off", why)
    if choices.config.towers.popularity == "off":
        if towers.popularity_days is not None:
            raise ConfigError(
                "towers.popularity_days must stand beside towers.popularity = 'on', got "
                f"{towers.popularity_days:g} alone."
            )
        return
    if towers.similarity == "auto":
        choices.decide("towers.similarity", "dot", "the items' popularity is a part of the score")
    if towers.popularity_days is None:
        choices.decide("towers.popularity_days", *_half_life(dataset, train))


def _choose_gap(choices: Choices, dataset: Dataset) -> None:
    """Decide how long before its target a question is asked.

    Raises:
        ConfigError: It is stated where histories end right before their targets.
    """
    training, towers, hindrance = choices.config.training, choices.config.towers, ""
    if towers.history == "none" or not dataset.ordered:
        hindrance = "no history is read in order"
    elif dataset.interactions.times is None:
        hindrance = "the events have no times"
    elif choices.config.data.order == "file":
        hindrance = "data.order is 'file'"
    elif training.examples == "prefixes":
        hindrance = "training.examples is 'prefixes'"
    if training.gap_days is None:
        asked = dataset.part(Part.VALID).times
        if not dataset.by_period or hindrance or asked is None or not _follows(asked, dataset):
            choices.decide("training.gap_days", 0.0)
            return
        span = float(np.nanmax(asked) - np.nanmin(asked)) / DAY
        choices.decide("training.gap_days", float(f"{span:.4g}"), "the days that validation spans")
    elif training.gap_days and hindrance:
        raise ConfigError(
            f"training.gap_days must be 0 where {hindrance}, got {training.gap_days:g}."
        )


def _follows(asked: Floats, dataset: Dataset) -> bool:
    """Return whether the times of validation follow training, as where they are a period of their own."""
    learnt = dataset.part(Part.TRAIN).times
    assert learnt is not None
    if not len(asked) or not len(learnt):
        return False
    return bool(np.quantile(asked, 0.01) >= np.quantile(learnt, 0.99))


def _hindrance(config: Config, dataset: Dataset, custom: tuple[str, ...]) -> str:
    """Return why there can be no prior by popularity, or nothing."""
    if custom:
        return "a tower is your own"
    if dataset.views:
        return "there are several views"
    times = dataset.part(Part.TRAIN).times
    if times is None:
        return "the events have no times"
    if len(times) and np.nanmin(times) == np.nanmax(times):
        return "all training events have one time"
    if config.training.examples == "sets":
        return "training.examples is 'sets'"
    if config.training.solver == "spectral":
        return "training.solver is 'spectral'"
    if config.towers.temperature is not None:
        return "towers.temperature is stated"
    if config.towers.item_id == "off":
        return "towers.item_id is 'off'"
    if config.towers.similarity == "cosine":
        return "towers.similarity is 'cosine'"
    if config.towers.width < 2:
        return "towers.dim is 1"
    if SAMPLERS[config.loss.negatives].has_stored:
        return "loss.negatives are remembered vectors"
    return ""


def _half_life(dataset: Dataset, train: Interactions) -> tuple[float, str]:
    """Return the days after which an event counts half, and the validation figure that chose them."""
    assert train.times is not None
    known = train.times[np.isfinite(train.times)]
    span = float(known.max() - known.min()) / DAY or 1.0
    validation = Validation.of(dataset)
    if not len(validation.cases):
        return span * SHARES[0], ""
    num_rows = dataset.items.ids.num_rows
    every = [RecentPopularity.fit(train, num_rows, half_life=s * span * DAY) for s in SHARES]
    found = [validation.quality(each) for each in every]
    best = int(np.argmax(found))
    why = f"popularity alone has validation ndcg@10 {found[best]:.4f}, {found[0]:.4f} if nothing fades"
    return float(f"{SHARES[best] * span:.4g}"), why if best else ""
