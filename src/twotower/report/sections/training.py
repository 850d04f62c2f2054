"""How the model came to be: its training by epoch, its settings, and where its data is from."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from twotower.config import Config
from twotower.report.charts import Line, Spec, line_chart, stacked_bars
from twotower.report.figures_reader import number, whole
from twotower.report.sections.methods import HALF, Chart, in_two_widths
from twotower.report.svg import svg_of
from twotower.report.wording import Say, metric_name
from twotower.serving.bundle import Contents
from twotower.serving.manifest import MANIFEST
from twotower.serving.retriever import Retriever

Record = dict[str, Any]


def epochs_of(log: str) -> list[Record]:
    """Return the epochs of a training log, one JSON object a line; other events are left out."""
    records = (json.loads(line) for line in log.splitlines() if line.strip())
    return [r for r in records if isinstance(r, dict) and "epoch" in r and "loss" in r]


def summary(
    epochs: list[Record], best: Any, say: Say, *, among_labels: bool, solver: str = "gradient"
) -> str:
    """Return how long training took, which epoch was kept, and what validation ranked if not all items."""
    if solver == "spectral":
        return say("training_without_steps")
    if not epochs:
        return ""
    seconds = sum(r.get("seconds", 0.0) + r.get("validation_seconds", 0.0) for r in epochs)
    took = say("seconds", count=f"{seconds:.0f}")
    if seconds >= 120:
        took = say("minutes", count=f"{seconds / 60:.0f}")
    lead = "training_start" if best == 0 else "training_lead"
    found = say(lead, epochs=len(epochs), seconds=took, best=best)
    return found + (say("validated_among_labels") if among_labels else "")


def learnt_shares(contents: Contents, say: Say) -> str:
    """Return how much of what was learnt is added to popularity; empty without a prior by popularity."""
    shares = contents.weights.get("popularity.shares")
    if shares is None:
        return ""
    without_events, with_events = (f"{share:g}" for share in shares.tolist())
    return say("learnt_shares", without_events=without_events, with_events=with_events)


def decided(log: str, say: Say) -> list[tuple[str, str]]:
    """Return what validation decided: each setting with its value, and the figures of both values."""
    records = (json.loads(line) for line in log.splitlines() if line.strip())
    found = []
    for record in records:
        if record.get("event") != "race":
            continue
        ranked = sorted(record["compared"], key=lambda each: each["value"] != record["chosen"])
        shown = ((_value(each["value"], say), each["metric"]) for each in ranked)
        figures = ", ".join(f"{value}: {metric:.4f}" for value, metric in shown)
        key = "decided_after" if "epochs" in record else "decided_at_the_end"
        words = say(
            key, chosen=_value(record["chosen"], say), figures=figures, epochs=record.get("epochs")
        )
        found.append((record["setting"], words))
    return found


def _value(value: Any, say: Say) -> str:
    return say("not_read") if value is None else json.dumps(value).strip('"')


class EpochLine(NamedTuple):
    """A figure by epoch.

    Args:
        title: The name of the figure.
        label: What the chart shows, in a sentence.
        spec: The chart as a Vega-Lite specification.
    """

    title: str
    label: str
    spec: Spec


def training_charts(epochs: list[Record], best: Any, say: Say) -> list[Chart]:
    """Return a chart of the loss and one of each validation metric, with the kept epoch marked."""
    lines = epoch_lines(epochs, best, say)
    return [Chart(line.title, svg_of(line.spec, label=line.label)) for line in lines]


def epoch_lines(epochs: list[Record], best: Any, say: Say) -> list[EpochLine]:
    """Return the loss and each validation metric by epoch, with the kept epoch marked."""
    best = best or None  # 0 is the state before any epoch
    names = {"loss": say("loss")}
    for key in (key for record in epochs for key in record if key.startswith("valid_")):
        names[key] = say("validation", metric=metric_name(say, key.removeprefix("valid_")))
    if any("closed_form" in record for record in epochs):
        names["closed_form"] = say("validation_of_sum")
        sums = (
            {"closed_form": r["closed_form"]["metric"]} if "closed_form" in r else {}
            for r in epochs
        )
        epochs = [{**record, **of_sum} for record, of_sum in zip(epochs, sums, strict=True)]
    lines = []
    for key, name in names.items():
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


def time_chart(seconds: Mapping[str, float], say: Say) -> Chart | None:
    """Return what the seconds of a training went into, as one bar; None where that is not known.

    Args:
        seconds: By part, as ``Clock.seconds`` returns them.
        say: Of the language.
    """
    if not seconds:
        return None
    names = [say(f"spent_{part}") for part in seconds]
    total = sum(seconds.values())
    shares = (
        say("spent_share", name=name, count=f"{spent:.0f}", share=f"{spent / total:.0%}")
        for name, spent in zip(names, seconds.values(), strict=True)
    )
    label, bars = say("spent_label", parts="; ".join(shares)), [("", list(seconds.values()))]
    title = say("seconds_title")
    drawn = in_two_widths(label, stacked_bars, bars, names, labels=0, title=title)
    return Chart(say("spent", count=f"{total:.0f}"), drawn)


class Setting(NamedTuple):
    """One setting: its path, its value and its default as TOML writes them, None for no default."""

    path: str
    value: str
    default: str | None

    @property
    def is_changed(self) -> bool:
        """Whether it differs from the default."""
        return self.value != self.default


def settings_of(config: Config) -> list[Setting]:
    """Return every setting but the kinds of features, those that differ from the defaults first."""
    given, defaults = (
        {path: json.dumps(v, ensure_ascii=False).strip('"') for path, v in tree.to_flat().items()}
        for tree in (config, Config())
    )
    found = [
        Setting(path, given.get(path, ""), defaults.get(path))
        for path in dict.fromkeys((*given, *defaults))
        if not path.startswith(("features.query.", "features.item."))
    ]
    return sorted(found, key=lambda setting: not setting.is_changed)


def manifest_of(retriever: Retriever) -> Record:
    """Return the manifest of the bundle, empty where the retriever was not opened from a folder."""
    file = retriever.path / MANIFEST
    if not file.is_file():
        return {}
    manifest: Record = json.loads(file.read_text(encoding="utf-8"))
    return manifest


def provenance(retriever: Retriever, manifest: Record, say: Say) -> list[tuple[str, str]]:
    """Return where the data is from, and how large the model is, a name and a value each."""
    contents = retriever.contents
    known = contents.provenance
    keys = ("data", "events", "queries", "items", "sha256_of_events", "sha256_of_targets")
    lines = [(say(key), whole(known[key])) for key in keys if key in known]
    lines.append((say("dim"), str(contents.item_vectors.shape[1])))
    lines.append((say("weights"), whole(sum(w.numel() for w in contents.weights.values()))))
    lines += [(say(key), str(known[key])) for key in ("best_epoch", "device") if key in known]
    search, measured = say("search_exact"), contents.metrics.get("index")
    if measured is not None:  # what an approximate index finds of what scoring every item does
        value, low, high = (number(each, 4) for each in measured["recall"]["100"])
        queries = whole(measured["queries"])
        search = say("search_gap", value=value, low=low, high=high, queries=queries)
        if (bytes_each := measured.get("bytes_per_item")) is not None:
            search += say("search_memory", bytes=f"{bytes_each:.0f}")
    lines.append((say("search"), search))
    if manifest:
        libraries = ", ".join(f"{name} {v}" for name, v in manifest["libraries"].items())
        lines += [(say("created"), manifest["created"]), (say("libraries"), libraries)]
    return lines
