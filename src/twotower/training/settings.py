"""Settings by their path, such as ``towers.dim``: read, replaced, and decided with a reason."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twotower.config import Config
from twotower.toml import toml_value

DECIDED_LAST = ("towers.dim", "towers.spectral_dim", "training.solver")
"""What validation decides after the training."""


def value_of(config: Config, name: str) -> Any:
    """Return the setting ``section.field``."""
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the settings with those of ``section.field`` to value replaced."""
    for name, value in values.items():
        section, _, field = name.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{field: value})})
    return config


class Choices:
    """The settings, as far as they are decided, and a sentence for each choice."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.said: list[str] = []

    def decide(self, name: str, value: Any, why: str = "") -> None:
        """Set ``section.field``, and note why unless there is nothing to say."""
        self.config = with_values(self.config, {name: value})
        if why:
            toml = toml_value(value).replace('"', "'")
            said = f"{value:g}" if isinstance(value, float) else toml
            self.said.append(f"{name} = {said}: {why}")
