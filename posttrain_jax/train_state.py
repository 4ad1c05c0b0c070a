"""The training state, its birth on the mesh, and the one jitted update that every stage uses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from posttrain_jax import tree
from posttrain_jax.api import Batch, Metrics, Model, Params, PolicyOut
from posttrain_jax.mesh import check_divides, shardings


class TrainState(NamedTuple):
    """Parameters, optimizer state, and how many updates were made and skipped."""

    step: jax.Array
    skipped: jax.Array
    params: Params
    opt_state: Any


def make_optimizer(
    *, name: str = "adamw", b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8,
    weight_decay: float = 0.0, clip_norm: float = 1.0, muon_ratio: float = 20 / 3,
) -> optax.GradientTransformation:  # fmt: skip
    """The optimizer after clipping by the global norm; -lr is applied where the update is.

    Args:
      name: `adamw`; or `muon`, which orthogonalises the layers' matrices (Jordan et al. 2024,
        kellerjordan.github.io/posts/muon; optax.contrib) and takes AdamW for all else.
      muon_ratio: the matrices' learning rate as a multiple of the others' (0.02 to 0.003: ours).

    Raises:
      ValueError: an unknown name.
    """
    if name == "muon":
        scale = optax.contrib.muon(
            -muon_ratio, adam_learning_rate=-1.0, adam_b1=b1, adam_b2=b2, eps=eps,
            muon_weight_dimension_numbers=_matrix_axes,
        )  # fmt: skip
    elif name == "adamw":
        scale = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    else:
        raise ValueError(f"optimizer.name={name!r}: expected adamw or muon")
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        scale,
        optax.add_decayed_weights(weight_decay, mask=decayed),
    )


def _matrix_axes(params: Params) -> Any:
    """Which axes of a stacked layer weight are a matrix's input and output; None for all else."""

    def axes(path, x):
        name = path[-1].key
        if path[0].key != "layers" or x.ndim < 3:
            return None
        inputs = (1, 2) if name == "o" else (1,)
        outputs = tuple(range(1 + len(inputs), x.ndim))
        return optax.contrib.MuonDimensionNumbers(inputs, outputs)

    return jax.tree.map_with_path(axes, params)


def decayed(params: Params) -> Any:
    """Which parameters decay: matrices and embeddings; norms don't, stacked by layer or not."""
    norm = lambda path: "norm" in jax.tree_util.keystr(path)  # noqa: E731
    return jax.tree.map_with_path(lambda path, x: x.ndim > 1 and not norm(path), params)


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


def param_shardings(model: Model, mesh: Mesh) -> Any:
    """Where each parameter lives on the mesh.

    Raises:
      ValueError: a dimension that its mesh axes don't divide.
    """
    check_divides(mesh, model.axes(), jax.eval_shape(model.init, jax.random.key(0)))
    return shardings(mesh, model.axes())


def init_params(model: Model, mesh: Mesh, seed: int) -> Params:
    """Random parameters, born sharded; the same values on any mesh."""
    born = jax.jit(model.init, out_shardings=param_shardings(model, mesh))
    return born(jax.random.key(seed))


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Optimizer state beside its parameters, born with their shardings.

    A moment is known by its path, which ends in that of its parameter; all else is replicated.
    """
    text = jax.tree_util.keystr
    homes = {text(path): (x.shape, x.sharding) for path, x in jax.tree.leaves_with_path(params)}
    everywhere = NamedSharding(jax.tree.leaves(params)[0].sharding.mesh, PartitionSpec())

    def home(path, x):
        tails = (homes.get(text(path[i:])) for i in range(len(path)))
        return next(
            (sharding for shape, sharding in filter(None, tails) if shape == x.shape), everywhere
        )

    where = jax.tree.map_with_path(home, jax.eval_shape(optimizer.init, params))
    opt_state = jax.jit(optimizer.init, out_shardings=where)(params)
    step, skipped = (jax.device_put(jnp.zeros((), jnp.int32), everywhere) for _ in range(2))
    return TrainState(step, skipped, params, opt_state)


def policy_out(model: Model, params: Params, batch: Batch, start: int, temperature: float):
    """Log-probs and entropies of `batch.tokens_BT[:, start:]`; zeros before. start >= 1."""
    hidden, _ = model.apply(
        params, batch.tokens_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT
    )
    found = model.logprobs(
        params, hidden[:, start - 1 : -1], batch.tokens_BT[:, start:], temperature
    )
    return PolicyOut(*(jnp.pad(x, ((0, 0), (start, 0))) for x in found))


@functools.partial(jax.jit, static_argnames=("model", "start", "temperature"))
def logprobs(
    model: Model, params: Params, batch: Batch, *, start: int = 1, temperature: float = 1.0
):
    """Log-probs of a batch's tokens under these parameters -> [B, T]."""
    return policy_out(model, params, batch, start, temperature).logp_BT


def _add(total: Metrics, new: Metrics) -> Metrics:
    join = lambda name: jnp.maximum if name.startswith("max/") else jnp.add  # noqa: E731
    return {name: join(name)(total[name], new[name]) for name in new}


def accumulate(value_and_grad: Callable, params: Params, batch: Any, microbatches: int):
    """Sum a loss's gradient and metrics over equal parts of the batch, one after the other.

    Row i is in part i % microbatches, so that each part is spread over the mesh as the batch is.

    Args:
      value_and_grad: `(params, part) -> ((loss, metrics), grads)`.

    Raises:
      ValueError: the parts would not be equal.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % microbatches:
        raise ValueError(f"microbatches={microbatches} does not divide batch_size={rows}")
    if microbatches == 1:
        (_, metrics), grads = value_and_grad(params, batch)
        return grads, metrics
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
    one = lambda part: value_and_grad(params, part)  # noqa: E731
    (_, metrics), grads = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics))

    def add(carry, part):
        (_, metrics), grads = one(part)
        return (jax.tree.map(jnp.add, carry[0], grads), _add(carry[1], metrics)), None

    return jax.lax.scan(add, zeros, parts)[0]


def apply_gradients(state: TrainState, grads: Params, optimizer, lr) -> tuple[TrainState, Metrics]:
    """One optimizer step; gradients that aren't finite are skipped and counted."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    safe = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
    updates, opt_state = optimizer.update(safe, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), state.params, updates)
    new = TrainState(
        state.step + 1,
        state.skipped + ~finite,
        tree.where(finite, params, state.params),
        tree.where(finite, opt_state, state.opt_state),
    )
    return new, {"grad_norm": norm, "skipped": new.skipped}


def make_update(
    model: Model, optimizer: optax.GradientTransformation, loss: Callable, *,
    microbatches: int = 1, start: int = 1, temperature: float = 1.0,
) -> Callable[[TrainState, Batch, float], tuple[TrainState, Metrics]]:  # fmt: skip
    """The jitted update `(state, batch, lr) -> (state, metrics)`; the state is donated.

    Args:
      loss: `(PolicyOut, Batch) -> (scalar, metrics)`, with hyper-parameters bound.
      microbatches: rows are split in so many equal parts, whose gradients add up.
      start: the first place of a row that can bear loss; the LM head starts there.
      temperature: of the log-probs that the loss sees.
    """

    def objective(params, part):
        return loss(policy_out(model, params, part, start, temperature), part)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: TrainState, batch: Batch, lr):
        grads, metrics = accumulate(
            jax.value_and_grad(objective, has_aux=True), state.params, batch, microbatches
        )
        state, more = apply_gradients(state, grads, optimizer, lr)
        return state, {**metrics, **more}

    return update
