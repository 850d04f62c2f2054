"""``Finding``: one thing that the doctor saw, said in a person's language."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from twotower.caller import argument, passing

Severity = Literal["error", "warning", "info"]
Language = Literal["en", "zh"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The worst first."""


@dataclass(frozen=True)
class Text:
    """The three sentences of a finding, as format strings over ``value`` and the finding's facts.

    ``{argument[items]}`` and ``{passing[split=temporal]}`` name arguments in the reader's words; see
    ``twotower.caller``. ``{passing[event_column=@column]}`` takes the value from the facts.

    Args:
        what: What was seen, with its number.
        why: Why it matters.
        do: What to do.
    """

    what: str
    why: str
    do: str


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Args:
        id: Its name in JSON, such as ``duplicate-events``.
        en: What it says in English.
        zh: What it says in Chinese.
    """

    id: str
    en: Text
    zh: Text


KINDS = {
    name: Kind(name.partition(": ")[0], Text(**said["en"]), Text(**said["zh"]))
    for name, said in tomllib.loads(
        Path(__file__).with_name("findings.toml").read_text(encoding="utf-8")
    ).items()
}
"""Every kind of finding of this library, by its id, and by a case of it: ``not-looked-at: refit``."""


@dataclass(frozen=True)
class Finding:
    """A problem, or a fact worth knowing, that the doctor found.

    Args:
        kind: Its kind, which holds its texts.
        severity: ``error``: the figures cannot be trusted, or the model does not work, until the problem
            is fixed; ``warning``: the model is likely worse than it could be; ``info``: worth knowing.
        value: The number that the thresholds were compared with.
        facts: The values that the texts name: columns, counts, shares.
    """

    kind: Kind
    severity: Severity
    value: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, severity: Severity, value: float, **facts: Any) -> "Finding":
        """Return a finding of a kind of this library, named by its key in ``KINDS``."""
        return cls(KINDS[kind], severity, value, facts)

    def as_json(self, language: Language = "en") -> dict[str, Any]:
        """Return ``{"id", "severity", "what", "why", "do", "value"}``, said in ``language``."""
        text = self.kind.en if language == "en" else self.kind.zh
        words = {"argument": _Arguments(), "passing": _Passing(self.facts), **self.facts}
        said = {
            name: sentence.format(value=self.value, **words)
            for name, sentence in vars(text).items()
        }
        return {"id": self.kind.id, "severity": self.severity, **said, "value": self.value}


class _Arguments:
    def __getitem__(self, name: str) -> str:
        return argument(name)


class _Passing:
    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts

    def __getitem__(self, given: str) -> str:
        name, _, value = given.partition("=")
        if value in ("True", "False"):
            return passing(**{name: value == "True"})
        return passing(**{name: str(self.facts[value[1:]]) if value.startswith("@") else value})


def graded(kind: str, share: float, limits: tuple[float, float], **facts: Any) -> Iterator[Finding]:
    """Yield an info from the first limit on, a warning from the second, and nothing below both."""
    if share >= limits[0]:
        yield Finding.of(kind, "warning" if share >= limits[1] else "info", share, **facts)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings by severity; those of one severity stay in their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
