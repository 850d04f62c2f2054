"""The options of commands: made from signatures and docstrings, and those that several commands share."""

import inspect
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin

import typer

from twotower import keywords
from twotower.caller import flag
from twotower.config import Config

Command = TypeVar("Command", bound=Callable[..., Any])
Language = Literal["en", "zh"]

_HELP = {
    "bundle": "Folder of the bundle.",
    "json": "Print JSON.",
    "lang": "Language of the report: English or Chinese.",
    "query": "Id of a query.",
    "history": "Item ids, oldest first: ID,ID,...",
    "at": "When it is asked: seconds since 1970, or 2026-11-30T18:00 (UTC); now where not given.",
    "features": "Query features as a JSON object.",
    "filter": "Only items that match: 'genre = \"drama\" and year >= 2000'.",
    "shard": "One of equal shares: 3/16 is the third of sixteen.",
    "baselines": "auto, none, or names with commas between: popularity,item_knn,ease.",
    "interactions": "Table of events: a file, a folder, or a pattern in quotes.",
    "items": "Table of the items' columns.",
    "queries": "Table of the queries' columns.",
    "train": "Given split: training events.",
    "valid": "Given split: validation events.",
    "valid_sessions": "New sessions; the last event of each is for validation.",
    "test": "Given split: test events.",
    "test_sessions": "New sessions; the last event of each is for the test.",
    "config": "TOML file of settings.",
    "settings": "One setting: section.field=value.",
    "no_histories": "Keep the queries' histories out of the bundle.",
    "private": "Keep all data of single queries out of the bundle: ids, histories, unread columns, "
    "rare values. The report numbers its examples.",
    **{name: hint.__metadata__[0] for name, hint in keywords.hints_of_keywords().items()},
}
"""The help of options that several commands have."""
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
"""A parameter with its meaning, in the last section of a docstring."""


def with_options(command: Command) -> Command:
    """Make an option of each keyword of a command, and an argument of each positional parameter.

    Messages call the option by the same name. Its help comes from the ``Args`` section of the docstring, or
    from the table of shared options. The command's own help is the text above ``Args``. A switch has no
    opposite. A parameter that is annotated for typer stays as it is.
    """
    signature = inspect.signature(command)
    command.__doc__, _, listed = (inspect.getdoc(command) or "").partition("\n\nArgs:\n")
    own_help = {name: " ".join(said.split()) for name, said in _ARGUMENT.findall(listed)}
    parameters = list(signature.parameters.values())
    for place, own in enumerate(parameters):
        if get_origin(own.annotation) is not Annotated:
            name = own.name.rstrip("_")  # filter_ is no builtin
            said = own_help.get(own.name) or _HELP.get(name, "")  # python -OO keeps no docstrings
            option = typer.Option(flag(name), help=said)
            made = option if own.kind is own.KEYWORD_ONLY else typer.Argument(help=said)
            parameters[place] = own.replace(annotation=Annotated[own.annotation, made])
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def reads_tables(*, after: str, leave_out: Collection[str] = ()) -> Callable[[Command], Command]:
    """Give a command that takes any keywords those that name tables, their columns and settings.

    Args:
        after: The command's own parameter that they stand behind.
        leave_out: Those that say nothing to this command.
    """
    files = ("interactions", "items", "queries", *keywords.PARTS, "config")
    types: dict[str, Any] = dict.fromkeys(files, Path | None)
    for name, hint in keywords.hints_of_keywords().items():
        is_text = hint.__origin__ not in (bool, float | None)
        types[name] = str | None if is_text else hint.__origin__
    types |= {"settings": list[str] | None, "no_histories": bool, "private": bool}
    shown = [keywords.parameter_of(*each) for each in types.items() if each[0] not in leave_out]
    return keywords.shows(shown, after)


def take_settings(given: dict[str, Any]) -> Config:
    """Pop the options of ``reads_tables`` that make up the settings; keywords stay in ``given``.

    Raises:
        ConfigError: A setting is wrong, or a recipe is combined with a file.
    """
    tree = keywords.configured(given.pop("config"), recipe=given.pop("recipe", None))
    return tree.with_settings(given.pop("settings") or [])


def take_events(given: dict[str, Any], needs: str) -> Any:
    """Pop the table of events, or those of a given split, from the options of ``reads_tables``.

    Args:
        given: The options; they are changed.
        needs: As ``events_of`` takes it.

    Raises:
        ConfigError: As ``events_of``.
    """
    parts = {name: given.pop(name) for name in keywords.PARTS}
    return keywords.events_of(needs, given.pop("interactions"), parts, split=given.get("split"))


def baselines_of(text: str) -> Literal["auto"] | list[str]:
    """Return the baselines that ``auto``, ``none`` or a list means."""
    if text == "auto":
        return "auto"
    if text == "none":
        return []
    return [name.strip() for name in text.split(",")]
