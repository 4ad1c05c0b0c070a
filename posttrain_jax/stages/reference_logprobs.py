"""Log-probs of a data set's responses under a policy, made once for all epochs of training.

The data is that of a stage that compares responses, with the same `data`, `system` and `length`;
`singles` is for stages of kind kto. Sequences are packed into rows of `row_length` tokens. Per
response token there is one float32, which serves every loss: sums, means, and any mask.

  logp.bin        float32, the tokens of all responses, in the order of the packed rows
  begins.npy      int64 [2 groups], where in it each response begins, in the order of the data
  groups.npy      uint64, a fingerprint of each group's tokens
  left_out.jsonl  the rows that are not among them, with the reason

Process 0 writes; the rows of a batch come to it from the others. Killed, the stage goes on after
its last whole batch: how many numbers a batch has is known from the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from posttrain_jax import artifacts, interrupt, process, train_state
from posttrain_jax.api import Artifact, Model, Params
from posttrain_jax.data.examples import load_examples
from posttrain_jax.data.loader import row_batch
from posttrain_jax.data.pack import best_fit, fill
from posttrain_jax.data.preferences import (
    Preferences,
    Side,
    encode_pairs,
    encode_singles,
    fingerprints,
)
from posttrain_jax.files import write_text
from posttrain_jax.mesh import all_rows, barrier, check_batch, from_first, local_rows
from posttrain_jax.metrics import MetricLogger, PhaseTimer
from posttrain_jax.policy import Text, load_policy, open_mesh, open_text, stage_title

DEFAULTS = {
    "data": {},
    "system": "",
    "length": ...,
    "row_length": 0,
    "batch_size": 32,
    "singles": False,
    "model_options": {},
}
LOGP = "logp.bin"
Logp = Sequence[tuple[np.ndarray, ...]]
"""Of each group, the log-probs of its two responses' tokens."""


def run(config: Any, workdir: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """Log-probs under inputs["policy"], adapters merged, of the responses of `config.data`.

    `row_length` 0 means rows of `length` tokens; `batch_size` counts rows.
    """
    mesh, text, phases = open_mesh(config), open_text(config), PhaseTimer()
    check_batch(mesh, "batch_size", config.batch_size)
    data = read_data(config, inputs, text, config.singles)
    sides = [side for group in data.groups for side in group]
    members = fit(sides, config.row_length or config.length)
    with jax.set_mesh(mesh), phases("logprobs"):
        model, params = load_policy(inputs["policy"], mesh, **config.model_options)
        make(config, workdir, mesh, model, params, sides, members, text.tokenizer.pad_id)
    metrics: dict[str, Any] = dict(data.counts)
    if process.index() == 0:
        np.save(workdir / "begins.npy", begins(sides, members))
        np.save(workdir / "groups.npy", fingerprints(data.groups))
        write_left_out(workdir, data)
        flat = np.fromfile(workdir / LOGP, np.float32)
        metrics |= {"mean_logp": float(flat.mean()), "tokens": len(flat)}
    return artifacts.finish(workdir, metrics=metrics, phases=phases.seconds)


def read_data(
    config: Any, inputs: Mapping[str, Artifact], text: Text, singles: bool, data: Any = None
) -> Preferences:
    """The groups of `config.data`, or of other sources, as a stage of preferences reads them."""
    examples = load_examples(config.data if data is None else data, inputs, config.seed)
    encode = encode_singles if singles else encode_pairs
    return encode(examples, *text, config.length, config.system)


def write_left_out(workdir: Path, data: Preferences) -> None:
    """The rows that nothing is learnt from, for whoever wants to know which."""
    if process.index() == 0:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in data.left_out]
        write_text(workdir / "left_out.jsonl", "".join(lines))


def fit(sides: Sequence[Side], length: int) -> list[list[int]]:
    """The sequences of each packed row, by number."""
    sizes = [len(side.tokens) for side in sides]
    if max(sizes) > length:
        raise ValueError(f"a sequence has {max(sizes)} tokens, over row_length={length}: raise it")
    return best_fit(sizes, length)


