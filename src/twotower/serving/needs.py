"""What a bundle needs that is not of this library: entries that others have registered.

Whatever a bundle says, opening it imports nothing: what installed packages register is loaded before its
first byte is read, and a name that nobody has registered is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from twotower.config import Config
from twotower.dataclass_trees import one_of_names
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.features.schema import Feature
from twotower.registry import Registry


def load_installed() -> None:
    """Let all installed packages register their entries."""
    for registry in _registries().values():
        registry.load_group()


def needs_of(config: Config, features: Iterator[Feature]) -> dict[str, list[str]]:
    """Return the names that are not of this library, by their concept.

    Args:
        config: Settings of the bundle.
        features: Of all its tables.
    """
    used = [
        (registry, name)
        for entry in fields(config)
        if entry.name != "views"
        for registry, name in one_of_names(getattr(config, entry.name))
    ]
    used += [(FEATURE_KINDS, feature.kind) for feature in features]
    needs: dict[str, list[str]] = {}
    for registry, name in used:
        names = needs.setdefault(registry.concept, [])
        if name in registry and name not in (*registry.own, *names):
            names.append(name)
    return {concept: names for concept, names in needs.items() if names}


def missing_of(needs: Mapping[str, Sequence[str]]) -> str:
    """Return the first thing that is needed and not registered, as in ``loss 'mine'``; or nothing."""
    registries = _registries()
    for concept, names in needs.items():
        for name in names:
            if concept not in registries or name not in registries[concept]:
                return f"{concept} {name!r}"
    return ""


def _registries() -> dict[str, Registry[Any]]:
    """Return the registries whose names settings hold, by concept."""
    config = Config()
    found = [
        registry
        for entry in fields(config)
        if entry.name != "views"
        for registry, _ in one_of_names(getattr(config, entry.name))
    ]
    return {registry.concept: registry for registry in (*found, FEATURE_KINDS)}
