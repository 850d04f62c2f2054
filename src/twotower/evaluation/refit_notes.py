"""What a second training on more events means for the figures: told wherever they are shown.

``metrics.json`` holds under ``refit`` what was learnt and for how many epochs. Of a bundle that learnt
validation, too, the figures are its own. Of one that learnt the test there can be none: those that are
there are of the model before. An updated bundle is such a one, and has the figures of its last night under
``update``.
"""

from collections.abc import Mapping
from typing import Any

from twotower.caller import argument, passing
from twotower.data.splits import Learnt
from twotower.errors import DataError

Figures = dict[str, Any]


def learnt_of(figures: Mapping[str, Any]) -> Learnt | None:
    """Return what a second training learnt beside the training events; None where there was none."""
    found: Learnt | None = (figures.get("refit") or {}).get("learnt")
    return found


def is_before(figures: Mapping[str, Any]) -> bool:
    """Return whether the figures are of a model before the bundle's, which learnt the test."""
    return learnt_of(figures) == "all"


def tell(figures: Figures, learnt: Learnt, epochs: int) -> None:
    """Write into figures what the bundle's model learnt, into their sentences as well."""
    figures["refit"] = {"learnt": learnt, "epochs": epochs}
    if learnt == "all":
        figures["verdict"] = _before(figures["verdict"])
        figures["verdicts"] = {name: _before(said) for name, said in figures["verdicts"].items()}


def tell_update(figures: Figures, update: Mapping[str, Any], epochs: int) -> None:
    """Write into figures those of an update, which learnt the test events, too.

    Args:
        figures: Of the training.
        update: Of the night.
        epochs: Those of the training.
    """
    if not is_before(figures):
        epochs = figures.get("refit", {}).get("epochs", epochs)
        tell(figures, "all", epochs)
    figures["update"] = dict(update)


def note(figures: Mapping[str, Any]) -> str | None:
    """Return in a sentence of whom the figures are where there was a second training, else None."""
    learnt = learnt_of(figures)
    if learnt is None:
        return None
    update = figures.get("update")
    if update is not None:
        since = "" if update["trained"] is None else f" of {update['trained'][:10]}"
        return (
            f"This is update {update['night']} of the bundle since its training{since}. The figures are of "
            "the model of that day; those of the last update are its own."
        )
    epochs = figures["refit"]["epochs"]
    how = f"trained once more, for as many epochs as validation chose ({epochs}),"
    if not epochs:
        how = "fitted once more, without training steps,"
    if learnt == "valid":
        return (
            f"The model was {how} on the training and validation events together, and so were the "
            "baselines; the figures are of these."
        )
    return (
        f"The bundle's model was {how} on all events, those of the test included, so that nothing is held "
        "out from it. The figures are of the model before, which learnt the training events alone."
    )


def refuse_learnt_test(figures: Mapping[str, Any], name: str) -> None:
    """Refuse a bundle that learnt its test events.

    Args:
        figures: Of the bundle.
        name: Of the bundle.

    Raises:
        DataError: It did.
    """
    if is_before(figures):
        how = f"learnt all events ({passing(refit='all')})"
        if "update" in figures:
            how = "was updated since its test"
        raise DataError(
            f"the bundle {name!r} must hold test events out, got one that {how}; evaluate it on later "
            f"events ({argument('test')}) or new sessions ({argument('test_sessions')}), or another bundle."
        )


def _before(sentence: str) -> str:
    return sentence.replace("The model ", "Before it learnt the test events, the model ", 1)
