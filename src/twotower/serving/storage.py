"""The files that a bundle is made of: tables as Arrow, tensors and arrays as safetensors."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from twotower.histories import Histories
from twotower.vocab import FIRST_ROW, Vocabulary

_ALIGNMENT = 64
"""Bytes of which the place of a tensor in memory is a multiple."""


@dataclass(frozen=True)
class ListedFiles:
    """The files of a bundle that its manifest lists. Nothing else in the folder is read.

    Args:
        folder: The bundle.
        names: The files' names in it, with ``/`` between folders.
    """

    folder: Path
    names: frozenset[str]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def path(self, name: str) -> Path:
        """Return the place of a file.

        Raises:
            ValueError: The manifest does not list it.
        """
        if name not in self.names:
            raise ValueError(f"the manifest does not list {name}")
        return self.folder / name

    def text(self, name: str) -> str:
        """Return the content of a text file.

        Raises:
            OSError: It cannot be read.
            ValueError: The manifest does not list it, or it is not UTF-8.
        """
        return self.path(name).read_text(encoding="utf-8")

    def json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file.

        Raises:
            OSError: It cannot be read.
            RecursionError: Its objects are nested too deeply.
            ValueError: The manifest does not list it, or it is no JSON, no object, or holds half a
                character.
        """
        found = json.loads(self.text(name))
        if not isinstance(found, dict):
            raise ValueError(f"{name} must hold an object, got {type(found).__name__}")
        json.dumps(found, ensure_ascii=False).encode()  # a lone surrogate could not be printed
        return found


def write_arrow(frame: pl.DataFrame, file: Path) -> None:
    """Write a table as an Arrow IPC file.

    Raises:
        OSError: The disk is full, or the like.
        polars.exceptions.PolarsError: A column cannot be written.
    """
    try:
        with file.open("wb") as opened:
            frame.write_ipc(opened)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _with_number(error) from error


def read_arrow(file: Path) -> pl.DataFrame:
    """Return the table of an Arrow IPC file."""
    with file.open("rb") as opened:  # of a path polars would take [ and * for a pattern
        return pl.read_ipc(opened)


def read_vocabulary(file: Path) -> Vocabulary:
    """Return the vocabulary of a table with one column of ids.

    Raises:
        ValueError: It has another number of columns, or its values are no distinct ids.
    """
    frame = read_arrow(file)
    if frame.width != 1:
        raise ValueError(f"{file.name} must have one column, got {frame.width}")
    return Vocabulary(frame.to_series())


def save_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name.

    Raises:
        OSError: The disk is full, or the like.
        ValueError: A tensor cannot be written.
    """
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(_apart(tensors), file)
        file.chmod(mode)  # safetensors lets nobody but the owner read, whatever the umask
    except SafetensorError as error:
        raise _with_number(ValueError(str(error))) from error


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors that share no memory, as safetensors asks: two towers may share weights."""
    result: dict[str, torch.Tensor] = {}
    held: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if place in held else tensor
        held.add(place)
    return result


def load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Return what ``save_tensors`` wrote, mapped into memory.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else.
    """
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file.name}: {error}") from error


def save_item_vectors(file: Path, vectors: torch.Tensor) -> None:
    """Write the vectors of items after zeros for the reserved rows, so that all rows can be mapped at once.

    The file is one of safetensors. Its header is filled with spaces until the rows begin at a multiple of
    64 bytes, as tensors in memory do: the order in which a product of matrices sums depends on that, so at
    another place scores would differ in the last bit.

    Args:
        file: To write.
        vectors: ``(I, dim)`` float32 on the CPU, real items only.

    Raises:
        OSError: The disk is full, or the like.
    """
    described = _layout(*vectors.shape)
    header = json.dumps(described).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little"))
        opened.write(header)
        opened.write(bytes(4 * FIRST_ROW * vectors.shape[1]))
        opened.write(np.ascontiguousarray(vectors.numpy(), "<f4").data)


def load_item_vectors(file: Path) -> torch.Tensor:
    """Return the vectors of items: ``(I, dim)``, mapped into memory.

    They are the rest of a mapping whose first rows are the reserved ones. Files of earlier releases lack
    these rows; then the vectors alone are mapped.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else.
    """
    tensors = load_tensors(file)  # which checks the header
    vectors = tensors["vectors"]
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        described = json.loads(opened.read(size))
    if vectors.ndim != 2 or described != _layout(*vectors.shape) or tensors["reserved"].any():
        return vectors
    num_items, dim = vectors.shape
    # Copied where it is written to, which nobody does: torch wants an array that may be written to.
    rows = np.memmap(file, np.float32, "c", 8 + size, (FIRST_ROW + num_items, dim))
    return torch.from_numpy(rows)[FIRST_ROW:]


def _layout(num_items: int, dim: int) -> dict[str, Any]:
    """Return what the header of a file of item vectors says: first the reserved rows, then the vectors."""
    begin, end = 4 * FIRST_ROW * dim, 4 * (FIRST_ROW + num_items) * dim
    return {
        "reserved": {"dtype": "F32", "shape": [FIRST_ROW, dim], "data_offsets": [0, begin]},
        "vectors": {"dtype": "F32", "shape": [num_items, dim], "data_offsets": [begin, end]},
    }


def save_arrays(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays by name; see ``save_tensors``."""
    save_tensors(file, {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()})


def load_arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    """Return what ``save_arrays`` wrote."""
    return {name: tensor.numpy() for name, tensor in load_tensors(file).items()}


def save_ragged(
    file: Path, ragged: Histories, columns: Mapping[str, npt.NDArray[Any] | None]
) -> None:
    """Write a ragged array with columns of its events; those that are None are left out."""
    arrays: dict[str, npt.NDArray[Any] | None] = {
        "offsets": ragged.offsets,
        "item_rows": ragged.item_rows,
        "times": ragged.times,
        **columns,
    }
    save_arrays(file, {name: array for name, array in arrays.items() if array is not None})


def load_ragged(file: Path) -> tuple[Histories, dict[str, npt.NDArray[Any]]]:
    """Return the ragged array and the columns that ``save_ragged`` wrote, by name."""
    arrays = load_arrays(file)
    offsets, item_rows, times = (
        arrays.pop(name, None) for name in ("offsets", "item_rows", "times")
    )
    if offsets is None or item_rows is None:
        raise ValueError(f"{file.name} must hold offsets and item_rows, got {', '.join(arrays)}")
    return Histories(offsets, item_rows, times), arrays


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files of text by their names into a folder."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _with_number(error: Exception) -> Exception:
    """Return the error of a library written in Rust as an OSError with a number, where it is one."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return error
    number = int(found.group(1))
    return OSError(number, os.strerror(number))


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
