"""Experts that a file keeps in one tensor a layer, seen one by one.

transformers 5 may store `mlp.experts.gate_up_proj` [E, 2F, D] and `mlp.experts.down_proj`
[E, D, F]; an older form has both with their last two axes swapped. Everything else (transformers 4,
vLLM, SGLang, the published checkpoints, and what we write) has one `experts.<e>.gate_proj.weight`
[F, D], `up_proj.weight` and `down_proj.weight` [D, F] an expert. The parts are views: nothing is
copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from posttrain_jax.models.stored import Stored

GATE_UP, DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"


def one_by_one(
    tensors: Mapping[str, Stored], experts: int, width: int, ffn: int
) -> dict[str, Stored]:
    """The tensors with every fused one replaced by its experts.

    Args:
      tensors: as stored.
      experts, width, ffn: their number, the model's width and that of one expert.

    Raises:
      ValueError: a fused tensor of neither form.
    """
    out = {}
    for name, stored in tensors.items():
        if not name.endswith((GATE_UP, DOWN)):
            out[name] = stored
            continue
        both = name.endswith(GATE_UP)
        rows, columns = (2 * ffn, width) if both else (width, ffn)
        forms = {(experts, rows, columns): False, (experts, columns, rows): True}
        if stored.shape not in forms:
            raise ValueError(
                f"{stored.file}: tensor {name}: expected shape {' or '.join(map(str, forms))}, "
                f"got {stored.shape}"
            )
        # Where both forms have one shape, it is transformers 5's.
        swapped = stored.shape != (experts, rows, columns)
        halves = {"gate_proj": slice(0, ffn), "up_proj": slice(ffn, None)} if both else {}
        prefix = name.rsplit(".", 1)[0]
        for part, half in (halves or {"down_proj": slice(None)}).items():
            shape = (ffn, width) if both else (width, ffn)
            for expert in range(experts):
                read = _part(stored.read, expert, half, swapped)
                one = Stored(stored.file, stored.dtype, shape, read)
                out[f"{prefix}.{expert}.{part}.weight"] = one
    return out


def _part(
    read: Callable[[], np.ndarray], expert: int, half: slice, swapped: bool
) -> Callable[[], np.ndarray]:
    def part() -> np.ndarray:
        matrix = read()[expert]
        return (matrix.T if swapped else matrix)[half]

    return part
