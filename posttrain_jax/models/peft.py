"""Adapters in PEFT's folder layout: adapter_config.json and adapter_model.safetensors.

Tensors have the checkpoint's names, so the family's table serves here too: the weight
"model.layers.0.self_attn.q_proj.weight" has base_model.model.model.layers.0.self_attn.q_proj with
.lora_A.weight [r, inputs], .lora_B.weight [outputs, r] and, of DoRA, .lora_magnitude_vector
[outputs] (PEFT 0.21: tuners/lora/layer.py, utils/save_and_load.py). Written in float32, as they
are trained. Left out, and refused: ranks or scales that differ by module, trained biases,
embeddings and whole modules, adapters of fused experts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from posttrain_jax import mesh
from posttrain_jax.api import Model, Params
from posttrain_jax.folders import whole_folder
from posttrain_jax.models.adapters import NORM, A, B
from posttrain_jax.models.hf_files import find_family
from posttrain_jax.models.layout import check_names, full_name, letter_sizes, relayout, rows, shapes
from posttrain_jax.models.lora import LoraConfig, unwrap, wrap
from posttrain_jax.models.lora_targets import projections, targets
from posttrain_jax.models.stored import read_safetensors

CONFIG_FILE, ADAPTERS_FILE = "adapter_config.json", "adapter_model.safetensors"
ENDINGS = {A: ".lora_A.weight", B: ".lora_B.weight", NORM: ".lora_magnitude_vector"}
PREFIX, RANK = "base_model.model.", "Z"
PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "lora_bias": False,
    "modules_to_save": None,
    "layer_replication": None,
    "target_parameters": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""Settings of PEFT that have to be as they are here."""


def save_peft(folder: str | Path, model: Model, params: Params, *, base: str = "") -> None:
    """Write a model's adapters as PEFT does; `PeftModel.from_pretrained(base model, folder)`.

    With several processes all must call it; the first one writes.

    Args:
      folder: made where absent; an earlier adapter in it is replaced.
      model: with adapters.
      params: its parameters; only the adapters are read.
      base: the name or path of the checkpoint that they lie over.
    """
    folder, lora = Path(folder), model.lora
    chosen = list(targets(unwrap(model), lora.targets))
    config = {
        **PLAIN,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "init_lora_weights": True,
        "target_modules": _modules(model, chosen),
    }
    tensors = {}
    for name, path, index, layout, sizes in _tensors(model, chosen):
        stack, leaf = path.split("/")
        ours = _fetch(params[stack][leaf], *index)
        tensors[name] = np.ascontiguousarray(relayout(name, ours, layout, sizes, save=True))
    if jax.process_index() == 0:
        with whole_folder(folder, CONFIG_FILE) as partial:
            save_file(tensors, partial / ADAPTERS_FILE, metadata={"format": "pt"})
            (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    mesh.barrier(f"{folder} is written")


def load_peft(folder: str | Path, model: Model) -> tuple[Model, Params]:
    """Read adapters for a plain model.

    Returns:
      the model with adapters, and the adapters alone, in host memory.

    Raises:
      FileNotFoundError: one of the two files is missing.
      ValueError: a setting of PEFT that we don't have, or tensors that are missing, not understood
        or of another shape.
    """
    folder = Path(folder).expanduser()
    said = _read_config(folder / CONFIG_FILE)
    file = folder / ADAPTERS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no {file}; expected the tensors of an adapter")
    stored = read_safetensors(file)
    able = projections(model)
    found = [path for path in able if _module(model, path, 0) + ENDINGS[A] in stored]
    lora = LoraConfig(
        rank=said["r"],
        alpha=float(said.get("lora_alpha", 8)),
        targets="" if found == list(able) else "|".join(found) or "no weight",
        rslora=bool(said.get("use_rslora")),
        dora=bool(said.get("use_dora")),
    )
    wrapped = wrap(model, lora)
    every = list(_tensors(wrapped, found))
    check_names(file, [name for name, *_ in every], stored)
    params: dict[str, Any] = {}
    for name, path, index, layout, sizes in every:
        stack, leaf = path.split("/")
        array = relayout(f"{name} of {file}", stored[name].read(), layout, sizes, save=False)
        depth = shapes(model.config)[path.removesuffix(_ending(path))].shape[0]
        whole = params.setdefault(stack, {}).setdefault(
            leaf, np.empty((depth, *array.shape), np.float32)
        )
        whole[index] = array
    return wrapped, params


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; expected an adapter in PEFT's layout")
    said = json.loads(path.read_text("utf-8"))
    for name, expected in PLAIN.items():
        got = said.get(name, expected)
        if got != expected and (got or expected):
            raise ValueError(f"{path}: {name} is {got!r}; only {expected!r} is supported")
    if not isinstance(said.get("r"), int):
        raise ValueError(f"{path}: r is {said.get('r')!r}; expected the rank")
    return said


def _ending(path: str) -> str:
    return next(ending for ending in ENDINGS if path.endswith(ending))


def _module(model: Model, path: str, layer: int) -> str:
    """PEFT's name of a weight's module."""
    name, _ = rows(find_family(model.config.family, "config.family").WEIGHTS, model.config)[path]
    return PREFIX + full_name(path, name, model.config, (layer,)).removesuffix(".weight")


def _modules(model: Model, chosen: list[str]) -> list[str]:
    """`target_modules`: last parts of names; whole names where a part would match other weights."""
    last = lambda path: _module(model, path, 0).rpartition(".")[2]  # noqa: E731
    table = rows(find_family(model.config.family, "config.family").WEIGHTS, model.config)
    others = {
        name.removesuffix(".weight").rpartition(".")[2]
        for path, (name, _) in table.items()
        if path not in chosen
    }
    found = set()
    for path in chosen:
        if last(path) not in others:
            found.add(last(path))
        else:
            depth = shapes(model.config)[path].shape[0]
            found |= {_module(model, path, n).removeprefix(PREFIX) for n in range(depth)}
    return sorted(found)


def _tensors(
    model: Model, chosen: list[str]
) -> Iterator[tuple[str, str, tuple[int, ...], str, Mapping[str, int]]]:
    """Every tensor: (name, our path, index in it, layout, sizes)."""
    config, lora = model.config, model.lora
    sizes = {**letter_sizes(config), RANK: lora.rank}
    table = rows(find_family(config.family, "config.family").WEIGHTS, config)
    for path in chosen:
        for ending, layout in _layouts(table[path][1], lora.dora).items():
            for layer in range(shapes(config)[path].shape[0]):
                name = _module(model, path, layer) + ENDINGS[ending]
                yield name, path + ending, (layer,), layout, sizes


def _layouts(layout: str, dora: bool) -> dict[str, str]:
    """The layouts of the adapters of a weight with this one ("(N H) D -> D N H")."""
    theirs, ours = (re.findall(r"\([A-Za-z ]+\)|[A-Za-z]", side) for side in layout.split("->"))
    outputs, inputs = theirs
    into = " ".join(group for group in ours if group.strip("()")[0] in inputs)
    outwards = " ".join(group for group in ours if group.strip("()")[0] in outputs)
    found = {
        A: f"{RANK} {inputs} -> {into} {RANK}",
        B: f"{outputs} {RANK} -> {RANK} {outwards}",
    }
    return {**found, NORM: f"{outputs} -> {outwards}"} if dora else found


def _fetch(array: Any, layer: int) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))[layer]
    return np.asarray(array)[layer]
