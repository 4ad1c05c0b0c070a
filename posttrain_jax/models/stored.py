"""Safetensors files: which tensors a file or a folder of them holds, read by mapping.

A file is 8 bytes of header length, a JSON header (name -> dtype, shape, offsets) and the tensors,
row by row (https://github.com/huggingface/safetensors, "Format"). Each read maps only the tensor
that is asked for, and gives it back as a view: what is sliced off is never read, and nothing stays
in memory once the view is dropped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Safetensors' names of types."""
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Those that a weight may have as it is."""


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
      file: where it is.
      dtype: safetensors' name of the type that `read` gives.
      shape: in the file's layout.
      read: `() -> array`.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_safetensors(path: Path) -> dict[str, Stored]:
    """`{tensor name: Stored}` of one file; only its header is read.

    Raises:
      ValueError: not a safetensors file, or cut off; says by how many bytes and in which tensor.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= size - 8:
            raise ValueError(
                f"{path} is not a whole safetensors file: expected 8 bytes of header length and "
                f"the header, got {size} bytes and length {length}"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    header.pop("__metadata__", None)
    base = 8 + length
    found = {name: _entry(path, name, said, base, size) for name, said in header.items()}
    end = base + max((said["data_offsets"][1] for said in header.values()), default=0)
    if end != size:
        raise ValueError(
            f"{path} is not a whole safetensors file: expected {end} bytes, got {size}"
        )
    return found


def _entry(path: Path, name: str, said: Mapping[str, Any], base: int, size: int) -> Stored:
    shape, (start, end) = tuple(said["shape"]), said["data_offsets"]
    kind = DTYPES.get(said["dtype"])
    if base + end > size:
        raise ValueError(
            f"{path} is not a whole safetensors file: tensor {name} ends at byte {base + end}, "
            f"the file has {size}"
        )
    if kind is not None and math.prod(shape) * kind.itemsize != end - start:
        raise ValueError(
            f"{path}: tensor {name}: expected {math.prod(shape) * kind.itemsize} bytes for "
            f"{said['dtype']} {shape}, got {end - start}"
        )

    def read() -> np.ndarray:
        if kind is None:
            raise ValueError(f"{path}: tensor {name}: unknown type {said['dtype']}")
        if not end - start:
            return np.empty(shape, kind)
        raw = np.memmap(path, np.uint8, "r", offset=base + start, shape=(end - start,))
        return raw.view(np.ndarray).view(kind).reshape(shape)

    return Stored(path, said["dtype"], shape, read)


def open_weights(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model folder: of model.safetensors, or of the files that the index names.

    Raises:
      FileNotFoundError: no weights, or a file that the index names is missing.
      ValueError: a damaged file, an index that contradicts the files, or both kinds at once.
    """
    index, single = folder / INDEX_FILE, folder / WEIGHTS_FILE
    if index.is_file() and single.is_file():
        raise ValueError(
            f"{folder} holds both {WEIGHTS_FILE} and {INDEX_FILE}: which of them is the model "
            "is not known; remove one"
        )
    if single.is_file():
        return read_safetensors(single)
    if not index.is_file():
        raise FileNotFoundError(f"no {single}; expected {WEIGHTS_FILE} or {INDEX_FILE}")
    try:
        where = json.loads(index.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{index} is not an index of weights: {error!r}") from None
    return _indexed(index, where)


def _indexed(index: Path, where: Mapping[str, str]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for file in sorted(set(where.values())):
        named = {name for name, holder in where.items() if holder == file}
        path = index.parent / file
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path}: {index.name} expects {len(named)} tensors in it, such as "
                f"{min(named)}; the download or copy is not complete"
            )
        held = read_safetensors(path)
        if held.keys() != named:
            odd = min(held.keys() ^ named)
            there = "holds it" if odd in held else "does not hold it"
            raise ValueError(
                f"{index} contradicts {path}: tensor {odd} is expected in "
                f"{where.get(odd, 'no file')}, and {file} {there}"
            )
        found |= held
    return found
