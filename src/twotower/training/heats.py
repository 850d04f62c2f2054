"""What a race decides: the settings that are open, their values, and for how long both are trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from twotower.arrays import distinct
from twotower.config import QUERY_WIDTHS, WIDTH, Config
from twotower.data.dataset import Dataset, Part
from twotower.towers.model import QueryTower
from twotower.training.choices_of_examples import no_prefixes
from twotower.training.settings import value_of
from twotower.training.trainer import Trainer

RACE_FROM = 100
"""Validation cases from which there is a race. Fewer cannot tell two settings apart."""
LONGEST_RACED = 200
"""Events of a history up to which the transformer is tried: its cost grows with their square."""
IDS_FROM = 20
"""Training events per query from which an id may know more than the events that the history reads."""
IDS_UP_TO = 300_000
"""Training events up to which ids of queries are tried."""


def _tries_transformer(chosen: Config, dataset: Dataset) -> bool:
    # On single events, and on long histories, its epochs take many times as long.
    is_quick = chosen.towers.events_read <= LONGEST_RACED and not no_prefixes(chosen, dataset)
    return is_quick and chosen.towers.history in ("pooled", "transformer")


def _reads_time(chosen: Config, dataset: Dataset) -> bool:  # noqa: ARG001
    return chosen.towers.question_time == "on"


def _tries_linear(chosen: Config, dataset: Dataset) -> bool:
    return bool(dataset.views) and chosen.towers.query_hidden == QUERY_WIDTHS


def _tries_wide(chosen: Config, dataset: Dataset) -> bool:
    return bool(dataset.views) and chosen.towers.history != "none" and not dataset.ordered


def _tries_ids(chosen: Config, dataset: Dataset) -> bool:
    if not dataset.ordered or chosen.towers.history == "none":
        return False
    if (dataset.parts == Part.CONTEXT).any():  # the held-out queries are new
        return False
    train = dataset.part(Part.TRAIN)
    num_events = int(train.is_positive.sum())
    num_queries = len(distinct(train.query_rows))
    return IDS_FROM * num_queries <= num_events <= IDS_UP_TO


@dataclass(frozen=True)
class Heat:
    """One setting that validation decides.

    Args:
        name: Such as ``towers.history``.
        values: That are compared.
        unset: What the user's settings hold where they leave it open.
        epochs: That both train before the better one is chosen.
        is_open: Whether there is anything to compare, by the settings chosen so far and the data.
        without: Returns the validation metric of a trained model that does not use what the setting turned
            on. Only if that is no worse, the other value is trained at all. None always trains it.
    """

    name: str
    values: tuple[Any, ...]
    unset: Any
    epochs: int
    is_open: Callable[[Config, Dataset], bool]
    without: Callable[[Trainer], float] | None = None


def _at_an_unknown_time(trainer: Trainer) -> float:
    """Return the validation metric if the times of the questions were not known."""
    towers = [cast("QueryTower", each.model.query_tower) for each in trainer.objectives]
    modules = [tower.question_time for tower in towers]
    try:
        for tower in towers:
            tower.question_time = None
        return trainer.validate()
    finally:
        for tower, module in zip(towers, modules, strict=True):
            tower.question_time = module


HEATS = (
    Heat("towers.query_hidden", (QUERY_WIDTHS, ()), None, 2, _tries_linear),
    Heat("towers.dim", (WIDTH, 2 * WIDTH), None, 2, _tries_wide),
    Heat("towers.query_id", ("off", "on"), "auto", 2, _tries_ids),
    Heat("towers.question_time", ("on", "off"), "auto", 4, _reads_time, _at_an_unknown_time),
    Heat("towers.history", ("pooled", "transformer"), "auto", 4, _tries_transformer),
)
"""In this order: each is between the best settings so far and those with another value. Short heats come
first, so that no loser has trained for longer than its heat. Together they cost about as much as the
winner."""


def open_heats(given: Config, chosen: Config, dataset: Dataset) -> tuple[Heat, ...]:
    """Return what validation is to decide.

    Args:
        given: What the user set; what was set is not open.
        chosen: The settings with every ``auto`` replaced.
        dataset: The split data set.
    """
    if len(dataset.cases(Part.VALID)) < RACE_FROM or given.training.solver == "spectral":
        return ()
    return tuple(
        heat
        for heat in HEATS
        if value_of(given, heat.name) == heat.unset and heat.is_open(chosen, dataset)
    )


def told_with(choices: Sequence[str], heats: Sequence[Heat]) -> tuple[str, ...]:
    """Return the sentences of the choices; one sentence names all settings that validation decides."""
    if not heats:
        return tuple(choices)
    raced = tuple(f"{heat.name} = " for heat in heats)
    others = tuple(said for said in choices if not said.startswith(raced))
    names, most = ", ".join(heat.name for heat in heats), max(heat.epochs for heat in heats)
    return (*others, f"{names}: validation decides, after up to {most} epochs of each")
