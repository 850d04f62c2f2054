"""How the model came to be: settings that differ from the defaults, and where the data is from."""

import json
from dataclasses import dataclass
from typing import Any

from twotower.config import Config
from twotower.serving.bundle import MANIFEST
from twotower.serving.retriever import Retriever


@dataclass(frozen=True)
class Setting:
    """One setting: its path, its value, and its default, None where it has none."""

    path: str
    value: str
    default: str | None

    @property
    def is_changed(self) -> bool:
        """Whether it differs from the default."""
        return self.value != self.default


def settings_of(config: Config) -> list[Setting]:
    """Return every setting but the kinds of features, those that differ from the defaults first."""
    given, defaults = _by_path(config), _by_path(Config())
    found = [
        Setting(path, given.get(path, ""), defaults.get(path))
        for path in dict.fromkeys((*given, *defaults))
        if not path.startswith(("features.query.", "features.item."))
    ]
    return sorted(found, key=lambda setting: not setting.is_changed)


def manifest_of(retriever: Retriever) -> dict[str, Any]:
    """Return the manifest of the bundle, empty where the retriever was not opened from a folder."""
    file = retriever.path / MANIFEST
    if not file.is_file():
        return {}
    manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return manifest


def _by_path(config: Config) -> dict[str, str]:
    """Return settings by path, each as TOML would write it."""
    return {
        path: json.dumps(value, ensure_ascii=False).strip('"')
        for path, value in config.to_flat().items()
    }