def make(
    config: Any, workdir: Path, mesh: Mesh, model: Model, params: Params, sides: Sequence[Side],
    members: Sequence[Sequence[int]], pad_id: int,
) -> None:  # fmt: skip
    """Write the log-probs of all response tokens, row by row, from the last whole batch on."""
    length, size = config.row_length or config.length, config.batch_size
    batches = [members[i : i + size] for i in range(0, len(members), size)]
    counts = [sum(int(sides[n].said.sum()) for row in rows for n in row) for rows in batches]
    start = _resume(workdir / LOGP, counts)
    with MetricLogger(workdir, len(batches), stage_title(workdir), start) as log:
        for number in range(start, len(batches)):
            rows: list[list[Any]] = [
                [(sides[n].tokens, sides[n].said) for n in row] for row in batches[number]
            ]
            filled = fill(rows, length, pad_id, size)
            batch = row_batch(mesh, filled, list(range(size)))
            logp = all_rows(mesh, local_rows(train_state.logprobs(model, params, batch)))
            found = logp[filled.mask > 0].astype(np.float32)
            if process.index() == 0:
                with open(workdir / LOGP, "ab") as file:
                    file.write(found.tobytes())
            log(number + 1, {"mean_logp": float(found.mean()), "tokens": len(found)})
            if interrupt.requested():
                raise interrupt.Interrupted(number + 1)
    barrier("all log-probs are on disk")


def _resume(path: Path, counts: Sequence[int]) -> int:
    """How many batches are all written; process 0 cuts off what is after them."""
    done = 0
    if process.index() == 0:
        ends = np.cumsum([0, *counts]) * np.dtype(np.float32).itemsize
        path.touch()
        done = int(np.searchsorted(ends, path.stat().st_size, side="right")) - 1
        with open(path, "r+b") as file:
            file.truncate(int(ends[done]))
    return from_first(done)


def begins(sides: Sequence[Side], members: Sequence[Sequence[int]]) -> np.ndarray:
    """Where each response begins among the log-probs that are written row by row."""
    order = [n for row in members for n in row]
    sizes = [int(sides[n].said.sum()) for n in order]
    found = np.zeros(len(sides), np.int64)
    found[order] = np.cumsum([0, *sizes[:-1]])
    return found


def load(artifact: Artifact, data: Preferences) -> Logp:
    """The log-probs of each group's responses, checked against the data they are for.

    Raises:
      ValueError: they are of another data set, order, tokenizer or template, or not finite; with
        the first row that differs.
    """
    where = f"inputs.reference (stage {artifact.stage!r}, {artifact.path})"
    if artifact.kind != "reference_logprobs":
        raise ValueError(f"{where} is of kind {artifact.kind!r}; expected reference_logprobs")
    theirs, ours = np.load(artifact.path / "groups.npy"), fingerprints(data.groups)
    same = theirs[: len(ours)] == ours[: len(theirs)]
    if len(theirs) != len(ours) or not same.all():
        at = int(np.argmin(same)) if not same.all() else min(len(theirs), len(ours))
        name = repr(data.names[at]) if at < len(data.names) else "past the end"
        raise ValueError(
            f"{where} has {len(theirs)} groups and this stage {len(ours)}; they differ first at "
            f"group {at} (example {name}): give both stages the same data, seed, system, length, "
            "tokenizer and chat_template"
        )
    flat, starts = (
        np.fromfile(artifact.path / LOGP, np.float32),
        np.load(artifact.path / "begins.npy"),
    )
    found = [
        tuple(
            flat[start : start + side.said.sum()]
            for start, side in zip(starts[2 * i : 2 * i + 2], group, strict=True)
        )
        for i, group in enumerate(data.groups)
    ]
    for name, group in zip(data.names, found, strict=True):
        if not all(np.isfinite(logp).all() for logp in group):
            raise ValueError(
                f"{where}: a log-prob of example {name!r} is not finite; look at the policy that "
                "it was made with"
            )
    return found
