"""``train``: from tables to a trained, evaluated bundle."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
from torch import nn

from twotower import html
from twotower.baselines.specs import check_baselines, check_names
from twotower.caller import argument, passing
from twotower.config import Config
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset, Part
from twotower.data.splits import Learnt
from twotower.data.tables import Table
from twotower.doctor.findings import Language, worst_first
from twotower.errors import ArgumentError, BundleError, ConfigError, NothingLearntError
from twotower.evaluation.figures import KS, MAIN_METRIC, SHOWN, Figures, Measured, measure
from twotower.evaluation.ranking import evaluate
from twotower.evaluation.refit_notes import tell
from twotower.keywords import Keywords, configured, events_of, takes_keywords
from twotower.serving.bundle import Contents, check_output, write_bundle
from twotower.serving.retriever import Retriever
from twotower.training.bundle_contents import contents_of, fingerprint
from twotower.training.callbacks import Callback, Callbacks
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.choices import resolve
from twotower.training.default_progress import callback_of
from twotower.training.indexing import check_index, indexed
from twotower.training.loggers import MLflowLogger, TensorBoardLogger
from twotower.training.private import groups_of_many, without_queries
from twotower.training.query_ids import better_of_both, tries_ids
from twotower.training.refit import (
    Refit,
    Refitted,
    announced,
    learnt_by,
    not_refitted,
    refitted,
)
from twotower.training.task import Given, Task
from twotower.training.trainer import Trainer, Watcher
from twotower.training.words import best_served

if TYPE_CHECKING:
    from twotower.report.plot import Plot


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """What ``train`` returns.

    Args:
        contents: All that the bundle holds.
        path: Where the bundle stands, or None where none was asked for.
        figures: The model's figures beside the baselines'.
        dataset: What it was trained on, split.
        decisions: Which column is what.
        query_tower: The user's own query tower, where one was given.
        item_tower: The same for the items.
        before: Where the bundle is private, the contents with the queries, which the report reads; else
            None.
    """

    contents: Contents
    path: Path | None
    figures: Figures
    dataset: Dataset
    decisions: tuple[Decision, ...]
    query_tower: nn.Module | None = None
    item_tower: nn.Module | None = None
    before: Contents | None = None

    def __repr__(self) -> str:
        found = self.figures["model"].get(MAIN_METRIC)
        said = "" if found is None else f"; {SHOWN[MAIN_METRIC]} {found:.4f}"
        place = "in memory" if self.path is None else f"at {str(self.path)!r}"
        return (
            f"Trained({self.dataset.name!r}: {len(self.dataset.queries):,} queries, "
            f"{self.dataset.num_items:,} items{said}; {place})"
        )

    def _repr_html_(self) -> str:
        dataset = self.dataset
        sizes = f"{len(dataset.interactions):,} events, {len(dataset.queries):,} queries"
        place = "in memory; train with out to keep it" if self.path is None else self.path
        return html.block(
            html.text(dataset.name, bold=True),
            Measured(self.figures)._repr_html_(),
            html.facts({"trained on": f"{sizes}, {dataset.num_items:,} items", "bundle": place}),
        )

    @property
    def stopped_early(self) -> bool:
        """Whether Ctrl-C ended the training; the model is then the best up to there."""
        last = self.contents.log.splitlines()[-1]
        return bool(json.loads(last).get("event") == "interrupted")

    @cached_property
    def retriever(self) -> Retriever:
        """The trained model, ready to answer."""
        return self._retriever_of(self.contents)

    def plot(self, *, language: Language = "en") -> "Plot":
        """Return the loss and the validation metrics by epoch, as charts that a notebook shows.

        Args:
            language: ``"en"`` or ``"zh"``.
        """
        from twotower.report.plot import plot_of_epochs

        best = self.contents.provenance.get("best_epoch")
        return plot_of_epochs(self.contents.log, best, language)

    def _retriever_of(self, contents: Contents) -> Retriever:
        return Retriever(
            contents,
            query_tower=self.query_tower,
            item_tower=self.item_tower,
            path=self.path or "",
        )

    def report(self, path: str | Path, *, language: Language = "en") -> None:
        """Write all that is to be known of the model, with the doctor's findings, as one HTML page.

        Of a private training it shows example queries by number, without their columns.

        Args:
            path: Where to; a file that is there is replaced.
            language: ``"en"`` or ``"zh"``.

        Raises:
            ConfigError: ``path`` cannot be written.
        """
        from twotower.doctor.data_checks import diagnose_dataset, of_held_columns
        from twotower.doctor.model_checks import examine_model
        from twotower.report.html_report import write_report

        # The data themselves say more than a bundle does: it keeps no other columns of the events.
        config = of_held_columns(self.contents.config, self.dataset)
        found = diagnose_dataset(self.dataset, config=config, decisions=self.decisions)
        is_private = self.before is not None
        # One of its own: items that were put into the other since are not in the figures.
        retriever = self._retriever_of(self.before or self.contents)
        examined = examine_model(retriever)
        write_report(
            retriever,
            path,
            language=language,
            findings=worst_first([*found, *examined.findings]),
            losses=examined.losses,
            private=is_private,
        )


@takes_keywords
def train(
    interactions: Table | Mapping[str, Table] | None = None,
    *,
    items: Given | None = None,
    queries: Given | None = None,
    train: Table | None = None,
    valid: Table | None = None,
    valid_sessions: Table | None = None,
    test: Table | None = None,
    test_sessions: Table | None = None,
    out: str | Path | None = None,
    config: Config | Mapping[str, object] | str | Path | None = None,
    query_tower: nn.Module | None = None,
    item_tower: nn.Module | None = None,
    histories: bool = True,
    private: bool = False,
    resume: bool = False,
    seeds: int = 1,
    baselines: Literal["auto"] | Sequence[str] = "auto",
    refit: Refit = False,
    progress: Callback | Literal["auto", "bar"] | None = "auto",
    loggers: Sequence[Callback] = (),
    tensorboard: str | Path | None = None,
    mlflow: str | None = None,
    name: str | None = None,
    **keywords: Unpack[Keywords],
) -> Trained:
    """Train a two-tower model on a table of interactions, evaluate it, and write it as a bundle.

    Args:
        interactions: A file or a frame of events; or a mapping with ``train``, ``test`` and on wish
            ``valid``, which are then taken as they are; ``test_sessions`` and ``valid_sessions`` in their
            place hold new queries, each with the events before the one that is asked for.
        items: A file or a frame of the items' columns; or an ``(I, d)`` array or tensor, whose ids
            are 0 to I - 1.
        queries: The same for the queries.
        train: Training events, where the parts are given, in place of ``interactions``.
        valid: Validation events; without any, some of the training events become it.
        valid_sessions: New sessions in their place; the model predicts the last event of each.
        test: Test events.
        test_sessions: New sessions in their place.
        out: Where to write the bundle; None keeps it in memory.
        config: Settings: a ``Config``, a nested dictionary of what differs from the defaults, or
            the path of a TOML file.
        query_tower: A module of your own in the query tower's place: it is called with a dictionary
            of the transformed query features, or with the one tensor where there is just one, and
            returns ``(n, dim)``.
        item_tower: The same for the items.
        histories: Whether the bundle holds the queries' histories and test items.
        private: Whether the bundle holds nothing of any one query: no id, no history, no column that the
            model does not read, and no value that few queries have. ``training.private.LIMITS`` says what
            it cannot answer then; see docs/security.md.
        resume: Whether to go on from the checkpoint that an interrupted training left beside ``out``.
        seeds: How many times to train, each with another seed, at least 1. The bundle is that of the
            first; the figures then say how far the others spread, under ``seeds``.
        baselines: What the model is held against; see ``fit_baselines``.
        refit: Whether to train once more, after the choice of epochs and for as many, on training and
            validation events together; the figures are those of that model. ``"all"``, for production,
            learns the test events, too, and puts them into the histories: the figures are then those of the
            model before, and are told as such.
        progress: ``"auto"`` shows a bar in a terminal and in a notebook, and nothing elsewhere; ``"bar"``
            shows one everywhere, None nowhere; or a ``Callback`` of your own, which is told how it goes.
        loggers: More callbacks, which are told of the first seed: ``TensorBoardLogger``,
            ``MLflowLogger``, your own. Where validation decides whether queries have ids, they see the
            training without and the chosen model's figures.
        tensorboard: Folder in which the training is logged for TensorBoard, in a folder of its own.
        mlflow: Experiment of an MLflow server to which it is logged.
        name: What the data is called in reports; by default the file's name.
        **keywords: Single settings, which win over ``config``: ``recipe``, ``split``, ``query_column``,
            ``item_column``, ``time_column``, ``label_column``, ``weight_column``, ``position_column``,
            ``impressions_column``, ``event_column``, ``target_events``, ``drop_null_ids``, ``recall``. See
            ``keywords.Keywords``.

    Raises:
        DataError: A table cannot be used as it is.
        ConfigError: A setting is unknown, out of range, or does not go with the data, or a baseline.
        MissingExtraError: The library of a baseline that is named is not installed.
        BundleError: ``out`` cannot be written.
        ValueError: Two towers of different widths, ``seeds`` is below 1, or ``refit`` is something else.
    """
    learnt = learnt_by(refit)
    if seeds < 1:
        raise ArgumentError(f"{argument('seeds')} must be at least 1, got {seeds}.")
    parts = {"train": train, "valid": valid, "valid_sessions": valid_sessions}
    parts |= {"test": test, "test_sessions": test_sessions}
    interactions = events_of("train needs either", interactions, parts, split=keywords.get("split"))
    settings = configured(config, **keywords)
    if settings.views:
        raise ConfigError(
            f"{argument('config')} must hold no views for train, got some; use train_views."
        )
    check_index(settings)
    check_names(baselines)
    target = None if out is None else check_output(out)
    bar = callback_of(progress)
    teller = Callbacks([bar, *loggers, *_loggers(tensorboard, mlflow, target)])
    task = Task.of(
        interactions, items=items, queries=queries, config=settings, name=name, private=private
    )
    dataset, sides, settings = task.dataset, task.sides, task.config
    check_baselines(dataset, baselines)
    teller.on_data(dataset, task.decisions, sides.features)
    own = {"query": query_tower, "item": item_tower}
    custom = tuple(side for side, module in own.items() if module is not None)
    for side in custom:
        if not any(t.feature.kind != "id" for t in getattr(sides, side).transforms):
            table = "queries" if side == "query" else "items"
            raise ConfigError(
                f"{side}_tower must have features to read, got a {side} table without any; "
                f"give them as {table}=, or leave {side}_tower out."
            )
    given = settings
    settings, choices = resolve(given, dataset, custom=custom)
    is_open = not custom and tries_ids(given, settings, dataset)
    if is_open:
        decided = (said for said in choices if not said.startswith("towers.query_id"))
        choices = (*decided, "towers.query_id: both are trained; validation decides")
        undecided = replace(settings, towers=replace(settings.towers, query_id="auto"))
    teller.on_choices(choices, undecided if is_open else settings)
    towers = {"query_tower": query_tower, "item_tower": item_tower}
    fresh = deepcopy(towers) if seeds > 1 or learnt is not None else {}
    trainer = Trainer(dataset, sides, settings, **towers)
    of_seed = f", seed {settings.training.seed} (1 of {seeds})" if seeds > 1 else ""
    teller.on_phase(f"training{' without query ids' if is_open else ''}{of_seed}")
    done, work = fit_in_folder(trainer, target, resume=resume, teller=teller)
    if is_open and done.log[-1].get("event") != "interrupted":
        trainer, done, said = better_of_both(trainer, done, sides, bar)
        settings = trainer.config
        bar.on_choices((said,), settings)
    served = best_served(trainer, done, sides, settings.features.language)
    if done.best_epoch == 0:
        bar.on_choices((untrained(done, settings.training.metric),), settings)
    interrupted = done.log[-1].get("event") == "interrupted"
    again = None
    if learnt is not None and not interrupted:
        again = refitted_and_told(trainer, done, task, learnt, towers=fresh, bar=bar)
        interrupted = again is None
    is_refit = again is not None and learnt == "valid"
    model = trainer if again is None or learnt == "all" else again.trainer
    scorer = model.scorer()
    figures = measure(
        scorer,
        dataset,
        calibrated=settings.loss.kind == "bce",
        baselines=baselines,
        # What was chosen before validation was learnt stands beside the model that learnt it.
        served=None if served is None else replace(served, model=scorer),
        refit=is_refit,
        tell=teller.on_phase,
    )
    if again is not None and learnt is not None:
        tell(figures, learnt, done.best_epoch)
    if private:
        groups_of_many(figures)
    if seeds > 1 and not interrupted:
        figures["seeds"] = _spread(
            figures["model"],
            [
                _means_of_seed(task, settings, place, seeds, fresh, bar, refit=is_refit)
                for place in range(1, seeds)
            ],
        )
    final = trainer if again is None else again.trainer
    contents = contents_of(
        final.objectives[0],
        sides if again is None else again.task.sides,
        figures,
        done,
        histories=histories,
        custom=custom,
        private=private,
        dataset=dataset if is_refit else None,
    )
    teller.on_phase("index")
    contents, decisions = indexed(contents, final.scorer(), dataset)
    if decisions:
        bar.on_choices(decisions, contents.config)
    teller.on_figures(figures, interrupted)
    kept = without_queries(contents) if private else contents
    if target is not None and work is not None:
        write_after(work, lambda: write_bundle(target, kept), is_done=not interrupted)
    return Trained(
        kept,
        target,
        figures,
        dataset,
        task.decisions,
        **(towers if again is None else again.towers),
        before=contents if private else None,
    )


def _loggers(
    tensorboard: str | Path | None, mlflow: str | None, out: Path | None
) -> Iterator[Callback]:
    """Yield the loggers that keywords name."""
    if tensorboard is not None:
        run = "model" if out is None else out.resolve().name
        yield TensorBoardLogger(Path(tensorboard) / run)
    if mlflow is not None:
        yield MLflowLogger(mlflow)


def write_after(work: WorkFolder, write: Callable[[], None], *, is_done: bool) -> None:
    """Write what a training leaves, and remove its checkpoint where it is done or in the way.

    Raises:
        BundleError: It cannot be written, without the checkpoint neither.
    """
    try:
        write()
    except BundleError:
        work.remove()  # it holds more than a bundle needs, and a full disk must be left as it was
        write()
    if is_done:
        work.remove()


def untrained(done: Progress, metric: str) -> str:
    """Return in words that the start was kept."""
    if "served" in done.log[0]:
        return (
            f"the untrained towers are kept: beside BM25 their validation {MAIN_METRIC} is "
            f"{done.log[0]['served']:.4f}, that of the trained ones "
            f"{done.log[0]['best_of_training']:.4f}; the pairs are few for so many words"
        )
    return (
        f"the untrained towers are kept, whose validation {metric} of {done.best_metric:.4f} no epoch "
        f"reached (at best {done.log[0]['best_of_training']:.4f}): the pairs are few for so many words"
    )


def fit_in_folder(
    trainer: Trainer,
    out: Path | None,
    *,
    resume: bool,
    teller: Watcher,
) -> tuple[Progress, WorkFolder | None]:
    """Train with a checkpoint beside ``out``, and return how far it came and where that stands."""
    work = None if out is None else WorkFolder(out.resolve(), fingerprint(trainer))
    progress = None
    if resume:
        if work is None:
            raise ArgumentError(
                f"{argument('resume')} must go with {argument('out')}, got no {argument('out')}."
            )
        progress = work.load()
    done = trainer.fit(progress=progress, watcher=teller, save=None if work is None else work.save)
    if done.best_metric is None:  # an earlier training's checkpoint stays, this one has none
        raise NothingLearntError("Interrupted before the first validation: nothing was kept.")
    return done, work


def refitted_and_told(
    trainer: Trainer,
    done: Progress,
    task: Task,
    learnt: Learnt,
    *,
    towers: Mapping[str, nn.Module | None] | None = None,
    bar: Callback,
) -> Refitted | None:
    """Return ``refitted``, which the log and the progress are told of."""
    bar.on_choices((announced(learnt, done),), trainer.config)
    bar.on_phase(f"training on {'all' if learnt == 'all' else 'training and validation'} events")
    again = refitted(trainer, done, task, learnt, towers=towers, watcher=bar)
    if again is not None:
        done.log.append(again.record)
    else:
        bar.on_choices((not_refitted(learnt),), trainer.config)
    return again


def _means_of_seed(
    task: Task,
    config: Config,
    place: int,
    seeds: int,
    towers: Mapping[str, nn.Module | None],
    bar: Callback,
    *,
    refit: bool,
) -> dict[str, float]:
    """Return the model's metrics after a training with the seed at this place; nothing else is kept."""
    seed = config.training.seed + place
    bar.on_phase(f"training, seed {seed} ({place + 1} of {seeds})")
    config = replace(config, training=replace(config.training, seed=seed))
    dataset = task.dataset
    trainer = Trainer(dataset, task.sides, config, **deepcopy(dict(towers)))
    done = trainer.fit(watcher=bar)
    again = None
    if refit and done.log[-1].get("event") != "interrupted":
        again = refitted(trainer, done, task, "valid", towers=towers, watcher=bar)
    if done.log[-1].get("event") == "interrupted":
        raise NothingLearntError(
            f"Interrupted in the training of seed {seed}: no bundle was written; "
            f"go on with {passing(resume=True)}."
        )
    found = evaluate(
        (trainer if again is None else again.trainer).scorer(),
        dataset.cases(Part.TEST),
        KS,
        num_item_rows=dataset.items.ids.num_rows,
        remove_seen=not dataset.repeats,
        allowed=dataset.offered,
    )
    return found.mean()


def _spread(first: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return mean, standard deviation (of a sample) and values of each metric over the seeds."""
    spread = {}
    for metric in others[0]:
        values = [first[metric], *(figures[metric] for figures in others)]
        spread[metric] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "values": values,
        }
    return spread
