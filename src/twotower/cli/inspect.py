"""``twotower inspect``."""

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from twotower.cli.output import console, print_json, say


def command(bundle: Path, *, json: bool = False) -> None:
    """Show what a bundle holds: data, features, settings, figures, sizes.

    Example: twotower inspect model
    """
    from twotower.evaluation.refit_notes import note as refit_note
    from twotower.evaluation.screen import (
        figures_table,
        index_note,
        second_stage_note,
        update_table,
    )
    from twotower.serving.bundle import open_bundle
    from twotower.serving.manifest import check_bundle

    manifest = check_bundle(bundle)
    contents = open_bundle(bundle)
    features = [*contents.queries.transforms.features, *contents.items.transforms.features]
    sizes = {name: (bundle / name).stat().st_size for name in manifest["files"]}
    described: dict[str, Any] = {
        "path": str(bundle),
        "format_version": manifest["format_version"],
        "created": manifest["created"],
        "libraries": manifest["libraries"],
        "provenance": manifest["provenance"],
        "queries": len(contents.queries.ids),
        "items": contents.num_items,
        "dim": contents.item_vectors.shape[1],
        "weights": sum(weight.numel() for weight in contents.weights.values()),
        "histories": contents.histories is not None,
        "private": contents.is_private,
        "index": "exact" if contents.lists is None else "approximate",
        "second_stage": contents.ranker is not None,
        "custom_towers": list(contents.custom),
        "bytes": sum(sizes.values()),
        "files": sizes,
        "features": [
            {"side": f.side, "name": f.name, "kind": f.kind, "tuned": f.tuned, "because": f.reason}
            for f in features
        ],
        "config": contents.config.to_dict(),
        "figures": contents.metrics,
    }
    if json:
        print_json(described)
        return
    screen = console(json_wanted=False)
    say(
        screen,
        f"{bundle}: {described['queries']:,} queries, {described['items']:,} items, "
        f"dim {described['dim']}, {described['weights']:,} weights, "
        f"{described['bytes'] / 1e6:.1f} MB, written {manifest['created']} by twotower "
        f"{manifest['libraries']['twotower']}",
        *manifest["provenance"]["notes"],
    )
    table = Table("feature", "side", "kind", "because")
    for feature in features:
        table.add_row(Text(feature.name), feature.side, feature.described, Text(feature.reason))
    screen.print(table)
    if "model" in contents.metrics:  # nothing was measured of texts that were indexed alone
        screen.print(figures_table(dict(contents.metrics)))
    said = refit_note(contents.metrics)
    if said is not None:
        say(screen, said)
    if "update" in contents.metrics:
        screen.print(update_table(contents.metrics["update"]))
    if "second_stage" in contents.metrics:
        say(screen, second_stage_note(contents.metrics))
    if "index" in contents.metrics:
        say(screen, index_note(contents.metrics["index"]))
    say(screen, f"All settings: {bundle / 'config.toml'}")
