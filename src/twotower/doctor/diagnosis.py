"""What the doctor finds in a bundle: in the data that it holds, and in its model."""

from twotower.doctor.checks import ExaminedModel, findings_of
from twotower.doctor.data_checks import diagnose_dataset, of_held_columns
from twotower.doctor.findings import Finding, worst_first
from twotower.doctor.model_answers import Trial
from twotower.doctor.model_features import Loss
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.evaluation.refit_notes import learnt_of
from twotower.serving.retriever import Bundle, Retriever

Examined = tuple[list[Finding], list[Loss]]
"""The findings, the worst first, and what the answers lose without the history and without each feature
that is read; no losses where too few queries are known."""


def diagnose_bundle(bundle: Bundle) -> list[Finding]:
    """Return all findings about a bundle's data and model, the worst first.

    Args:
        bundle: The path of a bundle, or an opened one; see ``Retriever.of``.
    """
    return examine_bundle(bundle)[0]


def examine_bundle(bundle: Bundle) -> Examined:
    """Return all findings about a bundle's data and model, and what the answers lose.

    A bundle without histories has findings about the model only, and one that says what was not checked.

    Args:
        bundle: The path of a bundle, or an opened one; see ``Retriever.of``.
    """
    retriever = Retriever.of(bundle)
    contents = retriever.contents
    found, losses = examine_model(retriever)
    if contents.histories is None:
        found.append(Finding.of("not-looked-at: no histories", "info", 0))
    elif not contents.popularity.any():
        found.append(Finding.of("not-looked-at: items alone", "info", 0))
    else:
        dataset = dataset_of(retriever)
        found += diagnose_dataset(dataset, config=of_held_columns(contents.config, dataset))
    return worst_first(found), losses


def diagnose_model(retriever: Retriever) -> list[Finding]:
    """Return the findings about a trained model, the worst first; see ``examine_model``."""
    return examine_model(retriever)[0]


def examine_model(retriever: Retriever) -> Examined:
    """Return the findings about a trained model, and what its answers lose.

    Loss, item vectors and vocabularies are checked in every bundle. A bundle with histories is also asked
    up to 1,000 of its validation queries, and again with the history and each feature shuffled between
    them. The test is not touched.

    Args:
        retriever: An opened bundle, or ``trained.retriever``.

    Raises:
        ValueError: A score is NaN; the query is named.
    """
    contents, seen = retriever.contents, ExaminedModel(retriever)
    found = findings_of(seen, "bundle")
    if contents.histories is not None and contents.popularity.any():
        seen.dataset = dataset_of(retriever)
        found += findings_of(seen, "histories")
        trial = Trial(retriever, seen.dataset)
        if learnt_of(contents.metrics) is not None:
            found.append(Finding.of("not-looked-at: refit", "info", len(trial)))
        elif len(trial) > 1:
            seen.trial = trial
            _ = seen.answers  # first of all: an error about a score names the query
            found += findings_of(seen, "answers")
        else:
            found.append(Finding.of("not-looked-at: few queries", "info", len(trial)))
    return worst_first(found), seen.losses
