"""The file name is the registry: `load("losses", "grpo")` imports `losses/grpo.py`."""

import difflib
import importlib
import pkgutil
from types import ModuleType


def names(folder: str) -> list[str]:
    """The modules of `posttrain_jax/<folder>`, sorted; files that start with `_` are not listed."""
    package = importlib.import_module(f"posttrain_jax.{folder.replace('/', '.')}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def load(folder: str, name: str) -> ModuleType:
    """Import `posttrain_jax/<folder>/<name>.py`.

    Raises:
      ValueError: no such file; the message lists the folder and the nearest name.
    """
    known = names(folder)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"no {name!r} in posttrain_jax/{folder}/.{hint} There are: {', '.join(known)}. "
            f"Add one by adding the file posttrain_jax/{folder}/{name}.py."
        )
    return importlib.import_module(f"posttrain_jax.{folder.replace('/', '.')}.{name}")
