"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from posttrain_jax.api import Params


def make_optimizer(
    *, name: str = "adamw", b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8,
    weight_decay: float = 0.0, clip_norm: float = 1.0, muon_ratio: float = 20 / 3,
    moments: str = "float32",
) -> optax.GradientTransformation:  # fmt: skip
    """The optimizer after clipping by the global norm; -lr is applied where the update is.

    Args:
      name: `adamw`; or `muon`, which orthogonalises the layers' matrices (Jordan et al. 2024,
        kellerjordan.github.io/posts/muon; optax.contrib) and takes AdamW for all else.
      muon_ratio: the matrices' learning rate as a multiple of the others' (0.02 to 0.003: ours).
      moments: the type that AdamW's moments are kept in: `float32`, or `bfloat16`, half the memory
        (DeepSeek-V3, arXiv 2412.19437, section 3.3.3). A b2 near 1 needs float32: bfloat16 rounds
        away changes of a moment by less than 1/256, and 1 - b2 is the largest it makes.

    Raises:
      ValueError: an unknown name or type.
    """
    if moments not in ("float32", "bfloat16") or (name, moments) == ("muon", "bfloat16"):
        raise ValueError(f"optimizer.moments={moments!r}: expected float32, or with adamw bfloat16")
    if name == "muon":
        scale = optax.contrib.muon(
            -muon_ratio, adam_learning_rate=-1.0, adam_b1=b1, adam_b2=b2, eps=eps,
            muon_weight_dimension_numbers=_matrix_axes,
        )  # fmt: skip
    elif name == "adamw":
        scale = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
        scale = _kept_as(jnp.bfloat16, scale) if moments == "bfloat16" else scale
    else:
        raise ValueError(f"optimizer.name={name!r}: expected adamw or muon")
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        scale,
        optax.add_decayed_weights(weight_decay, mask=decayed),
    )


def _kept_as(dtype: Any, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that computes in float32 and keeps its state's floats in another type."""

    def cast(state, dtype):
        floats = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
        return jax.tree.map(floats, state)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)


def _matrix_axes(params: Params) -> Any:
    """Which axes of a stacked layer weight are a matrix's input and output; None for all else."""

    def axes(path, x):
        name = path[-1].key
        stacked = path[0].key in ("layers", "dense_layers")
        if not stacked or x.ndim < 3 or name.endswith(("norm", "bias")):
            return None
        inputs = (1,)
        if name in ("o", "o_lora_a"):
            inputs = (1, 2)
        elif name.startswith("expert_"):
            inputs = (2,)
        outputs = tuple(range(inputs[-1] + 1, x.ndim))
        return optax.contrib.MuonDimensionNumbers(inputs, outputs)

    return jax.tree.map_with_path(axes, params)


def decayed(params: Params) -> Any:
    """Which parameters decay: matrices and embeddings; norms and biases don't, stacked or not."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    stays = lambda path: name(path).endswith(("norm", "bias"))  # noqa: E731
    return jax.tree.map_with_path(lambda path, x: x.ndim > 1 and not stays(path), params)


def scheduled(config: Any, step: int, total: int, peak: float | None = None) -> float:
    """`learning_rate` of update `step` of `total` by a stage's settings; `peak` in place of lr."""
    return learning_rate(
        step, peak=config.lr if peak is None else peak, total=total, warmup=config.warmup,
        schedule=config.lr_schedule, end_ratio=config.lr_end_ratio,
    )  # fmt: skip


def learning_rate(
    step: int, *, peak: float, total: int, warmup: int = 0, schedule: str = "constant",
    end_ratio: float = 0.0,
) -> float:  # fmt: skip
    """The rate of update `step` (from 0): linear warm-up, then the schedule down to end_ratio.

    Raises:
      ValueError: an unknown schedule.
    """
    done = min(1.0, max(0, step - warmup) / max(1, total - warmup))
    ratios = {
        "constant": 1.0,
        "linear": 1 - (1 - end_ratio) * done,
        "cosine": end_ratio + (1 - end_ratio) * 0.5 * (1 + math.cos(math.pi * done)),
    }
    if schedule not in ratios:
        raise ValueError(f"lr_schedule {schedule!r}: expected constant, linear or cosine")
    return peak * ((step + 1) / (warmup + 1) if step < warmup else ratios[schedule])
