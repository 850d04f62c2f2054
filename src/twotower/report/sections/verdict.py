"""The verdict as a headline, the figures that stand under it, and how they were measured."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from twotower.evaluation.figures import MAIN_METRIC
from twotower.evaluation.refit_notes import is_before, learnt_of
from twotower.report.figures_reader import Reading, number, surely, telling, whole
from twotower.report.wording import Say, method_name, metric_label, metric_name

_KEY_METRICS = ("ndcg@10", "hit_rate@10", "recall@10", "recall@100")
_NUM_KEYS = 3


class KeyFigure(NamedTuple):
    """One large number: its metric, its value, its interval, and the strongest baseline's."""

    metric: str
    value: str
    interval: str
    beside: str


def headline(reading: Reading, say: Say) -> str:
    """Return the verdict in a line, without a full stop: built from the numbers, in any language.

    If the check refused the last update, the line says so: the figures are of another model.
    """
    if is_refused(reading.figures):
        return say("update_refused", count=whole(reading.figures["update"]["night"]))
    return _of_test(reading, say)


def is_refused(figures: Mapping[str, Any]) -> bool:
    """Return whether the check refused the last update."""
    return bool((figures.get("update") or {}).get("reasons"))


def _of_test(reading: Reading, say: Say) -> str:
    said = _compared(reading, say)
    return say("before", said=said) if is_before(reading.figures) else said


def _compared(reading: Reading, say: Say) -> str:
    metric, strongest = reading.metric, reading.strongest
    if metric is None:
        return say("no_figures")
    digits = reading.digits(metric)
    value = number(reading.value(reading.subject, metric), digits)
    facts = {"subject": say(f"subject_{reading.subject}"), "metric": metric_name(say, metric)}
    if strongest is None:
        return say("alone", value=value, **facts)
    facts["name"] = method_name(say, strongest)
    difference = reading.difference(strongest, metric)
    if difference is None:
        other = number(reading.value(strongest, metric), digits)
        return say("unpaired", value=value, other=other, **facts)
    gap, low, high = difference
    key = {"better": "beats", "worse": "loses", "equal": "equal"}[surely(low, high)]
    return say(key, value=number(abs(gap), telling(digits, low, high)), **facts)


def deck(reading: Reading, say: Say) -> list[str]:
    """Return the sentences under the headline: how sure it is, and what it was measured on."""
    metric, figures = reading.metric, reading.figures
    if metric is None:
        return []
    sentences = []
    learnt, words = learnt_of(figures), figures.get("words")
    if figures.get("update"):
        sentences.append(say("refit_updated", count=whole(figures["update"]["night"])))
        if is_refused(figures):
            sentences.append(say("sentence", said=_of_test(reading, say)))
    elif learnt is not None:
        epochs = figures["refit"]["epochs"]
        how = say("refit_steps", epochs=epochs) if epochs else say("refit_without_steps")
        sentences.append(say(f"refit_{learnt}", how=how))
    if reading.strongest is not None:
        sentences.append(_how_sure(reading, metric, reading.strongest, say))
    if words and reading.subject == "served":
        sentences.append(say("as_served", share=f"{words['share']:g}"))
    sentences += _of_second_stage(reading, metric, say)
    sentences += _measured(reading, say)
    seeds = (figures.get("seeds") or {}).get(metric)
    if seeds is not None:
        mean, sd = number(seeds["mean"], 4), number(seeds["sd"], 4)
        facts = {"metric": metric_name(say, metric), "count": len(seeds["values"])}
        sentences.append(say("of_seeds", mean=mean, sd=sd, **facts))
    return sentences


