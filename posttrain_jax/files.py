"""JSON and text files that a crash leaves whole: written beside, synced, then renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class FileError(ValueError):
    """A file that can't be read as what it should be; the message has its path and line."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
      FileError: missing or malformed, with the path and the line.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise FileError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """The value with plain keys, lists and numbers, and None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return finite(float(value)) if hasattr(value, "__float__") else str(value)


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader, or a crash, sees the old contents or the new.

    Raises:
      OSError: with the path in it (full disk, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror, str(path)) from error


def sync(path: Path) -> None:
    """Return once a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
