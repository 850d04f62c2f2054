"""The files that a bundle is made of: tables as Arrow, tensors and arrays as safetensors."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from twotower.features.histories import Histories
from twotower.vocab import Vocabulary


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
    """Return the vocabulary of a table with one column of ids."""
    return Vocabulary(read_arrow(file).to_series())


def save_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name.

    Raises:
        OSError: The disk is full, or the like.
        ValueError: A tensor cannot be written.
    """
    try:
        save_file(_apart(tensors), file)
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
    """Return the ragged array and all columns that ``save_ragged`` wrote, by name."""
    arrays = load_arrays(file)
    return Histories(arrays["offsets"], arrays["item_rows"], arrays.get("times")), arrays


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files of text by their names into a folder that is made."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def read_texts(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return files that ``write_texts`` wrote; others may have come to lie beside them."""
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


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