def _of_second_stage(reading: Reading, metric: str, say: Say) -> list[str]:
    """Return what a second stage changes, in a sentence; nothing where none was fitted."""
    told = reading.figures.get("second_stage")
    if not told:
        return []
    is_measured = "ranked" in reading.figures  # else it was left out, or added after the test
    before = "served" if reading.figures.get("served") else "model"
    found: tuple[float, ...] | None = tuple(map(float, told["difference"]))
    if is_measured:
        found = reading.difference(before, metric)
    if found is None:
        return []
    value, *ends = found
    digits = telling(reading.digits(metric), *ends)
    said, low, high = (number(each, digits, signed=True) for each in (value, *ends))
    facts = {"value": said, "interval": say("interval", low=low, high=high)}
    facts["metric"] = metric_name(say, metric if is_measured else MAIN_METRIC)
    if not told["kept"]:
        return [say("as_left_out", **facts)]
    facts |= {"trees": told["trees"], "depth": told["depth"]}
    if not is_measured:
        return [say("as_added", **facts)]
    return [say("as_ranked", ceiling=number(told["ceiling"][MAIN_METRIC], 3), **facts)]


def _how_sure(reading: Reading, metric: str, strongest: str, say: Say) -> str:
    """Return the interval of the difference to the strongest baseline, in a sentence."""
    difference = reading.difference(strongest, metric)
    if difference is None:
        return say("no_interval")
    value, *ends = difference
    digits = telling(reading.digits(metric), *ends)
    if surely(*ends) == "equal":
        low, high = (number(end, digits, signed=True) for end in ends)
        said = number(value, digits, signed=True)
        interval = say("interval", low=low, high=high)
        return say("difference_is", value=said, metric=metric_name(say, metric), interval=interval)
    low, high = (number(end, digits) for end in sorted(map(abs, ends)))
    name = method_name(say, strongest)
    return say("strongest_is", low=low, high=high, name=name, count=len(reading.baselines))


def key_figures(reading: Reading, say: Say) -> list[KeyFigure]:
    """Return three figures of the model, each beside the strongest baseline's.

    There are none for a refused update, whose figures are in the table of its check.
    """
    if is_refused(reading.figures):
        return []
    subject, strongest = reading.subject, reading.strongest
    metrics = [m for m in _KEY_METRICS if reading.value(subject, m) is not None]
    metrics += [m for m in reading.figures.get(subject) or () if m not in metrics]
    twins = reading.value(subject, "hit_rate@10") == reading.value(subject, "recall@10")
    if twins and "recall@10" in metrics and "hit_rate@10" in metrics:
        metrics.remove("recall@10")  # one relevant item a query: the same number twice
    found = []
    for metric in metrics[:_NUM_KEYS]:
        digits, triple = reading.digits(metric), reading.interval(subject, metric)
        interval = beside = ""
        if triple is not None:
            low, high = (number(end, digits) for end in triple[1:])
            interval = say("interval", low=low, high=high)
        if strongest is not None and reading.value(strongest, metric) is not None:
            other = number(reading.value(strongest, metric), digits)
            beside = say("strongest_has", name=method_name(say, strongest), value=other)
        value = number(reading.value(subject, metric), digits)
        found.append(KeyFigure(metric_label(say, metric), value, interval, beside))
    return found


def _measured(reading: Reading, say: Say) -> list[str]:
    protocol = reading.protocol
    if "queries" not in protocol:
        return []
    part, catalogue = str(protocol.get("part", "test")), whole(protocol.get("catalogue", "?"))
    among = say("among_all", catalogue=catalogue)
    if "candidates_a_query" in protocol:
        count = f"{protocol['candidates_a_query']:.0f}"
        among = say("among_sample", count=count, catalogue=catalogue)
    sentences = [] if protocol.get("ranking", "full") == "full" else [say("sampled")]
    sentences.append(
        say(
            "measured",
            queries=whole(protocol["queries"]),
            part=say(part) if part in ("test", "valid") else part,
            targets=whole(protocol.get("targets", "?")),
            among=among,
            seen=say("removed" if protocol.get("seen_removed") else "kept"),
        )
    )
    missed = protocol.get("targets_that_cannot_be_found") or {}
    seen, absent = missed.get("seen", 0), missed.get("absent", 0)
    if seen or absent:
        counts = {"count": seen + absent, "seen": seen, "absent": absent}
        sentences.append(say("unfindable", **{k: whole(v) for k, v in counts.items()}))
    return sentences
