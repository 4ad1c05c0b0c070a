"""Those who speak with a policy over several turns: text in, text out, on the host.

An environment is a file here with `start(example, **options) -> Speaker`. Nothing here imports jax.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from posttrain_jax import registry

Speaker = Callable[[str], str | None]
"""What it says to the policy's turn; None: the conversation has ended. It bounds its own time."""


def open_environment(name: str, example: Mapping[str, Any], **options: Any) -> Speaker:
    """The speaker of one conversation.

    Raises:
      ValueError: no such environment, or an option that makes no sense.
      TypeError: an option that it has not.
    """
    start = registry.load("verifiers/environments", name).start
    try:
        inspect.signature(start).bind(example, **options)
    except TypeError as error:
        raise TypeError(f"environment {name!r}: {error}") from error
    return start(example, **options)
