"""``rerank``: a bundle -> the same bundle with a second stage."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from twotower.arrays import Bools
from twotower.caller import argument, passing
from twotower.config import Config, RerankConfig
from twotower.data.dataset import KNOWN, Dataset, Part
from twotower.data.tables import Table
from twotower.errors import BundleError, DataError
from twotower.evaluation.evaluate_bundle import base_of, dataset_of
from twotower.evaluation.figures import without_second_stage
from twotower.evaluation.refit_notes import learnt_of
from twotower.evaluation.screen import second_stage_note
from twotower.features.transforms import Sides
from twotower.second_stage.ranker import Ranker
from twotower.serving.bundle import Contents, check_successor, write_bundle
from twotower.serving.journaled import opened, with_own_rows
from twotower.serving.retriever import Bundle, Retriever
from twotower.training.bundle_contents import model_card
from twotower.training.callbacks import Callback
from twotower.training.notebook import callback_of
from twotower.training.second_stage import check_second_stage, remembering, with_second_stage


@dataclass(frozen=True, eq=False, repr=False)
class Reranked:
    """What ``rerank`` returns.

    Args:
        contents: The contents of the new bundle, written or not.
        path: The folder of the new bundle; None if it is in memory only or was refused.
        refused: Why it was not written, as a sentence; None if it may be.
    """

    contents: Contents
    path: Path | None
    refused: str | None

    def __repr__(self) -> str:
        before, after = self.figures["valid"]
        place = "in memory" if self.path is None else f"at {str(self.path)!r}"
        state = place if self.refused is None else "refused"
        return f"Reranked(NDCG@10 {before:.4f} -> {after:.4f} on queries not learnt; {state})"

    @property
    def figures(self) -> dict[str, Any]:
        """How the second stage was chosen, as ``metrics.json`` keeps it under ``second_stage``."""
        return dict(self.contents.metrics["second_stage"])

    @cached_property
    def retriever(self) -> Retriever:
        """The new bundle, opened: it answers with the second stage."""
        return Retriever(self.contents, path=self.path or "")


def rerank(
    bundle: Bundle,
    interactions: Table | None = None,
    *,
    out: str | Path | None = None,
    candidates: int = RerankConfig().candidates,
    journal: str | Path | None = None,
    force: bool = False,
    progress: Callback | Literal["auto", "bar"] | None = "auto",
) -> Reranked:
    """Return a bundle with a second stage: trees that put its best items in order.

    The trees must learn from events that the model has not learnt. Those are the validation events of the
    bundle, or a table of later events. Towers, items and histories stay as they are, and so do the figures
    of the training; ``evaluate`` measures the new bundle.

    Args:
        bundle: The bundle, with histories; see ``Retriever.of``. A second stage that it has is replaced.
            One that is open is taken with the changes of its items.
        interactions: Events after those that the bundle knows, with the columns of the training's table.
            Those that it holds already, its test events included, are passed over. None for the validation
            events of the bundle.
        out: Where to write the new bundle; None keeps it in memory.
        candidates: How many of the best items the trees put in order, at least 2.
        journal: File of the changes that a server has written; None is ``BUNDLE.journal``, if it is there.
            The new bundle holds items that were added live, and does not offer those that were deleted.
        force: Whether to write a second stage that does not help on the held-out events, too.
        progress: As ``train`` takes it.

    Raises:
        BundleError: The bundle holds no histories or has learnt its validation events, or ``out`` cannot be
            written.
        ConfigError: ``candidates`` is out of its range.
        DataError: The table cannot be used or holds no new event, or too few queries have a relevant
            candidate.
        JournalError: The journal cannot be read.
        MissingExtraError: LightGBM is not installed; or the extra ``serve``, which reads a journal.
    """
    chosen = RerankConfig(use="on", candidates=candidates)
    target = check_successor(bundle, out)
    retriever = with_own_rows(opened(bundle, journal)[0])
    contents = retriever.contents
    config = replace(contents.config, rerank=chosen)
    check_second_stage(config)
    bar = callback_of(progress)
    try:
        bar.on_phase("second stage")
        dataset = _held_out(retriever, interactions)
        ranker = _fitted(retriever, dataset, config)
        known = dataset if interactions is None else dataset_of(retriever)
        ranker = remembering(ranker, known, *KNOWN)
        figures = {**ranker.figures, "depth": ranker.depth}
        metrics = without_second_stage(contents.metrics) | {"second_stage": figures}
        contents = replace(contents, ranker=ranker, config=config, metrics=metrics)
        if "model" in metrics:  # else nobody has measured it
            told = contents.provenance
            known = replace(known, name=told["data"], notes=tuple(told.get("notes", ())))
            contents = replace(contents, card=model_card(known, config, metrics))
        refused = None
        if figures["difference"][1] <= 0 and not force:
            refused = second_stage_note({"second_stage": {**figures, "kept": False}})
        if target is not None and refused is None:
            write_bundle(target, contents)
        return Reranked(contents, target if refused is None else None, refused)
    finally:
        bar.on_end()


def _held_out(retriever: Retriever, interactions: Table | None) -> Dataset:
    """Return the events of a bundle, with those that the trees may learn from as validation.

    Raises:
        BundleError: The bundle holds none that its model has not learnt.
    """
    metrics = retriever.contents.metrics
    if interactions is not None:
        dataset = dataset_of(retriever, interactions)
        is_asked = dataset.parts == Part.TEST
        is_new = _are_new(retriever.contents, dataset)
        if not is_new.any():
            raise DataError(
                f"{argument('interactions')} must hold a new event, got {is_asked.sum():,} that the bundle "
                "holds already; pass later events."
            )
        parts = np.where(dataset.parts == Part.VALID, Part.TRAIN, dataset.parts).astype(np.uint8)
        parts[is_asked] = Part.UNUSED
        parts[is_new] = Part.VALID
        return replace(dataset, parts=parts)
    dataset = dataset_of(retriever)
    if learnt_of(metrics) is not None or not (dataset.parts == Part.VALID).any():
        raise BundleError(
            f"the bundle {str(retriever.path)!r} must hold validation events that its model has not "
            f"learnt, got none; pass later events as {argument('interactions')}, or train it with "
            f"{passing(rerank='auto')}."
        )
    return dataset


def _are_new(contents: Contents, dataset: Dataset) -> Bools:
    """Return which test events a bundle holds neither in its histories nor in its own test: ``(E,)``.

    Events are the same if query, item and time are, as far as both sides know the time.
    """
    events, is_asked = dataset.interactions, dataset.parts == Part.TEST
    rows = {"query_rows": events.query_rows, "item_rows": events.item_rows}
    asked = pl.DataFrame({**rows, "times": events.times, "is_asked": is_asked})
    held, own = [asked.filter(~pl.col("is_asked"))], contents.targets
    assert own is not None
    tests = {"query_rows": own.owners.astype(np.int32), "item_rows": own.item_rows}
    held.append(pl.DataFrame({**tests, "times": own.times}))
    times = None if own.times is None else events.times
    has_times = times is not None and np.isfinite(times[is_asked]).all()
    by = [*rows, "times"] if has_times else [*rows]
    known = (
        pl.concat([each.select(by) for each in held]).unique().with_columns(is_held=pl.lit(True))
    )
    found = asked.select(by).join(known, on=by, how="left", maintain_order="left")["is_held"]
    return np.asarray(is_asked & found.is_null().to_numpy())


def _fitted(retriever: Retriever, dataset: Dataset, config: Config) -> Ranker:
    """Return the second stage that the validation part of a data set teaches.

    Raises:
        DataError: It holds too few queries.
    """
    contents = retriever.contents
    base = base_of(retriever, dataset)
    events = None if contents.events is None else contents.events.transforms
    sides = Sides(query=contents.queries.transforms, item=contents.items.transforms, event=events)
    found, said = with_second_stage(base, dataset, sides, config)
    if found is None:
        raise DataError(f"{said[0].partition(': ')[2]}; pass more later events.")
    return found.ranker
