"""Every published size through transformers: our config.json, its AutoConfig, and back.

    pip install -e '.[oracle]'
    python tests/oracle/check_configs.py

Compares what transformers understands (sizes, rotary frequencies) and what comes back when it
saves its config again; exits with 1 where something differs.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from posttrain_jax import registry
from posttrain_jax.models import ModelConfig
from posttrain_jax.models.rope import inverse_frequencies


def theirs(settings: dict) -> tuple[AutoConfig, dict]:
    """transformers' config of our settings, and the settings that it saves."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(settings))
        config = AutoConfig.from_pretrained(folder)
        config.save_pretrained(folder)
        return config, json.loads((Path(folder) / "config.json").read_text())


def frequencies(config: AutoConfig) -> tuple[np.ndarray, float]:
    """transformers' angles a position, and its factor of sin and cos, of layers that see all."""
    nested, kind = "full_attention" in config.rope_parameters, "full_attention"
    rope = config.rope_parameters[kind] if nested else config.rope_parameters
    if rope["rope_type"] == "default":
        return rope["rope_theta"] ** (-np.arange(0, 1, 2 / config.head_dim)), 1.0
    make = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
    inverse, factor = make(config, "cpu", **({"layer_type": kind} if nested else {}))
    return inverse.numpy(), factor


def differences(config: ModelConfig) -> list[str]:
    """What is not the same on the way there and back."""
    family = registry.load("models", config.family)
    understood, saved = theirs(family.to_hf(config))
    found = {"family": config.family, **family.from_hf(saved)}
    lines = [
        f"{k}: {getattr(config, k)} -> {v}" for k, v in found.items() if getattr(config, k) != v
    ]
    width = config.latent.rope_dim if config.latent else config.head_dim
    ours = np.asarray(inverse_frequencies(width, config.rope_theta, config.rope))
    inverse, factor = frequencies(understood)
    if ours.shape != inverse.shape or not np.allclose(ours, inverse, rtol=2e-6, atol=0):
        lines.append(f"rotary frequencies {ours} -> {inverse}")
    if abs(factor - (config.rope.attention_factor if config.rope else 1.0)) > 1e-6:
        lines.append(f"rotary factor -> {factor}")
    return lines


def main() -> None:
    """All sizes of all families."""
    bad = 0
    for name in registry.names("models"):
        family = registry.load("models", name)
        if not hasattr(family, "MODEL_TYPE"):
            continue
        for size, config in family.SIZES.items():
            lines = differences(config)
            bad += bool(lines)
            print(f"{name}:{size}: {'; '.join(lines) or 'same'}")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
