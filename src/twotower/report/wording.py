"""The report's sentences in the reader's language, and what methods and metrics are called in it."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.baselines.specs import BASELINES
from twotower.chinese import in_chinese
from twotower.doctor.findings import Language
from twotower.evaluation.metrics import METRICS
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.registry import Registry

Say = Callable[..., str]

TEXTS: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_name("texts.toml").read_text(encoding="utf-8")
)
"""Key -> language -> sentence."""


_NAMED: dict[str, Registry[Any]] = {"name": BASELINES, "metric": METRICS, "kind": FEATURE_KINDS}
"""First words of the keys of texts that the entries of registries bring along."""


def _texts(key: str) -> dict[str, str] | None:
    """Return a text in both languages; a name of a registry has those of its entry."""
    table, _, name = key.partition("_")
    entry = _NAMED[table].get(name) if table in _NAMED else None
    return TEXTS.get(key) if entry is None else {"en": entry.label, "zh": entry.label_zh}


def speaker(language: Language, *, is_before: bool = False) -> Say:
    """Return a function from a key, with what its sentence names, to the sentence.

    Args:
        language: ``"en"`` or ``"zh"``.
        is_before: Whether the figures are of a model before the bundle's, which is then called so.
    """

    def say(key: str, **facts: Any) -> str:
        if is_before and key in ("name_model", "name_served"):
            key = f"{key}_before"
        texts = _texts(key)
        assert texts is not None, key
        return texts[language].format(**facts)

    return say


@dataclass(frozen=True)
class Said:
    """A sentence of the bundle, in the reader's language where that is known.

    Args:
        text: The sentence.
        is_foreign: Whether it is English on a page that is not.
    """

    text: str
    is_foreign: bool = False


def translated(text: object, language: Language) -> Said:
    """Return a sentence that the bundle holds in English in the page's language."""
    if language == "en":
        return Said(str(text))
    chinese = in_chinese(str(text))
    return Said(str(text), is_foreign=True) if chinese is None else Said(chinese)


def method_name(say: Say, method: str) -> str:
    """Return what people call a method; its own key where it is none of ours."""
    key = f"name_{method}"
    return say(key) if _texts(key) else method


def method_label(say: Say, method: str) -> str:
    """Return a method's name as it begins a line."""
    name = method_name(say, method)
    return name[:1].upper() + name[1:]


def setting_name(say: Say, name: str) -> str:
    """Return what people call a setting of a baseline: ``half life``, ``半衰期``."""
    key = f"setting_{name}"
    return say(key) if _texts(key) else name.replace("_", " ")


def metric_label(say: Say, metric: str) -> str:
    """Return a metric's name as it begins a line."""
    name = metric_name(say, metric)
    return name[:1].upper() + name[1:]


def metric_name(say: Say, metric: str) -> str:
    """Return what people call a metric: ``NDCG@10``, ``命中率@10``."""
    name, _, k = metric.partition("@")
    key = f"metric_{name}"
    words = say(key) if _texts(key) else name.replace("_", " ").upper()
    return f"{words}@{k}" if k else words
