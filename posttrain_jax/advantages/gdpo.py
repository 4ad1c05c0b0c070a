"""GDPO: each reward term normalised within the group, then their weighted sum over the batch.

Liu et al. 2026, arXiv 2601.05242, eq. 4-6. A group whose sums of terms are equal, while the terms
differ, still gives a gradient; a term of small spread counts as much as one of large spread.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from posttrain_jax.advantages._told import Told
from posttrain_jax.advantages._whitening import moments
from posttrain_jax.advantages.group import counted, group_normalised, spread
from posttrain_jax.api import Array, Metrics

MIN_GROUP = 2


def advantage(told: Told, *, ddof: int = 1, eps: float = 1e-4) -> tuple[Array, None, Metrics]:
    """One advantage for all tokens of a response.

    Args:
      ddof, eps: of both deviations, std + eps; the defaults are TRL's.

    Raises:
      ValueError: a KL in the reward, which is no term: it belongs in the loss.
    """
    if told.kl_BT is not None:
        raise ValueError("gdpo normalises terms of the reward; have the KL in the loss (kl_coef)")
    values_BW = jnp.where(told.valid_B[:, None], told.values_BW, 0.0)
    normalise = functools.partial(
        group_normalised, group_size=told.group_size, mask_B=told.valid_B, ddof=ddof, eps=eps
    )
    terms_BW, equal_GW = jax.vmap(normalise, in_axes=1, out_axes=1)(values_BW)
    sum_B = jnp.sum(terms_BW * told.weights_W, axis=1)
    mean, variance, _ = moments(sum_B[None], told.valid_B[None], ddof)
    white_B = (sum_B - mean[0]) / (jnp.sqrt(variance[0]) + eps)
    equal_G = jnp.all(equal_GW | (told.weights_W == 0), axis=1)
    white_B = jnp.where(jnp.repeat(equal_G, told.group_size), 0.0, white_B)
    return spread(white_B, told), None, counted(told, equal_G)
