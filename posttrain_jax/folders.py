"""Folders that appear whole or not at all, whenever the process that writes them dies.

Everything is written into a hidden folder beside the target and synced. A target that is not there
yet then takes its place by one rename. In a folder that is there, the files are replaced between
the removal of its marker and the arrival of the new one: until then it is not a whole one, for
whoever looks for the marker. For a model folder that is config.json, without which neither
`transformers` nor we read anything.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from posttrain_jax.files import sync


@contextmanager
def whole_folder(target: Path, marker: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write into, whose files stand in `target` once the block ends without an error.

    What a killed process left of earlier attempts is removed.

    Args:
      target: made where absent; other files in it stay.
      marker: the file whose presence says that the folder is whole.
      stale: patterns of names that belong to an earlier contents and must not stay.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    partial.mkdir()
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield partial
        for path in partial.iterdir():
            sync(path)
        sync(partial)
        if target.exists():
            _replace(partial, target, marker, stale)
        else:
            os.rename(partial, target)
        sync(target.parent)
    finally:
        os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, target: Path, marker: str, stale: Sequence[str]) -> None:
    (target / marker).unlink(missing_ok=True)
    sync(target)
    for pattern in stale:
        for path in target.glob(pattern):
            path.unlink()
    for path in sorted(partial.iterdir(), key=lambda path: path.name == marker):
        if path.name == marker:
            sync(target)
        os.replace(path, target / path.name)
    sync(target)


def _clear(target: Path) -> None:
    """Remove partial folders whose writer is gone: it held a lock for as long as it lived."""
    for path in target.parent.glob(f".{target.name}.partial-*"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)
