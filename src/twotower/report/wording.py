"""The report's sentences in the reader's language, and what methods and metrics are called in it."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from twotower.baselines.specs import BASELINES
from twotower.chinese import in_chinese
from twotower.doctor.findings import Language
from twotower.evaluation.figures import OURS
from twotower.evaluation.metrics import METRICS
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.registry import Registry

Say = Callable[..., str]

TEXTS: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_name("texts.toml").read_text(encoding="utf-8")
)
"""Key -> language -> sentence."""


_NAMED: dict[str, Registry[Any]] = {"name": BASELINES, "metric": METRICS, "kind": FEATURE_KINDS}
"""First word of a key -> the registry whose entries hold the texts."""


def _texts(key: str) -> dict[str, str] | None:
    """Return a text in both languages, or None; an entry of a registry holds its own."""
    table, _, name = key.partition("_")
    entry = _NAMED[table].get(name) if table in _NAMED else None
    return TEXTS.get(key) if entry is None else {"en": entry.label, "zh": entry.label_zh}


def speaker(language: Language, *, is_before: bool = False) -> Say:
    """Return a function from a key, with what its sentence names, to the sentence.

    Args:
        language: ``"en"`` or ``"zh"``.
        is_before: Whether the figures are of the model before a refit, which the texts then say.
    """

    def say(key: str, **facts: Any) -> str:
        if is_before and key.removeprefix("name_") in OURS:
            key = f"{key}_before"
        texts = _texts(key)
        assert texts is not None, key
        return texts[language].format(**facts)

    return say


class Said(NamedTuple):
    """A sentence of the bundle, in the reader's language where it is known in it.

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
    return _said(say, f"name_{method}", method)


def method_label(say: Say, method: str) -> str:
    """Return a method's name as it begins a line."""
    return _capitalized(method_name(say, method))


def setting_name(say: Say, name: str) -> str:
    """Return what people call a setting of a baseline: ``half life``, ``半衰期``."""
    return _said(say, f"setting_{name}", name.replace("_", " "))


def metric_label(say: Say, metric: str) -> str:
    """Return a metric's name as it begins a line."""
    return _capitalized(metric_name(say, metric))


def metric_name(say: Say, metric: str) -> str:
    """Return what people call a metric: ``NDCG@10``, ``命中率@10``."""
    name, at, k = metric.partition("@")
    return _said(say, f"metric_{name}", name.replace("_", " ").upper()) + at + k


def _said(say: Say, key: str, otherwise: str) -> str:
    return say(key) if _texts(key) else otherwise


def _capitalized(name: str) -> str:
    return name[:1].upper() + name[1:]
