"""How training went: loss and validation by epoch."""

import json
import math
from dataclasses import dataclass
from typing import Any

from twotower.report.charts import Line, Spec, line_chart
from twotower.report.figures_reader import number
from twotower.report.sections.methods import HALF, Chart
from twotower.report.svg import svg_of
from twotower.report.wording import Say, metric_name

Record = dict[str, Any]


def epochs_of(log: str) -> list[Record]:
    """Return the epochs of a training log, one JSON object a line; other events are left out."""
    records = (json.loads(line) for line in log.splitlines() if line.strip())
    return [r for r in records if isinstance(r, dict) and "epoch" in r and "loss" in r]


def summary(epochs: list[Record], best: Any, say: Say, *, among_labels: bool) -> str:
    """Return how long it took, which epoch was kept, and what validation ranked if not all items."""
    seconds = sum(r.get("seconds", 0.0) + r.get("validation_seconds", 0.0) for r in epochs)
    took = say("seconds", count=f"{seconds:.0f}")
    if seconds >= 120:
        took = say("minutes", count=f"{seconds / 60:.0f}")
    lead = "training_start" if best == 0 else "training_lead"
    found = say(lead, epochs=len(epochs), seconds=took, best=best)
    return found + (say("validated_among_labels") if among_labels else "")


@dataclass(frozen=True)
class EpochLine:
    """A figure by epoch.

    Args:
        title: What it is.
        label: The whole chart in a sentence.
        spec: Vega-Lite.
    """

    title: str
    label: str
    spec: Spec


def training_charts(epochs: list[Record], best: Any, say: Say) -> list[Chart]:
    """Return a chart of the loss and one of each validation metric, the kept epoch marked."""
    lines = epoch_lines(epochs, best, say)
    return [Chart(line.title, svg_of(line.spec, label=line.label)) for line in lines]


def epoch_lines(epochs: list[Record], best: Any, say: Say) -> list[EpochLine]:
    """Return the loss and each validation metric by epoch, the kept epoch marked."""
    best = best or None  # 0 is the state before any epoch
    names = [("loss", say("loss"))]
    names += [
        (key, say("validation", metric=metric_name(say, key.removeprefix("valid_"))))
        for key in dict.fromkeys(k for r in epochs for k in r)
        if key.startswith("valid_")
    ]
    lines: list[EpochLine] = []
    for key, name in names:
        points = [
            (r["epoch"], float(r[key]))
            for r in epochs
            if isinstance(r.get(key), (int, float)) and math.isfinite(r[key])
        ]
        if not points:
            continue
        kept = dict(points).get(best)
        label = say(
            "start_chart" if best is None else "training_chart",
            name=name,
            first=number(points[0][1]),
            last=number(points[-1][1]),
            epochs=len(points),
            best=number(kept),
        )
        spec = line_chart(
            [Line(name, points, is_model=True)],
            width=HALF,
            title=say("epoch"),
            mark_x=None if kept is None else best,
            mark_label=say("kept_epoch"),
        )
        lines.append(EpochLine(name, label, spec))
    return lines
