"""The fitted features of a bundle as files: vocabularies, constants, and what several columns share."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twotower.features.architecture import FILES, Architecture
from twotower.features.base import Transform
from twotower.features.schema import Feature, Side
from twotower.features.token_ids import TokenIdsTransform
from twotower.features.transforms import TRANSFORMS, SideTransforms
from twotower.features.windows import WindowsTransform
from twotower.features.word_vectors import WordVectors
from twotower.serving.files import (
    load_arrays,
    read_texts,
    read_vocabulary,
    save_arrays,
    write_arrow,
    write_texts,
)
from twotower.toml import toml_value

ENCODER = "encoder"
"""Folder with the architecture and the tokenizer of a sentence encoder that was trained."""
WORDS = "words"
"""Folder with the pretrained vectors of words."""


def write_transforms(folder: Path, side: str, transforms: SideTransforms) -> None:
    """Write the fitted features of a side, and what all columns share where it is not there yet."""
    for number, transform in enumerate(transforms.transforms):
        stem = f"{side}.{number}"
        if transform.vocabulary is not None:
            frame = transform.vocabulary.ids.to_frame()
            write_arrow(frame, folder / "vocab" / f"{stem}.arrow")
        if transform.numbers:
            save_arrays(folder / "transforms" / f"{stem}.safetensors", transform.numbers)
        if isinstance(transform, TokenIdsTransform) and not (folder / ENCODER).is_dir():
            write_texts(folder / ENCODER, transform.architecture.files())
        if isinstance(transform, WindowsTransform) and not (folder / WORDS).is_dir():
            (folder / WORDS).mkdir()
            shared = transform.word_vectors
            write_arrow(shared.words.ids.to_frame(), folder / WORDS / "words.arrow")
            save_arrays(folder / WORDS / "vectors.safetensors", {"vectors": shared.vectors})


def read_words(folder: Path) -> WordVectors | None:
    """Return the pretrained vectors of words that columns of a bundle share; None where there are none.

    Raises:
        ValueError: They are not as many as the words.
    """
    if not (folder / WORDS).is_dir():
        return None
    words = read_vocabulary(folder / WORDS / "words.arrow")
    vectors = load_arrays(folder / WORDS / "vectors.safetensors")["vectors"]
    if len(vectors) != words.num_rows:
        raise ValueError(f"{len(words)} words, {len(vectors)} vectors")
    return WordVectors(words, vectors)


def read_transforms(
    folder: Path, side: Side, entries: Iterable[Any], words: WordVectors | None
) -> SideTransforms:
    """Return what ``write_transforms`` wrote.

    Args:
        folder: The bundle.
        side: Which side it is.
        entries: Of each feature, what ``features_toml`` wrote.
        words: From ``read_words``.

    Raises:
        ValueError: A column is read by windows, and there are no words.
    """
    features = tuple(Feature(side=side, **entry) for entry in entries)
    transforms: list[Transform] = []
    for number, feature in enumerate(f for f in features if f.is_fed):
        stem = f"{side}.{number}"
        vocabulary, numbers = None, {}
        if (folder / "vocab" / f"{stem}.arrow").is_file():
            vocabulary = read_vocabulary(folder / "vocab" / f"{stem}.arrow")
        if (folder / "transforms" / f"{stem}.safetensors").is_file():
            numbers = load_arrays(folder / "transforms" / f"{stem}.safetensors")
        if feature.tuned:
            architecture = Architecture.from_files(read_texts(folder / ENCODER, FILES))
            transforms.append(TokenIdsTransform(feature, vocabulary, numbers, architecture))
        elif feature.kind == "windows":
            if words is None:
                raise ValueError(f"{feature.name!r} is read by windows, without words")
            transforms.append(WindowsTransform(feature, vocabulary, numbers, words))
        else:
            transforms.append(TRANSFORMS[feature.kind](feature, vocabulary, numbers))
    return SideTransforms(features, tuple(transforms))


def features_toml(transforms: SideTransforms) -> list[str]:
    """Return the lines of TOML that describe each feature of a side."""
    lines = []
    for feature in transforms.features:
        lines.append(f"[[{feature.side}.features]]")
        entries = {k: v for k, v in asdict(feature).items() if k != "side"}
        lines += [f"{key} = {toml_value(value)}" for key, value in entries.items()]
        lines.append("")
    return lines
