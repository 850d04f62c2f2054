"""Steps along gradients or the closed form, whichever validation prefers."""

from twotower.config import Config
from twotower.errors import ConfigError
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.closed_form import chosen as chosen_closed_form
from twotower.training.closed_form import is_quick, no_closed_form, settings_of
from twotower.training.race import record_of
from twotower.training.settings import with_values
from twotower.training.trainer import Trainer


def with_better_solver(
    given: Config, trainer: Trainer, done: Progress, teller: Callback, *, is_time_up: bool = False
) -> tuple[Trainer, Progress]:
    """Compute the closed form where the settings allow it, and return it or the trained model.

    The one with the better validation metric is returned.

    Args:
        given: What the user set; what was set stays.
        trainer: Holding its best weights.
        done: Its progress.
        teller: Is told.
        is_time_up: Whether a budget of minutes ended the training. After Ctrl-C nothing more is done.

    Returns:
        The chosen trainer and its progress.
    """
    goes_on = is_time_up or not done.interrupted
    hindrance = _no_closed_form(given, trainer) if goes_on else None
    if hindrance:
        teller.on_choices((f"training.solver = 'gradient': {hindrance}",), trainer.config)
    elif hindrance is not None:
        teller.on_phase("the closed form")
        trainer, done, said = _better_solver(given, trainer, done)
        teller.on_choices((said,), trainer.config)
    return trainer, done


def _no_closed_form(given: Config, trainer: Trainer) -> str | None:
    """Return why the closed form is not tried where it could be; None where it is no matter."""
    if given.training.solver != "auto" or trainer.config.training.examples != "sets":
        return None
    hindrance = no_closed_form(given, trainer.dataset, trainer.custom)
    if not hindrance and not is_quick(trainer.dataset, given.towers.dim):
        hindrance = "the closed form would take too long"
    return hindrance


def _better_solver(
    given: Config, trainer: Trainer, done: Progress
) -> tuple[Trainer, Progress, str]:
    """Return the closed form or the trained model, whichever is better on validation, and a sentence."""
    try:
        other, progress = _in_closed_form(given, trainer)
    except KeyboardInterrupt:
        done.interrupt()
        return trainer, done, "training.solver = 'gradient': the closed form was not finished"
    except ConfigError as error:  # it does not fit into memory
        return trainer, done, f"training.solver = 'gradient': {error}"
    trained, found = done.best_metric, progress.best_metric
    assert trained is not None
    assert found is not None
    record = record_of("training.solver", {"gradient": trained, "spectral": found})
    (done if found <= trained else progress).log.insert(0, record)
    metric = trainer.config.training.metric
    said = f"validation {metric} {found:.4f} in closed form, {trained:.4f} in steps"
    if found <= trained:
        return trainer, done, f"training.solver = 'gradient': {said}"
    if done.interrupted:
        progress.interrupt()
    return other, progress, f"training.solver = 'spectral': {said}"


def _in_closed_form(given: Config, trainer: Trainer) -> tuple[Trainer, Progress]:
    """Return the model in closed form on a trainer's data."""
    spectral = chosen_closed_form(trainer.dataset, given.towers.dim)
    values = {
        "towers.dim": spectral.width,
        "training.solver": "spectral",
        "towers.similarity": "dot",
    }
    config = with_values(trainer.config, values)
    other = Trainer(trainer.dataset, trainer.sides, config, spectral=settings_of(spectral))
    return other, other.fit()
