"""Keywords that stand for one setting each: options of the command line, and parameters in Python.

``Keywords`` is the only list of them. ``train``, ``train_views``, ``tune`` and the doctor take them as they
are, ``cli.options`` makes the options from it, and ``configured`` writes them into the settings.
"""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, Unpack

from twotower.caller import argument
from twotower.config import Config
from twotower.errors import ConfigError
from twotower.recipes import RECIPES
from twotower.recipes import recipe as recipe_of

if TYPE_CHECKING:
    from twotower.data.tables import Table

Given = Config | Mapping[str, object] | str | Path | None
"""Settings as ``Config.of`` takes them."""

Called = TypeVar("Called", bound=Callable[..., Any])


class Keywords(TypedDict, total=False):
    """Each keyword with its meaning. None leaves the setting as ``config`` has it."""

    recipe: Annotated[str | None, f"Settings for a task, by name: {' or '.join(RECIPES)}."]
    split: Annotated[str | None, "leave-last-out, random, temporal, cold-items or cold-queries."]
    query_column: Annotated[str | None, "Column of the query ids."]
    item_column: Annotated[str | None, "Column of the item ids."]
    time_column: Annotated[str | None, "Column of the times."]
    label_column: Annotated[str | None, "Column of labels or ratings."]
    weight_column: Annotated[str | None, "Column of counts."]
    position_column: Annotated[
        str | None, "Column of the positions at which items were shown, from 1."
    ]
    impressions_column: Annotated[str | None, "Column of the items shown beside the taken one."]
    event_column: Annotated[str | None, "Column of kinds of event, such as view and purchase."]
    target_events: Annotated[
        str | Sequence[str] | None,
        "Kinds that the model predicts, KIND,KIND; the others are only read.",
    ]
    drop_null_ids: Annotated[bool, "Leave out rows without an id."]
    recall: Annotated[
        float | None, "Recall that an approximate index must reach (index.recall, 0.99)."
    ]
    rerank: Annotated[
        str | None, "A second stage behind the model: auto keeps it where it helps, on, off."
    ]


_SETTINGS = {"recipe": "", "split": "split.kind", "recall": "index.recall", "rerank": "rerank.use"}
"""The setting of a keyword that does not set the field of its name in ``data``; ``recipe`` sets many."""
PARTS = ("train", "valid", "valid_sessions", "test", "test_sessions")
"""Parameters for the tables of a given split."""


@cache
def hints_of_keywords() -> dict[str, Any]:
    """Return the annotation of each keyword: its type, and its meaning in one line."""
    return typing.get_type_hints(Keywords, include_extras=True)


def settings_of_keywords() -> dict[str, str]:
    """Return the setting of each keyword, such as ``data.query_column``; none of ``recipe``."""
    return {name: _SETTINGS.get(name, f"data.{name}") for name in hints_of_keywords()}


def configured(config: Given = None, **keywords: Unpack[Keywords]) -> Config:
    """Return the settings that ``config`` and keywords state; a keyword wins.

    Args:
        config: As ``Config.of`` takes it. A dictionary changes the settings of a recipe that is named.
        **keywords: See ``Keywords``.

    Raises:
        ConfigError: A setting is unknown or out of range; or a recipe is combined with complete settings.
        TypeError: A keyword is unknown.
    """
    paths = settings_of_keywords()
    unknown = next((name for name in keywords if name not in paths), None)
    if unknown is not None:
        raise TypeError(f"got an unexpected keyword argument {unknown!r}")
    name = keywords.get("recipe")
    if name is None:
        table = Config.of(config).to_dict()
    elif isinstance(config, Config | str | Path):
        said = "a Config" if isinstance(config, Config) else str(config)
        raise ConfigError(
            f"{argument('recipe')} cannot be combined with {argument('config')}, got {name} and {said}; "
            "leave one of them out, or change the recipe's settings one by one."
        )
    else:
        table = _merged(recipe_of(name).to_dict(), config or {})
    for keyword, path in paths.items():
        value: Any = keywords.get(keyword)
        if path and value is not None and value is not False:
            if keyword == "target_events" and isinstance(value, str):
                value = [kind.strip() for kind in value.split(",") if kind.strip()]
            section, field = path.split(".")
            table[section][field] = value
    return Config.from_dict(table)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with the values of ``changes`` in their places."""
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def events_of(
    needs: str,
    interactions: "Table | Mapping[str, Table] | None",
    parts: "Mapping[str, Table | None]",
    *,
    split: str | None = None,
) -> "Table | Mapping[str, Table]":
    """Return the table of events, or those of the given parts.

    Args:
        needs: What asks, as a message begins: ``train needs either``.
        interactions: One table; or a mapping of parts, which is taken as it is.
        parts: The table of each of ``PARTS``, or None.
        split: The split that was asked for.

    Raises:
        ConfigError: Neither or both are given, a part is missing, or a split beside given parts.
    """
    given = {part: table for part, table in parts.items() if table is not None}
    train, test, sessions = (argument(part) for part in ("train", "test", "test_sessions"))
    if (interactions is None) == (not given):
        raise ConfigError(f"{needs} {argument('interactions')}, or {train} and {test}.")
    if isinstance(interactions, Mapping):
        given = dict(interactions)
    elif interactions is not None:
        return interactions
    else:
        if "train" not in given or not {"test", "test_sessions"} & set(given):
            raise ConfigError(
                f"{train} and one of {test} and {sessions} must be given, got "
                f"{' and '.join(map(argument, given))} only."
            )
        for part in ("valid", "test"):
            if {part, f"{part}_sessions"} <= set(given):
                raise ConfigError(
                    f"{argument(part)} and {argument(f'{part}_sessions')} must not both be given; "
                    "leave one out."
                )
    if split is not None:
        raise ConfigError(
            f"{argument('split')} must not go with given files, got {split!r}; leave it out."
        )
    return given


def takes_keywords(function: Called) -> Called:
    """Show each of ``Keywords`` in the signature of a function that takes them as ``**keywords``."""
    hints = hints_of_keywords()
    return shows([parameter_of(name, hint.__origin__) for name, hint in hints.items()])(function)


def shows(shown: Sequence[inspect.Parameter], after: str = "") -> Callable[[Called], Called]:
    """Show parameters in the signature of a function in place of the keywords that it takes.

    Args:
        shown: The parameters.
        after: The function's own parameter that they stand behind; by default the last.
    """

    def decorate(function: Called) -> Called:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        place = [p.name for p in own].index(after) + 1 if after else len(own)
        parameters = [*own[:place], *shown, *own[place:]]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return decorate


def parameter_of(name: str, annotation: Any) -> inspect.Parameter:
    """Return a keyword as a parameter with its default: False for a switch, else None."""
    default = False if annotation is bool else None
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)
