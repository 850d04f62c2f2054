"""A bundle with the changes that a server wrote into its journal."""

from pathlib import Path

from twotower.caller import argument
from twotower.errors import BundleError
from twotower.extras import library
from twotower.serving.bundle import Contents
from twotower.serving.live_items import LiveIds, as_written, settled
from twotower.serving.retriever import Bundle, Retriever


def opened(bundle: Bundle, journal: str | Path | None) -> tuple[Retriever, Contents]:
    """Return a bundle, and its contents with one row for each item that is or was in the catalogue.

    Args:
        bundle: See ``Retriever.of``. One that is open is taken with the changes that it has.
        journal: File of the changes; None is ``BUNDLE.journal``, if it is there.

    Raises:
        BundleError: The bundle cannot be opened, or ``journal`` is not there.
        JournalError: The journal cannot be read.
        MissingExtraError: The extra ``serve``, which reads journals, is not installed.
    """
    path = Path(bundle) if isinstance(bundle, str | Path) else None
    if path is None and journal is not None:
        raise BundleError(
            f"{argument('journal')} must go with the path of a bundle, got an opened one; leave it out, or "
            "pass the path."
        )
    if journal is not None and not Path(journal).is_file():
        raise BundleError(
            f"{argument('journal')} must be what a server has written, got {str(journal)!r}, which is not "
            "there; name another."
        )
    retriever = Retriever.of(bundle)
    if path is not None:
        written = Path(f"{path}.journal") if journal is None else Path(journal)
        if written.is_file():
            _catch_up(retriever, path, written)
    contents, _ = settled(retriever.contents, retriever.index.item_vectors)
    return retriever, contents


def with_own_rows(retriever: Retriever) -> Retriever:
    """Return a retriever with one row for each item, as a bundle is written."""
    contents, model = retriever.contents, retriever.encoding.model
    if not isinstance(contents.items.ids, LiveIds):
        return retriever
    own = {f"{side}_tower": getattr(model, f"{side}_tower").module for side in contents.custom}
    contents = as_written(contents, retriever.index.item_vectors)
    return Retriever(contents, device=str(retriever.device), path=retriever.path, **own)


def _catch_up(retriever: Retriever, path: Path, journal: Path) -> None:
    for name in ("orjson", "prometheus_client"):
        library(name, wanted_by="journal", extra="serve")
    from twotower.serving.server.catalogue import Catalogue
    from twotower.serving.server.pointer import digest_of

    catalogue = Catalogue(retriever, digest_of(path), journal)
    try:
        catalogue.catch_up()
    finally:
        catalogue.close()
