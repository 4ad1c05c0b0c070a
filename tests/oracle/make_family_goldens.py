"""Tiny random checkpoints of every family by transformers, and what it computes with them.

    pip install -e '.[oracle]'
    python tests/oracle/make_family_goldens.py [--check] [NAME ...]

writes tests/golden/families/<name>/: config.json and model.safetensors as transformers saves them,
and goldens.npz, in float32 with eager attention:

  tokens, lengths      three sequences, padded on the right with 0
  weights              of the SFT targets: 1 at some of the real places, aligned with the token
  logits_right, _left  [real places, V], row by row, for the batch padded on either side
  loss, grad_norm      mean negative log-likelihood of the targets; norm of its gradient
  grad_names, _norms   norm of each tensor's gradient, under the name that the checkpoint has
  greedy, greedy_logits  the cached greedy continuation of the batch padded on the left

`--check` compares instead: the weights made again, and all of the above from the stored folders.
"""

import argparse
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).parents[1] / "golden" / "families"
LENGTHS, VOCAB, NEW_TOKENS = (36, 23, 11), 64, 8
_SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_EXPERTS = {"moe_intermediate_size": 12, "num_experts_per_tok": 2, "norm_topk_prob": True}
_DEEPSEEK = _SIZES | _EXPERTS | {
    "num_key_value_heads": 4, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 12, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 10, "v_head_dim": 6, "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 4.0,
        "beta_slow": 0.25, "mscale": 1.0, "mscale_all_dim": 0.7,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


def _rope(theta: float, **scaling) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}


FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _SIZES | _rope(500.0)),
    # Positions run past the old length, and of the four pairs one is kept, one blended.
    "llama3_scaled": ("llama", _SIZES | {"tie_word_embeddings": True} | _rope(
        100.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32,
    )),
    "qwen2": ("qwen2", _SIZES | {"tie_word_embeddings": True} | _rope(1000.0)),
    "qwen3": ("qwen3", _SIZES | {"head_dim": 12} | _rope(1000.0)),
    "olmo2": ("olmo2", _SIZES | _rope(500.0)),
    "gemma3_text": ("gemma3_text", _SIZES | {
        "num_hidden_layers": 4, "sliding_window": 5, "head_dim": 12, "query_pre_attn_scalar": 20,
        "tie_word_embeddings": True,
        "layer_types": [f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding")],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    }),
    "qwen3_moe": ("qwen3_moe", _SIZES | _EXPERTS | {"num_experts": 8, "head_dim": 12}
        | _rope(1000.0)),
    "deepseek_v3": ("deepseek_v3", _DEEPSEEK | {"q_lora_rank": 14, "rms_norm_eps": 1e-2}),
    "deepseek_v3_whole_q": ("deepseek_v3", _DEEPSEEK | {"q_lora_rank": None, "n_group": 4,
        "topk_group": 2, "num_experts_per_tok": 3} | _rope(1000.0)),
}  # fmt: skip
"""Folder -> model_type and settings: no two sizes alike where one could be taken for the other."""


def random_tensor(name: str, shape: tuple[int, ...], gemma: bool) -> torch.Tensor:
    """Values that depend on the name alone; activations and logits stay of order 1."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name:
        draw = (0.0 if gemma else 1.0) + 0.3 * draw
    elif name.endswith("bias"):
        draw *= 0.1 if "correction" in name else 0.3  # a larger one leaves experts idle
    elif "embed_tokens" in name or "lm_head" in name:
        draw *= 0.4
    else:
        draw *= shape[-1] ** -0.5
    return torch.from_numpy(draw.astype(np.float32))


def make(name: str):
    """The model of a folder, with its random weights."""
    model_type, settings = FAMILIES[name]
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if key in model.state_dict():  # no rotary tables
                value.copy_(random_tensor(key, tuple(value.shape), model_type == "gemma3_text"))
    return model


def batch(left: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens, mask, target weights) of the padded batch, all [B, T]."""
    rng, longest = np.random.default_rng(1), max(LENGTHS)
    tokens, mask, weights = (np.zeros((len(LENGTHS), longest), np.int64) for _ in range(3))
    for row, length in enumerate(LENGTHS):
        place = np.s_[longest - length :] if left else np.s_[:length]
        tokens[row, place], mask[row, place] = rng.integers(1, VOCAB, length), 1
        weights[row, place] = (rng.random(length) < 0.6) * (np.arange(length) > 0)
    return torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(weights)


def logits_of(model, left: bool) -> torch.Tensor:
    """Logits [B, T, V] of the padded batch."""
    tokens, mask, _ = batch(left)
    return model(tokens, attention_mask=mask, position_ids=_positions(mask)).logits


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def gradients(model) -> tuple[float, dict[str, float]]:
    """The SFT loss, and the norm of every tensor's gradient under its name in the checkpoint."""
    tokens, _, weights = batch(left=False)
    logp = logits_of(model, left=False)[:, :-1].log_softmax(-1)
    logp = logp.gather(-1, tokens[:, 1:, None])[..., 0]
    loss = -(logp * weights[:, 1:]).sum() / weights.sum()
    model.zero_grad()
    loss.backward()
    values = {key: value.detach().clone() for key, value in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for value in model.parameters():
            value.copy_(value.grad)
        model.save_pretrained(folder)  # splits fused experts as the weights' file has them
        for key, value in model.named_parameters():
            value.copy_(values[key])
        saved = load_file(f"{folder}/model.safetensors")
    buffers = {key for key, _ in model.named_buffers()}
    return loss.item(), {k: v.norm().item() for k, v in sorted(saved.items()) if k not in buffers}


@torch.no_grad()
def greedy(model) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest next tokens, one by one over the cache: ([B, new], their logits)."""
    tokens, mask, _ = batch(left=True)
    cache, chosen, seen, at = None, [], [], _positions(mask)
    step = tokens
    for _ in range(NEW_TOKENS):
        out = model(
            step, attention_mask=mask, position_ids=at, past_key_values=cache, use_cache=True
        )
        cache, last = out.past_key_values, out.logits[:, -1]
        step, at = last.argmax(-1, keepdim=True), at[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(step)], dim=1)
        chosen, seen = [*chosen, step], [*seen, last]
    return torch.cat(chosen, 1).numpy(), torch.stack(seen, 1).numpy()


def measure(model) -> dict[str, np.ndarray]:
    """All that goldens.npz holds."""
    model = model.eval()
    model.set_attn_implementation("eager")
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")
    tokens, real, weights = batch(left=False)
    with torch.no_grad():
        right = logits_of(model, left=False)[real.bool()]
        left = logits_of(model, left=True)[batch(left=True)[1].bool()]
    loss, norms = gradients(model)
    continuation, continuation_logits = greedy(model)
    return {
        "tokens": tokens.numpy().astype(np.int32), "lengths": np.array(LENGTHS, np.int32),
        "weights": weights.numpy().astype(np.float32),
        "logits_right": right.numpy(), "logits_left": left.numpy(),
        "loss": np.float32(loss), "grad_norm": np.float32(np.linalg.norm([*norms.values()])),
        "grad_names": np.array([*norms]), "grad_norms": np.array([*norms.values()], np.float32),
        "greedy": continuation.astype(np.int32), "greedy_logits": continuation_logits,
    }  # fmt: skip


def check_meaning(name: str, found: dict[str, np.ndarray]) -> None:
    """Raise where the goldens would not show an error, or would show rounding as one."""
    size = found["logits_right"].std()
    least = found["grad_norms"].min() / found["grad_norm"]
    model = make(name)
    with torch.no_grad():
        for i, value in enumerate(model.parameters()):
            torch.manual_seed(i)
            value *= 1 + 1e-5 * torch.randn_like(value)
    moved = measure(model)
    change = np.abs(moved["logits_right"] - found["logits_right"]).max()
    same = (moved["greedy"] == found["greedy"]).all()
    print(f"  logits {size:.2f}, least gradient {least:.1e}, change by 1e-5 noise {change:.1e}")
    if not (1 < size < 5 and least > 1e-3 and change < 2e-3 and same):
        raise ValueError(f"{name}: these weights make poor goldens; change settings or scales")


def write(name: str) -> None:
    """One folder."""
    folder, model = FOLDER / name, make(name)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    found = measure(model)
    np.savez_compressed(folder / "goldens.npz", **found)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    print(f"{name}: {sizes}")
    check_meaning(name, found)


def check(name: str) -> bool:
    """Whether the stored folder is what this script would make."""
    folder, made = FOLDER / name, make(name).state_dict()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = model.state_dict()
    same = made.keys() == weights.keys()
    same = same and all(torch.equal(made[key], weights[key]) for key in made)
    stored, found = np.load(folder / "goldens.npz"), measure(model)
    gaps = {}
    for key, value in found.items():
        if value.dtype.kind == "f":
            gaps[key] = float(np.abs(value - stored[key]).max())
        elif not np.array_equal(value, stored[key]):
            gaps[key] = np.inf
    good = same and set(stored) == set(found) and max(gaps.values()) < 2e-5
    print(f"{name}: {'same' if good else 'DIFFERS'}, weights {same}, {max(gaps.values()):.1e}")
    return good


def main() -> None:
    """Write or check the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    names = args.names or list(FAMILIES)
    if args.check:
        raise SystemExit(0 if all([check(name) for name in names]) else 1)
    for name in names:
        write(name)


if __name__ == "__main__":
    main()
