"""The options that name tables, their columns and settings, shared by the commands that read data."""

import inspect
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from twotower.caller import flag
from twotower.keywords import help_of, parameter_of, settings_of_keywords, types_of_keywords

Command = TypeVar("Command", bound=Callable[..., Any])

Bundle = Annotated[Path, typer.Argument(help="Folder of the bundle.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Query = Annotated[str | None, typer.Option(help="Id of a query.")]
History = Annotated[str | None, typer.Option(help="Item ids, oldest first: ID,ID,...")]
QueryFeatures = Annotated[str | None, typer.Option(help="Query features as a JSON object.")]
Filter = Annotated[
    str | None,
    typer.Option("--filter", help="Only items that match: 'genre = \"drama\" and year >= 2000'."),
]
Interactions = Annotated[Path | None, typer.Option(help="Table of events.")]
Items = Annotated[Path | None, typer.Option(help="Table of the items' columns.")]
Queries = Annotated[Path | None, typer.Option(help="Table of the queries' columns.")]
TrainPart = Annotated[Path | None, typer.Option(help="Given split: training events.")]
ValidPart = Annotated[Path | None, typer.Option(help="Given split: validation events.")]
TestPart = Annotated[Path | None, typer.Option(help="Given split: test events.")]
ValidSessions = Annotated[
    Path | None, typer.Option(help="New sessions; the last event of each is for validation.")
]
TestSessions = Annotated[
    Path | None, typer.Option(help="New sessions; the last event of each is for the test.")
]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file of settings.")]
Recipe = Annotated[str | None, typer.Option(help=help_of("recipe"))]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="One setting: section.field=value.")
]
NoHistories = Annotated[
    bool, typer.Option("--no-histories", help="Keep the queries' histories out of the bundle.")
]
Language = Literal["en", "zh"]
Lang = Annotated[Language, typer.Option(help="Language of the report: English or Chinese.")]
Private = Annotated[
    bool,
    typer.Option(
        "--private",
        help="Keep all that is of any one query out of the bundle: ids, histories, unread columns, "
        "rare values. The report numbers its examples.",
    ),
]
Baselines = Annotated[
    str,
    typer.Option(help="auto, none, or names with commas between: popularity,item_knn,ease."),
]


def with_keywords(*, leave_out: Collection[str] = ()) -> Callable[[Command], Command]:
    """Give a command that takes ``**keywords`` an option for each of ``Keywords``.

    Args:
        leave_out: Those that say nothing to this command.
    """
    shown = [_option(name) for name in settings_of_keywords() if name not in leave_out]
    return with_options(shown, after="config")


def with_options(shown: Sequence[inspect.Parameter], *, after: str) -> Callable[[Command], Command]:
    """Give a command that takes any keywords options for some of them.

    Args:
        shown: The options, as parameters.
        after: The command's own parameter that they stand behind.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
        place = [p.name for p in own].index(after) + 1
        parameters = [*own[:place], *shown, *own[place:]]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _option(name: str) -> inspect.Parameter:
    hint = types_of_keywords()[name]
    names = [flag(name)] if hint is bool else []  # without --no-...
    typed = hint if hint in (bool, float | None) else str | None
    option = typer.Option(*names, help=help_of(name))
    return parameter_of(name, typed).replace(annotation=Annotated[typed, option])


def baselines_of(text: str) -> Literal["auto"] | list[str]:
    """Return the baselines that ``auto``, ``none`` or a list means."""
    if text == "auto":
        return "auto"
    if text == "none":
        return []
    return [name.strip() for name in text.split(",")]
