"""``twotower config``."""

from pathlib import Path
from typing import Annotated

import typer

from twotower.cli import options
from twotower.errors import ConfigError
from twotower.keywords import configured


def command(
    show: Annotated[
        bool, typer.Option("--show", help="Print every setting and its default.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="TOML file to start from.")] = None,
    recipe: options.Recipe = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting: section.field=value.")
    ] = None,
) -> None:
    """Print every setting with its meaning and value, as a TOML file that --config takes.

    Example: twotower config --show > settings.toml
    """
    if not show:
        raise ConfigError(
            "config must be given --show, got nothing to do; run `twotower config --show`."
        )
    tree = configured(config, recipe=recipe).with_settings(settings or [])
    typer.echo(tree.to_toml(comments=True))
