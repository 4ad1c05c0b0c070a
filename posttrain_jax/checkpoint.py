"""Saving and restoring arrays: resumable training states, and finished parameters.

Orbax stays behind this file. Arrays are written and read shard by shard, on any mesh.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from posttrain_jax import interrupt

CHECKPOINTS = "checkpoints"


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays, to restore into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def committed_steps(folder: Path) -> list[int]:
    """The steps of complete checkpoints in a folder, oldest first.

    Read from disk: a manager's own `latest_step` also names a save that is still under way.
    """
    if not folder.is_dir():
        return []
    done = [
        p for p in folder.iterdir() if p.name.isdigit() and (p / "_CHECKPOINT_METADATA").exists()
    ]
    return sorted(int(p.name) for p in done)


class Checkpoints:
    """The checkpoints of one running stage: the newest two are kept, saves run beside training.

    Args:
      workdir: the stage's folder; they lie in its `checkpoints`.
      every: save after each so many steps; 0 saves only when the run is interrupted.
    """

    def __init__(self, workdir: Path, every: int):
        self._every = every
        self._folder = workdir / CHECKPOINTS
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
        )

    def restore(self, like: Any) -> tuple[int, Any, dict] | None:
        """The newest complete (step, state, meta), placed as `like` is; None if there is none."""
        steps = committed_steps(self._folder)
        if not steps:
            return None
        found = self._manager.restore(
            steps[-1],
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract(like)), meta=ocp.args.JsonRestore()
            ),
        )
        return steps[-1], found["state"], found["meta"] or {}

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Save under `step`, the number of steps done; returns before it is on disk."""
        if step in committed_steps(self._folder):
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
        )

    def after(self, step: int, state: Any, meta: dict) -> None:
        """To be called after each step: saves where that is due.

        Raises:
          Interrupted: a stop was asked for; the step is saved.
        """
        stop = interrupt.requested()
        if stop or (self._every and step % self._every == 0):
            self.save(step, state, meta)
        if stop:
            self.close()
            raise interrupt.Interrupted(step)

    def close(self) -> None:
        """Wait for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def save_params(folder: Path, params: Any, about: dict) -> None:
    """Write finished parameters to `folder/params` and what is needed to rebuild the model."""
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(json.dumps(about, indent=1, sort_keys=True))
    with ocp.StandardCheckpointer() as saver:
        saver.save((folder / "params").absolute(), params, force=True)


def load_about(folder: Path) -> dict:
    """What `save_params` was told of the model."""
    return json.loads((folder / "model.json").read_text())


def model_kind(folder: Path) -> str:
    """What sort of model `save_params` wrote: policy, reward_model or process_reward."""
    about = load_about(folder) if (folder / "model.json").is_file() else {}
    if "head" not in about:
        return "policy"
    return "process_reward" if "separators" in about else "reward_model"


def load_params(folder: Path, shapes: Any, shardings: Any) -> Any:
    """Read parameters straight into their shards.

    Args:
      shapes: the abstract parameter tree.
      shardings: the tree of NamedShardings.
    """
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    with ocp.StandardCheckpointer() as loader:
        return loader.restore((folder / "params").absolute(), like)
