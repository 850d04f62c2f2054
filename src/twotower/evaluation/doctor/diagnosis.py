"""What the doctor finds in a bundle: in the data that it remembers, and in its model."""

from twotower.evaluation.bundles import dataset_of
from twotower.evaluation.doctor.data_checks import diagnose_dataset
from twotower.evaluation.doctor.findings import Finding, worst_first
from twotower.evaluation.doctor.model_checks import diagnose_model
from twotower.serving.retriever import Retriever


def diagnose_bundle(retriever: Retriever) -> list[Finding]:
    """Return all findings, the worst first; without histories in the bundle, those of the model.

    Args:
        retriever: The opened bundle.
    """
    contents = retriever.contents
    found = list(diagnose_model(retriever))
    if contents.histories is not None:
        found += diagnose_dataset(dataset_of(retriever), config=contents.config)
    return worst_first(found)
