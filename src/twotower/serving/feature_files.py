"""The fitted features of a bundle as files: vocabularies, constants, and data that columns share."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from twotower.dataclass_trees import check_fields
from twotower.features.architecture import FILES, Architecture
from twotower.features.base import Transform
from twotower.features.forms import FORMS
from twotower.features.schema import Feature, Side
from twotower.features.transforms import SideTransforms, transform_of
from twotower.features.tuned import TokenIdsTransform
from twotower.features.windows import WindowsTransform, WordVectors
from twotower.serving import storage
from twotower.serving.content_checks import check_array
from twotower.serving.storage import ListedFiles
from twotower.toml import toml_value

ENCODER = "encoder"
"""Folder with the architecture and the tokenizer of a fine-tuned sentence encoder."""
WORDS = "words"
"""Folder with pretrained word vectors."""


def write_transforms(folder: Path, side: str, transforms: SideTransforms) -> None:
    """Write the fitted features of a side, and the data that columns share if it is not there yet."""
    for number, transform in enumerate(transforms.transforms):
        stem = f"{side}.{number}"
        if transform.vocabulary is not None:
            frame = transform.vocabulary.ids.to_frame()
            storage.write_arrow(frame, folder / "vocab" / f"{stem}.arrow")
        if transform.numbers:
            storage.save_arrays(folder / "transforms" / f"{stem}.safetensors", transform.numbers)
        if isinstance(transform, TokenIdsTransform) and not (folder / ENCODER).is_dir():
            storage.write_texts(folder / ENCODER, transform.architecture.files())
        if isinstance(transform, WindowsTransform) and not (folder / WORDS).is_dir():
            (folder / WORDS).mkdir()
            shared = transform.word_vectors
            storage.write_arrow(shared.words.ids.to_frame(), folder / WORDS / "words.arrow")
            storage.save_arrays(folder / WORDS / "vectors.safetensors", {"vectors": shared.vectors})


def read_words(files: ListedFiles) -> WordVectors | None:
    """Return the pretrained word vectors of a bundle, which columns share; None if there are none.

    Raises:
        ValueError: Their number is not that of the words, or they are not finite.
    """
    if f"{WORDS}/words.arrow" not in files:
        return None
    words = storage.read_vocabulary(files.path(f"{WORDS}/words.arrow"))
    vectors = storage.load_arrays(files.path(f"{WORDS}/vectors.safetensors"))["vectors"]
    check_array("the word vectors", vectors, (words.num_rows, None), np.float16)
    return WordVectors(words, vectors)


def read_transforms(
    files: ListedFiles, side: Side, entries: Iterable[Any], words: WordVectors | None
) -> SideTransforms:
    """Return what ``write_transforms`` wrote.

    Args:
        files: The files of the bundle.
        side: The side.
        entries: The entry of each feature that ``features_toml`` wrote.
        words: The result of ``read_words``.

    Raises:
        ValueError: A feature or its fitted data is not something that ``fit`` produces.
        TypeError: An entry has other keys than a feature.
    """
    features = tuple(Feature(side=side, **entry) for entry in entries)
    _check_features(features, files.folder)
    transforms: list[Transform] = []
    for number, feature in enumerate(f for f in features if f.is_fed):
        stem = f"{side}.{number}"
        vocabulary, numbers = None, {}
        if f"vocab/{stem}.arrow" in files:
            vocabulary = storage.read_vocabulary(files.path(f"vocab/{stem}.arrow"))
        if f"transforms/{stem}.safetensors" in files:
            numbers = storage.load_arrays(files.path(f"transforms/{stem}.safetensors"))
        kind = transform_of(feature)
        if feature.tuned:
            texts = {name: files.text(f"{ENCODER}/{name}") for name in FILES}
            architecture = Architecture.from_files(texts)
            transforms.append(TokenIdsTransform(feature, vocabulary, numbers, architecture))
        elif issubclass(kind, WindowsTransform):
            if words is None:
                raise ValueError(f"{feature.name!r} is read by windows, without words")
            transforms.append(WindowsTransform(feature, vocabulary, numbers, words))
        else:
            transforms.append(kind(feature, vocabulary, numbers))
        transforms[-1].check()
    return SideTransforms(features, tuple(transforms))


def _check_features(features: Sequence[Feature], folder: Path) -> None:
    """Refuse features that no schema has.

    Raises:
        ValueError: A field has a wrong type, a name is repeated, or an encoder lies in the bundle. A file
            in a bundle must never pass for the encoder that the user chose.
    """
    for feature in features:
        check_fields(feature)
        is_odd = feature.buckets < 0 or (feature.tuned and feature.spec.needs != "sentence_encoder")
        if is_odd or (feature.form and feature.form not in FORMS):
            raise ValueError(f"the column {feature.name!r} is described as no column can be")
        if feature.encoder and _is_within(feature.encoder, folder):
            raise ValueError(
                f"the sentence encoder of {feature.name!r} lies in the bundle itself; bundles hold none"
            )
    names = [feature.name for feature in features]
    if len(set(names)) < len(names):
        raise ValueError(f"columns must have distinct names, got {', '.join(names)}")


def _is_within(path: str, folder: Path) -> bool:
    """Return whether a path leads into a folder, also by links."""
    try:
        place = Path(path).resolve()
        return place.exists() and place.is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a cycle of links, or a name that no file can have
        return False


def features_toml(transforms: SideTransforms) -> list[str]:
    """Return the lines of TOML that describe each feature of a side."""
    lines = []
    for feature in transforms.features:
        lines.append(f"[[{feature.side}.features]]")
        entries = {k: v for k, v in asdict(feature).items() if k != "side"}
        lines += [f"{key} = {toml_value(value)}" for key, value in entries.items()]
        lines.append("")
    return lines
