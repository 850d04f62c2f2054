"""The verdict as a headline, the figures that stand under it, and how they were measured."""

from dataclasses import dataclass

from twotower.evaluation.refit_notes import is_before, learnt_of
from twotower.report.figures_reader import Reading, number, telling, whole
from twotower.report.wording import Say, method_name, metric_label, metric_name

_KEY_METRICS = ("ndcg@10", "hit_rate@10", "recall@10", "recall@100")
_NUM_KEYS = 3


@dataclass(frozen=True)
class KeyFigure:
    """One large number: its metric, its value, its interval, and what stands beside it."""

    metric: str
    value: str
    interval: str
    beside: str


def headline(reading: Reading, say: Say) -> str:
    """Return the verdict in a line, without a full stop: built from the numbers, in any language."""
    said = _headline(reading, say)
    return say("before", said=said) if is_before(reading.figures) else said


def _headline(reading: Reading, say: Say) -> str:
    metric, strongest = reading.metric, reading.strongest
    if metric is None:
        return say("no_figures")
    called, digits = metric_name(say, metric), reading.digits(metric)
    who = say(f"subject_{reading.subject}")
    value = number(reading.value(reading.subject, metric), digits)
    if strongest is None:
        return say("alone", subject=who, metric=called, value=value)
    name = method_name(say, strongest)
    difference = reading.difference(strongest, metric)
    if difference is None:
        other = number(reading.value(strongest, metric), digits)
        return say("unpaired", subject=who, metric=called, value=value, name=name, other=other)
    digits = telling(digits, difference[1], difference[2])
    if difference[1] > 0:
        return say(
            "beats", subject=who, name=name, metric=called, value=number(difference[0], digits)
        )
    if difference[2] < 0:
        return say(
            "loses", subject=who, name=name, metric=called, value=number(-difference[0], digits)
        )
    return say("equal", subject=who, name=name)


def deck(reading: Reading, say: Say) -> list[str]:
    """Return the sentences under the headline: how sure it is, and what it was measured on."""
    metric, strongest = reading.metric, reading.strongest
    sentences: list[str] = []
    if metric is None:
        return sentences
    learnt = learnt_of(reading.figures)
    if learnt is not None:
        epochs = reading.figures["refit"]["epochs"]
        sentences.append(say(f"refit_{learnt}", epochs=epochs))
    if strongest is not None:
        difference, digits = reading.difference(strongest, metric), reading.digits(metric)
        if difference is None:
            sentences.append(say("no_interval"))
        else:
            value, low, high = difference
            digits = telling(digits, low, high)
            name, called = method_name(say, strongest), metric_name(say, metric)
            if low <= 0 <= high:
                low_, high_ = (number(end, digits, signed=True) for end in (low, high))
                interval = say("interval", low=low_, high=high_)
                value_ = number(value, digits, signed=True)
                sentences.append(
                    say("difference_is", value=value_, metric=called, interval=interval)
                )
            else:
                ends = sorted((abs(low), abs(high)))
                low_, high_ = (number(end, digits) for end in ends)
                count = len(reading.baselines)
                sentences.append(say("strongest_is", low=low_, high=high_, name=name, count=count))
    words = reading.figures.get("words")
    if words and reading.subject == "served":
        sentences.append(say("as_served", share=f"{words['share']:g}"))
    sentences += _measured(reading, say)
    for name, seeds in (reading.figures.get("seeds") or {}).items():
        if name == metric:
            sentences.append(
                say(
                    "of_seeds",
                    metric=metric_name(say, name),
                    count=len(seeds["values"]),
                    mean=number(seeds["mean"], 4),
                    sd=number(seeds["sd"], 4),
                )
            )
    return sentences


def key_figures(reading: Reading, say: Say) -> list[KeyFigure]:
    """Return three figures of the model, each beside the strongest baseline's."""
    subject = reading.subject
    metrics = [m for m in _KEY_METRICS if reading.value(subject, m) is not None]
    metrics += [m for m in reading.figures.get(subject) or () if m not in metrics]
    twins = reading.value(subject, "hit_rate@10") == reading.value(subject, "recall@10")
    if twins and "recall@10" in metrics and "hit_rate@10" in metrics:
        metrics.remove("recall@10")  # one relevant item a query: the same number twice
    found = []
    for metric in metrics[:_NUM_KEYS]:
        digits = reading.digits(metric)
        triple, strongest = reading.interval(subject, metric), reading.strongest
        other = None if strongest is None else reading.value(strongest, metric)
        beside = interval = ""
        if triple is not None:
            interval = say(
                "interval", low=number(triple[1], digits), high=number(triple[2], digits)
            )
        if strongest is not None and other is not None:
            name = method_name(say, strongest)
            beside = say("strongest_has", name=name, value=number(other, digits))
        value = number(reading.value(subject, metric), digits)
        found.append(KeyFigure(metric_label(say, metric), value, interval, beside))
    return found


def _measured(reading: Reading, say: Say) -> list[str]:
    protocol = reading.protocol
    if "queries" not in protocol:
        return []
    part = str(protocol.get("part", "test"))
    sentences = []
    catalogue = whole(protocol.get("catalogue", "?"))
    among = say("among_all", catalogue=catalogue)
    if "candidates_a_query" in protocol:
        count = f"{protocol['candidates_a_query']:.0f}"
        among = say("among_sample", count=count, catalogue=catalogue)
    if protocol.get("ranking", "full") != "full":
        sentences.append(say("sampled"))
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
