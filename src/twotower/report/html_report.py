"""The report: one HTML file about a model, the verdict first."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twotower.doctor.findings import Finding, Language, worst_first
from twotower.doctor.model_features import Loss
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.evaluation.refit_notes import is_before
from twotower.report.charts import SHAPES, point_map
from twotower.report.figures_reader import Reading, number, whole
from twotower.report.html_files import render, write_page
from twotower.report.sections import (
    examples,
    groups,
    methods,
    model,
    profile,
    training,
    update,
    verdict,
)
from twotower.report.svg import svg_of
from twotower.report.wording import Say, metric_name, speaker, translated
from twotower.serving.retriever import Bundle, Retriever
from twotower.serving.titles import Titles, clean
from twotower.vocab import FIRST_ROW
from twotower.workers import beside

_MAP = (860, 560)


def write_report(
    bundle: Bundle,
    path: str | Path,
    *,
    language: Language = "en",
    findings: Sequence[Finding] = (),
    losses: Sequence[Loss] = (),
    private: bool = False,
) -> None:
    """Write the report of a bundle: one HTML file that needs nothing else, under 3 MB.

    The page shows the figures that the bundle holds, and says which are missing. The same bundle always
    gives the same page.

    Args:
        bundle: The path of a bundle, or an opened one; see ``Retriever.of``.
        path: The path of the file; an existing file is replaced.
        language: ``"en"`` or ``"zh"``.
        findings: The findings of the doctor.
        losses: What the answers lose without each input of the model.
        private: Whether the example queries are named by numbers in place of their ids and shown without
            their features, and the columns of queries are left out.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    retriever = Retriever.of(bundle)
    contents, titles = retriever.contents, Titles(retriever.contents.items)
    say = speaker(language, is_before=is_before(contents.metrics))
    reading = Reading(contents.metrics)
    manifest, provenance = training.manifest_of(retriever), contents.provenance
    best, epochs = provenance.get("best_epoch"), training.epochs_of(contents.log)
    among_labels = contents.config.training.validate_among == "labels"
    slices = reading.figures.get("slices") or []
    shown = examples.examples(retriever, titles, private=private)
    title = "examples_none" if not shown else "example" if len(shown) == 1 else "examples"
    dataset = None if contents.histories is None else dataset_of(retriever)
    scores = None if dataset is None else model.test_scores(retriever, dataset)
    offered = slice(FIRST_ROW, None) if contents.offered is None else contents.offered
    sides = [contents.items] if private else [contents.queries, contents.items]

    def map_of_items() -> dict[str, Any] | None:
        return _map(model.item_map(retriever, titles), contents.num_items, say)

    def without_map() -> Callable[..., str]:
        return partial(
            render,
            "report.html",
            language=language,
            t=say,
            name=clean(provenance.get("data", "")),
            manifest=manifest,
            headline=verdict.headline(reading, say),
            deck=verdict.deck(reading, say),
            keys=verdict.key_figures(reading, say),
            update_lead=update.lead(reading.figures, say),
            update_reasons=update.reasons(reading.figures, language),
            update_table=update.table(reading.figures, say),
            methods=methods.methods_chart(reading, say) if reading.methods else None,
            methods_table=methods.methods_table(reading, say),
            all_figures=methods.all_figures_table(reading, say),
            baseline_settings=methods.baseline_settings(reading, say),
            left_out=methods.left_out(reading, say, language),
            curves=methods.curve_charts(reading, say),
            worst=groups.worst_groups(slices, reading, say),
            known=methods.known_events_chart(reading, say),
            groups=groups.group_charts(slices, reading, say),
            groups_table=groups.groups_table(slices, reading, say) if slices else None,
            scores=None if scores is None else model.scores_chart(scores, say),
            scores_above="" if scores is None else number(100 * scores.above, 1),
            importance=model.importance_chart(losses, say),
            events=None if dataset is None else profile.events_chart(dataset, say),
            has_events=dataset is not None,
            tail=profile.tail_chart(contents.popularity[offered], dataset, say),
            columns=profile.column_profiles(sides, say),
            training=training.training_charts(epochs, best, say),
            time_chart=training.time_chart(provenance.get("seconds", {}), say),
            training_lead=training.summary(
                epochs,
                best,
                say,
                among_labels=among_labels,
                solver=contents.config.training.solver,
            ),
            learnt_shares=training.learnt_shares(contents, say),
            decided=training.decided(contents.log, say),
            decided_lead=say("decided", metric=metric_name(say, contents.config.training.metric)),
            exposure=methods.exposure_charts(reading, say),
            exposure_table=methods.exposure_table(reading, say),
            dim=contents.item_vectors.shape[1],
            examples=shown,
            examples_title=say(title, count=len(shown)),
            examples_named=say("examples_private" if private else "examples_ids"),
            depth=examples.DEPTH,
            findings=[finding.as_json(language) for finding in worst_first(findings)],
            settings=training.settings_of(contents.config),
            features=[
                (feature, translated(feature.reason, language))
                for side in (contents.queries, contents.items)
                for feature in side.transforms.features
            ],
            provenance=training.provenance(retriever, manifest, say),
            notes=[translated(note, language) for note in provenance.get("notes", ())],
        )

    # The map takes two thirds of the time.
    drawn, page = beside(map_of_items, without_map)
    write_page(Path(path), page(map=drawn))


def _map(found: model.ItemMap | None, everything: int, say: Say) -> dict[str, Any] | None:
    if found is None:
        return None
    count = len(found.points)
    label = say("map_plain", count=whole(count))
    if found.column is not None:
        values = ", ".join(found.groups)
        label = say("map_chart", count=whole(count), column=found.column, values=values)
    note = say("map_of", shown=whole(count), all=whole(everything)) if count < everything else ""
    spec = point_map(found.points, width=_MAP[0], height=_MAP[1])
    groups_shown = list(zip(found.groups, SHAPES, strict=False))
    drawn = svg_of(spec, label=label)
    return {"drawn": drawn, "column": found.column, "groups": groups_shown, "note": note}
