"""What was asked and found nothing: values of filters that no item has, ids that the catalogue lacks."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from twotower.histories import Histories
from twotower.rules.kinds import Rule, spec_of
from twotower.serving.allowed import Allowed
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import Event


def of_filters(allowed: Allowed, text: str | None, rules: Iterable[Rule] = ()) -> tuple[str, ...]:
    """Return a sentence for each value that a filter, or that of a rule, asks for and no item has."""
    specs = ((rule, spec_of(rule)) for rule in rules)
    of_rules = [spec.filter_of(rule) for rule, spec in specs if spec is not None]
    return tuple(dict.fromkeys(allowed.notes(text, *of_rules)))


def with_notes(
    answers: Sequence[Recommendation],
    notes: tuple[str, ...],
    lists: Sequence[list[Event]] | None,
    histories: Histories,
) -> list[Recommendation]:
    """Return answers with notes on all, and on ids of each history that the catalogue lacks.

    Args:
        answers: One a query.
        notes: On all.
        lists: The histories as a caller gave them, or None.
        histories: What is known of them.
    """
    own: list[tuple[str, ...]] = [()] * len(answers)
    if lists is not None:
        known = np.diff(histories.offsets).tolist()
        own = [unknown_ids(len(given), num) for given, num in zip(lists, known, strict=True)]
    return [
        replace(answer, notes=(*notes, *more)) if notes or more else answer
        for answer, more in zip(answers, own, strict=True)
    ]


def unknown_ids(num_given: int, num_known: int) -> tuple[str, ...]:
    """Return a sentence on the ids of a history that are not known, or nothing.

    Args:
        num_given: Ids in it.
        num_known: Those that the catalogue has.
    """
    num = num_given - num_known
    if not num:
        return ()
    if not num_known:
        which = "The one id" if num == 1 else f"None of the {num:,} ids"
        verb = "is not" if num == 1 else "is"
        return (f"{which} of the history {verb} in the catalogue, so the history says nothing.",)
    verb = "is" if num == 1 else "are"
    return (f"{num:,} of the {num_given:,} ids of the history {verb} not in the catalogue.",)
