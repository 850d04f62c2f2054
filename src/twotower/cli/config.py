"""``twotower config``."""

from pathlib import Path

import typer

from twotower.errors import ConfigError
from twotower.keywords import configured


def command(
    *,
    show: bool = False,
    config: Path | None = None,
    recipe: str | None = None,
    settings: list[str] | None = None,
) -> None:
    """Print every setting with its meaning and value, as a TOML file that --config takes.

    Example: twotower config --show > settings.toml

    Args:
        show: Print every setting and its default.
        config: TOML file to start from.
    """
    if not show:
        raise ConfigError(
            "config must be given --show, got nothing to do; run `twotower config --show`."
        )
    tree = configured(config, recipe=recipe).with_settings(settings or [])
    typer.echo(tree.to_toml(comments=True))
