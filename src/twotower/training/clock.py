"""What the seconds of a training went into."""

import time
from typing import Any

from twotower.training.callbacks import Callback

PARTS = (
    "steps",
    "validation",
    "closed_form",
    "second_stage",
    "baselines",
    "test",
    "reading",
    "other",
)
"""What the seconds of ``train`` are divided into."""
_PHASES = {
    "the closed form": "closed_form",
    "second stage": "second_stage",
    "baseline": "baselines",
    "evaluation": "test",
}
"""How the name of a phase begins, and the part that it belongs to; all others are ``other``."""


class Clock(Callback):
    """Counts the seconds on the wall since it was made, by part.

    Steps and validations are those of all trainings, also of settings that lose a race.
    """

    def __init__(self) -> None:
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._part = "reading"
        self._since = time.monotonic()

    def on_phase(self, phase: str) -> None:
        """Count from here on for the part of a phase."""
        name = phase.rpartition(": ")[2]  # after that of a view
        found = (part for start, part in _PHASES.items() if name.startswith(start))
        self._enter(next(found, "other"))

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Count an epoch for its steps and its validation, and not for the phase around it."""
        steps, validation = record["seconds"], record["validation_seconds"]
        self._spent["steps"] += steps
        self._spent["validation"] += validation
        self._since += steps + validation

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part so far; parts without any are left out."""
        self._enter(self._part)
        return {part: round(spent, 2) for part, spent in self._spent.items() if spent >= 0.005}

    def _enter(self, part: str) -> None:
        now = time.monotonic()
        self._spent[self._part] += max(0.0, now - self._since)
        self._part, self._since = part, now
