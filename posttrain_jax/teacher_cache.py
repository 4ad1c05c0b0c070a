"""A teacher's likeliest tokens over packed rows, kept in files.

`tokens.npy` [N, k] and `logp.npy` [N, k] hold one line for every place of the rows that bears loss,
row by row; `teacher.json` says what they are. They belong to exactly these rows, which is checked
by a digest. While they are made, each batch of rows is a part file of its own, named by its rows.

Log-probs in float16 (11 bits) move a probability p by at most 2^-11 p |log p|, which is less than
1.8e-4 wherever p is, and 2^-11 of a log-prob itself; bfloat16 would be 8 times as coarse in as many
bytes. float32 keeps them. Token ids take 2 bytes where the vocabulary allows.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from numpy.lib.format import open_memmap

from posttrain_jax.api import Array, Artifact, Teacher
from posttrain_jax.data.pack import Rows
from posttrain_jax.files import read_json, sync, write_json
from posttrain_jax.mesh import host_batch

ABOUT = "teacher.json"
DTYPES = ("float16", "float32")
_PART = re.compile(r"part-(\d+)-(\d+)\.npz")


class Cache(NamedTuple):
    """A finished cache, its arrays on disk.

    Attributes:
      starts: the line of each row's first place; one more for the end.
      mask: the rows' places that bear loss [rows, length].
    """

    tokens: np.ndarray
    logp: np.ndarray
    starts: np.ndarray
    mask: np.ndarray

    def take(self, mesh: Mesh, chosen: Sequence[int], k: int, weight_BT: Array) -> Teacher:
        """The k likeliest tokens of the chosen rows, on the mesh; a host reads only its part."""
        shape = (len(chosen), self.mask.shape[1], k)
        rows = np.asarray(chosen)
        tokens = host_batch(mesh, shape, lambda i: self._dense(self.tokens, rows[i], k, np.int32))
        logp = host_batch(mesh, shape, lambda i: self._dense(self.logp, rows[i], k, np.float32))
        return Teacher(tokens, logp, weight_BT)

    def _dense(self, lines: np.ndarray, rows: np.ndarray, k: int, dtype: Any) -> np.ndarray:
        """[rows, length, k], 0 where nothing bears loss."""
        out = np.zeros((len(rows), self.mask.shape[1], k), dtype)
        for place, row in enumerate(rows):
            found = lines[self.starts[row] : self.starts[row + 1], :k]
            out[place, self.mask[row] != 0] = found
        return out


def digest(rows: Rows) -> str:
    """Of the tokens, their segments and the places that bear loss."""
    sha = hashlib.sha256(str(rows.tokens.shape).encode())
    for array in (rows.tokens, rows.segments, rows.mask):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def write_part(
    folder: Path, first: int, tokens: np.ndarray, logp: np.ndarray, mask: np.ndarray
) -> None:
    """Keep what the teacher expects [rows, T, k] of the rows from `first` on, whole or not."""
    here = mask != 0
    name = f"part-{first:08d}-{first + len(mask):08d}.npz"
    partial = folder / f".{name}.{os.getpid()}"
    with open(partial, "wb") as file:
        np.savez(file, tokens=tokens[here], logp=logp[here])
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / name)


def missing_row(folder: Path, rows: Rows) -> int:
    """The first row that is not kept yet."""
    done = len(rows.mask) if (folder / ABOUT).exists() else 0
    for first, end, _ in _parts(folder):
        if first > done:
            break
        done = max(done, end)
    return done


def _parts(folder: Path) -> list[tuple[int, int, Path]]:
    """(first row, row after the last, file) of all parts, by their rows."""
    named = ((_PART.fullmatch(path.name), path) for path in folder.glob("part-*.npz"))
    return sorted((int(m[1]), int(m[2]), path) for m, path in named if m)


def merge(folder: Path, rows: Rows, dtype: str, vocab_size: int, **about: Any) -> list[float]:
    """Make the cache of its parts and remove them; nothing where that is done.

    Returns:
      the share of its mass that the teacher has on its tokens, a mean over each row's places.
    """
    if not (folder / ABOUT).exists():
        _join_parts(folder, rows, dtype, vocab_size, about)
    for _, _, path in _parts(folder):
        path.unlink()
    return read_json(folder / ABOUT)["mass"]


def _join_parts(folder: Path, rows: Rows, dtype: str, vocab_size: int, about: dict) -> None:
    starts = _starts(rows)
    types = {"tokens": np.uint16 if vocab_size <= 1 << 16 else np.int32, "logp": np.dtype(dtype)}
    shape, mass = (int(starts[-1]), about["k"]), []
    files = {
        name: open_memmap(folder / f"{name}.npy", "w+", kind, shape) for name, kind in types.items()
    }
    for first, end, path in _parts(folder):
        with np.load(path) as part:
            lines = slice(starts[first], starts[end])
            files["tokens"][lines], files["logp"][lines] = part["tokens"], part["logp"]
            named = np.exp(part["logp"].astype(np.float64)).sum(axis=1)
        for row in range(first, end):
            here = named[starts[row] - starts[first] : starts[row + 1] - starts[first]]
            mass += [float(here.mean())] if len(here) else []
    for name, file in files.items():
        file.flush()
        sync(folder / f"{name}.npy")
    write_json(folder / ABOUT, {**about, "dtype": dtype, "rows": digest(rows), "mass": mass})


def _starts(rows: Rows) -> np.ndarray:
    return np.concatenate([[0], np.cumsum((rows.mask != 0).sum(axis=1))])


def open_cache(artifact: Artifact, rows: Rows, k: int, temperature: float) -> tuple[Cache, int]:
    """The cache of these rows, and how many tokens a place to take of it.

    Args:
      k: 0 means all that it has.
      temperature: what the teacher's distributions must have been made at.

    Raises:
      ValueError: it is another thing's, of other rows, at another temperature, or has fewer tokens.
    """
    if not (artifact.path / ABOUT).exists():
        raise ValueError(
            f"{artifact.path} (stage {artifact.stage!r}, kind {artifact.kind!r}) holds no "
            "teacher's log-probs: inputs.teacher_logprobs needs a stage of kind 'teacher_logprobs'"
        )
    about = read_json(artifact.path / ABOUT)
    if about["rows"] != digest(rows):
        raise ValueError(
            f"the log-probs of stage {artifact.stage!r} are of other rows ({about['rows'][:12]}) "
            f"than this stage trains on ({digest(rows)[:12]}): data, system, length, seed, "
            "tokenizer and chat_template must be those of that stage"
        )
    if about["temperature"] != temperature:
        raise ValueError(
            f"temperature={temperature}, but stage {artifact.stage!r} kept the teacher's "
            f"distributions at {about['temperature']}: set one of the two"
        )
    if k > about["k"]:
        raise ValueError(f"k={k}, but stage {artifact.stage!r} kept k={about['k']} tokens a place")
    read = lambda name: np.load(artifact.path / f"{name}.npy", mmap_mode="r")  # noqa: E731
    return Cache(read("tokens"), read("logp"), _starts(rows), rows.mask), k or about["k"]
