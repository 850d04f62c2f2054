"""``twotower snapshot``."""

from pathlib import Path

from twotower.cli.output import console, say
from twotower.errors import BundleError


def command(bundle: Path, *, out: Path, journal: Path | None = None) -> None:
    """Write a bundle with the items that a server was told of since; it may serve meanwhile.

    Example: twotower snapshot model --out model-today

    Args:
        out: Folder of the new bundle.
        journal: File of what was written; BUNDLE.journal.
    """
    from twotower.extras import library

    for name in ("orjson", "prometheus_client"):
        library(name, wanted_by="snapshot", extra="serve")
    from twotower.serving.bundle import check_output
    from twotower.serving.server.engine import Model

    written = journal or Path(f"{bundle}.journal")
    if not written.is_file():
        raise BundleError(
            f"--journal must be what a server has written, got {str(written)!r}, which is not there; "
            "name another."
        )
    check_output(out)
    if out.resolve() == bundle.resolve():
        raise BundleError(f"--out must be another folder than the bundle, got {str(out)!r}.")
    model = Model(bundle, written)
    model.retriever.save(out)
    items = model.retriever.contents.num_items
    say(console(json_wanted=False), f"Wrote {out}: {items:,} items.")
