"""A coefficient of the entropy bonus that is steered, so that entropy stays near a target.

Qwen3 (arXiv 2505.09388, section 4.2) keeps entropy "steadily increasing or remaining stable" and
does not say how. Here as in Skywork-OR1 (arXiv 2505.22312, adaptive entropy control): a step up
where entropy is below the target, a step down where it is above, and no bonus while it is above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp


def steered(coef: float, entropy: float | None, control: Mapping[str, float]) -> float:
    """The coefficient after a rollout whose updates saw this mean entropy; at least 0.

    Args:
      control: `target` in nats, 0: no control; and `step`.
    """
    if not control["target"] or entropy is None or not math.isfinite(entropy):
        return coef
    return max(0.0, coef + math.copysign(control["step"], control["target"] - entropy))


def controls(
    coef: float, entropy: float | None, control: Mapping[str, float]
) -> dict[str, jax.Array]:
    """What the next updates take: no bonus where entropy was above the target."""
    if not control["target"]:
        return {}
    above = entropy is not None and entropy > control["target"]
    return {"entropy_coef": jnp.float32(0.0 if above else coef)}
