"""The options that name tables, their columns and settings, shared by the commands that read data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from twotower.config import Config
from twotower.errors import ConfigError
from twotower.recipes import recipe as recipe_of

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
Split = Annotated[
    str | None, typer.Option(help="leave-last-out, random, temporal, cold-items or cold-queries.")
]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file of settings.")]
Recipe = Annotated[str | None, typer.Option(help="Settings for a task: dssm or search.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="One setting: section.field=value.")
]
QueryColumn = Annotated[str | None, typer.Option(help="Column of the query ids.")]
ItemColumn = Annotated[str | None, typer.Option(help="Column of the item ids.")]
TimeColumn = Annotated[str | None, typer.Option(help="Column of the times.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of labels or ratings.")]
WeightColumn = Annotated[str | None, typer.Option(help="Column of counts.")]
PositionColumn = Annotated[
    str | None, typer.Option(help="Column of the positions at which items were shown, from 1.")
]
ImpressionsColumn = Annotated[
    str | None, typer.Option(help="Column of the items shown beside the taken one.")
]
EventColumn = Annotated[
    str | None, typer.Option(help="Column of kinds of event, such as view and purchase.")
]
TargetEvents = Annotated[
    str | None, typer.Option(help="Kinds that are asked for, KIND,KIND; others are only read.")
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
DropNullIds = Annotated[bool, typer.Option("--drop-null-ids", help="Leave out rows without an id.")]


def events_of(
    interactions: Path | None, parts: Mapping[str, Path | None], split: str | None, *, needs: str
) -> Path | dict[str, Path]:
    """Return the table of events, or those of the given parts.

    Args:
        interactions: One table.
        parts: ``train``, ``valid``, ``valid_sessions``, ``test``, ``test_sessions`` to a table, or None.
        split: The split that was asked for.
        needs: What is said where neither or both are given.

    Raises:
        ConfigError: Neither or both are given, a part is missing, or a split beside given parts.
    """
    files = {part: path for part, path in parts.items() if path is not None}
    if (interactions is None) == (not files):
        raise ConfigError(needs)
    if interactions is not None:
        return interactions
    flags = [f"--{part.replace('_', '-')}" for part in files]
    if "train" not in files or not {"test", "test_sessions"} & set(files):
        raise ConfigError(
            "--train and one of --test and --test-sessions must be given, got "
            f"{' and '.join(flags)} only."
        )
    for part in ("valid", "test"):
        if {part, f"{part}_sessions"} <= set(files):
            raise ConfigError(
                f"--{part} and --{part}-sessions must not both be given; leave one out."
            )
    if split is not None:
        raise ConfigError(f"--split must not go with given files, got {split!r}; leave it out.")
    return files


def start_of(file: Path | None, recipe: str | None) -> Config:
    """Return the settings of a file or of a recipe; the defaults where neither is given.

    Raises:
        ConfigError: Both are given, or one cannot be read.
    """
    if file is not None and recipe is not None:
        raise ConfigError(
            f"--recipe must not stand beside --config, got {recipe} and {file}; write the recipe's "
            f"settings with `twotower config --show --recipe {recipe}`, and change those."
        )
    if recipe is not None:
        return recipe_of(recipe)
    return Config() if file is None else Config.from_toml(file)


def config_of(
    file: Path | None,
    settings: Sequence[str] | None,
    *,
    recipe: str | None = None,
    columns: Mapping[str, str | None],
    target_events: str | None = None,
    drop_null_ids: bool,
    split: str | None,
    recall: float | None = None,
) -> Config:
    """Return the settings of a file, changed by ``--set`` and then by the options of their own.

    Args:
        file: TOML, or None for the defaults.
        settings: As ``Config.with_settings`` takes them.
        recipe: Name of a published model's settings, in place of a file.
        columns: Field of ``[data]`` to a column, or None.
        target_events: Kinds of event between commas.
        drop_null_ids: Whether that was asked for.
        split: The split that was asked for.
        recall: What an approximate index must reach.

    Raises:
        ConfigError: A setting is wrong, or both a file and a recipe are given.
    """
    tree = start_of(file, recipe)
    flags: dict[str, dict[str, object]] = tree.with_settings(settings or []).to_dict()
    flags["data"] |= {name: column for name, column in columns.items() if column is not None}
    if target_events is not None:
        kinds = [kind.strip() for kind in target_events.split(",")]
        flags["data"]["target_events"] = [kind for kind in kinds if kind]
    if drop_null_ids:
        flags["data"]["drop_null_ids"] = True
    if split is not None:
        flags["split"]["kind"] = split
    if recall is not None:
        flags["index"]["recall"] = recall
    return Config.from_dict(flags)


def baselines_of(text: str) -> Literal["auto"] | list[str]:
    """Return the baselines that ``auto``, ``none`` or a list means."""
    if text == "auto":
        return "auto"
    if text == "none":
        return []
    return [name.strip() for name in text.split(",")]
