"""The training state, its birth on the mesh, and the one jitted update that every stage uses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from posttrain_jax import tree
from posttrain_jax.api import Batch, Metrics, Model, Params, PolicyOut
from posttrain_jax.mesh import check_divides, shardings
from posttrain_jax.models import heads, routing


class TrainState(NamedTuple):
    """Parameters, optimizer state, and how many updates were made and skipped.

    Attributes:
      master: the parameters in float32, of which `params` are the rounded copy that the model
        computes with; None where `params` are float32 themselves. Updates move the master:
        bfloat16 would lose steps of less than 1/256 of a weight.
    """

    step: jax.Array
    skipped: jax.Array
    params: Params
    opt_state: Any
    master: Params | None = None


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


def split(model: Model, params: Params) -> tuple[Params, Params]:
    """The parameters that an update of this model trains, and the frozen ones."""
    return tree.split(params, model.trained) if model.trained else (params, {})


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Optimizer state beside its parameters, born with their shardings, all of it in float32.

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

    master = None
    if any(x.dtype != jnp.float32 for x in jax.tree.leaves(params)):
        master = jax.jit(_float32, out_shardings=jax.tree.map(lambda x: x.sharding, params))(params)
    moved = params if master is None else master
    where = jax.tree.map_with_path(home, jax.eval_shape(optimizer.init, moved))
    opt_state = jax.jit(optimizer.init, out_shardings=where)(moved)
    step, skipped = (jax.device_put(jnp.zeros((), jnp.int32), everywhere) for _ in range(2))
    return TrainState(step, skipped, params, opt_state, master)


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def policy_out(
    model: Model, params: Params, batch: Batch, start: int, temperature: float,
    teacher_temperature: float | None = None, linear: bool = False,
) -> PolicyOut:  # fmt: skip
    """Log-probs and entropies of the tokens that bear weight, zeros elsewhere; with a `value_head`
    among the parameters also values, with a teacher in the batch those of its tokens.

    Args:
      start: the first place that may bear weight, at least 1; the LM head starts there.
      teacher_temperature: of the log-probs of the teacher's tokens; None: as of the others.
      linear: the loss will be the sum of `weight_BT` times the log-probs, times one number, as that
        of SFT is. The gradients of the LM head are then made with its log-probs, a quarter of its
        work less; where it is not so, they are NaN.
    """
    hidden, _, chosen = model.routed(
        params, batch.tokens_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT,
        experts_BTLA=batch.experts_BTLA,
    )  # fmt: skip
    needed = batch.weight_BT != 0
    if batch.nll_weight_BT is not None:
        needed |= batch.nll_weight_BT != 0
    found = model.logprobs(
        params, hidden[:, start - 1 : -1], batch.tokens_BT[:, start:], temperature,
        needed[:, start:], batch.weight_BT[:, start:] if linear else None,
    )  # fmt: skip
    logp, entropy = (jnp.pad(x, ((0, 0), (start, 0))) for x in found)
    value = None
    if "value_head" in params:
        value = heads.apply(params["value_head"], hidden[:, start - 1 : -1])[..., 0]
        value = jnp.pad(jnp.where(needed[:, start:], value, 0.0), ((0, 0), (start, 0)))
    teacher, teacher_logp = batch.teacher, None
    if teacher is not None:
        teacher_logp = model.logprobs_at(
            params, hidden[:, start - 1 : -1], teacher.tokens_BTJ[:, start:],
            temperature if teacher_temperature is None else teacher_temperature,
            teacher.weight_BT[:, start:] != 0,
        )  # fmt: skip
        teacher_logp = jnp.pad(teacher_logp, ((0, 0), (start, 0), (0, 0)))
    return PolicyOut(logp, entropy, chosen, value, teacher_logp)


linear_out = functools.partial(policy_out, linear=True)
"""What a loss that is linear in the log-probs sees."""


@functools.partial(jax.jit, static_argnames=("model", "start", "temperature"))
def logprobs(
    model: Model, params: Params, batch: Batch, *, start: int = 1, temperature: float = 1.0
):
    """Log-probs under these parameters of the tokens that bear weight -> [B, T]."""
    return policy_out(model, params, batch, start, temperature).logp_BT


def _add(total: Metrics, new: Metrics) -> Metrics:
    join = lambda name: jnp.maximum if name.startswith("max/") else jnp.add  # noqa: E731
    return {name: join(name)(total[name], new[name]) for name in new}


def accumulate(
    value_and_grad: Callable, params: Params, batch: Any, microbatches: int, together: int = 1
):
    """Sum a loss's gradient and metrics over equal parts of the batch, in float32, in turn.

    Row i is in part i // together % microbatches, so that each part is spread as the batch is.

    Args:
      value_and_grad: `(params, part) -> ((loss, metrics), grads)`.
      together: so many rows, one after the other, stay in one part, as the sides of a pair must.

    Raises:
      ValueError: the parts would not be equal.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % (microbatches * together):
        raise ValueError(
            f"microbatches={microbatches} of {together} rows together don't divide {rows} rows"
        )
    if microbatches == 1:
        (_, metrics), grads = value_and_grad(params, batch)
        return grads, metrics

    def split_rows(x):
        parts = x.reshape(-1, microbatches, together, *x.shape[1:]).swapaxes(0, 1)
        return parts.reshape(microbatches, -1, *x.shape[1:])

    parts = jax.tree.map(split_rows, batch)
    one = lambda part: value_and_grad(params, part)  # noqa: E731
    (_, metrics), grads = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    zeros = (
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), grads),
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics),
    )

    def add(carry, part):
        (_, metrics), grads = one(part)
        return (jax.tree.map(jnp.add, carry[0], _float32(grads)), _add(carry[1], metrics)), None

    return jax.lax.scan(add, zeros, parts)[0]


