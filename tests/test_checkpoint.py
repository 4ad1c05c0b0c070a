"""Checkpoints on disk: which are kept, which count, and what an interrupt leaves behind."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posttrain_jax import checkpoint, interrupt
from posttrain_jax.checkpoint import Checkpoints, committed_steps
from posttrain_jax.mesh import make_mesh, shardings


def state_of(step):
    return {"w": jnp.full((2, 3), float(step)), "step": jnp.int32(step)}


def test_saves_every_so_many_steps_and_keeps_the_newest_two(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=3)
    assert checkpoints.restore(state_of(0)) is None
    for step in range(1, 11):
        checkpoints.after(step, state_of(step), {"step": step, "phases": {"update": 0.5}})
    checkpoints.close()
    assert committed_steps(tmp_path / "checkpoints") == [6, 9]
    step, state, meta = Checkpoints(tmp_path, every=3).restore(state_of(0))
    assert (step, int(state["step"]), meta) == (9, 9, {"step": 9, "phases": {"update": 0.5}})
    assert state["w"].tolist() == [[9.0] * 3] * 2


def test_an_unfinished_save_does_not_count(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1)
    for step in (1, 2):
        checkpoints.after(step, state_of(step), {})
    checkpoints.close()
    (tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA").unlink()
    assert committed_steps(tmp_path / "checkpoints") == [1]
    assert Checkpoints(tmp_path, every=1).restore(state_of(0))[0] == 1
    assert committed_steps(tmp_path / "nowhere") == []


def test_an_interrupt_saves_at_once_and_says_where(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=0)
    checkpoints.after(1, state_of(1), {})
    with interrupt.watching():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(interrupt.Interrupted, match="step 2"):
            checkpoints.after(2, state_of(2), {"kept": True})
    assert committed_steps(tmp_path / "checkpoints") == [2]
    assert Checkpoints(tmp_path, every=0).restore(state_of(0))[2] == {"kept": True}


def test_finished_parameters_come_back_bit_for_bit(tmp_path):
    params = {"a": np.float32([[1e-45, -0.0], [np.inf, 3.14]]), "b": np.arange(4, dtype=np.int32)}
    checkpoint.save_params(tmp_path, params, {"config": {"width": 2}})
    shapes = jax.eval_shape(lambda: params)
    where = shardings(make_mesh(), {"a": ("ffn", "embed"), "b": ("norm",)})
    found = checkpoint.load_params(tmp_path, shapes, where)
    assert jax.tree.map(lambda x: np.asarray(x).tobytes(), found) == jax.tree.map(
        lambda x: x.tobytes(), params
    )
    assert found["a"].sharding == where["a"]
    assert checkpoint.load_about(tmp_path) == {"config": {"width": 2}}
