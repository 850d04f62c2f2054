"""Which bundles cannot be updated, and why."""

from collections.abc import Iterator

from twotower.caller import calling, passing
from twotower.errors import BundleError
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.serving.bundle import Contents


def check_bundle(contents: Contents, name: str | None) -> None:
    """Refuse a bundle that does not hold what an update needs.

    Args:
        contents: What it holds.
        name: Of the bundle; None if it is in memory only.

    Raises:
        BundleError: It does not.
    """
    problem = next(_problems(contents), None)
    if problem is not None:
        named = "the bundle" if name is None else f"the bundle {name!r}"
        raise BundleError(
            f"{named} cannot be updated: {problem}; train anew on all events ({calling('train')})."
        )


def _problems(contents: Contents) -> Iterator[str]:
    """Yield what is in the way, each as the middle of a sentence."""
    config = contents.config
    if contents.view is not None:
        yield f"it is the view {contents.view!r} of a model with several"
    if contents.custom:
        yield f"its {contents.custom[0]} tower is a module of your own"
    if contents.is_private:
        yield f"it was trained with {passing(private=True)} and holds no queries"
    if contents.histories is None:
        yield f"it was written with {passing(histories=False)} and holds no past events to replay"
    if config.training.solver == "spectral":
        yield "its weights are a closed form (training.solver = 'spectral'), which no step continues"
    needs = SAMPLERS[config.loss.negatives].needs
    if needs or LOSSES[config.loss.kind].takes_labels:
        what = "impressions" if needs == "impressions" else "events with label 0"
        yield f"its loss needs past {what}, which a bundle does not hold"
    if config.data.position_column is not None:
        yield "its loss needs the positions of past events, which a bundle does not hold"