def apply_gradients(
    state: TrainState, grads: Params, optimizer, lr, loss: Any = 0.0
) -> tuple[TrainState, Metrics]:
    """One optimizer step; where gradients or loss aren't finite it is skipped and counted."""
    grads = _float32(grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    safe = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
    before = state.params if state.master is None else state.master
    updates, opt_state = optimizer.update(safe, state.opt_state, before)
    after = jax.tree.map(lambda p, u: jnp.where(finite, p - lr * u, p), before, updates)
    new = TrainState(
        state.step + 1,
        state.skipped + ~finite,
        jax.tree.map(lambda old, x: x.astype(old.dtype), state.params, after),
        tree.where(finite, opt_state, state.opt_state),
        None if state.master is None else after,
    )
    return new, {"grad_norm": norm, "skipped": new.skipped}


def make_update(
    model: Model, optimizer: optax.GradientTransformation, loss: Callable, *,
    frozen: Params | None = None, microbatches: int = 1, together: int = 1, start: int = 1,
    temperature: float = 1.0, view: Callable[..., PolicyOut] = policy_out,
) -> Callable[..., tuple[TrainState, Metrics]]:  # fmt: skip
    """The jitted update `(state, batch, lr, **controls) -> (state, metrics)`; the state is donated.

    `controls` are hyper-parameters of the loss that change from update to update: arrays, so that
    nothing is compiled again.

    Args:
      loss: `(PolicyOut, Batch, **controls) -> (scalar, metrics)`, other hyper-parameters bound.
      frozen: parameters that the model has beside those of the state (`split`): constants to the
        gradient, neither copied nor donated.
      microbatches: rows are split in so many equal parts, whose gradients add up.
      together: rows that stay in one part (`accumulate`).
      start: the first place of a row that can bear loss; the LM head starts there.
      temperature: of the log-probs that the loss sees.
      view: what the model makes of a batch for the loss, as `policy_out`.

    Of a mixture of experts the metrics tell what its routers did (`models.routing`).
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: TrainState, batch: Batch, lr, frozen, **controls):
        def objective(params, part):
            whole = tree.join(frozen, params)
            out = view(model, whole, part, start, temperature)
            value, metrics = loss(out, part, **controls)
            return value, {**metrics, **routing.counts(out.routing, part, model.config)}

        grads, metrics = accumulate(
            jax.value_and_grad(objective, has_aux=True), state.params, batch, microbatches, together
        )
        state, more = apply_gradients(state, grads, optimizer, lr, metrics.get("loss", 0.0))
        return state, {**routing.summary(metrics, model.config), **more}

    return functools.partial(update, frozen=frozen or {})
