"""Adapters made by PEFT over the tiny checkpoints, and what they do to the logits.

    pip install -e '.[oracle]'
    python tests/oracle/make_peft_goldens.py [--check]

writes tests/golden/peft/<name>/: adapter_config.json and adapter_model.safetensors as PEFT saves
them, and logits.npz, in float32: tokens [B, T], logits with the adapter, and with it merged.

`--check` makes nothing: PEFT reads the stored folders again and has to give the stored logits; and
for every family our own adapters are exported, loaded by PEFT, and compared with our logits. Of
mixtures of experts only attention has adapters there: PEFT 0.21 over transformers 5 takes whatever
is called gate_proj, up_proj or down_proj for a fused expert.
"""

import argparse
import dataclasses
import json
import tempfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from posttrain_jax import tree
from posttrain_jax.models import lora, make_model
from posttrain_jax.models.config import ModelConfig
from posttrain_jax.models.peft import save_peft
from posttrain_jax.models.safetensors import load_pretrained

GOLDEN = Path(__file__).parents[1] / "golden"
ADAPTERS = {
    "llama_lora": ("llama", {"r": 3, "lora_alpha": 7, "target_modules": "all-linear"}),
    "llama_dora": ("llama", {
        "r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "o_proj", "down_proj"],
        "use_dora": True,
    }),
    "qwen2_rslora": ("qwen2", {
        "r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj", "gate_proj"],
        "use_rslora": True,
    }),
    "qwen2_dora": ("qwen2", {
        "r": 3, "lora_alpha": 6, "target_modules": ["k_proj", "v_proj", "up_proj"],
        "use_dora": True,
    }),
}  # fmt: skip
"""Folder -> the checkpoint and PEFT's settings."""
VOCAB = 64


def tokens() -> np.ndarray:
    """Two rows of 11."""
    return np.random.default_rng(3).integers(1, VOCAB, (2, 11))


def base_model(family: str):
    """The checkpoint that an adapter lies over."""
    folder = GOLDEN / "families" / family
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@torch.no_grad()
def logits(model) -> np.ndarray:
    """Of the rows."""
    return model(torch.from_numpy(tokens())).logits.numpy()


@torch.no_grad()
def make(name: str):
    """An adapter whose every part shows in the logits; the same on every machine."""
    family, settings = ADAPTERS[name]
    model = get_peft_model(base_model(family), LoraConfig(task_type="CAUSAL_LM", **settings))
    for key, value in model.named_parameters():
        if "lora_" in key:
            rng = np.random.default_rng(zlib.crc32(key.encode()))
            draw = torch.from_numpy(rng.standard_normal(value.shape).astype(np.float32))
            if "magnitude" in key:
                value *= 1 + 0.3 * draw
            else:
                value.copy_(0.3 * draw)
    return model.eval()


def write(name: str) -> None:
    """One folder."""
    model, folder = make(name), GOLDEN / "peft" / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["base_model_name_or_path"] = ADAPTERS[name][0]
    if isinstance(settings["target_modules"], list):
        settings["target_modules"] = sorted(settings["target_modules"])
    path.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    adapted = logits(model)
    changed = np.abs(adapted - logits(base_model(ADAPTERS[name][0]))).max()
    merged = logits(model.merge_and_unload())
    np.savez_compressed(
        folder / "logits.npz", tokens=tokens().astype(np.int32), adapted=adapted, merged=merged
    )
    print(f"{name}: changes logits by {changed:.2f}, merged differ by {gap(adapted, merged):.1e}")


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference."""
    return float(np.abs(a - b).max())


def check_stored(name: str) -> float:
    """How far PEFT is from the stored logits of the stored adapter."""
    folder = GOLDEN / "peft" / name
    model = PeftModel.from_pretrained(base_model(ADAPTERS[name][0]), folder).eval()
    return gap(logits(model), np.load(folder / "logits.npz")["adapted"])


def check_export(family: str, settings: lora.LoraConfig, where: str) -> float:
    """How far PEFT's logits of an adapter that we exported are from ours."""
    fields, weights = load_pretrained(GOLDEN / "families" / family)
    plain = make_model(ModelConfig(**{**fields, "pad_id": None}))
    if plain.config.experts:
        settings = dataclasses.replace(settings, targets="(q|k|v|o)(_proj)?|(q|kv)_(a|b)")
    model = lora.wrap(plain, settings)
    weights = jax.tree.map(jnp.asarray, weights)
    adapters = lora.init_adapters(model, weights, jax.random.key(0))
    key = jax.random.key(1)
    adapters = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(key, x.shape), adapters)
    params = tree.join(weights, adapters)
    rows = jnp.asarray(tokens())
    places = {"positions_BT": jnp.tile(jnp.arange(11), (2, 1)), "segments_BT": jnp.ones_like(rows)}
    ours = model.logits(params, model.apply(params, rows, **places)[0])
    save_peft(where, model, params)
    theirs = PeftModel.from_pretrained(base_model(family), where).eval()
    return gap(np.asarray(ours), logits(theirs))


def check() -> bool:
    """Print every comparison; whether all are within 2e-4."""
    gaps = {name: check_stored(name) for name in ADAPTERS}
    kinds = {
        "lora": lora.LoraConfig(3, alpha=5.0),
        "dora": lora.LoraConfig(2, rslora=True, dora=True),
    }
    for path in sorted((GOLDEN / "families").iterdir()):
        for kind, settings in kinds.items():
            with tempfile.TemporaryDirectory() as where:
                gaps[f"our {kind} of {path.name}"] = check_export(path.name, settings, where)
    for name, found in gaps.items():
        print(f"{name}: {found:.1e}")
    return max(gaps.values()) < 2e-4


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        raise SystemExit(0 if check() else 1)
    for name in ADAPTERS:
        write(name)


if __name__ == "__main__":
    main()
