"""From a trainer to an evaluated bundle: the same for ``train``, ``train_views`` and ``tune``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from twotower.data.dataset import KNOWN, Dataset, Part
from twotower.data.splits import Learnt
from twotower.errors import BundleError
from twotower.evaluation.figures import measure
from twotower.evaluation.refit_notes import tell
from twotower.evaluation.scorers import Ranked
from twotower.losses.loss_kinds import LOSSES
from twotower.second_stage.ranker import Ranker
from twotower.serving.bundle import write_bundle
from twotower.serving.views_folder import write_views
from twotower.training.baselines_ahead import BaselinesAhead
from twotower.training.bundle_contents import contents_of, of_view
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.clock import Clock
from twotower.training.indexing import indexed
from twotower.training.private import groups_of_many, without_queries
from twotower.training.retraining import refitted, spread_over_seeds
from twotower.training.second_stage import remembering, with_second_stage
from twotower.training.task import Task
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer
from twotower.training.word_share import best_served, untrained_kept


def finish(
    task: Task,
    trainer: Trainer,
    done: Progress,
    *,
    out: Path | None,
    work: WorkFolder | None = None,
    histories: bool,
    baselines: Literal["auto"] | Sequence[str] = "auto",
    ahead: BaselinesAhead | None = None,
    learnt: Learnt | None = None,
    seeds: int = 1,
    untrained: Mapping[str, nn.Module | None] | None = None,
    stopped_early: bool = False,
    provenance: Mapping[str, Any] | None = None,
    clock: Clock,
    bar: Callback,
    teller: Callback | None = None,
) -> tuple[Trained, ...]:
    """Turn a trained model into an evaluated bundle: of each view, or the only one.

    In this order: the share of the words beside it, the second training, the figures, those of other seeds,
    the contents, the index, the files.

    Args:
        task: What was learnt.
        trainer: Holding the best weights.
        done: Its progress.
        out: Where to write the bundle, or the folder of the views' bundles; None keeps all in memory.
        work: The checkpoint beside ``out``; it is removed unless Ctrl-C ended the training, which is then
            noted.
        histories: As ``train`` takes it.
        baselines: As ``train`` takes it.
        ahead: What fits some of them while the model trains.
        learnt: What a second training learns, too; None for no such training.
        seeds: How many trainings the figures are to spread over, this one included.
        untrained: Copies of the user's own modules from before the training, for the other trainings.
        stopped_early: Whether Ctrl-C ended what came before.
        provenance: What else the bundle keeps of how it was made.
        clock: Follows it since the call; its seconds become a part of the provenance.
        bar: Shows how it goes.
        teller: Gets the choices, phases and figures; the bar and the loggers. None for ``bar``.
    """
    teller = bar if teller is None else teller
    config, untrained = trainer.config, untrained or {}
    served = best_served(trainer, done)
    if done.best_epoch == 0 and trainer.spectral is None:
        teller.on_choices((untrained_kept(done, config.training.metric),), config)
    for objective in trainer.objectives:
        if objective.said:
            teller.on_choices(objective.said, config)
    again = None
    if learnt is not None and not done.interrupted:
        events = "all events" if learnt == "all" else "the training and validation events together"
        said = f"trained once more on {events}, for as many epochs as validation chose ({done.best_epoch})"
        if trainer.spectral is not None:
            said = f"the closed form is found once more, from {events}"
        teller.on_choices((f"refit: {said}",), config)
        bar.on_phase(
            f"training on {'all' if learnt == 'all' else 'training and validation'} events"
        )
        again = refitted(trainer, done, task, learnt, towers=untrained, watcher=bar)
        if again is None:
            said = f"interrupted; the bundle holds the model before, which did not learn {events}"
            teller.on_choices((f"refit: {said}",), config)
    interrupted = stopped_early or done.interrupted
    final = again or trainer
    is_refit = again is not None and learnt == "valid"
    measured = final if is_refit else trainer  # one that learnt the test is not to be tested
    of_each = []
    for place, dataset in enumerate(task.dataset.all_views()):
        view = dataset.name if task.dataset.views else None
        scorer = measured.objectives[place].scorer()
        # What was chosen before validation was learnt is kept for the model that learnt it.
        as_served = None if served is None else replace(served[place], model=scorer)
        tell_phase = _phases(teller, view)
        ranked = None
        if config.rerank.use != "off":
            tell_phase("second stage")
            before = trainer.objectives[place].scorer() if served is None else served[place]
            ranked, decided = with_second_stage(before, dataset, task.sides, config)
            teller.on_choices(decided, config)
            if ranked is not None:
                ranker = remembering(ranked.ranker, dataset, *KNOWN)
                ranked = replace(ranked, base=as_served or scorer, ranker=ranker)
        figures = measure(
            scorer,
            dataset,
            calibrated=LOSSES[config.loss.kind].takes_labels,
            baselines=baselines,
            ahead=None if ahead is None else ahead.fitted(place, refit=is_refit, tell=tell_phase),
            served=as_served,
            ranked=ranked,
            refit=is_refit,
            tell=tell_phase,
        )
        if view is not None:
            figures["protocol"]["view"] = view
        if again is not None and learnt is not None:
            tell(figures, learnt, done.best_epoch)
        if task.private:
            groups_of_many(figures)
        if seeds > 1 and trainer.spectral is not None:
            teller.on_choices(("seeds: the closed form is the same with every seed",), config)
        elif seeds > 1 and not interrupted:
            figures["seeds"] = spread_over_seeds(
                figures["model"],
                seeds,
                task,
                config,
                trainer.added,
                untrained,
                bar,
                refit=is_refit,
                lessons=trainer.lessons,
                beside=trainer.beside,
            )
        objective = final.objectives[place]
        contents = contents_of(
            final,
            objective,
            figures,
            done,
            histories=histories,
            private=task.private,
            dataset=dataset if is_refit else None,
        )
        contents = replace(
            contents,
            provenance={**contents.provenance, **(provenance or {}), "seconds": clock.seconds()},
            ranker=_kept(ranked, dataset, learnt if again is not None else None),
        )
        tell_phase("index")
        contents, choices = indexed(contents, objective.scorer(), dataset)
        if choices:
            teller.on_choices(choices, contents.config)
        teller.on_figures(figures, interrupted)
        if view is not None:
            contents = of_view(contents, view)
        of_each.append(
            Trained(
                without_queries(contents) if task.private else contents,
                out if out is None or view is None else out / view,
                figures,
                dataset,
                task.decisions,
                **final.towers,
                before=contents if task.private else None,
            )
        )
    if out is not None:
        _write(out, of_each, work, is_view=bool(task.dataset.views), is_done=not interrupted)
    return tuple(of_each)


def _kept(ranked: Ranked | None, dataset: Dataset, learnt: Learnt | None) -> Ranker | None:
    """Return the second stage that the bundle holds: it remembers all that the bundle knows."""
    if ranked is None or not ranked.ranker.is_kept:
        return None
    return (
        remembering(ranked.ranker, dataset, *KNOWN, Part.TEST) if learnt == "all" else ranked.ranker
    )


def _phases(teller: Callback, view: str | None) -> Callable[[str], None]:
    """Return a function that announces a phase; where there are several views, with the view's name."""
    return lambda phase: teller.on_phase(phase if view is None else f"{view}: {phase}")


def _write(
    out: Path, trained: Sequence[Trained], work: WorkFolder | None, *, is_view: bool, is_done: bool
) -> None:
    """Write the bundles, and remove the checkpoint where the training is done or it is in the way.

    Raises:
        BundleError: They cannot be written, without the checkpoint neither.
    """
    write = partial(write_bundle, out, trained[0].contents)
    if is_view:
        write = partial(write_views, out, {each.dataset.name: each.contents for each in trained})
    try:
        write()
    except BundleError:
        if work is None:
            raise
        work.remove()  # it holds more than a bundle needs, and a full disk must be left as it was
        write()
    if work is not None and is_done:
        work.remove()
    elif work is not None:
        work.stop()
